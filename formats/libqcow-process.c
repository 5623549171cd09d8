/*
 * libqcow-process.c: starting and ending a helper process, and passing messages to and fro.
 *
 * A process is killed with SIGKILL, which works on a stopped one too, and by its number,
 * which is safe because nobody but us waits for it.
 */
#include "formats/libqcow-wire.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define REAP_WAIT_MS 1000
/* Killed helpers that do not die (a disk that never answers). No new one is started while
 * there are so many: a dead disk must not eat all process ids. */
#define UNDEAD_MAX 16

static atomic_uint undead;

static int spawn_self(int socket, pid_t *ret_pid)
{
    char *argv[] = {(char[]){LIBQCOW_HELPER_NAME}, NULL};
    /* Its caches are megabytes of clusters: huge pages make up for the faults. */
    char *environment[] = {(char[]){"GLIBC_TUNABLES=glibc.malloc.hugetlb=1"}, NULL};
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    if (posix_spawn_file_actions_init(&actions))
        return -ENOMEM;
    if (posix_spawnattr_init(&attributes)) {
        posix_spawn_file_actions_destroy(&actions);
        return -ENOMEM;
    }
    /* A group of its own: an interrupt from the terminal is for the daemon, which still
     * needs its decoders to finish what was asked. */
    int error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP |
                                                          POSIX_SPAWN_SETSIGMASK |
                                                          POSIX_SPAWN_SETSIGDEF);
    if (!error)
        error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error)
        error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!error)
        error = posix_spawn_file_actions_adddup2(&actions, socket, STDIN_FILENO);
    if (!error)
        error = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null",
                                                 O_WRONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    if (!error)
        error = posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    if (!error)
        error = posix_spawn(ret_pid, "/proc/self/exe", &actions, &attributes, argv,
                            environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return -error;
}

int (*libqcow_spawn)(int socket, pid_t *ret_pid) = spawn_self;

static void *reap_at_leisure(void *data)
{
    while (waitpid(GPOINTER_TO_INT(data), NULL, 0) < 0 && errno == EINTR)
        ;
    atomic_fetch_sub(&undead, 1);
    return NULL;
}

static int poll_until(struct pollfd *entry, gint64 deadline)
{
    for (;;) {
        gint64 left = (deadline - g_get_monotonic_time() + 999) / 1000;
        int ready = poll(entry, 1, (int)CLAMP(left, 0, G_MAXINT));
        if (ready >= 0 || errno != EINTR)
            return ready < 0 ? -errno : ready;
    }
}

/* Waits for a process that was killed. One in an uninterruptible sleep must not hold us
 * up (R5): a thread waits for that one. */
static void process_reap(pid_t pid)
{
    int pidfd = pidfd_open(pid, 0);
    if (pidfd >= 0) {
        struct pollfd entry = {.fd = pidfd, .events = POLLIN};
        poll_until(&entry, g_get_monotonic_time() + REAP_WAIT_MS * 1000);
        close(pidfd);
    }
    if (waitpid(pid, NULL, WNOHANG) != 0)
        return;
    atomic_fetch_add(&undead, 1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, reap_at_leisure, GINT_TO_POINTER(pid)) == 0)
        pthread_detach(thread);
}

int libqcow_process_start(pid_t *ret_pid, int *ret_socket)
{
    int ends[2];
    if (atomic_load(&undead) >= UNDEAD_MAX)
        return -EIO;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    int error = libqcow_spawn(ends[1], ret_pid);
    close(ends[1]);
    if (error)
        close(ends[0]);
    else
        *ret_socket = ends[0];
    return error;
}

void libqcow_process_end(pid_t pid, int socket)
{
    kill(pid, SIGKILL);
    close(socket);
    process_reap(pid);
}

int wire_send(int socket, void *data, size_t length, const int *fds, unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * (LIBQCOW_LAYERS_MAX + 1))];
    } control = {0};
    struct iovec part = {.iov_base = data, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (n_fds) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * n_fds);
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)length ? 0 : -EIO;
}

int wire_receive(int socket, uint32_t sequence, gint64 deadline, wire_reply *ret_reply)
{
    struct pollfd entry = {.fd = socket, .events = POLLIN};
    int ready = poll_until(&entry, deadline);
    if (ready <= 0)
        return ready == 0 ? -ETIMEDOUT : -EIO;
    wire_reply reply;
    ssize_t got = recv(socket, &reply, sizeof reply, MSG_DONTWAIT | MSG_TRUNC);
    if (got != (ssize_t)sizeof reply || reply.sequence != sequence ||
        reply.status >= WIRE_STATUS_COUNT || reply.replace > 1)
        return -EIO;
    *ret_reply = reply;
    return 0;
}
