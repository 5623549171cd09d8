/*
 * Compressed clusters of qcow2 images: what fills its cluster is read, anything else is
 * an error of that cluster.
 */
#include "tests/qcow2-craft.h"
#include <errno.h>
#include <zlib.h>
#include <zstd.h>

Test(qcow2_compress, O3_a_damaged_compressed_cluster_is_an_error_of_its_own)
{
    static const uint32_t zstd_skippable[] = {0x184d2a50, 0};
    for (unsigned zstd = 0; zstd < 2; zstd++) {
        craft c = craft_new(3, 16, zstd ? QCOW2_INCOMPAT_COMPRESSION : 0);
        uint8_t buf[512];
        put_field(&c, 100, 112);
        put_field(&c, 104, zstd << 24);
        put_word(&c, c.l2, PACKED | c.data);
        put_word(&c, c.l2 + 8, PACKED | (c.data + CLUSTER) | (uint64_t)255 << 54);
        pwrite(c.fd, zstd_skippable, 8, (off_t)c.data);
        memset(buf, 0xff, sizeof buf);
        pwrite(c.fd, buf, sizeof buf, (off_t)(c.data + CLUSTER));
        image *im = craft_open(&c, NULL);
        cr_assert_not_null(im);
        cr_assert_eq(image_read(im, buf, 0, 1), -EIO);
        cr_assert_eq(image_read(im, buf, CLUSTER + 5, 512), -EIO);
        cr_assert_eq(image_read(im, buf, 2 * CLUSTER - 1, 2), -EIO);
        cr_assert_eq(image_read(im, buf, 2 * CLUSTER, 512), 0);
        image_close(im);
        close(c.fd);
    }
}

static size_t deflate_raw(uint8_t *out, size_t out_size, uint8_t *in, size_t in_size)
{
    z_stream z = {.next_in = in,
                  .avail_in = (uInt)in_size,
                  .next_out = out,
                  .avail_out = (uInt)out_size};
    cr_assert_eq(deflateInit2(&z, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    cr_assert_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return out_size - z.avail_out;
}

/* A frame that asks for a window of 128 MiB. */
static size_t zstd_frame(uint8_t *out, size_t out_size, const uint8_t *in, size_t in_size)
{
    ZSTD_CCtx *z = ZSTD_createCCtx();
    ZSTD_inBuffer from = {in, in_size, 0};
    ZSTD_outBuffer to = {out, out_size, 0};
    ZSTD_CCtx_setParameter(z, ZSTD_c_windowLog, 27);
    ZSTD_compressStream2(z, &to, &from,
                         ZSTD_e_flush); /* so that it is not made smaller */
    cr_assert_eq(ZSTD_compressStream2(z, &to, &from, ZSTD_e_end), 0);
    ZSTD_freeCCtx(z);
    return to.pos;
}

/* Reads guest cluster 0, compressed into `length` bytes at `packed`. */
static int read_packed(bool zstd, const uint8_t *packed, size_t length, uint8_t *buf)
{
    craft c = craft_new(3, 16, zstd ? QCOW2_INCOMPAT_COMPRESSION : 0);
    put_field(&c, 100, 112);
    put_field(&c, 104, (uint32_t)zstd << 24);
    put_word(&c, c.l2, PACKED | (c.data + 100) | (uint64_t)((length + 100) / 512) << 54);
    cr_assert_eq(pwrite(c.fd, packed, length, (off_t)(c.data + 100)), (ssize_t)length);
    image *im = craft_open(&c, NULL);
    cr_assert_not_null(im);
    int result = image_read(im, buf, 0, CLUSTER);
    image_close(im);
    close(c.fd);
    return result;
}

Test(qcow2_compress, O3_compressed_data_fills_its_cluster_exactly)
{
    uint8_t in[4 * CLUSTER], packed[2 * CLUSTER], out[CLUSTER];
    for (size_t i = 0; i < sizeof in; i++)
        in[i] = (uint8_t)((i >> 6) * 37 + i % 5);
    cr_assert_eq(
        read_packed(false, packed, deflate_raw(packed, CLUSTER, in, CLUSTER), out), 0);
    cr_assert_eq(memcmp(in, out, CLUSTER), 0);
    size_t length = deflate_raw(packed, CLUSTER, in, CLUSTER - 1);
    cr_assert_eq(read_packed(false, packed, length, out), -EIO);
    /* What expands to more than a cluster gives a cluster. */
    length = deflate_raw(packed, sizeof packed, in, sizeof in);
    cr_assert_eq(read_packed(false, packed, length, out), 0);
    cr_assert_eq(memcmp(in, out, CLUSTER), 0);
    /* zstd: a frame, or more than one, is a cluster. */
    length = zstd_frame(packed, CLUSTER, in, 1000);
    cr_assert_eq(read_packed(true, packed, length, out), -EIO);
    length += zstd_frame(packed + length, CLUSTER, in + 1000, CLUSTER - 1000);
    cr_assert_eq(read_packed(true, packed, length, out), 0);
    cr_assert_eq(memcmp(in, out, CLUSTER), 0);
    length = zstd_frame(packed, sizeof packed, in, CLUSTER + 1);
    cr_assert_eq(read_packed(true, packed, length, out), -EIO);
}

/* Decompressed clusters are kept, but not longer than the file is what it was. */
Test(qcow2_compress, R1_rot_under_an_open_image_is_seen_by_the_next_read)
{
    uint8_t in[CLUSTER] = {0}, packed[CLUSTER], out;
    craft c = craft_new(3, 16, 0);
    put_word(&c, c.l2, PACKED | c.data | (uint64_t)1 << 54);
    image *im = craft_open(&c, NULL);
    cr_assert_not_null(im);
    for (unsigned round = 0; round < 4; round++) {
        memset(packed, 0, sizeof packed);
        memset(in, (int)round + 1, sizeof in);
        deflate_raw(packed, sizeof packed, in, sizeof in);
        cr_assert_eq(pwrite(c.fd, packed, 1024, (off_t)c.data), 1024);
        for (unsigned k = 0; k < 3; k++) {
            cr_assert_eq(image_read(im, &out, 5, 1), 0);
            cr_assert_eq(out, round + 1);
        }
    }
    image_close(im);
    close(c.fd);
}
