/*
 * rangelock.h: overlapping requests are serialised, others run in parallel (W1, W7).
 *
 * Fair: a request waits for every conflicting one that came before it, granted or still
 * waiting, and for none that came after; so nobody starves. Shared locks overlap each
 * other, exclusive ones nothing.
 */
#ifndef QUORUM_RANGELOCK_H
#define QUORUM_RANGELOCK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct rangelock rangelock;

typedef enum rangelock_mode {
    RANGELOCK_SHARED,    /* reads */
    RANGELOCK_EXCLUSIVE, /* writes, repairs, jobs */
} rangelock_mode;

/* Lives on the caller's stack from acquire to release, unmoved. Fields are rangelock.c's. */
typedef struct rangelock_held {
    uint64_t start, end; /* [start, end), bytes */
    rangelock_mode mode;
    unsigned blockers; /* earlier requests that conflict; 0: granted */
    GCond wake;        /* initialised only while it waits */
    struct rangelock_held *prev, *next;
} rangelock_held;

rangelock *rangelock_new(void);
void rangelock_free(rangelock *lock); /* NULL is allowed; nothing may be held */

/* Blocks until the range is granted. length 0 conflicts with nothing;
 * (0, UINT64_MAX) is the whole disk. */
void rangelock_acquire(rangelock *lock, rangelock_held *held, uint64_t offset,
                       uint64_t length, rangelock_mode mode);
void rangelock_release(rangelock *lock, rangelock_held *held);

/* How many requests wait at this moment. */
unsigned rangelock_waiting(rangelock *lock);

#endif
