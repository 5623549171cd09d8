/*
 * libqcow-helper.c: the process in which libqcow runs. The only file that includes it.
 *
 * The life of a helper: take the opening message and its descriptors, give up everything
 * that opening does not need (sandbox_prepare), open the images, give up everything that
 * serving does not need (sandbox_enter), answer, then serve reads until the socket closes.
 * libqcow parses nothing outside of the first, and decodes nothing outside of the second.
 * After sandbox_enter() nothing needs a path, a new descriptor or a privilege; a libqcow
 * that an image has taken over can use the processor, its bounded memory, and the images
 * that it may read anyway; before that also read other files of the user. It can also lie:
 * that is the client's (and in the end the vote's) business.
 *
 * Each image is opened through /proc/self/fd, which gives libqcow an open file of its
 * own: it seeks, and the daemon's descriptors share their positions with ours. What was
 * received is closed again, so that no lock (O5) outlives the daemon's descriptor.
 *
 * The parent's death is seen as the end of the socket. PR_SET_PDEATHSIG would not do: it
 * follows the thread that spawned, and the daemon's threads come and go. A helper that
 * is caught in an endless loop, from the opening on, looks for it once per second of
 * processor time (SIGPROF), so an idle one is never woken.
 */
#include "formats/libqcow-sandbox.h"
#include "formats/libqcow-wire.h"
#include "formats/qcow-libqcow.h"
#include <errno.h>
#include <libqcow.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define SOCKET_FD     0
#define REPLACE_EVERY 16 /* reads between two looks at the size of the heap */

typedef struct helper {
    libqcow_file_t *files[LIBQCOW_LAYERS_MAX]; /* top first */
    unsigned n_layers;
    uint32_t cut;
    uint64_t memory;
    uint8_t *buffer;
    unsigned reads;
} helper;

/* ---- the orphan --------------------------------------------------------------------- */

static void leave_if_orphaned(int signal)
{
    (void)signal;
    int saved = errno;
    struct pollfd peer = {.fd = SOCKET_FD};
    if (poll(&peer, 1, 0) > 0 && (peer.revents & (POLLHUP | POLLERR)))
        _exit(0);
    errno = saved;
}

static bool orphan_watch(void)
{
    const struct sigaction action = {.sa_handler = leave_if_orphaned,
                                     .sa_flags = SA_RESTART};
    const struct itimerval second = {.it_interval = {.tv_sec = 1},
                                     .it_value = {.tv_sec = 1}};
    return sigaction(SIGPROF, &action, NULL) == 0 &&
           setitimer(ITIMER_PROF, &second, NULL) == 0;
}

/* ---- opening ---------------------------------------------------------------------- */

/* Takes the opening message; returns how many descriptors came with it, 0 on failure. */
static unsigned opening_receive(wire_open *opening, int *fds, unsigned max)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * (LIBQCOW_LAYERS_MAX + 1))];
    } control;
    struct iovec part = {.iov_base = opening, .iov_len = sizeof *opening};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    if (recvmsg(SOCKET_FD, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof *opening)
        return 0;
    const struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    if (!rights || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
        return 0;
    size_t bytes = rights->cmsg_len - CMSG_LEN(0);
    if (bytes > max * sizeof(int))
        return 0;
    memcpy(fds, CMSG_DATA(rights), bytes);
    return (unsigned)(bytes / sizeof(int));
}

static wire_status layer_open(libqcow_file_t **file, int fd, uint64_t size,
                              const wire_open *opening)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (libqcow_file_initialize(file, NULL) != 1)
        return WIRE_OPEN_FAILED;
    /* The key itself: as a password libqcow would convert its characters. */
    if (opening->has_key &&
        libqcow_file_set_keys(*file, opening->key, LIBQCOW_KEY_BYTES, NULL) != 1)
        return WIRE_OPEN_FAILED;
    if (libqcow_file_open(*file, path, LIBQCOW_OPEN_READ, NULL) != 1)
        return WIRE_OPEN_FAILED;
    uint32_t method = LIBQCOW_ENCRYPTION_METHOD_NONE;
    if (libqcow_file_get_encryption_method(*file, &method, NULL) != 1 ||
        method > LIBQCOW_ENCRYPTION_METHOD_AES_128_CBC)
        return WIRE_CIPHER_UNKNOWN;
    if (method != LIBQCOW_ENCRYPTION_METHOD_NONE && !opening->has_key)
        return WIRE_KEY_MISSING;
    size64_t media_size = 0;
    if (libqcow_file_get_media_size(*file, &media_size, NULL) != 1 || media_size != size)
        return WIRE_SIZE_DIFFERS;
    return WIRE_OK;
}

/* `fds` are the layers', top first. On failure *ret_layer tells which one it was. */
static wire_status layers_open(helper *h, const int *fds, const wire_open *opening,
                               uint32_t *ret_layer)
{
    for (unsigned i = h->n_layers; i-- > 0;) {
        *ret_layer = i;
        wire_status status = layer_open(&h->files[i], fds[i], opening->sizes[i], opening);
        if (status != WIRE_OK)
            return status;
        if (i + 1 < h->n_layers &&
            libqcow_file_set_parent_file(h->files[i], h->files[i + 1], NULL) != 1)
            return WIRE_PARENT_REFUSED;
    }
    return WIRE_OK;
}

static bool buffer_map(helper *h, int fd)
{
    h->buffer =
        mmap(NULL, LIBQCOW_BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return h->buffer != MAP_FAILED;
}

static void reply_send(const wire_reply *reply)
{
    if (send(SOCKET_FD, reply, sizeof *reply, MSG_NOSIGNAL) != (ssize_t)sizeof *reply)
        _exit(1);
}

/* Returns when the helper may serve; else the process ends, with an answer if the client
 * should know the reason. */
static void helper_open(helper *h)
{
    wire_open opening;
    int fds[LIBQCOW_LAYERS_MAX + 1];
    unsigned n = opening_receive(&opening, fds, LIBQCOW_LAYERS_MAX + 1);
    if (n < 2 || opening.n_layers != n - 1 || !buffer_map(h, fds[0]))
        _exit(1);
    h->n_layers = n - 1;
    h->cut = opening.cut;
    h->memory = opening.memory;
    wire_reply reply = {.sequence = opening.sequence};
    if (orphan_watch() && sandbox_prepare(opening.address_space))
        reply.status = layers_open(h, fds + 1, &opening, &reply.value);
    else
        reply.status = WIRE_SANDBOX_FAILED;
    for (unsigned i = 0; i < n; i++)
        close(fds[i]);
    if (reply.status == WIRE_OK && !sandbox_enter())
        reply.status = WIRE_SANDBOX_FAILED;
    explicit_bzero(&opening, sizeof opening);
    reply_send(&reply);
    if (reply.status != WIRE_OK)
        _exit(1);
}

/* ---- serving ---------------------------------------------------------------------- */

/* With a parent, libqcow answers a read that starts in a cluster which the layer lacks
 * wholly from the parent, however far it goes: no read may cross a cluster. */
static bool range_read(const helper *h, uint8_t *buf, uint64_t offset, size_t length)
{
    for (size_t done = 0; done < length;) {
        size_t part = length - done;
        if (h->cut)
            part = MIN(part, h->cut - (offset + done) % h->cut);
        ssize_t got = libqcow_file_read_buffer_at_offset(h->files[0], buf + done, part,
                                                         (off64_t)(offset + done), NULL);
        if (got != (ssize_t)part)
            return false;
        done += part;
    }
    return true;
}

/* libqcow keeps 128 clusters per layer, of up to 2 MiB, and cannot be told otherwise. A
 * read that failed may have failed for want of memory. */
static bool grown_large(helper *h, bool failed)
{
    if (++h->reads % REPLACE_EVERY && !failed)
        return false;
    struct mallinfo2 heap = mallinfo2();
    return heap.uordblks + heap.hblkhd > h->memory;
}

static G_NORETURN void helper_serve(helper *h)
{
    wire_read request;
    for (;;) {
        ssize_t got = recv(SOCKET_FD, &request, sizeof request, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got != (ssize_t)sizeof request || request.length > LIBQCOW_SLOT_BYTES ||
            request.place > LIBQCOW_BUFFER_BYTES - request.length)
            _exit(0);
        uint8_t *buf = h->buffer + request.place;
        wire_reply reply = {.sequence = request.sequence, .status = WIRE_READ_FAILED};
        if (range_read(h, buf, request.offset, request.length)) {
            reply.status = WIRE_OK;
            reply.value = request.length;
        }
        reply.replace = grown_large(h, reply.status != WIRE_OK);
        reply_send(&reply);
    }
}

void libqcow_helper_main(int argc, char **argv)
{
    int type = 0;
    socklen_t length = sizeof type;
    if (argc != 1 || strcmp(argv[0], LIBQCOW_HELPER_NAME) != 0 ||
        getsockopt(SOCKET_FD, SOL_SOCKET, SO_TYPE, &type, &length) < 0 ||
        type != SOCK_SEQPACKET)
        return;
    prctl(PR_SET_NAME, LIBQCOW_HELPER_NAME, 0, 0, 0); /* else the name would be "exe" */
    helper h = {.n_layers = 0};
    helper_open(&h);
    helper_serve(&h);
}
