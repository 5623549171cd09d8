/*
 * disk-pattern.c: reads that do not ask every replica.
 *
 * rotate: as many as decide the vote are asked (pattern.h). If they agree, that is what all
 * would have answered together; if one of them fails or differs, the rest is asked and all
 * vote, so R1 to R3 hold as ever. What the others hold there is not seen: a replica that
 * rotted is found out when it is its turn.
 *
 * fifo: no vote. The first replica in the order of the list that votes there and can be read
 * is served. One that fails is journalled (R4) and the next one asked. If none can read all
 * of it, each sector comes from the first that can read that. Fewer voters than the threshold
 * are still none (R5, W3): what a lone replica took of a write that failed is not the disk's
 * until the others are asked.
 *
 * Copies from one replica to another always vote (disk_read_run), and so do reads of what a
 * crash left different and nobody may reconcile: one version of a sector is no better there
 * than another (W6).
 *
 * Pace: all whom a rotating read asked at first are charged with the time until the last of
 * them answered, one that failed with FAILED_NS at least, so that one that fails at once does
 * not pass for fast. Figures are of a moment and races lose at most a sample.
 */
#include "quorum/disk-internal.h"
#include "quorum/pattern.h"
#include <errno.h>
#include <string.h>

#define FAILED_NS (100u * 1000 * 1000)
#define PROBE_US  G_USEC_PER_SEC

static const char *const pattern_names[] = {
    [DISK_PATTERN_QUORUM] = "quorum",
    [DISK_PATTERN_ROTATE] = "rotate",
    [DISK_PATTERN_FIFO] = "fifo",
};

const char *disk_pattern_name(disk_pattern pattern)
{
    return pattern_names[pattern];
}

bool disk_pattern_find(const char *name, disk_pattern *ret_pattern)
{
    for (unsigned k = 0; k < G_N_ELEMENTS(pattern_names); k++) {
        if (strcmp(name, pattern_names[k]) != 0)
            continue;
        *ret_pattern = (disk_pattern)k;
        return true;
    }
    return false;
}

disk_pattern disk_read_pattern(const disk *d)
{
    return d->read_pattern;
}

bool disk_blkverify(const disk *d)
{
    return d->blkverify;
}

bool disk_pattern_check(const disk_options *options, GError **error)
{
    const char *why = NULL;
    if (!options->blkverify)
        return true;
    if (options->replicas->len != 2 || (options->threshold && options->threshold != 2))
        why = "can only be set with exactly two replicas and a threshold of 2";
    else if (options->read_pattern != DISK_PATTERN_QUORUM)
        why = "compares both replicas on every read (needs read-pattern=quorum)";
    else if (options->on_divergence_repair)
        why = "only compares (on-divergence=repair cannot be used with it)";
    if (why)
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS, "blkverify %s", why);
    return !why;
}

/* Asks these too. Whoever is out by now is left alone, and who did not answer is out before
 * this waits again: the requests beside it need not wait for that one. */
static void ask_more(disk *d, disk_thread *thread, uint64_t more, disk_reading *reading)
{
    disk_reading answers;
    disk_lose_all(d, reading, "read");
    more &= disk_takers(d);
    if (more == 0)
        return;
    disk_gather(d, thread, more, reading->offset, reading->length, &answers);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(more, i))
            continue;
        reading->ballots[i] = answers.ballots[i];
        reading->sector_errors[i] = answers.sector_errors[i];
    }
    reading->asked |= more;
    reading->gone |= answers.gone;
}

/* ---- rotate ----------------------------------------------------------------------------- */

/* One request a second tries those again that were slow. */
static bool may_probe(disk *d, gint64 now)
{
    gint64 last = atomic_load_explicit(&d->probed_us, memory_order_relaxed);
    return now - last >= PROBE_US &&
           atomic_compare_exchange_strong(&d->probed_us, &last, now);
}

static pattern_choice choose(disk *d, uint64_t voters, uint64_t offset, gint64 now)
{
    uint64_t pace[VOTE_REPLICAS_MAX];
    for (unsigned i = 0; i < d->n; i++)
        pace[i] = atomic_load_explicit(&d->replicas[i].pace_ns, memory_order_relaxed);
    uint64_t reads = atomic_load_explicit(&d->reads, memory_order_relaxed);
    return pattern_choose(&(pattern_view){
        .n = d->n,
        .voters = voters,
        .threshold = d->threshold,
        .pace = pace,
        .turn = pattern_turn(offset, reads),
        .probe = may_probe(d, now),
    });
}

/* A probe tells of the one that was probed, and nothing of those that waited for it. */
static void note_pace(disk *d, const pattern_choice *choice, const disk_reading *reading,
                      gint64 us)
{
    uint64_t ns = (uint64_t)us * 1000;
    uint64_t charged = choice->probed ? choice->probed : choice->asked;
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(charged, i))
            continue;
        atomic_uint_fast64_t *pace = &d->replicas[i].pace_ns;
        uint64_t before = atomic_load_explicit(pace, memory_order_relaxed);
        uint64_t took = reading->ballots[i].error ? MAX(ns, FAILED_NS) : ns;
        uint64_t now = pattern_pace(before, took, reading->length, choice->probed != 0);
        atomic_store_explicit(pace, now, memory_order_relaxed);
    }
}

static int read_rotating(disk *d, uint64_t voters, uint64_t offset, size_t length,
                         const uint8_t **ret_data)
{
    disk_thread *thread = disk_thread_get(d->n);
    disk_reading reading;
    gint64 began = g_get_monotonic_time();
    pattern_choice choice = choose(d, voters, offset, began);
    disk_gather(d, thread, choice.asked, offset, length, &reading);
    note_pace(d, &choice, &reading, g_get_monotonic_time() - began);
    const uint8_t *data = reading.ballots[__builtin_ctzll(choice.asked)].data;
    unsigned asked = disk_set_size(choice.asked);
    if (!vote_unanimous(reading.ballots, d->n, asked, reading.length)) {
        ask_more(d, thread, voters & ~choice.asked, &reading);
        int r = disk_judge(d, thread, &reading, &data);
        disk_reading_clear(&reading);
        if (r < 0)
            return r;
    }
    *ret_data = data + (offset - reading.offset);
    return 0;
}

/* ---- fifo ------------------------------------------------------------------------------- */

/* Each sector from the first replica that can read it; false: one cannot be had. */
static bool join_sectors(const disk *d, const disk_reading *reading, uint8_t *out)
{
    for (size_t at = 0; at < reading->length; at += VOTE_SECTOR) {
        unsigned i = 0;
        while (i < d->n &&
               (reading->ballots[i].abstains || disk_sector_error(reading, i, at) != 0))
            i++;
        if (i == d->n)
            return false;
        memcpy(out + at, reading->ballots[i].data + at,
               MIN(VOTE_SECTOR, reading->length - at));
    }
    return true;
}

/* At least one failed; `whole` did not, or is n. */
static int serve_after_errors(disk *d, disk_thread *thread, disk_reading *reading,
                              unsigned whole, const uint8_t **ret_data)
{
    disk_recover(d, reading);
    if (whole < d->n)
        *ret_data = reading->ballots[whole].data;
    else if (join_sectors(d, reading, disk_thread_voted(thread)))
        *ret_data = thread->voted;
    else
        return disk_judge_recovered(d, thread, reading, ret_data);
    disk_report_failures(d, reading, "read", "served");
    disk_note_repairs(d, reading, NULL);
    disk_lose_all(d, reading, "read");
    return 0;
}

static int read_first(disk *d, uint64_t voters, uint64_t offset, size_t length,
                      const uint8_t **ret_data)
{
    disk_thread *thread = disk_thread_get(d->n);
    disk_reading reading;
    unsigned i = (unsigned)__builtin_ctzll(voters);
    disk_gather(d, thread, UINT64_C(1) << i, offset, length, &reading);
    const uint8_t *data = reading.ballots[i].data;
    if (reading.ballots[i].error != 0) {
        while (i < d->n && (reading.ballots[i].abstains || reading.ballots[i].error != 0))
            if (++i < d->n && disk_has_bit(voters, i))
                ask_more(d, thread, UINT64_C(1) << i, &reading);
        int r = serve_after_errors(d, thread, &reading, i, &data);
        disk_reading_clear(&reading);
        if (r < 0)
            return r;
    }
    *ret_data = data + (offset - reading.offset);
    return 0;
}

int disk_serve_run(disk *d, uint64_t voters, uint64_t offset, size_t length,
                   const uint8_t **ret_data)
{
    unsigned n_voters = disk_set_size(voters);
    bool chosen = n_voters >= d->threshold;
    if (d->store && state_is_unreconciled(d->store, offset, length))
        chosen = false;
    if (d->read_pattern == DISK_PATTERN_FIFO && chosen)
        return read_first(d, voters, offset, length, ret_data);
    if (d->read_pattern == DISK_PATTERN_ROTATE && chosen &&
        pattern_quota(d->threshold, n_voters) < n_voters)
        return read_rotating(d, voters, offset, length, ret_data);
    return disk_read_run(d, voters, offset, length, ret_data);
}
