/*
 * spare.c: calls that may never return, and those who wait for them no longer than they want.
 *
 * A call goes to a thread of the pool (spare-pool.c). What is not back in time is abandoned:
 * its thread and its memory stay as they are until the call returns, which is when that
 * thread puts them in order. The other way would have been to leave requests behind in
 * io_uring, and was not taken because:
 * - A ring that only its thread may reap (SINGLE_ISSUER, DEFER_TASKRUN) cannot be handed to
 *   another, and any other ring still wants work done on the thread that submitted.
 * - The kernel's own workers belong to the thread that submitted: it cannot end, nor be
 *   joined, before all of them return. Threads of the pool belong to nobody.
 * - Those workers take buffered writes of one inode one after the other, and tell inodes
 *   apart by a hash of 64 values only: one file that hangs stops every 64th other.
 */
#include "formats/spare-internal.h"
#include "formats/uring.h"
#include <errno.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct spare_bounce {
    atomic_uint users;
    alignas(max_align_t) uint8_t bytes[];
};

static __thread bool this_thread_abandoned;

bool io_thread_abandoned(void)
{
    bool abandoned = this_thread_abandoned;
    this_thread_abandoned = false;
    return abandoned;
}

/* ---- Collecting ----------------------------------------------------------------------------- */

void spare_bounce_put(spare_bounce *bounce)
{
    if (bounce && atomic_fetch_sub(&bounce->users, 1) == 1)
        free(bounce);
}

static spare_bounce *bounce_find(const spare_group *group, const spare_call *call)
{
    for (const spare_job *job = group->first; job; job = job->next)
        if (job->bounce && job->home == call->buf && job->call.length == call->length &&
            !job->call.fills)
            return job->bounce;
    return NULL;
}

/* NULL: out of memory. */
static spare_bounce *bounce_get(const spare_group *group, const spare_call *call)
{
    spare_bounce *bounce = call->fills ? NULL : bounce_find(group, call);
    if (bounce) {
        atomic_fetch_add(&bounce->users, 1);
        return bounce;
    }
    bounce = malloc(sizeof *bounce + call->length);
    if (bounce) {
        atomic_init(&bounce->users, 1);
        if (!call->fills)
            memcpy(bounce->bytes, call->buf, call->length);
    }
    return bounce;
}

void spare_add(spare_group *group, const spare_call *call, unsigned timeout_ms,
               int *ret_result)
{
    spare_bounce *bounce = NULL;
    if (call->buf && !call->lent && timeout_ms > 0) {
        bounce = bounce_get(group, call);
        if (!bounce) {
            *ret_result = -ENOMEM;
            return;
        }
    }
    spare_job *job = g_new0(spare_job, 1);
    job->call = *call;
    job->home = call->buf;
    job->bounce = bounce;
    if (bounce)
        job->call.buf = bounce->bytes;
    job->ret_result = ret_result;
    job->timeout_ms = timeout_ms;
    job->group = group;
    job->in_queue.data = job->in_abandoned.data = job;
    if (group->last)
        group->last->next = job;
    else
        group->first = job;
    group->last = job;
    group->count++;
}

/* ---- Waiting; under the lock ------------------------------------------------------------------ */

/* A file on which something hangs is asked for nothing more that may hang: threads that wait
 * for one another's locks would hang one after the other. */
static void job_start(spare_job *job, uint64_t now)
{
    bool hangs = spare_job_begin(job);
    if (job->timeout_ms > 0)
        job->deadline_ns = now + job->timeout_ms * UINT64_C(1000000);
    if (hangs && job->deadline_ns && !job->call.certain)
        spare_job_finish(job, -ETIMEDOUT);
    else
        spare_job_queue(job);
}

/* The time of a job is up: what was not begun never is, the rest is abandoned, and belongs to
 * this group no more. Returns whether it was. */
static bool job_expire(spare_job *job)
{
    if (job->state != SPARE_RUNNING && !job->call.certain) {
        spare_job_drop(job);
        spare_job_finish(job, -ETIMEDOUT);
        return false;
    }
    *job->ret_result = -ETIMEDOUT;
    job->group->unfinished--;
    spare_job_abandon(job);
    this_thread_abandoned = true;
    return true;
}

static void group_expire(spare_group *group, uint64_t now)
{
    for (spare_job **at = &group->first; *at;) {
        spare_job *job = *at, *next = job->next;
        bool late =
            job->state != SPARE_DONE && job->deadline_ns && job->deadline_ns <= now;
        if (late && job_expire(job))
            *at = next;
        else
            at = &job->next;
    }
}

/* 0: never. */
static uint64_t next_deadline(const spare_group *group)
{
    uint64_t next = 0;
    for (const spare_job *job = group->first; job; job = job->next)
        if (job->state != SPARE_DONE && job->deadline_ns &&
            (!next || job->deadline_ns < next))
            next = job->deadline_ns;
    return next;
}

static void group_run(spare_group *group)
{
    uint64_t now = spare_now();
    group->unfinished = group->count;
    for (spare_job *job = group->first; job; job = job->next)
        job_start(job, now);
    spare_pool_start();
    uint64_t deadline = next_deadline(group);
    while (group->unfinished > 0)
        if (spare_wait(&group->done, deadline) == ETIMEDOUT) {
            group_expire(group, spare_now());
            deadline = next_deadline(group);
        }
}

void spare_run(spare_group *group)
{
    if (group->count == 0)
        return;
    spare_cond_init(&group->done);
    spare_lock();
    group_run(group);
    spare_unlock();
    pthread_cond_destroy(&group->done);
    for (spare_job *job = group->first, *next; job; job = next) {
        next = job->next;
        *job->ret_result = job->result;
        if (job->bounce && job->call.fills && job->result == 0)
            memcpy(job->home, job->bounce->bytes, job->call.length);
        spare_bounce_put(job->bounce);
        g_free(job);
    }
    *group = (spare_group){0};
}

int spare_make(const spare_call *call)
{
    spare_group group = {0};
    int result = 0;
    if (io_get_timeout() == 0)
        return call->make(call);
    spare_add(&group, call, io_get_timeout(), &result);
    spare_run(&group);
    return result;
}

static int make_close(const spare_call *call)
{
    close(call->mode);
    return 0;
}

/* Another file may get the number before close returns: it is in no lane of that number. */
void spare_close(int fd)
{
    spare_lock();
    bool later = spare_close_later(fd);
    spare_unlock();
    if (later)
        return;
    const spare_call call = {.make = make_close, .fd = -1, .mode = fd, .certain = true};
    int result = spare_make(&call);
    if (result != 0 && result != -ETIMEDOUT) /* there was no thread */
        make_close(&call);
}
