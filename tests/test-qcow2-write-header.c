/*
 * What writing leaves of a qcow2 header and what it changes there, and the images that are
 * never written, or no further.
 */
#include "tests/qcow2-write-support.h"
#include <errno.h>

/* ---- The header ----------------------------------------------------------------------- */

static uint8_t *load(size_t *ret_length)
{
    g_autofree char *path = support_path("%s", file);
    return support_load(path, ret_length);
}

static uint64_t header_word(size_t at)
{
    size_t length = 0;
    uint64_t word;
    g_autofree uint8_t *bytes = load(&length);
    memcpy(&word, bytes + at, sizeof word);
    return GUINT64_FROM_BE(word);
}

static void set_header_word(size_t at, uint64_t word)
{
    g_autofree char *path = support_path("%s", file);
    word = GUINT64_TO_BE(word);
    support_poke(path, at, &word, sizeof word);
}

enum { AT_INCOMPATIBLE = 72, AT_COMPATIBLE = 80, AT_AUTOCLEAR = 88 };

Test(qcow2_write_header, image_that_is_only_opened_stays_byte_for_byte)
{
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        if (!(qcow2_variants[i].traits & VARIANT_FEW))
            continue;
        chain_options options = {
            .format = "qcow2", .decoder = CHAIN_DECODER_NATIVE, .writable = true};
        qcow2_variant_create(&qcow2_variants[i], file);
        if (qcow2_variants[i].cluster_size >= 4096 &&
            strncmp(qcow2_variants[i].name, "v2", 2) != 0)
            set_header_word(AT_AUTOCLEAR, header_word(AT_AUTOCLEAR) | (uint64_t)1 << 63);
        support_run("cp --sparse=always %s before", file);
        chain *c = must_open(file, &options);
        g_autofree uint8_t *buf = g_malloc(chain_size(c));
        cr_assert(chain_begin_writing(c, NULL));
        cr_assert_eq(chain_read(c, buf, 0, chain_size(c)), 0);
        cr_assert_eq(chain_flush(c), 0);
        chain_close(c);
        cr_assert_eq(support_try("cmp before %s", file), 0, "%s was changed",
                     qcow2_variants[i].name);
        qcow2_variant_remove(file);
    }
}

Test(qcow2_write_header, unknown_features_and_extensions_stay)
{
    static const uint8_t unknown[] = {0x12, 0x34, 0x56, 0x78, 0,   0,   0,   11,
                                      'k',  'e',  'p',  't',  'a', 's', 'i', 't',
                                      ' ',  'i',  's',  0,    0,   0,   0,   0};
    make("create");
    g_autofree char *path = support_path("%s", file);
    /* After the header and the table of feature names, which QEMU writes. */
    size_t length = 0, at = 112 + 8 + 384;
    g_autofree uint8_t *bytes = load(&length);
    cr_assert_eq(bytes[112], 0x68);
    cr_assert_eq(bytes[112 + 6] << 8 | bytes[112 + 7], 384);
    support_poke(path, at, unknown, sizeof unknown);
    set_header_word(AT_COMPATIBLE, (uint64_t)1 << 40);
    set_header_word(AT_AUTOCLEAR, (uint64_t)1 << 41);
    g_autofree uint8_t *before = load(&length);
    image *im = open_written();
    write_pattern(im, 5000, 300000, 7);
    cr_assert_eq(image_resize(im, 5 * MIB), 0);
    close_clean(im);
    g_autofree uint8_t *after = load(&length);
    cr_assert_eq(header_word(AT_COMPATIBLE), (uint64_t)1 << 40);
    cr_assert_eq(header_word(AT_AUTOCLEAR), 0);
    cr_assert_eq(memcmp(before + 96, after + 96, 4096 - 96), 0);
}

/* Such an image belongs to somebody who knows the feature, until it is changed. */
Test(qcow2_write_header, unknown_autoclear_feature_goes_with_the_first_change)
{
    static int (*const changes[])(image *, uint64_t, uint64_t) = {image_write_zeroes,
                                                                  image_discard};
    for (size_t i = 0; i < G_N_ELEMENTS(changes); i++) {
        make("create; io $i 'write -P 1 0 64k'");
        set_header_word(AT_AUTOCLEAR, (uint64_t)1 << 41);
        image *im = open_written();
        cr_assert_eq(image_flush(im), 0);
        cr_assert_eq(header_word(AT_AUTOCLEAR), (uint64_t)1 << 41);
        cr_assert_eq(changes[i](im, 0, 64 * KIB), 0);
        cr_assert_eq(header_word(AT_AUTOCLEAR), 0);
        close_clean(im);
    }
}

Test(qcow2_write_header, dirty_only_while_lazy_refcounts_lag)
{
    make("create -o lazy_refcounts=on");
    image *im = open_written();
    cr_assert_eq(header_word(AT_INCOMPATIBLE), 0);
    write_pattern(im, 0, 300000, 7);
    cr_assert_eq(image_flush(im), 0);
    cr_assert_eq(header_word(AT_INCOMPATIBLE), QCOW2_INCOMPAT_DIRTY);
    close_clean(im);
    cr_assert_eq(header_word(AT_INCOMPATIBLE), 0);
    cr_assert_eq(header_word(AT_COMPATIBLE), 1);
}

Test(qcow2_write_header, bitmaps_are_in_use_from_the_first_change_on)
{
    static const char list[] =
        "qemu-img info -U --output=json image.qcow2 | jq -c "
        "'[.\"format-specific\".data.bitmaps[] | .flags | contains([\"in-use\"])]'";
    make("create; qemu-img bitmap --add $i one; qemu-img bitmap --add -g 4k $i two");
    image *im = open_written();
    g_autofree char *before = support_output("%s", list);
    cr_assert_str_eq(before, "[false,false]\n");
    write_pattern(im, 0, 512, 7);
    g_autofree char *after = support_output("%s", list);
    cr_assert_str_eq(after, "[true,true]\n");
    close_clean(im);
}

/* ---- What contradicts itself ---------------------------------------------------------- */

/* The refcounts call a table's cluster free: whoever takes it destroys the disk. */
Test(qcow2_write_header, table_is_never_given_out)
{
    static const uint8_t zero[2] = {0, 0};
    static const struct {
        const char *what;
        uint64_t cluster;
    } rows[] = {{"header", 0},
                {"refcount table", 1},
                {"refcount block", 2},
                {"L1 table", 3},
                {"L2 table", 4}};
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        uint8_t buf[512] = {1};
        make("create; io $i 'write -P 1 0 64k'");
        g_autofree char *path = support_path("%s", file);
        support_poke(path, 128 * KIB + 2 * rows[i].cluster, zero, sizeof zero);
        image *im = open_written();
        cr_assert_eq(image_write(im, buf, MIB, sizeof buf), -EIO, "%s", rows[i].what);
        cr_assert_eq(image_write(im, buf, 2 * MIB, sizeof buf), -EIO, "%s", rows[i].what);
        uint8_t byte;
        cr_assert_eq(image_read(im, &byte, 65535, 1), 0, "%s", rows[i].what);
        cr_assert_eq(byte, 1, "%s", rows[i].what);
        image_close(im);
        cr_assert_eq(header_word(AT_INCOMPATIBLE), QCOW2_INCOMPAT_CORRUPT, "%s",
                     rows[i].what);
    }
}

/* ---- What is not written -------------------------------------------------------------- */

Test(qcow2_write_header, changes_before_begin_writing_are_refused)
{
    uint8_t buf[512] = {1};
    make("create; io $i 'write -P 1 0 64k'");
    support_run("cp %s before", file);
    image *im = open_unbegun();
    cr_assert_eq(image_write(im, buf, 0, sizeof buf), -EROFS);
    cr_assert_eq(image_write_zeroes(im, 0, 512), -EROFS);
    cr_assert_eq(image_discard(im, 0, 512), -EROFS);
    cr_assert_eq(image_resize(im, MIB), -EROFS);
    image_close(im);
    support_run("cmp before %s", file);
}

static void assert_read_only(const char *reason)
{
    chain_options options = {.format = "qcow2", .writable = true};
    uint8_t buf[512] = {1};
    support_run("cp %s before", file);
    chain *c = must_open(file, &options);
    cr_assert(!chain_writable(c));
    cr_assert_not_null(chain_read_only_reason(c));
    cr_assert_not_null(strstr(chain_read_only_reason(c), reason), "'%s' is not in: %s",
                       reason, chain_read_only_reason(c));
    cr_assert_eq(chain_read(c, buf, 0, sizeof buf), 0);
    cr_assert_eq(chain_write(c, buf, 0, sizeof buf), -EROFS);
    chain_close(c);
    support_run("cmp before %s", file);
}

Test(qcow2_write_header, corrupt_image_is_not_written)
{
    make("create; fill");
    set_header_word(AT_INCOMPATIBLE, QCOW2_INCOMPAT_CORRUPT);
    assert_read_only("corrupt");
}

Test(qcow2_write_header, encrypted_image_is_not_written)
{
    static const uint8_t aes[4] = {0, 0, 0, 1};
    qcow2_header header;
    make("create");
    g_autofree char *path = support_path("%s", file);
    support_poke(path, 32, aes, sizeof aes);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    cr_assert(qcow2_header_read(fd, path, &header, NULL));
    cr_assert_not_null(qcow2_write_refusal(&header));
    cr_assert_not_null(strstr(qcow2_write_refusal(&header), "encrypted"));
    qcow2_header_clear(&header);
    close(fd);
}

/* QEMU refuses to make one: its tables would share clusters that have one place only. */
Test(qcow2_write_header, snapshots_in_a_data_file_are_not_written)
{
    static const uint8_t count[4] = {0, 0, 0, 1};
    make("create -o data_file=$i.data; fill");
    cr_assert_neq(support_try("qemu-img snapshot -c one %s", file), 0);
    g_autofree char *path = support_path("%s", file);
    uint64_t end = ((uint64_t)file_stat().st_size / (64 * KIB) + 1) * 64 * KIB;
    cr_assert_eq(truncate(path, (off_t)(end + 64 * KIB)), 0);
    set_header_word(64, end);
    support_poke(path, 60, count, sizeof count);
    assert_read_only("snapshots");
}

Test(qcow2_write_header, LUKS_is_refused_by_name)
{
    static const uint8_t luks[4] = {0, 0, 0, 2};
    chain_options options = {.format = "qcow2", .writable = true};
    make("create");
    g_autofree char *path = support_path("%s", file);
    support_poke(path, 32, luks, sizeof luks);
    must_refuse(file, &options, IMAGE_ERROR_UNSUPPORTED, PARTS("LUKS"));
}

Test(qcow2_write_header, writes_beyond_the_end_are_refused)
{
    uint8_t buf[1024] = {1};
    make("s=1536; create");
    image *im = open_written();
    cr_assert_eq(image_write(im, buf, 1024, sizeof buf), -EINVAL);
    cr_assert_eq(image_write(im, buf, 512, sizeof buf), 0);
    close_clean(im);
}
