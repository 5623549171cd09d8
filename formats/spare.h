/*
 * spare.h: calls that may never return, made on threads that can be spared. For uring.c,
 * file.c and lock.c only; what all of it means is told in uring.h, which also declares
 * io_abandoned and io_free_later.
 */
#ifndef FORMATS_SPARE_H
#define FORMATS_SPARE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A call with all of its arguments. */
typedef struct spare_call {
    int (*make)(const struct spare_call *call); /* on a spare thread: 0 or -errno */
    int fd;
    void *buf;     /* what the call reads, or fills; NULL: neither */
    size_t length; /* of buf */
    bool fills;
    bool lent;    /* buf stays valid for ever: it need not be copied */
    bool certain; /* is made sooner or later, even if nobody waits any more */
    uint64_t offset;
    uint64_t size;
    int mode;
} spare_call;

typedef struct spare_job spare_job;

/* Calls that are made side by side. Starts zeroed; not moved while it is in use. */
typedef struct spare_group {
    spare_job *first, *last;
    pthread_cond_t done;
    unsigned count, unfinished;
} spare_group;

/* timeout_ms 0: for ever. *ret_result is set when the group has been run. */
void spare_add(spare_group *group, const spare_call *call, unsigned timeout_ms,
               int *ret_result);
/* Makes all calls, and waits for each until it returns or its time is up; nothing is left in
 * the group. */
void spare_run(spare_group *group);

/* One call, with this thread's timeout; on this thread if that is none. */
int spare_make(const spare_call *call);

/* What file.h's file_close says. */
void spare_close(int fd);

#endif
