/*
 * nbd-link.c: one connection to a server.
 *
 * A request is sent by the thread that has it, as far as the socket takes it; the link's own
 * thread sends the rest and receives the answers. It does nothing else: deadlines are kept by
 * those who wait.
 *
 * Invariants, all under the link's lock:
 * - libnbd is called, and so calls us back, under the lock, once the handle is connected.
 *   Before that it is the thread's own, without the lock. The lock is never held during poll.
 * - `under_way` has every request that is not answered. In UP libnbd may know its memory; in
 *   CONNECTING nobody does. Closing the handle therefore frees all memory at once, and is
 *   what happens at a deadline (nbd.h).
 * - A closed handle's descriptor may be somebody else's by the time that poll returns. The
 *   generation tells, and nothing is done then.
 */
#include "formats/nbd-internal.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* The pause after a connection that could not be made, or did not serve. */
#define PAUSE_FIRST_US 250000
#define PAUSE_MAX_US   30000000

/* Zeroing has no data to be split by, but takes a server time, of which one command has
 * only so much. A multiple of every smallest block. */
#define ZERO_MAX (128u << 20)

struct nbd_link {
    nbd_remote *remote;
    GMutex lock;
    struct nbd_handle *handle; /* UP: not NULL */
    nbd_link_state state;
    unsigned generation; /* of the handle */
    unsigned polled;     /* directions for which the thread polls; 0: it does not */
    nbd_request *under_way;
    unsigned n_under_way;
    bool served;       /* this connection has answered something */
    gint64 not_before; /* DOWN: when the next connection may be tried */
    gint64 pause;      /* the last one */
    bool stop;
    int wake_fd;
    GThread *thread; /* NULL until the first request */
    /* For looking at without the lock: */
    atomic_int seen_state;
    atomic_uint seen_load;
};

static void set_state(nbd_link *link, nbd_link_state state)
{
    link->state = state;
    atomic_store(&link->seen_state, (int)state);
}

static void wake(nbd_link *link)
{
    eventfd_write(link->wake_fd, 1);
}

/* ---- Requests under way -------------------------------------------------------------- */

static void add_request(nbd_link *link, nbd_request *r)
{
    r->before = NULL;
    r->next = link->under_way;
    if (r->next)
        r->next->before = r;
    link->under_way = r;
    atomic_store(&link->seen_load, ++link->n_under_way);
}

static void remove_request(nbd_link *link, nbd_request *r)
{
    if (r->next)
        r->next->before = r->before;
    if (r->before)
        r->before->next = r->next;
    else
        link->under_way = r->next;
    atomic_store(&link->seen_load, --link->n_under_way);
}

/* Its last command was answered, or never will be. */
static void end_request(nbd_link *link, nbd_request *r)
{
    r->pending = 0;
    remove_request(link, r);
    if (r->op == NBD_OP_READ && !r->error && r->seen != r->length)
        r->error = -EIO;
    bool change = r->op == NBD_OP_WRITE || r->op == NBD_OP_ZERO;
    if (change && !r->error && !(r->flags & LIBNBD_CMD_FLAG_FUA))
        nbd_remote_note_written(link->remote);
    g_cond_signal(&r->answered);
}

static void end_all(nbd_link *link, int error)
{
    while (link->under_way) {
        nbd_request *r = link->under_way;
        r->error = r->error ? r->error : error;
        end_request(link, r);
    }
}

/* No connection before the pause is over. It grows until a connection serves. */
static void start_pause(nbd_link *link, bool at_once)
{
    link->pause = at_once ? 0 : CLAMP(link->pause * 2, PAUSE_FIRST_US, PAUSE_MAX_US);
    link->not_before = g_get_monotonic_time() + link->pause;
}

/* The connection is given up, and libnbd forgets all memory that it was given. */
static void drop(nbd_link *link, int error, bool may_come_back)
{
    if (link->served)
        link->pause = 0;
    nbd_close(link->handle);
    link->handle = NULL;
    link->generation++;
    set_state(link, NBD_LINK_DOWN);
    start_pause(link, may_come_back && link->served);
    end_all(link, error);
    nbd_remote_note_loss(link->remote);
    wake(link);
}

static bool is_broken(nbd_link *link)
{
    return nbd_aio_is_dead(link->handle) > 0 || nbd_aio_is_closed(link->handle) > 0;
}

/* ---- What libnbd calls --------------------------------------------------------------- */

/* Our requests are right, so what a server says against them is its failure; -EINVAL and
 * others would mean something else to our callers. */
static int error_of(const nbd_request *r, int error)
{
    if (error == ENOSPC || error == EDQUOT)
        return -ENOSPC;
    return error == ENOTSUP && r->op == NBD_OP_ZERO ? -ENOTSUP : -EIO;
}

/* libnbd does not mind a server that leaves out parts of a read. */
static int on_chunk(void *opaque, const void *data G_GNUC_UNUSED, size_t length,
                    uint64_t offset G_GNUC_UNUSED, unsigned status,
                    int *error G_GNUC_UNUSED)
{
    nbd_request *r = opaque;
    if (status != LIBNBD_READ_ERROR)
        r->seen += length;
    return 0;
}

static int on_answer(void *opaque, int *error)
{
    nbd_request *r = opaque;
    if (r->op == NBD_OP_MAP && *error && *error != ENOTCONN)
        r->extent = 0; /* not known */
    else if (*error && !r->error)
        r->error = error_of(r, *error);
    r->link->served |= *error != ENOTCONN;
    if (--r->pending == 0)
        end_request(r->link, r);
    return 1; /* libnbd forgets the command */
}

/* The first extent, and those of the same kind that follow. Their sum may be absurd. */
static int on_extents(void *opaque, const char *context, uint64_t offset G_GNUC_UNUSED,
                      uint32_t *entries, size_t n_entries, int *error G_GNUC_UNUSED)
{
    enum { READS_AS_ZERO = 2 };
    nbd_request *r = opaque;
    if (g_strcmp0(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || n_entries < 2)
        return 0;
    r->zero = entries[1] & READS_AS_ZERO;
    r->extent = 0;
    for (size_t i = 0; i + 1 < n_entries && r->extent < r->length; i += 2) {
        bool zero = entries[i + 1] & READS_AS_ZERO;
        if (zero != r->zero)
            break;
        r->extent += entries[i];
    }
    r->extent = MIN(r->extent, r->length);
    return 0;
}

/* ---- Sending ------------------------------------------------------------------------- */

static int64_t issue(struct nbd_handle *h, nbd_request *r, uint64_t done, uint64_t length)
{
    nbd_completion_callback answer = {.callback = on_answer, .user_data = r};
    nbd_chunk_callback chunk = {.callback = on_chunk, .user_data = r};
    nbd_extent_callback extents = {.callback = on_extents, .user_data = r};
    uint64_t offset = r->offset + done;
    switch (r->op) {
    case NBD_OP_READ:
        return nbd_aio_pread_structured(h, r->buf + done, length, offset, chunk, answer,
                                        r->flags);
    case NBD_OP_WRITE:
        return nbd_aio_pwrite(h, r->buf + done, length, offset, answer, r->flags);
    case NBD_OP_ZERO:
        return nbd_aio_zero(h, length, offset, answer, r->flags);
    case NBD_OP_FLUSH:
        return nbd_aio_flush(h, answer, 0);
    case NBD_OP_MAP:
        return nbd_aio_block_status(h, length, offset, extents, answer, r->flags);
    }
    return -1;
}

static uint64_t largest_command(const nbd_link *link, const nbd_request *r)
{
    bool data = r->op == NBD_OP_READ || r->op == NBD_OP_WRITE;
    return data ? link->remote->facts.block_max : ZERO_MAX;
}

/* All commands of a request. Some may be answered before this returns, and the connection
 * may break; whoever waits finds out. */
static void send_request(nbd_link *link, nbd_request *r)
{
    uint64_t largest = largest_command(link, r);
    r->pending = 1;
    r->seen = 0;
    for (uint64_t done = 0; !r->error && (done < r->length || r->op == NBD_OP_FLUSH);) {
        uint64_t part = MIN(r->length - done, largest);
        r->pending++;
        if (issue(link->handle, r, done, part) < 0) {
            r->pending--;
            r->error = -EIO;
        }
        done += part;
        if (r->op == NBD_OP_FLUSH)
            break;
    }
    if (--r->pending == 0)
        end_request(link, r);
    if (is_broken(link))
        drop(link, -EIO, true);
    else if (link->polled && nbd_aio_get_direction(link->handle) & ~link->polled)
        wake(link);
}

/* ---- The thread ---------------------------------------------------------------------- */

/* The lock is held before and after, not meanwhile. */
static void connect_now(nbd_link *link)
{
    nbd_facts facts = {0};
    eventfd_t ignored;
    const nbd_remote *remote = link->remote;
    gint64 deadline = g_get_monotonic_time() + (gint64)remote->timeout_ms * 1000;
    eventfd_read(link->wake_fd, &ignored); /* from here on only the end wakes us */
    g_mutex_unlock(&link->lock);
    struct nbd_handle *handle = nbd_handle_connect(&remote->address, remote->timeout_ms,
                                                   link->wake_fd, &facts, NULL);
    g_mutex_lock(&link->lock);
    if (handle && !nbd_facts_equal(&facts, &remote->facts)) {
        atomic_store(&link->remote->changed, true);
        g_clear_pointer(&handle, nbd_close);
    }
    if (!handle) {
        set_state(link, NBD_LINK_DOWN);
        start_pause(link, false);
        end_all(link, atomic_load(&remote->changed)        ? -EIO
                      : g_get_monotonic_time() >= deadline ? -ETIMEDOUT
                                                           : -ENOTCONN);
        return;
    }
    link->handle = handle;
    link->generation++;
    link->served = false;
    set_state(link, NBD_LINK_UP);
    nbd_request *waiting = link->under_way;
    while (waiting && link->state == NBD_LINK_UP) {
        nbd_request *next = waiting->next;
        send_request(link, waiting);
        waiting = next;
    }
}

static void move_on(nbd_link *link, short events)
{
    unsigned direction = nbd_aio_get_direction(link->handle);
    if (direction & LIBNBD_AIO_DIRECTION_READ && events & (POLLIN | POLLHUP | POLLERR))
        nbd_aio_notify_read(link->handle);
    else if (direction & LIBNBD_AIO_DIRECTION_WRITE && events & (POLLOUT | POLLERR))
        nbd_aio_notify_write(link->handle);
    if (is_broken(link))
        drop(link, -EIO, true);
}

/* Waits for the socket or for a wake-up. The lock is held before and after. */
static void wait_for_news(nbd_link *link)
{
    bool up = link->state == NBD_LINK_UP;
    unsigned generation = link->generation;
    link->polled = up ? nbd_aio_get_direction(link->handle) : 0;
    bool in = link->polled & LIBNBD_AIO_DIRECTION_READ;
    bool out = link->polled & LIBNBD_AIO_DIRECTION_WRITE;
    struct pollfd entries[] = {
        {.fd = link->wake_fd, .events = POLLIN},
        {.fd = up ? nbd_aio_get_fd(link->handle) : -1,
         .events = (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0))},
    };
    g_mutex_unlock(&link->lock);
    poll(entries, G_N_ELEMENTS(entries), -1);
    eventfd_t ignored;
    if (entries[0].revents)
        eventfd_read(link->wake_fd, &ignored);
    g_mutex_lock(&link->lock);
    link->polled = 0;
    if (up && generation == link->generation && entries[1].revents)
        move_on(link, entries[1].revents);
}

static void *link_thread(void *opaque)
{
    nbd_link *link = opaque;
    g_mutex_lock(&link->lock);
    while (!link->stop) {
        if (link->state == NBD_LINK_CONNECTING)
            connect_now(link);
        else
            wait_for_news(link);
    }
    g_mutex_unlock(&link->lock);
    return NULL;
}

/* Signals are for the threads that expect them. */
static bool ensure_thread(nbd_link *link)
{
    sigset_t all, before;
    if (link->thread)
        return true;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    link->thread = g_thread_try_new("nbd", link_thread, link, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return link->thread;
}

/* ---- The interface ------------------------------------------------------------------- */

static bool may_connect(const nbd_link *link)
{
    return link->state == NBD_LINK_DOWN && g_get_monotonic_time() >= link->not_before;
}

static void start_connecting(nbd_link *link)
{
    set_state(link, NBD_LINK_CONNECTING);
    wake(link);
}

void nbd_link_kick(nbd_link *link)
{
    g_mutex_lock(&link->lock);
    if (may_connect(link) && ensure_thread(link))
        start_connecting(link);
    g_mutex_unlock(&link->lock);
}

int nbd_link_start(nbd_link *link, nbd_request *request, bool connect)
{
    int error = 0;
    g_mutex_lock(&link->lock);
    if (link->state != NBD_LINK_UP && !connect)
        error = -EAGAIN;
    else if (link->state == NBD_LINK_DOWN && !may_connect(link))
        error = -ENOTCONN;
    else if (!ensure_thread(link))
        error = -ENOMEM;
    if (!error) {
        request->link = link;
        request->error = 0;
        request->pending = 1;
        request->deadline =
            g_get_monotonic_time() + (gint64)link->remote->timeout_ms * 1000;
        add_request(link, request);
        if (link->state == NBD_LINK_UP)
            send_request(link, request);
        else if (link->state == NBD_LINK_DOWN)
            start_connecting(link);
    }
    g_mutex_unlock(&link->lock);
    return error;
}

/* The lock is held. */
static void time_out(nbd_link *link, nbd_request *r)
{
    r->error = -ETIMEDOUT;
    if (link->state == NBD_LINK_UP) {
        nbd_remote_drain(link->remote, nbd_aio_get_fd(link->handle));
        drop(link, -EIO, false);
    } else {
        end_request(link, r);
    }
}

int nbd_link_wait(nbd_request *request)
{
    nbd_link *link = request->link;
    g_mutex_lock(&link->lock);
    while (request->pending > 0)
        if (!g_cond_wait_until(&request->answered, &link->lock, request->deadline) &&
            request->pending > 0)
            time_out(link, request);
    g_mutex_unlock(&link->lock);
    return request->error;
}

nbd_link_state nbd_link_get_state(nbd_link *link)
{
    return (nbd_link_state)atomic_load(&link->seen_state);
}

unsigned nbd_link_get_load(nbd_link *link)
{
    return atomic_load(&link->seen_load);
}

nbd_link *nbd_link_new(nbd_remote *remote, struct nbd_handle *handle)
{
    nbd_link *link = g_new0(nbd_link, 1);
    link->remote = remote;
    link->handle = handle;
    link->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (link->wake_fd < 0) {
        g_free(link);
        return NULL;
    }
    g_mutex_init(&link->lock);
    set_state(link, handle ? NBD_LINK_UP : NBD_LINK_DOWN);
    return link;
}

void nbd_link_free(nbd_link *link)
{
    if (!link)
        return;
    g_mutex_lock(&link->lock);
    link->stop = true;
    wake(link);
    g_mutex_unlock(&link->lock);
    if (link->thread)
        g_thread_join(link->thread);
    if (link->handle) {
        nbd_aio_disconnect(link->handle, 0); /* as far as the socket takes it */
        nbd_close(link->handle);
    }
    end_all(link, -EIO);
    close(link->wake_fd);
    g_mutex_clear(&link->lock);
    g_free(link);
}
