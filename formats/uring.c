/*
 * uring.c: lists of reads, writes and flushes, worked off by a ring of this thread or without one.
 *
 * Invariant: when io_list_run returns, the kernel has let go of every buffer, and the ring
 * is empty. So a ring carries nothing from one run to the next, and may be thrown away
 * whenever it misbehaves before anything is in flight.
 *
 * With a timeout the ring only does what takes no waiting (RWF_NOWAIT), so that this
 * invariant stands; what is left goes to spare threads. A list that the page cache answers
 * costs the same one io_uring_enter as without a timeout.
 *
 * After a fork the child shares the parent's rings: their memory is the same pages. It must
 * not submit there. A generation that only the fork handler changes tells such rings apart
 * without a system call; the child closes its copy and makes a ring of its own.
 */
#include "formats/uring.h"
#include "formats/file.h"
#include "formats/spare.h"
#include <errno.h>
#include <glib.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#define RING_DEPTH 64u

typedef struct thread_ring {
    struct io_uring ring;
    bool usable; /* false: this thread could not get a ring; it does not try again */
    unsigned generation;
} thread_ring;

static unsigned fork_generation;
static __thread unsigned this_timeout_ms;

void io_set_timeout(unsigned ms)
{
    this_timeout_ms = ms;
}

unsigned io_get_timeout(void)
{
    return this_timeout_ms;
}

static void thread_ring_free(void *data)
{
    thread_ring *r = data;
    if (r->usable)
        io_uring_queue_exit(&r->ring);
    g_free(r);
}

static GPrivate this_ring = G_PRIVATE_INIT(thread_ring_free);

static void after_fork_in_child(void)
{
    fork_generation++;
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

/* The kernel knows ever better ways to leave completions to the one thread that waits for
 * them; older kernels refuse the newer flags with EINVAL. */
static bool ring_init(struct io_uring *ring)
{
    static const unsigned flags[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        IORING_SETUP_COOP_TASKRUN,
        0,
    };
    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        int error = io_uring_queue_init(RING_DEPTH, ring, flags[i]);
        if (error != -EINVAL)
            return error == 0;
    }
    return false;
}

/* NULL: do without. */
static struct io_uring *ring_get(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    thread_ring *r = g_private_get(&this_ring);
    if (!r || r->generation != fork_generation) {
        pthread_once(&once, watch_forks);
        r = g_new0(thread_ring, 1);
        r->generation = fork_generation;
        r->usable = ring_init(&r->ring);
        g_private_replace(&this_ring, r);
    }
    return r->usable ? &r->ring : NULL;
}

static void ring_drop(void)
{
    g_private_replace(&this_ring, NULL);
}

static void run_here(io_op *op, size_t done)
{
    if (op->flush) {
        op->result = file_sync(op->fd);
        return;
    }
    uint8_t *buf = (uint8_t *)op->buf + done;
    size_t length = op->length - done;
    if (op->write)
        op->result = file_write_full(op->fd, buf, length, op->offset + done);
    else
        op->result = file_read_exact(op->fd, buf, length, op->offset + done);
}

/* A transfer that the ring did not do wholly is short at the end of a file, interrupted, or
 * torn by an error, or its errno means something else to us: the plain loop knows what to do
 * with each of these. */
static void complete(io_op *op, int transferred)
{
    if (transferred >= 0 && (size_t)transferred == op->length)
        op->result = 0;
    else if (transferred >= 0 || transferred == -EAGAIN || transferred == -EINTR ||
             transferred == -EBADMSG)
        run_here(op, transferred > 0 ? (size_t)transferred : 0);
    else
        op->result = transferred;
}

/* Likewise, but the rest may have to wait. Until then `result` is 1 + how much is done. */
static void complete_some(io_op *op, int transferred)
{
    bool all = transferred >= 0 && (size_t)transferred == op->length;
    op->result = all ? 0 : 1 + MAX(transferred, 0);
}

typedef void complete_fn(io_op *op, int transferred);

static unsigned reap(struct io_uring *ring, complete_fn *fn)
{
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    io_uring_for_each_cqe(ring, head, cqe)
    {
        fn(io_uring_cqe_get_data(cqe), cqe->res);
        seen++;
    }
    io_uring_cq_advance(ring, seen);
    return seen;
}

static void queue(struct io_uring *ring, io_op *op, int flags)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    if (op->flush)
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
    else if (op->write)
        io_uring_prep_write(sqe, op->fd, op->buf, (unsigned)op->length, op->offset);
    else
        io_uring_prep_read(sqe, op->fd, op->buf, (unsigned)op->length, op->offset);
    if (flags)
        sqe->rw_flags = flags;
    io_uring_sqe_set_data(sqe, op);
}

/* Waits for what is queued: `count` ops. Returns how many were completed: all of them, or
 * fewer when the ring refused the rest before it took any of it. */
static size_t run_queued(struct io_uring *ring, size_t count, complete_fn *fn)
{
    size_t done = 0;
    while (done < count) {
        int rc = io_uring_submit_and_wait(ring, (unsigned)(count - done));
        done += reap(ring, fn);
        if (rc >= 0 || rc == -EINTR)
            continue;
        size_t refused = io_uring_sq_ready(ring);
        if (done + refused == count)
            break;
        /* The kernel still holds buffers of this list. Short of memory it says so here and
         * gets on; any other error would mean that the ring is not ours any more, and
         * returning would let the kernel write into memory that is used for other things. */
        if (rc != -EAGAIN && rc != -EBUSY && rc != -ENOMEM)
            abort();
    }
    return done;
}

/* ---- Without a deadline ---------------------------------------------------------------- */

static void run_patiently(io_list *list)
{
    size_t at = 0;
    struct io_uring *ring = list->count > 1 ? ring_get() : NULL;
    while (ring && at < list->count) {
        size_t batch = MIN(list->count - at, RING_DEPTH);
        for (size_t i = 0; i < batch; i++)
            queue(ring, &list->ops[at + i], 0);
        size_t done = run_queued(ring, batch, complete);
        at += done;
        if (done < batch) {
            ring_drop();
            ring = NULL;
        }
    }
    for (; at < list->count; at++)
        run_here(&list->ops[at], 0);
}

/* ---- With one -------------------------------------------------------------------------- */

/* Leaves 0 or 1 + how much is done in the results. */
static void run_without_waiting(io_list *list)
{
    struct io_uring *ring = list->count > 1 ? ring_get() : NULL;
    unsigned queued = 0;
    for (size_t i = 0; i < list->count; i++) {
        io_op *op = &list->ops[i];
        op->result = 1;
        if (op->flush)
            continue;
        if (!ring) {
            size_t done = file_try(op->fd, op->buf, op->length, op->offset, op->write);
            complete_some(op, (int)done);
            continue;
        }
        queue(ring, op, RWF_NOWAIT);
        if (++queued < RING_DEPTH)
            continue;
        if (run_queued(ring, queued, complete_some) < queued) {
            ring_drop();
            ring = NULL;
        }
        queued = 0;
    }
    if (queued > 0 && run_queued(ring, queued, complete_some) < queued)
        ring_drop();
}

static int make_op(const spare_call *call)
{
    io_op op = {.fd = call->fd,
                .write = !call->fills,
                .flush = !call->buf,
                .buf = call->buf,
                .length = call->length,
                .offset = call->offset};
    run_here(&op, 0);
    return op.result;
}

static void add_spare(spare_group *group, io_op *op, bool lent)
{
    size_t done = (size_t)op->result - 1;
    spare_call call = {.make = make_op, .fd = op->fd, .lent = lent};
    if (!op->flush) {
        call.buf = (uint8_t *)op->buf + done;
        call.length = op->length - done;
        call.offset = op->offset + done;
        call.fills = !op->write;
    }
    spare_add(group, &call, op->timeout_ms ? op->timeout_ms : this_timeout_ms,
              &op->result);
}

static void run_in_time(io_list *list)
{
    spare_group group = {0};
    run_without_waiting(list);
    for (size_t i = 0; i < list->count; i++)
        if (list->ops[i].result > 0)
            add_spare(&group, &list->ops[i], list->lends);
    spare_run(&group);
}

static bool has_deadline(const io_list *list)
{
    bool any = this_timeout_ms > 0;
    for (size_t i = 0; i < list->count && !any; i++)
        any = list->ops[i].timeout_ms > 0;
    return any;
}

void io_list_run(io_list *list)
{
    if (has_deadline(list))
        run_in_time(list);
    else
        run_patiently(list);
}

int io_list_error(const io_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->ops[i].result)
            return list->ops[i].result;
    return 0;
}

void io_list_clear(io_list *list)
{
    list->count = 0;
}

void io_list_free(io_list *list)
{
    g_free(list->ops);
    *list = (io_list){0};
}

void io_list_destroy(void *list)
{
    io_list_free(list);
    g_free(list);
}

io_list *io_list_own(GPrivate *key)
{
    io_list *list = g_private_get(key);
    if (!list) {
        list = g_new0(io_list, 1);
        g_private_set(key, list);
    }
    io_list_clear(list);
    return list;
}

void io_list_add(io_list *list, io_op op)
{
    if (list->count == list->capacity) {
        list->capacity = MAX(16, list->capacity * 2);
        list->ops = g_renew(io_op, list->ops, list->capacity);
    }
    list->ops[list->count++] = op;
}
