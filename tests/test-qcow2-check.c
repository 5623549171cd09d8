/*
 * The check of a qcow2 image's tables before any decoder sees them (O3): each rule is
 * broken once, in images made word by word, and the largest tables are tried.
 */
#include "tests/qcow2-craft.h"
#include <errno.h>
#include <sys/resource.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define MEMORY_MAX UINT64_MAX
#elif defined __clang__
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MEMORY_MAX UINT64_MAX
#endif
#endif
#ifndef MEMORY_MAX
#define MEMORY_MAX (64 * MIB)
#endif

/* Words of the L1 table, the L2 table and the refcount table that break a rule. Offsets
 * are in clusters of 64 KiB: 0 header, 1 refcount table, 2 block, 3 L1, 4 L2, 16 end. */
#define AT(n) ((uint64_t)(n)*CLUSTER)
static const struct {
    enum { IN_L1, IN_L2, IN_REFTABLE } where;
    unsigned index;
    uint64_t word;
    const char *text;
} bad_words[] = {
    {IN_L1, 0, AT(4) | COPIED | 1, "reserved"},
    {IN_L1, 0, AT(4) | PACKED, "reserved"},
    {IN_L1, 0, AT(4) | (uint64_t)1 << 56, "reserved"},
    {IN_L1, 0, AT(4) + 512, "not aligned"},
    {IN_L1, 0, AT(16), "outside of the file"},
    {IN_L1, 0, 0x00ffffffffff0000u, "outside of the file"},
    {IN_L1, 0, COPIED, "copied flag"},
    {IN_L1, 0, AT(1), "lies over the refcount table"},
    {IN_L1, 0, AT(2), "is L2 table and refcount block at once"},
    {IN_L1, 0, AT(3), "lies over the L1 table"},
    {IN_L1, 1, AT(4), "is L2 table and another at once"},
    {IN_L2, 0, AT(5) | 2, "reserved"},
    {IN_L2, 0, AT(5) | 0x100, "reserved"},
    {IN_L2, 0, AT(5) | (uint64_t)1 << 61, "reserved"},
    {IN_L2, 0, COPIED, "copied flag"},
    {IN_L2, 0, AT(5) + 512, "not aligned"},
    {IN_L2, 0, AT(16) | COPIED, "past the end"},
    {IN_L2, 0, 0x00ffffffffff0000u, "past the end"},
    {IN_L2, 0, AT(16) | 1, "past the end"}, /* also below zeroes */
    {IN_L2, 7, AT(1) | COPIED,
     "offset 0x70000: the cluster at 0x10000 lies over the ref"},
    {IN_L2, 0, AT(2) | COPIED, "lies over refcount block"},
    {IN_L2, 0, AT(3) | COPIED, "lies over the L1 table"},
    {IN_L2, 0, AT(4) | COPIED, "lies over L2 table"},
    {IN_L2, 8191, AT(4) | COPIED, "lies over L2 table"}, /* behind the virtual size */
    {IN_L2, 0, PACKED, "lies over the header"},
    {IN_L2, 0, PACKED | COPIED | AT(5), "compressed"},
    {IN_L2, 0, PACKED | AT(16), "reaches out of the file"},
    {IN_L2, 0, PACKED | (AT(16) - 512) | (uint64_t)1 << 54, "reaches out of the file"},
    {IN_L2, 0, PACKED | (((uint64_t)1 << 62) - 1), "reaches out of the file"},
    {IN_L2, 0, PACKED | AT(4), "lies over L2 table"},
    {IN_L2, 0, PACKED | (AT(4) - 1), "lies over the L1 table"},
    {IN_L2, 0, PACKED | (AT(2) - 100) | (uint64_t)1 << 54, "lies over refcount block"},
    {IN_REFTABLE, 0, AT(2) + 1, "refcount table entry 0 is not aligned"},
    {IN_REFTABLE, 0, AT(2) + 512, "not aligned"},
    {IN_REFTABLE, 0, AT(16), "outside of the file"},
    {IN_REFTABLE, 0, (uint64_t)1 << 63, "outside of the file"},
    {IN_REFTABLE, 9, AT(2), "is refcount block and another at once"},
    {IN_REFTABLE, 9, AT(3), "lies over the L1 table"},
};

Test(qcow2_check, O3_bad_words_are_refused)
{
    for (size_t i = 0; i < G_N_ELEMENTS(bad_words); i++) {
        craft c = craft_new(3, 16, 0);
        craft_geometry(&c, 20 * CLUSTER, 2);
        const uint64_t tables[] = {c.l1, c.l2, c.reftable};
        put_word(&c, tables[bad_words[i].where] + 8 * bad_words[i].index,
                 bad_words[i].word);
        assert_refused(&c, bad_words[i].text);
        close(c.fd);
    }
}

Test(qcow2_check, O3_features_decide_what_is_valid)
{
    craft c = craft_new(2, 16, 0);
    put_word(&c, c.l2, 1);
    assert_refused(&c, "zero flag stands in a version 2");
    put_field(&c, 4, 3);
    put_word(&c, c.l2, c.data | COPIED | 1);
    cr_assert(craft_check(&c).has_zero_clusters);
    /* The same words in an image with extended L2. */
    put_word(&c, 72, QCOW2_INCOMPAT_EXTL2);
    assert_refused(&c, "reserved");
    put_word(&c, c.l2, c.data | COPIED);
    put_word(&c, c.l2 + 8, 0x0000000100000001u);
    assert_refused(&c, "both allocated and zero");
    put_word(&c, c.l2, 0);
    put_word(&c, c.l2 + 8, 2);
    assert_refused(&c, "allocated without a cluster");
    put_word(&c, c.l2, PACKED | c.data);
    assert_refused(&c, "subcluster bits stand on a compressed");
    put_word(&c, c.l2, c.data | COPIED);
    qcow2_check check = craft_check(&c);
    cr_assert_eq(check.allocated_bytes, CLUSTER / 32);
    cr_assert(!check.has_zero_clusters);
    close(c.fd);
}

Test(qcow2_check, O3_data_files_hold_nothing_but_guest_offsets)
{
    craft c = craft_new(3, 16, QCOW2_INCOMPAT_DATA_FILE);
    static const struct {
        uint64_t word;
        const char *text;
    } rows[] = {{COPIED | 2 * CLUSTER, NULL},
                {COPIED | 3 * CLUSTER, "not at its guest offset"},
                {COPIED, "not at its guest offset"},
                {PACKED | 2 * CLUSTER, "compressed"}};
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GError) error = NULL;
        qcow2_header h;
        qcow2_check check;
        put_word(&c, c.l2 + 16, rows[i].word);
        cr_assert(qcow2_header_read(c.fd, "/x", &h, NULL));
        uint64_t budget = QCOW2_CHECK_BYTES_MAX;
        bool ok = qcow2_check_tables(c.fd, MIB, &h, "/x", &budget, &check, &error);
        cr_assert_eq(ok, rows[i].text == NULL);
        cr_assert(ok || strstr(error->message, rows[i].text), "%s", error->message);
    }
    close(c.fd);
}

Test(qcow2_check, O3_tables_of_fixed_place_do_not_overlap)
{
    craft c = craft_new(3, 16, 0);
    put_word(&c, 40, c.reftable);
    assert_refused(&c, "overlaps");
    put_word(&c, 40, c.l1);
    put_field(&c, 56, 3);
    assert_refused(&c, "the L1 table overlaps the refcount table");
    put_field(&c, 56, 1);
    put_field(&c, 60, 1);
    put_word(&c, 64, c.l2); /* of zeroes: one entry without a name */
    put_word(&c, 40, c.l2);
    assert_refused(&c, "overlaps");
    put_word(&c, 40, c.l1);
    put_word(&c, 64, c.data);
    put_word(&c, c.data, c.l1);
    put_field(&c, c.data + 8, 1);
    assert_refused(&c, "a snapshot's L1 table");
    put_word(&c, c.data, c.data + CLUSTER);
    craft_check(&c);
    put_word(&c, c.l2, (c.data + CLUSTER) | COPIED);
    assert_refused(&c, "lies over a snapshot's L1 table");
    close(c.fd);
}

Test(qcow2_check, O3_snapshot_tables_are_bounded)
{
    craft c = craft_new(3, 16, 0);
    put_field(&c, 60, 2);
    put_word(&c, 64, c.data);
    put_word(&c, c.data, c.data + CLUSTER);
    put_field(&c, c.data + 8, UINT32_MAX);
    assert_refused(&c, "L1 table of snapshot 0");
    put_field(&c, c.data + 8, 1);
    put_word(&c, c.data, UINT64_MAX - CLUSTER + 1);
    assert_refused(&c, "L1 table of snapshot 0");
    put_word(&c, c.data, c.data + CLUSTER + 8);
    assert_refused(&c, "L1 table of snapshot 0");
    put_word(&c, c.data, c.data + CLUSTER);
    put_field(&c, c.data + 36, 1025);
    assert_refused(&c, "extra data");
    put_field(&c, c.data + 36, 1024);
    put_field(&c, c.data + 12, UINT32_MAX);
    put_word(&c, c.data, c.data + 4 * CLUSTER); /* the names take more than a cluster */
    craft_check(&c);
    put_field(&c, 60, 65536);
    put_word(&c, 64, 15 * CLUSTER);
    assert_refused(&c, "snapshot table lies outside");
    put_field(&c, 60, 1600); /* 40 bytes each do not reach the end, their names do */
    put_word(&c, 15 * CLUSTER + 8, 0xffffffffu);
    assert_refused(&c, "snapshot table reaches out");
    close(c.fd);
}

Test(qcow2_check, what_was_seen_is_counted)
{
    craft c = craft_new(3, 16, 0);
    uint64_t size = 3 * CLUSTER + 100;
    craft_geometry(&c, size, 1);
    qcow2_check check = craft_check(&c);
    cr_assert(check.complete && !check.has_compressed && !check.has_zero_clusters);
    cr_assert_eq(check.allocated_bytes, 0);
    put_word(&c, c.l2, c.data | COPIED);
    put_word(&c, c.l2 + 8, PACKED | (c.data + CLUSTER));
    put_word(&c, c.l2 + 24, (c.data + 2 * CLUSTER) | COPIED);
    put_word(&c, c.l2 + 32, (c.data + 3 * CLUSTER) | COPIED); /* behind the end */
    check = craft_check(&c);
    cr_assert(check.has_compressed && !check.has_short_clusters);
    cr_assert_eq(check.allocated_bytes, 2 * CLUSTER + 100);
    cr_assert_eq(ftruncate(c.fd, (off_t)(c.data + 3 * CLUSTER + 1)), 0);
    cr_assert(!craft_check(&c).has_short_clusters);
    put_word(&c, c.l2 + 24, (c.data + 3 * CLUSTER) | COPIED);
    cr_assert(craft_check(&c).has_short_clusters);
    close(c.fd);
}

static uint64_t memory_now(void)
{
    size_t length;
    g_autofree char *statm = (char *)support_load("/proc/self/statm", &length);
    return g_ascii_strtoull(strchr(statm, ' '), NULL, 10) * (uint64_t)getpagesize();
}

static uint64_t peak_memory(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss * KIB;
}

/* The most that the format allows: 4 Mi entries of L1, each with an L2 table, a million
 * refcount blocks, in a file of an apparent 2^50 bytes, so that no bitmap of it fits. */
static craft craft_monster(void)
{
    enum { L1_ENTRIES = 4 * MIB, BLOCKS = MIB };
    craft c = craft_new(3, 9, 0);
    g_autofree uint64_t *words = g_new(uint64_t, L1_ENTRIES);
    uint64_t tables = (uint64_t)1 << 40;
    cr_assert_eq(ftruncate(c.fd, (off_t)1 << 50), 0);
    put_word(&c, 40, 64 * MIB);
    put_word(&c, 48, 128 * MIB);
    put_field(&c, 56, 8 * MIB / 512);
    craft_geometry(&c, (uint64_t)L1_ENTRIES * 64 * 512, L1_ENTRIES);
    /* Not in order, and alike in the low bits of the cluster's number. */
    for (uint64_t i = 0; i < L1_ENTRIES; i++) {
        uint64_t n = i * 2654435761u % L1_ENTRIES;
        words[i] = GUINT64_TO_BE((tables + n * 64 * MIB) | COPIED);
    }
    pwrite(c.fd, words, L1_ENTRIES * 8, 64 * MIB);
    for (uint64_t i = 0; i < BLOCKS; i++)
        words[i] = GUINT64_TO_BE(tables + i * 64 * MIB + 512);
    pwrite(c.fd, words, BLOCKS * 8, 128 * MIB);
    return c;
}

Test(qcow2_check, O3_the_largest_tables_take_bounded_memory)
{
    craft c = craft_monster();
    uint64_t before = memory_now();
    image *im = craft_open(&c, NULL);
    uint64_t peak = peak_memory();
    cr_assert_not_null(im);
    uint8_t byte = 1;
    cr_assert_eq(image_read(im, &byte, im->size - 1, 1), 0);
    cr_assert_eq(byte, 0);
    cr_assert_leq(peak - before, MEMORY_MAX, "%" PRIu64 " bytes", peak - before);
    image_close(im);
    /* Some table, anywhere, that stands twice is still found. */
    put_word(&c, 64 * MIB + 8 * 3999999, ((uint64_t)1 << 40) + 512);
    assert_refused(&c, "at once");
    close(c.fd);
}

/* More than 64 MiB of L2 tables: the check stops, and lookups check for themselves. */
Test(qcow2_check, O3_what_the_check_did_not_reach_is_checked_at_lookup)
{
    enum { TABLES = 40 };
    craft c = craft_new(3, 21, 0);
    uint64_t cluster = 2 * MIB;
    uint8_t buf[512];
    cr_assert_eq(ftruncate(c.fd, (off_t)(100 * cluster)), 0);
    craft_geometry(&c, TABLES * (cluster << 18), TABLES);
    for (unsigned i = 0; i < TABLES; i++)
        put_word(&c, c.l1 + 8 * i, (c.l2 + i * cluster) | COPIED);
    cr_assert(!craft_check(&c).complete);
    uint64_t last = c.l2 + (TABLES - 1) * cluster;
    uint64_t guest = (TABLES - 1) * (cluster << 18);
    put_word(&c, last, (99 * cluster) | COPIED);
    put_word(&c, last + 8, (99 * cluster + 512) | COPIED);
    put_word(&c, last + 16, (100 * cluster) | COPIED);
    put_word(&c, last + 24, c.l1 | COPIED);
    put_word(&c, last + 32, PACKED | c.reftable);
    image *im = craft_open(&c, NULL);
    cr_assert_not_null(im);
    assert_extent(im, guest, IMAGE_EXTENT_DATA, cluster);
    for (unsigned i = 0; i < 6; i++) {
        bool bad = i >= 1 && i <= 4;
        cr_assert_eq(image_read(im, buf, guest + i * cluster, 512), bad ? -EIO : 0, "%u",
                     i);
    }
    cr_assert_eq(image_read(im, buf, guest + cluster - 256, 512), -EIO);
    image_close(im);
    put_word(&c, c.l2 + 8,
             (99 * cluster + 512) | COPIED); /* where the check does reach */
    assert_refused(&c, "not aligned");
    close(c.fd);
}

/* All kinds of images that qemu-img makes pass the check completely. */
Test(qcow2_check, images_of_qemu_img_pass)
{
    static const char *const clusters[] = {"512", "4k", "64k", "2M"};
    static const char *const options[] = {
        "compat=0.10",
        "compat=0.10,preallocation=full",
        "refcount_bits=1,preallocation=metadata",
        "refcount_bits=64,lazy_refcounts=on",
        "compression_type=zstd,preallocation=falloc",
        "data_file=q.data,preallocation=metadata",
        "data_file=q.data,data_file_raw=on,refcount_bits=2",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(clusters); i++) {
        for (size_t k = 0; k < G_N_ELEMENTS(options); k++) {
            support_run(
                "qemu-img create -q -f qcow2 -o cluster_size=%s,%s q.qcow2 3000000",
                clusters[i], options[k]);
            image *im = open_image("q.qcow2");
            cr_assert_eq(im->size, 3000320);
            image_close(im);
        }
    }
    support_run("qemu-img create -q -f qcow2 b.qcow2 3M");
    support_run("qemu-img bitmap --add b.qcow2 changes");
    support_run("qemu-io -f qcow2 -c 'write 1M 70k' b.qcow2 >/dev/null");
    support_run("qemu-img resize -q --shrink b.qcow2 2M");
    image *im = open_image("b.qcow2");
    assert_extent(im, MIB, IMAGE_EXTENT_DATA, 2 * CLUSTER);
    image_close(im);
    support_run("qemu-img create -q -f qcow2 empty.qcow2 0");
    image_close(open_image("empty.qcow2"));
}
