/*
 * The crash simulator itself: what is stable, what may be lost, which calls fail.
 */
#include "formats/file.h"
#include "formats/uring.h"
#include "tests/crash-file.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define SECTOR 512u
#define STATES 3200 /* of a random kind: enough that what may happen does */

typedef struct rig {
    int fd;
    char *path, *state;
} rig;

/* A file of `sectors` sectors full of 'o', watched. */
static rig rig_new(const char *name, unsigned sectors)
{
    rig r = {-1, support_path("%s", name), support_path("%s.state", name)};
    r.fd = open(r.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    cr_assert_geq(r.fd, 0);
    g_autofree uint8_t *old = g_malloc(sectors * SECTOR + 1);
    memset(old, 'o', sectors * SECTOR);
    cr_assert_eq(file_write_full(r.fd, old, sectors * SECTOR, 0), 0);
    crash_watch(r.fd);
    return r;
}

static void rig_free(rig *r)
{
    close(r->fd);
    unlink(r->state);
    g_free(r->path);
    g_free(r->state);
}

static void fill(const rig *r, char byte, unsigned sector, unsigned count)
{
    g_autofree uint8_t *bytes = g_malloc(count * SECTOR);
    memset(bytes, byte, count * SECTOR);
    cr_assert_eq(file_write_full(r->fd, bytes, count * SECTOR, sector * SECTOR), 0);
}

/* One character for each sector of a file: its byte, '.' for zeroes, '?' for a mixture. */
static char *picture(const char *path)
{
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    GString *text = g_string_new(NULL);
    for (size_t at = 0; at < length; at += SECTOR) {
        size_t n = MIN(SECTOR, length - at);
        char byte = bytes[at] ? (char)bytes[at] : '.';
        for (size_t i = 0; i < n; i++)
            byte = bytes[at + i] == bytes[at] ? byte : '?';
        g_string_append_c(text, byte);
    }
    return g_string_free(text, FALSE);
}

static void assert_state(const rig *r, unsigned file, crash_choice choice,
                         const char *expected)
{
    uint64_t unused = 1;
    crash_state_save(file, r->state, choice, &unused);
    g_autofree char *seen = picture(r->state);
    cr_assert_str_eq(seen, expected);
}

/* The set of pictures that random crashes leave. */
static GHashTable *random_states(const rig *r, unsigned file)
{
    uint64_t seed = support_seed();
    GHashTable *seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (unsigned i = 0; i < STATES; i++) {
        crash_state_save(file, r->state, CRASH_SOME, &seed);
        g_hash_table_add(seen, picture(r->state));
    }
    return seen;
}

static void assert_states(const rig *r, unsigned file, const char *const *expected)
{
    GHashTable *seen = random_states(r, file);
    unsigned count = 0;
    for (; expected[count]; count++)
        cr_assert(g_hash_table_contains(seen, expected[count]), "never: %s",
                  expected[count]);
    cr_assert_eq(g_hash_table_size(seen), count, "%u states instead of %u",
                 g_hash_table_size(seen), count);
    g_hash_table_unref(seen);
}

Test(crash_file, a_write_is_kept_or_dropped)
{
    rig r = rig_new("a", 2);
    fill(&r, 'n', 1, 1);
    assert_state(&r, 0, CRASH_DROP_ALL, "oo");
    assert_state(&r, 0, CRASH_KEEP_ALL, "on");
    assert_states(&r, 0, (const char *const[]){"oo", "on", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, a_write_is_torn_at_any_sector)
{
    rig r = rig_new("a", 2);
    fill(&r, 'n', 0, 2);
    assert_states(&r, 0, (const char *const[]){"oo", "on", "no", "nn", NULL});
    crash_reset();
    rig_free(&r);
}

static bool all_equal(const uint8_t *bytes, size_t length)
{
    return memcmp(bytes, bytes + 1, length - 1) == 0;
}

Test(crash_file, a_sector_is_never_torn)
{
    uint8_t bytes[700];
    rig r = rig_new("a", 3);
    memset(bytes, 'n', sizeof bytes);
    cr_assert_eq(file_write_full(r.fd, bytes, sizeof bytes, 500), 0);
    const char *const expected[] = {"ooo", "?oo", "ono", "oo?", "?no",
                                    "?o?", "on?", "?n?", NULL};
    assert_states(&r, 0, expected);
    uint64_t seed = support_seed();
    for (unsigned i = 0; i < STATES; i++) {
        size_t length;
        crash_state_save(0, r.state, CRASH_SOME, &seed);
        g_autofree uint8_t *state = support_load(r.state, &length);
        cr_assert_eq(length, 3 * SECTOR);
        cr_assert(all_equal(state + 500, 12) && all_equal(state + 1024, 176));
    }
    crash_reset();
    rig_free(&r);
}

Test(crash_file, a_sector_goes_to_disk_as_it_is)
{
    uint8_t one = 'x';
    rig r = rig_new("a", 1);
    cr_assert_eq(file_write_full(r.fd, &one, 1, 0), 0);
    cr_assert_eq(file_write_full(r.fd, &one, 1, 511), 0);
    cr_assert_eq(file_zero(r.fd, 1, 510), 0);
    uint64_t seed = support_seed();
    for (unsigned i = 0; i < STATES; i++) {
        size_t length;
        crash_state_save(0, r.state, CRASH_SOME, &seed);
        g_autofree uint8_t *state = support_load(r.state, &length);
        cr_assert(state[511] == 'o' || state[0] == 'x');
        cr_assert(state[1] == 'o' || state[511] == 'x');
    }
    crash_reset();
    rig_free(&r);
}

Test(crash_file, the_order_of_writes_is_not_kept)
{
    rig r = rig_new("a", 2);
    fill(&r, 'x', 0, 1);
    fill(&r, 'y', 1, 1);
    fill(&r, 'z', 0, 1);
    assert_states(&r, 0, (const char *const[]){"oo", "oy", "xo", "xy", "zo", "zy", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, a_sync_makes_stable_what_was_before)
{
    rig r = rig_new("a", 2);
    fill(&r, 'x', 0, 1);
    cr_assert_eq(crash_queued(0), 1);
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_eq(crash_queued(0), 0);
    fill(&r, 'y', 1, 1);
    assert_states(&r, 0, (const char *const[]){"xo", "xy", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, zeroing_may_be_lost)
{
    rig r = rig_new("a", 8);
    int error = file_punch(r.fd, 0, 8 * SECTOR);
    if (error == -ENOTSUP)
        cr_skip_test("no holes here");
    assert_state(&r, 0, CRASH_DROP_ALL, "oooooooo");
    assert_state(&r, 0, CRASH_KEEP_ALL, "........");
    GHashTable *seen = random_states(&r, 0);
    cr_assert_gt(g_hash_table_size(seen), 10, "a hole is torn, too");
    g_hash_table_unref(seen);
    cr_assert_eq(file_sync(r.fd), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "........");
    fill(&r, 'n', 0, 4);
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_eq(file_zero(r.fd, SECTOR, SECTOR), 0);
    assert_states(&r, 0, (const char *const[]){"nnnn....", "n.nn....", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, a_size_is_old_or_new)
{
    rig r = rig_new("a", 2);
    cr_assert_eq(file_resize(r.fd, 4 * SECTOR), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "oo");
    assert_state(&r, 0, CRASH_KEEP_ALL, "oo..");
    assert_states(&r, 0, (const char *const[]){"oo", "oo..", NULL});
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_eq(file_resize(r.fd, SECTOR), 0);
    assert_states(&r, 0, (const char *const[]){"oo..", "o", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, growth_by_a_write_may_be_lost)
{
    rig r = rig_new("a", 1);
    fill(&r, 'n', 2, 1);
    assert_state(&r, 0, CRASH_KEEP_ALL, "o.n");
    assert_states(&r, 0, (const char *const[]){"o", "o.n", NULL});
    cr_assert_eq(file_sync(r.fd), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "o.n");
    cr_assert_eq(file_resize(r.fd, SECTOR), 0);
    cr_assert_eq(file_sync(r.fd), 0);
    fill(&r, 'x', 1, 1);
    fill(&r, 'y', 2, 1);
    /* The size after the first write, with only the bytes of the second one: "o.". */
    assert_states(&r, 0, (const char *const[]){"o", "ox", "o.y", "oxy", "o.", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, what_was_cut_off_does_not_come_back)
{
    rig r = rig_new("a", 2);
    cr_assert_eq(file_resize(r.fd, SECTOR), 0);
    cr_assert_eq(file_resize(r.fd, 2 * SECTOR), 0);
    assert_state(&r, 0, CRASH_KEEP_ALL, "o.");
    assert_states(&r, 0, (const char *const[]){"oo", "o", "o.", NULL});
    crash_reset();
    rig_free(&r);
}

Test(crash_file, two_files_have_nothing_to_do_with_each_other)
{
    rig a = rig_new("a", 1), b = rig_new("b", 1);
    fill(&a, 'x', 0, 1);
    fill(&b, 'y', 0, 1);
    cr_assert_eq(file_sync(b.fd), 0);
    cr_assert_eq(crash_queued(0), 1);
    assert_states(&a, 0, (const char *const[]){"o", "x", NULL});
    assert_states(&b, 1, (const char *const[]){"y", NULL});
    crash_reset();
    rig_free(&a);
    rig_free(&b);
}

Test(crash_file, every_descriptor_of_a_file_counts)
{
    rig r = rig_new("a", 1);
    rig other = {open(r.path, O_RDWR | O_CLOEXEC), NULL, NULL};
    fill(&other, 'n', 0, 1);
    cr_assert_eq(crash_queued(0), 1);
    close(other.fd);
    crash_reset();
    rig_free(&r);
}

static io_op write_op(int fd, void *buf, uint64_t offset)
{
    return (io_op){
        .fd = fd, .write = true, .buf = buf, .length = SECTOR, .offset = offset};
}

Test(crash_file, an_io_list_does_not_go_past)
{
    uint8_t bytes[SECTOR], back[SECTOR];
    rig r = rig_new("a", 2);
    io_list list = {0};
    memset(bytes, 'n', sizeof bytes);
    io_list_add(&list, write_op(r.fd, bytes, 0));
    io_list_add(&list, (io_op){.fd = r.fd, .flush = true});
    io_list_add(&list, (io_op){.fd = r.fd, .buf = back, .length = SECTOR});
    io_list_run(&list);
    for (size_t i = 0; i < list.count; i++)
        cr_assert_eq(list.ops[i].result, 0);
    cr_assert_eq(memcmp(back, bytes, SECTOR), 0);
    /* They ran at the same time: the flush did not cover the write. */
    assert_states(&r, 0, (const char *const[]){"oo", "no", NULL});
    list.ops[0].offset = SECTOR;
    io_list_run(&list);
    assert_states(&r, 0, (const char *const[]){"no", "nn", NULL});
    crash_set_fault((crash_fault){.kinds = CRASH_SYNC, .at = 1, .error = EIO});
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, 0);
    cr_assert_eq(list.ops[1].result, -EIO);
    cr_assert_eq(list.ops[2].result, 0);
    io_list_free(&list);
    crash_reset();
    rig_free(&r);
}

static void note(void *user, crash_kind kind)
{
    g_string_append_c(user, kind == CRASH_SYNC ? 's' : kind == CRASH_WRITE ? 'w' : 'z');
}

Test(crash_file, every_change_and_sync_is_a_point)
{
    rig r = rig_new("a", 2);
    g_autoptr(GString) seen = g_string_new(NULL);
    crash_set_hook(note, seen);
    fill(&r, 'n', 0, 1);
    cr_assert_eq(file_zero(r.fd, 0, SECTOR), 0);
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_str_eq(seen->str, "wzss");
    cr_assert_eq(crash_points(), 4);
    crash_reset();
    rig_free(&r);
}

static void die_at_second(void *user, crash_kind kind)
{
    (void)kind;
    const rig *r = user;
    uint64_t unused = 1;
    if (crash_points() != 2)
        return;
    crash_state_save(0, r->state, CRASH_KEEP_ALL, &unused);
    crash_die();
}

Test(crash_file, nothing_comes_after_death)
{
    uint8_t bytes[SECTOR] = {1};
    rig r = rig_new("a", 3);
    crash_set_hook(die_at_second, &r);
    fill(&r, 'x', 0, 1);
    fill(&r, 'y', 1, 1);
    cr_assert_eq(file_write_full(r.fd, bytes, SECTOR, 2 * SECTOR), -EIO);
    cr_assert_eq(file_zero(r.fd, 0, SECTOR), -EIO);
    cr_assert_eq(file_resize(r.fd, 0), -EIO);
    cr_assert_eq(file_sync(r.fd), -EIO);
    cr_assert_eq(file_read_full(r.fd, bytes, SECTOR, 0), -EIO);
    g_autofree char *file = picture(r.path), *state = picture(r.state);
    cr_assert_str_eq(file, "xyo");
    cr_assert_str_eq(state, "xyo");
    crash_reset();
    cr_assert_eq(file_read_full(r.fd, bytes, SECTOR, 0), 0);
    rig_free(&r);
}

static int write_one(const rig *r)
{
    uint8_t bytes[SECTOR];
    memset(bytes, 'n', sizeof bytes);
    return file_write_full(r->fd, bytes, SECTOR, 0);
}

Test(crash_file, a_fault_strikes_once_or_for_ever)
{
    rig r = rig_new("a", 1);
    crash_set_fault((crash_fault){.kinds = CRASH_WRITE, .at = 2, .error = ENOSPC});
    cr_assert_eq(write_one(&r), 0);
    cr_assert_eq(file_sync(r.fd), 0); /* does not count */
    cr_assert_eq(write_one(&r), -ENOSPC);
    cr_assert_eq(write_one(&r), 0);
    cr_assert_eq(crash_fault_hits(), 1);
    crash_set_fault((crash_fault){
        .kinds = CRASH_WRITE | CRASH_SYNC, .at = 2, .error = EIO, .for_ever = true});
    cr_assert_eq(crash_fault_hits(), 0);
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_eq(file_sync(r.fd), -EIO);
    cr_assert_eq(write_one(&r), -EIO);
    cr_assert_eq(file_resize(r.fd, SECTOR), 0);
    cr_assert_eq(crash_fault_hits(), 2);
    cr_assert_eq(crash_fault_header_hits(), 1);
    crash_set_fault((crash_fault){0});
    cr_assert_eq(write_one(&r), 0);
    crash_reset();
    rig_free(&r);
}

Test(crash_file, holes_may_be_what_fails)
{
    rig r = rig_new("a", 8);
    crash_set_fault(
        (crash_fault){.kinds = CRASH_PUNCH, .at = 1, .error = ENOTSUP, .for_ever = true});
    cr_assert_eq(file_punch(r.fd, 0, 512), -ENOTSUP);
    cr_assert_eq(file_allocate_zero(r.fd, 0, 512), -ENOTSUP);
    cr_assert_eq(file_zero(r.fd, 0, 512), 0);
    assert_state(&r, 0, CRASH_KEEP_ALL, ".ooooooo");
    crash_reset();
    rig_free(&r);
}

/* Faults are for watched files only. */
Test(crash_file, other_files_are_left_alone)
{
    rig r = rig_new("a", 1);
    g_autofree char *path = support_path("other");
    rig other = {open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), NULL, NULL};
    crash_set_fault(
        (crash_fault){.kinds = CRASH_CHANGES, .at = 1, .error = EIO, .for_ever = true});
    fill(&other, 'n', 0, 1);
    cr_assert_eq(file_sync(other.fd), 0);
    cr_assert_eq(crash_points(), 0);
    cr_assert_eq(write_one(&r), -EIO);
    close(other.fd);
    crash_reset();
    rig_free(&r);
}

Test(crash_file, a_failing_write_may_be_torn)
{
    uint8_t bytes[64 * SECTOR];
    memset(bytes, 'n', sizeof bytes);
    rig r = rig_new("a", 64);
    crash_set_fault(
        (crash_fault){.kinds = CRASH_WRITE, .at = 1, .error = EIO, .tear = 7});
    cr_assert_eq(file_write_full(r.fd, bytes, sizeof bytes, 0), -EIO);
    g_autofree char *seen = picture(r.path);
    cr_assert_not_null(strchr(seen, 'o'));
    cr_assert_not_null(strchr(seen, 'n'));
    assert_state(&r, 0, CRASH_KEEP_ALL, seen);
    g_autofree char *old = g_strnfill(64, 'o');
    assert_state(&r, 0, CRASH_DROP_ALL, old);
    crash_reset();
    rig_free(&r);
}

Test(crash_file, seeds_repeat_states)
{
    rig r = rig_new("a", 64);
    for (unsigned i = 0; i < 64; i++)
        fill(&r, 'n', i, 1);
    uint64_t one = 5, two = 5;
    for (unsigned i = 0; i < 20; i++) {
        crash_state_save(0, r.state, CRASH_SOME, &one);
        g_autofree char *first = picture(r.state);
        crash_state_save(0, r.state, CRASH_SOME, &two);
        g_autofree char *second = picture(r.state);
        cr_assert_str_eq(first, second);
    }
    crash_reset();
    rig_free(&r);
}

/* ---- More than a power failure ----------------------------------------------------------- */

Test(crash_file, a_sync_that_lies_covers_nothing)
{
    rig r = rig_new("a", 2), other = rig_new("b", 2);
    crash_set_lies(1);
    fill(&r, 'n', 0, 1);
    fill(&other, 'n', 0, 1);
    cr_assert_eq(file_sync(r.fd), 0);
    cr_assert_eq(file_sync(other.fd), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "oo");
    assert_state(&other, 1, CRASH_DROP_ALL, "no");
    crash_set_lies(0);
    cr_assert_eq(file_sync(r.fd), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "no");
    crash_reset();
    rig_free(&r);
    rig_free(&other);
}

Test(crash_file, a_fault_may_be_of_one_file)
{
    rig r = rig_new("a", 1), other = rig_new("b", 1);
    crash_set_fault((crash_fault){
        .kinds = CRASH_WRITE, .at = 1, .error = EIO, .for_ever = true, .files = 2});
    cr_assert_eq(write_one(&r), 0);
    cr_assert_eq(write_one(&other), -EIO);
    cr_assert_eq(crash_fault_hits(), 1);
    crash_reset();
    rig_free(&r);
    rig_free(&other);
}

/* What a failed sync lost is read until the page cache forgets the file (W4). */
Test(crash_file, what_a_failed_sync_lost_stays_lost)
{
    rig r = rig_new("a", 64);
    for (unsigned i = 0; i < 64; i++)
        fill(&r, 'n', i, 1);
    crash_set_fault((crash_fault){.kinds = CRASH_SYNC, .at = 1, .error = EIO, .lose = 9});
    cr_assert_eq(file_sync(r.fd), -EIO);
    fill(&r, 'm', 0, 2);
    cr_assert_eq(file_sync(r.fd), 0);
    crash_state_save(0, r.state, CRASH_DROP_ALL, &(uint64_t){1});
    g_autofree char *left = picture(r.state), *cached = picture(r.path);
    cr_assert(g_str_has_prefix(left, "mm") && strchr(left, 'n') && strchr(left, 'o'));
    cr_assert(g_str_has_prefix(cached, "mm") && !strchr(cached, 'o'));
    cr_assert_eq(posix_fadvise(r.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    g_autofree char *forgotten = picture(r.path);
    cr_assert_str_eq(forgotten, left);
    crash_reset();
    rig_free(&r);
}

Test(crash_file, system_calls_do_not_go_past)
{
    rig r = rig_new("a", 3);
    uint8_t bytes[SECTOR];
    memset(bytes, 'n', sizeof bytes);
    cr_assert_eq(pwrite(r.fd, bytes, sizeof bytes, SECTOR), sizeof bytes);
    assert_state(&r, 0, CRASH_DROP_ALL, "ooo");
    cr_assert_eq(fdatasync(r.fd), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "ono");
    cr_assert_eq(ftruncate(r.fd, 2 * SECTOR), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "ono");
    cr_assert_eq(fsync(r.fd), 0);
    assert_state(&r, 0, CRASH_DROP_ALL, "on");
    crash_set_fault((crash_fault){
        .kinds = CRASH_WRITE | CRASH_SYNC, .at = 1, .error = EIO, .for_ever = true});
    cr_assert(pwrite(r.fd, bytes, sizeof bytes, 0) == -1 && errno == EIO);
    cr_assert(fsync(r.fd) == -1 && errno == EIO);
    crash_reset();
    rig_free(&r);
}
