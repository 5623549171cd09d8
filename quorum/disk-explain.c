/*
 * disk-explain.c: who holds what, and where it lies.
 *
 * The range is read a request at a time under a shared lock, cut into segments in which
 * nothing changes (who could be read, who agrees with whom, which extent each replica
 * serves it from), and neighbouring segments that are alike grow into one run, also
 * across requests: digests are computed as the run grows. Rows of finished runs are
 * handed over when no lock is held.
 *
 * A replica that is out, or stale there, is not read: what it holds was overtaken.
 * Its error is ESTALE.
 */
#include "quorum/disk-internal.h"
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

typedef struct explain_segment {
    uint64_t offset, length, winners;
    uint8_t group[VOTE_REPLICAS_MAX];
    uint8_t n_groups;
    int errors[VOTE_REPLICAS_MAX]; /* positive errno; 0: read */
    chain_extent extents[VOTE_REPLICAS_MAX];
} explain_segment;

typedef struct explanation {
    disk *d;
    explain_segment run;                  /* the one that grows; length 0: none yet */
    const char *files[VOTE_REPLICAS_MAX]; /* of the run's layers, interned; NULL: none */
    EVP_MD_CTX *digests[VOTE_REPLICAS_MAX];
    GArray *rows; /* of disk_explain_row: finished */
} explanation;

static void finish_run(explanation *e)
{
    const explain_segment *run = &e->run;
    bool failures = false;
    for (unsigned i = 0; i < e->d->n; i++)
        failures |= run->errors[i] != 0;
    for (unsigned i = 0; i < e->d->n && run->length > 0; i++) {
        const disk_replica *replica = &e->d->replicas[i];
        disk_explain_row row = {
            .offset = run->offset,
            .length = run->length,
            .replica = replica->name,
            .replica_index = i,
            .error = run->errors[i],
            .wins = disk_has_bit(run->winners, i),
            .no_quorum = run->winners == 0,
            .differs = run->n_groups > 1 || failures,
            .extent = run->extents[i],
        };
        row.extent.length = run->length;
        row.layer_file = e->files[i];
        if (!row.error)
            EVP_DigestFinal_ex(e->digests[i], row.sha256, NULL);
        g_array_append_val(e->rows, row);
    }
    e->run.length = 0;
}

static bool extent_goes_on(const chain_extent *a, const chain_extent *b, uint64_t after)
{
    if (a->kind != b->kind || a->layer != b->layer || a->has_host != b->has_host)
        return false;
    if (a->kind == IMAGE_EXTENT_COMPRESSED)
        return a->host_offset == b->host_offset;
    return !a->has_host || a->host_offset + after == b->host_offset;
}

static bool run_goes_on(const explanation *e, const explain_segment *next)
{
    const explain_segment *run = &e->run;
    unsigned n = e->d->n;
    if (run->length == 0 || memcmp(run->group, next->group, n) != 0 ||
        memcmp(run->errors, next->errors, n * sizeof(run->errors[0])) != 0)
        return false;
    for (unsigned i = 0; i < n; i++)
        if (!extent_goes_on(&run->extents[i], &next->extents[i], run->length))
            return false;
    return true;
}

/* Under the range lock: the chains may be others when the run is finished. */
static void name_files(explanation *e)
{
    for (unsigned i = 0; i < e->d->n; i++) {
        const chain *c = e->d->replicas[i].chain;
        const char *file =
            c ? chain_get_layer(c, e->run.extents[i].layer)->filename : NULL;
        e->files[i] = file ? g_intern_string(file) : NULL;
    }
}

static void add_segment(explanation *e, const explain_segment *segment,
                        const disk_reading *reading)
{
    bool goes_on = run_goes_on(e, segment);
    if (!goes_on) {
        finish_run(e);
        e->run = *segment;
        e->run.length = 0;
        name_files(e);
    }
    e->run.length += segment->length;
    for (unsigned i = 0; i < e->d->n; i++) {
        if (segment->errors[i])
            continue;
        if (!goes_on)
            EVP_DigestInit_ex(e->digests[i], EVP_sha256(), NULL);
        EVP_DigestUpdate(e->digests[i],
                         reading->ballots[i].data + (segment->offset - reading->offset),
                         segment->length);
    }
}

/* The grouping at `at`, from the listed range there or, where none is listed, of voters
 * that all agree. Returns where it ends. */
static uint64_t segment_group(const explanation *e, const disk_reading *reading,
                              const disk_verdict *verdict, unsigned *next, size_t at,
                              explain_segment *segment)
{
    const vote_range *range = NULL;
    for (; *next < verdict->ranges->len; (*next)++) {
        range = &g_array_index(verdict->ranges, vote_range, *next);
        if (range->offset + range->length > at)
            break;
        range = NULL;
    }
    if (range && range->offset <= at) {
        segment->winners = range->winners;
        segment->n_groups = range->n_groups;
        memcpy(segment->group, range->group, sizeof(segment->group));
        return range->offset + range->length;
    }
    segment->winners = 0;
    segment->n_groups = 1;
    for (unsigned i = 0; i < e->d->n; i++) {
        bool votes = !segment->errors[i];
        segment->group[i] = votes ? 0 : VOTE_NO_GROUP;
        segment->winners |= (uint64_t)votes << i;
    }
    return range ? range->offset : reading->length;
}

static size_t segment_at(const explanation *e, const disk_reading *reading,
                         const disk_verdict *verdict, unsigned *next, size_t at,
                         explain_segment *segment)
{
    const disk *d = e->d;
    uint64_t end = disk_failure_run(d, reading, at);
    for (unsigned i = 0; i < d->n; i++)
        segment->errors[i] =
            reading->ballots[i].abstains ? ESTALE : -disk_sector_error(reading, i, at);
    end = MIN(end, segment_group(e, reading, verdict, next, at, segment));

    for (unsigned i = 0; i < d->n; i++) {
        chain_extent *extent = &segment->extents[i];
        bool asked = disk_has_bit(reading->asked & ~reading->gone, i);
        disk_wait_for(d, i);
        if (!asked ||
            chain_map(d->replicas[i].chain, reading->offset + at, end - at, extent) < 0)
            *extent = (chain_extent){.kind = IMAGE_EXTENT_DATA, .length = end - at};
        uint64_t limit = at + extent->length;
        if (limit < end) /* a sector is never split: it is voted on as one */
            end = MIN(end, (limit + VOTE_SECTOR - 1) & ~(uint64_t)(VOTE_SECTOR - 1));
    }
    disk_wait_for_ever();
    segment->offset = reading->offset + at;
    segment->length = end - at;
    return (size_t)end;
}

static int explain_piece(explanation *e, uint64_t voters, uint64_t offset, size_t length)
{
    disk *d = e->d;
    if (!disk_has_range(d, offset, length))
        return -EINVAL;
    disk_reading reading;
    disk_verdict verdict;
    explain_segment segment;
    unsigned next = 0;
    disk_gather(d, disk_thread_get(d->n), voters, offset, length, &reading);
    disk_recover(d, &reading);
    disk_vote(d, &reading, NULL, &verdict);
    disk_lose_all(d, &reading, "explain");
    for (size_t at = 0; at < reading.length;) {
        at = segment_at(e, &reading, &verdict, &next, at, &segment);
        add_segment(e, &segment, &reading);
    }
    disk_verdict_clear(&verdict);
    disk_reading_clear(&reading);
    return 0;
}

static void hand_over(explanation *e, disk_explain_fn row, void *opaque)
{
    for (unsigned k = 0; k < e->rows->len; k++)
        row(opaque, &g_array_index(e->rows, disk_explain_row, k));
    g_array_set_size(e->rows, 0);
}

int disk_explain(disk *d, uint64_t offset, uint64_t length, disk_explain_fn row,
                 void *opaque)
{
    if (length > DISK_EXPLAIN_MAX || offset > IMAGE_SIZE_MAX)
        return -EINVAL;
    g_autofree explanation *e = g_new0(explanation, 1);
    e->d = d;
    e->rows = g_array_new(FALSE, FALSE, sizeof(disk_explain_row));
    for (unsigned i = 0; i < d->n; i++)
        e->digests[i] = EVP_MD_CTX_new();

    int r = disk_has_range(d, offset, length) ? 0 : -EINVAL;
    uint64_t end = offset + length;
    offset &= ~(uint64_t)(VOTE_SECTOR - 1);
    while (offset < end && r == 0) {
        uint64_t piece = MIN(end - offset, DISK_REQUEST_MAX);
        rangelock_held held;
        disk_lock_sectors(d, &held, offset, piece, RANGELOCK_SHARED);
        uint64_t run_end, voters = disk_voter_run(d, offset, offset + piece, &run_end);
        piece = run_end - offset;
        r = explain_piece(e, voters, offset, (size_t)piece);
        rangelock_release(d->range_lock, &held);
        hand_over(e, row, opaque);
        offset += piece;
    }
    if (r == 0) {
        finish_run(e);
        hand_over(e, row, opaque);
    }
    for (unsigned i = 0; i < d->n; i++)
        EVP_MD_CTX_free(e->digests[i]);
    g_array_unref(e->rows);
    return r;
}
