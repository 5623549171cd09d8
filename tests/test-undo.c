/*
 * test-undo.c: what a repair overwrote is there to be put back, whatever happened to the file
 * since: crashes, full disks, damage, another disk.
 */
#include "formats/file.h"
#include "quorum/undo-format.h"
#include "tests/crash-file.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE (UINT64_C(1) << 30)

static const undo_disk disk = {
    .size = SIZE,
    .n = 3,
    .names = {"a", "b", "c"},
    .sources = {"/srv/a.raw", "/srv/b.qcow2", "nbd://host/c"},
};

/* What is saved in each test, in this order. */
static const struct {
    unsigned replica;
    uint64_t offset;
    size_t length;
    bool unreadable, stale;
} saves[] = {
    {1, 0, 512, false, false},          {0, 1u << 20, 1536, false, true},
    {2, SIZE - 700, 700, false, false}, {2, 4096, 8192, true, false},
    {1, 65536, 2048, false, false},
};
#define SAVES G_N_ELEMENTS(saves)

static uint8_t old_bytes[1u << 20], new_bytes[1u << 20];

static void fill(size_t k)
{
    support_pattern(old_bytes, saves[k].length, saves[k].offset, 2 * k);
    support_pattern(new_bytes, saves[k].length, saves[k].offset, 2 * k + 1);
}

static int add(undo_writer *w, size_t k)
{
    fill(k);
    return undo_writer_add(w, saves[k].replica, saves[k].offset,
                           saves[k].unreadable ? NULL : old_bytes, new_bytes,
                           saves[k].length, saves[k].stale);
}

static int save(undo_writer *w, size_t k)
{
    int r = add(w, k);
    return r ? r : undo_writer_sync(w);
}

static undo_writer *writer_new(const char *path, uint64_t expected)
{
    g_autoptr(GError) error = NULL;
    undo_writer *w = undo_writer_new(path, &disk, expected, &error);
    cr_assert_not_null(w, "%s", error ? error->message : "");
    return w;
}

static char *make_file(const char *name)
{
    char *path = support_path("%s", name);
    undo_writer *w = writer_new(path, 0);
    for (size_t k = 0; k < SAVES; k++)
        cr_assert_eq(save(w, k), 0);
    cr_assert_eq(undo_writer_count(w), SAVES);
    undo_writer_free(w);
    return path;
}

/* Every record is one that was saved, at its place in the order. Returns how many. */
static size_t check_records(const undo_reader *r)
{
    static uint8_t got[1u << 20];
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    size_t n = undo_reader_count(r);
    cr_assert_leq(n, SAVES);
    for (size_t k = 0; k < n; k++) {
        undo_record record;
        fill(k);
        cr_assert_eq(undo_reader_get(r, k, &record), 0);
        cr_assert_eq(record.replica, saves[k].replica);
        cr_assert_eq(record.offset, saves[k].offset);
        cr_assert_eq(record.length, saves[k].length);
        cr_assert_eq(record.stale, saves[k].stale);
        cr_assert_eq(record.unreadable, saves[k].unreadable);
        journal_digest(new_bytes, record.length, digest);
        cr_assert_eq(memcmp(digest, record.new_sha256, sizeof digest), 0);
        if (record.unreadable) {
            cr_assert_eq(undo_reader_old(r, &record, got), -ENODATA);
            continue;
        }
        cr_assert_eq(undo_reader_old(r, &record, got), 0);
        cr_assert_eq(memcmp(got, old_bytes, record.length), 0);
    }
    return n;
}

static undo_reader *reader_open(const char *path)
{
    g_autoptr(GError) error = NULL;
    undo_reader *r = undo_reader_open(path, &error);
    cr_assert_not_null(r, "%s", error ? error->message : "");
    return r;
}

/* How many records it has, or -1: it is refused, with one line that names it. */
static int count_or_refusal(const char *path)
{
    g_autoptr(GError) error = NULL;
    undo_reader *r = undo_reader_open(path, &error);
    if (!r) {
        cr_assert(g_error_matches(error, UNDO_ERROR, UNDO_ERROR_BAD));
        cr_assert(g_str_has_prefix(error->message, path));
        cr_assert_null(strchr(error->message, '\n'));
        return -1;
    }
    int n = (int)check_records(r);
    undo_reader_free(r);
    return n;
}

Test(undo, what_was_saved_is_read)
{
    g_autofree char *path = make_file("whole.undo");
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    undo_reader *r = reader_open(path);
    cr_assert_eq(check_records(r), SAVES);
    cr_assert_eq(undo_reader_about(r)->size, SIZE);
    cr_assert_str_eq(undo_reader_about(r)->names[2], "c");
    undo_reader_free(r);
}

Test(undo, the_largest_record)
{
    g_autofree char *path = support_path("large.undo");
    g_autofree uint8_t *data = g_malloc(UNDO_LENGTH_MAX + 1);
    g_autofree uint8_t *got = g_malloc(UNDO_LENGTH_MAX);
    support_pattern(data, UNDO_LENGTH_MAX, 0, 1);
    undo_writer *w = writer_new(path, undo_space(UNDO_LENGTH_MAX));
    cr_assert_eq(undo_writer_add(w, 0, 0, data, data, UNDO_LENGTH_MAX + 1, false),
                 -EINVAL);
    cr_assert_eq(undo_writer_add(w, 0, 0, data, data, 0, false), -EINVAL);
    cr_assert_eq(undo_writer_add(w, 0, 0, data, data, UNDO_LENGTH_MAX, false), 0);
    undo_writer_free(w);
    undo_reader *r = reader_open(path);
    undo_record record;
    cr_assert_eq(undo_reader_count(r), 1);
    cr_assert_eq(undo_reader_get(r, 0, &record), 0);
    cr_assert_eq(undo_reader_old(r, &record, got), 0);
    cr_assert_eq(memcmp(got, data, UNDO_LENGTH_MAX), 0);
    undo_reader_free(r);
}

Test(undo, room_that_was_not_needed_is_given_back)
{
    g_autofree char *path = support_path("room.undo");
    undo_writer *w = writer_new(path, 1u << 20);
    struct stat st;
    cr_assert_eq(save(w, 0), 0);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_geq(st.st_size, 1 << 20);
    cr_assert_eq(count_or_refusal(path), 1); /* as a crash would leave it */
    undo_writer_free(w);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_leq(st.st_size, 4096);
    cr_assert_eq(count_or_refusal(path), 1);
}

Test(undo, nothing_is_replaced)
{
    g_autofree char *path = support_path("there.undo");
    g_autofree char *link = support_path("link.undo");
    support_save(path, "mine", 4);
    cr_assert_eq(symlink("/nonexistent/x", link), 0);
    cr_assert_null(undo_writer_new(path, &disk, 0, NULL));
    cr_assert_null(undo_writer_new(link, &disk, 0, NULL));
    size_t length;
    g_autofree uint8_t *kept = support_load(path, &length);
    cr_assert_eq(length, 4);
    cr_assert_eq(memcmp(kept, "mine", 4), 0);
}

/* ---- Crashes ------------------------------------------------------------------------------ */

Test(undo, torn_at_every_byte_it_has_what_was_whole)
{
    g_autofree char *path = make_file("torn.undo");
    g_autofree char *cut = support_path("cut.undo");
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    int before = -1;
    for (size_t end = 0; end <= length; end++) {
        support_save(cut, bytes, end);
        int n = count_or_refusal(cut);
        cr_assert(n == before || n == before + 1, "%zu of %zu bytes: %d after %d", end,
                  length, n, before);
        before = n;
    }
    cr_assert_eq(before, (int)SAVES);
}

static struct {
    unsigned file;
    int durable; /* records whose save has returned 0; -1: no header yet */
    char *path;
    uint64_t seed;
} crash;

static void crash_look(void *user, crash_kind kind)
{
    (void)user;
    (void)kind;
    for (unsigned k = 0; k < 6; k++) {
        crash_choice choice = k == 0   ? CRASH_DROP_ALL
                              : k == 1 ? CRASH_KEEP_ALL
                                       : CRASH_SOME;
        crash_state_save(crash.file, crash.path, choice, &crash.seed);
        int n = count_or_refusal(crash.path);
        cr_assert_geq(n, crash.durable, "%d of %d durable records are there", n,
                      crash.durable);
    }
}

Test(undo, W2_what_was_reported_saved_survives_any_power_cut)
{
    crash.seed = support_seed();
    crash.path = support_path("after.undo");
    for (unsigned round = 0; round < 8; round++) {
        g_autofree char *path = support_path("crash-%u.undo", round);
        crash_reset();
        undo_writer *w = writer_new(path, round % 2 ? 16384 : 0);
        int fd = open(path, O_RDONLY);
        crash.file = crash_watch(fd);
        crash.durable = 0;
        crash_set_hook(crash_look, NULL);
        for (size_t k = 0; k < SAVES; k++) {
            cr_assert_eq(add(w, k), 0);
            if (k % 3 < round % 4)
                continue; /* some are synced together */
            cr_assert_eq(undo_writer_sync(w), 0);
            crash.durable = (int)k + 1;
        }
        undo_writer_free(w);
        close(fd);
    }
    crash_reset();
}

/* ---- Failures ----------------------------------------------------------------------------- */

static void limit_files(rlim_t bytes)
{
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = MIN(bytes, limit.rlim_max);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

Test(undo, no_room_is_met_before_anything_is_saved)
{
    g_autofree char *path = support_path("full.undo");
    g_autoptr(GError) error = NULL;
    limit_files(1u << 20);
    cr_assert_null(undo_writer_new(path, &disk, 2u << 20, &error));
    limit_files(RLIM_INFINITY);
    cr_assert(g_error_matches(error, UNDO_ERROR, UNDO_ERROR_IO));
    cr_assert_neq(access(path, F_OK), 0);
    g_autofree char *fresh = g_strconcat(path, ".new", NULL);
    cr_assert_neq(access(fresh, F_OK), 0);
}

Test(undo, a_save_that_failed_leaves_the_others)
{
    g_autofree char *path = support_path("short.undo");
    undo_writer *w = writer_new(path, 0);
    cr_assert_eq(save(w, 0), 0);
    limit_files(2048 + 700); /* in the middle of the second record */
    cr_assert_eq(save(w, 1), -EFBIG);
    limit_files(RLIM_INFINITY);
    cr_assert_eq(count_or_refusal(path), 1);
    for (size_t k = 1; k < SAVES; k++)
        cr_assert_eq(save(w, k), 0);
    cr_assert_eq(count_or_refusal(path), (int)SAVES);
    undo_writer_free(w);
}

Test(undo, W4_after_a_failed_sync_nothing_is_saved)
{
    g_autofree char *path = support_path("sync.undo");
    crash_reset();
    undo_writer *w = writer_new(path, 0);
    int fd = open(path, O_RDONLY);
    crash_watch(fd);
    cr_assert_eq(save(w, 0), 0);
    crash_set_fault((crash_fault){.kinds = CRASH_SYNC, .at = 1, .error = EIO});
    cr_assert_eq(save(w, 1), -EIO);
    cr_assert_eq(save(w, 1), -EIO);
    crash_reset();
    undo_writer_free(w);
    close(fd);
}

/* ---- Damage ------------------------------------------------------------------------------- */

/* Whatever byte is wrong: refused; never bytes that were not saved. Only in padding and in the
 * end itself may it go unnoticed that something is wrong. */
Test(undo, damage_is_never_taken_for_what_was_saved)
{
    g_autofree char *path = make_file("good.undo");
    g_autofree char *bad = support_path("bad.undo");
    size_t length, unnoticed = UNDO_SECTOR;
    g_autofree uint8_t *bytes = support_load(path, &length);
    unsigned refused = 0;
    for (size_t at = 0; at < length; at++) {
        bytes[at] ^= 0x10;
        support_save(bad, bytes, length);
        bytes[at] ^= 0x10;
        int n = count_or_refusal(bad);
        refused += n < 0;
        cr_assert(n < 0 || n == (int)SAVES, "byte %zu: %d records", at, n);
    }
    for (size_t k = 0; k < SAVES; k++)
        if (!saves[k].unreadable && saves[k].length % UNDO_SECTOR)
            unnoticed += UNDO_SECTOR - saves[k].length % UNDO_SECTOR;
    cr_assert_eq(refused, length - unnoticed);
}

/* Of what was added since the last sync, any part may be missing after a power cut. */
Test(undo, a_hole_in_what_was_not_synced_is_no_damage)
{
    g_autofree char *path = support_path("hole.undo");
    const uint8_t zeroes[UNDO_SECTOR] = {0};
    undo_writer *w = writer_new(path, 0);
    cr_assert_eq(save(w, 0), 0);
    for (size_t k = 1; k < SAVES; k++)
        cr_assert_eq(add(w, k), 0);
    size_t second = UNDO_SECTOR + UNDO_SECTOR + saves[0].length;
    size_t third = second + UNDO_SECTOR + saves[1].length;
    support_poke(path, third, zeroes, sizeof zeroes);
    cr_assert_eq(count_or_refusal(path), 2);
    support_poke(path, second, zeroes, sizeof zeroes);
    cr_assert_eq(count_or_refusal(path), 1);
    support_poke(path, UNDO_SECTOR, zeroes, sizeof zeroes);
    cr_assert_eq(count_or_refusal(path), -1);
    undo_writer_free(w);
}

Test(undo, what_is_no_undo_file)
{
    g_autofree char *path = support_path("x.undo");
    support_save(path, "", 0);
    cr_assert_eq(count_or_refusal(path), -1);
    support_save(path, "QFI\xfb", 4);
    cr_assert_eq(count_or_refusal(path), -1);
    g_unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_assert_eq(count_or_refusal(path), -1);
    g_unlink(path);
    g_autoptr(GError) error = NULL;
    cr_assert_null(undo_reader_open(path, &error));
    cr_assert(g_error_matches(error, UNDO_ERROR, UNDO_ERROR_IO));
}

/* Two files of equal shape: a record of one is none of the other's. */
Test(undo, records_of_another_file_do_not_count)
{
    g_autofree char *one = make_file("one.undo"), *two = make_file("two.undo");
    size_t length;
    g_autofree uint8_t *bytes = support_load(one, &length);
    support_poke(two, UNDO_SECTOR, bytes + UNDO_SECTOR, length - UNDO_SECTOR);
    cr_assert_eq(count_or_refusal(two), 0);
}

/* ---- Whose it is --------------------------------------------------------------------------- */

static void expect_other(const undo_reader *r, const undo_disk *now, const char *part)
{
    unsigned map[VOTE_REPLICAS_MAX];
    g_autoptr(GError) error = NULL;
    cr_assert(!undo_reader_match(r, now, map, &error));
    cr_assert(g_error_matches(error, UNDO_ERROR, UNDO_ERROR_OTHER));
    cr_assert_not_null(strstr(error->message, part), "%s", error->message);
}

Test(undo, it_is_only_for_the_disk_that_it_is_about)
{
    g_autofree char *path = make_file("whose.undo");
    undo_reader *r = reader_open(path);
    unsigned map[VOTE_REPLICAS_MAX];
    undo_disk now = disk;
    cr_assert(undo_reader_match(r, &now, map, NULL));
    cr_assert_eq(map[0], 0);
    now.sources[0] = disk.sources[2];
    now.sources[2] = disk.sources[0];
    cr_assert(undo_reader_match(r, &now, map, NULL));
    cr_assert_eq(map[0], 2);
    cr_assert_eq(map[1], 1);
    cr_assert_eq(map[2], 0);
    now.sources[1] = "/srv/d.raw";
    expect_other(r, &now, "replica 'b' (/srv/b.qcow2)");
    now = disk;
    now.n = 2;
    expect_other(r, &now, "3 replicas");
    now = disk;
    now.size += 512;
    expect_other(r, &now, "1073742336");
    undo_reader_free(r);
}
