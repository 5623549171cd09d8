/* crash-disk.c: see crash-disk.h. */
#include "tests/crash-disk.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *root;
static crash_mutant mutant;
static gint64 now_us = G_USEC_PER_SEC;
/* Who is watched, by inode. */
static struct {
    crash_disk *disk;
    ino_t inodes[CRASH_DISK_N];
} known;

const char *crash_disk_root(void)
{
    char shm[] = "/dev/shm/quorumfs-test-XXXXXX";
    if (!root)
        root = mkdtemp(shm) ? g_strdup(shm) : support_path("disks");
    g_mkdir_with_parents(root, 0700);
    return root;
}

void crash_disk_clean(void)
{
    if (root)
        support_run("rm -rf '%s'", root);
    g_clear_pointer(&root, g_free);
}

/* ---- Files --------------------------------------------------------------------------- */

char *crash_disk_path(const crash_disk *c, unsigned i)
{
    return g_strdup_printf("%s/%c.img", c->dir, 'a' + i);
}

static unsigned file_count(const crash_disk *c)
{
    return c->set->n + 2;
}

static char *file_path(const crash_disk *c, unsigned file)
{
    if (file < c->set->n)
        return crash_disk_path(c, file);
    return g_strdup_printf("%s/%s", c->dir,
                           file == c->set->n ? "disk.state" : "journal.jsonl");
}

static crash_disk *disk_in(const crash_set *set, const char *name)
{
    crash_disk *c = g_new0(crash_disk, 1);
    c->set = set;
    c->dir = g_strdup_printf("%s/%s", crash_disk_root(), name);
    g_mkdir_with_parents(c->dir, 0700);
    return c;
}

static void note_inode(const crash_disk *c, unsigned i)
{
    struct stat st;
    g_autofree char *path = crash_disk_path(c, i);
    g_assert_cmpint(stat(path, &st), ==, 0);
    known.inodes[i] = st.st_ino;
}

crash_disk *crash_disk_make(const crash_set *set, const char *name,
                            const uint8_t *content, uint64_t size)
{
    crash_disk *c = disk_in(set, name);
    g_autofree char *raw = g_strdup_printf("%s/content.raw", root);
    support_save(raw, content, size);
    for (unsigned i = 0; i < set->n; i++) {
        g_autofree char *path = crash_disk_path(c, i);
        g_autofree char *command =
            g_strdup_printf("i='%s' raw='%s' base='%s/base-%c.raw'; { %s; } >/dev/null",
                            path, raw, root, 'a' + i, set->replicas[i].command);
        support_run("cd '%s' && %s", root, command);
        note_inode(c, i);
    }
    known.disk = c;
    return c;
}

void crash_disk_watch(crash_disk *c)
{
    unsigned lies[] = {[CRASH_MUTANT_FLUSH] = (1u << c->set->n) - 1,
                       [CRASH_MUTANT_FLUSH_ONE] = 1u << (c->set->n - 1)};
    crash_reset();
    known.disk = c;
    c->watched = true;
    for (unsigned file = 0; file < file_count(c); file++) {
        g_autofree char *path = file_path(c, file);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        g_assert_cmpint(fd, >=, 0);
        if (file < c->set->n)
            note_inode(c, file);
        crash_watch(fd);
        close(fd);
    }
    if (mutant >= CRASH_MUTANT_FLUSH)
        crash_set_lies(lies[mutant]);
}

/* One file in three loses nothing or everything. */
static crash_choice choose(uint64_t *seed)
{
    unsigned pick = (unsigned)(support_random(seed) >> 32) % 6;
    return pick == 0 ? CRASH_DROP_ALL : pick == 1 ? CRASH_KEEP_ALL : CRASH_SOME;
}

/* Sometimes it is the daemon that is killed, and sometimes nothing of the caches remains. */
static crash_choice choose_for_all(uint64_t *seed)
{
    unsigned pick = (unsigned)(support_random(seed) >> 32) % 12;
    return pick == 0 ? CRASH_DROP_ALL : pick == 1 ? CRASH_KEEP_ALL : CRASH_SOME;
}

crash_disk *crash_disk_save(crash_disk *c, const char *name, uint64_t *seed)
{
    crash_disk *copy = disk_in(c->set, name);
    crash_choice all = choose_for_all(seed);
    for (unsigned file = 0; file < file_count(c); file++) {
        g_autofree char *path = file_path(copy, file);
        crash_choice choice = all == CRASH_SOME ? choose(seed) : all;
        unlink(path); /* a descriptor of an earlier one may have its lock */
        crash_state_save(file, path, choice, seed);
        if (file >= c->set->n)
            continue;
        bool stable = choice == CRASH_DROP_ALL || support_random(seed) >> 32 & 1;
        copy->times[file] =
            stable ? c->stable_times[file] : c->times[file] + crash_changes(file);
        copy->stable_times[file] = copy->times[file];
    }
    return copy;
}

/* ---- Disks --------------------------------------------------------------------------- */

static disk_options *make_options(const crash_disk *c)
{
    disk_options *options = disk_options_new();
    options->name = g_strdup("disk");
    options->file = g_strdup("disk.img");
    options->threshold = c->set->threshold;
    options->decoder = CHAIN_DECODER_NATIVE;
    options->state_dir = g_strdup(c->dir);
    g_ptr_array_add(options->allow_dirs, g_strdup(root));
    for (unsigned i = 0; i < c->set->n; i++) {
        replica_options *replica = replica_options_new();
        replica->name = g_strdup_printf("%c", 'a' + i);
        replica->path = crash_disk_path(c, i);
        replica->source = g_strdup(replica->path);
        replica->format = g_strdup(c->set->replicas[i].format);
        g_ptr_array_add(options->replicas, replica);
    }
    return options;
}

char *crash_disk_open(crash_disk *c)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = file_path(c, c->set->n + 1);
    c->journal = journal_open(path, 0, NULL, &error);
    if (!c->journal)
        return g_strdup_printf("journal: %s", error->message);
    disk_options *options = make_options(c);
    c->disk = disk_open(options, c->journal, &error);
    disk_options_free(options);
    if (!c->disk)
        return g_strdup_printf("open: %s", error->message);
    if (!disk_writable(c->disk))
        return g_strdup_printf("read-only: %s", disk_read_only_reason(c->disk));
    return NULL;
}

char *crash_disk_close(crash_disk *c)
{
    int r = disk_close(g_steal_pointer(&c->disk));
    journal_close(g_steal_pointer(&c->journal));
    return r ? g_strdup_printf("close: %s", g_strerror(-r)) : NULL;
}

static chain *open_chain(const crash_disk *c, unsigned i, path_policy *policy,
                         GError **error)
{
    g_autofree char *path = crash_disk_path(c, i);
    chain_options wanted = {.path = path,
                            .format = c->set->replicas[i].format,
                            .decoder = CHAIN_DECODER_NATIVE,
                            .policy = policy};
    if (!path_policy_add_image(policy, path, error) ||
        !path_policy_add_dir(policy, root, error))
        return NULL;
    return chain_open(&wanted, error);
}

char *crash_disk_read_replica(const crash_disk *c, unsigned i, uint8_t **ret_content,
                              uint64_t *ret_size)
{
    g_autoptr(GError) error = NULL;
    path_policy *policy = path_policy_new();
    chain *replica = open_chain(c, i, policy, &error);
    char *wrong = NULL;
    *ret_content = NULL;
    if (!replica) {
        wrong = g_strdup_printf("replica %c: %s", 'a' + i, error->message);
    } else {
        *ret_size = chain_size(replica);
        *ret_content = g_malloc(*ret_size + 1);
        int r = chain_read(replica, *ret_content, 0, *ret_size);
        wrong =
            r ? g_strdup_printf("replica %c: read: %s", 'a' + i, g_strerror(-r)) : NULL;
    }
    chain_close(replica);
    path_policy_free(policy);
    return wrong;
}

/* ---- What is wrapped ------------------------------------------------------------------- */

gint64 __wrap_g_get_monotonic_time(void);
gint64 __wrap_g_get_monotonic_time(void)
{
    return now_us;
}

void crash_disk_wait(gint64 us)
{
    now_us += us;
}

void __wrap_disk_worker_start(disk *d);
void __wrap_disk_worker_start(disk *d)
{
    (void)d;
}

void __wrap_disk_rejoin_start(disk *d, unsigned i);
void __wrap_disk_rejoin_start(disk *d, unsigned i)
{
    (void)d;
    (void)i;
}

/* Every call is carried out by the thread that makes it. */
unsigned __wrap_io_get_timeout(void);
unsigned __wrap_io_get_timeout(void)
{
    return 0;
}

static state_shape small(const state_shape *shape)
{
    state_shape result = *shape;
    result.intent_region = CRASH_DISK_INTENT;
    result.stale_region = CRASH_DISK_STALE;
    return result;
}

state *__real_state_open(const char *dir, const char *name, const state_shape *shape,
                         GError **error);
state *__wrap_state_open(const char *dir, const char *name, const state_shape *shape,
                         GError **error);
state *__wrap_state_open(const char *dir, const char *name, const state_shape *shape,
                         GError **error)
{
    state_shape s = small(shape);
    return __real_state_open(dir, name, &s, error);
}

/* Nothing that may happen to a disk makes what is recorded void. */
state *__wrap_state_reset(const char *dir, const char *name, const state_shape *shape,
                          GError **error);
state *__wrap_state_reset(const char *dir, const char *name, const state_shape *shape,
                          GError **error)
{
    (void)dir;
    (void)shape;
    g_set_error(error, STATE_ERROR, STATE_ERROR_VOID_BROKEN, "%s: recorded state is void",
                name);
    return NULL;
}

int __real_state_reshape(state *s, const state_shape *shape, const int *map);
int __wrap_state_reshape(state *s, const state_shape *shape, const int *map);
int __wrap_state_reshape(state *s, const state_shape *shape, const int *map)
{
    state_shape with_regions = small(shape);
    return __real_state_reshape(s, &with_regions, map);
}

/* An fsync of the file makes its times stable, too. */
int __real_identity_read(const identity_source *source, bool settle, identity *ret);
int __wrap_identity_read(const identity_source *source, bool settle, identity *ret);
int __wrap_identity_read(const identity_source *source, bool settle, identity *ret)
{
    crash_disk *c = known.disk;
    int r = __real_identity_read(source, settle, ret);
    for (unsigned i = 0; r == 0 && c && i < c->set->n; i++) {
        if (known.inodes[i] != ret->top.ino)
            continue;
        int64_t time = (int64_t)c->times[i] + (c->watched ? crash_changes(i) : 0);
        if (settle)
            c->stable_times[i] = (uint64_t)time;
        ret->top.dev = ret->top.birth_ns = 1;
        ret->top.ino = 1 + i;
        ret->top.mtime_ns = ret->top.ctime_ns = time;
        break;
    }
    return r;
}

/* ---- Syncs that are left out ----------------------------------------------------------- */

void crash_disk_set_mutant(crash_mutant wanted)
{
    mutant = wanted;
}

/* The syncs of one file lie while the call lasts. */
#define WITHOUT_SYNC(which, file, call)                                                  \
    unsigned lies = crash_lies();                                                        \
    if (mutant == (which) && known.disk)                                                 \
        crash_set_lies(lies | 1u << (file));                                             \
    int r = (call);                                                                      \
    crash_set_lies(lies);                                                                \
    return r

int __real_state_write_begin(state *s, uint64_t offset, uint64_t length);
int __wrap_state_write_begin(state *s, uint64_t offset, uint64_t length);
int __wrap_state_write_begin(state *s, uint64_t offset, uint64_t length)
{
    WITHOUT_SYNC(CRASH_MUTANT_INTENT, known.disk->set->n,
                 __real_state_write_begin(s, offset, length));
}

int __real_state_mark_stale(state *s, unsigned i, uint64_t offset, uint64_t length);
int __wrap_state_mark_stale(state *s, unsigned i, uint64_t offset, uint64_t length);
int __wrap_state_mark_stale(state *s, unsigned i, uint64_t offset, uint64_t length)
{
    WITHOUT_SYNC(CRASH_MUTANT_STALE, known.disk->set->n,
                 __real_state_mark_stale(s, i, offset, length));
}

int __real_journal_sync(journal *j);
int __wrap_journal_sync(journal *j);
int __wrap_journal_sync(journal *j)
{
    WITHOUT_SYNC(CRASH_MUTANT_JOURNAL, known.disk->set->n + 1, __real_journal_sync(j));
}
