/*
 * test-disk-qcow2.c: a disk whose replicas are a raw file, a compressed qcow2 and an overlay
 * with subclusters: every kind of request, against a model and by several threads at once.
 */
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define SECTOR  512u
#define MIB     (1024u * 1024u)
#define SIZE    (3 * MIB + 1024)
#define GROWN   (5 * MIB)
#define THREADS 4u

typedef struct mixed {
    disk *disk;
    uint8_t *model;
    uint64_t size;
} mixed;

static const char *const names[] = {"a.raw", "b.qcow2", "c.qcow2"};

static void mixed_open(mixed *m)
{
    char *paths[3];
    for (unsigned i = 0; i < 3; i++)
        paths[i] = support_path("%s", names[i]);
    disk_options *options = disk_rig_options(paths, 3, NULL);
    g_autoptr(GError) error = NULL;
    m->disk = disk_open(options, NULL, &error);
    cr_assert_not_null(m->disk, "%s", error ? error->message : "no error");
    cr_assert(disk_writable(m->disk), "%s", disk_read_only_reason(m->disk));
    disk_options_free(options);
    for (unsigned i = 0; i < 3; i++)
        g_free(paths[i]);
}

static void mixed_new(mixed *m)
{
    m->size = SIZE;
    m->model = g_malloc0(GROWN);
    support_pattern(m->model, SIZE, 0, 99);
    memset(m->model + MIB, 0, MIB / 2);
    g_autofree char *base = support_path("base.raw");
    support_save(base, m->model, SIZE);
    support_run("cp base.raw a.raw && qemu-img convert -c -O qcow2 base.raw b.qcow2 && "
                "qemu-img create -q -f qcow2 -F raw -b base.raw -o "
                "extended_l2=on,cluster_size=16k c.qcow2");
    mixed_open(m);
}

static void mixed_check(mixed *m)
{
    cr_assert_str_eq(disk_state_name(m->disk), "healthy");
    for (uint64_t at = 0; at < m->size; at += MIB) {
        const void *data;
        size_t length = (size_t)MIN(MIB, m->size - at);
        cr_assert_eq(disk_read(m->disk, at, length, &data), 0);
        cr_assert(!memcmp(data, m->model + at, length), "wrong bytes after %llu",
                  (unsigned long long)at);
    }
    disk_counters counters;
    disk_get_counters(m->disk, &counters);
    cr_assert_eq(counters.divergences, 0);
}

/* QEMU sees the same in each replica, and finds nothing to complain of. */
static void mixed_close(mixed *m)
{
    mixed_check(m);
    cr_assert_eq(disk_close(m->disk), 0);
    g_autofree char *model = support_path("model.raw");
    support_save(model, m->model, m->size);
    support_run("cmp model.raw a.raw && for r in b c; do "
                "qemu-img check -q -f qcow2 $r.qcow2 && "
                "qemu-img compare -q -f raw -F qcow2 model.raw $r.qcow2 || exit 1; done");
    g_free(m->model);
}

/* ---- One thread, every kind of request ---- */

static size_t random_range(const mixed *m, uint64_t *state, uint64_t *ret_offset)
{
    uint64_t length =
        1 + support_random(state) % (support_random(state) % 4 ? 9000 : MIB);
    *ret_offset = support_random(state) % m->size;
    if (support_random(state) % 3 == 0) {
        *ret_offset &= ~UINT64_C(65535);
        length = (length + 65535) & ~UINT64_C(65535);
    }
    return (size_t)MIN(MIN(length, m->size - *ret_offset), MIB);
}

static void random_step(mixed *m, uint64_t *state, unsigned step)
{
    uint64_t offset;
    size_t length = random_range(m, state, &offset);
    const void *data;
    uint64_t grown;
    switch (support_random(state) % 20) {
    case 0 ... 5:
        cr_assert_eq(disk_read(m->disk, offset, length, &data), 0);
        cr_assert(!memcmp(data, m->model + offset, length), "step %u", step);
        break;
    case 6 ... 13:
        support_pattern(m->model + offset, length, offset, step + 1000);
        cr_assert_eq(disk_write(m->disk, offset, length, m->model + offset), 0);
        break;
    case 14 ... 15:
        memset(m->model + offset, 0, length);
        cr_assert_eq(disk_write_zeroes(m->disk, offset, length), 0);
        break;
    case 16 ... 17:
        memset(m->model + offset, 0, length);
        cr_assert_eq(disk_discard(m->disk, offset, length), 0);
        break;
    case 18:
        cr_assert_eq(disk_flush(m->disk), 0);
        break;
    case 19: /* of a last sector that is not whole QEMU takes no notice */
        grown = m->size + support_random(state) % 256 * SECTOR;
        m->size = MIN(grown, GROWN); /* a macro: no draw in it */
        cr_assert_eq(disk_resize(m->disk, m->size), 0);
        break;
    }
}

Test(disk_qcow2, W1_random_requests_against_a_model)
{
    mixed m;
    uint64_t state = support_seed();
    mixed_new(&m);
    for (unsigned step = 0; step < 600; step++) {
        if (step % 150 == 149) {
            cr_assert_eq(disk_close(m.disk), 0);
            mixed_open(&m);
        }
        random_step(&m, &state, step);
    }
    mixed_close(&m);
}

/* ---- Threads in the same clusters ---- */

typedef struct writer {
    mixed *m;
    unsigned index;
    uint64_t state;
    const char *failed; /* NULL: all went well */
} writer;

/* A sector that no other thread touches. */
static uint64_t own_sector(writer *w)
{
    uint64_t slots = w->m->size / SECTOR / THREADS;
    return (support_random(&w->state) % slots * THREADS + w->index) * SECTOR;
}

static const char *writer_step(writer *w, unsigned step)
{
    const void *data;
    uint64_t at = own_sector(w);
    uint8_t *model = w->m->model + at;
    switch (support_random(&w->state) % 16) {
    case 0 ... 9:
        support_pattern(model, SECTOR, at, w->index * 100000 + step);
        return disk_write(w->m->disk, at, SECTOR, model) ? "write" : NULL;
    case 10:
        memset(model, 0, SECTOR);
        return disk_discard(w->m->disk, at, SECTOR) ? "discard" : NULL;
    case 11:
        return disk_flush(w->m->disk) ? "flush" : NULL;
    default:
        if (disk_read(w->m->disk, at, SECTOR, &data))
            return "read";
        return memcmp(data, model, SECTOR) ? "bytes" : NULL;
    }
}

static void *write_own_sectors(void *opaque)
{
    writer *w = opaque;
    for (unsigned step = 0; step < 400 && !w->failed; step++)
        w->failed = writer_step(w, step);
    return NULL;
}

Test(disk_qcow2, W1_threads_that_write_the_same_clusters)
{
    mixed m;
    writer writers[THREADS];
    GThread *threads[THREADS];
    uint64_t state = support_seed();
    mixed_new(&m);
    alarm(120); /* threads that wait for each other end here */
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (writer){&m, i, support_random(&state), NULL};
        threads[i] = g_thread_new("writer", write_own_sectors, &writers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        g_thread_join(threads[i]);
    alarm(0);
    for (unsigned i = 0; i < THREADS; i++)
        cr_assert_null(writers[i].failed, "thread %u: %s", i, writers[i].failed);
    mixed_close(&m);
}

/* ---- The figures ---- */

Test(disk_qcow2, allocated_is_the_largest_of_the_replicas)
{
    mixed m;
    mixed_new(&m);
    cr_assert_geq(disk_allocated(m.disk), 2 * MIB);
    cr_assert_leq(disk_allocated(m.disk), SIZE);
    m.size = GROWN;
    cr_assert_eq(disk_resize(m.disk, m.size), 0);
    uint64_t before = disk_allocated(m.disk);
    support_pattern(m.model + 4 * MIB, MIB, 0, 5);
    cr_assert_eq(disk_write(m.disk, 4 * MIB, MIB, m.model + 4 * MIB), 0);
    cr_assert_eq(disk_flush(m.disk), 0);
    cr_assert_geq(disk_allocated(m.disk), before + MIB);
    cr_assert_leq(disk_allocated(m.disk), m.size);
    mixed_close(&m);
}

/* A replica whose file cannot take more is out, the others go on. */
Test(disk_qcow2, W2_one_replica_that_fails_in_the_middle)
{
    mixed m;
    mixed_new(&m);
    fault_clear();
    fault_track_changes();
    fault_add((fault){.chain = disk_chain(m.disk, 1),
                      .kind = FAULT_FINISH,
                      .error = ENOSPC,
                      .times = 1});
    support_pattern(m.model + MIB, 100000, MIB, 7);
    cr_assert_eq(disk_write(m.disk, MIB, 100000, m.model + MIB), 0);
    cr_assert_eq(fault_finished_changes(), 3);
    cr_assert_eq(fault_open_changes(), 0);
    cr_assert_str_eq(disk_state_name(m.disk), "degraded");
    support_pattern(m.model, 5000, 0, 8);
    cr_assert_eq(disk_write(m.disk, 0, 5000, m.model), 0);
    const void *data;
    cr_assert_eq(disk_read(m.disk, MIB, 100000, &data), 0);
    cr_assert(!memcmp(data, m.model + MIB, 100000));
    cr_assert_eq(disk_close(m.disk), 0);
    g_autofree char *model = support_path("model.raw");
    support_save(model, m.model, m.size);
    support_run("for r in b c; do qemu-img check -q -f qcow2 $r.qcow2 || [ $? = 3 ] || "
                "exit 1; done; cmp model.raw a.raw && "
                "qemu-img compare -q -f raw -F qcow2 model.raw c.qcow2");
    g_free(m.model);
}
