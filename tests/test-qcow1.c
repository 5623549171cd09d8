/*
 * QCOW version 1 as we read it ourselves: header and tables checked, map and data as
 * qemu-img has them, and libqcow kept from what it reads wrongly.
 */
#include "tests/libqcow-open.h"
#include <errno.h>

static bool header_try(const char *name, qcow1_header *header, GError **error)
{
    int fd = scratch_open(name);
    bool ok = qcow1_header_read(fd, name, header, error);
    close(fd);
    return ok;
}

typedef image *qcow1_opener(int fd, const qcow1_header *header, const char *filename,
                            GError **error);

static image *open_by(qcow1_opener *opener, const char *name, GError **error)
{
    qcow1_header header;
    if (!header_try(name, &header, error))
        return NULL;
    image *im = opener(scratch_open(name), &header, name, error);
    qcow1_header_clear(&header);
    return im;
}

static const char *refusal(const char *name)
{
    qcow1_header header;
    cr_assert(header_try(name, &header, NULL));
    int fd = scratch_open(name);
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    const char *reason = libqcow_refuses_qcow1(fd, &header, &budget);
    close(fd);
    qcow1_header_clear(&header);
    return reason;
}

static void assert_native(const char *name, const char *raw, uint64_t *seed)
{
    GError *error = NULL;
    image *im = open_by(qcow1_open, name, &error);
    cr_assert_not_null(im, "%s", error ? error->message : "");
    assert_reads(im, raw, seed);
    image_close(im);
}

static void image_make(const char *options)
{
    source_make("source.raw");
    /* With -c qemu-img 7.2 writes a good image and then exits with 1. */
    support_try("qemu-img convert -f raw -O qcow %s source.raw a.qcow", options);
}

/* An overlay as qemu-img makes it: clusters of 512 bytes, L2 tables of 32 KiB. */
static void overlay_make(void)
{
    image_make("");
    support_run("qemu-img create -q -f qcow -b a.qcow -F qcow b.qcow && "
                "qemu-io -c 'write -P 1 100k 64k' -c 'write -P 2 1500k 1k' "
                "-c 'write -P 3 2080k 512' b.qcow >/dev/null && "
                "qemu-img convert -O raw b.qcow want.raw");
}

/* ---- reading and mapping ---------------------------------------------------------- */

Test(qcow1, plain_and_compressed)
{
    uint64_t seed = support_seed();
    image_make("");
    cr_assert_null(refusal("a.qcow"));
    assert_native("a.qcow", "source.raw", &seed);
    image_make("-c");
    cr_assert_null(refusal("a.qcow"));
    assert_native("a.qcow", "source.raw", &seed);
}

Test(qcow1, overlay_is_read_natively_and_kept_from_libqcow)
{
    GError *error = NULL;
    overlay_make();
    cr_assert_str_eq(refusal("b.qcow"), "level 2 tables that are not aligned");
    image *top = open_by(qcow1_open, "b.qcow", &error);
    image *base = open_by(qcow1_open, "a.qcow", &error);
    cr_assert(top && base);
    g_autofree char *path = support_path("want.raw");
    size_t length = 0;
    g_autofree uint8_t *want = support_load(path, &length), *got = g_malloc(length);
    image_extent extent;
    unsigned held = 0;
    for (uint64_t at = 0; at < length; at += extent.length) {
        cr_assert_eq(image_map(top, at, length - at, &extent), 0);
        held += extent.kind == IMAGE_EXTENT_DATA ? extent.length : 0;
        image *from = extent.kind == IMAGE_EXTENT_UNALLOCATED ? base : top;
        cr_assert_eq(image_read(from, got + at, at, extent.length), 0);
    }
    cr_assert_eq(memcmp(got, want, length), 0);
    cr_assert_eq(held, (64 << 10) + 1024 + 512);
    image_close(top);
    image_close(base);
}

Test(qcow1, map_leads_to_the_bytes)
{
    GError *error = NULL;
    uint8_t got[4096], want[4096];
    overlay_make();
    image *im = open_by(qcow1_open, "b.qcow", &error);
    image_extent extent;
    cr_assert_eq(image_map(im, 100 << 10, 1 << 20, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    cr_assert_eq(extent.length, 64 << 10);
    cr_assert_eq(image_map(im, (120 << 10) + 7, 1 << 20, &extent), 0);
    cr_assert_eq(extent.length, (44 << 10) - 7);
    cr_assert_eq(pread(extent.fd, got, sizeof got, (off_t)extent.host_offset),
                 (ssize_t)sizeof got);
    memset(want, 1, sizeof want);
    cr_assert_eq(memcmp(got, want, sizeof want), 0);
    image_close(im);
}

Test(qcow1, backing_name)
{
    qcow1_header header;
    overlay_make();
    cr_assert(header_try("b.qcow", &header, NULL));
    cr_assert_str_eq(header.backing_file, "a.qcow");
    cr_assert_eq(header.cluster_bits, 9);
    qcow1_header_clear(&header);
    cr_assert_null(header.backing_file);
    cr_assert(header_try("a.qcow", &header, NULL));
    cr_assert_null(header.backing_file);
    qcow1_header_clear(&header);
}

Test(qcow1, mapper_maps_and_does_not_read)
{
    GError *error = NULL;
    uint8_t got[512];
    image_extent extent;
    image_make("");
    image *im = open_by(qcow1_open_mapper, "a.qcow", &error);
    cr_assert_not_null(im);
    cr_assert_eq(image_map(im, 0, 4096, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    cr_assert_eq(image_read(im, got, 0, sizeof got), -ENOTSUP);
    image_close(im);
}

Test(qcow1, aes_is_for_libqcow)
{
    GError *error = NULL;
    image_extent extent;
    support_run("qemu-img create -q -f qcow --object secret,id=s,data=geheim "
                "-o encrypt.format=aes,encrypt.key-secret=s a.qcow 1M 2>/dev/null");
    support_run("qemu-io --object secret,id=s,data=geheim --image-opts "
                "driver=qcow,encrypt.key-secret=s,file.filename=a.qcow "
                "-c 'write -P 3 64k 64k' >/dev/null");
    cr_assert_null(refusal("a.qcow"));
    cr_assert_null(open_by(qcow1_open, "a.qcow", &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED));
    g_clear_error(&error);
    image *im = open_by(qcow1_open_mapper, "a.qcow", &error);
    cr_assert_eq(image_map(im, 64 << 10, 4096, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    cr_assert_eq(extent.fd, -1, "the bytes there are not the disk's");
    image_close(im);
}

Test(qcow1, cluster_cut_short_reads_as_zeroes_and_not_by_libqcow)
{
    uint64_t seed = support_seed();
    support_run("qemu-img create -q -f qcow a.qcow 8k && "
                "qemu-io -c 'write -P 1 0 8k' a.qcow >/dev/null && "
                "truncate -s -3000 a.qcow && qemu-img convert -O raw a.qcow want.raw");
    cr_assert_str_eq(refusal("a.qcow"), "cluster past the end of the file");
    assert_native("a.qcow", "want.raw", &seed);
}

Test(qcow1, unaligned_cluster_is_kept_from_libqcow)
{
    support_run("qemu-img create -q -f qcow a.qcow 8k && "
                "qemu-io -c 'write -P 1 0 8k' a.qcow >/dev/null");
    g_autofree char *path = support_path("a.qcow");
    uint64_t entry = GUINT64_TO_BE(8192 + 512);
    support_poke(path, 4096, &entry, sizeof entry);
    cr_assert_str_eq(refusal("a.qcow"), "clusters that are not aligned");
}

/* ---- O3: nothing of the file is believed ------------------------------------------ */

static void assert_header_refused(uint64_t at, const void *bytes, size_t length,
                                  image_error code, const char *text)
{
    GError *error = NULL;
    qcow1_header header;
    support_run("cp b.qcow bad.qcow");
    g_autofree char *path = support_path("bad.qcow");
    support_poke(path, at, bytes, length);
    cr_assert(!header_try("bad.qcow", &header, &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, (int)code), "%s", error->message);
    g_autofree char *want = g_strdup_printf("bad.qcow: %s", text);
    cr_assert_str_eq(error->message, want);
    cr_assert_null(header.backing_file);
    g_clear_error(&error);
}

Test(qcow1, O3_header_fields)
{
    const uint8_t huge[8] = {0x7f, 0xff}, zero[8] = {0}, far[8] = {0, 0, 16},
                  long_name[4] = {0, 0, 4, 0}, one = 8, wide = 17, l2 = 14, cipher = 2;
    const image_error invalid = IMAGE_ERROR_INVALID;
    overlay_make();
    assert_header_refused(0, "X", 1, IMAGE_ERROR_FORMAT, "not a qcow image of version 1");
    assert_header_refused(7, "\2", 1, IMAGE_ERROR_FORMAT,
                          "not a qcow image of version 1");
    assert_header_refused(24, huge, 8, invalid, "disk size out of range");
    assert_header_refused(24, zero, 8, invalid, "disk size out of range");
    assert_header_refused(24, far, 8, invalid, "level 1 table too large");
    assert_header_refused(32, &one, 1, invalid,
                          "cluster size out of range (512 bytes to 64 KiB)");
    assert_header_refused(32, &wide, 1, invalid,
                          "cluster size out of range (512 bytes to 64 KiB)");
    assert_header_refused(33, &l2, 1, invalid,
                          "level 2 table size out of range (512 bytes to 64 KiB)");
    assert_header_refused(39, &cipher, 1, IMAGE_ERROR_UNSUPPORTED,
                          "unknown encryption method");
    assert_header_refused(40, far, 8, invalid, "level 1 table outside of the file");
    assert_header_refused(40, zero, 8, invalid, "level 1 table outside of the file");
    assert_header_refused(8, far, 8, invalid, "backing file name outside of the file");
    assert_header_refused(16, long_name, 4, invalid, "backing file name too long");
    assert_header_refused(50, "", 1, invalid, "zero byte in the backing file name");
}

Test(qcow1, O3_tables_outside_of_the_file_or_over_another)
{
    const uint64_t places[] = {(uint64_t)1 << 40, (uint64_t)1 << 63, 8, 48, UINT64_MAX};
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        GError *error = NULL;
        image_make("");
        g_autofree char *path = support_path("a.qcow");
        uint64_t entry = GUINT64_TO_BE(places[i]);
        support_poke(path, 48, &entry, sizeof entry);
        cr_assert_null(open_by(qcow1_open, "a.qcow", &error));
        cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_INVALID));
        cr_assert_str_eq(refusal("a.qcow"), "unreadable tables");
        g_clear_error(&error);
    }
}

Test(qcow1, O3_clusters_outside_of_the_file)
{
    const uint64_t entries[] = {
        (uint64_t)1 << 40,          /* far away */
        8,                          /* in the header */
        ((uint64_t)1 << 63) | 8192, /* compressed, no length */
        ((uint64_t)1 << 63) | 8192 | 0xfffull << 51 | 1ull << 40, /* compressed, far */
        UINT64_MAX,
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(entries); i++) {
        GError *error = NULL;
        uint8_t got[8192];
        image_extent extent;
        image_make("");
        g_autofree char *path = support_path("a.qcow");
        uint64_t entry = GUINT64_TO_BE(entries[i]);
        support_poke(path, 4096 + 8, &entry, sizeof entry);
        image *im = open_by(qcow1_open, "a.qcow", &error);
        cr_assert_not_null(im);
        cr_assert_eq(image_read(im, got, 0, 4096), 0, "the cluster before it is fine");
        cr_assert_eq(image_read(im, got, 0, 8192), -EIO);
        cr_assert_eq(image_map(im, 4096, 4096, &extent), -EIO);
        cr_assert_str_eq(refusal("a.qcow"), "cluster outside of the file");
        image_close(im);
    }
}

Test(qcow1, O3_compressed_noise_is_an_error)
{
    GError *error = NULL;
    uint8_t got[4096];
    image_make("");
    g_autofree char *path = support_path("a.qcow");
    uint64_t entry = GUINT64_TO_BE(((uint64_t)1 << 63) | 0x800ull << 51 | 12288);
    support_poke(path, 4096, &entry, sizeof entry);
    image *im = open_by(qcow1_open, "a.qcow", &error);
    cr_assert_not_null(im);
    cr_assert_eq(image_read(im, got, 0, sizeof got), -EIO);
    image_close(im);
}

Test(qcow1, O3_random_damage)
{
    uint64_t seed = support_seed();
    image_make("-c");
    g_autofree char *good = support_path("a.qcow"), *bad = support_path("bad.qcow");
    size_t length = 0;
    g_autofree uint8_t *bytes = support_load(good, &length);
    g_autofree uint8_t *got = g_malloc(4 << 20);
    for (unsigned i = 0; i < 300; i++) {
        g_autofree uint8_t *copy = g_memdup2(bytes, length);
        for (unsigned n = 0; n < 8; n++)
            copy[support_random(&seed) % (n % 2 ? 8192 : 64)] =
                (uint8_t)support_random(&seed);
        memcpy(copy, bytes, 8);
        support_save(bad, copy, support_random(&seed) % 4 ? length : length / 2);
        GError *error = NULL;
        image *im = open_by(i % 2 ? qcow1_open : qcow1_open_mapper, "bad.qcow", &error);
        cr_assert_eq(im == NULL, error != NULL);
        g_clear_error(&error);
        if (im)
            image_read(im, got, 0, MIN(im->size, 4u << 20));
        image_close(im);
    }
}
