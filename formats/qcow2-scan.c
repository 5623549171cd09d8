/*
 * qcow2-scan.c: looking for a free cluster further than a few reads go. The first allocation
 * passes the refcounts of everything that is in use, which in a large image of small clusters
 * is hundreds of thousands of reads: they are made without the lock, in pieces, and what
 * they bring is looked at and thrown away, so that no table that is in use has to leave
 * memory for it.
 *
 * What is read so may be older than what is in memory. Slices that are there are preferred;
 * one that was changed, written and dropped while a piece was being read can hide a cluster
 * that was freed meanwhile, which then stays free until the next open. Nothing is given out
 * because of what was read here: whoever allocates looks again under the lock.
 */
#include "formats/qcow2-writer.h"

#define PIECE_BYTES (256u << 10)

typedef struct piece {
    uint64_t first;   /* cluster */
    size_t count;     /* slices */
    uint64_t *places; /* of the slices in the file */
    uint8_t *bytes;
} piece;

/* Under the lock. A block counts all of the piece. */
static void plan_piece(const qcow2_writer *w, piece *p)
{
    const qcow2_refcounts *r = &w->refcounts;
    uint64_t cluster = w->scan_at;
    p->first = cluster;
    p->count = 0;
    while ((p->count + 1) * w->map->slice_bytes <= PIECE_BYTES &&
           qcow2_refcounts_cover(r, cluster)) {
        uint64_t index;
        p->places[p->count++] = qcow2_refcounts_place(r, cluster, &index);
        cluster += qcow2_refcounts_per_slice(r) - index;
    }
}

/* Neighbours in one call. */
static int read_piece(const qcow2_writer *w, const piece *p)
{
    size_t bytes = w->map->slice_bytes;
    int error = 0;
    for (size_t i = 0, run; i < p->count && !error; i += run) {
        for (run = 1; i + run < p->count; run++)
            if (p->places[i + run] != p->places[i] + run * bytes)
                break;
        error = file_read_exact(w->fd, p->bytes + i * bytes, run * bytes, p->places[i]);
    }
    return error;
}

/* Under the lock. Returns whether all of the piece is in use. */
static bool pass_piece(qcow2_writer *w, const piece *p)
{
    const qcow2_refcounts *r = &w->refcounts;
    if (w->scan_at != p->first)
        return false; /* others were here */
    for (size_t i = 0; i < p->count; i++) {
        uint64_t index;
        qcow2_refcounts_place(r, w->scan_at, &index);
        const qcow2_slice *slice = qcow2_slices_find(w->map->slices, p->places[i]);
        const uint8_t *bytes = slice ? slice->bytes : p->bytes + i * w->map->slice_bytes;
        uint64_t found = qcow2_refcounts_find_in(r, bytes, index);
        w->scan_at += found - index;
        if (found < qcow2_refcounts_per_slice(r))
            return false;
    }
    return p->count > 0;
}

int qcow2_alloc_scan(qcow2_writer *w)
{
    g_autofree uint8_t *bytes = g_malloc(PIECE_BYTES);
    g_autofree uint64_t *places = g_new(uint64_t, PIECE_BYTES / w->map->slice_bytes);
    piece p = {.places = places, .bytes = bytes};
    bool all_used = true;
    int error = 0;
    while (all_used && !error) {
        pthread_mutex_lock(&w->map->lock);
        plan_piece(w, &p);
        pthread_mutex_unlock(&w->map->lock);
        error = read_piece(w, &p);
        if (error)
            break;
        pthread_mutex_lock(&w->map->lock);
        all_used = pass_piece(w, &p);
        pthread_mutex_unlock(&w->map->lock);
    }
    return error;
}
