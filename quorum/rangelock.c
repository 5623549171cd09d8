/*
 * rangelock.c: fair range locks.
 *
 * One list holds every request, granted or waiting, in the order of arrival. A request's
 * `blockers` is the number of requests before it in the list that it conflicts with; it
 * holds its range if and only if that is 0. Invariants, whenever the mutex is free:
 *
 *   - blockers counts exactly the conflicting requests that stand before it;
 *   - two requests that conflict are never both granted: the later one has a blocker;
 *   - the first request of the list is granted, so there is always progress.
 *
 * Requests never move and join only at the end, so nothing that came later can delay one
 * that waits (no starvation), and only a release changes a count: it wakes exactly those
 * whose count it takes to 0, each by its own condition variable.
 *
 * The list is as long as there are threads with requests, some tens; walking it is cheaper
 * than keeping a tree. Without contention: one mutex, no allocation, no wake-up.
 *
 * Lock order: a rangelock's mutex is innermost; nothing is called while it is held.
 */
#include "quorum/rangelock.h"

struct rangelock {
    GMutex mutex;
    rangelock_held *first, *last;
};

rangelock *rangelock_new(void)
{
    rangelock *lock = g_new0(rangelock, 1);
    g_mutex_init(&lock->mutex);
    return lock;
}

void rangelock_free(rangelock *lock)
{
    if (!lock)
        return;
    g_assert(!lock->first);
    g_mutex_clear(&lock->mutex);
    g_free(lock);
}

static bool conflicts(const rangelock_held *a, const rangelock_held *b)
{
    return a->start < b->end && b->start < a->end &&
           (a->mode == RANGELOCK_EXCLUSIVE || b->mode == RANGELOCK_EXCLUSIVE);
}

/* An empty range conflicts with nothing and never joins the list. */
static bool is_empty(const rangelock_held *held)
{
    return held->start == held->end;
}

static void list_append(rangelock *lock, rangelock_held *held)
{
    held->next = NULL;
    held->prev = lock->last;
    if (lock->last)
        lock->last->next = held;
    else
        lock->first = held;
    lock->last = held;
}

static void list_remove(rangelock *lock, rangelock_held *held)
{
    if (held->prev)
        held->prev->next = held->next;
    else
        lock->first = held->next;
    if (held->next)
        held->next->prev = held->prev;
    else
        lock->last = held->prev;
}

void rangelock_acquire(rangelock *lock, rangelock_held *held, uint64_t offset,
                       uint64_t length, rangelock_mode mode)
{
    held->start = offset;
    held->end = length > UINT64_MAX - offset ? UINT64_MAX : offset + length;
    held->mode = mode;
    held->blockers = 0;
    if (is_empty(held))
        return;
    g_mutex_lock(&lock->mutex);
    for (const rangelock_held *other = lock->first; other; other = other->next)
        held->blockers += conflicts(other, held);
    list_append(lock, held);
    if (held->blockers > 0) {
        g_cond_init(&held->wake);
        while (held->blockers > 0)
            g_cond_wait(&held->wake, &lock->mutex);
        g_cond_clear(&held->wake);
    }
    g_mutex_unlock(&lock->mutex);
}

void rangelock_release(rangelock *lock, rangelock_held *held)
{
    if (is_empty(held))
        return;
    g_mutex_lock(&lock->mutex);
    for (rangelock_held *later = held->next; later; later = later->next) {
        /* Signalled under the mutex: once it runs, the waiter's stack may be gone. */
        if (conflicts(held, later) && --later->blockers == 0)
            g_cond_signal(&later->wake);
    }
    list_remove(lock, held);
    g_mutex_unlock(&lock->mutex);
}

unsigned rangelock_waiting(rangelock *lock)
{
    unsigned waiting = 0;
    g_mutex_lock(&lock->mutex);
    for (const rangelock_held *held = lock->first; held; held = held->next)
        waiting += held->blockers > 0;
    g_mutex_unlock(&lock->mutex);
    return waiting;
}
