/*
 * What libqcow reads through its helper process: every kind of image in the proven subset
 * equals qemu-img's conversion, and every kind outside of it is recognised beforehand.
 */
#include "tests/libqcow-open.h"
#include "tests/qcow2-open.h"
#include <errno.h>

/* Made by qemu-img and given to libqcow: the same bytes. */
static void assert_like_qemu(const char *names, uint64_t *seed)
{
    g_auto(GStrv) parts = g_strsplit(names, " ", 2);
    support_run("qemu-img convert -O raw %s want.raw", parts[0]);
    image *im = run_open(names);
    assert_reads(im, "want.raw", seed);
    image_close(im);
}

static const char *refusal(const char *name)
{
    GError *error = NULL;
    qcow2_header header;
    qcow2_check check;
    int fd = scratch_open(name);
    uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
    cr_assert(qcow2_header_read(fd, name, &header, &error), "%s",
              error ? error->message : "");
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    bool valid = qcow2_check_tables(fd, size, &header, name, &budget, &check, &error);
    cr_assert(valid || header.data_file ||
                  (header.incompatible & QCOW2_INCOMPAT_DATA_FILE),
              "%s", error ? error->message : "");
    const char *reason = libqcow_refuses_qcow2(&header, &check);
    g_clear_error(&error);
    qcow2_header_clear(&header);
    close(fd);
    return reason;
}

static void assert_refused(const char *name, const char *reason)
{
    const char *got = refusal(name);
    cr_assert_not_null(got, "%s: not refused", name);
    cr_assert_str_eq(got, reason);
}

/* ---- the proven subset ------------------------------------------------------------ */

Test(libqcow_read, cluster_sizes_plain_and_compressed)
{
    static const char *const sizes[] = {"512", "4k", "64k", "2M"};
    uint64_t seed = support_seed();
    source_make("source.raw");
    for (unsigned i = 0; i < 16; i++) {
        support_run("qemu-img convert -f raw -O qcow2 %s -o cluster_size=%s,compat=%s "
                    "source.raw a.qcow2",
                    i & 4 ? "-c" : "", sizes[i % 4], i & 8 ? "1.1" : "0.10");
        cr_assert_null(refusal("a.qcow2"));
        assert_like_qemu("a.qcow2", &seed);
    }
}

Test(libqcow_read, refcount_widths)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    for (unsigned bits = 1; bits <= 64; bits *= 2) {
        support_run("qemu-img convert -f raw -O qcow2 -o refcount_bits=%u source.raw "
                    "a.qcow2",
                    bits);
        cr_assert_null(refusal("a.qcow2"));
        assert_like_qemu("a.qcow2", &seed);
    }
}

Test(libqcow_read, odd_sizes)
{
    static const unsigned sizes[] = {512, 1536, 66048, 1000448};
    uint64_t seed = support_seed();
    source_make("source.raw");
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes) * 3; i++) {
        support_run("head -c %u source.raw > part.raw", sizes[i / 3]);
        support_run("qemu-img convert -f raw -O qcow2 %s part.raw a.qcow2",
                    i % 3 == 0   ? ""
                    : i % 3 == 1 ? "-c"
                                 : "-o cluster_size=512");
        cr_assert_null(refusal("a.qcow2"));
        assert_like_qemu("a.qcow2", &seed);
    }
}

Test(libqcow_read, snapshots_and_active_state)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    support_run("qemu-img convert -f raw -O qcow2 source.raw a.qcow2 && "
                "qemu-img snapshot -c one a.qcow2 && "
                "qemu-io -c 'write -P 9 100k 300k' a.qcow2 >/dev/null && "
                "qemu-img snapshot -c two a.qcow2 && "
                "qemu-io -c 'write -P 8 200k 20k' a.qcow2 >/dev/null");
    cr_assert_null(refusal("a.qcow2"));
    assert_like_qemu("a.qcow2", &seed);
}

Test(libqcow_read, preallocated_metadata)
{
    uint64_t seed = support_seed();
    support_run("qemu-img create -q -f qcow2 -o preallocation=metadata a.qcow2 3000K && "
                "qemu-io -c 'write -P 9 100k 300k' a.qcow2 >/dev/null");
    cr_assert_null(refusal("a.qcow2"));
    assert_like_qemu("a.qcow2", &seed);
}

Test(libqcow_read, lazy_refcounts_and_dirty_bit)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    support_run(
        "qemu-img convert -f raw -O qcow2 -o lazy_refcounts=on source.raw a.qcow2");
    g_autofree char *path = support_path("a.qcow2");
    support_poke(path, 79, "\1", 1); /* incompatible bit 0: dirty */
    cr_assert_null(refusal("a.qcow2"));
    image *im = run_open("a.qcow2");
    assert_reads(im, "source.raw", &seed);
    image_close(im);
}

Test(libqcow_read, qcow1_plain_and_compressed)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    for (unsigned i = 0; i < 2; i++) {
        /* With -c qemu-img 7.2 writes a good image and then exits with 1. */
        support_try("qemu-img convert -f raw -O qcow %s source.raw a.qcow",
                    i ? "-c" : "");
        image *im = run_open("a.qcow");
        assert_reads(im, "source.raw", &seed);
        image_close(im);
    }
}

Test(libqcow_read, empty_disk_of_terabytes)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 4T && "
                "qemu-io -c 'write -P 5 3T 64k' a.qcow2 >/dev/null");
    image *im = run_open("a.qcow2");
    uint8_t got[4096], want[4096];
    memset(want, 5, sizeof want);
    cr_assert_eq(image_read(im, got, (uint64_t)3 << 40, sizeof got), 0);
    cr_assert_eq(memcmp(got, want, sizeof want), 0);
    cr_assert_eq(image_read(im, got, ((uint64_t)4 << 40) - 4096, sizeof got), 0);
    memset(want, 0, sizeof want);
    cr_assert_eq(memcmp(got, want, sizeof want), 0);
    image_close(im);
}

/* ---- chains ----------------------------------------------------------------------- */

/* c over b over a, with cluster sizes of their own, each with writes of its own. */
static void chain_make(unsigned a_size, unsigned b_size, unsigned c_size)
{
    source_make("source.raw");
    support_run(
        "qemu-img convert -f raw -O qcow2 -o cluster_size=%u source.raw a.qcow2 && "
        "qemu-img create -q -f qcow2 -o cluster_size=%u -b a.qcow2 -F qcow2 b.qcow2",
        a_size, b_size);
    support_run(
        "qemu-io -c 'write -P 1 100k 64k' -c 'write -P 2 900k 3k' "
        "-c 'write -P 3 2080k 512' b.qcow2 >/dev/null && "
        "qemu-img create -q -f qcow2 -o cluster_size=%u -b b.qcow2 -F qcow2 c.qcow2 "
        "&& qemu-io -c 'write -P 4 130k 64k' -c 'write -P 5 1500k 512' c.qcow2 "
        ">/dev/null",
        c_size);
}

Test(libqcow_chain, two_and_three_layers_of_other_cluster_sizes)
{
    static const unsigned sizes[] = {65536, 512, 4096, 65536, 2097152};
    uint64_t seed = support_seed();
    for (unsigned i = 0; i + 2 < G_N_ELEMENTS(sizes); i++) {
        chain_make(sizes[i], sizes[i + 1], sizes[i + 2]);
        cr_assert_null(refusal("c.qcow2"));
        assert_like_qemu("b.qcow2 a.qcow2", &seed);
        assert_like_qemu("c.qcow2 b.qcow2 a.qcow2", &seed);
    }
}

Test(libqcow_chain, read_across_clusters_sees_the_overlay)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M && "
                "qemu-io -c 'write -P 1 0 1M' a.qcow2 >/dev/null && "
                "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 && "
                "qemu-io -c 'write -P 2 128k 64k' b.qcow2 >/dev/null");
    image *im = run_open("b.qcow2 a.qcow2");
    uint8_t got[8192], want[8192];
    memset(want, 1, 4096);
    memset(want + 4096, 2, 4096);
    cr_assert_eq(image_read(im, got, 126976, sizeof got), 0);
    cr_assert_eq(memcmp(got, want, sizeof want), 0);
    image_close(im);
}

Test(libqcow_chain, qcow2_over_qcow1)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    support_run("qemu-img convert -f raw -O qcow source.raw a.qcow && "
                "qemu-img create -q -f qcow2 -b a.qcow -F qcow b.qcow2 && "
                "qemu-io -c 'write -P 6 700k 100k' b.qcow2 >/dev/null");
    assert_like_qemu("b.qcow2 a.qcow", &seed);
}

Test(libqcow_chain, longer_parent)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    support_run("qemu-img convert -f raw -O qcow2 source.raw a.qcow2 && "
                "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 1M && "
                "qemu-io -c 'write -P 6 1020k 4k' b.qcow2 >/dev/null");
    assert_like_qemu("b.qcow2 a.qcow2", &seed);
}

Test(libqcow_chain, shorter_parent_is_refused)
{
    GError *error = NULL;
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M && "
                "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 2M");
    cr_assert_null(run_try("b.qcow2 a.qcow2", NULL, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED));
}

Test(libqcow_chain, empty_parent_stands_in_for_a_raw_one)
{
    source_make("source.raw");
    for (unsigned cluster = 512; cluster <= 65536; cluster *= 128) {
        support_run(
            "qemu-img create -q -f qcow2 -o cluster_size=%u -b source.raw -F raw "
            "a.qcow2 && qemu-io -c 'write -P 6 700k 100k' -c 'write -P 7 2080k 512' "
            "a.qcow2 >/dev/null && qemu-img convert -O raw a.qcow2 want.raw",
            cluster);
        image *im = run_open("a.qcow2");
        g_autofree char *top = support_path("a.qcow2");
        image *map = qcow2_open_with(qcow2_open_mapper, top, NULL);
        g_autofree char *path = support_path("want.raw");
        size_t length = 0, held = 0;
        g_autofree uint8_t *want = support_load(path, &length);
        g_autofree uint8_t *got = g_malloc(length);
        cr_assert_eq(image_read(im, got, 0, length), 0);
        image_extent extent;
        for (uint64_t at = 0; at < length; at += extent.length) {
            cr_assert_eq(image_map(map, at, length - at, &extent), 0);
            if (extent.kind == IMAGE_EXTENT_UNALLOCATED)
                memset(want + at, 0, extent.length);
            else
                held += extent.length;
        }
        cr_assert_geq(held, 100u << 10);
        cr_assert_lt(held, 400u << 10);
        cr_assert_eq(memcmp(got, want, length), 0);
        image_close(map);
        image_close(im);
    }
}

/* libqcow caches clusters and cannot be told to forget them. */
Test(libqcow_chain, R1_rot_under_an_open_image_is_seen_by_the_next_read)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M && "
                "qemu-io -c 'write -P 1 0 64k' a.qcow2 >/dev/null && "
                "qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 && "
                "qemu-io -c 'write -P 2 64k 64k' b.qcow2 >/dev/null");
    const char *const files[] = {"a.qcow2", "b.qcow2"};
    image *im = run_open("b.qcow2 a.qcow2");
    for (unsigned round = 0; round < 6; round++) {
        g_autofree char *path = support_path("%s", files[round % 2]);
        uint64_t guest = round % 2 ? 65536 : 0;
        uint8_t byte, rot = (uint8_t)(0x80 + round);
        cr_assert_eq(image_read(im, &byte, guest, 1), 0);
        cr_assert_neq(byte, rot);
        support_poke(path, 5 * 65536, &rot, 1); /* the first data cluster of both */
        cr_assert_eq(image_read(im, &byte, guest, 1), 0);
        cr_assert_eq(byte, rot);
    }
    image_close(im);
}

/* ---- encryption ------------------------------------------------------------------- */

static void aes_make(const char *format, const char *password)
{
    source_make("source.raw");
    support_run(
        "rm -f a.%s && qemu-img create -q -f %s --object secret,id=s,data='%s' "
        "-o encrypt.format=aes,encrypt.key-secret=s a.%s $(stat -c %%s source.raw) "
        "2>/dev/null",
        format, format, password, format);
    support_run("qemu-img convert -n -S 0 -f raw --target-image-opts "
                "--object secret,id=s,data='%s' source.raw "
                "driver=%s,encrypt.key-secret=s,file.filename=a.%s",
                password, format, format);
}

Test(libqcow_aes, both_formats_and_any_password)
{
    static const char *const passwords[] = {"geheim", "0123456789abcdefghij", "pässwörd"};
    uint64_t seed = support_seed();
    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(passwords); i++) {
        const char *format = i % 2 ? "qcow" : "qcow2";
        g_autofree char *name = g_strdup_printf("a.%s", format);
        aes_make(format, passwords[i / 2]);
        libqcow_options options = {.password = passwords[i / 2]};
        image *im = run_open_with(name, &options);
        assert_reads(im, "source.raw", &seed);
        image_close(im);
    }
    cr_assert_null(refusal("a.qcow2"));
}

Test(libqcow_aes, missing_password_is_an_error_of_its_own)
{
    for (unsigned i = 0; i < 4; i++) {
        const char *format = i % 2 ? "qcow" : "qcow2";
        g_autofree char *name = g_strdup_printf("a.%s", format);
        GError *error = NULL;
        aes_make(format, "geheim");
        libqcow_options options = {.password = i < 2 ? NULL : ""};
        cr_assert_null(run_try(name, &options, &error));
        cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_PASSWORD));
        g_clear_error(&error);
    }
}

Test(libqcow_aes, wrong_password_reads_as_noise)
{
    aes_make("qcow2", "geheim");
    libqcow_options options = {.password = "falsch"};
    image *im = run_open_with("a.qcow2", &options);
    uint8_t got[4096];
    g_autofree char *path = support_path("source.raw");
    size_t length = 0;
    g_autofree uint8_t *want = support_load(path, &length);
    cr_assert_eq(image_read(im, got, 0, sizeof got), 0);
    cr_assert_neq(memcmp(got, want, sizeof got), 0);
    image_close(im);
}

Test(libqcow_aes, overlay_over_raw_by_the_empty_parent)
{
    source_make("source.raw");
    support_run("qemu-img create -q -f qcow2 --object secret,id=s,data=geheim "
                "-o encrypt.format=aes,encrypt.key-secret=s -b source.raw -F raw a.qcow2 "
                "2>/dev/null");
    support_run("qemu-io --object secret,id=s,data=geheim --image-opts "
                "driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2 "
                "-c 'write -P 3 64k 64k' >/dev/null");
    libqcow_options options = {.password = "geheim"};
    image *im = run_open_with("a.qcow2", &options);
    g_autofree uint8_t *got = g_malloc(192 << 10), *want = g_malloc0(192 << 10);
    memset(want + (64 << 10), 3, 64 << 10);
    cr_assert_eq(image_read(im, got, 0, 192 << 10), 0);
    cr_assert_eq(memcmp(got, want, 192 << 10), 0);
    image_close(im);
}

/* ---- hazards: one test each ------------------------------------------------------- */

Test(libqcow_refuses, zero_clusters)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M && "
                "qemu-io -c 'write -P 1 0 1M' -c 'write -z 64k 64k' a.qcow2 >/dev/null");
    assert_refused("a.qcow2", "zero clusters");
}

Test(libqcow_refuses, zero_clusters_of_a_discard)
{
    support_run("qemu-img create -q -f qcow2 b.qcow2 1M && "
                "qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 a.qcow2 && "
                "qemu-io -d unmap -c 'write -P 1 0 1M' -c 'discard 64k 64k' a.qcow2 "
                ">/dev/null");
    assert_refused("a.qcow2", "zero clusters");
}

Test(libqcow_refuses, cluster_cut_short_by_the_end_of_the_file)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M && "
                "qemu-io -c 'write -P 1 0 64k' a.qcow2 >/dev/null && "
                "truncate -s -5000 a.qcow2");
    assert_refused("a.qcow2", "cluster past the end of the file");
}

Test(libqcow_refuses, extended_l2)
{
    support_run("qemu-img create -q -f qcow2 -o extended_l2=on a.qcow2 1M");
    assert_refused("a.qcow2", "extended L2 entries");
}

Test(libqcow_refuses, zstd)
{
    support_run("qemu-img create -q -f qcow2 -o compression_type=zstd a.qcow2 1M");
    assert_refused("a.qcow2", "zstd compression");
}

Test(libqcow_refuses, data_file)
{
    support_run("qemu-img create -q -f qcow2 -o data_file=a.data a.qcow2 1M");
    assert_refused("a.qcow2", "external data file");
}

Test(libqcow_refuses, luks)
{
    GError *error = NULL;
    qcow2_header header;
    /* qemu-img's key derivation measures the processor, and fails when it is busy. */
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M");
    g_autofree char *path = support_path("a.qcow2");
    support_poke(path, 35, "\2", 1);
    int fd = scratch_open("a.qcow2");
    cr_assert(!qcow2_header_read(fd, "a.qcow2", &header, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    close(fd);
    /* And should a header check miss it, the helper does not. */
    libqcow_options options = {.password = "geheim"};
    libqcow_layer layer = {.fd = scratch_open("a.qcow2"),
                           .filename = "a.qcow2",
                           .version = 3,
                           .size = 1 << 20,
                           .cluster_size = 65536};
    cr_assert_null(libqcow_open(&layer, 1, &options, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED));
}

Test(libqcow_refuses, corrupt_bit)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M");
    g_autofree char *path = support_path("a.qcow2");
    support_poke(path, 79, "\2", 1);
    assert_refused("a.qcow2", "marked corrupt");
}

Test(libqcow_refuses, unknown_compatible_features)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M");
    g_autofree char *path = support_path("a.qcow2");
    support_poke(path, 80, "\200", 1);
    assert_refused("a.qcow2", "unknown compatible features");
}

Test(libqcow_refuses, longer_header)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M");
    g_autofree char *path = support_path("a.qcow2");
    uint8_t none[64] = {0};
    support_poke(path, 103, "\170", 1); /* 120 bytes, no extensions */
    support_poke(path, 112, none, sizeof none);
    assert_refused("a.qcow2", "header length");
}

Test(libqcow_refuses, empty_disk)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 0");
    assert_refused("a.qcow2", "empty disk");
}

Test(libqcow_refuses, what_could_not_be_checked)
{
    qcow2_header header = {.version = 2,
                           .size = 1 << 20,
                           .l1_entries = 1,
                           .cluster_bits = 16,
                           .header_length = 72};
    qcow2_check check = {.complete = true};
    cr_assert_null(libqcow_refuses_qcow2(&header, &check));
    check.complete = false;
    cr_assert_str_eq(libqcow_refuses_qcow2(&header, &check),
                     "tables too large to check beforehand");
}

Test(libqcow_refuses, compressed_and_encrypted)
{
    qcow2_header header = {.version = 2,
                           .size = 1 << 20,
                           .l1_entries = 1,
                           .cluster_bits = 16,
                           .header_length = 72};
    qcow2_check check = {.complete = true, .has_compressed = true};
    cr_assert_null(libqcow_refuses_qcow2(&header, &check));
    header.crypt_method = 1;
    cr_assert_str_eq(libqcow_refuses_qcow2(&header, &check),
                     "compressed clusters in an encrypted image");
}

Test(libqcow_refuses, size_that_was_not_announced)
{
    GError *error = NULL;
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M");
    libqcow_layer layer = layer_describe("a.qcow2");
    layer.size += 512;
    cr_assert_null(libqcow_open(&layer, 1, NULL, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_INVALID));
}

Test(libqcow_refuses, file_of_another_format)
{
    GError *error = NULL;
    support_run("truncate -s 1M a.raw");
    libqcow_layer layer = {.fd = scratch_open("a.raw"),
                           .filename = "a.raw",
                           .version = 2,
                           .size = 1 << 20,
                           .cluster_size = 65536};
    cr_assert_null(libqcow_open(&layer, 1, NULL, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED));
}
