/*
 * nbd-server.h: NBD servers for tests: nbdkit, qemu-nbd or one that lies, on a Unix socket of
 * the scratch directory. A server has a process group of its own and is ended with it.
 */
#ifndef TESTS_NBD_SERVER_H
#define TESTS_NBD_SERVER_H

#include "formats/nbd.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct nbd_server {
    pid_t pid;
    char *socket;
    char *uri;
} nbd_server;

static inline bool nbd_server_accepts(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    bool accepts = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    return accepts;
}

/* `probe`: connect to see when it is ready; a server that ends with its first client does
 * not bear that, and is ready when its socket is there. */
static inline void nbd_server_run(nbd_server *server, const char *command, bool probe)
{
    g_auto(GStrv) words = NULL;
    cr_assert(g_shell_parse_argv(command, NULL, &words, NULL));
    unlink(server->socket);
    server->pid = fork();
    if (server->pid == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_RDWR);
        dup2(null, STDOUT_FILENO);
        if (!g_getenv("NBD_VERBOSE"))
            dup2(null, STDERR_FILENO);
        execvp(words[0], words);
        _exit(127);
    }
    for (;;) {
        if (probe ? nbd_server_accepts(server->socket)
                  : access(server->socket, F_OK) == 0)
            return;
        int status;
        cr_assert_eq(waitpid(server->pid, &status, WNOHANG), 0, "%s: ended", command);
        g_usleep(2000);
    }
}

/* {} in the command is the socket. */
static inline char *nbd_server_command(const nbd_server *server, const char *format,
                                       va_list args) G_GNUC_PRINTF(2, 0);
static inline char *nbd_server_command(const nbd_server *server, const char *format,
                                       va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);
    g_auto(GStrv) parts = g_strsplit(text, "{}", -1);
    return g_strjoinv(server->socket, parts);
}

static inline nbd_server nbd_server_start(const char *format, ...) G_GNUC_PRINTF(1, 2);
static inline nbd_server nbd_server_start(const char *format, ...)
{
    static unsigned count;
    nbd_server server = {.socket = support_path("s%u", count++)};
    server.uri = g_strdup_printf("nbd+unix:///?socket=%s", server.socket);
    va_list args;
    va_start(args, format);
    g_autofree char *command = nbd_server_command(&server, format, args);
    va_end(args);
    nbd_server_run(&server, command, true);
    return server;
}

/* The same socket again, with another server. */
static inline void nbd_server_restart(nbd_server *server, const char *format, ...)
    G_GNUC_PRINTF(2, 3);
static inline void nbd_server_restart(nbd_server *server, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = nbd_server_command(server, format, args);
    va_end(args);
    nbd_server_run(server, command, true);
}

static inline nbd_server nbd_server_liar(const char *mode)
{
    g_autofree char *script = g_canonicalize_filename("tests/nbd-liar.py", NULL);
    return nbd_server_start("python3 %s {} %s", script, mode);
}

static inline void nbd_server_kill(nbd_server *server)
{
    if (server->pid > 0) {
        kill(-server->pid, SIGKILL);
        kill(server->pid, SIGKILL);
        waitpid(server->pid, NULL, 0);
    }
    server->pid = 0;
}

static inline void nbd_server_end(nbd_server *server)
{
    nbd_server_kill(server);
    g_free(server->socket);
    g_free(server->uri);
}

static inline image *nbd_server_open(const nbd_server *server, unsigned timeout_ms)
{
    g_autoptr(GError) error = NULL;
    const nbd_options options = {server->uri, true, timeout_ms};
    image *im = nbd_open(&options, &error);
    cr_assert_not_null(im, "%s", error ? error->message : "");
    return im;
}

#endif
