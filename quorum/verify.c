/*
 * verify.c: reads all replicas from end to end and votes.
 *
 * Each replica has a reader (verify-read.c) that runs ahead. This thread takes the longest
 * stretch that lies in one span of every replica, at most one piece of data, so that within
 * it each replica either has bytes, is zero by its map, or failed. Where all are zero by
 * their maps nothing is looked at. Where all have bytes one memcmp pass decides; where some
 * are zero the others are only checked for zeroes. Everything else goes through the full
 * vote, and what it finds is merged with what the stretch before ended in: a range is
 * reported when the next one differs from it, so that every range is as long as it can be.
 *
 * Memory: two pieces per reader, which are smaller where there are many readers.
 */
#include "quorum/verify.h"
#include "quorum/verify-digest.h"
#include "quorum/verify-read.h"
#include <string.h>

#define READ_AHEAD_BYTES (24u << 20)
#define WAIT_US          100000
#define PROGRESS_US      100000
#define PROGRESS_BYTES   ((uint64_t)64 << 20)

static const uint8_t zeroes[VERIFY_PIECE_MAX];

typedef struct verification {
    const verify_options *options;
    verify_summary *summary;
    verify_digest *digest;
    verify_reader *readers[VOTE_REPLICAS_MAX];
    verify_span spans[VOTE_REPLICAS_MAX];
    vote_ballot ballots[VOTE_REPLICAS_MAX];
    vote_verdict verdict;
    unsigned n, threshold;
    uint64_t at;          /* everything before is verified */
    verify_range pending; /* the range that ends at `at`; length 0: none */
    int64_t told_us;      /* when and where progress was reported last */
    uint64_t told_at;
} verification;

/* --- ranges --- */

static void range_flush(verification *v)
{
    const verify_range *range = &v->pending;
    if (range->length == 0)
        return;
    v->summary->differing_ranges += range->n_groups > 1;
    v->summary->no_majority_ranges += range->winners == 0;
    v->summary->read_error_ranges += range->failed != 0;
    if (v->options->on_range)
        v->options->on_range(v->options->opaque, range);
    v->pending.length = 0;
}

static void range_count(verification *v, const verify_range *range)
{
    verify_summary *s = v->summary;
    s->differing_bytes += range->n_groups > 1 ? range->length : 0;
    s->no_majority_bytes += range->winners == 0 ? range->length : 0;
    s->read_error_bytes += range->failed != 0 ? range->length : 0;
    for (unsigned i = 0; i < v->n; i++) {
        if (range->losers >> i & 1)
            s->replica_differing_bytes[i] += range->length;
        if (range->failed >> i & 1)
            s->replica_error_bytes[i] += range->length;
    }
}

static void range_add(verification *v, const verify_range *range)
{
    range_count(v, range);
    verify_range *last = &v->pending;
    /* The groups decide who wins, loses and failed. */
    if (last->length && last->offset + last->length == range->offset &&
        memcmp(last->group, range->group, sizeof last->group) == 0) {
        last->length += range->length;
        return;
    }
    range_flush(v);
    *last = *range;
}

/* --- one stretch --- */

static bool is_zero(const uint8_t *data, size_t length)
{
    static const uint8_t none[16];
    if (length <= sizeof none)
        return memcmp(data, none, length) == 0;
    return memcmp(data, none, sizeof none) == 0 &&
           memcmp(data, data + sizeof none, length - sizeof none) == 0;
}

/* The vote's run at `offset` of the stretch, or what lies before the next run: there all
 * that voted agree, and if nobody failed there is nothing to tell. */
static void settle_run(verification *v, uint64_t offset, uint64_t length,
                       const vote_range *run, uint64_t failed)
{
    uint64_t voters = ~failed & (~UINT64_C(0) >> (64 - v->n));
    verify_range range = {v->at + offset, length, .failed = failed};
    if (run) {
        range.winners = run->winners;
        range.n_groups = run->n_groups;
        memcpy(range.group, run->group, sizeof range.group);
    } else {
        bool enough = (unsigned)__builtin_popcountll(voters) >= v->threshold;
        range.winners = enough ? voters : 0;
        range.n_groups = voters != 0;
        for (unsigned i = 0; i < v->n; i++)
            range.group[i] = voters >> i & 1 ? 0 : VOTE_NO_GROUP;
    }
    /* What lies beyond the last replica says nothing; make it comparable. */
    memset(range.group + v->n, VOTE_NO_GROUP, sizeof range.group - v->n);
    range.losers = range.winners ? voters & ~range.winners : 0;
    if (range.winners)
        verify_digest_add(
            v->digest, v->ballots[__builtin_ctzll(range.winners)].data + offset, length);
    else
        verify_digest_add_unknown(v->digest, length);
    if (run || failed)
        range_add(v, &range);
    else
        range_flush(v);
}

static void stretch_vote(verification *v, uint64_t length, uint64_t failed)
{
    vote_count(v->ballots, v->n, v->threshold, length, NULL, &v->verdict);
    uint64_t done = 0;
    for (size_t i = 0; i < v->verdict.n_ranges; i++) {
        const vote_range *run = &v->verdict.ranges[i];
        if (run->offset > done)
            settle_run(v, done, run->offset - done, NULL, failed);
        settle_run(v, run->offset, run->length, run, failed);
        done = run->offset + run->length;
    }
    if (done < length)
        settle_run(v, done, length - done, NULL, failed);
}

/* Whether nobody failed and all agree. */
static bool stretch_agrees(const verification *v, uint64_t length, uint64_t failed,
                           uint64_t zero)
{
    if (failed)
        return false;
    if (!zero)
        return vote_unanimous(v->ballots, v->n, v->threshold, length);
    for (unsigned i = 0; i < v->n; i++) {
        if (!(zero >> i & 1) && !is_zero(v->spans[i].data, length))
            return false;
    }
    return true;
}

static void stretch_verify(verification *v, uint64_t length)
{
    uint64_t failed = 0, zero = 0;
    for (unsigned i = 0; i < v->n; i++) {
        const verify_span *span = &v->spans[i];
        failed |= (uint64_t)(span->error != 0) << i;
        zero |= (uint64_t)(!span->data && !span->error) << i;
        v->ballots[i] =
            (vote_ballot){span->data ? span->data : zeroes, span->error, false};
    }
    if (zero == ~UINT64_C(0) >> (64 - v->n)) {
        range_flush(v);
        v->summary->skipped_bytes += length;
        verify_digest_add(v->digest, NULL, length);
        return;
    }
    v->summary->checked_bytes += length;
    if (stretch_agrees(v, length, failed, zero)) {
        range_flush(v);
        verify_digest_add(v->digest, zero ? NULL : v->ballots[0].data, length);
    } else {
        stretch_vote(v, length, failed);
    }
}

/* --- the whole disk --- */

static bool cancelled(const verification *v)
{
    return v->options->cancel && *v->options->cancel;
}

static void progress(verification *v, bool force)
{
    if (!v->options->on_progress)
        return;
    int64_t now = g_get_monotonic_time();
    if (!force && now - v->told_us < PROGRESS_US && v->at - v->told_at < PROGRESS_BYTES)
        return;
    v->told_us = now;
    v->told_at = v->at;
    v->options->on_progress(v->options->opaque, v->at, v->summary->size);
}

/* Fetches every replica's span at v->at. Returns how many bytes they have in common, at
 * most a piece unless all are zero by their maps; 0: cancelled. */
static uint64_t stretch_fetch(verification *v)
{
    uint64_t length = UINT64_MAX;
    for (unsigned i = 0; i < v->n; i++) {
        while (!verify_reader_peek(v->readers[i], WAIT_US, &v->spans[i])) {
            progress(v, false);
            if (cancelled(v))
                return 0;
        }
        length = MIN(length, v->spans[i].length);
    }
    return length;
}

static void verify_disk(verification *v)
{
    progress(v, true);
    while (v->at < v->summary->size && !cancelled(v)) {
        uint64_t length = stretch_fetch(v);
        if (length == 0)
            break;
        stretch_verify(v, length);
        for (unsigned i = 0; i < v->n; i++)
            verify_reader_consume(v->readers[i], length);
        v->at += length;
        progress(v, v->at == v->summary->size);
    }
    range_flush(v);
    v->summary->interrupted = v->at < v->summary->size;
    if (!v->summary->interrupted)
        verify_digest_end(v->digest);
}

void verify_run(disk *d, const verify_options *options, verify_summary *ret_summary)
{
    *ret_summary = (verify_summary){.size = disk_size(d)};
    verification v = {
        .options = options,
        .summary = ret_summary,
        .digest = verify_digest_new(options),
        .n = disk_replica_count(d),
        .threshold = disk_threshold(d),
    };
    vote_verdict_init(&v.verdict);
    size_t piece = VERIFY_PIECE_MAX;
    while (2 * piece * v.n > READ_AHEAD_BYTES)
        piece /= 2;
    for (unsigned i = 0; i < v.n; i++)
        v.readers[i] = verify_reader_new(disk_chain(d, i), ret_summary->size, piece);
    verify_disk(&v);
    for (unsigned i = 0; i < v.n; i++)
        verify_reader_free(v.readers[i]);
    vote_verdict_clear(&v.verdict);
    verify_digest_free(v.digest);
}

int verify_exit_code(const verify_summary *summary)
{
    if (summary->no_majority_bytes)
        return 5;
    if (summary->read_error_bytes)
        return 4;
    return summary->differing_bytes ? 1 : 0;
}
