/*
 * verify.c: reads all replicas from end to end and votes.
 *
 * Each replica has a reader (verify-read.c) that runs ahead. This thread takes the longest
 * stretch that lies in one span of every replica, at most one piece of data, so that within
 * it each replica either has bytes, is zero by its map, or failed. Where all are zero by
 * their maps nothing is looked at. Else as much as possible is settled in one pass that
 * compares every replica's bytes with the first one's, or with zeroes if some map has zeroes
 * there. From where that pass ends on, everything goes through the full vote, and what it finds is merged with what the stretch before ended in: a range is
 * reported when the next one differs from it, so that every range is as long as it can be.
 *
 * A replica's bytes may change while we look at them (verify-read.h): its decoder's process
 * must not show one thing to one comparison and another to the next. The first pass looks at
 * each byte once, the first replica's in a copy that stays in the L1 cache and that is also
 * what is hashed; the full vote is held on copies.
 *
 * A replica that is stale somewhere, by what is recorded of the disk, does not vote there
 * (W2), but its bytes are compared like all others: who was outvoted by those that are current
 * has lost, and what it holds decides whether it has to be written to.
 *
 * Memory: three pieces per reader and one for its copy, which are smaller where there are
 * many readers.
 */
#include "quorum/verify.h"
#include "quorum/verify-digest.h"
#include "quorum/verify-read.h"
#include <string.h>

#define MEMORY_BYTES   (24u << 20)
#define PIECES_EACH    4u
#define CHUNK          (16u << 10)
#define WAIT_US        100000
#define PROGRESS_US    100000
#define PROGRESS_BYTES ((uint64_t)64 << 20)

static const uint8_t zeroes[VERIFY_PIECE_MAX];

typedef struct verification {
    disk *d;
    const verify_options *options;
    verify_summary *summary;
    verify_digest *digest;
    verify_reader *readers[VOTE_REPLICAS_MAX];
    verify_span spans[VOTE_REPLICAS_MAX];
    vote_ballot ballots[VOTE_REPLICAS_MAX];
    vote_verdict verdict;
    size_t piece;
    uint8_t *copies; /* a piece for each replica; NULL: not needed so far */
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
    /* The groups, and who is current, decide who wins, loses and failed. */
    if (last->length && last->offset + last->length == range->offset &&
        last->winners == range->winners &&
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

/* Who holds what won among those that are current; of equal groups the one with the replica
 * listed first (R2). */
static uint64_t elect(const verification *v, const verify_range *range, uint64_t current)
{
    unsigned size[VOTE_REPLICAS_MAX] = {0}, best = VOTE_NO_GROUP;
    for (unsigned i = 0; i < v->n; i++)
        if (range->group[i] != VOTE_NO_GROUP && current >> i & 1)
            size[range->group[i]]++;
    for (unsigned i = 0; i < v->n; i++) {
        unsigned group = range->group[i];
        if (group != VOTE_NO_GROUP && size[group] >= v->threshold &&
            (best == VOTE_NO_GROUP || size[group] > size[best]))
            best = group;
    }
    uint64_t winners = 0;
    for (unsigned i = 0; i < v->n && best != VOTE_NO_GROUP; i++)
        winners |= (uint64_t)(range->group[i] == best) << i;
    return winners;
}

/* The vote's run at `offset` of the stretch at `start`, or what lies before the next run:
 * there all that voted agree, and if nobody failed there is nothing to tell. `current`: those
 * whose vote counts. */
static void settle_run(verification *v, uint64_t start, uint64_t offset, uint64_t length,
                       const vote_range *run, uint64_t failed, uint64_t current)
{
    uint64_t voters = ~failed & (~UINT64_C(0) >> (64 - v->n));
    verify_range range = {start + offset, length, .failed = failed};
    if (run) {
        range.n_groups = run->n_groups;
        memcpy(range.group, run->group, sizeof range.group);
        range.winners = elect(v, &range, current);
    } else {
        unsigned votes = (unsigned)__builtin_popcountll(voters & current);
        range.winners = votes >= v->threshold ? voters : 0;
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

/* A copy of what is voted on, from the spans' byte `from` on. */
static void ballots_fill(verification *v, uint64_t from, size_t length)
{
    if (!v->copies)
        v->copies = g_malloc(v->n * v->piece);
    for (unsigned i = 0; i < v->n; i++) {
        const verify_span *span = &v->spans[i];
        uint8_t *copy = v->copies + i * v->piece;
        if (span->data)
            memcpy(copy, span->data + from, length);
        v->ballots[i] = (vote_ballot){span->data ? copy : zeroes, span->error, false};
    }
}

static uint64_t failed_replicas(const verification *v)
{
    uint64_t failed = 0;
    for (unsigned i = 0; i < v->n; i++)
        if (v->ballots[i].error)
            failed |= UINT64_C(1) << i;
    return failed;
}

/* A part of the stretch in which the same replicas are current. */
static void part_vote(verification *v, uint64_t from, uint64_t length, uint64_t current)
{
    uint64_t start = v->at + from, done = 0;
    ballots_fill(v, from, length);
    uint64_t failed = failed_replicas(v);
    vote_count(v->ballots, v->n, v->threshold, length, NULL, &v->verdict);
    for (size_t i = 0; i < v->verdict.n_ranges; i++) {
        const vote_range *run = &v->verdict.ranges[i];
        if (run->offset > done)
            settle_run(v, start, done, run->offset - done, NULL, failed, current);
        settle_run(v, start, run->offset, run->length, run, failed, current);
        done = run->offset + run->length;
    }
    if (done < length)
        settle_run(v, start, done, length - done, NULL, failed, current);
}

static void stretch_vote(verification *v, uint64_t from, uint64_t length)
{
    uint64_t end = v->at + from + length, run_end;
    for (uint64_t at = v->at + from; at < end; at = run_end) {
        uint64_t current = disk_voter_run(v->d, at, end, &run_end);
        part_vote(v, at - v->at, run_end - at, current);
    }
}

/* Whether all replicas that have bytes agree on these, `first` being one of them; if so
 * they are hashed. */
static bool chunk_agrees(verification *v, unsigned first, bool zero, uint64_t from,
                         size_t length)
{
    uint8_t copy[CHUNK];
    memcpy(copy, v->spans[first].data + from, length);
    if (zero && !is_zero(copy, length))
        return false;
    for (unsigned i = first + 1; i < v->n; i++) {
        if (v->spans[i].data && memcmp(copy, v->spans[i].data + from, length) != 0)
            return false;
    }
    verify_digest_add(v->digest, zero ? NULL : copy, length);
    return true;
}

/* How many bytes of the stretch are settled because nobody failed and all agree. */
static uint64_t stretch_agree(verification *v, uint64_t length)
{
    bool zero = false;
    unsigned first = v->n;
    for (unsigned i = v->n; i-- > 0;) {
        if (v->spans[i].error)
            return 0;
        zero |= !v->spans[i].data;
        first = v->spans[i].data ? i : first;
    }
    uint64_t done = 0;
    while (done < length && chunk_agrees(v, first, zero, done, MIN(length - done, CHUNK)))
        done += MIN(length - done, CHUNK);
    return done;
}

static bool stretch_is_zero(const verification *v)
{
    for (unsigned i = 0; i < v->n; i++)
        if (v->spans[i].data || v->spans[i].error)
            return false;
    return true;
}

static void stretch_verify(verification *v, uint64_t length)
{
    if (stretch_is_zero(v)) {
        range_flush(v);
        v->summary->skipped_bytes += length;
        verify_digest_add(v->digest, NULL, length);
        return;
    }
    v->summary->checked_bytes += length;
    uint64_t agreed = stretch_agree(v, length);
    if (agreed > 0)
        range_flush(v);
    if (agreed < length)
        stretch_vote(v, agreed, length - agreed);
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
        .d = d,
        .options = options,
        .summary = ret_summary,
        .digest = verify_digest_new(options),
        .n = disk_replica_count(d),
        .threshold = disk_threshold(d),
        .piece = VERIFY_PIECE_MAX,
    };
    vote_verdict_init(&v.verdict);
    while (PIECES_EACH * v.piece * v.n > MEMORY_BYTES)
        v.piece /= 2;
    for (unsigned i = 0; i < v.n; i++)
        v.readers[i] = verify_reader_new(disk_chain(d, i), ret_summary->size, v.piece);
    verify_disk(&v);
    for (unsigned i = 0; i < v.n; i++)
        verify_reader_free(v.readers[i]);
    vote_verdict_clear(&v.verdict);
    g_free(v.copies);
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
