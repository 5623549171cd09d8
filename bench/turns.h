/*
 * turns.h: work that threads take in turn, for programs that measure.
 */
#ifndef BENCH_TURNS_H
#define BENCH_TURNS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#define TURNS_THREADS_MAX 16u

typedef struct turns {
    int (*step)(void *user, uint64_t i); /* 0 or -errno */
    int (*flush)(void *user);
    void *user;
    uint64_t count, every; /* a flush after every so many steps; 0: never */
    atomic_uint_fast64_t next;
    atomic_int result; /* the first error */
} turns;

static void *turns_take(void *opaque)
{
    turns *t = opaque;
    for (uint64_t i; (i = atomic_fetch_add(&t->next, 1)) < t->count;) {
        int result = t->step(t->user, i);
        if (result == 0 && t->every && (i + 1) % t->every == 0)
            result = t->flush(t->user);
        if (result < 0) {
            atomic_store(&t->result, result);
            break;
        }
    }
    return NULL;
}

/* This thread is one of them. Returns the first error. */
static inline int turns_run(turns *t, unsigned n_threads)
{
    pthread_t threads[TURNS_THREADS_MAX];
    for (unsigned i = 1; i < n_threads; i++)
        if (pthread_create(&threads[i], NULL, turns_take, t) != 0)
            abort();
    turns_take(t);
    for (unsigned i = 1; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    return atomic_load(&t->result);
}

#endif
