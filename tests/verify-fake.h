/*
 * verify-fake.h: replicas that are made up, for test-verify-model: what stands behind
 * chain.h and disk.h there, so that maps, errors and bytes can be anything.
 */
#ifndef TESTS_VERIFY_FAKE_H
#define TESTS_VERIFY_FAKE_H

#include "quorum/verify-read.h"
#include "quorum/verify.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define SIZE_MAX_BYTES (5u << 20)
#define SECTORS_MAX    (SIZE_MAX_BYTES / 512 + 1)
#define REPLICAS_MAX   5u
#define EXTENTS_MAX    64
#define LENT_BYTES     (3u * VERIFY_PIECE_MAX)

struct chain {
    uint8_t *data;
    bool bad[SECTORS_MAX]; /* reading it fails */
    uint64_t ends[EXTENTS_MAX];
    bool zero[EXTENTS_MAX];
    unsigned n_extents;
    int error;     /* of bad sectors */
    unsigned once; /* so many reads fail that would succeed */
    unsigned reads;
    unsigned announced; /* of them, with the same arguments */
    struct {
        const void *buf;
        uint64_t offset;
        size_t length;
    } ahead[2];    /* what was announced last; length 0: nothing */
    uint8_t *lent; /* LENT_BYTES, NULL: nothing is lent */
};

struct disk {
    uint64_t size;
    unsigned n, threshold;
    uint64_t stale, stale_at, stale_length; /* these replicas missed that range */
    struct chain replicas[REPLICAS_MAX];
};

uint64_t disk_size(disk *d)
{
    return d->size;
}

unsigned disk_threshold(const disk *d)
{
    return d->threshold;
}

unsigned disk_replica_count(const disk *d)
{
    return d->n;
}

uint64_t disk_voter_run(disk *d, uint64_t offset, uint64_t end, uint64_t *ret_end)
{
    uint64_t stale_end = d->stale_at + d->stale_length;
    bool inside = offset >= d->stale_at && offset < stale_end;
    *ret_end = inside                 ? MIN(end, stale_end)
               : offset < d->stale_at ? MIN(end, d->stale_at)
                                      : end;
    return (~UINT64_C(0) >> (64 - d->n)) & ~(inside ? d->stale : 0);
}

chain *disk_chain(disk *d, unsigned i)
{
    return &d->replicas[i];
}

static bool is_ahead(const chain *c, unsigned i, const void *buf, uint64_t offset,
                     size_t length)
{
    return c->ahead[i].length == length && c->ahead[i].offset == offset &&
           c->ahead[i].buf == buf;
}

void chain_read_ahead(chain *c, void *buf, uint64_t offset, size_t length)
{
    cr_assert(length > 0 && offset + length <= SIZE_MAX_BYTES);
    if (is_ahead(c, 0, buf, offset, length) || is_ahead(c, 1, buf, offset, length))
        return;
    unsigned i = c->ahead[0].length != 0;
    cr_assert_eq(c->ahead[i].length, 0u, "more than two at a time");
    c->ahead[i].buf = buf;
    c->ahead[i].offset = offset;
    c->ahead[i].length = length;
}

uint8_t *chain_lend(chain *c, size_t length)
{
    return length <= LENT_BYTES ? c->lent : NULL;
}

int chain_read(chain *c, void *buf, uint64_t offset, size_t length)
{
    c->reads++;
    for (unsigned i = 0; i < 2; i++) {
        if (is_ahead(c, i, buf, offset, length)) {
            c->announced++;
            c->ahead[i].length = 0;
        }
    }
    if (c->once > 0) {
        c->once--;
        return -EIO;
    }
    for (uint64_t s = offset / 512; s * 512 < offset + length; s++) {
        if (c->bad[s])
            return c->error;
    }
    memcpy(buf, c->data + offset, length);
    return 0;
}

int chain_map(chain *c, uint64_t offset, uint64_t length, chain_extent *ret_extent)
{
    for (unsigned i = 0; i < c->n_extents; i++) {
        if (offset < c->ends[i]) {
            *ret_extent = (chain_extent){
                .kind = c->zero[i] ? i % 2 ? IMAGE_EXTENT_ZERO : IMAGE_EXTENT_UNALLOCATED
                                   : IMAGE_EXTENT_DATA,
                .length = MIN(c->ends[i] - offset, length),
            };
            return 0;
        }
    }
    return -EIO; /* also allowed: the bytes are then read */
}

static disk *disk_make(unsigned n, unsigned threshold, uint64_t size)
{
    disk *d = g_new0(disk, 1);
    d->n = n;
    d->threshold = threshold;
    d->size = size;
    for (unsigned i = 0; i < n; i++) {
        struct chain *c = &d->replicas[i];
        c->data = g_malloc(size + 1);
        c->error = -EIO;
        support_pattern(c->data, size, 0, 1);
        c->ends[0] = size;
        c->n_extents = 1;
    }
    return d;
}

static void disk_free(disk *d)
{
    for (unsigned i = 0; i < d->n; i++)
        g_free(d->replicas[i].data);
    g_free(d);
}

#endif
