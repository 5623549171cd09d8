/*
 * R5 of chains: raw files and qcow2 images on a file system that does not answer.
 */
#include "tests/chain-support.h"
#include "tests/hang-fs.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define KIB        1024u
#define MIB        (1024u * KIB)
#define TIMEOUT_MS 300 /* in which a busy machine gets to asking, at least */
#define SWEEP_MS   100

static const chain_options raw = {.format = "raw", .writable = true};
static const chain_options qcow2 = {.format = "qcow2", .writable = true};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void set(void *data)
{
    pthread_mutex_lock(&lock);
    *(bool *)data = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Answers everything, and waits until it has come. */
static void release_all(void)
{
    bool done = false;
    hang_release(HANG_ANYWHERE);
    io_free_later(&done, set);
    pthread_mutex_lock(&lock);
    while (!done)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static chain *open_begun(const char *name, const chain_options *options)
{
    g_autofree char *below = g_build_filename("hang", name, NULL);
    chain *c = must_open(below, options);
    g_autoptr(GError) error = NULL;
    cr_assert(chain_begin_writing(c, &error), "%s", error ? error->message : "");
    return c;
}

/* ---- Raw ------------------------------------------------------------------------------------ */

static void make_raw(const char *name)
{
    g_autofree char *path = hang_made(name);
    g_autofree uint8_t *bytes = g_malloc(MIB);
    support_pattern(bytes, MIB, 0, 1);
    support_save(path, bytes, MIB);
}

static int raw_call(unsigned i, chain *c)
{
    static uint8_t bytes[4096];
    chain_extent extent;
    switch (i) {
    case 0:
        return chain_read(c, bytes, 4096, sizeof bytes);
    case 1:
        return chain_write(c, bytes, 4096, sizeof bytes);
    case 2:
        return chain_write_zeroes(c, 65536, 65536);
    case 3:
        return chain_discard(c, 65536, 65536);
    case 4:
        return chain_resize(c, chain_size(c) + MIB);
    case 5:
        return chain_flush(c);
    default:
        return chain_map(c, 0, MIB, &extent);
    }
}

Test(deadline_chain, R5_a_raw_chain_that_hangs)
{
    hang_start();
    for (unsigned i = 0; i < 7; i++) {
        make_raw("r.raw");
        chain *c = open_begun("r.raw", &raw);
        cr_assert_eq(raw_call(i, c), 0, "call %u", i);
        cr_assert_eq(chain_abandoned(c), 0);
        io_set_timeout(TIMEOUT_MS);
        hang_hold_one(HANG_ALL & ~HANG_STAT, 0);
        cr_assert_eq(raw_call(i, c), -ETIMEDOUT, "call %u", i);
        cr_assert_eq(chain_abandoned(c), 1, "call %u", i);
        io_set_timeout(0);
        release_all();
        cr_assert_eq(chain_abandoned(c), 0);
        cr_assert_eq(raw_call(i, c), 0, "call %u", i);
        chain_forget_cache(c);
        chain_close(c);
    }
    hang_stop();
}

/* O5: what may still be written to is nobody else's. */
Test(deadline_chain, O5_the_lock_stays_until_the_last_call_returns)
{
    hang_start();
    make_raw("r.raw");
    chain *c = open_begun("r.raw", &raw);
    io_set_timeout(TIMEOUT_MS);
    hang_hold_one(HANG_WRITE, 0);
    cr_assert_eq(raw_call(1, c), -ETIMEDOUT);
    cr_assert_eq(chain_abandoned(c), 1);
    chain_close(c);
    io_set_timeout(0);
    must_refuse("hang/r.raw", &raw, IMAGE_ERROR_LOCKED, PARTS("in use"));
    release_all();
    chain_close(open_begun("r.raw", &raw));
    hang_stop();
}

/* ---- qcow2: each call in turn is the one that hangs ---------------------------------------- */

static int put(chain *c, uint64_t offset, size_t length, uint64_t tag)
{
    g_autofree uint8_t *bytes = g_malloc(length);
    support_pattern(bytes, length, offset, tag);
    return chain_write(c, bytes, offset, length);
}

static bool has(chain *c, uint64_t offset, size_t length, uint64_t tag)
{
    g_autofree uint8_t *bytes = g_malloc(length), *wanted = g_malloc(length);
    support_pattern(wanted, length, offset, tag);
    return chain_read(c, bytes, offset, length) == 0 && !memcmp(bytes, wanted, length);
}

#define STEPS 11

static int step(chain *c, unsigned i)
{
    uint8_t bytes[600];
    switch (i) {
    case 0:
        return put(c, 1000, 10000, 1);
    case 2:
        return put(c, 512 * KIB, 64 * KIB, 2);
    case 3:
        return chain_write_zeroes(c, 12 * KIB, 100 * KIB);
    case 4:
        return chain_discard(c, 512 * KIB, 16 * KIB);
    case 6:
        return put(c, 512 * KIB, 1000, 3); /* where something was freed */
    case 7:
        return chain_read(c, bytes, 600 * KIB, sizeof bytes);
    case 8:
        return chain_resize(c, chain_size(c) + 4 * MIB);
    case 9:
        return put(c, 5 * MIB, 1000, 4);
    default: /* 1, 5, 10 */
        return chain_flush(c);
    }
}

/* Whatever was done before. */
static bool changes_something(unsigned i)
{
    return i < 3 || i == 5 || i == 6 || i == 8 || i == 10;
}

/* What flushes of [0, done) have covered. */
static void assert_kept(const char *name, unsigned done, unsigned k)
{
    chain *c = open_begun(name, &qcow2);
    g_autofree char *path = hang_made(name);
    cr_assert(done < 2 || has(c, 1000, 10000, 1), "call %u", k);
    cr_assert(done < 6 || has(c, 528 * KIB, 48 * KIB, 2), "call %u", k);
    chain_close(c);
    int status = support_try("qemu-img check -q '%s' >/dev/null 2>&1", path);
    cr_assert(status == 0 || status == 3, "call %u: qemu-img check: %d", k, status);
}

typedef enum outcome { HUNG, NEVER_HUNG, TOO_BUSY } outcome;

/* TOO_BUSY: something was not done in time that was not held. */
static outcome hang_at(const char *name, unsigned k)
{
    chain *c = open_begun(name, &qcow2);
    unsigned done = 0;
    int result = 0;
    io_set_timeout(SWEEP_MS);
    hang_hold_one(HANG_ALL & ~(HANG_STAT | HANG_CLOSE), k);
    for (unsigned i = 0; i < STEPS && !result && chain_abandoned(c) == 0; i++) {
        result = step(c, i);
        cr_assert(result == 0 || result == -ETIMEDOUT, "call %u, step %u: %d", k, i,
                  result);
        done = result == 0 ? i + 1 : done;
    }
    unsigned reached = hang_seen(HANG_CHANGES | HANG_SYNC);
    bool held = hang_waiting() > 0;
    for (unsigned i = 0; i < STEPS && held; i++)
        cr_assert(!changes_something(i) || step(c, i) == -ETIMEDOUT, "call %u, step %u",
                  k, i);
    chain_close(c);
    if (held)
        cr_assert_eq(hang_seen(HANG_CHANGES | HANG_SYNC), reached, "call %u", k);
    io_set_timeout(0);
    release_all();
    assert_kept(name, done, k);
    return held ? HUNG : result == 0 ? NEVER_HUNG : TOO_BUSY;
}

static void hang_everywhere(const char *create)
{
    hang_start();
    g_autofree char *path = hang_made("q.qcow2");
    unsigned k = 0;
    outcome last;
    do {
        support_run("rm -f '%s' && qemu-img create -q -f qcow2 -o %s '%s' 4M", path,
                    create, path);
        last = hang_at("q.qcow2", k);
        k += last == HUNG;
    } while (last != NEVER_HUNG);
    cr_assert(k > 20, "%u calls", k);
    hang_stop();
}

Test(deadline_chain, R5_qcow2_that_hangs_at_any_call)
{
    hang_everywhere("cluster_size=4096");
}

Test(deadline_chain, R5_qcow2_with_lazy_refcounts_that_hangs_at_any_call)
{
    hang_everywhere("cluster_size=65536,lazy_refcounts=on");
}

/* ---- Threads, memory ------------------------------------------------------------------------ */

static void *write_somewhere(void *data)
{
    static atomic_uint count;
    io_set_timeout(1000);
    return GINT_TO_POINTER(
        put(data, (1 + atomic_fetch_add(&count, 1)) * 64 * KIB, 512, 1));
}

/* They wait for one another, but for the file only once: tables are read under the lock. */
Test(deadline_chain, R5_threads_that_share_a_lock_wait_one_timeout)
{
    hang_start();
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    g_autofree char *path = hang_made("q.qcow2");
    support_run(
        "qemu-img create -q -f qcow2 '%s' 4M && qemu-io -f qcow2 -c 'write 0 64k' "
        "'%s' >/dev/null",
        path, path);
    chain *c = open_begun("q.qcow2", &qcow2);
    unsigned before = hang_seen(HANG_READ);
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    for (unsigned i = 0; i < THREADS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, write_somewhere, c), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        cr_assert_eq(GPOINTER_TO_INT(result), -ETIMEDOUT);
    }
    cr_assert_eq(hang_seen(HANG_READ), before + 1);
    cr_assert_eq(chain_abandoned(c), 1);
    release_all();
    chain_close(c);
    hang_stop();
}

/* The bytes around a write, which the image has copied, are its own: they stay until the ops
 * that read them have returned, as does what the caller lends. */
Test(deadline_chain, copies_outlive_the_change)
{
    hang_start();
    g_autofree char *path = hang_made("q.qcow2");
    support_run(
        "head -c 4M /dev/urandom >hang-files/b.raw && cp hang-files/b.raw b.raw && "
        "qemu-img create -q -f qcow2 -b b.raw -F raw '%s' 4M",
        path);
    chain *c = open_begun("q.qcow2", &qcow2);
    uint8_t *bytes = g_malloc(1000);
    image_change *change = NULL;
    io_list list = {.lends = true};
    memset(bytes, 7, 1000);
    cr_assert_eq(chain_prepare_write(c, bytes, 100000, 1000, 0, &list, &change), 0);
    cr_assert_geq(list.count, 3);
    io_set_timeout(TIMEOUT_MS);
    hang_hold(HANG_WRITE, HANG_ANYWHERE, 0);
    io_list_run(&list);
    /* Another op of the list may have failed before: the change must see for itself. */
    cr_assert_eq(io_list_error(&list), -ETIMEDOUT);
    cr_assert_eq(chain_finish_write(c, change, -EIO), -ETIMEDOUT);
    io_free_later(bytes, g_free);
    cr_assert_eq(chain_flush(c), -ETIMEDOUT);
    io_set_timeout(0);
    unsigned changes = hang_seen(HANG_CHANGES);
    release_all();
    cr_assert_eq(put(c, 0, 512, 1), -ETIMEDOUT);
    chain_close(c);
    cr_assert_leq(hang_seen(HANG_CHANGES), changes + list.count);
    io_list_free(&list);
    support_run("qemu-img compare -q -f qcow2 -F raw '%s' b.raw", path);
    hang_stop();
}

static chain *open_written(void)
{
    g_autofree char *path = hang_made("q.qcow2");
    support_run("qemu-img create -q -f qcow2 '%s' 4M", path);
    chain *c = open_begun("q.qcow2", &qcow2);
    cr_assert_eq(put(c, 0, 256 * KIB, 1), 0);
    cr_assert_eq(chain_flush(c), 0);
    return c;
}

/* I9 of qcow2-alloc.c. A write in place has no change to finish, and a discard of what is
 * cached asks the file nothing: neither would find out by itself. */
Test(deadline_chain, I9_nothing_is_changed_beside_an_abandoned_call)
{
    hang_start();
    chain *c = open_written();
    io_set_timeout(TIMEOUT_MS);
    hang_hold_one(HANG_WRITE, 0);
    cr_assert_eq(put(c, 1024, 512, 2), -ETIMEDOUT);
    cr_assert_eq(chain_discard(c, 128 * KIB, 64 * KIB), -ETIMEDOUT);
    io_set_timeout(0);
    release_all();
    chain_close(c);
    hang_stop();
}

/* Its host cluster is free again, and nobody knows what the late write did to it. */
Test(deadline_chain, I9_nothing_is_changed_after_an_abandoned_call)
{
    hang_start();
    chain *c = open_written();
    io_set_timeout(TIMEOUT_MS);
    hang_hold_one(HANG_WRITE, 0);
    cr_assert_eq(put(c, MIB, 512, 2), -ETIMEDOUT);
    io_set_timeout(0);
    release_all();
    unsigned changes = hang_seen(HANG_CHANGES | HANG_SYNC);
    cr_assert_eq(chain_abandoned(c), 0);
    cr_assert_eq(put(c, 2 * MIB, 512, 2), -ETIMEDOUT);
    cr_assert_eq(chain_flush(c), -ETIMEDOUT);
    cr_assert(has(c, 0, 256 * KIB, 1));
    chain_close(c);
    cr_assert_eq(hang_seen(HANG_CHANGES | HANG_SYNC), changes);
    hang_stop();
}
