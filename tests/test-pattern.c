/*
 * test-pattern.c: whom a rotating read asks first.
 */
#include "quorum/pattern.h"
#include "quorum/vote.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>

#define MS UINT64_C(1000000)

static unsigned count(uint64_t set)
{
    return (unsigned)__builtin_popcountll(set);
}

static pattern_view view_of(unsigned n, unsigned threshold, const uint64_t *pace)
{
    return (pattern_view){
        .n = n,
        .voters = n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1,
        .threshold = threshold,
        .pace = pace,
    };
}

Test(pattern, the_quota_is_the_threshold_and_more_than_half)
{
    static const struct {
        unsigned threshold, voters, quota;
    } rows[] = {
        {1, 1, 1}, {2, 2, 2}, {1, 2, 2}, {2, 3, 2}, {3, 3, 3}, {1, 3, 2},
        {3, 5, 3}, {4, 5, 4}, {2, 4, 3}, {1, 9, 5}, {3, 4, 3}, {64, 64, 64},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++)
        cr_assert_eq(pattern_quota(rows[i].threshold, rows[i].voters), rows[i].quota,
                     "threshold %u of %u", rows[i].threshold, rows[i].voters);
}

/* Version v of a sector of three bytes that stand for 512. */
static bool all_would_say(const unsigned *version, unsigned n, unsigned threshold,
                          unsigned answer)
{
    uint8_t data[8][VOTE_SECTOR], out[VOTE_SECTOR];
    vote_ballot ballots[8] = {0};
    vote_verdict verdict;
    for (unsigned i = 0; i < n; i++) {
        memset(data[i], (int)version[i], VOTE_SECTOR);
        ballots[i].data = data[i];
    }
    vote_verdict_init(&verdict);
    vote_count(ballots, n, threshold, VOTE_SECTOR, out, &verdict);
    bool same = verdict.result == 0 && out[0] == answer;
    vote_verdict_clear(&verdict);
    return same;
}

/* Every way in which up to five replicas can hold up to three versions. */
Test(pattern, R2_whom_is_asked_first_says_what_all_would_have_said)
{
    static const uint64_t pace[5];
    unsigned agreed = 0;
    for (unsigned n = 1; n <= 5; n++) {
        for (unsigned code = 0; code < 243; code++) {
            unsigned version[5], rest = code;
            for (unsigned i = 0; i < n; i++, rest /= 3)
                version[i] = rest % 3;
            for (unsigned t = 1; t <= n; t++) {
                pattern_view view = view_of(n, t, pace);
                for (view.turn = 0; view.turn < n; view.turn++) {
                    uint64_t asked = pattern_choose(&view).asked;
                    unsigned first = (unsigned)__builtin_ctzll(asked);
                    bool agree = true;
                    for (unsigned i = 0; i < n; i++)
                        agree &= !(asked >> i & 1) || version[i] == version[first];
                    agreed += agree;
                    cr_assert(!agree || all_would_say(version, n, t, version[first]),
                              "%u replicas, threshold %u, versions %u, turn %u", n, t,
                              code, (unsigned)view.turn);
                }
            }
        }
    }
    cr_assert_gt(agreed, 100);
}

Test(pattern, everybody_is_asked_equally_often)
{
    static const uint64_t pace[64];
    for (unsigned n = 1; n <= 64; n++) {
        for (unsigned t = 1; t <= n; t += 1 + n / 8) {
            pattern_view view = view_of(n, t, pace);
            unsigned asked[64] = {0}, quota = pattern_quota(t, n);
            for (view.turn = 0; view.turn < n; view.turn++) {
                pattern_choice choice = pattern_choose(&view);
                cr_assert_eq(count(choice.asked), quota);
                cr_assert_eq(choice.probed, 0);
                for (unsigned i = 0; i < n; i++)
                    asked[i] += choice.asked >> i & 1;
            }
            for (unsigned i = 0; i < n; i++)
                cr_assert(quota == n || asked[i] == quota,
                          "%u of %u: %u is asked %u times", quota, n, i, asked[i]);
        }
    }
}

/* A replica that does not vote there gets no turn, and the others share its turns. */
Test(pattern, only_voters_are_asked)
{
    static const uint64_t pace[7];
    pattern_view view = view_of(7, 3, pace);
    unsigned asked[7] = {0};
    view.voters = 0x6d; /* all but 1 and 4 */
    for (view.turn = 0; view.turn < 5; view.turn++) {
        uint64_t set = pattern_choose(&view).asked;
        cr_assert_eq(set & ~view.voters, 0);
        cr_assert_eq(count(set), 3);
        for (unsigned i = 0; i < 7; i++)
            asked[i] += set >> i & 1;
    }
    for (unsigned i = 0; i < 7; i++)
        cr_assert_eq(asked[i], view.voters >> i & 1 ? 3u : 0u);
}

Test(pattern, who_is_slow_is_left_out_as_long_as_enough_are_not)
{
    uint64_t pace[5] = {10 * MS, 9 * MS, 50 * MS, 11 * MS, 8 * MS};
    pattern_view view = view_of(5, 3, pace);
    for (view.turn = 0; view.turn < 40; view.turn++)
        cr_assert_eq(pattern_choose(&view).asked >> 2 & 1, 0);
    pace[0] = pace[1] = 60 * MS; /* two are fast, three are needed */
    unsigned asked[5] = {0};
    for (view.turn = 0; view.turn < 40; view.turn++)
        for (unsigned i = 0; i < 5; i++)
            asked[i] += pattern_choose(&view).asked >> i & 1;
    for (unsigned i = 0; i < 5; i++)
        cr_assert_eq(asked[i], 24);
}

Test(pattern, small_differences_and_unknown_paces_are_nothing)
{
    uint64_t pace[3] = {2000, 50000, 0}; /* page cache, a disk, never asked */
    pattern_view view = view_of(3, 2, pace);
    unsigned asked[3] = {0};
    for (view.turn = 0; view.turn < 3; view.turn++)
        for (unsigned i = 0; i < 3; i++)
            asked[i] += pattern_choose(&view).asked >> i & 1;
    cr_assert(asked[0] == 2 && asked[1] == 2 && asked[2] == 2);
}

Test(pattern, a_probe_asks_one_of_the_slow_and_no_more_than_ever)
{
    uint64_t pace[5] = {10 * MS, 90 * MS, 10 * MS, 90 * MS, 10 * MS};
    pattern_view view = view_of(5, 3, pace);
    uint64_t probed = 0;
    view.probe = true;
    for (view.turn = 0; view.turn < 10; view.turn++) {
        pattern_choice choice = pattern_choose(&view);
        cr_assert_eq(count(choice.probed), 1);
        cr_assert_eq(choice.probed & ~choice.asked, 0);
        cr_assert_eq(count(choice.asked), 3);
        probed |= choice.probed;
    }
    cr_assert_eq(probed, 0x0a);
    pace[1] = pace[3] = 10 * MS; /* nobody is slow: a turn like any other */
    cr_assert_eq(pattern_choose(&view).probed, 0);
}

Test(pattern, a_stripe_has_the_same_replicas_and_the_next_stripe_others)
{
    uint64_t turn = pattern_turn(5 * PATTERN_STRIPE, 0);
    cr_assert_eq(pattern_turn(6 * PATTERN_STRIPE - 1, 0), turn);
    cr_assert_eq(pattern_turn(6 * PATTERN_STRIPE, 0), turn + 1);
    cr_assert_eq(pattern_turn(5 * PATTERN_STRIPE, PATTERN_EPOCH - 1), turn);
    cr_assert_eq(pattern_turn(5 * PATTERN_STRIPE, PATTERN_EPOCH), turn + 1);
}

Test(pattern, paces_of_short_and_long_reads_compare)
{
    cr_assert_eq(pattern_pace(0, 4 * MS, 64 << 10, false), 2 * MS);
    cr_assert_eq(pattern_pace(0, 17 * MS, 1 << 20, false), MS);
    cr_assert_eq(pattern_pace(8 * MS, 16 * MS, 0, false), 9 * MS);
    cr_assert_eq(pattern_pace(8 * MS, 16 * MS, 0, true), 12 * MS);
    /* A probe finds out soon that somebody is fast again. */
    uint64_t pace = 1000 * MS;
    unsigned probes = 0;
    for (; pace > 2 * MS; probes++)
        pace = pattern_pace(pace, MS / 2, 4096, true);
    cr_assert_leq(probes, 12);
}

Test(pattern, any_view_gets_a_quota_of_voters)
{
    uint64_t seed = support_seed();
    for (unsigned round = 0; round < 20000; round++) {
        uint64_t pace[64];
        unsigned n = 1 + (unsigned)(support_random(&seed) % 64);
        for (unsigned i = 0; i < n; i++)
            pace[i] = support_random(&seed) >> (support_random(&seed) % 40 + 20);
        pattern_view view = view_of(n, 1, pace);
        uint64_t voters = view.voters & support_random(&seed);
        view.voters = voters ? voters : 1;
        unsigned n_voters = count(view.voters);
        view.threshold = 1 + (unsigned)(support_random(&seed) % n_voters);
        view.turn = support_random(&seed);
        view.probe = support_random(&seed) & 1;
        pattern_choice choice = pattern_choose(&view);
        cr_assert_eq(choice.asked & ~view.voters, 0);
        cr_assert_eq(choice.probed & ~choice.asked, 0);
        cr_assert_eq(count(choice.asked), pattern_quota(view.threshold, n_voters));
    }
}
