/*
 * crash-file.c: see crash-file.h.
 *
 * The stable content of a file is a sparse copy in memory. The queue holds the operations
 * in their order, with their bytes; a sync replays it onto the stable copy. A crash state is
 * the stable copy with a part of the queue replayed in that order: what is dropped is as if
 * it had never been asked for.
 *
 * A size is no sector. A resize is kept or dropped as a whole; a write behind the end that
 * is kept takes the size with it, but a state may also lose the growth of the size: a file
 * system writes it on its own time, so the file ends where it ended at any time since the
 * last sync.
 */
#include "tests/crash-file.h"
#include "formats/file.h"
#include "formats/uring.h"
#include "tests/support.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR     512u
#define FILES_MAX  8
#define CHUNK      (64u << 10)
#define PIECES_MAX 256u /* an operation is torn into at most so many pieces */

typedef struct change {
    crash_kind kind;
    uint64_t offset; /* RESIZE: the new size */
    uint64_t length;
    uint64_t size_after; /* of the file, when all of it had happened */
    uint8_t *data;       /* WRITE */
} change;

typedef struct watched {
    struct stat id;
    int fd; /* our own */
    int stable;
    GPtrArray *queue;
    unsigned changes;
    bool lost; /* the page cache shows what is not to become stable */
} watched;

static struct {
    GRecMutex lock; /* held through the hook: no second thread gets between */
    watched files[FILES_MAX];
    unsigned n_files, points, lies;
    bool dead;
    crash_hook *hook;
    void *user;
    crash_fault fault;
    unsigned counted, hits, header_hits;
} sim;

/* This thread is in a call that passed here: what it calls in turn is no further one. */
static __thread unsigned inside;

/* What the names mean without us. */
int __real_ftruncate64(int fd, off64_t size);
int __real_file_read_full(int fd, void *buf, size_t length, uint64_t offset);
int __real_file_read_exact(int fd, void *buf, size_t length, uint64_t offset);
int __real_file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
int __real_file_sync(int fd);
int __real_file_punch(int fd, uint64_t offset, uint64_t length);
int __real_file_allocate_zero(int fd, uint64_t offset, uint64_t length);
int __real_file_zero(int fd, uint64_t offset, uint64_t length);
int __real_file_resize(int fd, uint64_t size);

static void change_free(void *data)
{
    change *c = data;
    g_free(c->data);
    g_free(c);
}

static uint64_t size_of(int fd)
{
    struct stat st;
    g_assert_cmpint(fstat(fd, &st), ==, 0);
    return (uint64_t)st.st_size;
}

static void put(int fd, const void *data, size_t length, uint64_t offset)
{
    inside++;
    g_assert_cmpint(__real_file_write_full(fd, data, length, offset), ==, 0);
    inside--;
}

static void set_size(int fd, uint64_t size)
{
    g_assert_cmpint(__real_ftruncate64(fd, (off64_t)size), ==, 0);
}

/* The range may leave the file, which keeps its size. */
static void zero(int fd, uint64_t offset, uint64_t length)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    g_assert_cmpint(fallocate(fd, mode, (off_t)offset, (off_t)length), ==, 0);
}

static void copy_file(int from, int to)
{
    uint8_t *chunk = g_malloc(CHUNK);
    off_t end = (off_t)size_of(from);
    set_size(to, 0);
    set_size(to, (uint64_t)end);
    for (off_t at = lseek(from, 0, SEEK_DATA); at >= 0 && at < end;) {
        off_t hole = MIN(lseek(from, at, SEEK_HOLE), end);
        for (; at < hole; at += CHUNK) {
            size_t length = (size_t)MIN((off_t)CHUNK, hole - at);
            g_assert_cmpint(__real_file_read_full(from, chunk, length, (uint64_t)at), ==,
                            0);
            put(to, chunk, length, (uint64_t)at);
        }
        at = lseek(from, hole, SEEK_DATA);
    }
    g_free(chunk);
}

/* ---- Replaying ----------------------------------------------------------------------- */

/* Replays bytes [from, to) of a write or a zeroing. */
static void replay_part(int fd, const change *c, uint64_t from, uint64_t to)
{
    if (c->kind == CRASH_WRITE)
        put(fd, c->data + from, (size_t)(to - from), c->offset + from);
    else
        zero(fd, c->offset + from, to - from);
}

static void replay(int fd, const change *c)
{
    if (c->kind == CRASH_RESIZE) {
        set_size(fd, c->offset);
        return;
    }
    replay_part(fd, c, 0, c->length);
    uint64_t end = c->offset + c->length; /* zeroing may have been done by writing */
    if (c->size_after >= end && size_of(fd) < end)
        set_size(fd, end);
}

static bool chance(uint64_t *seed, unsigned of_256)
{
    return (support_random(seed) >> 32) % 256 < of_256;
}

/* Calls `piece` for a random part of the operation's sectors. */
static void tear(const change *c, uint64_t *seed,
                 void (*piece)(int fd, const change *c, uint64_t from, uint64_t to),
                 int fd)
{
    uint64_t step = (c->length / PIECES_MAX / SECTOR + 1) * SECTOR;
    unsigned kept = 32 + (unsigned)(support_random(seed) % 192);
    for (uint64_t from = 0; from < c->length;) {
        uint64_t to = (c->offset + from + step) / SECTOR * SECTOR - c->offset;
        to = MIN(to, c->length);
        if (chance(seed, kept))
            piece(fd, c, from, to);
        from = to;
    }
}

/* A lot of states keep about half; the others nearly all, nearly nothing, or a queue cut
 * off in its order, because one operation too many or too few is what breaks a format. */
static bool is_kept(unsigned profile, unsigned i, unsigned chosen, uint64_t *seed)
{
    switch (profile) {
    case 0:
        return i != chosen;
    case 1:
        return i == chosen;
    case 2:
        return i < chosen;
    case 3:
        return chance(seed, 224);
    case 4:
        return chance(seed, 32);
    default:
        return chance(seed, 128);
    }
}

static void replay_some(const watched *w, int fd, uint64_t *seed)
{
    unsigned count = w->queue->len;
    if (count == 0)
        return;
    unsigned profile = (unsigned)(support_random(seed) >> 32) % 7;
    unsigned chosen = (unsigned)(support_random(seed) >> 32) % count;
    unsigned torn = chance(seed, 128) ? 0 : 48;
    uint64_t old = size_of(fd), lost = old;
    bool loses_size = chance(seed, 48);
    for (unsigned i = 0; i < count; i++) {
        const change *c = g_ptr_array_index(w->queue, i);
        if (chance(seed, 128))
            lost = c->size_after;
        if (c->kind != CRASH_RESIZE &&
            (chance(seed, torn) || (profile == 2 && i == chosen)))
            tear(c, seed, replay_part, fd);
        else if (is_kept(profile, i, chosen, seed))
            replay(fd, c);
    }
    if (loses_size && size_of(fd) > MAX(lost, old))
        set_size(fd, MAX(lost, old));
}

static void assert_same(int a, int b)
{
    uint8_t *pages[2] = {g_malloc(CHUNK), g_malloc(CHUNK)};
    uint64_t size = size_of(a);
    g_assert_cmpuint(size_of(b), ==, size);
    for (uint64_t at = 0; at < size; at += CHUNK) {
        size_t length = (size_t)MIN((uint64_t)CHUNK, size - at);
        g_assert_cmpint(__real_file_read_full(a, pages[0], length, at), ==, 0);
        g_assert_cmpint(__real_file_read_full(b, pages[1], length, at), ==, 0);
        g_assert_cmpmem(pages[0], length, pages[1], length);
    }
    g_free(pages[0]);
    g_free(pages[1]);
}

void crash_state_save(unsigned file, const char *path, crash_choice choice,
                      uint64_t *seed)
{
    g_assert_cmpuint(file, <, sim.n_files);
    const watched *w = &sim.files[file];
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    g_assert_cmpint(fd, >=, 0);
    copy_file(w->stable, fd);
    if (choice == CRASH_SOME)
        replay_some(w, fd, seed);
    for (unsigned i = 0; choice == CRASH_KEEP_ALL && i < w->queue->len; i++)
        replay(fd, g_ptr_array_index(w->queue, i));
    if (choice == CRASH_KEEP_ALL && !w->lost)
        assert_same(w->fd, fd);
    close(fd);
}

/* ---- Watching ------------------------------------------------------------------------ */

unsigned crash_watch(int fd)
{
    g_assert_cmpuint(sim.n_files, <, FILES_MAX);
    watched *w = &sim.files[sim.n_files];
    g_assert_cmpint(fstat(fd, &w->id), ==, 0);
    g_assert(S_ISREG(w->id.st_mode));
    w->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    w->stable = memfd_create("stable", MFD_CLOEXEC);
    g_assert(w->fd >= 0 && w->stable >= 0);
    w->queue = g_ptr_array_new_with_free_func(change_free);
    w->changes = 0;
    w->lost = false;
    copy_file(fd, w->stable);
    return sim.n_files++;
}

void crash_reset(void)
{
    for (unsigned i = 0; i < sim.n_files; i++) {
        close(sim.files[i].fd);
        close(sim.files[i].stable);
        g_ptr_array_free(sim.files[i].queue, TRUE);
    }
    sim.n_files = sim.points = sim.lies = 0;
    sim.dead = false;
    crash_set_hook(NULL, NULL);
    crash_set_fault((crash_fault){0});
}

/* The lock's owner is a thread of the parent's. */
void crash_forked(void)
{
    memset(&sim.lock, 0, sizeof sim.lock);
    inside = 0;
}

void crash_set_hook(crash_hook *hook, void *user)
{
    sim.hook = hook;
    sim.user = user;
}

unsigned crash_points(void)
{
    return sim.points;
}

unsigned crash_queued(unsigned file)
{
    g_assert_cmpuint(file, <, sim.n_files);
    return sim.files[file].queue->len;
}

unsigned crash_changes(unsigned file)
{
    g_assert_cmpuint(file, <, sim.n_files);
    return sim.files[file].changes;
}

void crash_set_lies(unsigned files)
{
    sim.lies = files;
}

unsigned crash_lies(void)
{
    return sim.lies;
}

void crash_die(void)
{
    sim.dead = true;
}

void crash_set_fault(crash_fault fault)
{
    sim.fault = fault;
    sim.counted = sim.hits = sim.header_hits = 0;
}

unsigned crash_fault_hits(void)
{
    return sim.hits;
}

unsigned crash_fault_header_hits(void)
{
    return sim.header_hits;
}

static watched *find(int fd)
{
    struct stat st;
    if (sim.n_files == 0 || inside || fstat(fd, &st) < 0)
        return NULL;
    for (unsigned i = 0; i < sim.n_files; i++) {
        const struct stat *id = &sim.files[i].id;
        if (id->st_dev == st.st_dev && id->st_ino == st.st_ino)
            return &sim.files[i];
    }
    return NULL;
}

/* What a call on a watched file returns at once; 0: it goes on. */
static int strike(const watched *w, crash_kind kind, uint64_t offset)
{
    const crash_fault *f = &sim.fault;
    if (sim.dead)
        return -EIO;
    if (!f->error || !(f->kinds & kind))
        return 0;
    if (f->files && !(f->files >> (w - sim.files) & 1))
        return 0;
    sim.counted++;
    if (f->for_ever ? sim.counted < f->at : sim.counted != f->at)
        return 0;
    sim.hits++;
    sim.header_hits += w == sim.files && offset < SECTOR;
    return -f->error;
}

static void point(crash_kind kind)
{
    sim.points++;
    if (sim.hook)
        sim.hook(sim.user, kind);
}

static void enqueue(watched *w, crash_kind kind, uint64_t offset, uint64_t length)
{
    change *c = g_new0(change, 1);
    c->kind = kind;
    c->offset = offset;
    c->length = length;
    c->size_after = size_of(w->fd);
    if (kind == CRASH_WRITE) {
        c->data = g_malloc((gsize)length);
        g_assert_cmpint(__real_file_read_full(w->fd, c->data, length, offset), ==, 0);
    }
    g_ptr_array_add(w->queue, c);
    w->changes++;
}

/* A disk writes whole sectors as they are by then: what was written to a sector before is
 * there if a later write to it is. So ranges are rounded to sectors, up to the file's end. */
static void enqueue_sectors(watched *w, const change *c)
{
    uint64_t end = c->offset + c->length, size = size_of(w->fd);
    uint64_t start = c->offset / SECTOR * SECTOR;
    uint64_t rounded = MIN((end + SECTOR - 1) / SECTOR * SECTOR, MAX(size, end));
    uint64_t inner = (c->offset + SECTOR - 1) / SECTOR * SECTOR;
    uint64_t inner_end = rounded == end ? end : end / SECTOR * SECTOR;
    if (c->kind == CRASH_RESIZE) {
        enqueue(w, c->kind, c->offset, 0);
    } else if (c->kind == CRASH_WRITE || inner >= inner_end) {
        enqueue(w, CRASH_WRITE, start, rounded - start);
    } else {
        if (start < inner)
            enqueue(w, CRASH_WRITE, start, inner - start);
        enqueue(w, c->kind, inner, inner_end - inner);
        if (inner_end < rounded)
            enqueue(w, CRASH_WRITE, inner_end, rounded - inner_end);
    }
}

/* A piece of a write that fails is a whole write to us. */
static void write_piece(int fd, const change *c, uint64_t from, uint64_t to)
{
    change part = {CRASH_WRITE, c->offset + from, to - from, 0, NULL};
    replay_part(fd, c, from, to);
    enqueue_sectors(find(fd), &part);
}

/* A call that changes a file: `real` does it. */
typedef int real_change(int fd, const change *c);

static int carry_out(int fd, change c, real_change *real)
{
    g_rec_mutex_lock(&sim.lock);
    watched *w = find(fd);
    int error = w ? strike(w, c.kind, c.kind == CRASH_RESIZE ? UINT64_MAX : c.offset) : 0;
    if (error && c.kind == CRASH_WRITE && sim.fault.tear && !sim.dead) {
        uint64_t seed = sim.fault.tear + sim.hits;
        tear(&c, &seed, write_piece, w->fd);
    }
    inside++;
    error = error ? error : real(fd, &c);
    inside--;
    if (w && !error && (c.length > 0 || c.kind == CRASH_RESIZE)) {
        enqueue_sectors(w, &c);
        point(c.kind);
    }
    g_rec_mutex_unlock(&sim.lock);
    return error;
}

/* ---- The wrapped functions ----------------------------------------------------------- */

int __wrap_file_read_full(int fd, void *buf, size_t length, uint64_t offset);
int __wrap_file_read_exact(int fd, void *buf, size_t length, uint64_t offset);
int __wrap_file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
int __wrap_file_sync(int fd);
int __wrap_file_punch(int fd, uint64_t offset, uint64_t length);
int __wrap_file_allocate_zero(int fd, uint64_t offset, uint64_t length);
int __wrap_file_zero(int fd, uint64_t offset, uint64_t length);
int __wrap_file_resize(int fd, uint64_t size);
void __wrap_io_list_run(io_list *list);

static int strike_read(int fd, uint64_t offset)
{
    g_rec_mutex_lock(&sim.lock);
    const watched *w = find(fd);
    int error = w ? strike(w, CRASH_READ, offset) : 0;
    g_rec_mutex_unlock(&sim.lock);
    return error;
}

int __wrap_file_read_full(int fd, void *buf, size_t length, uint64_t offset)
{
    int error = strike_read(fd, offset);
    return error ? error : __real_file_read_full(fd, buf, length, offset);
}

int __wrap_file_read_exact(int fd, void *buf, size_t length, uint64_t offset)
{
    int error = strike_read(fd, offset);
    return error ? error : __real_file_read_exact(fd, buf, length, offset);
}

static int real_write(int fd, const change *c)
{
    return __real_file_write_full(fd, c->data, (size_t)c->length, c->offset);
}

int __wrap_file_write_full(int fd, const void *buf, size_t length, uint64_t offset)
{
    change c = {CRASH_WRITE, offset, length, 0, (uint8_t *)(uintptr_t)buf};
    return carry_out(fd, c, real_write);
}

static int real_punch(int fd, const change *c)
{
    return __real_file_punch(fd, c->offset, c->length);
}

int __wrap_file_punch(int fd, uint64_t offset, uint64_t length)
{
    return carry_out(fd, (change){CRASH_PUNCH, offset, length, 0, NULL}, real_punch);
}

static int real_allocate_zero(int fd, const change *c)
{
    return __real_file_allocate_zero(fd, c->offset, c->length);
}

int __wrap_file_allocate_zero(int fd, uint64_t offset, uint64_t length)
{
    return carry_out(fd, (change){CRASH_PUNCH, offset, length, 0, NULL},
                     real_allocate_zero);
}

static int real_zero(int fd, const change *c)
{
    return __real_file_zero(fd, c->offset, c->length);
}

int __wrap_file_zero(int fd, uint64_t offset, uint64_t length)
{
    return carry_out(fd, (change){CRASH_ZERO, offset, length, 0, NULL}, real_zero);
}

static int real_resize(int fd, const change *c)
{
    return __real_file_resize(fd, c->offset);
}

int __wrap_file_resize(int fd, uint64_t size)
{
    return carry_out(fd, (change){CRASH_RESIZE, size, 0, 0, NULL}, real_resize);
}

bool crash_is_watched(int fd)
{
    g_rec_mutex_lock(&sim.lock);
    bool found = find(fd) != NULL;
    g_rec_mutex_unlock(&sim.lock);
    return found;
}

/* A size is kept: a file system looks after it by itself. */
static void lose_some(watched *w, uint64_t seed)
{
    for (unsigned i = w->queue->len; i-- > 0;) {
        const change *c = g_ptr_array_index(w->queue, i);
        if (c->kind != CRASH_RESIZE && chance(&seed, 128))
            g_ptr_array_remove_index(w->queue, i);
    }
    w->lost = true;
}

void crash_forget_cache(int fd)
{
    g_rec_mutex_lock(&sim.lock);
    watched *w = find(fd);
    if (w && w->lost) {
        int rest = memfd_create("rest", MFD_CLOEXEC);
        copy_file(w->stable, rest);
        for (unsigned i = 0; i < w->queue->len; i++)
            replay(rest, g_ptr_array_index(w->queue, i));
        copy_file(rest, w->fd);
        close(rest);
        w->lost = false;
    }
    g_rec_mutex_unlock(&sim.lock);
}

/* It is not really synced: whatever happens to this machine, the test is over. */
int crash_sync(int fd)
{
    g_rec_mutex_lock(&sim.lock);
    watched *w = find(fd);
    int error = w ? strike(w, CRASH_SYNC, UINT64_MAX) : 1;
    if (error < 0 && sim.fault.lose && !sim.dead)
        lose_some(w, sim.fault.lose + sim.hits);
    if (!error) {
        bool lies = sim.lies >> (w - sim.files) & 1;
        for (unsigned i = 0; i < w->queue->len && !lies; i++)
            replay(w->stable, g_ptr_array_index(w->queue, i));
        if (!lies)
            g_ptr_array_set_size(w->queue, 0);
        point(CRASH_SYNC);
    }
    g_rec_mutex_unlock(&sim.lock);
    return error;
}

int __wrap_file_sync(int fd)
{
    int error = crash_sync(fd);
    return error == 1 ? __real_file_sync(fd) : error;
}

/* The ops of a list run at the same time: a flush covers none of the list's writes. */
void __wrap_io_list_run(io_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->ops[i].flush)
            list->ops[i].result = __wrap_file_sync(list->ops[i].fd);
    for (size_t i = 0; i < list->count; i++) {
        io_op *op = &list->ops[i];
        if (op->write)
            op->result = __wrap_file_write_full(op->fd, op->buf, op->length, op->offset);
        else if (!op->flush)
            op->result = __wrap_file_read_exact(op->fd, op->buf, op->length, op->offset);
    }
}
