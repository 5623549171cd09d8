/*
 * daemon.c: the life of a mount.
 *
 * Unless it stays in the foreground, the process forks before anything is opened, so that
 * descriptors, locks, rings and threads all belong to the process that serves. The child
 * writes one byte into a pipe when the mount answers; if the pipe closes without it the
 * mount has failed, and the child has said why on standard error.
 *
 * Built in this order, taken down in the reverse one, whatever step fails: state
 * directory, journals, disks, control socket, mount, signal thread.
 *
 * The end waits for nothing for ever (R5). What the disks do has deadlines. A request or a
 * command that does not end in spite of them is left behind when nothing else has ended for
 * some time: then the disks are flushed, but nothing is freed and no disk is closed, and so
 * the next mount finds what it finds after a crash (W6). The last deed is the verdict
 * (verdict.h). Where a replica hangs, or something was left behind, the process ends without
 * its libraries' last words; the kernel may keep what is left of it, with the hung file's
 * lock, until the file answers. By then it has let go of the mount, the socket, the state
 * directory and the other replicas.
 *
 * Signals are blocked in all threads, so that each helper process and thread started on
 * the way inherits that (a terminal's ^C goes to the helpers too, and must not end them
 * before we are done), and are taken by one thread with sigwait: HUP reopens the journals,
 * INT and TERM end the mount, USR1 wakes the thread so that it ends.
 */
#include "fuse/daemon.h"
#include "fuse/cli.h"
#include "fuse/config-internal.h"
#include "fuse/control.h"
#include "fuse/mount.h"
#include "fuse/mountpoint.h"
#include "fuse/state-dir.h"
#include "fuse/tree.h"
#include "fuse/verdict.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The longest path of a Unix socket is 107 bytes; this one is ours to keep short. */
#define SOCKET_NAME "qmp.sock"

typedef struct daemon_state {
    daemon_context context;
    char *mountpoint;
    int state_fd;     /* the state directory, locked by us; -1 */
    GPtrArray *notes; /* of char*: said when all is mounted */
    control *control;
    GMutex tell_lock;
    control *told; /* under tell_lock: records go there; NULL: nobody listens */
    mount_session *mount;
    pthread_t signals; /* takes the signals, in serve() */
    bool ended;        /* set before the last SIGUSR1; atomic */
} daemon_state;

/* ---- State directory and journals --------------------------------------------------- */

/* Our own files must not lie in our own mount: a SIGHUP would ask ourselves for them. */
static bool check_outside(const daemon_state *s, const char *what, const char *path,
                          GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    char *real = realpath(dir, NULL);
    size_t length = strlen(s->mountpoint);
    bool inside = real && strncmp(real, s->mountpoint, length) == 0 &&
                  (real[length] == '/' || real[length] == '\0' || length == 1);
    free(real);
    if (inside)
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                    "%s %s: lies beneath the mount point", what, path);
    return !inside;
}

/* Two daemons that read the same images would write into one journal. */
static bool open_state_dir(daemon_state *s, GError **error)
{
    const mount_config *config = s->context.config;
    g_autofree char *dir = config_make_state_dir(config, error);
    if (!dir)
        return false;
    /* By the kernel: what ".." means after a symbolic link is not in the text. */
    char *real = realpath(dir, NULL);
    s->context.state_dir = g_strdup(real ? real : dir);
    free(real);
    s->context.socket_path =
        config->socket_path ? config_absolute(NULL, config->socket_path)
                            : g_build_filename(s->context.state_dir, SOCKET_NAME, NULL);
    s->state_fd = state_dir_lock(s->context.state_dir,
                                 "give this one its own with -o state-dir=", error);
    if (s->state_fd < 0)
        return false;
    return check_outside(s, "state directory", s->context.state_dir, error) &&
           check_outside(s, "control socket", s->context.socket_path, error);
}

/* A mount that failed leaves no journal in which nothing stands, and no directory that was
 * made for it. */
static void remove_empty_journals(const daemon_state *s)
{
    for (unsigned i = 0; i < s->context.journals->len; i++) {
        struct stat st;
        const disk_options *options = s->context.config->disks->pdata[i];
        g_autofree char *path =
            state_dir_journal_path(s->context.state_dir, options->name);
        g_autofree char *dir = g_path_get_dirname(path);
        if (stat(path, &st) == 0 && st.st_size == 0)
            unlink(path);
        rmdir(dir); /* refused unless it is empty */
    }
    if (s->state_fd >= 0)
        rmdir(s->context.state_dir);
}

/* ---- Opening and closing ------------------------------------------------------------ */

static void tell(void *opaque, const char *line)
{
    daemon_state *s = opaque;
    g_mutex_lock(&s->tell_lock);
    if (s->told)
        control_tell(s->told, line);
    g_mutex_unlock(&s->tell_lock);
}

static void set_told(daemon_state *s, control *c)
{
    g_mutex_lock(&s->tell_lock);
    s->told = c;
    g_mutex_unlock(&s->tell_lock);
}

static bool open_disks(daemon_state *s, GError **error)
{
    const GPtrArray *disks = s->context.config->disks;
    for (unsigned i = 0; i < disks->len; i++) {
        disk_options *options = disks->pdata[i];
        journal *j = state_dir_open_journal(s->context.state_dir, options->name, error);
        if (!j)
            return false;
        g_ptr_array_add(s->context.journals, j);
        journal_set_listener(j, tell, s);
        if (!config_find_record(options, s->context.state_dir, s->notes, error))
            return false;
        disk *d = disk_open(options, j, error);
        if (!d)
            return false;
        g_ptr_array_add(s->context.disks, d);
    }
    return true;
}

/* What nobody knows may be the better copy, which a resync overwrites. */
static void print_filled(disk *d)
{
    for (unsigned i = 0; i < disk_replica_count(d) && disk_writable(d); i++) {
        replica_status status;
        disk_replica_status(d, i, &status);
        if (status.state != REPLICA_IN_SYNC && status.stale_bytes >= disk_size(d) &&
            disk_size(d) > 0)
            cli_error("disk '%s': replica '%s' is new, was changed while it was not "
                      "mounted, or missed much: it is filled from the others",
                      disk_name(d), status.name);
    }
}

/* Said when all is mounted: a mount that failed has one line. */
static void print_reservations(const daemon_state *s)
{
    for (unsigned i = 0; i < s->notes->len; i++)
        cli_error("%s", (const char *)s->notes->pdata[i]);
    for (unsigned i = 0; i < s->context.disks->len; i++) {
        disk *d = s->context.disks->pdata[i];
        const char *degraded = disk_degraded_reason(d);
        if (degraded)
            cli_error("disk '%s' is degraded: %s", disk_name(d), degraded);
        print_filled(d);
        const char *why = disk_read_only_reason(d);
        if (why)
            cli_error("disk '%s' is read-only: %s", disk_name(d), why);
    }
}

/* The process gets the signal, not the thread: a client may ask before that is started. */
static void ask_for_end(void *opaque)
{
    (void)opaque;
    kill(getpid(), SIGTERM);
}

static bool open_all(daemon_state *s, GError **error)
{
    const mount_config *config = s->context.config;
    s->mountpoint = mountpoint_prepare(config->mountpoint, error);
    if (!s->mountpoint || !open_state_dir(s, error) || !open_disks(s, error))
        return false;
    s->control = control_start(&s->context, ask_for_end, NULL, error);
    if (!s->control)
        return false;
    set_told(s, s->control);
    s->mount = mount_attach(&s->context, s->mountpoint, error);
    return s->mount != NULL;
}

/* What requests and commands may still use stays as it is if there are any left. */
static bool stop_requests(daemon_state *s)
{
    gint64 patience = mount_patience_ms(s->context.config) * G_TIME_SPAN_MILLISECOND;
    bool served = s->mount && mount_stuck(s->mount) > 0;
    set_told(s, NULL);
    bool stopped = control_stop(s->control, patience) && !served;
    if (stopped)
        mount_free(s->mount);
    return stopped;
}

static void close_disks(const daemon_state *s, verdict *v, bool stuck)
{
    for (unsigned i = 0; i < s->context.disks->len; i++) {
        disk *d = s->context.disks->pdata[i];
        verdict_add_disk(v, d, disk_flush(d));
        if (!stuck)
            verdict_set_closed(v, disk_close(d));
    }
}

static void free_all(daemon_state *s)
{
    g_ptr_array_unref(s->notes);
    g_ptr_array_unref(s->context.disks);
    g_ptr_array_unref(s->context.journals);
    g_free(s->context.state_dir);
    g_free(s->context.socket_path);
    g_free(s->mountpoint);
}

/* *ret_result: 0, or what the last flush of a disk returned. False: what is left of the process
 * is better not touched. */
static bool close_all(daemon_state *s, bool served, int *ret_result)
{
    bool stuck = !stop_requests(s);
    verdict *v = verdict_new();
    close_disks(s, v, stuck);
    bool quiet = !stuck && !verdict_hangs(v); /* else somebody may still write there */
    for (unsigned i = 0; i < s->context.journals->len; i++) {
        if (quiet)
            journal_close(s->context.journals->pdata[i]);
        else
            journal_sync(s->context.journals->pdata[i]);
    }
    if (!served)
        remove_empty_journals(s);
    else
        verdict_write(v, s->context.state_dir, stuck);
    if (s->state_fd >= 0)
        close(s->state_fd);
    *ret_result = verdict_error(v);
    verdict_free(v);
    if (quiet)
        free_all(s);
    return quiet;
}

/* ---- Serving ------------------------------------------------------------------------ */

static void signal_set(sigset_t *set)
{
    const int numbers[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    sigemptyset(set);
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++)
        sigaddset(set, numbers[i]);
}

static void reopen_journals(const daemon_state *s)
{
    for (unsigned i = 0; i < s->context.journals->len; i++)
        journal_reopen(s->context.journals->pdata[i]);
}

static void *take_signals(void *opaque)
{
    daemon_state *s = opaque;
    sigset_t set;
    signal_set(&set);
    sigdelset(&set, SIGUSR2); /* mount.c's */
    for (;;) {
        int number = 0;
        sigwait(&set, &number);
        if (__atomic_load_n(&s->ended, __ATOMIC_SEQ_CST))
            return NULL;
        if (number == SIGHUP)
            reopen_journals(s);
        else if (number != SIGUSR1)
            mount_end(s->mount);
    }
}

static int serve(daemon_state *s)
{
    int result = pthread_create(&s->signals, NULL, take_signals, s);
    if (result != 0) {
        mount_detach(s->mount);
        return -result;
    }
    result = mount_serve(s->mount);
    mount_detach(s->mount);
    __atomic_store_n(&s->ended, true, __ATOMIC_SEQ_CST);
    pthread_kill(s->signals, SIGUSR1);
    pthread_join(s->signals, NULL);
    return result;
}

/* In QEMU's option syntax a comma in a value is doubled. */
static void print_usage(const daemon_state *s)
{
    GString *line = g_string_new("quorumfs: ready, for QEMU:");
    for (unsigned i = 0; i < s->context.disks->len; i++) {
        disk *d = s->context.disks->pdata[i];
        g_autofree char *path = g_build_filename(s->mountpoint, disk_file(d), NULL);
        g_auto(GStrv) parts = g_strsplit(path, ",", -1);
        g_autofree char *value = g_strjoinv(",,", parts);
        g_string_append_printf(line, " -drive file=%s,format=raw,cache=none%s", value,
                               disk_writable(d) ? "" : ",readonly=on");
    }
    puts(line->str);
    fflush(stdout);
    clearerr(stdout); /* who has closed it does not want the line */
    g_string_free(line, TRUE);
}

/* What the caller had open, besides standard input and output: a script's lock, the end of
 * a pipe that somebody reads up to its end. */
static GArray *list_descriptors(void)
{
    GArray *list = g_array_new(FALSE, FALSE, sizeof(int));
    GDir *dir = g_dir_open("/proc/self/fd", 0, NULL);
    const char *name;
    while (dir && (name = g_dir_read_name(dir))) {
        int fd = atoi(name);
        if (fd > STDERR_FILENO)
            g_array_append_val(list, fd);
    }
    if (dir)
        g_dir_close(dir);
    for (unsigned i = list->len; i-- > 0;) /* the directory's own is no more */
        if (fcntl(g_array_index(list, int, i), F_GETFD) < 0)
            g_array_remove_index(list, i);
    return list;
}

/* Tells the waiting parent that the mount answers, and lets go of its terminal, its pipes
 * and its working directory. They were there until now because an image or a password file
 * may be one of them (/dev/fd/N). False: the parent is gone, nobody wants the mount. */
static bool release_shell(int ready_fd, const GArray *inherited)
{
    for (unsigned i = 0; i < inherited->len; i++)
        close(g_array_index(inherited, int, i));
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (chdir("/") != 0 || null < 0)
        return false;
    for (int fd = 0; fd <= 2; fd++)
        dup2(null, fd);
    close(null);
    bool told = write(ready_fd, "", 1) == 1;
    close(ready_fd);
    return told;
}

static void reserve_verdict(const daemon_state *s)
{
    unsigned n = 0;
    for (unsigned i = 0; i < s->context.disks->len; i++)
        n += disk_replica_count(s->context.disks->pdata[i]);
    verdict_reserve(s->context.state_dir, n);
}

/* In the foreground ready_fd is -1, and what was inherited stays. */
static int run(const mount_config *config, int ready_fd, const GArray *inherited)
{
    g_autoptr(GError) error = NULL;
    daemon_state s = {.context = {.config = config,
                                  .disks = g_ptr_array_new(),
                                  .journals = g_ptr_array_new(),
                                  .started_us = g_get_monotonic_time()},
                      .state_fd = -1,
                      .notes = g_ptr_array_new_with_free_func(g_free)};
    sigset_t set;
    signal_set(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);

    bool opened = open_all(&s, &error);
    bool misused = g_error_matches(error, DISK_ERROR, DISK_ERROR_OPTIONS);
    if (!opened)
        cli_error("%s", error->message);
    int result = 0;
    if (opened) {
        reserve_verdict(&s);
        print_reservations(&s);
        if (config->foreground || isatty(STDOUT_FILENO))
            print_usage(&s);
        if (ready_fd >= 0 && !release_shell(ready_fd, inherited))
            kill(getpid(), SIGTERM);
        result = serve(&s);
    }
    int closed = 0;
    bool clean = close_all(&s, opened, &closed);
    if (result < 0)
        cli_error("serving %s: %s", config->mountpoint, g_strerror(-result));
    if (closed < 0)
        cli_error("the last flush failed: %s", g_strerror(-closed));
    int code = opened && result == 0 && closed == 0 ? CLI_OK : CLI_FAILED;
    if (!clean) {
        fflush(NULL);
        _exit(code);
    }
    return misused ? CLI_USAGE : code;
}

/* ---- Going into the background ------------------------------------------------------ */

static int wait_for_child(pid_t child, int ready_fd)
{
    char byte;
    ssize_t got;
    do
        got = read(ready_fd, &byte, 1);
    while (got < 0 && errno == EINTR);
    close(ready_fd);
    if (got == 1)
        return CLI_OK;
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        cli_error("the daemon was ended by signal %d (%s)", WTERMSIG(status),
                  g_strsignal(WTERMSIG(status)));
    return WIFEXITED(status) && WEXITSTATUS(status) != CLI_OK ? WEXITSTATUS(status)
                                                              : CLI_FAILED;
}

static int run_in_background(const mount_config *config, const GArray *inherited)
{
    int ready[2];
    if (pipe2(ready, O_CLOEXEC) != 0) {
        cli_error("pipe: %s", g_strerror(errno));
        return CLI_FAILED;
    }
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        cli_error("fork: %s", g_strerror(errno));
        close(ready[0]);
        close(ready[1]);
        return CLI_FAILED;
    }
    if (child > 0) {
        close(ready[1]);
        return wait_for_child(child, ready[0]);
    }
    close(ready[0]);
    setsid();
    return run(config, ready[1], inherited);
}

int daemon_mount(const mount_config *config)
{
    g_autoptr(GError) error = NULL;
    if (!tree_check_names(config, &error)) {
        cli_error("%s", error->message);
        return CLI_FAILED;
    }
    g_autoptr(GArray) inherited = list_descriptors();
    return config->foreground ? run(config, -1, inherited)
                              : run_in_background(config, inherited);
}
