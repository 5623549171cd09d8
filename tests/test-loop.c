/*
 * test-loop.c: the loop on a real mount, whose one file hangs when it is told to. The mount is
 * taken out of the name space at once: when its last user is gone, so is it.
 */
#include "fuse/loop.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_INO  2
#define FILE_SIZE (1u << 20)
#define HANGS     4096 /* reads from here on hang, as long as they do */

typedef struct rig {
    struct fuse_session *fuse;
    loop *loop;
    loop_options options;
    pthread_t thread;
    int dir, result;
    GMutex lock;
    GCond changed;
    bool hangs;
    unsigned hanging;
    atomic_uint at_once, most_at_once;
} rig;

/* ---- A file system --------------------------------------------------------------------- */

static struct stat attributes(fuse_ino_t ino)
{
    return (struct stat){.st_ino = ino,
                         .st_nlink = 1,
                         .st_size = ino == FILE_INO ? FILE_SIZE : 0,
                         .st_mode = ino == FILE_INO ? S_IFREG | 0600 : S_IFDIR | 0700};
}

static void do_init(void *opaque, struct fuse_conn_info *conn)
{
    (void)opaque;
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE);
    conn->max_write = FILE_SIZE;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent, (void)name;
    struct fuse_entry_param entry = {.ino = FILE_INO, .attr = attributes(FILE_INO)};
    fuse_reply_entry(req, &entry);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st = attributes(ino);
    fuse_reply_attr(req, &st, 0);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->direct_io = 1;
    fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                    struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    rig *r = fuse_req_userdata(req);
    unsigned now = atomic_fetch_add(&r->at_once, 1) + 1, most = r->most_at_once;
    while (now > most && !atomic_compare_exchange_weak(&r->most_at_once, &most, now))
        ;
    g_mutex_lock(&r->lock);
    r->hanging++;
    g_cond_broadcast(&r->changed);
    while (r->hangs && offset >= HANGS)
        g_cond_wait(&r->changed, &r->lock);
    r->hanging--;
    g_mutex_unlock(&r->lock);
    atomic_fetch_sub(&r->at_once, 1);
    g_autofree uint8_t *data = g_malloc(size);
    support_pattern(data, size, (uint64_t)offset, 1);
    fuse_reply_buf(req, (const char *)data, size);
}

/* ---- Abandoned writes ------------------------------------------------------------------ */

#define WRITES 8

/* Each write is abandoned; the memory it came in is kept. */
static atomic_bool abandoning;
static _Thread_local bool abandoned;
static void *kept[WRITES];
static const char *written[WRITES];
static unsigned n_kept, n_written;

bool __wrap_io_thread_abandoned(void);
bool __wrap_io_thread_abandoned(void)
{
    bool was = abandoned;
    abandoned = false;
    return was;
}

void __wrap_io_free_later(void *memory, void (*free_fn)(void *));
void __wrap_io_free_later(void *memory, void (*free_fn)(void *))
{
    cr_assert_eq(free_fn, free);
    kept[n_kept++] = memory;
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size,
                     off_t offset, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    g_autofree uint8_t *expected = g_malloc(size);
    support_pattern(expected, size, (uint64_t)offset, 1);
    if (abandoning) {
        abandoned = true;
        written[n_written++] = data;
    }
    if (memcmp(data, expected, size) == 0)
        fuse_reply_write(req, size);
    else
        fuse_reply_err(req, EILSEQ);
}

static const struct fuse_lowlevel_ops operations = {
    .init = do_init,
    .lookup = do_lookup,
    .getattr = do_getattr,
    .open = do_open,
    .read = do_read,
    .write = do_write,
};

/* ---- Its mount ------------------------------------------------------------------------- */

static void *run(void *opaque)
{
    rig *r = opaque;
    r->result = loop_run(r->loop);
    return NULL;
}

/* The loop takes INIT, too. */
static rig *rig_new(unsigned threads, unsigned spares)
{
    rig *r = g_new0(rig, 1);
    g_mutex_init(&r->lock);
    g_cond_init(&r->changed);
    g_autofree char *path = support_path("mnt");
    mkdir(path, 0700);
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    fuse_opt_add_arg(&args, "test-loop");
    r->fuse = fuse_session_new(&args, &operations, sizeof operations, r);
    fuse_opt_free_args(&args);
    cr_assert_not_null(r->fuse);
    if (fuse_session_mount(r->fuse, path) != 0)
        cr_skip_test("no FUSE here");
    r->dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    cr_assert_geq(r->dir, 0);
    if (umount2(path, MNT_DETACH) != 0)
        support_run("fusermount3 -u -z mnt");
    r->options = (loop_options){
        .request_max = FILE_SIZE, .threads = threads, .spares = spares, .stall_ms = 200};
    r->loop = loop_new(r->fuse, &r->options);
    pthread_create(&r->thread, NULL, run, r);
    return r;
}

static int rig_open(const rig *r)
{
    int fd = openat(r->dir, "file", O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    return fd;
}

static void rig_hang(rig *r, bool hangs)
{
    g_mutex_lock(&r->lock);
    r->hangs = hangs;
    g_cond_broadcast(&r->changed);
    g_mutex_unlock(&r->lock);
}

static void rig_wait_for_hanging(rig *r, unsigned count)
{
    g_mutex_lock(&r->lock);
    while (r->hanging < count)
        g_cond_wait(&r->changed, &r->lock);
    g_mutex_unlock(&r->lock);
}

static void rig_free(rig *r)
{
    fuse_session_unmount(r->fuse);
    fuse_session_destroy(r->fuse);
    loop_free(r->loop);
    g_mutex_clear(&r->lock);
    g_cond_clear(&r->changed);
    g_free(r);
}

/* ---- Readers --------------------------------------------------------------------------- */

typedef struct reader {
    int fd;
    off_t offset;
    pthread_t thread;
    int error;
} reader;

static void *read_one(void *opaque)
{
    reader *one = opaque;
    uint8_t got[4096], expected[4096];
    support_pattern(expected, sizeof expected, (uint64_t)one->offset, 1);
    ssize_t length = pread(one->fd, got, sizeof got, one->offset);
    one->error = length < 0                               ? errno
                 : length != sizeof got                   ? EIO
                 : memcmp(got, expected, sizeof got) != 0 ? EILSEQ
                                                          : 0;
    return NULL;
}

static void start_readers(reader *readers, unsigned n, int fd)
{
    for (unsigned i = 0; i < n; i++) {
        readers[i] = (reader){.fd = fd, .offset = HANGS * (off_t)(1 + i)};
        pthread_create(&readers[i].thread, NULL, read_one, &readers[i]);
    }
}

static void join_readers(reader *readers, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        pthread_join(readers[i].thread, NULL);
}

/* ---- Tests ----------------------------------------------------------------------------- */

Test(loop, requests_are_answered_side_by_side_until_it_is_unmounted)
{
    rig *r = rig_new(4, 0);
    reader readers[4];
    int fd = rig_open(r);
    rig_hang(r, true);
    start_readers(readers, 4, fd);
    rig_wait_for_hanging(r, 4);
    rig_hang(r, false);
    join_readers(readers, 4);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(readers[i].error, 0);
    cr_assert_gt(loop_progress(r->loop), 4);

    g_autofree uint8_t *data = g_malloc(FILE_SIZE);
    support_pattern(data, FILE_SIZE, 0, 1);
    cr_assert_eq(pwrite(fd, data, FILE_SIZE, 0), FILE_SIZE);

    close(fd);
    close(r->dir);
    pthread_join(r->thread, NULL);
    cr_assert_eq(r->result, 0);
    cr_assert_eq(loop_stuck(r->loop), 0);
    rig_free(r);
}

Test(loop, one_thread_is_one_request_at_a_time)
{
    rig *r = rig_new(1, 0);
    reader readers[8];
    int fd = rig_open(r);
    start_readers(readers, 8, fd);
    join_readers(readers, 8);
    for (unsigned i = 0; i < 8; i++)
        cr_assert_eq(readers[i].error, 0);
    cr_assert_eq(r->most_at_once, 1);
    close(fd);
    close(r->dir);
    pthread_join(r->thread, NULL);
    rig_free(r);
}

Test(loop, R5_it_ends_while_it_is_used)
{
    rig *r = rig_new(4, 0);
    int fd = rig_open(r);
    loop_end(r->loop);
    pthread_join(r->thread, NULL);
    cr_assert_eq(r->result, 0);
    cr_assert_eq(loop_stuck(r->loop), 0);
    rig_free(r);
    char byte;
    cr_assert_eq(pread(fd, &byte, 1, 0), -1);
}

Test(loop, R5_others_are_answered_while_every_thread_hangs)
{
    rig *r = rig_new(2, 16);
    reader readers[6], quick = {.offset = 0};
    int fd = rig_open(r);
    rig_hang(r, true);
    start_readers(readers, 6, fd);
    rig_wait_for_hanging(r, 6);
    quick.fd = fd;
    read_one(&quick);
    cr_assert_eq(quick.error, 0);
    rig_hang(r, false);
    join_readers(readers, 6);
    close(fd);
    close(r->dir);
    pthread_join(r->thread, NULL);
    cr_assert_eq(loop_stuck(r->loop), 0);
    rig_free(r);
}

Test(loop, R5_memory_of_an_abandoned_write_is_not_used_again)
{
    rig *r = rig_new(1, 0);
    int fd = rig_open(r);
    abandoning = true;
    uint8_t data[8192];
    for (unsigned i = 0; i < WRITES; i++) {
        support_pattern(data, sizeof data, i * sizeof data, 1);
        cr_assert_eq(pwrite(fd, data, sizeof data, (off_t)(i * sizeof data)),
                     sizeof data);
    }
    close(fd);
    close(r->dir);
    pthread_join(r->thread, NULL);
    cr_assert_eq(n_kept, WRITES);
    for (unsigned i = 0; i < WRITES; i++) {
        support_pattern(data, sizeof data, i * sizeof data, 1);
        cr_assert_eq(memcmp(written[i], data, sizeof data), 0);
        free(kept[i]);
    }
    rig_free(r);
}

/* What is stuck keeps what it uses, so the loop is not freed; its late answers go nowhere. */
Test(loop, R5_the_end_does_not_wait_for_what_is_stuck)
{
    rig *r = rig_new(4, 0);
    reader readers[3];
    int fd = rig_open(r);
    rig_hang(r, true);
    start_readers(readers, 3, fd);
    rig_wait_for_hanging(r, 3);
    loop_end(r->loop);
    pthread_join(r->thread, NULL);
    cr_assert_eq(r->result, 0);
    cr_assert_eq(loop_stuck(r->loop), 3);

    fuse_session_unmount(r->fuse); /* the last open descriptor of the device */
    join_readers(readers, 3);
    for (unsigned i = 0; i < 3; i++)
        cr_assert(readers[i].error == ECONNABORTED || readers[i].error == ENOTCONN);

    /* Whatever takes the numbers of the descriptors gets nothing written to. */
    int files[16];
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        files[i] = open(support_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    rig_hang(r, false);
    while (loop_stuck(r->loop) > 0)
        g_usleep(1000);
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++)
        cr_assert_eq(lseek(files[i], 0, SEEK_END), 0);
}
