/*
 * The map of qcow2 images: what kind of extent each kind of cluster is.
 */
#include "tests/qcow2-craft.h"
#include <errno.h>

static void assert_host_bytes(image *im, uint64_t offset, uint8_t byte)
{
    uint8_t buf[512];
    image_extent extent = extent_at(im, offset);
    cr_assert_eq(file_read_full(extent.fd, buf, sizeof buf, extent.host_offset), 0);
    for (unsigned i = 0; i < sizeof buf; i++)
        cr_assert_eq(buf[i], byte);
}

Test(qcow2_map, every_kind_of_cluster)
{
    support_run("qemu-img create -q -f qcow2 k.qcow2 1000000");
    support_run("qemu-io -f qcow2 -c 'write -P 1 0 128k' -c 'write -P 2 192k 64k' "
                "-c 'write -z 256k 128k' -c 'write -c -P 3 448k 64k' "
                "-c 'write -c -P 4 512k 64k' k.qcow2 >/dev/null");
    image *im = open_image("k.qcow2");
    assert_extent(im, 0, IMAGE_EXTENT_DATA, 2 * CLUSTER);
    assert_extent(im, 1000, IMAGE_EXTENT_DATA, 2 * CLUSTER - 1000);
    assert_extent(im, 2 * CLUSTER, IMAGE_EXTENT_UNALLOCATED, CLUSTER);
    assert_extent(im, 3 * CLUSTER, IMAGE_EXTENT_DATA, CLUSTER);
    assert_extent(im, 4 * CLUSTER, IMAGE_EXTENT_ZERO, 2 * CLUSTER);
    assert_extent(im, 6 * CLUSTER, IMAGE_EXTENT_UNALLOCATED, CLUSTER);
    assert_extent(im, 7 * CLUSTER, IMAGE_EXTENT_COMPRESSED, CLUSTER);
    assert_extent(im, 7 * CLUSTER + 1, IMAGE_EXTENT_COMPRESSED, CLUSTER - 1);
    assert_extent(im, 9 * CLUSTER, IMAGE_EXTENT_UNALLOCATED, im->size - 9 * CLUSTER);
    assert_host_bytes(im, 0, 1);
    assert_host_bytes(im, 2 * CLUSTER - 512, 1);
    assert_host_bytes(im, 3 * CLUSTER, 2);
    image_extent extent;
    cr_assert_eq(image_map(im, 100, 300, &extent), 0);
    cr_assert_eq(extent.length, 300); /* no further than it was asked */
    cr_assert_gt(extent_at(im, 7 * CLUSTER).host_offset, 0);
    image_close(im);
}

Test(qcow2_map, a_zero_cluster_that_keeps_its_space_is_zero)
{
    support_run("qemu-img create -q -f qcow2 -o preallocation=metadata z.qcow2 1M");
    support_run("qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -z 0 64k' z.qcow2 "
                ">/dev/null");
    image *im = open_image("z.qcow2");
    assert_extent(im, 0, IMAGE_EXTENT_ZERO, CLUSTER);
    assert_extent(im, CLUSTER, IMAGE_EXTENT_DATA, MIB - CLUSTER);
    image_close(im);
}

Test(qcow2_map, subclusters_are_told_apart)
{
    support_run("qemu-img create -q -f qcow2 -o extended_l2=on s.qcow2 1M");
    support_run("qemu-io -f qcow2 -c 'write -P 5 2k 4k' -c 'write -z 8k 2k' "
                "-c 'write -P 6 126k 4k' -c 'write -c -P 7 256k 64k' s.qcow2 >/dev/null");
    image *im = open_image("s.qcow2");
    assert_extent(im, 0, IMAGE_EXTENT_UNALLOCATED, 2 * KIB);
    assert_extent(im, 2 * KIB, IMAGE_EXTENT_DATA, 4 * KIB);
    assert_extent(im, 3 * KIB, IMAGE_EXTENT_DATA, 3 * KIB);
    assert_extent(im, 6 * KIB, IMAGE_EXTENT_UNALLOCATED, 2 * KIB);
    assert_extent(im, 8 * KIB, IMAGE_EXTENT_ZERO, 2 * KIB);
    assert_extent(im, 10 * KIB, IMAGE_EXTENT_UNALLOCATED, 116 * KIB);
    assert_extent(im, 256 * KIB, IMAGE_EXTENT_COMPRESSED, CLUSTER);
    assert_host_bytes(im, 2 * KIB, 5);
    assert_host_bytes(im, 126 * KIB, 6);
    assert_host_bytes(im, 128 * KIB, 6);
    image_close(im);
}

Test(qcow2_map, a_data_file_holds_guest_offsets)
{
    support_run("qemu-img create -q -f qcow2 -o data_file=d.data d.qcow2 1M");
    support_run("qemu-io -f qcow2 -c 'write -P 8 0 64k' -c 'write -P 9 512k 1k' d.qcow2 "
                ">/dev/null");
    image *im = open_image("d.qcow2");
    assert_extent(im, 0, IMAGE_EXTENT_DATA, CLUSTER);
    assert_extent(im, CLUSTER, IMAGE_EXTENT_UNALLOCATED, 7 * CLUSTER);
    assert_extent(im, 512 * KIB, IMAGE_EXTENT_DATA, CLUSTER);
    cr_assert_eq(extent_at(im, 0).host_offset, 0);
    cr_assert_eq(extent_at(im, 512 * KIB + 7).host_offset, 512 * KIB + 7);
    assert_host_bytes(im, 0, 8);
    assert_host_bytes(im, 512 * KIB, 9);
    image_close(im);
}

Test(qcow2_map, an_image_and_its_data_file_go_together)
{
    g_autoptr(GError) error = NULL;
    qcow2_header h;
    support_run("qemu-img create -q -f qcow2 -o data_file=d.data d.qcow2 1M");
    support_run("qemu-img create -q -f qcow2 p.qcow2 1M");
    g_autofree char *external = support_path("d.qcow2");
    g_autofree char *plain = support_path("p.qcow2");
    int fd = open(external, O_RDONLY | O_CLOEXEC);
    cr_assert(qcow2_header_read(fd, external, &h, NULL));
    cr_assert_null(qcow2_open(fd, -1, &h, external, &error));
    cr_assert(strstr(error->message, "data file"));
    qcow2_header_clear(&h);
    g_clear_error(&error);
    fd = open(plain, O_RDONLY | O_CLOEXEC);
    cr_assert(qcow2_header_read(fd, plain, &h, NULL));
    cr_assert_null(qcow2_open(fd, dup(fd), &h, plain, &error));
    cr_assert(strstr(error->message, "no data file"));
    qcow2_header_clear(&h);
}

/* One lookup passes over holes of any size, and over 64 slices of L2 otherwise. */
Test(qcow2_map, lookups_are_bounded)
{
    support_run("qemu-img create -q -f qcow2 -o cluster_size=2M hole.qcow2 1024T");
    image *im = open_image("hole.qcow2");
    assert_extent(im, 0, IMAGE_EXTENT_UNALLOCATED, im->size);
    assert_extent(im, 12345, IMAGE_EXTENT_UNALLOCATED, im->size - 12345);
    image_close(im);
    support_run("qemu-img create -q -f qcow2 -o cluster_size=512,compat=1.1 f.qcow2 5M");
    support_run("qemu-io -f qcow2 -c 'write -z 0 5M' f.qcow2 >/dev/null");
    im = open_image("f.qcow2");
    uint64_t at = 0;
    for (unsigned i = 0; i < 3; i++) {
        image_extent extent = extent_at(im, at);
        cr_assert_eq(extent.kind, IMAGE_EXTENT_ZERO);
        cr_assert_leq(extent.length, 64 * 64 * 512);
        at += extent.length;
    }
    cr_assert_eq(at, 5 * MIB);
    image_close(im);
}

Test(qcow2_map, AES_is_mapped_but_not_read)
{
    g_autoptr(GError) error = NULL;
    uint8_t byte;
    support_run("qemu-img create -q --object secret,id=s,data=abc -f qcow2 "
                "-o encrypt.format=aes,encrypt.key-secret=s a.qcow2 1M 2>/dev/null");
    support_run("qemu-io --object secret,id=s,data=abc --image-opts -c 'write 64k 64k' "
                "driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2 >/dev/null");
    g_autofree char *path = support_path("a.qcow2");
    cr_assert_null(qcow2_open_with(qcow2_open, path, &error));
    cr_assert_eq(error->code, IMAGE_ERROR_UNSUPPORTED);
    image *im = qcow2_open_with(qcow2_open_mapper, path, NULL);
    cr_assert_not_null(im);
    image_extent extent = extent_at(im, CLUSTER);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    cr_assert_eq(extent.length, CLUSTER);
    cr_assert_eq(extent.fd, -1); /* what lies there is not what the guest wrote */
    cr_assert_eq(image_read(im, &byte, 0, 1), -ENOTSUP);
    image_close(im);
}

Test(qcow2_map, a_last_cluster_partly_there_reads_zero)
{
    craft c = craft_new(3, 16, 0);
    uint8_t buf[2 * CLUSTER], expected[2 * CLUSTER] = {0};
    put_word(&c, c.l2, c.data | COPIED);
    support_pattern(expected, 1000, 0, 1);
    cr_assert_eq(pwrite(c.fd, expected, 1000, (off_t)c.data), 1000);
    cr_assert_eq(ftruncate(c.fd, (off_t)c.data + 1000), 0);
    image *im = craft_open(&c, NULL);
    cr_assert_not_null(im);
    cr_assert_eq(image_read(im, buf, 0, sizeof buf), 0);
    cr_assert_eq(memcmp(buf, expected, sizeof buf), 0);
    assert_extent(im, 0, IMAGE_EXTENT_DATA, 1000);
    assert_extent(im, 1000, IMAGE_EXTENT_ZERO, CLUSTER - 1000);
    /* What is cut off later is an error. */
    cr_assert_eq(ftruncate(c.fd, (off_t)c.data + 900), 0);
    cr_assert_eq(image_read(im, buf, 0, 900), 0);
    cr_assert_eq(image_read(im, buf, 0, 901), -EIO);
    cr_assert_eq(image_read(im, buf, 1000, CLUSTER), 0);
    image_close(im);
    close(c.fd);
}

/* A machine's saved state lies in L2 tables behind the virtual size. */
Test(qcow2_map, saved_state_behind_the_size_is_not_read)
{
    craft c = craft_new(3, 9, 0);
    uint8_t buf[1024];
    craft_geometry(&c, 64 * 512 - 100, 2);
    put_word(&c, c.l2 + 63 * 8, c.data | COPIED);
    put_word(&c, c.l1 + 8, (c.data + 512) | COPIED);
    put_word(&c, c.data + 512, (c.data + 1024) | COPIED);
    image *im = craft_open(&c, NULL);
    cr_assert_not_null(im);
    assert_extent(im, 63 * 512, IMAGE_EXTENT_DATA, 412);
    cr_assert_eq(image_read(im, buf, im->size - 10, 10), 0);
    cr_assert_eq(image_read(im, buf, im->size - 10, 11), -EINVAL);
    image_close(im);
    put_word(&c, c.data + 512, c.l1 | COPIED); /* and yet it is checked */
    assert_refused(&c, "lies over the L1 table");
    close(c.fd);
}

/* More slices of L2 than the cache holds, in random order. */
Test(qcow2_map, slices_come_and_go)
{
    enum { SLICE = 4096, SLICES = 3000, TABLES = (SLICES + 15) / 16 };
    uint64_t seed = support_seed();
    uint64_t covered = 512 * CLUSTER; /* by one slice */
    craft c = craft_new(3, 16, 0);
    cr_assert_eq(ftruncate(c.fd, (off_t)(c.l2 + TABLES * CLUSTER)), 0);
    craft_geometry(&c, SLICES * covered, TABLES);
    for (uint64_t i = 0; i < TABLES; i++)
        put_word(&c, c.l1 + 8 * i, (c.l2 + i * CLUSTER) | COPIED);
    for (uint64_t i = 0; i < SLICES; i++)
        put_word(&c, c.l2 + i * SLICE + 8 * (i % 500), 1);
    image *im = craft_open(&c, NULL);
    cr_assert_not_null(im);
    for (unsigned round = 0; round < 3 * SLICES; round++) {
        uint64_t i = support_random(&seed) % SLICES;
        assert_extent(im, i * covered + i % 500 * CLUSTER, IMAGE_EXTENT_ZERO, CLUSTER);
    }
    image_close(im);
    close(c.fd);
}
