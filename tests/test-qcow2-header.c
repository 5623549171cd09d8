/*
 * The pure header parser (O3): tables of accepted and refused headers. Each row changes
 * a field or a few of a valid header, which is built in memory.
 */
#include "formats/qcow2-header.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>

#define CLUSTER      65536u
#define FILE_SIZE    ((uint64_t)16 << 20)
#define HEADER_BYTES CLUSTER

enum {
    VERSION = 4,
    BACKING_OFFSET = 8,
    BACKING_SIZE = 16,
    CLUSTER_BITS = 20,
    SIZE = 24,
    CRYPT = 32,
    L1_ENTRIES = 36,
    L1_OFFSET = 40,
    REFTABLE_OFFSET = 48,
    REFTABLE_CLUSTERS = 56,
    SNAPSHOTS = 60,
    SNAPSHOT_OFFSET = 64,
    INCOMPATIBLE = 72,
    COMPATIBLE = 80,
    AUTOCLEAR = 88,
    REFCOUNT_ORDER = 96,
    HEADER_LENGTH = 100,
    COMPRESSION = 104,
    EXTENSIONS = 112,
};

typedef struct change {
    unsigned offset;
    unsigned width; /* bytes; 0 ends a row's changes */
    uint64_t value;
} change;

static void put(uint8_t *buf, unsigned offset, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        buf[offset + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
}

/* A valid header of version 3: 10 MiB, 64 KiB clusters. */
static void build(uint8_t *buf)
{
    memset(buf, 0, HEADER_BYTES);
    put(buf, 0, 4, QCOW2_MAGIC);
    put(buf, VERSION, 4, 3);
    put(buf, CLUSTER_BITS, 4, 16);
    put(buf, SIZE, 8, 10u << 20);
    put(buf, L1_ENTRIES, 4, 1);
    put(buf, L1_OFFSET, 8, 3 * CLUSTER);
    put(buf, REFTABLE_OFFSET, 8, CLUSTER);
    put(buf, REFTABLE_CLUSTERS, 4, 1);
    put(buf, REFCOUNT_ORDER, 4, 4);
    put(buf, HEADER_LENGTH, 4, EXTENSIONS);
}

static void build_v2(uint8_t *buf)
{
    build(buf);
    put(buf, VERSION, 4, 2);
    memset(buf + INCOMPATIBLE, 0, HEADER_BYTES - INCOMPATIBLE);
}

static unsigned put_extension(uint8_t *buf, unsigned at, uint32_t type, const void *data,
                              unsigned length)
{
    put(buf, at, 4, type);
    put(buf, at + 4, 4, length);
    memcpy(buf + at + 8, data, length);
    return at + 8 + (length + 7) / 8 * 8;
}

/* Parses a copy that ends where the allocation ends, so that ASan sees any over-read. */
static bool parse(const uint8_t *buf, size_t length, uint64_t file_size,
                  qcow2_header *header, GError **error)
{
    g_autofree uint8_t *exact = g_memdup2(buf, length);
    return qcow2_header_parse(exact, length, file_size, "/x.qcow2", header, error);
}

static void assert_refused(const uint8_t *buf, size_t length, uint64_t file_size,
                           int code, const char *text)
{
    static const qcow2_header zeroed;
    g_autoptr(GError) error = NULL;
    qcow2_header header;
    cr_assert(!parse(buf, length, file_size, &header, &error), "accepted: %s", text);
    cr_assert_eq(error->code, code, "code %d: %s", error->code, error->message);
    cr_assert(g_str_has_prefix(error->message, "/x.qcow2: "), "%s", error->message);
    cr_assert(strstr(error->message, text), "'%s' is not in: %s", text, error->message);
    cr_assert_null(strchr(error->message, '\n'));
    cr_assert_eq(memcmp(&header, &zeroed, sizeof header), 0);
}

static void assert_accepted(const uint8_t *buf, size_t length, qcow2_header *header)
{
    g_autoptr(GError) error = NULL;
    cr_assert(parse(buf, length, FILE_SIZE, header, &error), "%s",
              error ? error->message : "");
}

Test(qcow2_header, every_field_is_taken)
{
    uint8_t buf[HEADER_BYTES];
    qcow2_header h;
    build(buf);
    put(buf, SNAPSHOTS, 4, 3);
    put(buf, SNAPSHOT_OFFSET, 8, 5 * CLUSTER);
    put(buf, COMPATIBLE, 8, 1);
    put(buf, AUTOCLEAR, 8, 1);
    put(buf, INCOMPATIBLE, 8, 3);
    assert_accepted(buf, HEADER_BYTES, &h);
    cr_assert_eq(h.version, 3);
    cr_assert_eq(h.size, 10u << 20);
    cr_assert_eq(h.cluster_bits, 16);
    cr_assert_eq(h.l1_entries, 1);
    cr_assert_eq(h.l1_offset, 3 * CLUSTER);
    cr_assert_eq(h.refcount_table_offset, CLUSTER);
    cr_assert_eq(h.refcount_table_clusters, 1);
    cr_assert_eq(h.refcount_order, 4);
    cr_assert_eq(h.snapshot_count, 3);
    cr_assert_eq(h.snapshot_offset, 5 * CLUSTER);
    cr_assert_eq(h.header_length, EXTENSIONS);
    cr_assert_eq(h.incompatible, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    cr_assert_eq(h.compatible, 1);
    cr_assert_eq(h.autoclear, 1);
    cr_assert_eq(h.compression, QCOW2_COMPRESSION_ZLIB);
    cr_assert_null(h.backing_file);
    cr_assert_null(h.backing_format);
    cr_assert_null(h.data_file);
    cr_assert(!h.data_file_raw);
}

Test(qcow2_header, version_2_has_its_defaults)
{
    uint8_t buf[HEADER_BYTES];
    qcow2_header h;
    build_v2(buf);
    memset(buf + EXTENSIONS, 0xff, 8); /* where version 3 would have its fields */
    put(buf, 72, 8, 0);
    assert_accepted(buf, HEADER_BYTES, &h);
    cr_assert_eq(h.refcount_order, 4);
    cr_assert_eq(h.header_length, 72);
    cr_assert_eq(h.incompatible, 0);
}

Test(qcow2_header, O3_bounds_that_are_still_valid)
{
    static const struct {
        change changes[5];
    } rows[] = {
        {{{CLUSTER_BITS, 4, 9}, {L1_ENTRIES, 4, 320}}},
        {{{CLUSTER_BITS, 4, 21},
          {L1_OFFSET, 8, 4u << 20},
          {REFTABLE_OFFSET, 8, 2u << 20}}},
        {{{SIZE, 8, 0}, {L1_ENTRIES, 4, 0}, {L1_OFFSET, 8, 0}}},
        {{{SIZE, 8, (512u << 20)}}},
        {{{SIZE, 8, (10u << 20) + 1}}},
        {{{CRYPT, 4, 1}}},
        {{{REFCOUNT_ORDER, 4, 0}}},
        {{{REFCOUNT_ORDER, 4, 6}}},
        {{{REFTABLE_CLUSTERS, 4, 128}}},
        {{{L1_OFFSET, 8, FILE_SIZE - CLUSTER}, {L1_ENTRIES, 4, CLUSTER / 8}}},
        {{{SNAPSHOTS, 4, 65536}, {SNAPSHOT_OFFSET, 8, 4 * CLUSTER}}},
        {{{SNAPSHOT_OFFSET, 8, 12345}}}, /* not used without snapshots */
        {{{HEADER_LENGTH, 4, 104}}},
        {{{HEADER_LENGTH, 4, CLUSTER}}},
        {{{INCOMPATIBLE, 8, 8}, {COMPRESSION, 1, 1}}},
        {{{INCOMPATIBLE, 8, 16}}},
        {{{COMPATIBLE, 8, UINT64_MAX}}},
        {{{AUTOCLEAR, 8, UINT64_MAX}}},
        {{{BACKING_SIZE, 4, UINT32_MAX}}}, /* not used without an offset */
        {{{BACKING_OFFSET, 8, CLUSTER}, {BACKING_SIZE, 4, 0}}},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        uint8_t buf[HEADER_BYTES];
        qcow2_header h;
        g_autoptr(GError) error = NULL;
        build(buf);
        for (const change *c = rows[i].changes; c->width; c++)
            put(buf, c->offset, c->width, c->value);
        cr_assert(parse(buf, HEADER_BYTES, FILE_SIZE, &h, &error), "row %zu: %s", i,
                  error ? error->message : "");
        qcow2_header_clear(&h);
    }
}

Test(qcow2_header, O3_fields_out_of_bounds_are_refused)
{
    static const struct {
        change changes[4];
        int code;
        const char *text;
    } rows[] = {
        {{{0, 4, 0x514649fa}}, IMAGE_ERROR_FORMAT, "bad magic"},
        {{{VERSION, 4, 0}}, IMAGE_ERROR_UNSUPPORTED, "version 0"},
        {{{VERSION, 4, 1}}, IMAGE_ERROR_FORMAT, "version 1"},
        {{{VERSION, 4, 4}}, IMAGE_ERROR_UNSUPPORTED, "version 4"},
        {{{CLUSTER_BITS, 4, 8}}, IMAGE_ERROR_INVALID, "cluster_bits is 8"},
        {{{CLUSTER_BITS, 4, 22}}, IMAGE_ERROR_INVALID, "cluster_bits is 22"},
        {{{CLUSTER_BITS, 4, UINT32_MAX}}, IMAGE_ERROR_INVALID, "cluster_bits"},
        {{{SIZE, 8, UINT64_MAX}}, IMAGE_ERROR_INVALID, "too large"},
        {{{SIZE, 8, (uint64_t)1 << 63}}, IMAGE_ERROR_INVALID, "too large"},
        {{{SIZE, 8, ((uint64_t)1 << 62) + 1}}, IMAGE_ERROR_INVALID, "too large"},
        {{{SIZE, 8, (uint64_t)1 << 62}}, IMAGE_ERROR_INVALID, "L1 table is too small"},
        {{{SIZE, 8, (512u << 20) + 1}}, IMAGE_ERROR_INVALID, "L1 table is too small"},
        {{{L1_ENTRIES, 4, 0}}, IMAGE_ERROR_INVALID, "L1 table is too small"},
        {{{L1_ENTRIES, 4, (32u << 20) / 8 + 1}},
         IMAGE_ERROR_INVALID,
         "L1 table is too la"},
        {{{L1_ENTRIES, 4, UINT32_MAX}}, IMAGE_ERROR_INVALID, "L1 table is too large"},
        {{{L1_ENTRIES, 4, (32u << 20) / 8}}, IMAGE_ERROR_INVALID, "outside of the file"},
        {{{L1_OFFSET, 8, FILE_SIZE}}, IMAGE_ERROR_INVALID, "L1 table lies outside"},
        {{{L1_OFFSET, 8, 0}}, IMAGE_ERROR_INVALID, "L1 table's offset"},
        {{{L1_OFFSET, 8, CLUSTER + 512}}, IMAGE_ERROR_INVALID, "L1 table's offset"},
        {{{L1_OFFSET, 8, 0 - (uint64_t)CLUSTER}}, IMAGE_ERROR_INVALID, "outside of the"},
        {{{CRYPT, 4, 2}}, IMAGE_ERROR_UNSUPPORTED, "LUKS"},
        {{{CRYPT, 4, 3}}, IMAGE_ERROR_INVALID, "encryption method 3"},
        {{{REFCOUNT_ORDER, 4, 7}}, IMAGE_ERROR_INVALID, "refcount order 7"},
        {{{REFTABLE_CLUSTERS, 4, 0}}, IMAGE_ERROR_INVALID, "no refcount table"},
        {{{REFTABLE_CLUSTERS, 4, 129}}, IMAGE_ERROR_INVALID, "refcount table is too"},
        {{{REFTABLE_CLUSTERS, 4, UINT32_MAX}}, IMAGE_ERROR_INVALID, "refcount table is"},
        {{{REFTABLE_OFFSET, 8, 0}}, IMAGE_ERROR_INVALID, "refcount table's offset"},
        {{{REFTABLE_OFFSET, 8, CLUSTER + 8}}, IMAGE_ERROR_INVALID, "refcount table's"},
        {{{REFTABLE_OFFSET, 8, FILE_SIZE}}, IMAGE_ERROR_INVALID, "refcount table lies"},
        {{{SNAPSHOTS, 4, 65537}}, IMAGE_ERROR_INVALID, "too many snapshots"},
        {{{SNAPSHOTS, 4, 1}}, IMAGE_ERROR_INVALID, "snapshot table's offset"},
        {{{SNAPSHOTS, 4, 1}, {SNAPSHOT_OFFSET, 8, FILE_SIZE}},
         IMAGE_ERROR_INVALID,
         "snapshot table lies"},
        {{{HEADER_LENGTH, 4, 0}}, IMAGE_ERROR_INVALID, "header length 0"},
        {{{HEADER_LENGTH, 4, 103}}, IMAGE_ERROR_INVALID, "header length 103"},
        {{{HEADER_LENGTH, 4, 108}}, IMAGE_ERROR_INVALID, "header length 108"},
        {{{HEADER_LENGTH, 4, CLUSTER + 8}}, IMAGE_ERROR_INVALID, "header length"},
        {{{COMPRESSION, 1, 1}}, IMAGE_ERROR_INVALID, "contradicts"},
        {{{INCOMPATIBLE, 8, 8}}, IMAGE_ERROR_INVALID, "contradicts"},
        {{{INCOMPATIBLE, 8, 8}, {COMPRESSION, 1, 1}, {HEADER_LENGTH, 4, 104}},
         IMAGE_ERROR_INVALID,
         "contradicts"},
        {{{INCOMPATIBLE, 8, 8}, {COMPRESSION, 1, 2}},
         IMAGE_ERROR_UNSUPPORTED,
         "compression type 2"},
        {{{INCOMPATIBLE, 8, 16}, {CLUSTER_BITS, 4, 13}},
         IMAGE_ERROR_INVALID,
         "extended L2"},
        {{{INCOMPATIBLE, 8, 16}, {SIZE, 8, (256u << 20) + 1}},
         IMAGE_ERROR_INVALID,
         "L1 table is too small"},
        {{{INCOMPATIBLE, 8, (uint64_t)1 << 63}}, IMAGE_ERROR_UNSUPPORTED, "bit 63"},
        {{{INCOMPATIBLE, 8, 0x60}}, IMAGE_ERROR_UNSUPPORTED, "feature: bit 5, bit 6"},
        {{{BACKING_OFFSET, 8, 100}, {BACKING_SIZE, 4, 1}},
         IMAGE_ERROR_INVALID,
         "name's offset"},
        {{{BACKING_OFFSET, 8, CLUSTER + 1}}, IMAGE_ERROR_INVALID, "name's offset"},
        {{{BACKING_OFFSET, 8, UINT64_MAX}}, IMAGE_ERROR_INVALID, "name's offset"},
        {{{BACKING_OFFSET, 8, 200}, {BACKING_SIZE, 4, 1024}},
         IMAGE_ERROR_INVALID,
         "too long (1024"},
        {{{BACKING_OFFSET, 8, CLUSTER - 8}, {BACKING_SIZE, 4, 9}},
         IMAGE_ERROR_INVALID,
         "reaches out of the header"},
        {{{BACKING_OFFSET, 8, 200}, {BACKING_SIZE, 4, 4}}, IMAGE_ERROR_INVALID, "NUL"},
        {{{EXTENSIONS, 4, 1}, {EXTENSIONS + 4, 4, UINT32_MAX}},
         IMAGE_ERROR_INVALID,
         "reaches out"},
        {{{EXTENSIONS, 4, 1}, {EXTENSIONS + 4, 4, CLUSTER - EXTENSIONS - 7}},
         IMAGE_ERROR_INVALID,
         "reaches out"},
        {{{BACKING_OFFSET, 8, 200}, {EXTENSIONS, 4, 1}, {EXTENSIONS + 4, 4, 81}},
         IMAGE_ERROR_INVALID,
         "reaches out"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        uint8_t buf[HEADER_BYTES];
        build(buf);
        for (const change *c = rows[i].changes; c->width; c++)
            put(buf, c->offset, c->width, c->value);
        assert_refused(buf, HEADER_BYTES, FILE_SIZE, rows[i].code, rows[i].text);
    }
}

Test(qcow2_header, O3_a_short_file_is_refused_at_every_length)
{
    uint8_t buf[HEADER_BYTES];
    build(buf);
    for (size_t length = 0; length < EXTENSIONS; length++)
        assert_refused(buf, length, length,
                       length < 8 ? IMAGE_ERROR_FORMAT : IMAGE_ERROR_INVALID, "/x.qcow2");
    build_v2(buf);
    for (size_t length = 0; length < 72; length++)
        assert_refused(buf, length, length,
                       length < 8 ? IMAGE_ERROR_FORMAT : IMAGE_ERROR_INVALID, "/x.qcow2");
}

Test(qcow2_header, names_are_taken_from_extensions_and_backing)
{
    uint8_t buf[HEADER_BYTES];
    qcow2_header h;
    build(buf);
    put(buf, INCOMPATIBLE, 8, QCOW2_INCOMPAT_DATA_FILE);
    put(buf, AUTOCLEAR, 8, 2);
    unsigned at = put_extension(buf, EXTENSIONS, 0xe2792aca, "qcow2", 5);
    at = put_extension(buf, at, 0x12345678, "unknown", 7);
    at = put_extension(buf, at, 0x44415441, "data.raw", 8);
    at = put_extension(buf, at, 0, "", 0);
    memcpy(buf + at, "base.qcow2", 10);
    put(buf, BACKING_OFFSET, 8, at);
    put(buf, BACKING_SIZE, 4, 10);
    assert_accepted(buf, HEADER_BYTES, &h);
    cr_assert_str_eq(h.backing_file, "base.qcow2");
    cr_assert_str_eq(h.backing_format, "qcow2");
    cr_assert_str_eq(h.data_file, "data.raw");
    cr_assert(h.data_file_raw);
    qcow2_header_clear(&h);
    cr_assert_null(h.backing_file);
    /* The same bytes, and not one more: what lies behind the name is not needed. */
    assert_accepted(buf, at + 10, &h);
    qcow2_header_clear(&h);
    assert_refused(buf, at + 9, FILE_SIZE, IMAGE_ERROR_INVALID, "reaches out");
}

Test(qcow2_header, version_2_takes_a_backing_name_right_behind_the_header)
{
    uint8_t buf[HEADER_BYTES];
    qcow2_header h;
    build_v2(buf);
    memcpy(buf + 72, "old.qcow2", 9);
    put(buf, BACKING_OFFSET, 8, 72);
    put(buf, BACKING_SIZE, 4, 9);
    assert_accepted(buf, HEADER_BYTES, &h);
    cr_assert_str_eq(h.backing_file, "old.qcow2");
    cr_assert_null(h.backing_format);
    qcow2_header_clear(&h);
}

Test(qcow2_header, O3_backing_name_of_1023_bytes_is_the_longest)
{
    uint8_t buf[HEADER_BYTES];
    qcow2_header h;
    build(buf);
    memset(buf + 4096, 'x', 1024);
    put(buf, BACKING_OFFSET, 8, 4096);
    put(buf, BACKING_SIZE, 4, 1023);
    assert_accepted(buf, HEADER_BYTES, &h);
    cr_assert_eq(strlen(h.backing_file), 1023);
    qcow2_header_clear(&h);
    buf[4096 + 500] = 0;
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_INVALID, "NUL");
}

Test(qcow2_header, O3_extension_texts_are_bounded)
{
    uint8_t buf[HEADER_BYTES];
    char text[8192];
    qcow2_header h;
    memset(text, 'x', sizeof text);
    build(buf);
    put_extension(buf, EXTENSIONS, 0xe2792aca, text, 16);
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_INVALID,
                   "format is too long");
    build(buf);
    put_extension(buf, EXTENSIONS, 0xe2792aca, "raw\0x", 5);
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_INVALID,
                   "format holds a NUL");
    build(buf);
    put_extension(buf, EXTENSIONS, 0x44415441, text, 4096);
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_INVALID, "name is too long");
    build(buf);
    unsigned at = put_extension(buf, EXTENSIONS, 0x44415441, text, 4095);
    assert_accepted(buf, HEADER_BYTES, &h);
    qcow2_header_clear(&h);
    put_extension(buf, at, 0x44415441, "y", 1);
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_INVALID, "stands twice");
    build(buf);
    put_extension(buf, EXTENSIONS, 0xe2792aca, "", 0);
    assert_accepted(buf, HEADER_BYTES, &h);
    cr_assert_null(h.backing_format);
    qcow2_header_clear(&h);
}

Test(qcow2_header, O3_unknown_features_are_refused_by_printable_name)
{
    uint8_t buf[HEADER_BYTES], table[3 * 48] = {0};
    memcpy(table,
           "\0\5"
           "time travel",
           13);
    memcpy(table + 48,
           "\1\6"
           "not this one",
           14); /* a compatible feature's name */
    memcpy(table + 96,
           "\0\7"
           "a\nb\033[31m\377",
           11);
    build(buf);
    put(buf, INCOMPATIBLE, 8, 0xe0);
    put(buf, CRYPT, 4, 2); /* whatever else it may mean in such an image */
    put(buf, REFCOUNT_ORDER, 4, 99);
    put_extension(buf, EXTENSIONS, 0x6803f857, table, sizeof table);
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_UNSUPPORTED,
                   "time travel, bit 6, a?b?[31m?");
    /* A name that fills its field, and a table that ends within an entry. */
    memset(table + 2, 'n', 46);
    put_extension(buf, EXTENSIONS, 0x6803f857, table, 95);
    put(buf, INCOMPATIBLE, 8, 0xa0);
    assert_refused(buf, HEADER_BYTES, FILE_SIZE, IMAGE_ERROR_UNSUPPORTED,
                   "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn, bit 7");
}

Test(qcow2_header, O3_random_headers_never_over_read)
{
    uint64_t seed = support_seed();
    static const char names[48] = "\0\5name";
    uint8_t buf[HEADER_BYTES];
    build(buf);
    unsigned at = put_extension(buf, EXTENSIONS, 0xe2792aca, "qcow2", 5);
    put_extension(buf, at, 0x6803f857, names, sizeof names);
    memcpy(buf + 400, "base", 4);
    put(buf, BACKING_OFFSET, 8, 400);
    put(buf, BACKING_SIZE, 4, 4);
    for (unsigned round = 0; round < 20000; round++) {
        uint8_t mutant[1024];
        qcow2_header h;
        memcpy(mutant, buf, sizeof mutant);
        for (unsigned n = support_random(&seed) % 4; n < 4; n++)
            mutant[support_random(&seed) % 256] = (uint8_t)support_random(&seed);
        size_t length = support_random(&seed) % (sizeof mutant + 1);
        if (parse(mutant, length, FILE_SIZE, &h, NULL))
            qcow2_header_clear(&h);
    }
}
