/*
 * The rules of writing qcow2, one by one: what is written in place and what is copied, what
 * is read for a copy, what is freed and used again.
 */
#include "tests/qcow2-write-support.h"
#include <errno.h>

/* ---- In place, or a copy -------------------------------------------------------------- */

Test(qcow2_write_rules, copied_cluster_is_written_in_place)
{
    make("create; io $i 'write -P 1 0 64k'");
    image *im = open_written();
    uint64_t host = host_of(im, 0);
    write_pattern(im, 1000, 3000, 7);
    cr_assert_eq(host_of(im, 0), host);
    cr_assert_eq(image_flush(im), 0);
    close_clean(im);
}

Test(qcow2_write_rules, shared_cluster_is_copied_once)
{
    make("create; io $i 'write -P 1 0 128k'; snapshot one; "
         "qemu-img convert -f qcow2 -l one -O raw $i $i.one");
    image *im = open_written();
    uint64_t host = host_of(im, 0);
    write_pattern(im, 512, 512, 7);
    uint64_t copy = host_of(im, 0);
    cr_assert_neq(copy, host);
    cr_assert_eq(host_of(im, 64 * KIB), host + 64 * KIB, "a neighbour moved");
    write_pattern(im, 4096, 512, 8);
    cr_assert_eq(host_of(im, 0), copy, "copied twice");
    close_clean(im);
    support_run("qemu-img convert -f qcow2 -l one -O raw %s now && cmp now %s.one", file,
                file);
}

/* Once the snapshot is gone, what it shared is the disk's alone, whatever the flag says. */
Test(qcow2_write_rules, cluster_is_written_in_place_again_without_the_snapshot)
{
    make("create; io $i 'write -P 1 0 64k'; snapshot one; qemu-img snapshot -d one $i");
    image *im = open_written();
    uint64_t host = host_of(im, 0);
    write_pattern(im, 0, 512, 7);
    cr_assert_eq(host_of(im, 0), host);
    close_clean(im);
}

Test(qcow2_write_rules, compressed_cluster_is_never_written_in_place)
{
    make("s=256k; compress -o cluster_size=64k");
    image *im = open_written();
    image_extent before = extent_at(im, 0);
    cr_assert_eq(before.kind, IMAGE_EXTENT_COMPRESSED);
    write_pattern(im, 70, 512, 7);
    cr_assert_eq(extent_at(im, 0).kind, IMAGE_EXTENT_DATA);
    assert_pattern(im, 70, 512, 7);
    close_clean(im);
}

/* ---- Zero clusters -------------------------------------------------------------------- */

Test(qcow2_write_rules, host_cluster_under_zeroes_is_used)
{
    make("create; io $i 'write -P 1 0 64k' 'write -P 2 64k 64k' 'write -z 0 64k'");
    image *im = open_written();
    uint64_t size = (uint64_t)file_stat().st_size;
    uint64_t neighbour = host_of(im, 64 * KIB);
    cr_assert_eq(extent_at(im, 0).kind, IMAGE_EXTENT_ZERO);
    write_pattern(im, 4096, 512, 7);
    cr_assert_eq(host_of(im, 0), neighbour - 64 * KIB, "another cluster was taken");
    assert_zero(im, 0, 4096);
    assert_pattern(im, 4096, 512, 7);
    assert_zero(im, 4608, 64 * KIB - 4608);
    image_close(im);
    cr_assert_eq((uint64_t)file_stat().st_size, size);
    qcow2_assert_clean(file, file);
}

Test(qcow2_write_rules, zero_cluster_hides_what_is_below)
{
    make("raw 4M; overlay raw $i.base");
    chain_options options = {
        .format = "qcow2", .decoder = CHAIN_DECODER_NATIVE, .writable = true};
    chain *c = must_open(file, &options);
    uint8_t byte = 9;
    g_autofree uint8_t *buf = g_malloc(128 * KIB), *zero = g_malloc0(128 * KIB);
    cr_assert(chain_begin_writing(c, NULL));
    cr_assert_eq(chain_write_zeroes(c, 0, 64 * KIB), 0);
    cr_assert_eq(chain_discard(c, 64 * KIB, 64 * KIB), 0);
    cr_assert_eq(chain_read(c, buf, 0, 128 * KIB), 0);
    cr_assert_eq(memcmp(buf, zero, 128 * KIB), 0);
    cr_assert_eq(chain_write(c, &byte, 100, 1), 0);
    zero[100] = 9;
    cr_assert_eq(chain_read(c, buf, 0, 128 * KIB), 0);
    cr_assert_eq(memcmp(buf, zero, 128 * KIB), 0);
    chain_close(c);
    qcow2_assert_clean(file, file);
}

/* ---- Copy on write -------------------------------------------------------------------- */

/* What was asked of the disk below. */
typedef struct below {
    uint64_t bytes, first, last; /* last: the end of the highest */
    uint64_t written, written_end;
    unsigned overlaps; /* with what is being written */
    int result;        /* of the next read */
} below;

static int read_below(void *opaque, void *buf, uint64_t offset, size_t length)
{
    below *b = opaque;
    b->first = b->bytes == 0 ? offset : MIN(b->first, offset);
    b->last = MAX(b->last, offset + length);
    b->bytes += length;
    b->overlaps += offset < b->written_end && offset + length > b->written;
    support_pattern(buf, length, offset, 99);
    return b->result;
}

static image *open_over(below *b)
{
    image *im = open_unbegun();
    qcow2_set_backing(im, read_below, b, 4 * MIB);
    begin(im);
    return im;
}

static void write_over(image *im, below *b, uint64_t offset, size_t length)
{
    *b = (below){.written = offset, .written_end = offset + length};
    write_pattern(im, offset, length, 7);
}

Test(qcow2_write_rules, copy_reads_only_what_the_write_leaves)
{
    below b = {0};
    make("raw 4M; overlay raw $i.base");
    image *im = open_over(&b);
    write_over(im, &b, 64 * KIB + 4096, 512);
    cr_assert_eq(b.overlaps, 0);
    cr_assert_eq(b.bytes, 64 * KIB - 512);
    cr_assert_eq(b.first, 64 * KIB);
    cr_assert_eq(b.last, 128 * KIB);
    assert_pattern(im, 64 * KIB, 4096, 99);
    assert_pattern(im, 64 * KIB + 4096, 512, 7);
    assert_pattern(im, 64 * KIB + 4608, 64 * KIB - 4608, 99);
    write_over(im, &b, 64 * KIB + 8192, 512); /* it is there by now */
    cr_assert_eq(b.bytes, 0);
    write_over(im, &b, 256 * KIB, 192 * KIB); /* whole clusters */
    cr_assert_eq(b.bytes, 0);
    write_over(im, &b, MIB - 1000, 130 * KIB); /* two in part, one whole */
    cr_assert_eq(b.overlaps, 0);
    cr_assert_eq(b.bytes, 4 * 64 * KIB - 130 * KIB);
    close_clean(im);
}

Test(qcow2_write_rules, copy_of_subclusters_reads_only_what_the_write_leaves)
{
    below b = {0};
    make("raw 4M; overlay raw $i.base -o extended_l2=on");
    image *im = open_over(&b);
    write_over(im, &b, 64 * KIB + 4096, 512); /* subclusters of 2 KiB */
    cr_assert_eq(b.overlaps, 0);
    cr_assert_eq(b.bytes, 1536);
    write_over(im, &b, 64 * KIB + 8192, 4096);
    cr_assert_eq(b.bytes, 0);
    write_over(im, &b, 64 * KIB + 3000, 512); /* in the one before: of 2048 to 4096 */
    cr_assert_eq(b.overlaps, 0);
    cr_assert_eq(b.bytes, 1536);
    close_clean(im);
}

/* Nothing of a write is to be seen whose copy could not be made. */
Test(qcow2_write_rules, copy_that_cannot_be_read_fails_the_write)
{
    below b = {.result = -EIO};
    make("raw 4M; overlay raw $i.base");
    image *im = open_over(&b);
    uint8_t buf[512] = {1};
    cr_assert_eq(image_write(im, buf, 4096, sizeof buf), -EIO);
    cr_assert_eq(extent_at(im, 0).kind, IMAGE_EXTENT_UNALLOCATED);
    write_over(im, &b, 4096, 512);
    assert_pattern(im, 0, 4096, 99);
    close_clean(im);
}

/* ---- Space ---------------------------------------------------------------------------- */

static void fill_and_discard(image *im, unsigned rounds)
{
    for (unsigned i = 0; i < rounds; i++) {
        for (uint64_t at = 0; at < MIB; at += 50000)
            write_pattern(im, at, 50000, i);
        cr_assert_eq(image_discard(im, 0, im->size), 0);
        cr_assert_eq(image_flush(im), 0);
    }
}

Test(qcow2_write_rules, freed_clusters_are_used_again)
{
    static const char *const options[] = {"create", "create -o cluster_size=512",
                                          "create -o cluster_size=4k,lazy_refcounts=on",
                                          "create -o extended_l2=on",
                                          "create -o cluster_size=2k,refcount_bits=1"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        make(options[i]);
        image *im = open_written();
        fill_and_discard(im, 3);
        off_t size = file_stat().st_size;
        fill_and_discard(im, 12);
        cr_assert_leq(file_stat().st_size, size, "%s: grew from %lld to %lld", options[i],
                      (long long)size, (long long)file_stat().st_size);
        close_clean(im);
    }
}

Test(qcow2_write_rules, discard_gives_space_back_to_the_host)
{
    static const char *const options[] = {"create", "create -o extended_l2=on",
                                          "create -o cluster_size=4k",
                                          "create -o lazy_refcounts=on"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        make(options[i]);
        image *im = open_written();
        write_pattern(im, 0, 3 * MIB, 7);
        cr_assert_eq(image_flush(im), 0);
        blkcnt_t full = file_stat().st_blocks;
        cr_assert_eq(image_discard(im, 0, 2 * MIB), 0);
        cr_assert_eq(image_flush(im), 0);
        blkcnt_t left = file_stat().st_blocks;
        cr_assert_leq(left + 2 * MIB / 512 * 9 / 10, full, "%s: %lld blocks, then %lld",
                      options[i], (long long)full, (long long)left);
        assert_zero(im, 0, 2 * MIB);
        assert_pattern(im, 2 * MIB, MIB, 7);
        close_clean(im);
    }
}

Test(qcow2_write_rules, clusters_written_in_a_row_lie_in_a_row)
{
    make("create -o cluster_size=4k");
    image *im = open_written();
    write_pattern(im, 0, 4096, 7); /* with the tables that it needs */
    for (uint64_t at = 4096; at < MIB; at += 4096)
        write_pattern(im, at, 4096, 7);
    image_extent extent = extent_at(im, 4096);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_DATA);
    cr_assert_eq(extent.length, MIB - 4096, "%" PRIu64, extent.length);
    close_clean(im);
}

Test(qcow2_write_rules, large_write_is_one_extent)
{
    make("create");
    image *im = open_written();
    write_pattern(im, 0, 2 * MIB, 7);
    cr_assert_eq(extent_at(im, 0).length, 2 * MIB);
    close_clean(im);
}

Test(qcow2_write_rules, raw_data_file_is_zeroed)
{
    make("create -o data_file=$i.data,data_file_raw=on; io $i 'write -P 5 0 4M'");
    image *im = open_written();
    cr_assert_eq(image_write_zeroes(im, 100, 200000), 0);
    cr_assert_eq(image_discard(im, MIB, MIB), 0);
    cr_assert_eq(image_flush(im), 0);
    close_clean(im);
    support_run("qemu-img convert -f qcow2 -O raw %s now && cmp now %s.data", file, file);
}

/* ---- Sizes ---------------------------------------------------------------------------- */

Test(qcow2_write_rules, shrinking_gives_space_back_and_growing_shows_zeroes)
{
    make("create");
    image *im = open_written();
    write_pattern(im, 0, 4 * MIB, 7);
    cr_assert_eq(image_flush(im), 0);
    blkcnt_t full = file_stat().st_blocks;
    cr_assert_eq(image_resize(im, MIB + 1000), 0);
    cr_assert_eq(image_flush(im), 0);
    cr_assert_leq(file_stat().st_blocks + 2 * (blkcnt_t)MIB / 512, full);
    cr_assert_eq(image_resize(im, 40 * (uint64_t)MIB), 0);
    assert_pattern(im, 0, MIB + 1000, 7);
    assert_zero(im, MIB + 1000, 39 * MIB - 1000);
    write_pattern(im, 39 * MIB, MIB, 8);
    cr_assert_eq(image_flush(im), 0);
    close_clean(im);
    support_run("qemu-img info %s | grep -q '(41943040 bytes)'", file);
}

Test(qcow2_write_rules, what_was_cut_off_is_not_there_when_QEMU_grows_the_disk)
{
    static const uint8_t zero[512 * 100];
    static const char *const options[] = {"create", "create -o extended_l2=on",
                                          "create -o compat=0.10"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        size_t length = 0;
        make(options[i]);
        image *im = open_written();
        write_pattern(im, 0, 2 * MIB, 7);
        cr_assert_eq(image_resize(im, MIB + 1024), 0);
        close_clean(im);
        support_run("qemu-img resize -q -f qcow2 %s 2M", file);
        g_autofree uint8_t *bytes = qcow2_qemu_content(file, NULL, &length);
        cr_assert_eq(length, 2 * MIB);
        cr_assert_eq(memcmp(bytes + MIB + 1024, zero, sizeof zero), 0, "%s", options[i]);
    }
}

Test(qcow2_write_rules, L1_table_moves_when_the_disk_grows)
{
    make("s=64k; create -o cluster_size=512; io $i 'write -P 3 0 64k'; snapshot one");
    image *im = open_written();
    cr_assert_eq(image_resize(im, 32 * (uint64_t)MIB), 0);
    write_pattern(im, 31 * MIB, 100000, 8);
    write_pattern(im, 1000, 1000, 8);
    cr_assert_eq(image_flush(im), 0);
    assert_pattern(im, 31 * MIB, 100000, 8);
    close_clean(im);
    im = open_written();
    assert_pattern(im, 31 * MIB, 100000, 8);
    assert_pattern(im, 1000, 1000, 8);
    close_clean(im);
}

Test(qcow2_write_rules, raw_data_file_that_is_longer_than_the_disk_is_cleared)
{
    make("s=100k; create -o data_file=$i.data,data_file_raw=on");
    image *im = open_written();
    cr_assert_eq(image_resize(im, 300 * KIB), 0); /* whose last cluster has no entry */
    close_clean(im);
    support_run("head -c 1M /dev/zero | tr '\\0' x >>%s.data", file);
    im = open_written();
    cr_assert_eq(image_resize(im, 500 * KIB), 0);
    assert_zero(im, 100 * KIB, 400 * KIB);
    close_clean(im);
    support_run("cmp -n 409600 -i 102400:0 %s.data /dev/zero", file);
}

/* With subclusters, of which the old end may lie in the middle of one. */
Test(qcow2_write_rules, data_file_grows_and_shrinks_with_the_disk)
{
    static const char *const options[] = {
        "data_file=$i.data,data_file_raw=on,extended_l2=on,cluster_size=16k",
        "data_file=$i.data,data_file_raw=on", "data_file=$i.data,extended_l2=on"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        g_autofree char *commands =
            g_strdup_printf("create -o %s; io $i 'write -P 5 0 4M'", options[i]);
        make(commands);
        image *im = open_written();
        write_pattern(im, 0, 4 * MIB, 7);
        cr_assert_eq(image_resize(im, 3 * MIB + 100), 0);
        cr_assert_eq(image_resize(im, 6 * MIB), 0);
        assert_pattern(im, 0, 3 * MIB + 100, 7);
        assert_zero(im, 3 * MIB + 100, 3 * MIB - 100);
        cr_assert_eq(image_resize(im, MIB), 0);
        close_clean(im);
        im = open_written(); /* no entry is left that points past the data file's end */
        assert_pattern(im, 0, MIB, 7);
        close_clean(im);
        qcow2_variant_remove(file);
    }
}

Test(qcow2_write_rules, allocated_follows_what_is_written)
{
    make("create; io $i 'write -P 1 0 64k'");
    image *im = open_unbegun();
    qcow2_set_allocated(im, 64 * KIB);
    begin(im);
    cr_assert_eq(image_allocated(im), 64 * KIB);
    write_pattern(im, 100, MIB, 7);
    cr_assert_eq(image_allocated(im), MIB + 64 * KIB);
    cr_assert_eq(image_discard(im, 0, im->size), 0);
    cr_assert_eq(image_flush(im), 0);
    cr_assert_eq(image_allocated(im), 0);
    close_clean(im);
}

/* ---- New sizes ---------------------------------------------------------------------------- */

/* A virtual machine's state lies there, or somebody else shrank the disk. */
Test(qcow2_write_rules, what_lies_behind_the_end_is_freed_with_its_table)
{
    const uint8_t size[8] = {[6] = 0x10}; /* 4 KiB, big-endian */
    make("create; io $i 'write -P 1 0 64k' 'write -P 2 1M 64k'");
    g_autofree char *path = support_path("%s", file);
    support_poke(path, 24, size, sizeof size);
    image *im = open_written();
    cr_assert_eq(image_resize(im, 0), 0);
    close_clean(im);
}
