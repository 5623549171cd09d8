/*
 * Refcounts after an unclean end: images that QEMU left dirty are repaired, and qemu-img,
 * which repairs a copy, agrees.
 */
#include "tests/qcow2-repair.h"

/* Extended L2 needs clusters of 16 KiB or more. */
static const char *const variants[] = {
    "cluster_size=512",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4k,refcount_bits=2",
    "cluster_size=4k,refcount_bits=32",
    "cluster_size=64k,refcount_bits=4",
    "cluster_size=64k",
    "cluster_size=64k,refcount_bits=8",
    "cluster_size=2M",
    "cluster_size=2M,refcount_bits=1",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=64k,extended_l2=on,compression_type=zstd",
    "data_file=d.raw",
    "data_file=d.raw,data_file_raw=on,cluster_size=4k",
    "cluster_size=4k,preallocation=metadata",
};

#define WRITES                                                                           \
    "-c 'write -P 1 0 300k' -c 'write -P 2 5M 1M' -c flush -c 'write -P 3 100k 2M' "     \
    "-c 'write -z 600k 700k' -c flush -c 'write -P 4 20M 3M' -c 'discard 5M 256k' "      \
    "-c flush -c 'write -P 5 12M 100k'"

Test(qcow2_repair, images_left_dirty)
{
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        if (strstr(variants[i], "data_file_raw") || strstr(variants[i], "preallocation"))
            continue; /* all is allocated from the start */
        repair_create(variants[i]);
        repair_make_dirty(WRITES, variants[i]);
        repair_against_qemu(variants[i]);
    }
}

Test(qcow2_repair, snapshots_share_tables)
{
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        if (strstr(variants[i], "refcount_bits=1") || strstr(variants[i], "data_file"))
            continue;
        repair_create(variants[i]);
        support_run(
            "qemu-io -t unsafe -f qcow2 -c 'write -P 7 0 4M' -c 'write 18M 1M' r.qcow2 "
            ">/dev/null");
        support_run("qemu-img snapshot -c one r.qcow2");
        support_run(
            "qemu-io -t unsafe -f qcow2 -c 'write -P 8 1M 100k' r.qcow2 >/dev/null");
        support_run("qemu-img snapshot -c two r.qcow2");
        repair_make_dirty(WRITES, variants[i]);
        repair_against_qemu(variants[i]);
        /* A snapshot can be gone back to, and removed, without a leak. */
        support_run(
            "qemu-img snapshot -d two r.qcow2 && qemu-img snapshot -a one r.qcow2");
        qcow2_assert_clean("r.qcow2", variants[i]);
    }
}

Test(qcow2_repair, compressed_clusters_share_host_clusters)
{
    static const char *const sizes[] = {"4k", "64k", "2M",
                                        "64k,compression_type=zstd,extended_l2=on"};
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *options = g_strdup_printf("cluster_size=%s", sizes[i]);
        repair_create(options);
        support_run(
            "qemu-io -t unsafe -f qcow2 -c 'write -c -P 1 0 8M' r.qcow2 >/dev/null");
        support_run("qemu-img snapshot -c one r.qcow2");
        repair_make_dirty("-c 'write -P 9 1M 2M' -c 'write -c -P 3 8M 6M' -c flush "
                          "-c 'write -c -P 3 16M 2M'",
                          sizes[i]);
        repair_against_qemu(sizes[i]);
    }
}

Test(qcow2_repair, bitmaps_count)
{
    static const char *const options[] = {"cluster_size=64k", "cluster_size=512",
                                          "data_file=d.raw"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        repair_create(options[i]);
        support_run("qemu-img bitmap --add -g 512 r.qcow2 a");
        support_run("qemu-img bitmap --add --disable r.qcow2 b");
        support_run(
            "qemu-io -t unsafe -f qcow2 -c 'write 0 3M' -c 'write 13M 3M' r.qcow2 "
            ">/dev/null");
        repair_make_dirty(WRITES, options[i]);
        repair_against_qemu(options[i]);
        g_autofree char *info = support_output("qemu-img info r.qcow2");
        cr_assert(strstr(info, "name: a") && strstr(info, "name: b"), "%s", info);
    }
}

/* Backing files play no part, and what is clean stays byte for byte as it is. */
Test(qcow2_repair, clean_images_stay_as_they_are)
{
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        const qcow2_variant *v = &qcow2_variants[i];
        g_autoptr(GError) error = NULL;
        if (v->traits & VARIANT_DATA_FILE)
            continue;
        qcow2_variant_create(v, "r.qcow2");
        support_run("cp r.qcow2 before.qcow2");
        if (support_try("qemu-img check -q r.qcow2") == 0) {
            cr_assert(repair_file("r.qcow2", &error), "%s: %s", v->name,
                      error ? error->message : "");
            cr_assert_eq(support_try("cmp r.qcow2 before.qcow2"), 0, "%s", v->name);
        }
        qcow2_variant_remove("r.qcow2");
    }
}

/* ---- Refcounts that are worse than any crash leaves them ----------------------------- */

static qcow2_header read_header(const char *name)
{
    qcow2_header header;
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert(qcow2_header_read(fd, path, &header, NULL));
    g_close(fd, NULL);
    g_clear_pointer(&header.data_file, g_free); /* the only name that is there */
    return header;
}

static void set_dirty(const char *name)
{
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(qcow2_update_incompatible(fd, QCOW2_INCOMPAT_DIRTY, 0), 0);
    g_close(fd, NULL);
}

/* qemu-img check -r all changes more than it has to where blocks are missing, so content
 * is compared with what it was. */
static void repair_and_compare(const char *what)
{
    set_dirty("r.qcow2");
    repair_ok("r.qcow2", what);
    qcow2_assert_clean("r.qcow2", what);
    support_run("qemu-img compare -q r.qcow2 good.qcow2");
}

static void create_good(const char *options)
{
    repair_create(options);
    support_run("qemu-io -t unsafe -f qcow2 -c 'write -P 1 0 9M' -c 'write -P 3 20M 2M' "
                "-c 'write -z 1M 1M' r.qcow2 >/dev/null");
    if (!strstr(options, "refcount_bits=1") && !strstr(options, "data_file"))
        support_run(
            "qemu-img snapshot -c one r.qcow2 && "
            "qemu-io -t unsafe -f qcow2 -c 'write -P 2 8M 2M' r.qcow2 >/dev/null");
    qcow2_assert_clean("r.qcow2", options);
    support_run("cp r.qcow2 good.qcow2");
}

Test(qcow2_repair, scrambled_refcounts)
{
    uint64_t seed = support_seed();
    g_autofree char *path = support_path("r.qcow2");
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        create_good(variants[i]);
        qcow2_header header = read_header("r.qcow2");
        uint64_t cluster = (uint64_t)1 << header.cluster_bits;
        uint64_t entries = header.refcount_table_clusters * cluster / 8;
        size_t length;
        g_autofree uint8_t *bytes = support_load(path, &length);
        for (uint64_t k = 0; k < entries; k++) {
            uint64_t block = qcow2_be64(bytes + header.refcount_table_offset + k * 8);
            for (uint64_t at = 0; block && at < cluster; at += 8) {
                uint64_t word = support_random(&seed);
                memcpy(bytes + block + at, &word, 8);
            }
        }
        support_save(path, bytes, length);
        repair_and_compare(variants[i]);
    }
}

/* Some or all words of the refcount table are zeroes. */
Test(qcow2_repair, missing_blocks_are_made)
{
    uint64_t seed = support_seed();
    g_autofree char *path = support_path("r.qcow2");
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        create_good(variants[i]);
        qcow2_header header = read_header("r.qcow2");
        uint64_t cluster = (uint64_t)1 << header.cluster_bits;
        uint64_t table = header.refcount_table_clusters * cluster, zero = 0;
        for (uint64_t at = 0; at < table; at += 8) {
            if (i % 2 || support_random(&seed) % 3)
                support_poke(path, header.refcount_table_offset + at, &zero, 8);
        }
        repair_and_compare(variants[i]);
    }
}

/* A table of one cluster where more are needed. */
Test(qcow2_repair, the_table_grows)
{
    static const char *const options[] = {"cluster_size=512",
                                          "cluster_size=512,refcount_bits=64",
                                          "cluster_size=512,refcount_bits=2"};
    g_autofree char *path = support_path("r.qcow2");
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        create_good(options[i]);
        qcow2_header header = read_header("r.qcow2");
        uint32_t one = GUINT32_TO_BE(1);
        unsigned before = header.refcount_table_clusters;
        support_poke(path, 56, &one, 4);
        repair_and_compare(options[i]);
        header = read_header("r.qcow2");
        cr_assert_eq(header.refcount_table_clusters > 1, before > 1, "%u", before);
        cr_assert(i != 1 || before > 1);
    }
}

/* All flags of the active tables wrong, the one way or the other. */
Test(qcow2_repair, flags_follow_the_counts)
{
    g_autofree char *path = support_path("r.qcow2");
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        size_t length;
        if (strstr(variants[i], "preallocation"))
            continue;
        create_good(variants[i]);
        qcow2_header header = read_header("r.qcow2");
        g_autofree uint8_t *bytes = support_load(path, &length);
        unsigned step = header.incompatible & QCOW2_INCOMPAT_EXTL2 ? 16 : 8;
        for (uint32_t k = 0; k < header.l1_entries; k++) {
            uint8_t *l1 = bytes + header.l1_offset + (uint64_t)k * 8;
            uint64_t table = qcow2_be64(l1) & QCOW2_OFFSET_MASK;
            if (!table)
                continue;
            *l1 ^= 0x80;
            for (unsigned at = 0; at < 1u << header.cluster_bits; at += step) {
                uint64_t word = qcow2_be64(bytes + table + at);
                if ((word & QCOW2_OFFSET_MASK) && !(word >> 62 & 1))
                    bytes[table + at] ^= 0x80;
            }
        }
        if (header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
            continue; /* there the flag is the allocation of the first cluster */
        support_save(path, bytes, length);
        repair_and_compare(variants[i]);
    }
}
