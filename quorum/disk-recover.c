/*
 * disk-recover.c: a replica that failed a request may hold most of it all the same.
 *
 * What failed is read again in pieces of 64 KiB, inside those that fail in pieces of
 * 4 KiB, inside those by the sector; so that three replicas with three bad sectors still
 * serve a request (R2, R3) and the journal names the sectors and not the request (R4).
 * Who does not answer is not asked again: it would hold up the request once more (R5).
 *
 * Bounded: a request of which nothing can be read has some 16 + 256 + 2,048 pieces, and
 * what was not looked at after RECOVER_US counts as failed.
 */
#include "quorum/disk-internal.h"
#include <errno.h>

#define RECOVER_US (2 * G_USEC_PER_SEC) /* for each replica and request */

static const size_t piece_sizes[] = {64u << 10, 4u << 10, VOTE_SECTOR};
#define PIECE_LEVELS G_N_ELEMENTS(piece_sizes)

typedef struct recovery {
    const disk *disk;
    unsigned replica;
    uint64_t offset; /* of data[0] in the disk */
    uint8_t *data;
    int *sector_errors;
    gint64 deadline;
    bool over, gone;
} recovery;

static void recover_range(recovery *r, size_t at, size_t end, unsigned level);

static void recover_piece(recovery *r, size_t at, size_t length, unsigned level)
{
    if (g_get_monotonic_time() > r->deadline) {
        r->over = true;
        return;
    }
    disk_wait_for(r->disk, r->replica);
    int error = chain_read(r->disk->replicas[r->replica].chain, r->data + at,
                           r->offset + at, length);
    disk_wait_for_ever();
    for (size_t k = at; k < at + length; k += VOTE_SECTOR)
        r->sector_errors[k / VOTE_SECTOR] = error;
    r->gone = disk_is_gone(error);
    if (r->gone)
        r->over = true;
    else if (error < 0 && level + 1 < PIECE_LEVELS)
        recover_range(r, at, at + length, level + 1);
}

static void recover_range(recovery *r, size_t at, size_t end, unsigned level)
{
    size_t size = piece_sizes[level];
    while (at < end && !r->over) {
        size_t length = size - (size_t)((r->offset + at) % size);
        length = MIN(length, end - at);
        recover_piece(r, at, length, level);
        at += length;
    }
}

void disk_recover(disk *d, disk_reading *reading)
{
    size_t n_sectors = (reading->length + VOTE_SECTOR - 1) / VOTE_SECTOR;
    unsigned level = 0;
    while (level + 1 < PIECE_LEVELS && piece_sizes[level] >= reading->length)
        level++;

    for (unsigned i = 0; i < d->n; i++) {
        int error = reading->ballots[i].error;
        if (reading->ballots[i].abstains || error == 0)
            continue;
        int *sector_errors = g_new(int, n_sectors);
        for (size_t k = 0; k < n_sectors; k++)
            sector_errors[k] = error;
        reading->sector_errors[i] = sector_errors;
        recovery r = {
            .disk = d,
            .replica = i,
            .offset = reading->offset,
            .data = (uint8_t *)(uintptr_t)reading->ballots[i].data,
            .sector_errors = sector_errors,
            .deadline = g_get_monotonic_time() + RECOVER_US,
        };
        if (!disk_has_bit(reading->gone, i))
            recover_range(&r, 0, reading->length, level);
        reading->gone |= (uint64_t)r.gone << i;
    }
}
