/*
 * spare-pool.c: the threads on which calls are made that may never return.
 *
 * Each descriptor has a lane, in which LANE_MAX calls at most are being made: a file that
 * hangs takes so many threads, and none that a call of another file waits for. Lanes exist
 * while there is something in them.
 *
 * Invariants, under the lock
 * - `active` of a lane counts what is ready or running. Of these, some are abandoned.
 * - A job that is not abandoned is its group's, but for its memory while it is running. One
 *   that is abandoned is the pool's, and nobody looks at its group any more.
 * - The list of the abandoned is in the order of their numbers. Memory that is freed later
 *   waits for all whose number is lower than its own.
 *
 * A forked child has none of the threads, and forgets what they were about.
 */
#include "formats/spare-internal.h"
#include "formats/uring.h"
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#define LANE_MAX     32u
#define IDLE_SECONDS 10
#define STACK_BYTES  ((size_t)512 << 10)

struct spare_lane {
    int fd;
    bool close; /* when nothing is abandoned any more */
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
    GHashTable *lanes; /* by descriptor; NULL: none yet */
    GQueue ready;
    GQueue abandoned;
    GQueue freed_later; /* of later, by number */
    uint64_t next_number;
} spare_pool;

/* What is left to do when a call has returned, without the lock. */
typedef struct leftover {
    GList *free_now;
    int close_fd; /* -1: none */
} leftover;

static spare_pool pool;
static atomic_uint abandoned_calls; /* the length of pool.abandoned */

uint64_t spare_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void spare_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

int spare_wait(pthread_cond_t *cond, uint64_t deadline_ns)
{
    struct timespec until = {(time_t)(deadline_ns / 1000000000u),
                             (long)(deadline_ns % 1000000000u)};
    return deadline_ns ? pthread_cond_timedwait(cond, &pool.lock, &until)
                       : pthread_cond_wait(cond, &pool.lock);
}

static void pool_init(void)
{
    pool = (spare_pool){0};
    atomic_store(&abandoned_calls, 0);
    pthread_mutex_init(&pool.lock, NULL);
    spare_cond_init(&pool.work);
}

static void pool_init_once(void)
{
    pool_init();
    pthread_atfork(NULL, NULL, pool_init);
}

void spare_lock(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, pool_init_once);
    pthread_mutex_lock(&pool.lock);
}

void spare_unlock(void)
{
    pthread_mutex_unlock(&pool.lock);
}

/* ---- Lanes ---------------------------------------------------------------------------------- */

/* NULL: there is nothing in it. */
static spare_lane *lane_find(int fd)
{
    return pool.lanes ? g_hash_table_lookup(pool.lanes, GINT_TO_POINTER(fd)) : NULL;
}

static spare_lane *lane_get(int fd)
{
    if (!pool.lanes)
        pool.lanes = g_hash_table_new(NULL, NULL);
    spare_lane *lane = lane_find(fd);
    if (!lane) {
        lane = g_new0(spare_lane, 1);
        lane->fd = fd;
        g_hash_table_insert(pool.lanes, GINT_TO_POINTER(fd), lane);
    }
    return lane;
}

static void lane_put(spare_lane *lane)
{
    if (lane->active > 0 || lane->queued.length > 0)
        return;
    g_hash_table_remove(pool.lanes, GINT_TO_POINTER(lane->fd));
    g_free(lane);
}

static void make_ready(spare_job *job)
{
    job->state = SPARE_READY;
    job->lane->active++;
    g_queue_push_tail_link(&pool.ready, &job->in_queue);
}

/* One of its calls has ended. */
static void lane_leave(spare_lane *lane)
{
    lane->active--;
    const GList *link =
        lane->queued.length > 0 ? g_queue_pop_head_link(&lane->queued) : NULL;
    if (link)
        make_ready(link->data);
    lane_put(lane);
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

bool spare_job_begin(spare_job *job)
{
    job->lane = lane_get(job->call.fd);
    return job->lane->abandoned > 0;
}

void spare_job_queue(spare_job *job)
{
    if (job->lane->active < LANE_MAX) {
        make_ready(job);
    } else {
        job->state = SPARE_QUEUED;
        g_queue_push_tail_link(&job->lane->queued, &job->in_queue);
    }
}

void spare_job_drop(spare_job *job)
{
    if (job->state == SPARE_QUEUED) {
        g_queue_unlink(&job->lane->queued, &job->in_queue);
        lane_put(job->lane);
    } else {
        g_queue_unlink(&pool.ready, &job->in_queue);
        lane_leave(job->lane);
    }
}

void spare_job_finish(spare_job *job, int result)
{
    job->state = SPARE_DONE;
    job->result = result;
    if (--job->group->unfinished == 0)
        pthread_cond_signal(&job->group->done);
}

void spare_job_abandon(spare_job *job)
{
    job->abandoned = true;
    job->number = pool.next_number++;
    job->lane->abandoned++;
    g_queue_push_tail_link(&pool.abandoned, &job->in_abandoned);
    atomic_fetch_add(&abandoned_calls, 1);
}

/* ---- What was abandoned returns ----------------------------------------------------------- */

/* What has nothing to wait for any more. */
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

static void tidy(leftover rest)
{
    if (rest.close_fd >= 0)
        close(rest.close_fd);
    for (const GList *link = rest.free_now; link; link = link->next) {
        later *l = link->data;
        l->free_fn(l->memory);
        g_free(l);
    }
    g_list_free(rest.free_now);
}

static leftover end_abandoned(spare_job *job)
{
    leftover rest = {.close_fd = -1};
    spare_lane *lane = job->lane;
    g_queue_unlink(&pool.abandoned, &job->in_abandoned);
    atomic_fetch_sub(&abandoned_calls, 1);
    if (--lane->abandoned == 0 && lane->close) {
        lane->close = false;
        rest.close_fd = lane->fd;
    }
    spare_bounce_put(job->bounce);
    g_free(job);
    rest.free_now = take_freeable();
    return rest;
}

static leftover job_returned(spare_job *job, int result)
{
    leftover rest = {.close_fd = -1};
    spare_lane *lane = job->lane;
    if (job->abandoned)
        rest = end_abandoned(job);
    else
        spare_job_finish(job, result);
    lane_leave(lane);
    return rest;
}

bool spare_close_later(int fd)
{
    spare_lane *lane = lane_find(fd);
    bool waits = lane && lane->abandoned > 0;
    if (waits)
        lane->close = true;
    return waits;
}

unsigned io_abandoned(int fd)
{
    if (atomic_load(&abandoned_calls) == 0)
        return 0;
    spare_lock();
    const spare_lane *lane = lane_find(fd);
    unsigned count = lane ? lane->abandoned : 0;
    spare_unlock();
    return count;
}

void io_free_later(void *memory, void (*free_fn)(void *))
{
    spare_lock();
    bool now = pool.abandoned.length == 0;
    if (!now) {
        later *l = g_new(later, 1);
        *l = (later){memory, free_fn, pool.next_number};
        g_queue_push_tail(&pool.freed_later, l);
    }
    spare_unlock();
    if (now)
        free_fn(memory);
}

/* ---- Threads -------------------------------------------------------------------------------- */

/* NULL: there has been nothing to do for a long time. */
static spare_job *take_ready(void)
{
    uint64_t until = spare_now() + IDLE_SECONDS * UINT64_C(1000000000);
    int timed_out = 0;
    pool.idle++;
    while (pool.ready.length == 0 && !timed_out)
        timed_out = spare_wait(&pool.work, until);
    pool.idle--;
    const GList *link = g_queue_pop_head_link(&pool.ready);
    return link ? link->data : NULL;
}

static void *pool_thread(void *unused)
{
    (void)unused;
    spare_job *job;
    spare_lock();
    while ((job = take_ready())) {
        job->state = SPARE_RUNNING;
        spare_unlock();
        int result = job->call.make(&job->call);
        spare_lock();
        leftover rest = job_returned(job, result);
        if (rest.free_now || rest.close_fd >= 0) {
            spare_unlock();
            tidy(rest);
            spare_lock();
        }
    }
    pool.threads--;
    spare_unlock();
    return NULL;
}

/* 0 or -errno. */
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

static void refuse_ready(int error)
{
    for (GList *link = pool.ready.head, *next; link; link = next) {
        spare_job *job = link->data;
        next = link->next;
        if (job->abandoned)
            continue;
        spare_job_drop(job);
        spare_job_finish(job, error);
        next = pool.ready.head;
    }
}

void spare_pool_start(void)
{
    unsigned wake = MIN(pool.ready.length, pool.idle);
    int error = 0;
    for (unsigned i = pool.idle; i < pool.ready.length && !error; i++)
        error = start_thread();
    if (error && pool.threads == 0)
        refuse_ready(error);
    for (unsigned i = 0; i < wake; i++)
        pthread_cond_signal(&pool.work);
}
