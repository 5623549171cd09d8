/* The verification against a model, on replicas that are made up (verify-fake.h). */
#include "tests/verify-fake.h"
#include <criterion/criterion.h>

/* --- what the verification said --- */

typedef struct digest_said {
    uint64_t offset, length;
    bool known;
    char *sha256;
} digest_said;

typedef struct said {
    GArray *ranges;  /* of verify_range */
    GArray *digests; /* of digest_said */
    volatile int cancel;
    uint64_t cancel_after; /* ranges */
    uint64_t progress_last;
    bool progress_backwards;
} said;

static void hear_range(void *opaque, const verify_range *range)
{
    said *s = opaque;
    g_array_append_val(s->ranges, *range);
    s->cancel = s->cancel_after && s->ranges->len >= s->cancel_after;
}

static void hear_progress(void *opaque, uint64_t done, uint64_t size)
{
    said *s = opaque;
    s->progress_backwards |= done < s->progress_last || done > size;
    s->progress_last = done;
}

static void hear_digest(void *opaque, uint64_t offset, uint64_t length,
                        const uint8_t sha256[JOURNAL_DIGEST_SIZE], bool has_winner)
{
    said *s = opaque;
    GString *hex = g_string_new(NULL);
    for (unsigned i = 0; i < JOURNAL_DIGEST_SIZE; i++)
        g_string_append_printf(hex, "%02x", sha256[i]);
    digest_said d = {offset, length, has_winner, g_string_free(hex, FALSE)};
    g_array_append_val(s->digests, d);
}

static void said_init(said *s)
{
    *s = (said){.ranges = g_array_new(FALSE, FALSE, sizeof(verify_range)),
                .digests = g_array_new(FALSE, FALSE, sizeof(digest_said))};
}

static void said_clear(said *s)
{
    for (unsigned i = 0; i < s->digests->len; i++)
        g_free(g_array_index(s->digests, digest_said, i).sha256);
    g_array_unref(s->ranges);
    g_array_unref(s->digests);
}

static void run(disk *d, said *s, uint64_t manifest_range, verify_summary *ret_summary)
{
    verify_options options = {.on_range = hear_range,
                              .on_progress = hear_progress,
                              .on_digest = manifest_range ? hear_digest : NULL,
                              .manifest_range = manifest_range,
                              .opaque = s,
                              .cancel = &s->cancel};
    verify_run(d, &options, ret_summary);
    cr_assert(!s->progress_backwards);
}

static const verify_range *nth(const said *s, unsigned i)
{
    cr_assert_lt(i, s->ranges->len);
    return &g_array_index(s->ranges, verify_range, i);
}

static void assert_range(const said *s, unsigned i, uint64_t offset, uint64_t length,
                         uint64_t winners, uint64_t losers, uint64_t failed)
{
    const verify_range *r = nth(s, i);
    cr_assert_eq(r->offset, offset, "offset %llu", (unsigned long long)r->offset);
    cr_assert_eq(r->length, length, "length %llu", (unsigned long long)r->length);
    cr_assert_eq(r->winners, winners);
    cr_assert_eq(r->losers, losers);
    cr_assert_eq(r->failed, failed);
}

Test(verify_model, equal_replicas_say_nothing)
{
    disk *d = disk_make(3, 2, 1234567);
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 0u);
    cr_assert_eq(summary.checked_bytes, 1234567u);
    cr_assert_eq(summary.skipped_bytes, 0u);
    cr_assert_eq(s.progress_last, 1234567u);
    cr_assert_eq(verify_exit_code(&summary), 0);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, an_empty_disk_agrees)
{
    disk *d = disk_make(2, 2, 0);
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 4096, &summary);
    cr_assert_eq(s.ranges->len + s.digests->len, 0u);
    cr_assert_eq(verify_exit_code(&summary), 0);
    cr_assert(!summary.interrupted);
    said_clear(&s);
    disk_free(d);
}

/* R2: three replicas, three different bad sectors; every one has its majority. */
Test(verify_model, R2_different_bad_sectors_each_have_a_majority)
{
    disk *d = disk_make(3, 2, 1 << 20);
    for (unsigned i = 0; i < 3; i++)
        d->replicas[i].data[262144 * (i + 1) - 512 + i] ^= 1;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 3u);
    assert_range(&s, 0, 262144 - 512, 512, 6, 1, 0);
    assert_range(&s, 1, 2 * 262144 - 512, 512, 5, 2, 0);
    assert_range(&s, 2, 3 * 262144 - 512, 512, 3, 4, 0);
    cr_assert_eq(summary.differing_bytes, 3u * 512);
    cr_assert_eq(summary.replica_differing_bytes[1], 512u);
    cr_assert_eq(summary.no_majority_bytes, 0u);
    cr_assert_eq(verify_exit_code(&summary), 1);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, ranges_merge_across_pieces)
{
    disk *d = disk_make(3, 2, 2 * VERIFY_PIECE_MAX);
    for (unsigned i = 100 * 512; i < VERIFY_PIECE_MAX + 700; i++)
        d->replicas[2].data[i] ^= 0xff;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 1u);
    assert_range(&s, 0, 100 * 512, VERIFY_PIECE_MAX + 1024 - 100 * 512, 3, 4, 0);
    cr_assert_eq(summary.differing_ranges, 1u);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, R1_two_versions_of_two_replicas_have_no_majority)
{
    disk *d = disk_make(2, 2, 65536);
    d->replicas[1].data[5000] ^= 1;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 4096, &summary);
    cr_assert_eq(s.ranges->len, 1u);
    assert_range(&s, 0, 4608, 512, 0, 0, 0);
    cr_assert_eq(nth(&s, 0)->n_groups, 2);
    cr_assert_eq(verify_exit_code(&summary), 5);
    /* Only the manifest's range with that sector is unknown. */
    cr_assert_eq(s.digests->len, 16u);
    for (unsigned i = 0; i < 16; i++)
        cr_assert_eq(g_array_index(s.digests, digest_said, i).known, i != 1);
    said_clear(&s);
    disk_free(d);
}

/* R3: who cannot be read does not vote; exactly the bad sectors are named. */
Test(verify_model, R3_read_errors_are_exact_and_the_others_still_vote)
{
    disk *d = disk_make(3, 2, 1 << 20);
    for (unsigned sector = 777; sector < 780; sector++)
        d->replicas[0].bad[sector] = true;
    d->replicas[1].bad[2047] = true;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 2u);
    assert_range(&s, 0, 777 * 512, 3 * 512, 6, 0, 1);
    assert_range(&s, 1, 2047 * 512, 512, 5, 0, 2);
    cr_assert_eq(summary.read_error_bytes, 4u * 512);
    cr_assert_eq(summary.differing_bytes, 0u);
    cr_assert_eq(verify_exit_code(&summary), 4);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, R3_a_read_error_that_goes_away_is_none)
{
    disk *d = disk_make(3, 2, 1 << 20);
    d->replicas[1].once = 1;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 0u);
    cr_assert_eq(verify_exit_code(&summary), 0);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, R3_a_timeout_is_not_repeated_sector_by_sector)
{
    disk *d = disk_make(3, 2, 1 << 20);
    d->replicas[1].error = -ETIMEDOUT;
    d->replicas[1].bad[0] = true;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 1u);
    cr_assert_leq(d->replicas[1].reads, 16u);
    cr_assert_eq(verify_exit_code(&summary), 4);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, R1_too_few_readable_replicas_have_no_majority)
{
    disk *d = disk_make(3, 2, 65536);
    d->replicas[0].bad[3] = d->replicas[2].bad[3] = true;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 1u);
    assert_range(&s, 0, 3 * 512, 512, 0, 0, 5);
    cr_assert_eq(summary.read_error_bytes, 512u);
    cr_assert_eq(verify_exit_code(&summary), 5);
    said_clear(&s);
    disk_free(d);
}

/* b holds old bytes, and a or c is wrong besides. */
Test(verify_model, W2_who_is_stale_has_no_vote_there)
{
    disk *d = disk_make(3, 2, 65536);
    d->stale = 2;
    d->stale_at = 8 * 512;
    d->stale_length = 8 * 512;
    for (unsigned i = 7; i < 20; i++)
        d->replicas[1].data[i * 512] ^= 1;
    d->replicas[0].data[10 * 512] ^= 1; /* as b, by chance */
    d->replicas[2].data[12 * 512] ^= 2;
    d->replicas[2].bad[14] = true;
    d->replicas[2].data[30 * 512] ^= 2;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 8u);
    assert_range(&s, 0, 7 * 512, 3 * 512, 5, 2, 0);
    assert_range(&s, 1, 10 * 512, 512, 0, 0, 0); /* one against one */
    assert_range(&s, 2, 11 * 512, 512, 5, 2, 0);
    assert_range(&s, 3, 12 * 512, 512, 0, 0, 0);
    assert_range(&s, 4, 13 * 512, 512, 5, 2, 0);
    assert_range(&s, 5, 14 * 512, 512, 0, 0, 4);
    assert_range(&s, 6, 15 * 512, 5 * 512, 5, 2, 0);
    assert_range(&s, 7, 30 * 512, 512, 3, 4, 0);
    cr_assert_eq(verify_exit_code(&summary), 5);
    said_clear(&s);
    disk_free(d);
}

/* a and c are right of a sector that b is stale in, and says so by accident. */
Test(verify_model, W2_who_holds_what_won_has_not_lost)
{
    disk *d = disk_make(3, 2, 65536);
    d->stale = 4;
    d->stale_length = 65536;
    d->replicas[1].data[0] ^= 1;
    d->replicas[1].bad[5] = true;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(s.ranges->len, 2u);
    assert_range(&s, 0, 0, 512, 0, 0, 0); /* a and c agree, but c does not count */
    assert_range(&s, 1, 5 * 512, 512, 0, 0, 2);
    d->stale = 0;
    s.progress_last = 0;
    run(d, &s, 0, &summary);
    assert_range(&s, 2, 0, 512, 5, 2, 0);
    assert_range(&s, 3, 5 * 512, 512, 5, 0, 2);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, zeroes_of_every_map_are_not_read)
{
    disk *d = disk_make(3, 2, 2 << 20);
    for (unsigned i = 0; i < 3; i++) {
        struct chain *c = &d->replicas[i];
        c->zero[0] = true;
        memset(c->data, 0, d->size);
    }
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 1 << 20, &summary);
    cr_assert_eq(summary.skipped_bytes, 2u << 20);
    cr_assert_eq(summary.checked_bytes, 0u);
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(d->replicas[i].reads, 0u);
    cr_assert_eq(s.digests->len, 2u);
    cr_assert_str_eq(g_array_index(s.digests, digest_said, 1).sha256,
                     "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58");
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, zeroes_of_one_map_are_compared_with_the_others)
{
    disk *d = disk_make(3, 2, 1 << 20);
    for (unsigned i = 0; i < 3; i++)
        memset(d->replicas[i].data, 0, d->size);
    d->replicas[0].zero[0] = true;
    d->replicas[2].data[400000] = 1;
    said s;
    verify_summary summary;
    said_init(&s);
    run(d, &s, 0, &summary);
    cr_assert_eq(d->replicas[0].reads, 0u);
    cr_assert_eq(s.ranges->len, 1u);
    assert_range(&s, 0, 400000 / 512 * 512, 512, 3, 4, 0);
    cr_assert_eq(summary.checked_bytes, 1u << 20);
    said_clear(&s);
    disk_free(d);
}

Test(verify_model, cancel_stops_with_what_is_known)
{
    disk *d = disk_make(3, 2, 2 * VERIFY_PIECE_MAX);
    for (unsigned i = 0; i < 4; i++)
        d->replicas[0].data[(1 << 18) * (i + 1)] ^= 1;
    said s;
    verify_summary summary;
    said_init(&s);
    s.cancel_after = 2;
    run(d, &s, 0, &summary);
    cr_assert(summary.interrupted);
    cr_assert_lt(summary.checked_bytes, 2 * VERIFY_PIECE_MAX);
    cr_assert_geq(summary.differing_ranges, 2u);
    said_clear(&s);
    disk_free(d);
}

/* --- random --- */

static void extents_randomise(disk *d, struct chain *c, uint64_t *seed)
{
    uint64_t at = 0;
    bool zero = support_random(seed) % 2;
    for (c->n_extents = 0; c->n_extents < EXTENTS_MAX && at < d->size;) {
        uint64_t longest = support_random(seed) % 4 ? 20000 : 1 << 20;
        uint64_t length = 1 + support_random(seed) % longest;
        uint64_t end = MIN(d->size, at + length);
        if (c->n_extents == EXTENTS_MAX - 1 && support_random(seed) % 2)
            end = d->size;
        if (zero)
            memset(c->data + at, 0, end - at);
        c->ends[c->n_extents] = end;
        c->zero[c->n_extents++] = zero;
        at = end;
        zero = !zero;
    }
}

/* Whether the map says that the whole sector is zero. */
static bool sector_zero(const struct chain *c, uint64_t from, uint64_t to)
{
    uint64_t start = 0;
    for (unsigned i = 0; i < c->n_extents; i++) {
        if (from >= start && from < c->ends[i])
            return c->zero[i] && to <= c->ends[i];
        start = c->ends[i];
    }
    return false;
}

static void damage(disk *d, uint64_t *seed)
{
    /* The first replica's zeroes are zeroes in all, most of the time. */
    for (unsigned i = 0; i < d->n; i++) {
        struct chain *c = &d->replicas[i];
        extents_randomise(d, c, seed);
        unsigned n = (unsigned)(support_random(seed) % 30);
        for (unsigned k = 0; k < n; k++) {
            uint64_t at = support_random(seed) % d->size;
            uint64_t longest = support_random(seed) % 8 ? 3000 : 600000;
            uint64_t length = 1 + support_random(seed) % longest;
            uint64_t end = MIN(d->size, at + length);
            unsigned what = (unsigned)(support_random(seed) % 4);
            for (uint64_t x = at; x < end; x++) {
                if (what == 0)
                    c->bad[x / 512] = true;
                else if (!sector_zero(c, x, x + 1))
                    c->data[x] = (uint8_t)what;
            }
        }
    }
}

/* One sector's vote, by the words of R1 to R3. */
static void model_sector(disk *d, uint64_t from, uint64_t to, verify_range *r)
{
    memset(r, 0, sizeof *r);
    memset(r->group, VOTE_NO_GROUP, sizeof r->group);
    r->offset = from;
    r->length = to - from;
    uint64_t members[REPLICAS_MAX] = {0};
    for (unsigned i = 0; i < d->n; i++) {
        const struct chain *c = &d->replicas[i];
        if (c->bad[from / 512] && !sector_zero(c, from, to)) {
            r->failed |= 1u << i;
            continue;
        }
        unsigned g = 0;
        while (g < r->n_groups &&
               memcmp(c->data + from,
                      d->replicas[__builtin_ctzll(members[g])].data + from, to - from))
            g++;
        r->n_groups = (uint8_t)MAX(r->n_groups, g + 1);
        r->group[i] = (uint8_t)g;
        members[g] |= 1u << i;
    }
    unsigned best = 0, voters = 0;
    for (unsigned g = 0; g < r->n_groups; g++) {
        unsigned count = (unsigned)__builtin_popcountll(members[g]);
        voters |= (unsigned)members[g];
        if (count > best) {
            best = count;
            r->winners = members[g];
        }
    }
    if (best < d->threshold)
        r->winners = 0;
    r->losers = r->winners ? voters & ~r->winners : 0;
}

static void model_run(disk *d, GArray *ranges, uint64_t *ret_skipped)
{
    *ret_skipped = 0;
    for (uint64_t from = 0; from < d->size; from += 512) {
        uint64_t to = MIN(from + 512, d->size);
        bool all_zero = true;
        for (unsigned i = 0; i < d->n; i++)
            all_zero &= sector_zero(&d->replicas[i], from, to);
        *ret_skipped += all_zero ? to - from : 0;
        verify_range r;
        model_sector(d, from, to, &r);
        if (r.n_groups == 1 && !r.failed)
            continue;
        verify_range *last =
            ranges->len ? &g_array_index(ranges, verify_range, ranges->len - 1) : NULL;
        if (last && last->offset + last->length == from && last->winners == r.winners &&
            last->failed == r.failed && memcmp(last->group, r.group, sizeof r.group) == 0)
            last->length += to - from;
        else
            g_array_append_val(ranges, r);
    }
}

static void assert_digest(disk *d, const digest_said *digest)
{
    bool known = true;
    g_autofree uint8_t *voted = g_malloc(digest->length);
    memset(voted, 0, digest->length);
    /* Any replica's bytes where all agree, the winner's where they do not. */
    for (uint64_t from = digest->offset; from < digest->offset + digest->length;) {
        uint64_t to = MIN((from / 512 + 1) * 512, digest->offset + digest->length);
        verify_range r;
        model_sector(d, from / 512 * 512, MIN((from / 512 + 1) * 512, d->size), &r);
        known &= r.winners != 0;
        if (r.winners)
            memcpy(voted + (from - digest->offset),
                   d->replicas[__builtin_ctzll(r.winners)].data + from, to - from);
        from = to;
    }
    cr_assert_eq(digest->known, known, "at %llu", (unsigned long long)digest->offset);
    g_autofree char *sha256 =
        g_compute_checksum_for_data(G_CHECKSUM_SHA256, voted, digest->length);
    if (known)
        cr_assert_str_eq(digest->sha256, sha256);
}

static void assert_as_model(disk *d, uint64_t manifest_range)
{
    said s;
    verify_summary summary;
    uint64_t skipped, expected_offset = 0;
    g_autoptr(GArray) expected = g_array_new(FALSE, FALSE, sizeof(verify_range));
    said_init(&s);
    run(d, &s, manifest_range, &summary);
    model_run(d, expected, &skipped);
    cr_assert_eq(summary.skipped_bytes, skipped);
    cr_assert_eq(summary.checked_bytes, d->size - skipped);
    cr_assert_eq(s.ranges->len, expected->len, "%u ranges, not %u", s.ranges->len,
                 expected->len);
    for (unsigned i = 0; i < expected->len; i++) {
        const verify_range *e = &g_array_index(expected, verify_range, i);
        assert_range(&s, i, e->offset, e->length, e->winners, e->losers, e->failed);
        cr_assert_eq(nth(&s, i)->n_groups, e->n_groups);
        cr_assert_eq(memcmp(nth(&s, i)->group, e->group, d->n), 0);
    }
    for (unsigned i = 0; i < s.digests->len; i++) {
        const digest_said *digest = &g_array_index(s.digests, digest_said, i);
        cr_assert_eq(digest->offset, expected_offset);
        assert_digest(d, digest);
        expected_offset += digest->length;
    }
    cr_assert_eq(expected_offset, d->size);
    said_clear(&s);
}

Test(verify_model, random_replicas_as_the_model_says)
{
    uint64_t seed = support_seed();
    for (unsigned round = 0; round < 60; round++) {
        unsigned n = 1 + (unsigned)(support_random(&seed) % REPLICAS_MAX);
        unsigned threshold = 1 + (unsigned)(support_random(&seed) % n);
        uint64_t size = 1 + support_random(&seed) % SIZE_MAX_BYTES;
        if (support_random(&seed) % 2)
            size = (size + 511) / 512 * 512;
        disk *d = disk_make(n, threshold, size);
        damage(d, &seed);
        for (unsigned i = 0; i < n; i++)
            if (support_random(&seed) % 2)
                d->replicas[i].lent = g_malloc(LENT_BYTES);
        uint64_t range = (uint64_t)512 << (support_random(&seed) % 12);
        assert_as_model(d, range);
        for (unsigned i = 0; i < n; i++)
            g_free(d->replicas[i].lent);
        disk_free(d);
    }
}
