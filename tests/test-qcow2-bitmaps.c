/*
 * Dirty bitmaps of images: what qemu-img made is marked as in use and stays well-formed;
 * what is not valid loses the autoclear bit, and keeps nobody from reading (O3).
 */
#include "formats/qcow2-internal.h"
#include "tests/qcow2-craft.h"
#include <errno.h>

enum { BITMAPS = 0x23852875 };

static int disown_fd(int fd)
{
    qcow2_header h;
    qcow2_layout layout;
    g_autoptr(GError) error = NULL;
    cr_assert(qcow2_header_read(fd, "/x", &h, &error), "%s", error ? error->message : "");
    uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
    qcow2_layout_init(&layout, &h, size, size);
    int result = qcow2_bitmaps_disown(fd, &h, &layout);
    qcow2_header_clear(&h);
    return result;
}

static void disown(const char *name)
{
    g_autofree char *path = support_path("%s", name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    cr_assert_eq(disown_fd(fd), 0);
    close(fd);
}

static unsigned count_text(const char *text, const char *what)
{
    unsigned n = 0;
    for (; (text = strstr(text, what)); text += strlen(what))
        n++;
    return n;
}

static unsigned bitmaps_in_use(const char *name)
{
    g_autofree char *info = support_output("qemu-img info --output=json %s", name);
    return count_text(info, "\"in-use\"");
}

Test(qcow2_bitmaps, qemu_sees_them_in_use)
{
    static const char *const options[] = {
        "cluster_size=64k", "cluster_size=512", "cluster_size=2M,refcount_bits=1",
        "extended_l2=on", "data_file=d.raw,data_file_raw=on"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        support_run("rm -f b.qcow2 d.raw; qemu-img create -q -f qcow2 -o %s b.qcow2 64M",
                    options[i]);
        support_run("qemu-img bitmap --add -g 512 b.qcow2 first");
        support_run("qemu-img bitmap --add --disable b.qcow2 an_odd_name");
        support_run("qemu-img bitmap --add --enable b.qcow2 third");
        support_run("qemu-io -f qcow2 -c 'write 0 1M' -c 'write 40M 3M' b.qcow2 "
                    ">/dev/null");
        cr_assert_eq(bitmaps_in_use("b.qcow2"), 0);
        disown("b.qcow2");
        cr_assert_eq(bitmaps_in_use("b.qcow2"), 3);
        disown("b.qcow2"); /* nothing more to do */
        g_autofree char *info = support_output("qemu-img info b.qcow2 2>&1");
        cr_assert_eq(count_text(info, "an_odd_name"), 1, "%s", info);
        support_run("qemu-img check -q b.qcow2");
        support_run("qemu-img bitmap --remove b.qcow2 first");
        support_run("qemu-img check -q b.qcow2");
    }
}

Test(qcow2_bitmaps, images_without_any_stay_as_they_are)
{
    support_run("qemu-img create -q -f qcow2 a.qcow2 1M && cp a.qcow2 b.qcow2");
    support_run("qemu-img create -q -f qcow2 -o compat=0.10 c.qcow2 1M");
    disown("b.qcow2");
    disown("c.qcow2");
    support_run("cmp a.qcow2 b.qcow2");
}

/* An image with one bitmap: directory, table and one cluster of bits behind the data. */
typedef struct bitmap_craft {
    craft c;
    uint64_t directory, table, bits;
} bitmap_craft;

static void put_entry(const bitmap_craft *b, uint64_t at, uint64_t table)
{
    put_word(&b->c, at, table);
    put_field(&b->c, at + 8, 1);
    put_field(&b->c, at + 12, 2);          /* auto */
    put_field(&b->c, at + 16, 0x01100003); /* type, granularity, length of the name */
    put_field(&b->c, at + 20, 0);
    put_field(&b->c, at + 24, 0x61626300);
}

static bitmap_craft bitmap_craft_new(void)
{
    bitmap_craft b = {.c = craft_new(3, 16, 0)};
    b.directory = b.c.data + 4 * CLUSTER;
    b.table = b.directory + CLUSTER;
    b.bits = b.table + CLUSTER;
    put_word(&b.c, 88, QCOW2_AUTOCLEAR_BITMAPS);
    put_field(&b.c, 104, BITMAPS);
    put_field(&b.c, 108, 24);
    put_field(&b.c, 112, 1);
    put_word(&b.c, 120, 32);
    put_word(&b.c, 128, b.directory);
    put_entry(&b, b.directory, b.table);
    put_word(&b.c, b.table, b.bits);
    return b;
}

static uint32_t field_at(const bitmap_craft *b, uint64_t offset)
{
    uint32_t value;
    cr_assert_eq(pread(b->c.fd, &value, 4, (off_t)offset), 4);
    return GUINT32_FROM_BE(value);
}

static qcow2_header read_header(const bitmap_craft *b)
{
    qcow2_header h;
    cr_assert(qcow2_header_read(b->c.fd, "/x", &h, NULL));
    return h;
}

Test(qcow2_bitmaps, the_flag_alone_changes)
{
    bitmap_craft b = bitmap_craft_new();
    qcow2_header h = read_header(&b);
    cr_assert_eq(h.bitmap_count, 1);
    cr_assert_eq(h.bitmap_directory_offset, b.directory);
    cr_assert_eq(h.bitmap_directory_size, 32);
    g_autofree uint8_t *before = g_malloc(16 * CLUSTER);
    g_autofree uint8_t *after = g_malloc(16 * CLUSTER);
    cr_assert_eq(pread(b.c.fd, before, 16 * CLUSTER, 0), 16 * CLUSTER);
    cr_assert_eq(disown_fd(b.c.fd), 0);
    cr_assert_eq(pread(b.c.fd, after, 16 * CLUSTER, 0), 16 * CLUSTER);
    before[b.directory + 15] |= 1;
    cr_assert_eq(memcmp(before, after, 16 * CLUSTER), 0);
    close(b.c.fd);
}

/* Fields of the extension, as offset, width and value, that no parser may believe. */
Test(qcow2_bitmaps, O3_bad_extensions_do_not_stop_readers)
{
    static const struct {
        unsigned at;
        bool word;
        uint64_t value;
    } rows[] = {
        {108, false, 16},
        {112, false, 0},
        {112, false, 65536},
        {116, false, 1},
        {120, true, 0},
        {120, true, (64 << 20) + 1},
        {128, true, 0},
        {120, true, 1 << 20},
        {128, true, 9 * CLUSTER + 512},
        {128, true, 16 * CLUSTER},
        {128, true, UINT64_MAX & ~0xffffull},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        bitmap_craft b = bitmap_craft_new();
        if (rows[i].word)
            put_word(&b.c, rows[i].at, rows[i].value);
        else
            put_field(&b.c, rows[i].at, (uint32_t)rows[i].value);
        qcow2_header h = read_header(&b);
        cr_assert_eq(h.autoclear, 1);
        cr_assert_eq(h.bitmap_count, 0, "row %zu", i);
        cr_assert_eq(h.bitmap_directory_offset + h.bitmap_directory_size, 0);
        craft_check(&b.c);
        cr_assert_eq(disown_fd(b.c.fd), 0);
        cr_assert_eq(read_header(&b).autoclear, 0);
        cr_assert_eq(field_at(&b, b.directory + 12), 2);
        close(b.c.fd);
    }
}

Test(qcow2_bitmaps, O3_an_extension_that_stands_twice_is_not_believed)
{
    bitmap_craft b = bitmap_craft_new();
    for (unsigned i = 0; i < 32; i += 4)
        put_field(&b.c, 136 + i, field_at(&b, 104 + i));
    cr_assert_eq(read_header(&b).bitmap_count, 0);
    cr_assert_eq(disown_fd(b.c.fd), 0);
    cr_assert_eq(read_header(&b).autoclear, 0);
    close(b.c.fd);
}

Test(qcow2_bitmaps, without_the_autoclear_bit_there_are_none)
{
    bitmap_craft b = bitmap_craft_new();
    put_word(&b.c, 88, QCOW2_AUTOCLEAR_DATA_FILE_RAW);
    cr_assert_eq(read_header(&b).bitmap_count, 0);
    cr_assert_eq(disown_fd(b.c.fd), 0);
    cr_assert_eq(read_header(&b).autoclear, QCOW2_AUTOCLEAR_DATA_FILE_RAW);
    cr_assert_eq(field_at(&b, b.directory + 12), 2);
    close(b.c.fd);
}

/* Entries of the directory, as offset and value of one field. */
Test(qcow2_bitmaps, O3_bad_directories_lose_the_autoclear_bit)
{
    static const struct {
        unsigned at;
        uint32_t value;
    } rows[] = {
        {0, 1},
        {4, 0},
        {4, 10 * CLUSTER + 8},
        {4, 16 * CLUSTER},
        {8, 0},
        {8, UINT32_MAX},
        {12, 10},
        {16, 0x02100003},
        {16, 0x01400003},
        {16, 0x01100000},
        {16, 0x0110ffff},
        {20, UINT32_MAX},
        {20, 8},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        bitmap_craft b = bitmap_craft_new();
        put_field(&b.c, b.directory + rows[i].at, rows[i].value);
        uint32_t flags = field_at(&b, b.directory + 12);
        craft_check(&b.c);
        cr_assert_eq(disown_fd(b.c.fd), 0);
        cr_assert_eq(read_header(&b).autoclear, 0, "row %zu", i);
        cr_assert_eq(field_at(&b, b.directory + 12), flags, "row %zu", i);
        close(b.c.fd);
    }
}

/* Two entries are announced and one stands there, or the other way round; the first may
 * not be marked then, because all are judged before. */
Test(qcow2_bitmaps, O3_count_and_size_belong_together)
{
    for (unsigned i = 0; i < 3; i++) {
        bitmap_craft b = bitmap_craft_new();
        put_field(&b.c, 112, i == 1 ? 1 : 2);
        put_word(&b.c, 120, i == 0 ? 32 : 64);
        if (i > 0)
            put_entry(&b, b.directory + 32, i == 2 ? b.table + 1 : b.table);
        cr_assert_eq(disown_fd(b.c.fd), 0);
        cr_assert_eq(read_header(&b).autoclear, 0, "row %u", i);
        cr_assert_eq(field_at(&b, b.directory + 12), 2);
        close(b.c.fd);
    }
}

Test(qcow2_bitmaps, O3_a_directory_over_another_table_is_not_touched)
{
    bitmap_craft b = bitmap_craft_new();
    put_word(&b.c, 128, b.c.reftable);
    craft_check(&b.c);
    cr_assert_eq(disown_fd(b.c.fd), 0);
    cr_assert_eq(read_header(&b).autoclear, 0);
    close(b.c.fd);
    /* Where data lies there is no saying which of the two is right. */
    b = bitmap_craft_new();
    put_word(&b.c, b.c.l2, b.directory | COPIED);
    assert_refused(&b.c, "lies over the bitmap directory");
    close(b.c.fd);
}

static void add_up(void *user, uint64_t first, uint64_t count, uint64_t times)
{
    uint8_t *seen = user;
    for (uint64_t i = 0; i < count; i++)
        seen[first + i] = (uint8_t)(seen[first + i] + times);
}

static int walk(const bitmap_craft *b, uint64_t budget, uint8_t *seen)
{
    qcow2_header h = read_header(b);
    qcow2_layout layout;
    qcow2_layout_init(&layout, &h, 16 * CLUSTER, 16 * CLUSTER);
    memset(seen, 0, 16);
    return qcow2_bitmaps_walk(b->c.fd, &h, &layout, &budget, add_up, seen);
}

Test(qcow2_bitmaps, tables_and_their_clusters_are_visited)
{
    bitmap_craft b = bitmap_craft_new();
    uint8_t seen[16], expected[16] = {[10] = 1, [11] = 2, [12] = 1};
    put_field(&b.c, b.directory + 8, 5);
    put_word(&b.c, b.table + 8, 1); /* all ones, without a cluster */
    put_word(&b.c, b.table + 16, b.bits);
    put_word(&b.c, b.table + 24, b.bits + CLUSTER);
    cr_assert_eq(walk(&b, 40, seen), 0);
    cr_assert_eq(memcmp(seen, expected, 16), 0);
    cr_assert_eq(walk(&b, 39, seen), -E2BIG);
    static const uint64_t bad[] = {9 * CLUSTER | 1, 9 * CLUSTER + 512, 16 * CLUSTER,
                                   9 * CLUSTER | COPIED, 2};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        put_word(&b.c, b.table + 32, bad[i]);
        cr_assert_eq(walk(&b, 40, seen), -EINVAL, "row %zu", i);
    }
    close(b.c.fd);
}
