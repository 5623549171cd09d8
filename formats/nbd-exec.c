/*
 * nbd-exec.c: exec:COMMAND, a server that we start ourselves, on a Unix socket that only our
 * user can reach.
 *
 * The kernel ends the server when the thread that started it ends (PR_SET_PDEATHSIG), and that
 * thread must not be one that has other things to do. So each server has a keeper: a thread
 * that starts it, passes on what it says on standard error to the log, waits for its end, and
 * ends it. Only the keeper signals and reaps, so the process number is always the server's.
 *
 * The server has a process group of its own: a terminal's interrupt is not for it, and what it
 * started ends with it.
 */
#include "formats/nbd-internal.h"
#include "formats/path.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PREFIX      "exec:"
#define PLACEHOLDER "{socket}"

/* How long a server may take to end when it is told to. */
#define END_WAIT_MS 3000

#define LINE_MAX_BYTES 1024u

struct nbd_helper {
    char *shown;
    char *dir, *socket, *uri;
    char **argv;
    GThread *keeper;
    int stop_fd;
    int said_fd; /* the server's standard error */
    pid_t pid;   /* the keeper's */
    GMutex lock;
    GCond changed;
    /* Under the lock: */
    bool ended;
    bool serves;     /* what it says goes to the log; before, into the error */
    char *why;       /* it ended, or could not be started */
    char *last_said; /* its last line */
    GString *line;   /* the keeper's: the beginning of the next one */
};

bool nbd_is_command(const char *word)
{
    return g_str_has_prefix(word, PREFIX);
}

static bool refuse(GError **error, image_error code, const char *command, const char *why)
{
    g_autofree char *shown = path_printable(command);
    g_set_error(error, IMAGE_ERROR, (gint)code, "%s: %s", shown, why);
    return false;
}

/* Words as a shell would quote them, and nothing else that a shell does. */
static char **command_words(const char *command, GError **error)
{
    g_auto(GStrv) words = NULL;
    g_autoptr(GError) cause = NULL;
    if (!g_shell_parse_argv(command + strlen(PREFIX), NULL, &words, &cause)) {
        refuse(error, IMAGE_ERROR_REFUSED, command, cause->message);
        return NULL;
    }
    for (char **word = words; *word; word++)
        if (strstr(*word, PLACEHOLDER))
            return g_steal_pointer(&words);
    refuse(error, IMAGE_ERROR_REFUSED, command,
           "no {socket} in it (exec:qemu-nbd -t -f raw -k {socket} FILE)");
    return NULL;
}

bool nbd_check_command(const char *command, GError **error)
{
    g_auto(GStrv) words = command_words(command, error);
    return words != NULL;
}

/* ---- The keeper ---------------------------------------------------------------------- */

/* In the child, between fork and exec: other threads may have held any lock. */
static void become_server(const nbd_helper *s, int said, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    int null = open("/dev/null", O_RDWR);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (getppid() != parent || null < 0 || dup2(null, STDIN_FILENO) < 0 ||
        dup2(null, STDOUT_FILENO) < 0 || dup2(said, STDERR_FILENO) < 0 ||
        close_range(STDERR_FILENO + 1, ~0U, 0) != 0)
        _exit(127);
    execv(s->argv[0], s->argv);
    _exit(127);
}

static bool keeper_start(nbd_helper *s)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    pid_t parent = getpid();
    s->pid = fork();
    if (s->pid == 0)
        become_server(s, ends[1], parent);
    int saved_errno = errno;
    if (s->pid > 0)
        setpgid(s->pid, s->pid); /* whoever comes first */
    close(ends[1]);
    if (s->pid < 0)
        close(ends[0]);
    else
        s->said_fd = ends[0];
    errno = saved_errno;
    return s->pid > 0;
}

static void keeper_say(nbd_helper *s)
{
    g_autofree char *clean = path_printable(s->line->str);
    g_string_truncate(s->line, 0);
    if (!*clean)
        return;
    g_mutex_lock(&s->lock);
    if (s->serves)
        g_message("%s: %s", s->shown, clean);
    g_free(s->last_said);
    s->last_said = g_steal_pointer(&clean);
    g_mutex_unlock(&s->lock);
}

/* False: there is no more. */
static bool keeper_listen(nbd_helper *s)
{
    char text[512];
    ssize_t got = read(s->said_fd, text, sizeof text);
    if (got < 0)
        return errno == EINTR || errno == EAGAIN;
    for (ssize_t i = 0; i < got; i++) {
        if (text[i] != '\n')
            g_string_append_c(s->line, text[i]);
        if (text[i] == '\n' || s->line->len == LINE_MAX_BYTES)
            keeper_say(s);
    }
    if (got == 0)
        keeper_say(s);
    return got > 0;
}

static void set_ended(nbd_helper *s, char *why)
{
    g_mutex_lock(&s->lock);
    s->ended = true;
    s->why = why;
    g_cond_broadcast(&s->changed);
    g_mutex_unlock(&s->lock);
}

static char *describe_end(int status)
{
    if (WIFSIGNALED(status))
        return g_strdup_printf("the server was ended by signal %d (%s)", WTERMSIG(status),
                               g_strsignal(WTERMSIG(status)));
    return g_strdup_printf("the server ended with status %d", WEXITSTATUS(status));
}

/* Until the server has ended or we are to end it. */
static bool keeper_watch(nbd_helper *s, int pid_fd, int timeout_ms)
{
    struct pollfd entries[] = {
        {.fd = pid_fd, .events = POLLIN},
        {.fd = timeout_ms < 0 ? s->stop_fd : -1, .events = POLLIN},
        {.fd = s->said_fd, .events = POLLIN},
    };
    for (;;) {
        int ready = poll(entries, G_N_ELEMENTS(entries), timeout_ms);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return false;
        if (entries[2].revents && !keeper_listen(s))
            entries[2].fd = -1;
        else if (!entries[2].revents && entries[0].revents)
            return true;
        else if (!entries[2].revents && entries[1].revents)
            return false;
    }
}

static void keeper_keep(nbd_helper *s)
{
    int status = 0, pid_fd = pidfd_open(s->pid, 0);
    if (pid_fd < 0 || !keeper_watch(s, pid_fd, -1)) {
        kill(-s->pid, SIGTERM);
        if (pid_fd >= 0)
            keeper_watch(s, pid_fd, END_WAIT_MS);
    }
    kill(-s->pid,
         SIGKILL); /* it, or what it left behind; not reaped yet, so still its own */
    while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (pid_fd >= 0)
        close(pid_fd);
    set_ended(s, describe_end(status));
}

static void *keeper_thread(void *opaque)
{
    nbd_helper *s = opaque;
    if (keeper_start(s))
        keeper_keep(s);
    else
        set_ended(s, g_strdup(g_strerror(errno)));
    return NULL;
}

/* ---- Starting and ending ------------------------------------------------------------- */

static char *put_socket(const char *word, const char *socket)
{
    g_auto(GStrv) parts = g_strsplit(word, PLACEHOLDER, -1);
    return g_strjoinv(socket, parts);
}

static bool make_words(nbd_helper *s, const char *command, GError **error)
{
    g_auto(GStrv) words = command_words(command, error);
    if (!words)
        return false;
    char *program = g_find_program_in_path(words[0]);
    if (!program) {
        g_autofree char *why = g_strdup_printf("%s: no such program", words[0]);
        return refuse(error, IMAGE_ERROR_IO, command, why);
    }
    unsigned n = g_strv_length(words);
    s->argv = g_new0(char *, n + 1);
    s->argv[0] = program;
    for (unsigned i = 1; i < n; i++)
        s->argv[i] = put_socket(words[i], s->socket);
    return true;
}

static bool make_dir(nbd_helper *s, const char *command, GError **error)
{
    g_autofree char *name = g_strdup_printf("quorumfs-nbd-%d-XXXXXX", getpid());
    s->dir = g_dir_make_tmp(name, NULL); /* 0700 */
    if (!s->dir)
        return refuse(error, IMAGE_ERROR_IO, command, "no directory for its socket");
    s->socket = g_build_filename(s->dir, "nbd", NULL);
    g_autofree char *escaped = g_uri_escape_string(s->socket, "/", false);
    s->uri = g_strdup_printf("nbd+unix:///?socket=%s", escaped);
    return true;
}

nbd_helper *nbd_helper_start(const char *command, GError **error)
{
    nbd_helper *s = g_new0(nbd_helper, 1);
    s->shown = path_printable(command);
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    s->said_fd = -1;
    s->line = g_string_new(NULL);
    g_mutex_init(&s->lock);
    g_cond_init(&s->changed);
    if (s->stop_fd < 0)
        refuse(error, IMAGE_ERROR_IO, command, g_strerror(errno));
    else if (make_dir(s, command, error) && make_words(s, command, error)) {
        s->keeper = g_thread_try_new("nbd-exec", keeper_thread, s, NULL);
        if (s->keeper)
            return s;
        refuse(error, IMAGE_ERROR_IO, command, "no thread for it");
    }
    nbd_helper_end(s);
    return NULL;
}

const char *nbd_helper_uri(const nbd_helper *s)
{
    return s->uri;
}

bool nbd_helper_await(nbd_helper *s, gint64 until, GError **error)
{
    enum { LOOK_EVERY_US = 5000 }; /* nothing tells when a server listens */
    bool there = false;
    g_mutex_lock(&s->lock);
    while (!s->ended && !there && g_get_monotonic_time() < until) {
        there = access(s->socket, F_OK) == 0;
        if (!there)
            g_cond_wait_until(&s->changed, &s->lock,
                              g_get_monotonic_time() + LOOK_EVERY_US);
    }
    there = there && !s->ended;
    if (!there)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s%s%s%s", s->shown,
                    s->ended ? s->why : "the server did not listen on {socket} in time",
                    s->last_said ? " (" : "", s->last_said ? s->last_said : "",
                    s->last_said ? ")" : "");
    g_mutex_unlock(&s->lock);
    return there;
}

void nbd_helper_serves(nbd_helper *s)
{
    g_mutex_lock(&s->lock);
    if (s->last_said)
        g_message("%s: %s", s->shown, s->last_said);
    s->serves = true;
    g_mutex_unlock(&s->lock);
}

void nbd_helper_end(nbd_helper *s)
{
    if (!s)
        return;
    if (s->keeper) {
        eventfd_write(s->stop_fd, 1);
        g_thread_join(s->keeper);
    }
    if (s->socket)
        unlink(s->socket);
    if (s->dir)
        rmdir(s->dir);
    if (s->said_fd >= 0)
        close(s->said_fd);
    if (s->stop_fd >= 0)
        close(s->stop_fd);
    g_mutex_clear(&s->lock);
    g_cond_clear(&s->changed);
    g_string_free(s->line, TRUE);
    g_strfreev(s->argv);
    g_free(s->why);
    g_free(s->last_said);
    g_free(s->shown);
    g_free(s->dir);
    g_free(s->socket);
    g_free(s->uri);
    g_free(s);
}
