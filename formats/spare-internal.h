/*
 * spare-internal.h: what spare.c (groups of calls, and whoever waits for them) and
 * spare-pool.c (lanes, threads, what was abandoned) share.
 */
#ifndef FORMATS_SPARE_INTERNAL_H
#define FORMATS_SPARE_INTERNAL_H

#include "formats/spare.h"
#include <glib.h>

/* What a call reads or fills in place of its caller's memory. Writes of the same bytes share
 * it. */
typedef struct spare_bounce spare_bounce;

typedef enum spare_state {
    SPARE_QUEUED,
    SPARE_READY,
    SPARE_RUNNING,
    SPARE_DONE
} spare_state;

typedef struct spare_lane spare_lane;

struct spare_job {
    spare_call call; /* buf: the bounce's, if there is one */
    spare_bounce *bounce;
    void *home; /* the caller's memory */
    int *ret_result;
    int result;
    unsigned timeout_ms;
    uint64_t deadline_ns; /* 0: none */
    spare_job *next;      /* of the group */
    spare_group *group;
    /* Under the lock: */
    spare_state state;
    bool abandoned; /* belongs to the pool; its group may be gone */
    spare_lane *lane;
    GList in_queue;  /* its lane's, or what is ready */
    uint64_t number; /* of what was abandoned, in the order of time */
    GList in_abandoned;
};

void spare_bounce_put(spare_bounce *bounce); /* NULL is allowed */

uint64_t spare_now(void); /* ns, monotonic */
void spare_cond_init(pthread_cond_t *cond);
void spare_lock(void);
void spare_unlock(void);
/* Under the lock. ETIMEDOUT, or 0; deadline_ns 0: none. */
int spare_wait(pthread_cond_t *cond, uint64_t deadline_ns);

/* All under the lock. */

/* The job has its lane from here on. Returns whether something that hangs is in it. */
bool spare_job_begin(spare_job *job);
/* Makes it ready, or queues it behind others. */
void spare_job_queue(spare_job *job);
/* Of a job that is neither running nor done: it is never made. */
void spare_job_drop(spare_job *job);
void spare_job_finish(spare_job *job, int result);
/* Gives it to the pool. */
void spare_job_abandon(spare_job *job);
/* Threads for all that is ready. Where there are none, it is refused. */
void spare_pool_start(void);
/* Closes a descriptor when all that was abandoned on it has returned; false: there is
 * nothing. */
bool spare_close_later(int fd);

#endif
