/*
 * Entries of refcount blocks: every width, their places in the bytes, and that neighbours
 * stay as they are.
 */
#include "formats/qcow2-internal.h"
#include "tests/support.h"
#include <criterion/criterion.h>

Test(qcow2_refword, the_largest_count_of_each_width)
{
    static const uint64_t max[] = {1, 3, 15, 255, 65535, UINT32_MAX, UINT64_MAX};
    for (unsigned order = 0; order <= 6; order++)
        cr_assert_eq(qcow2_refword_max(order), max[order]);
}

Test(qcow2_refword, narrow_entries_start_in_the_low_bits)
{
    uint8_t block[2] = {0};
    qcow2_refword_set(block, 0, 0, 1);
    cr_assert_eq(block[0], 0x01);
    qcow2_refword_set(block, 15, 0, 1);
    cr_assert_eq(block[1], 0x80);
    qcow2_refword_set(block, 1, 1, 2); /* bits 2 and 3 */
    cr_assert_eq(block[0], 0x09);
    qcow2_refword_set(block, 3, 2, 0xa); /* the high half of the second byte */
    cr_assert_eq(block[1], 0xa0);
}

Test(qcow2_refword, wide_entries_are_big_endian)
{
    uint8_t block[16] = {0};
    qcow2_refword_set(block, 2, 3, 0xab);
    cr_assert_eq(block[2], 0xab);
    qcow2_refword_set(block, 2, 4, 0x1234);
    cr_assert_eq(memcmp(block + 4, "\x12\x34", 2), 0);
    qcow2_refword_set(block, 1, 5, 0x89abcdef);
    cr_assert_eq(memcmp(block + 4, "\x89\xab\xcd\xef", 4), 0);
    qcow2_refword_set(block, 1, 6, 0xfedcba9876543210u);
    cr_assert_eq(memcmp(block + 8, "\xfe\xdc\xba\x98\x76\x54\x32\x10", 8), 0);
}

Test(qcow2_refword, neighbours_stay)
{
    enum { BYTES = 64 };
    for (unsigned order = 0; order <= 6; order++) {
        uint64_t max = qcow2_refword_max(order), n = BYTES * 8 >> order;
        for (uint64_t index = 0; index < n; index++) {
            const uint64_t values[] = {0, 1, max, max / 3};
            for (unsigned i = 0; i < 8; i++) {
                uint8_t block[BYTES];
                uint64_t around = i < 4 ? 0 : max;
                memset(block, i < 4 ? 0 : 0xff, BYTES);
                qcow2_refword_set(block, index, order, values[i % 4]);
                for (uint64_t k = 0; k < n; k++)
                    cr_assert_eq(qcow2_refword_get(block, k, order),
                                 k == index ? values[i % 4] : around);
            }
        }
    }
}

/* Against a list of plain numbers. */
Test(qcow2_refword, entries_hold_what_was_put)
{
    enum { BYTES = 512 };
    uint64_t seed = support_seed();
    for (unsigned order = 0; order <= 6; order++) {
        g_autofree uint8_t *block = g_malloc0(BYTES);
        uint64_t n = BYTES * 8 >> order;
        g_autofree uint64_t *model = g_new0(uint64_t, n);
        for (unsigned i = 0; i < 4 * BYTES; i++) {
            uint64_t index = support_random(&seed) % n;
            model[index] = support_random(&seed) & qcow2_refword_max(order);
            qcow2_refword_set(block, index, order, model[index]);
        }
        for (uint64_t k = 0; k < n; k++)
            cr_assert_eq(qcow2_refword_get(block, k, order), model[k]);
    }
}
