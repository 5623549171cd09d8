/*
 * spare.c: calls that may never return.
 *
 * A call goes to a thread of the pool, and whoever wants it waits for the answer no longer
 * than its time. What is not back by then is abandoned: thread, memory and count stay as
 * they are until the call returns, which is when the thread puts them in order. Measured
 * against rings of io_uring whose requests are left behind, which was the other way:
 *
 * - A ring that only its thread may reap (SINGLE_ISSUER, DEFER_TASKRUN) cannot be handed to
 *   another, and any other ring still wants task work done on the thread that submitted.
 * - The kernel's own workers belong to the thread that submitted: it cannot end, nor be
 *   joined, before all of them return. Pool threads belong to nobody.
 * - Those workers take buffered writes of one inode one after the other, and tell inodes
 *   apart by a hash of 64 values only: one file that hangs stops every 64th other.
 *
 * Each descriptor has a lane, in which LANE_MAX calls at most are being made: a file that
 * hangs takes so many threads, and no thread that a call of another file waits for. Lanes
 * exist while there is something in them.
 *
 * Invariants, under the lock
 * - A job is QUEUED (in its lane), READY (in the pool's list), RUNNING, DONE or ABANDONED.
 *   `active` of a lane counts what is READY or RUNNING or ABANDONED.
 * - QUEUED, READY and DONE jobs are their group's; so are RUNNING ones, but for `bytes`, which
 *   the call uses. An ABANDONED one is its thread's: its group may be gone.
 * - The list of the abandoned is in the order of their numbers. Memory that is freed later
 *   waits for all whose number is lower than its own.
 *
 * A forked child has none of the threads, and forgets what they were about.
 */
#include "formats/spare.h"
#include "formats/uring.h"
#include <errno.h>
#include <glib.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LANE_MAX     32u
#define IDLE_SECONDS 10
#define STACK_BYTES  ((size_t)512 << 10)

/* What a call reads or fills in place of its caller's memory. Writes of the same bytes share
 * it. */
typedef struct bounce {
    atomic_uint users;
    uint8_t bytes[];
} bounce;

typedef enum job_state { QUEUED, READY, RUNNING, DONE, ABANDONED } job_state;

typedef struct lane lane;

struct spare_job {
    spare_call call; /* buf: the bounce's, if there is one */
    bounce *bytes;
    void *home; /* the caller's memory */
    int *ret_result;
    int result;
    unsigned timeout_ms;
    uint64_t deadline_ns; /* 0: none */
    spare_job *next;      /* of the group */
    spare_group *group;
    job_state state;
    lane *lane;
    uint64_t number;  /* ABANDONED */
    GList in_a_queue; /* its lane's, the pool's, or that of the abandoned */
};

struct lane {
    int fd;
    unsigned active, abandoned;
    GQueue queued;
};

typedef struct later {
    void *memory;
    void (*free_fn)(void *);
    uint64_t number;
} later;

typedef struct spare_pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* there is something ready */
    unsigned idle;       /* threads that wait for work */
    unsigned threads;
    GHashTable *lanes; /* by descriptor */
    GQueue ready;
    GQueue abandoned;
    GQueue freed_later; /* of later, by number */
    uint64_t next_number;
} spare_pool;

static spare_pool pool;
static __thread bool this_thread_abandoned;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

/* ETIMEDOUT, or 0. */
static int cond_wait_until(pthread_cond_t *cond, uint64_t deadline_ns)
{
    struct timespec until = {(time_t)(deadline_ns / 1000000000u),
                             (long)(deadline_ns % 1000000000u)};
    return deadline_ns ? pthread_cond_timedwait(cond, &pool.lock, &until)
                       : pthread_cond_wait(cond, &pool.lock);
}

static void pool_init(void)
{
    pool = (spare_pool){0};
    pthread_mutex_init(&pool.lock, NULL);
    cond_init(&pool.work);
}

static void pool_init_once(void)
{
    pool_init();
    pthread_atfork(NULL, NULL, pool_init);
}

static void pool_lock(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, pool_init_once);
    pthread_mutex_lock(&pool.lock);
}

/* ---- Lanes, under the lock ------------------------------------------------------------------- */

/* NULL: there is nothing in it. */
static lane *lane_find(int fd)
{
    return pool.lanes ? g_hash_table_lookup(pool.lanes, GINT_TO_POINTER(fd)) : NULL;
}

static lane *lane_get(int fd)
{
    if (!pool.lanes)
        pool.lanes = g_hash_table_new(NULL, NULL);
    lane *l = lane_find(fd);
    if (!l) {
        l = g_new0(lane, 1);
        l->fd = fd;
        g_hash_table_insert(pool.lanes, GINT_TO_POINTER(fd), l);
    }
    return l;
}

static void lane_put(lane *l)
{
    if (l->active > 0 || l->queued.length > 0)
        return;
    g_hash_table_remove(pool.lanes, GINT_TO_POINTER(l->fd));
    g_free(l);
}

static void job_make_ready(spare_job *job)
{
    job->state = READY;
    job->lane->active++;
    g_queue_push_tail_link(&pool.ready, &job->in_a_queue);
}

/* A call of this lane has ended. */
static void lane_leave(lane *l)
{
    l->active--;
    GList *link = l->queued.length > 0 ? g_queue_pop_head_link(&l->queued) : NULL;
    if (link)
        job_make_ready(link->data);
    lane_put(l);
}

/* ---- Jobs --------------------------------------------------------------------------------- */

static void bounce_put(bounce *b)
{
    if (b && atomic_fetch_sub(&b->users, 1) == 1)
        free(b);
}

static bounce *bounce_find(const spare_group *group, const spare_call *call)
{
    for (const spare_job *job = group->first; job; job = job->next)
        if (job->bytes && job->home == call->buf && job->call.length == call->length &&
            !job->call.fills)
            return job->bytes;
    return NULL;
}

static bounce *bounce_get(const spare_group *group, const spare_call *call)
{
    bounce *b = call->fills ? NULL : bounce_find(group, call);
    if (b) {
        atomic_fetch_add(&b->users, 1);
        return b;
    }
    b = malloc(sizeof *b + call->length);
    if (b) {
        atomic_init(&b->users, 1);
        if (!call->fills)
            memcpy(b->bytes, call->buf, call->length);
    }
    return b;
}

static void job_free(spare_job *job)
{
    bounce_put(job->bytes);
    g_free(job);
}

void spare_add(spare_group *group, const spare_call *call, unsigned timeout_ms,
               int *ret_result)
{
    bounce *bytes = NULL;
    if (call->buf && !call->lent && timeout_ms > 0) {
        bytes = bounce_get(group, call);
        if (!bytes) {
            *ret_result = -ENOMEM;
            return;
        }
    }
    spare_job *job = g_new0(spare_job, 1);
    job->call = *call;
    job->home = call->buf;
    job->bytes = bytes;
    if (bytes)
        job->call.buf = bytes->bytes;
    job->ret_result = ret_result;
    job->timeout_ms = timeout_ms;
    job->group = group;
    job->in_a_queue.data = job;
    if (group->last)
        group->last->next = job;
    else
        group->first = job;
    group->last = job;
    group->count++;
}

/* ---- Threads of the pool ------------------------------------------------------------------- */

/* Takes what has nothing to wait for any more. */
static GList *take_freeable(void)
{
    GList *list = NULL;
    const spare_job *oldest = g_queue_peek_head(&pool.abandoned);
    const later *l;
    while ((l = g_queue_peek_head(&pool.freed_later)) &&
           (!oldest || oldest->number >= l->number))
        list = g_list_concat(list, g_queue_pop_head_link(&pool.freed_later));
    return list;
}

static void free_all(GList *list)
{
    for (GList *link = list; link; link = link->next) {
        later *l = link->data;
        l->free_fn(l->memory);
        g_free(l);
    }
    g_list_free(list);
}

/* Under the lock. Returns what the caller frees without it. */
static GList *job_returned(spare_job *job)
{
    GList *freeable = NULL;
    lane *l = job->lane;
    if (job->state == ABANDONED) {
        g_queue_unlink(&pool.abandoned, &job->in_a_queue);
        l->abandoned--;
        job_free(job);
        freeable = take_freeable();
    } else {
        job->state = DONE;
        if (--job->group->unfinished == 0)
            pthread_cond_signal(&job->group->done);
    }
    lane_leave(l);
    return freeable;
}

/* Under the lock; NULL: there has been nothing to do for a long time. */
static spare_job *take_ready(void)
{
    uint64_t until = now_ns() + IDLE_SECONDS * UINT64_C(1000000000);
    int timed_out = 0;
    pool.idle++;
    while (pool.ready.length == 0 && !timed_out)
        timed_out = cond_wait_until(&pool.work, until);
    pool.idle--;
    GList *link = g_queue_pop_head_link(&pool.ready);
    return link ? link->data : NULL;
}

static void *pool_thread(void *unused)
{
    (void)unused;
    spare_job *job;
    pool_lock();
    while ((job = take_ready())) {
        job->state = RUNNING;
        pthread_mutex_unlock(&pool.lock);
        int result = job->call.make(&job->call);
        pool_lock();
        job->result = result;
        GList *freeable = job_returned(job);
        if (freeable) {
            pthread_mutex_unlock(&pool.lock);
            free_all(freeable);
            pool_lock();
        }
    }
    pool.threads--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* Under the lock. 0 or -errno. */
static int start_thread(void)
{
    sigset_t all, old;
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&thread, &attr, pool_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    pool.threads += error == 0;
    return -error;
}

/* ---- Groups ------------------------------------------------------------------------------- */

/* Under the lock. */
static void job_finish(spare_job *job, int result)
{
    job->state = DONE;
    job->result = result;
    job->group->unfinished--;
}

/* A file on which something hangs is asked for nothing more that may hang: threads that wait
 * for one another's locks would hang one after the other. */
static void job_start(spare_job *job, uint64_t now)
{
    lane *l = job->lane = lane_get(job->call.fd);
    if (job->timeout_ms > 0) {
        job->deadline_ns = now + job->timeout_ms * UINT64_C(1000000);
        if (l->abandoned > 0) {
            job_finish(job, -ETIMEDOUT);
            return;
        }
    }
    if (l->active < LANE_MAX) {
        job_make_ready(job);
    } else {
        job->state = QUEUED;
        g_queue_push_tail_link(&l->queued, &job->in_a_queue);
    }
}

/* Without any thread at all what is ready would never be made. */
static void refuse_ready(int error)
{
    GList *link;
    while ((link = g_queue_pop_head_link(&pool.ready))) {
        spare_job *job = link->data;
        job_finish(job, error);
        if (job->group->unfinished == 0)
            pthread_cond_signal(&job->group->done);
        lane_leave(job->lane);
    }
}

static void group_start(spare_group *group)
{
    uint64_t now = now_ns();
    group->unfinished = group->count;
    for (spare_job *job = group->first; job; job = job->next)
        job_start(job, now);
    unsigned wake = MIN(pool.ready.length, pool.idle);
    int error = 0;
    for (unsigned i = pool.idle; i < pool.ready.length && !error; i++)
        error = start_thread();
    if (error && pool.threads == 0)
        refuse_ready(error);
    for (unsigned i = 0; i < wake; i++)
        pthread_cond_signal(&pool.work);
}

static void job_abandon(spare_job *job)
{
    job->state = ABANDONED;
    job->number = pool.next_number++;
    job->lane->abandoned++;
    g_queue_push_tail_link(&pool.abandoned, &job->in_a_queue);
    this_thread_abandoned = true;
}

/* The time of a job is up: what was not begun never is, the rest is abandoned, and belongs to
 * this group no more. Returns whether it was. */
static bool job_expire(spare_job *job)
{
    lane *l = job->lane;
    if (job->state == QUEUED) {
        g_queue_unlink(&l->queued, &job->in_a_queue);
        lane_put(l);
    } else if (job->state == READY) {
        g_queue_unlink(&pool.ready, &job->in_a_queue);
        lane_leave(l);
    }
    if (job->state != RUNNING) {
        job_finish(job, -ETIMEDOUT);
        return false;
    }
    *job->ret_result = -ETIMEDOUT;
    job->group->unfinished--;
    job_abandon(job);
    return true;
}

static void group_expire(spare_group *group, uint64_t now)
{
    for (spare_job **at = &group->first; *at;) {
        spare_job *job = *at, *next = job->next;
        bool late = job->state != DONE && job->deadline_ns && job->deadline_ns <= now;
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
        if (job->state != DONE && job->deadline_ns && (!next || job->deadline_ns < next))
            next = job->deadline_ns;
    return next;
}

static void group_wait(spare_group *group)
{
    uint64_t deadline = next_deadline(group);
    while (group->unfinished > 0)
        if (cond_wait_until(&group->done, deadline) == ETIMEDOUT) {
            group_expire(group, now_ns());
            deadline = next_deadline(group);
        }
}

void spare_run(spare_group *group)
{
    if (group->count == 0)
        return;
    cond_init(&group->done);
    pool_lock();
    group_start(group);
    group_wait(group);
    pthread_mutex_unlock(&pool.lock);
    pthread_cond_destroy(&group->done);
    for (spare_job *job = group->first, *next; job; job = next) {
        next = job->next;
        *job->ret_result = job->result;
        if (job->bytes && job->call.fills && job->result == 0)
            memcpy(job->home, job->bytes->bytes, job->call.length);
        job_free(job);
    }
    *group = (spare_group){0};
}

int spare_make(const spare_call *call)
{
    spare_group group = {0};
    int result = 0;
    spare_add(&group, call, io_get_timeout(), &result);
    spare_run(&group);
    return result;
}

/* ---- What uring.h tells of ------------------------------------------------------------------- */

unsigned io_abandoned(int fd)
{
    pool_lock();
    const lane *l = lane_find(fd);
    unsigned count = l ? l->abandoned : 0;
    pthread_mutex_unlock(&pool.lock);
    return count;
}

bool io_thread_abandoned(void)
{
    bool abandoned = this_thread_abandoned;
    this_thread_abandoned = false;
    return abandoned;
}

void io_free_later(void *memory, void (*free_fn)(void *))
{
    pool_lock();
    bool now = pool.abandoned.length == 0;
    if (!now) {
        later *l = g_new(later, 1);
        *l = (later){memory, free_fn, pool.next_number};
        g_queue_push_tail(&pool.freed_later, l);
    }
    pthread_mutex_unlock(&pool.lock);
    if (now)
        free_fn(memory);
}
