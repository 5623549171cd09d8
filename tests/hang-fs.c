#include "tests/hang-fs.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define KINDS       8
#define WAITING_MAX 256

/* Shared by both processes. */
typedef struct control {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int mounted; /* 1, or -1: not possible */
    unsigned kinds, pass;
    uint64_t offset;
    bool once;
    unsigned waiting;
    uint64_t release_count;  /* of calls of hang_release ... */
    uint64_t release_offset; /* ... and what the last was for */
    uint64_t released_all;   /* the last call for everything */
    unsigned seen[KINDS];
} control;

static control *shared;
static pid_t server; /* 0: none */
static pid_t server_owner;
static char *files;

/* ---- The server -------------------------------------------------------------------------- */

static bool must_wait(unsigned kind, uint64_t offset)
{
    if (!(shared->kinds & kind) ||
        (shared->offset != HANG_ANYWHERE && shared->offset != offset))
        return false;
    if (shared->pass > 0) {
        shared->pass--;
        return false;
    }
    if (shared->once)
        shared->kinds = 0;
    return true;
}

static void come(unsigned kind, uint64_t offset)
{
    pthread_mutex_lock(&shared->lock);
    shared->seen[__builtin_ctz(kind)]++;
    if (must_wait(kind, offset)) {
        uint64_t since = shared->release_count;
        bool released = false;
        shared->waiting++;
        pthread_cond_broadcast(&shared->changed);
        while (!released) {
            pthread_cond_wait(&shared->changed, &shared->lock);
            released = shared->released_all > since || (shared->release_count > since &&
                                                        shared->release_offset == offset);
        }
        shared->waiting--;
        pthread_cond_broadcast(&shared->changed);
    }
    pthread_mutex_unlock(&shared->lock);
}

static int answer(int rc)
{
    return rc < 0 ? -errno : rc;
}

static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    g_autofree char *real = g_build_filename(files, path, NULL);
    (void)fi; /* never there */
    come(HANG_STAT, 0);
    return answer(lstat(real, st));
}

static int fs_open(const char *path, struct fuse_file_info *fi)
{
    g_autofree char *real = g_build_filename(files, path, NULL);
    int fd = open(real, (fi->flags & O_ACCMODE) | O_CLOEXEC);
    fi->fh = (uint64_t)fd;
    fi->direct_io = 1;
    return fd < 0 ? -errno : 0;
}

static int fs_read(const char *path, char *buf, size_t length, off_t offset,
                   struct fuse_file_info *fi)
{
    (void)path;
    come(HANG_READ, (uint64_t)offset);
    return answer((int)pread((int)fi->fh, buf, length, offset));
}

static int fs_write(const char *path, const char *buf, size_t length, off_t offset,
                    struct fuse_file_info *fi)
{
    (void)path;
    come(HANG_WRITE, (uint64_t)offset);
    return answer((int)pwrite((int)fi->fh, buf, length, offset));
}

static int fs_fsync(const char *path, int data_only, struct fuse_file_info *fi)
{
    (void)path, (void)data_only, (void)fi;
    come(HANG_SYNC, 0);
    return 0;
}

static int fs_fallocate(const char *path, int mode, off_t offset, off_t length,
                        struct fuse_file_info *fi)
{
    (void)path;
    come(HANG_SPACE, (uint64_t)offset);
    return answer(fallocate((int)fi->fh, mode, offset, length));
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *fi)
{
    g_autofree char *real = g_build_filename(files, path, NULL);
    come(HANG_SIZE, 0);
    return answer(fi ? ftruncate((int)fi->fh, size) : truncate(real, size));
}

static off_t fs_lseek(const char *path, off_t offset, int whence,
                      struct fuse_file_info *fi)
{
    (void)path;
    come(HANG_SEEK, 0);
    off_t found = lseek((int)fi->fh, offset, whence);
    return found < 0 ? -errno : found;
}

static int fs_flush(const char *path, struct fuse_file_info *fi)
{
    (void)path, (void)fi;
    come(HANG_CLOSE, 0);
    return 0;
}

static int fs_release(const char *path, struct fuse_file_info *fi)
{
    (void)path;
    close((int)fi->fh);
    return 0;
}

static void *fs_init(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
    (void)conn;
    cfg->nullpath_ok = 0;
    cfg->attr_timeout = cfg->entry_timeout = 0;
    pthread_mutex_lock(&shared->lock);
    shared->mounted = 1;
    pthread_cond_broadcast(&shared->changed);
    pthread_mutex_unlock(&shared->lock);
    return NULL;
}

static const struct fuse_operations operations = {
    .init = fs_init,
    .getattr = fs_getattr,
    .open = fs_open,
    .read = fs_read,
    .write = fs_write,
    .fsync = fs_fsync,
    .fallocate = fs_fallocate,
    .truncate = fs_truncate,
    .lseek = fs_lseek,
    .flush = fs_flush,
    .release = fs_release,
};

static void tell(int mounted)
{
    pthread_mutex_lock(&shared->lock);
    shared->mounted = shared->mounted ? shared->mounted : mounted;
    pthread_cond_broadcast(&shared->changed);
    pthread_mutex_unlock(&shared->lock);
}

/* It is over, or whoever started us has gone. The connection ends with the process, and
 * what still waits for it fails. */
static void *await_end(void *mountpoint)
{
    int got;
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigwait(&end, &got);
    umount2(mountpoint, MNT_DETACH);
    kill(getpid(), SIGKILL);
    return NULL;
}

static void serve(char *mountpoint)
{
    char *argv[] = {(char *)"hang", (char *)"-o", (char *)"fsname=hang", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(3, argv);
    struct fuse *fuse = fuse_new(&args, &operations, sizeof operations, NULL);
    pthread_t ender;
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &end, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (!fuse || fuse_mount(fuse, mountpoint) != 0) {
        tell(-1);
        _exit(1);
    }
    pthread_create(&ender, NULL, await_end, mountpoint);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 0);
    fuse_loop_cfg_set_max_threads(config, WAITING_MAX);
    fuse_loop_cfg_set_idle_threads(config, WAITING_MAX);
    fuse_loop_mt(fuse, config);
    for (;;)
        pause();
}

/* ---- The test ---------------------------------------------------------------------------- */

static void control_new(void)
{
    pthread_mutexattr_t mutex_attr;
    pthread_condattr_t cond_attr;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)shared, MAP_FAILED);
    pthread_mutexattr_init(&mutex_attr);
    pthread_mutexattr_setpshared(&mutex_attr, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->lock, &mutex_attr);
    pthread_condattr_init(&cond_attr);
    pthread_condattr_setpshared(&cond_attr, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->changed, &cond_attr);
}

static void server_end(void)
{
    if (server == 0 || server_owner != getpid())
        return;
    kill(server, SIGTERM);
    waitpid(server, NULL, 0);
    server = 0;
}

void hang_start(void)
{
    g_autofree char *mountpoint = support_path("hang");
    files = support_path("hang-files");
    cr_assert_eq(mkdir(mountpoint, 0700), 0);
    cr_assert_eq(mkdir(files, 0700), 0);
    control_new();
    server = fork();
    cr_assert_geq(server, 0);
    if (server == 0)
        serve(mountpoint);
    server_owner = getpid();
    atexit(server_end);
    pthread_mutex_lock(&shared->lock);
    while (shared->mounted == 0)
        pthread_cond_wait(&shared->changed, &shared->lock);
    bool mounted = shared->mounted > 0;
    pthread_mutex_unlock(&shared->lock);
    if (!mounted)
        cr_skip_test("FUSE cannot be mounted here");
}

void hang_stop(void)
{
    hang_release(HANG_ANYWHERE);
    server_end();
    g_free(g_steal_pointer(&files));
}

char *hang_made(const char *name)
{
    return support_path("hang-files/%s", name);
}

char *hang_path(const char *name)
{
    return support_path("hang/%s", name);
}

static void hold(unsigned kinds, uint64_t offset, unsigned pass, bool once)
{
    pthread_mutex_lock(&shared->lock);
    shared->kinds = kinds;
    shared->offset = offset;
    shared->pass = pass;
    shared->once = once;
    pthread_mutex_unlock(&shared->lock);
}

void hang_hold(unsigned kinds, uint64_t offset, unsigned pass)
{
    hold(kinds, offset, pass, false);
}

void hang_hold_one(unsigned kinds, unsigned pass)
{
    hold(kinds, HANG_ANYWHERE, pass, true);
}

void hang_release(uint64_t offset)
{
    pthread_mutex_lock(&shared->lock);
    shared->release_count++;
    shared->release_offset = offset;
    if (offset == HANG_ANYWHERE) {
        shared->released_all = shared->release_count;
        shared->kinds = 0;
    }
    pthread_cond_broadcast(&shared->changed);
    pthread_mutex_unlock(&shared->lock);
}

void hang_await(unsigned count)
{
    pthread_mutex_lock(&shared->lock);
    while (shared->waiting != count)
        pthread_cond_wait(&shared->changed, &shared->lock);
    pthread_mutex_unlock(&shared->lock);
}

unsigned hang_waiting(void)
{
    pthread_mutex_lock(&shared->lock);
    unsigned waiting = shared->waiting;
    pthread_mutex_unlock(&shared->lock);
    return waiting;
}

unsigned hang_seen(unsigned kinds)
{
    unsigned sum = 0;
    pthread_mutex_lock(&shared->lock);
    for (unsigned i = 0; i < KINDS; i++)
        sum += kinds >> i & 1 ? shared->seen[i] : 0;
    pthread_mutex_unlock(&shared->lock);
    return sum;
}
