/*
 * test-rangelock.c: exclusion, fairness and liveness of the range locks (W1, W7).
 *
 * Nothing sleeps: that a thread waits is seen in rangelock_waiting, and a lock that is never
 * granted makes the test hang and be ended from outside.
 */
#include "quorum/rangelock.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <stdatomic.h>

/* A thread that takes one range, notes when, and gives it back when told to. */
typedef struct visitor {
    rangelock *lock;
    uint64_t offset, length;
    rangelock_mode mode;
    int id;
    GArray *order; /* ids in the order of grants; guarded by order_mutex; may be NULL */
    GMutex *order_mutex;
    atomic_bool granted, leave;
    GThread *thread;
} visitor;

static gpointer visitor_run(gpointer data)
{
    visitor *v = data;
    rangelock_held held;
    rangelock_acquire(v->lock, &held, v->offset, v->length, v->mode);
    if (v->order) {
        g_mutex_lock(v->order_mutex);
        g_array_append_val(v->order, v->id);
        g_mutex_unlock(v->order_mutex);
    }
    atomic_store(&v->granted, true);
    while (!atomic_load(&v->leave))
        g_thread_yield();
    rangelock_release(v->lock, &held);
    return NULL;
}

static void visitor_start(visitor *v, rangelock *lock, uint64_t offset, uint64_t length,
                          rangelock_mode mode)
{
    v->lock = lock;
    v->offset = offset;
    v->length = length;
    v->mode = mode;
    v->thread = g_thread_new("visitor", visitor_run, v);
}

static void visitor_await(visitor *v)
{
    while (!atomic_load(&v->granted))
        g_thread_yield();
}

static void visitor_end(visitor *v)
{
    atomic_store(&v->leave, true);
    g_thread_join(v->thread);
}

static void await_waiting(rangelock *lock, unsigned n)
{
    while (rangelock_waiting(lock) != n)
        g_thread_yield();
}

Test(rangelock, W1_what_conflicts_and_what_does_not)
{
    const rangelock_mode S = RANGELOCK_SHARED, X = RANGELOCK_EXCLUSIVE;
    const struct {
        uint64_t offset, length;
        rangelock_mode mode;
        uint64_t other_offset, other_length;
        rangelock_mode other_mode;
        bool conflict;
    } cases[] = {
        {0, 512, X, 0, 512, X, true},
        {0, 512, X, 0, 512, S, true},
        {0, 512, S, 0, 512, X, true},
        {0, 512, S, 0, 512, S, false},
        {0, 512, X, 512, 512, X, false},
        {512, 512, X, 0, 512, X, false},
        {0, 513, X, 512, 512, X, true},
        {512, 512, X, 0, 513, X, true},
        {0, 4096, X, 1024, 1, X, true},
        {1024, 1, X, 0, 4096, X, true},
        {0, UINT64_MAX, X, 1ull << 60, 1, S, true},
        {1ull << 60, 1, S, 0, UINT64_MAX, X, true},
        {4096, UINT64_MAX, X, 1ull << 62, 1, X, true}, /* end is clamped */
        {4096, UINT64_MAX, X, 0, 4096, X, false},
        {0, 4096, X, 100, 0, X, false}, /* empty ranges conflict with nothing */
        {100, 0, X, 0, 4096, X, false},
        {0, UINT64_MAX, X, 0, 0, X, false},
        {100, 0, X, 100, 0, X, false},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        rangelock *lock = rangelock_new();
        rangelock_held held;
        rangelock_acquire(lock, &held, cases[i].offset, cases[i].length, cases[i].mode);
        visitor other = {0};
        visitor_start(&other, lock, cases[i].other_offset, cases[i].other_length,
                      cases[i].other_mode);
        if (cases[i].conflict) {
            await_waiting(lock, 1);
            cr_assert(!atomic_load(&other.granted), "case %zu", i);
            rangelock_release(lock, &held);
            visitor_await(&other);
        } else {
            visitor_await(&other);
            rangelock_release(lock, &held);
        }
        visitor_end(&other);
        rangelock_free(lock);
    }
}

Test(rangelock, W1_conflicting_requests_are_granted_in_order_of_arrival)
{
    enum { N = 12 };
    rangelock *lock = rangelock_new();
    g_autoptr(GArray) order = g_array_new(FALSE, FALSE, sizeof(int));
    GMutex mutex;
    g_mutex_init(&mutex);
    rangelock_held held;
    rangelock_acquire(lock, &held, 0, 1000, RANGELOCK_EXCLUSIVE);
    visitor visitors[N] = {0};
    for (int i = 0; i < N; i++) {
        visitors[i].id = i;
        visitors[i].order = order;
        visitors[i].order_mutex = &mutex;
        atomic_store(&visitors[i].leave, true);
        visitor_start(&visitors[i], lock, (uint64_t)i * 10, 1000,
                      i % 3 == 0 ? RANGELOCK_SHARED : RANGELOCK_EXCLUSIVE);
        await_waiting(lock, (unsigned)i + 1);
    }
    rangelock_release(lock, &held);
    for (int i = 0; i < N; i++)
        g_thread_join(visitors[i].thread);
    for (int i = 0; i < N; i++)
        cr_assert_eq(g_array_index(order, int, i), i);
    g_mutex_clear(&mutex);
    rangelock_free(lock);
}

Test(rangelock, W1_readers_do_not_overtake_a_waiting_writer)
{
    rangelock *lock = rangelock_new();
    visitor reader = {0}, writer = {0}, late = {0}, elsewhere = {0};
    visitor_start(&reader, lock, 0, 100, RANGELOCK_SHARED);
    visitor_await(&reader);
    visitor_start(&writer, lock, 50, 100, RANGELOCK_EXCLUSIVE);
    await_waiting(lock, 1);
    visitor_start(&late, lock, 0, 100, RANGELOCK_SHARED);
    await_waiting(lock, 2);
    visitor_start(&elsewhere, lock, 0, 50, RANGELOCK_SHARED); /* conflicts with nobody */
    visitor_await(&elsewhere);
    visitor_end(&reader);
    visitor_await(&writer);
    await_waiting(lock, 1);
    cr_assert(!atomic_load(&late.granted));
    visitor_end(&writer);
    visitor_await(&late);
    visitor_end(&late);
    visitor_end(&elsewhere);
    rangelock_free(lock);
}

Test(rangelock, W1_waits_until_the_last_of_several_blockers_is_gone)
{
    rangelock *lock = rangelock_new();
    rangelock_held part[4];
    for (unsigned i = 0; i < 4; i++)
        rangelock_acquire(lock, &part[i], i * 10, 10, RANGELOCK_EXCLUSIVE);
    visitor all = {0};
    visitor_start(&all, lock, 5, 30, RANGELOCK_EXCLUSIVE);
    await_waiting(lock, 1);
    for (unsigned i = 0; i < 3; i++) {
        rangelock_release(lock, &part[(i + 2) % 4]);
        cr_assert_eq(rangelock_waiting(lock), 1);
        cr_assert(!atomic_load(&all.granted));
    }
    rangelock_release(lock, &part[1]);
    visitor_await(&all);
    visitor_end(&all);
    rangelock_free(lock);
}

Test(rangelock, W7_later_small_requests_wait_behind_the_whole_disk)
{
    enum { N = 8 };
    rangelock *lock = rangelock_new();
    rangelock_held held;
    rangelock_acquire(lock, &held, 0, 512, RANGELOCK_SHARED);
    visitor whole = {0}, small[N] = {0};
    visitor_start(&whole, lock, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
    await_waiting(lock, 1);
    for (unsigned i = 0; i < N; i++) {
        visitor_start(&small[i], lock, i * 4096, 4096, RANGELOCK_EXCLUSIVE);
        await_waiting(lock, i + 2);
    }
    rangelock_release(lock, &held);
    visitor_await(&whole);
    cr_assert_eq(rangelock_waiting(lock), N);
    visitor_end(&whole);
    for (unsigned i = 0; i < N; i++)
        visitor_await(&small[i]);
    cr_assert_eq(rangelock_waiting(lock), 0); /* all of them at once */
    for (unsigned i = 0; i < N; i++)
        visitor_end(&small[i]);
    rangelock_free(lock);
}

/* Threads against a model of who owns which slot. `value` is plain memory: under
 * ThreadSanitizer a lock that does not exclude is a report. */
enum { SLOTS = 48, STRESS_THREADS = 6 };
typedef struct arena {
    rangelock *lock;
    uint64_t value[SLOTS];
    atomic_int readers[SLOTS], writers[SLOTS];
    atomic_uint violations;
    atomic_bool stop;
} arena;

typedef struct worker {
    arena *arena;
    uint64_t seed;
    unsigned rounds; /* 0: until `stop` */
    unsigned longest;
} worker;

static void arena_visit(arena *a, unsigned start, unsigned end, rangelock_mode mode,
                        uint64_t stamp)
{
    bool writes = mode == RANGELOCK_EXCLUSIVE;
    for (unsigned i = start; i < end; i++) {
        int writers =
            writes ? atomic_fetch_add(&a->writers[i], 1) : atomic_load(&a->writers[i]);
        int readers = writes ? atomic_load(&a->readers[i])
                             : atomic_fetch_add(&a->readers[i], 1) * 0;
        if (writers != 0 || readers != 0)
            atomic_fetch_add(&a->violations, 1);
        if (writes)
            a->value[i] = stamp;
    }
    uint64_t seen = a->value[start];
    if (stamp % 4 == 0)
        g_thread_yield();
    for (unsigned i = start; i < end; i++) {
        if (writes ? a->value[i] != stamp : i == start && a->value[i] != seen)
            atomic_fetch_add(&a->violations, 1);
        atomic_fetch_sub(writes ? &a->writers[i] : &a->readers[i], 1);
    }
}

static gpointer worker_run(gpointer data)
{
    worker *w = data;
    arena *a = w->arena;
    for (unsigned i = 0; w->rounds ? i < w->rounds : !atomic_load(&a->stop); i++) {
        uint64_t r = support_random(&w->seed);
        unsigned start = (unsigned)(r % SLOTS);
        unsigned end = MIN(SLOTS, start + 1 + (unsigned)(r >> 16) % w->longest);
        rangelock_mode mode = r >> 40 & 1 ? RANGELOCK_SHARED : RANGELOCK_EXCLUSIVE;
        rangelock_held held;
        rangelock_acquire(a->lock, &held, start, end - start, mode);
        arena_visit(a, start, end, mode, r);
        rangelock_release(a->lock, &held);
    }
    return NULL;
}

static void stress(unsigned longest, unsigned rounds)
{
    uint64_t seed = support_seed();
    arena a = {.lock = rangelock_new()};
    worker workers[STRESS_THREADS];
    GThread *threads[STRESS_THREADS];
    for (unsigned i = 0; i < STRESS_THREADS; i++) {
        workers[i] = (worker){&a, support_random(&seed), rounds, longest};
        threads[i] = g_thread_new("stress", worker_run, &workers[i]);
    }
    for (unsigned i = 0; i < STRESS_THREADS; i++)
        g_thread_join(threads[i]);
    cr_assert_eq(atomic_load(&a.violations), 0);
    cr_assert_eq(rangelock_waiting(a.lock), 0);
    rangelock_free(a.lock);
}

Test(rangelock, W1_random_ranges_against_a_model_of_owners)
{
    stress(8, 20000);
}

Test(rangelock, W1_random_wide_ranges_against_a_model_of_owners)
{
    stress(SLOTS, 10000);
}

Test(rangelock, W7_the_whole_disk_is_granted_under_a_stream_of_small_requests)
{
    uint64_t seed = support_seed();
    arena a = {.lock = rangelock_new()};
    worker workers[STRESS_THREADS];
    GThread *threads[STRESS_THREADS];
    for (unsigned i = 0; i < STRESS_THREADS; i++) {
        workers[i] = (worker){&a, support_random(&seed), 0, 4};
        threads[i] = g_thread_new("stream", worker_run, &workers[i]);
    }
    for (unsigned i = 0; i < 200; i++) {
        rangelock_held held;
        rangelock_acquire(a.lock, &held, 0, UINT64_MAX, RANGELOCK_EXCLUSIVE);
        arena_visit(&a, 0, SLOTS, RANGELOCK_EXCLUSIVE, i);
        rangelock_release(a.lock, &held);
    }
    atomic_store(&a.stop, true);
    for (unsigned i = 0; i < STRESS_THREADS; i++)
        g_thread_join(threads[i]);
    cr_assert_eq(atomic_load(&a.violations), 0);
    rangelock_free(a.lock);
}
