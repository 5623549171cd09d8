/*
 * mount.c: the session: mounting, serving, and the several ways in which a mount ends.
 *
 * Ends. (1) Somebody unmounts it: the workers read ENODEV and mount_serve returns. (2)
 * mount_end finds nobody using it: it unmounts, and (1) follows; the kernel writes back
 * what it holds while we still serve. (3) mount_end finds it in use: it has the kernel
 * write back, and ends the loop.
 *
 * None of that waits for ever (R5). To unmount and to have it written back is to wait for
 * requests that we have to answer ourselves, so a thread of its own does it; when for some
 * time no request is answered any more the loop is ended all the same, and so does the loop
 * leave behind what does not come back.
 *
 * Before anything is unmounted by path, the kernel's table must say that the mount there
 * is this one: it may have been detached lazily and another one made at the same place.
 */
#include "fuse/mount.h"
#include "fuse/cli.h"
#include "fuse/loop.h"
#include "fuse/mountpoint.h"
#include "fuse/ops.h"
#include "fuse/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* One slow replica must not keep other requests from being taken. Where all replicas are
 * slow, the kernel sends up to 64 requests of its own (ops_init) beside those of callers. */
#define THREADS_MAX   16
#define THREADS_SPARE 80

/* A replica that hangs is waited for once in a request, but twice in one that begins with
 * another's time-out; the rest is for slow machines. */
#define PATIENCE_MS(timeout_ms) (2 * (timeout_ms) + 5000)
#define TIMEOUT_DEFAULT_MS      30000u
#define LOOK_EVERY              (100 * G_TIME_SPAN_MILLISECOND)

struct mount_session {
    ops_context ops; /* libfuse's user data */
    const mount_config *config;
    char *mountpoint;
    int id; /* of the mount, in the kernel's table */
    loop *loop;
    unsigned patience_ms;
    bool unmounted; /* by mount_end; its thread's */
    bool abandoned; /* a thread of mount_end's may still look at all of this; atomic */

    GMutex lock;               /* guards what follows; before the loop's own */
    struct fuse_session *fuse; /* NULL after mount_detach */
};

GQuark mount_error_quark(void)
{
    return g_quark_from_static_string("quorumfs-mount-error-quark");
}

static const struct fuse_lowlevel_ops operations = {
    .init = ops_init,
    .lookup = ops_lookup,
    .getattr = ops_getattr,
    .setattr = ops_setattr,
    .readdir = ops_readdir,
    .access = ops_access,
    .statfs = ops_statfs,
    .open = ops_open,
    .release = ops_release,
    .read = ops_read,
    .write = ops_write,
    .fsync = ops_fsync,
    .fallocate = ops_fallocate,
    .lseek = ops_lseek,
    .create = ops_create,
    .mknod = ops_mknod,
    .mkdir = ops_mkdir,
    .symlink = ops_symlink,
    .link = ops_link,
    .unlink = ops_remove,
    .rmdir = ops_remove,
    .rename = ops_rename,
};

/* ---- What libfuse says ------------------------------------------------------------- */

/* While a mount is made, the first message is kept to become part of our one error line;
 * later ones are printed. */
static GMutex reason_lock;
static char *reason;
static bool collecting;

static void take_message(enum fuse_log_level level, const char *format, va_list args)
    G_GNUC_PRINTF(2, 0);
static void take_message(enum fuse_log_level level, const char *format, va_list args)
{
    if (level == FUSE_LOG_DEBUG) {
        vfprintf(stderr, format, args);
        return;
    }
    char *text = g_strstrip(g_strdup_vprintf(format, args));
    g_mutex_lock(&reason_lock);
    if (!collecting)
        cli_error("%s", text);
    else if (!reason)
        reason = g_steal_pointer(&text);
    g_mutex_unlock(&reason_lock);
    g_free(text);
}

static void collect_messages(bool on)
{
    g_mutex_lock(&reason_lock);
    collecting = on;
    if (!on)
        g_clear_pointer(&reason, g_free);
    g_mutex_unlock(&reason_lock);
}

static void set_error(GError **error, const char *mountpoint, const char *fallback)
{
    g_mutex_lock(&reason_lock);
    const char *why = reason ? reason : fallback;
    const char *colon = strstr(why, ": ");
    if (colon && (g_str_has_prefix(why, "fuse") || g_str_has_prefix(why, "fusermount")))
        why = colon + 2;
    g_set_error(error, MOUNT_ERROR, 0, "cannot mount on %s: %s", mountpoint, why);
    g_mutex_unlock(&reason_lock);
}

/* A user's mount is made by fusermount3, which inherits standard error and says there what
 * it does not like. While it runs, that is a file of ours. */
static int mount_quietly(struct fuse_session *fuse, const char *mountpoint)
{
    int said = memfd_create("fusermount3", MFD_CLOEXEC);
    int saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    bool captured = said >= 0 && saved >= 0 && dup2(said, STDERR_FILENO) >= 0;
    int result = fuse_session_mount(fuse, mountpoint);
    if (captured) {
        char text[512];
        dup2(saved, STDERR_FILENO);
        ssize_t length = pread(said, text, sizeof text, 0);
        g_mutex_lock(&reason_lock);
        if (length > 0 && !reason)
            reason = g_strstrip(g_strndup(text, (gsize)length));
        g_mutex_unlock(&reason_lock);
    }
    if (said >= 0)
        close(said);
    if (saved >= 0)
        close(saved);
    return result;
}

/* ---- Mounting ---------------------------------------------------------------------- */

static bool is_given(const mount_config *config, const char *prefix)
{
    for (unsigned i = 0; i < config->fuse_options->len; i++)
        if (g_str_has_prefix(config->fuse_options->pdata[i], prefix))
            return true;
    return false;
}

/* What stands in the first column of /proc/mounts: the configuration, by which mount(8)
 * finds out that a line of fstab is mounted already, or the first image. */
static void add_source(char **options, const mount_config *config)
{
    const disk_options *first = config->disks->pdata[0];
    const replica_options *replica = first->replicas->pdata[0];
    g_autofree char *source =
        g_strconcat("fsname=", config->file ? config->file : replica->source, NULL);
    fuse_opt_add_opt_escaped(options, source);
}

static void build_arguments(const mount_config *config, struct fuse_args *args)
{
    char *options = NULL;
    fuse_opt_add_opt(&options, "subtype=quorumfs");
    g_autofree char *max_read = g_strdup_printf("max_read=%u", DISK_REQUEST_MAX);
    fuse_opt_add_opt(&options, max_read);
    if (config->read_only)
        fuse_opt_add_opt(&options, "ro");
    if (config->allow_other)
        fuse_opt_add_opt(&options, "allow_other,default_permissions");
    if (!is_given(config, "fsname="))
        add_source(&options, config);
    for (unsigned i = 0; i < config->fuse_options->len; i++)
        fuse_opt_add_opt(&options, config->fuse_options->pdata[i]);
    fuse_opt_add_arg(args, "quorumfs");
    if (config->debug)
        fuse_opt_add_arg(args, "-d");
    fuse_opt_add_arg(args, "-o");
    fuse_opt_add_arg(args, options);
    free(options);
}

/* The first request is the kernel's INIT, and it sends no other before that is answered. */
static int answer_init(mount_session *m)
{
    struct fuse_buf buf = {0};
    int result = 0;
    while (!m->ops.initialised && result >= 0) {
        result = fuse_session_receive_buf(m->fuse, &buf);
        if (result == -EINTR)
            result = 0;
        else if (result == 0) /* unmounted already */
            result = -ENODEV;
        else if (result > 0)
            fuse_session_process_buf(m->fuse, &buf);
    }
    free(buf.mem);
    return MIN(result, 0);
}

/* The kernel reads ahead 128 KiB by default; only root may have it read whole requests. */
static void raise_readahead(const mountpoint_info *info)
{
    g_autofree char *path =
        g_strdup_printf("/sys/class/bdi/%u:%u/read_ahead_kb", info->major, info->minor);
    g_autofree char *text = g_strdup_printf("%u\n", DISK_REQUEST_MAX / 1024);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t written = write(fd, text, strlen(text));
    (void)written; /* a matter of speed only */
    close(fd);
}

static bool attach(mount_session *m, GError **error)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    build_arguments(m->config, &args);
    fuse_set_log_func(take_message);
    m->fuse = fuse_session_new(&args, &operations, sizeof operations, &m->ops);
    fuse_opt_free_args(&args);
    if (!m->fuse || mount_quietly(m->fuse, m->mountpoint) != 0) {
        set_error(error, m->mountpoint, "fusermount3 refused it");
        return false;
    }
    m->loop =
        loop_new(m->fuse, &(loop_options){
                              .request_max = DISK_REQUEST_MAX,
                              .threads = m->config->single_thread ? 1 : THREADS_MAX,
                              .spares = m->config->single_thread ? 0 : THREADS_SPARE,
                              .stall_ms = m->patience_ms,
                          });
    mountpoint_info info = {0};
    if (mountpoint_find(m->mountpoint, &info))
        m->id = info.id;
    int result = answer_init(m);
    if (result < 0) {
        set_error(error, m->mountpoint, g_strerror(-result));
        return false;
    }
    raise_readahead(&info);
    return true;
}

unsigned mount_patience_ms(const mount_config *config)
{
    unsigned longest = 0;
    for (unsigned i = 0; i < config->disks->len; i++) {
        const disk_options *d = config->disks->pdata[i];
        unsigned whole = d->timeout_ms ? d->timeout_ms : TIMEOUT_DEFAULT_MS;
        for (unsigned k = 0; k < d->replicas->len; k++) {
            const replica_options *replica = d->replicas->pdata[k];
            longest = MAX(longest, replica->timeout_ms ? replica->timeout_ms : whole);
        }
    }
    return PATIENCE_MS(MIN(longest, INT_MAX / 4));
}

mount_session *mount_attach(const daemon_context *daemon, const char *mountpoint,
                            GError **error)
{
    mount_session *m = g_new0(mount_session, 1);
    g_mutex_init(&m->lock);
    m->config = daemon->config;
    m->patience_ms = mount_patience_ms(m->config);
    m->mountpoint = g_strdup(mountpoint);
    ops_context_init(&m->ops, tree_new(daemon), daemon->config->cache);
    collect_messages(true);
    bool attached = attach(m, error);
    collect_messages(false);
    if (attached)
        return m;
    mount_detach(m);
    mount_free(m);
    return NULL;
}

/* ---- Serving ----------------------------------------------------------------------- */

int mount_serve(mount_session *m)
{
    return loop_run(m->loop);
}

unsigned mount_stuck(mount_session *m)
{
    return loop_stuck(m->loop);
}

/* ---- Ending ------------------------------------------------------------------------ */

static bool is_present(const mount_session *m)
{
    mountpoint_info info;
    return m->id != 0 && mountpoint_find(m->mountpoint, &info) && info.id == m->id;
}

/* Not syncfs: for FUSE the kernel only starts the writing then, and does not wait. */
static void write_back(const mount_session *m)
{
    const GPtrArray *disks = tree_daemon(m->ops.tree)->disks;
    for (unsigned i = 0; i < disks->len; i++) {
        disk *d = disks->pdata[i];
        g_autofree char *path = g_build_filename(m->mountpoint, disk_file(d), NULL);
        int fd = disk_writable(d) ? open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
        if (fd < 0)
            continue;
        fsync(fd);
        close(fd);
    }
}

static void *end_gently(void *opaque)
{
    mount_session *m = opaque;
    if (!is_present(m))
        return NULL;
    m->unmounted = mountpoint_unmount(m->mountpoint, false) == 0;
    if (!m->unmounted)
        write_back(m);
    return NULL;
}

/* False: it is left alone. */
static bool wait_while_answering(mount_session *m, pthread_t thread)
{
    gint64 patience = m->patience_ms * G_TIME_SPAN_MILLISECOND;
    gint64 now = g_get_monotonic_time(), until = now + patience;
    uint64_t before = loop_progress(m->loop);
    while (!thread_join(thread, now + LOOK_EVERY)) {
        now = g_get_monotonic_time();
        uint64_t progress = loop_progress(m->loop);
        if (progress != before)
            until = now + patience;
        before = progress;
        if (now < until)
            continue;
        __atomic_store_n(&m->abandoned, true, __ATOMIC_SEQ_CST);
        pthread_detach(thread);
        return false;
    }
    return true;
}

void mount_end(mount_session *m)
{
    pthread_t thread;
    bool gently = !__atomic_load_n(&m->abandoned, __ATOMIC_SEQ_CST) &&
                  thread_start(&thread, "unmount", end_gently, m) == 0;
    if (gently && wait_while_answering(m, thread) && m->unmounted)
        return;
    g_mutex_lock(&m->lock);
    if (m->fuse)
        loop_end(m->loop);
    g_mutex_unlock(&m->lock);
}

/* libfuse unmounts by path. That is right if our mount is there; if the connection is dead
 * it only closes. */
static bool may_unmount(const mount_session *m, struct fuse_session *fuse)
{
    struct pollfd device = {.fd = fuse_session_fd(fuse)};
    return is_present(m) || (poll(&device, 1, 0) == 1 && (device.revents & POLLERR));
}

void mount_detach(mount_session *m)
{
    g_mutex_lock(&m->lock);
    struct fuse_session *fuse = g_steal_pointer(&m->fuse);
    g_mutex_unlock(&m->lock);
    if (!fuse)
        return;
    if (may_unmount(m, fuse))
        fuse_session_unmount(fuse);
    fuse_session_destroy(fuse);
    if (is_present(m)) /* the connection had been aborted: a dead mount was left */
        mountpoint_unmount(m->mountpoint, true);
}

void mount_free(mount_session *m)
{
    if (!m || __atomic_load_n(&m->abandoned, __ATOMIC_SEQ_CST))
        return;
    loop_free(m->loop);
    ops_context_clear(&m->ops);
    g_free(m->mountpoint);
    g_mutex_clear(&m->lock);
    g_free(m);
}
