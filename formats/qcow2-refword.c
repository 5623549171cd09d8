/*
 * qcow2-refword.c: the entries of a refcount block, of any width. Pure.
 *
 * qcow2: Refcount blocks. Entries of 8 bits and more are big-endian; narrower ones share a
 * byte, the first of them in its least significant bits.
 */
#include "formats/qcow2-internal.h"

uint64_t qcow2_refword_max(unsigned order)
{
    return UINT64_MAX >> (64 - (1u << order));
}

uint64_t qcow2_refword_get(const uint8_t *block, uint64_t index, unsigned order)
{
    if (order < 3) {
        uint64_t bit = index << order;
        return block[bit / 8] >> bit % 8 & qcow2_refword_max(order);
    }
    unsigned bytes = 1u << (order - 3);
    const uint8_t *at = block + index * bytes;
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

void qcow2_refword_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value)
{
    if (order < 3) {
        uint64_t bit = index << order;
        unsigned mask = (unsigned)qcow2_refword_max(order) << bit % 8;
        unsigned others = block[bit / 8] & ~mask;
        block[bit / 8] = (uint8_t)(others | ((unsigned)value << bit % 8 & mask));
        return;
    }
    unsigned bytes = 1u << (order - 3);
    uint8_t *at = block + index * bytes;
    for (unsigned i = bytes; i > 0; i--, value >>= 8)
        at[i - 1] = (uint8_t)value;
}
