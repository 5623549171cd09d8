/*
 * Images that no repair can get right (O3): one clear line, nothing written, bounded time
 * and memory; and images so large that they need several windows.
 */
#include "tests/qcow2-craft.h"
#include "tests/qcow2-fsck.h"
#include "tests/qcow2-repair.h"

#define AT(n) ((uint64_t)(n)*CLUSTER)

/* Clusters 0 header, 1 refcount table, 2 block, 3 L1, 4 L2, 5 snapshot table, 6 the
 * snapshot's L1, 7 its L2, 8 and 9 data, which one and the other have. */
static craft snapshot_craft(void)
{
    craft c = craft_new(3, 16, QCOW2_INCOMPAT_DIRTY);
    put_field(&c, 60, 1);
    put_word(&c, 64, AT(5));
    put_word(&c, AT(5), AT(6));
    put_field(&c, AT(5) + 8, 1);
    put_word(&c, AT(6), AT(7));
    put_word(&c, AT(4), AT(8));
    put_word(&c, AT(7), AT(9));
    return c;
}

static unsigned refcount_at(const craft *c, unsigned cluster)
{
    uint8_t bytes[2];
    cr_assert_eq(pread(c->fd, bytes, 2, (off_t)(c->block + 2 * (uint64_t)cluster)), 2);
    return (unsigned)(bytes[0] << 8 | bytes[1]);
}

static uint64_t word_at(const craft *c, uint64_t offset)
{
    uint64_t word;
    cr_assert_eq(pread(c->fd, &word, 8, (off_t)offset), 8);
    return GUINT64_FROM_BE(word);
}

static void assert_repaired(const craft *c)
{
    g_autoptr(GError) error = NULL;
    cr_assert(repair_fd(c->fd, -1, &error), "%s", error ? error->message : "");
    cr_assert_eq(word_at(c, 72) & QCOW2_INCOMPAT_DIRTY, 0);
}

/* One line that says so, and not a byte is changed. */
static void assert_left_alone(const craft *c, const char *text)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *before = g_malloc(16 * CLUSTER);
    g_autofree uint8_t *after = g_malloc(16 * CLUSTER);
    off_t size = lseek(c->fd, 0, SEEK_END);
    cr_assert_geq(pread(c->fd, before, 16 * CLUSTER, 0), 16 * 512);
    cr_assert(!repair_fd(c->fd, -1, &error), "repaired: %s", text);
    cr_assert_geq(pread(c->fd, after, 16 * CLUSTER, 0), 16 * 512);
    cr_assert(strstr(error->message, text), "'%s' is not in: %s", text, error->message);
    cr_assert_null(strchr(error->message, '\n'));
    cr_assert_eq(error->code, IMAGE_ERROR_INVALID);
    cr_assert_eq(memcmp(before, after, 16 * CLUSTER), 0);
    cr_assert_eq(lseek(c->fd, 0, SEEK_END), size);
}

Test(qcow2_repair_hostile, what_is_counted)
{
    static const unsigned counts[16] = {1, 1, 1, 1, 1, 1, 1, 1, 2, 1};
    craft c = snapshot_craft();
    put_word(&c, AT(7) + 8, AT(8));
    assert_repaired(&c);
    for (unsigned i = 0; i < 16; i++)
        cr_assert_eq(refcount_at(&c, i), counts[i], "cluster %u", i);
    cr_assert_eq(word_at(&c, AT(3)), AT(4) | COPIED);
    cr_assert_eq(word_at(&c, AT(4)), AT(8));
    cr_assert_eq(word_at(&c, AT(6)), AT(7)); /* a snapshot's flags mean nothing */
    close(c.fd);
}

/* A shared table counts as often as it is used, and so does all that it has. */
Test(qcow2_repair_hostile, shared_tables_are_counted_by_their_users)
{
    enum { USERS = 1500 };
    craft c = snapshot_craft();
    put_field(&c, AT(5) + 8, USERS);
    for (unsigned i = 0; i < USERS; i++)
        put_word(&c, AT(6) + 8 * i, i % 3 ? AT(7) : AT(4));
    put_word(&c, AT(4) + 8, PACKED | (AT(10) - 100) | (uint64_t)1 << 54);
    assert_repaired(&c);
    cr_assert_eq(refcount_at(&c, 7), 1000);
    cr_assert_eq(refcount_at(&c, 4), 501);
    cr_assert_eq(refcount_at(&c, 8), 501);
    cr_assert_eq(refcount_at(&c, 9),
                 1000 + 501); /* both clusters of the compressed one */
    cr_assert_eq(refcount_at(&c, 10), 501);
    cr_assert_eq(word_at(&c, AT(3)), AT(4));
    close(c.fd);
}

Test(qcow2_repair_hostile, O3_what_contradicts_itself_is_left_alone)
{
    static const struct {
        uint64_t at, word;
        const char *text;
    } rows[] = {
        {AT(7), AT(7), "an L2 table and something else"}, /* a table that holds itself */
        {AT(7), AT(4), "an L2 table and something else"},
        {AT(7), AT(3), "the L1 table and something else"},
        {AT(7), AT(2), "a refcount block and something else"},
        {AT(7), AT(1), "the refcount table and something else"},
        {AT(7), AT(6), "a snapshot's L1 table and something else"},
        {AT(7), PACKED, "the header and something else"},
        {AT(7), PACKED | (AT(5) - 100) | (uint64_t)1 << 54, "at once"},
        {AT(6), AT(5), "entry 1 of the L2 table at 0x50000"},
        {AT(6), AT(2), "an L2 table and something else"},
        {AT(6), AT(8), "an L2 table and something else"},
        {AT(6), AT(7) + 512, "entry 0 of the L1 table at 0x60000: the L2 table is not"},
        {AT(6), AT(16), "outside of the file"},
        {AT(7) + 8, AT(8) + 512, "entry 1 of the L2 table at 0x70000: a data cluster is"},
        {AT(7), AT(16), "past the end"},
        {AT(7), PACKED | AT(16), "reaches out of the file"},
        {AT(7), COPIED, "copied flag"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        craft c = snapshot_craft();
        put_word(&c, rows[i].at, rows[i].word);
        assert_left_alone(&c, rows[i].text);
        close(c.fd);
    }
}

Test(qcow2_repair_hostile, O3_counts_that_do_not_fit)
{
    for (unsigned order = 0; order < 4; order++) {
        unsigned max = (1u << (1u << order)) - 1;
        craft c = snapshot_craft();
        put_field(&c, 96, order);
        for (unsigned i = 1; i < max; i++)
            put_word(&c, AT(7) + 8 * i, AT(8));
        assert_repaired(&c);
        put_word(&c, 72, QCOW2_INCOMPAT_DIRTY);
        put_word(&c, AT(7) + 8 * max, AT(8));
        assert_left_alone(&c, "than its refcount of");
        close(c.fd);
    }
}

/* With 512 bytes of cluster and 64 bits of refcount, a refcount table reaches to 32 GiB. */
Test(qcow2_repair_hostile, O3_a_table_that_would_be_too_large)
{
    craft c = craft_new(3, 9, QCOW2_INCOMPAT_DIRTY);
    put_field(&c, 96, 6);
    cr_assert_eq(ftruncate(c.fd, (off_t)1 << 36), 0);
    put_word(&c, c.l2, (uint64_t)32 << 30);
    assert_left_alone(&c, "refcount table would have to be too large");
    put_word(&c, c.l2, ((uint64_t)32 << 30) - 512);
    assert_left_alone(&c,
                      "refcount table would have to be too large"); /* no room behind */
    put_word(&c, c.l2, ((uint64_t)32 << 30) - ((uint64_t)16 << 20));
    assert_repaired(&c);
    close(c.fd);
}

/* A few words that would need terabytes of refcount blocks. */
Test(qcow2_repair_hostile, O3_files_do_not_grow_without_bound)
{
    uint64_t cluster = 2 * MIB;
    craft c = craft_new(3, 21, QCOW2_INCOMPAT_DIRTY);
    cr_assert_eq(ftruncate(c.fd, (off_t)1 << 50), 0);
    for (uint64_t i = 1; i < 200; i++)
        put_word(&c, c.l2 + 8 * i, i << 42);
    assert_left_alone(&c, "too many refcounts are missing");
    for (uint64_t i = 20; i < 200; i++)
        put_word(&c, c.l2 + 8 * i, 0);
    assert_repaired(&c);
    cr_assert_eq(refcount_at(&c, 0), 1);
    cr_assert_leq(lseek(c.fd, 0, SEEK_END), ((off_t)1 << 50) + (off_t)(64 * cluster));
    close(c.fd);
}

/* As many snapshots as there may be, each with the largest L1 table: 2 TiB of holes. */
Test(qcow2_repair_hostile, O3_time_is_bounded)
{
    enum { SNAPSHOTS = 65536 };
    uint64_t l1_bytes = 32 * MIB, first = 64 * MIB;
    craft c = craft_new(3, 16, QCOW2_INCOMPAT_DIRTY);
    g_autofree uint8_t *table = g_malloc0(SNAPSHOTS * 40);
    cr_assert_eq(ftruncate(c.fd, (off_t)(first + SNAPSHOTS * l1_bytes)), 0);
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        uint64_t l1 = GUINT64_TO_BE(first + i * l1_bytes);
        uint32_t entries = GUINT32_TO_BE(l1_bytes / 8);
        memcpy(table + i * 40, &l1, 8);
        memcpy(table + i * 40 + 8, &entries, 4);
    }
    put_field(&c, 60, SNAPSHOTS);
    put_word(&c, 64, 16 * CLUSTER);
    cr_assert_eq(pwrite(c.fd, table, SNAPSHOTS * 40, 16 * CLUSTER), SNAPSHOTS * 40);
    assert_left_alone(&c, "too large for a repair");
    close(c.fd);
}

/* 70 blocks of 2 MiB, one of which is missing: more than one window. */
Test(qcow2_repair_hostile, several_windows)
{
    enum { BLOCKS = 70, MISSING = 66 };
    uint64_t cluster = 2 * MIB;
    craft c = craft_new(3, 21, QCOW2_INCOMPAT_DIRTY);
    cr_assert_eq(ftruncate(c.fd, (off_t)((uint64_t)BLOCKS << 41)), 0);
    for (uint64_t i = 1; i < BLOCKS; i++) {
        put_word(&c, c.l2 + 8 * i, i << 41 | (i % 2 ? COPIED : 0));
        if (i != MISSING)
            put_word(&c, c.reftable + 8 * i, (i << 41) + cluster);
    }
    put_word(&c, c.l2 + 8 * BLOCKS, (uint64_t)69 << 41 | COPIED);
    assert_repaired(&c);
    uint64_t last = word_at(&c, c.reftable + 8 * MISSING);
    cr_assert_eq(last, ((uint64_t)69 << 41) + 2 * cluster);
    for (uint64_t i = 1; i < BLOCKS; i++) {
        uint64_t block = word_at(&c, c.reftable + 8 * i);
        cr_assert_eq(word_at(&c, block),
                     i == 69        ? 0x0002000100010000u
                     : i == MISSING ? 0x0001000000000000u
                                    : 0x0001000100000000u,
                     "block %d", (int)i);
        cr_assert_eq(word_at(&c, c.l2 + 8 * i), i << 41 | (i == 69 ? 0 : COPIED));
    }
    cr_assert_eq(word_at(&c, c.l2 + 8 * BLOCKS), (uint64_t)69 << 41);
    cr_assert_eq(word_at(&c, c.block), 0x0001000100010001u);
    cr_assert_eq(word_at(&c, c.block + 8), 0x0001000000000000u);
    /* The second time there is nothing to do. */
    assert_repaired(&c);
    close(c.fd);
}

/* The last window does not fit: the first one is not written either. */
Test(qcow2_repair_hostile, O3_all_windows_are_judged_before_one_is_written)
{
    enum { BLOCKS = 70 };
    uint64_t cluster = 2 * MIB;
    craft c = craft_new(3, 21, QCOW2_INCOMPAT_DIRTY);
    cr_assert_eq(ftruncate(c.fd, (off_t)((uint64_t)BLOCKS << 41)), 0);
    for (uint64_t i = 1; i < BLOCKS; i++)
        put_word(&c, c.reftable + 8 * i, (i << 41) + cluster);
    put_field(&c, 60, 1);
    put_word(&c, 64, 6 * cluster);
    put_word(&c, 6 * cluster, 7 * cluster);
    put_field(&c, 6 * cluster + 8, 1);
    put_word(&c, 7 * cluster, 8 * cluster);
    put_word(&c, 8 * cluster, ((uint64_t)69 << 41) + cluster); /* a refcount block */
    assert_left_alone(&c, "a refcount block and something else");
    cr_assert_eq(refcount_at(&c, 0), 0);
    close(c.fd);
}

Test(qcow2_repair_hostile, O3_bad_bitmaps_are_given_up)
{
    craft c = snapshot_craft();
    put_word(&c, 88, QCOW2_AUTOCLEAR_BITMAPS);
    put_field(&c, 104, 0x23852875);
    put_field(&c, 108, 24);
    put_field(&c, 112, 1);
    put_word(&c, 120, 32);
    put_word(&c, 128, AT(10));
    put_word(&c, AT(10), AT(11));
    put_field(&c, AT(10) + 8, 2);
    put_field(&c, AT(10) + 16, 0x01100001);
    put_word(&c, AT(11), AT(12));
    put_word(&c, AT(11) + 8, 1);
    assert_repaired(&c);
    for (unsigned i = 10; i < 13; i++)
        cr_assert_eq(refcount_at(&c, i), 1);
    cr_assert_eq(word_at(&c, 88), QCOW2_AUTOCLEAR_BITMAPS);
    put_word(&c, AT(11) + 8, AT(16));
    put_word(&c, 72, QCOW2_INCOMPAT_DIRTY);
    assert_repaired(&c);
    for (unsigned i = 10; i < 13; i++)
        cr_assert_eq(refcount_at(&c, i), 0);
    cr_assert_eq(word_at(&c, 88), 0);
    close(c.fd);
}

/* Words of the tables of real images replaced at random: what the repair accepts is in
 * order afterwards, and it says one line of the rest. */
Test(qcow2_repair_hostile, O3_random_damage)
{
    enum { ROUNDS = 300 };
    uint64_t seed = support_seed();
    unsigned repaired = 0, refused = 0;
    g_autofree char *path = support_path("r.qcow2");
    size_t length;
    repair_create_sized("cluster_size=512,refcount_bits=16", "1M");
    support_run(
        "qemu-img bitmap --add -g 512 r.qcow2 a; qemu-img snapshot -c one r.qcow2;"
        "qemu-io -t unsafe -f qcow2 -c 'write -P 1 0 100k' -c 'write -c 200k 64k' "
        "r.qcow2 >/dev/null; qemu-img snapshot -c two r.qcow2");
    repair_make_dirty("-c 'write -P 2 20k 30k' -c 'write 300k 10k' -c flush", "random");
    g_autofree uint8_t *bytes = support_load(path, &length);
    for (unsigned i = 0; i < ROUNDS; i++) {
        g_autoptr(GError) error = NULL;
        g_autofree uint8_t *copy = g_memdup2(bytes, length);
        for (unsigned k = 0; k < 1 + i % 4; k++) {
            /* a word that looks like an entry becomes another one */
            uint64_t at, word;
            do {
                at = 512 + support_random(&seed) % (length / 8 - 64) * 8;
                word = qcow2_be64(copy + at) & ~COPIED;
            } while (word == 0 || word >= length || word % 512 != 0);
            word = support_random(&seed) % (length / 512 + 2) * 512;
            word |= support_random(&seed) % 2 ? COPIED : 0;
            word = GUINT64_TO_BE(word);
            memcpy(copy + at, &word, 8);
        }
        support_save(path, copy, length);
        bool ok = repair_file("r.qcow2", &error);
        cr_assert_eq(ok, error == NULL);
        if (!ok) {
            cr_assert_null(strchr(error->message, '\n'));
            refused++;
            continue;
        }
        repaired++;
        qcow2_fsck result = qcow2_fsck_run(path);
        if (result.error) { /* stricter than QEMU: no two clusters of a disk are one */
            g_autofree char *what = g_strdup_printf("round %u: %s", i, result.error);
            qcow2_assert_clean("r.qcow2", what);
        } else {
            cr_assert(!result.dirty);
            cr_assert_eq(result.leaks, 0, "round %u", i);
        }
        g_free(result.error);
    }
    cr_assert(repaired > ROUNDS / 10 && refused > ROUNDS / 10, "%u %u", repaired,
              refused);
}
