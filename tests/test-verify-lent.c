/*
 * The verification of replicas whose decoder is a process of its own: what is read is
 * announced, and bytes that change while they are looked at deceive nobody.
 */
#include "tests/verify-fake.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1u << 20)

static void lend(disk *d)
{
    for (unsigned i = 0; i < d->n; i++)
        d->replicas[i].lent = g_malloc(LENT_BYTES);
}

static void unlend(disk *d)
{
    for (unsigned i = 0; i < d->n; i++)
        g_free(d->replicas[i].lent);
}

/* Data, a hole within a piece, data, a hole over pieces, data. */
static void holes_make(struct chain *c)
{
    const uint64_t ends[] = {300000, 900000, 1000000, 2 * MIB + 700000, 5 * MIB};
    for (unsigned i = 0; i < G_N_ELEMENTS(ends); i++) {
        c->ends[i] = ends[i];
        c->zero[i] = i % 2;
        if (c->zero[i])
            memset(c->data + ends[i - 1], 0, ends[i] - ends[i - 1]);
    }
    c->n_extents = G_N_ELEMENTS(ends);
}

Test(verify_lent, every_read_is_announced)
{
    disk *d = disk_make(3, 2, 5 * MIB);
    lend(d);
    for (unsigned i = 0; i < 3; i++)
        holes_make(&d->replicas[i]);
    verify_options options = {0};
    verify_summary summary;
    verify_run(d, &options, &summary);
    cr_assert_eq(verify_exit_code(&summary), 0);
    for (unsigned i = 0; i < 3; i++) {
        const struct chain *c = &d->replicas[i];
        cr_assert_eq(c->reads, 4u);
        cr_assert_eq(c->announced, c->reads);
        cr_assert_eq(c->ahead[0].length + c->ahead[1].length, 0u, "more than is read");
    }
    unlend(d);
    disk_free(d);
}

/* Announcing needs a buffer that is free, and at most two are on the way (the fake sees to
 * that): also where replicas fail, and are read in smaller steps. */
Test(verify_lent, R3_errors_are_as_exact_as_without)
{
    disk *d = disk_make(3, 2, 5 * MIB);
    lend(d);
    d->replicas[0].bad[777] = d->replicas[1].bad[5000] = true;
    d->replicas[2].once = 1;
    verify_options options = {0};
    verify_summary summary;
    verify_run(d, &options, &summary);
    cr_assert_eq(summary.read_error_bytes, 1024u);
    cr_assert_eq(summary.replica_error_bytes[0], 512u);
    cr_assert_eq(summary.replica_error_bytes[1], 512u);
    cr_assert_eq(summary.replica_error_bytes[2], 0u);
    cr_assert_eq(summary.differing_bytes, 0u);
    unlend(d);
    disk_free(d);
}

/* ---- a decoder that shows every comparison what it wants to see ---------------------- */

typedef struct deceiver {
    uint8_t *memory; /* the lent memory, mapped a second time */
    const uint8_t *versions[2];
    atomic_bool stop;
} deceiver;

static void *deceive(void *data)
{
    deceiver *x = data;
    for (unsigned k = 0; !atomic_load(&x->stop); k++)
        for (unsigned at = 0; at < 2 * VERIFY_PIECE_MAX; at += 65536)
            *(volatile uint8_t *)(x->memory + at) =
                x->versions[k % 2][at % VERIFY_PIECE_MAX];
    return NULL;
}

/* Two mappings, so that what happens is what another process would do. */
static uint8_t *memory_map(int fd)
{
    uint8_t *memory = mmap(NULL, LENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(memory, MAP_FAILED);
    return memory;
}

/* R1: the two honest replicas differ, so whatever the third one says, somebody differs;
 * and the data that is hashed is what was voted. */
Test(verify_lent, R1_bytes_that_change_never_make_others_agree)
{
    const uint64_t size = 2 * VERIFY_PIECE_MAX;
    disk *d = disk_make(3, 2, size);
    for (unsigned at = 0; at < size; at += 65536)
        d->replicas[2].data[at] ^= 0xff;
    int fd = memfd_create("lent", MFD_CLOEXEC);
    cr_assert_eq(ftruncate(fd, LENT_BYTES), 0);
    d->replicas[0].lent = memory_map(fd);
    deceiver x = {.memory = memory_map(fd),
                  .versions = {d->replicas[1].data, d->replicas[2].data}};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, deceive, &x), 0);
    for (unsigned round = 0; round < 30; round++) {
        verify_options options = {0};
        verify_summary summary;
        verify_run(d, &options, &summary);
        cr_assert_eq(summary.differing_bytes, size / 65536 * 512, "in round %u", round);
    }
    atomic_store(&x.stop, true);
    pthread_join(thread, NULL);
    munmap(d->replicas[0].lent, LENT_BYTES);
    munmap(x.memory, LENT_BYTES);
    close(fd);
    disk_free(d);
}
