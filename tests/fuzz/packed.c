/*
 * packed.c: inputs become files in memory; and a mutator that knows where tables lie.
 *
 * Inputs are changed sector by sector and word by word, never by shifting bytes: the blocks
 * would fall apart. libFuzzer's own mutations are let loose on the script and inside of one
 * sector.
 */
#include <endian.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/packed.h"

#define SECTOR    512u
#define LENGTHS   8u
#define BLOCK     (4 + SECTOR)
#define DATA_FILE ((uint32_t)1 << 31)
#define SECTORS_MAX                                                                      \
    ((256u << 20) / SECTOR) /* room for the largest L1 and refcount table */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

void packed_broken(const char *file, int line, const char *condition, const char *format,
                   ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: does not hold: %s: ", file, line, condition);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static uint32_t word32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static size_t blocks_of(size_t size)
{
    return size < LENGTHS ? 0 : (size - LENGTHS) / BLOCK;
}

static int new_file(uint32_t sectors)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    must(fd >= 0 && ftruncate(fd, (off_t)sectors * SECTOR) == 0, "no file in memory");
    return fd;
}

packed packed_open(const uint8_t *data, size_t size)
{
    uint32_t sectors[2] = {0, 0};
    for (unsigned i = 0; i < 2 && size >= LENGTHS; i++) {
        uint32_t asked = word32(data + i * 4);
        sectors[i] = asked < SECTORS_MAX ? asked : SECTORS_MAX;
    }
    packed p = {.fd = new_file(sectors[0]),
                .data_fd = new_file(sectors[1]),
                .data_size = (uint64_t)sectors[1] * SECTOR};
    for (size_t i = 0; i < blocks_of(size); i++) {
        const uint8_t *block = data + LENGTHS + i * BLOCK;
        uint32_t number = word32(block), which = number / DATA_FILE;
        number &= DATA_FILE - 1;
        if (number < sectors[which])
            must(pwrite(which ? p.data_fd : p.fd, block + 4, SECTOR,
                        (off_t)number * SECTOR) == SECTOR,
                 "sector %u", number);
    }
    size_t used = size < LENGTHS ? size : LENGTHS + blocks_of(size) * BLOCK;
    p.script = data + used;
    p.script_length = size - used;
    return p;
}

void packed_close(packed *p)
{
    close(p->fd);
    close(p->data_fd);
}

/* ---- The mutator ---- */

typedef struct mutation {
    uint8_t *data;
    size_t size, max_size;
    uint64_t random; /* state */
} mutation;

static uint32_t pick(mutation *m, uint32_t n)
{
    m->random ^= m->random >> 12;
    m->random ^= m->random << 25;
    m->random ^= m->random >> 27;
    return (uint32_t)(m->random * 0x2545f4914f6cdd1du >> 32) % n;
}

static uint64_t get(const uint8_t *at, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value = value << 8 | at[i];
    return value;
}

static void put(uint8_t *at, unsigned width, uint64_t value)
{
    for (unsigned i = width; i-- > 0; value >>= 8)
        at[i] = (uint8_t)value;
}

static uint8_t *block_at(const mutation *m, size_t index)
{
    return m->data + LENGTHS + index * BLOCK;
}

static uint8_t *find_sector(const mutation *m, uint64_t number)
{
    for (size_t i = 0; i < blocks_of(m->size); i++) {
        if (word32(block_at(m, i)) == number)
            return block_at(m, i) + 4;
    }
    return NULL;
}

/* The sector's bytes; they are added as zeroes if the input lacks them and has room. */
static uint8_t *take_sector(mutation *m, uint64_t number)
{
    uint8_t *found = find_sector(m, number);
    if (found || number >= SECTORS_MAX || m->max_size - m->size < BLOCK)
        return found;
    uint8_t *block = block_at(m, blocks_of(m->size));
    memmove(block + BLOCK, block, (size_t)(m->data + m->size - block));
    put(block, 4, htobe32(htole32((uint32_t)number)));
    memset(block + 4, 0, SECTOR);
    m->size += BLOCK;
    return block + 4;
}

/* An offset at which the image has something, or nearly so. */
static uint64_t some_offset(mutation *m)
{
    const uint8_t *header = find_sector(m, 0);
    unsigned bits = header ? header[packed_this_format.cluster_bits_at] : 16;
    size_t n = blocks_of(m->size);
    uint64_t offset =
        n ? (uint64_t)word32(block_at(m, pick(m, (uint32_t)n))) * SECTOR : 0;
    uint64_t end = (uint64_t)word32(m->data) * SECTOR;
    switch (pick(m, 8)) {
    case 0:
        return end;
    case 1:
        return end - (end ? 1 : 0);
    case 2:
        return offset + pick(m, SECTOR);
    default:
        return bits < 40 ? offset >> bits << bits : offset;
    }
}

static uint64_t some_value(mutation *m, uint64_t old)
{
    uint64_t flag = packed_this_format.flags[pick(m, 4)];
    switch (pick(m, 10)) {
    case 0:
        return old + pick(m, 17) - 8;
    case 1:
        return (uint64_t)1 << pick(m, 64);
    case 2:
        return ((uint64_t)1 << pick(m, 64)) - 1;
    case 3:
        return old ^ (uint64_t)1 << pick(m, 64);
    case 4:
        return pick(m, 300);
    case 5:
        return old ^ flag;
    case 6:
        return 0;
    case 7:
        return some_offset(m);
    default:
        return some_offset(m) | flag;
    }
}

/* A table's entry, or one of the table that it points to. */
static void mutate_table(mutation *m, uint64_t offset)
{
    uint8_t *sector = NULL;
    for (unsigned depth = 1 + pick(m, 3); depth > 0; depth--) {
        offset &= ~packed_this_format.flags[0] & ~packed_this_format.flags[1];
        uint8_t *next = take_sector(m, offset / SECTOR);
        if (!next)
            break;
        sector = next;
        offset = get(sector + pick(m, 4) * 8, 8);
    }
    if (!sector)
        return;
    uint8_t *entry = sector + pick(m, pick(m, 2) ? 8 : SECTOR / 8) * 8;
    put(entry, 8, some_value(m, get(entry, 8)));
}

static void mutate_field(mutation *m)
{
    uint8_t *header = take_sector(m, 0);
    unsigned n = 0;
    while (n < 24 && packed_this_format.fields[n].width)
        n++;
    if (!header || n == 0)
        return;
    const struct packed_field *field = &packed_this_format.fields[pick(m, n)];
    uint8_t *at = header + field->offset;
    uint64_t old = get(at, field->width);
    if (field->table && pick(m, 8))
        mutate_table(m, old);
    else
        put(at, field->width, some_value(m, old));
}

static void mutate_script(mutation *m)
{
    if (m->size < LENGTHS)
        return;
    uint8_t *script = block_at(m, blocks_of(m->size));
    size_t length = (size_t)(m->data + m->size - script);
    size_t room = m->max_size - (m->size - length);
    m->size += LLVMFuzzerMutate(script, length, room < BLOCK - 1 ? room : BLOCK - 1);
    m->size -= length;
}

static void mutate_block(mutation *m)
{
    size_t n = blocks_of(m->size);
    if (n == 0)
        return;
    size_t index = pick(m, (uint32_t)n);
    uint8_t *block = block_at(m, index);
    switch (pick(m, 4)) {
    case 0: /* gone: zeroes */
        memmove(block, block + BLOCK, (size_t)(m->data + m->size - block - BLOCK));
        m->size -= BLOCK;
        break;
    case 1: /* the bytes of another */
        memcpy(block + 4, block_at(m, pick(m, (uint32_t)n)) + 4, SECTOR);
        break;
    default:
        LLVMFuzzerMutate(block + 4, SECTOR, SECTOR);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    mutation m = {data, size, max_size, seed * 0x9e3779b97f4a7c15u + 1};
    if (size < LENGTHS)
        return LLVMFuzzerMutate(data, size, max_size);
    for (unsigned n = 1 + pick(&m, 3); n > 0; n--) {
        switch (pick(&m, 10)) {
        case 0: {
            uint8_t *length = data + 4 * pick(&m, 2);
            put(length, 4, htobe32(htole32(word32(length) + pick(&m, 65) - 32)));
            break;
        }
        case 1:
        case 2:
            mutate_block(&m);
            break;
        case 3:
        case 4:
            mutate_script(&m);
            break;
        default:
            mutate_field(&m);
        }
    }
    return m.size;
}
