/*
 * nbd-remote.c: all connections of one image.
 *
 * Only the first connection is made for a request's sake; the others are made in the
 * background when that one has enough to do and the server says that it keeps several
 * consistent. So a server that does not take a second connection costs nothing.
 *
 * What was written: `written` counts acknowledged changes, `flushed` says how many of them a
 * finished flush has covered. A connection that is lost in between may have taken the server,
 * and what it had not on disk, with it: that is one loss, and the flushes that are under way
 * or that come next tell of it, once (W4).
 *
 * A server that stalls has requests in its socket that it carries out when it goes on, after
 * whatever came later over another connection. So the socket of a connection that is given up
 * at a deadline is kept, with its sending half closed: the server reads the end after the last
 * request, and ends the connection when it has done them (nbdkit), or has begun them all
 * (qemu-nbd). Until then something is under way (R5).
 */
#include "formats/nbd-internal.h"
#include "formats/path.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

bool nbd_remote_open(nbd_remote *remote, const char *uri, const char *shown,
                     unsigned timeout_ms, GError **error)
{
    *remote = (nbd_remote){.timeout_ms = timeout_ms};
    g_mutex_init(&remote->lock);
    if (!nbd_address_parse(uri, &remote->address, error))
        return false;
    if (shown) {
        g_free(remote->address.shown);
        remote->address.shown = path_printable(shown);
    }
    struct nbd_handle *handle =
        nbd_handle_connect(&remote->address, timeout_ms, -1, &remote->facts, error);
    if (!handle)
        return false;
    unsigned wanted = remote->facts.many_connections ? NBD_LINKS_MAX : 1;
    for (unsigned i = 0; i < wanted; i++) {
        remote->links[i] = nbd_link_new(remote, i == 0 ? handle : NULL);
        if (!remote->links[i])
            break;
        remote->n_links++;
    }
    if (remote->n_links > 0)
        return true;
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s", remote->address.shown,
                g_strerror(errno));
    nbd_close(handle);
    return false;
}

void nbd_remote_close(nbd_remote *remote)
{
    for (unsigned i = 0; i < NBD_LINKS_MAX; i++)
        nbd_link_free(remote->links[i]);
    while (remote->made_requests) {
        nbd_request *r = remote->made_requests;
        remote->made_requests = r->next_made;
        g_cond_clear(&r->answered);
        g_free(r->memory);
        g_free(r);
    }
    for (unsigned i = 0; remote->draining && i < remote->draining->len; i++)
        close(g_array_index(remote->draining, int, i));
    g_clear_pointer(&remote->draining, g_array_unref);
    nbd_address_clear(&remote->address);
    g_mutex_clear(&remote->lock);
}

/* ---- Requests ------------------------------------------------------------------------ */

static nbd_request *request_new(nbd_remote *remote)
{
    nbd_request *r = g_new0(nbd_request, 1);
    g_cond_init(&r->answered);
    r->next_made = remote->made_requests;
    remote->made_requests = r;
    return r;
}

nbd_request *nbd_remote_get(nbd_remote *remote, size_t bytes)
{
    g_mutex_lock(&remote->lock);
    nbd_request *r = remote->free_requests;
    if (r)
        remote->free_requests = r->next_free;
    else
        r = request_new(remote);
    g_mutex_unlock(&remote->lock);
    if (r->capacity < bytes) {
        g_free(r->memory);
        r->memory = g_malloc(bytes);
        r->capacity = bytes;
    }
    r->flags = 0;
    return r;
}

void nbd_remote_put(nbd_remote *remote, nbd_request *request)
{
    g_mutex_lock(&remote->lock);
    request->next_free = remote->free_requests;
    remote->free_requests = request;
    g_mutex_unlock(&remote->lock);
}

/* ---- Starting and finishing ---------------------------------------------------------- */

/* The connection with the least to do; NULL: none is up. */
static nbd_link *choose(const nbd_remote *remote)
{
    nbd_link *best = NULL, *down = NULL;
    unsigned least = 0;
    for (unsigned i = 0; i < remote->n_links; i++) {
        nbd_link *link = remote->links[i];
        nbd_link_state state = nbd_link_get_state(link);
        unsigned load = nbd_link_get_load(link);
        if (state == NBD_LINK_DOWN)
            down = link;
        if (state != NBD_LINK_UP || (best && load >= least))
            continue;
        best = link;
        least = load;
    }
    if (best && down && least > 0)
        nbd_link_kick(down);
    return best;
}

/* Remembers what a flush covers. */
static int begin_flush(nbd_remote *remote, nbd_request *flush)
{
    g_mutex_lock(&remote->lock);
    bool lost = remote->losses != remote->losses_told;
    flush->losses = remote->losses_told = remote->losses;
    flush->written = remote->written;
    g_mutex_unlock(&remote->lock);
    return lost ? -ENOTCONN : 0;
}

static int end_flush(nbd_remote *remote, const nbd_request *flush)
{
    g_mutex_lock(&remote->lock);
    bool lost = remote->losses != flush->losses;
    if (lost)
        remote->losses_told = remote->losses;
    else
        remote->flushed = MAX(remote->flushed, flush->written);
    g_mutex_unlock(&remote->lock);
    return lost ? -ENOTCONN : 0;
}

int nbd_remote_start(nbd_remote *remote, nbd_request *request)
{
    if (atomic_load(&remote->changed))
        return -EIO;
    int error = request->op == NBD_OP_FLUSH ? begin_flush(remote, request) : 0;
    nbd_link *link = error ? NULL : choose(remote);
    if (error)
        return error;
    error = link ? nbd_link_start(link, request, false) : -EAGAIN;
    return error == -EAGAIN ? nbd_link_start(remote->links[0], request, true) : error;
}

int nbd_remote_finish(nbd_remote *remote, nbd_request *request)
{
    int error = nbd_link_wait(request);
    if (!error && request->op == NBD_OP_FLUSH)
        error = end_flush(remote, request);
    nbd_remote_put(remote, request);
    return error;
}

int nbd_remote_run(nbd_remote *remote, nbd_request *request)
{
    int error = nbd_remote_start(remote, request);
    if (!error)
        return nbd_remote_finish(remote, request);
    nbd_remote_put(remote, request);
    return error;
}

/* ---- Connections that were given up -------------------------------------------------- */

void nbd_remote_drain(nbd_remote *remote, int fd)
{
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (kept < 0)
        return;
    shutdown(kept, SHUT_WR);
    g_mutex_lock(&remote->lock);
    if (!remote->draining)
        remote->draining = g_array_new(FALSE, FALSE, sizeof(int));
    g_array_append_val(remote->draining, kept);
    g_mutex_unlock(&remote->lock);
}

/* Answers are of no interest any more, but must not be in the server's way. */
static bool has_ended(int fd)
{
    char answers[16384];
    ssize_t got;
    unsigned looks = 64; /* a server may talk for ever */
    do
        got = recv(fd, answers, sizeof answers, MSG_DONTWAIT);
    while ((got > 0 && --looks > 0) || (got < 0 && errno == EINTR));
    if (got > 0)
        return false;
    return got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

unsigned nbd_remote_draining(nbd_remote *remote)
{
    unsigned n = 0;
    g_mutex_lock(&remote->lock);
    for (unsigned i = remote->draining ? remote->draining->len : 0; i-- > 0;) {
        int fd = g_array_index(remote->draining, int, i);
        if (!has_ended(fd))
            continue;
        close(fd);
        g_array_remove_index_fast(remote->draining, i);
    }
    n = remote->draining ? remote->draining->len : 0;
    g_mutex_unlock(&remote->lock);
    return n;
}

/* ---- What links tell ----------------------------------------------------------------- */

void nbd_remote_note_written(nbd_remote *remote)
{
    g_mutex_lock(&remote->lock);
    remote->written++;
    g_mutex_unlock(&remote->lock);
}

void nbd_remote_note_loss(nbd_remote *remote)
{
    g_mutex_lock(&remote->lock);
    if (remote->written > remote->flushed) {
        remote->flushed = remote->written;
        remote->losses++;
    }
    g_mutex_unlock(&remote->lock);
}
