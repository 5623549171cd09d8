/*
 * test-rangeset.c: sets of ranges against a map of bytes.
 */
#include "quorum/rangeset.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>

#define BYTES 4096u

static void check_against(const rangeset *set, const bool *model)
{
    uint64_t at = 0;
    for (unsigned k = 0; k < rangeset_count(set); k++) {
        rangeset_range range = rangeset_get(set, k);
        cr_assert(range.end > range.start && (k == 0 || range.start > at));
        for (; at < range.start; at++)
            cr_assert(!model[at]);
        for (; at < range.end; at++)
            cr_assert(model[at]);
    }
    for (; at < BYTES; at++)
        cr_assert(!model[at]);
}

static void check_removal(rangeset *set, bool *model, uint64_t *state)
{
    uint64_t offset = support_random(state) % BYTES;
    uint64_t length = support_random(state) % MIN(BYTES - offset, 30), there = 0, all = 0;
    for (uint64_t k = offset; k < offset + length; k++)
        there += model[k];
    rangeset part = {0};
    rangeset_add_part(&part, set, offset, offset + length);
    cr_assert_eq(rangeset_bytes(&part), there);
    cr_assert_eq(rangeset_count(&part) > 0 && rangeset_get(&part, 0).start < offset,
                 false);
    rangeset_clear(&part);
    cr_assert_eq(rangeset_remove(set, offset, length), there);
    memset(model + offset, 0, length);
    for (uint64_t k = 0; k < BYTES; k++)
        all += model[k];
    cr_assert_eq(rangeset_bytes(set), all);
}

Test(rangeset, random_ranges_against_a_model)
{
    uint64_t state = support_seed();
    for (unsigned round = 0; round < 20; round++) {
        bool model[BYTES] = {false};
        rangeset set = {0};
        for (unsigned step = 0; step < 200; step++) {
            uint64_t offset = support_random(&state) % BYTES;
            uint64_t length = support_random(&state) % MIN(BYTES - offset, 40), fresh = 0;
            for (uint64_t k = offset; k < offset + length; k++) {
                fresh += !model[k];
                model[k] = true;
            }
            cr_assert_eq(rangeset_add(&set, offset, length), fresh);
            check_removal(&set, model, &state);
        }
        check_against(&set, model);
        rangeset_clear(&set);
        cr_assert_eq(rangeset_count(&set), 0);
    }
}

/* Twice as many ranges as it holds: everything added is still covered, near neighbours
 * were merged and the one that lies far away was not. */
Test(rangeset, bounded_by_merging_neighbours)
{
    rangeset set = {0};
    const uint64_t n = 2 * RANGESET_MAX, far = UINT64_C(1) << 60;
    rangeset_add(&set, far, 512);
    for (uint64_t k = 0; k < n; k++) {
        rangeset_add(&set, k * 4096, 512);
        cr_assert_leq(rangeset_count(&set), RANGESET_MAX);
    }
    cr_assert_geq(rangeset_count(&set), RANGESET_MAX / 2);
    unsigned k = 0;
    for (uint64_t i = 0; i < n; i++) {
        while (rangeset_get(&set, k).end < i * 4096 + 512)
            k++;
        cr_assert(rangeset_get(&set, k).start <= i * 4096);
    }
    rangeset_range last = rangeset_get(&set, rangeset_count(&set) - 1);
    cr_assert_eq(last.start, far);
    cr_assert_eq(last.end, far + 512);
    rangeset_clear(&set);
}
