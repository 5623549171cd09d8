/*
 * The fault injector itself: which calls it strikes, and what is left of them.
 */
#include "tests/fault.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define SECTOR  512u
#define SECTORS 32u
#define SIZE    (SECTORS * SECTOR)

typedef struct rig {
    char *path;
    chain *c;
} rig;

/* A raw file full of 'o'. */
static rig rig_new(void)
{
    g_autoptr(GError) error = NULL;
    rig r = {support_path("file.raw"), NULL};
    uint8_t old[SIZE];
    memset(old, 'o', SIZE);
    support_save(r.path, old, SIZE);
    path_policy *policy = path_policy_new();
    cr_assert(path_policy_add_image(policy, r.path, &error));
    chain_options options = {
        .path = r.path, .format = "raw", .writable = true, .policy = policy};
    r.c = chain_open(&options, &error);
    cr_assert_not_null(r.c, "%s", error ? error->message : "");
    cr_assert(chain_begin_writing(r.c, NULL));
    path_policy_free(policy);
    return r;
}

static void rig_free(rig *r)
{
    fault_clear();
    chain_close(r->c);
    g_free(r->path);
}

/* Through the list, as the disk does it, or at once. */
static int fill(const rig *r, char byte, uint64_t offset, size_t length, bool at_once)
{
    g_autofree uint8_t *bytes = g_malloc(length);
    image_change *change = NULL;
    io_list list = {0};
    memset(bytes, byte, length);
    if (at_once)
        return chain_write(r->c, bytes, offset, length);
    int result = chain_prepare_write(r->c, bytes, offset, length, 0, &list, &change);
    if (list.count > 0)
        io_list_run(&list);
    if (result == 0)
        result = io_list_error(&list);
    if (change)
        result = chain_finish_write(r->c, change, result);
    io_list_free(&list);
    return result;
}

static int get(const rig *r, uint8_t *buf, uint64_t offset, size_t length, bool at_once)
{
    io_list list = {0};
    if (at_once)
        return chain_read(r->c, buf, offset, length);
    int result = chain_prepare_read(r->c, buf, offset, length, 0, &list);
    if (list.count > 0)
        io_list_run(&list);
    result = result ? result : io_list_error(&list);
    io_list_free(&list);
    return result;
}

/* One character for each sector: its byte, '?' for a mixture. */
static char *picture(const rig *r)
{
    size_t length;
    g_autofree uint8_t *bytes = support_load(r->path, &length);
    GString *text = g_string_new(NULL);
    for (size_t at = 0; at < length; at += SECTOR) {
        bool same = memcmp(bytes + at, bytes + at + 1, SECTOR - 1) == 0;
        g_string_append_c(text, !same ? '?' : bytes[at] ? (char)bytes[at] : '.');
    }
    return g_string_free(text, FALSE);
}

static void expect(const rig *r, const char *wanted)
{
    g_autofree char *seen = picture(r);
    g_autofree char *rest = g_strnfill(SECTORS - strlen(wanted), 'o');
    g_autofree char *all = g_strconcat(wanted, rest, NULL);
    cr_assert_str_eq(seen, all);
}

Test(fault, strikes_what_touches_its_range)
{
    uint8_t buf[SIZE];
    rig r = rig_new();
    fault_add((fault){
        .chain = r.c, .kind = FAULT_READ, .offset = 1024, .length = 512, .error = EIO});
    for (unsigned at_once = 0; at_once < 2; at_once++) {
        cr_assert_eq(get(&r, buf, 0, 1024, at_once), 0);
        cr_assert_eq(get(&r, buf, 1000, 25, at_once), -EIO);
        cr_assert_eq(get(&r, buf, 1535, 10, at_once), -EIO);
        cr_assert_eq(get(&r, buf, 1536, 10, at_once), 0);
        cr_assert_eq(fill(&r, 'n', 1024, 512, at_once), 0);
    }
    cr_assert_eq(fault_hits(), 4);
    rig_free(&r);
}

Test(fault, strikes_after_so_many_calls_so_many_times)
{
    rig r = rig_new();
    fault_add((fault){.kind = FAULT_FLUSH, .error = ENOSPC, .after = 2, .times = 2});
    static const int expected[] = {0, 0, -ENOSPC, -ENOSPC, 0, 0};
    for (unsigned k = 0; k < G_N_ELEMENTS(expected); k++)
        cr_assert_eq(chain_flush(r.c), expected[k]);
    fault_clear();
    fault_add((fault){.kind = FAULT_CLEAR, .error = EIO});
    cr_assert_eq(chain_discard(r.c, 0, 512), -EIO);
    cr_assert_eq(chain_write_zeroes(r.c, 0, 512), -EIO);
    expect(&r, "");
    rig_free(&r);
}

Test(fault, a_write_is_torn)
{
    rig r = rig_new();
    fault_add((fault){.kind = FAULT_WRITE, .error = EIO, .torn = 2 * SECTOR + 100});
    cr_assert_eq(fill(&r, 'n', 0, 5 * SECTOR, false), -EIO);
    expect(&r, "nn?");
    cr_assert_eq(fill(&r, 'm', SECTOR, 3 * SECTOR, true), -EIO);
    expect(&r, "nmm?");
    rig_free(&r);
}

Test(fault, a_write_is_in_shreds_and_the_same_seed_gives_the_same)
{
    g_autofree char *first = NULL;
    for (unsigned k = 0; k < 2; k++) {
        rig r = rig_new();
        fault_add((fault){.kind = FAULT_WRITE, .error = EIO, .shreds = 77});
        cr_assert_eq(fill(&r, 'n', 0, SIZE, false), -EIO);
        g_autofree char *seen = picture(&r);
        cr_assert(strchr(seen, 'n') && strchr(seen, 'o') && !strchr(seen, '?'));
        cr_assert(k == 0 || strcmp(seen, first) == 0);
        g_free(first);
        first = g_steal_pointer(&seen);
        rig_free(&r);
    }
}

Test(fault, what_is_late_is_abandoned_until_it_lands)
{
    rig r = rig_new();
    fault_add((fault){
        .chain = r.c, .kind = FAULT_WRITE, .error = ETIMEDOUT, .late = true, .times = 1});
    fault_add((fault){.chain = r.c,
                      .kind = FAULT_CLEAR,
                      .error = ETIMEDOUT,
                      .late = true,
                      .torn = SECTOR});
    cr_assert_eq(fill(&r, 'n', 0, 4 * SECTOR, false), -ETIMEDOUT);
    cr_assert_eq(chain_discard(r.c, 2 * SECTOR, 2 * SECTOR), -ETIMEDOUT);
    cr_assert_eq(fill(&r, 'm', 0, SECTOR, false), 0);
    cr_assert_eq(chain_abandoned(r.c), 2);
    expect(&r, "m");
    cr_assert_eq(fault_land(r.c), 2);
    cr_assert_eq(chain_abandoned(r.c), 0);
    expect(&r, "nn.n");
    cr_assert_eq(fault_land(NULL), 0);
    cr_assert_eq(chain_discard(r.c, 0, SECTOR), -ETIMEDOUT);
    fault_clear();
    cr_assert_eq(chain_abandoned(r.c), 0);
    cr_assert_eq(fault_land(NULL), 0);
    expect(&r, "nn.n");
    rig_free(&r);
}

Test(fault, rot_is_told_to_nobody)
{
    uint8_t buf[2 * SECTOR];
    rig r = rig_new();
    for (unsigned at_once = 0; at_once < 2; at_once++) {
        fault_add(
            (fault){.kind = FAULT_READ, .offset = SECTOR, .length = 1, .rot = 'o' ^ 'x'});
        cr_assert_eq(get(&r, buf, 0, sizeof buf, at_once), 0);
        cr_assert(buf[SECTOR - 1] == 'o' && buf[SECTOR] == 'x' && buf[SECTOR + 1] == 'o');
        expect(&r, "");
        fault_clear();
    }
    for (unsigned at_once = 0; at_once < 2; at_once++) {
        fault_add((fault){.kind = FAULT_WRITE, .rot = 'n' ^ 'x'});
        cr_assert_eq(fill(&r, 'n', at_once * SECTOR, SECTOR, at_once), 0);
        fault_clear();
    }
    expect(&r, "xx");
    rig_free(&r);
}

Test(fault, a_call_is_delayed)
{
    uint8_t byte;
    rig r = rig_new();
    fault_add((fault){.kind = FAULT_READ, .delay_ms = 20, .times = 1});
    gint64 start = g_get_monotonic_time();
    cr_assert_eq(chain_read(r.c, &byte, 0, 1), 0);
    cr_assert_geq(g_get_monotonic_time() - start, 20000);
    cr_assert_eq(fault_hits(), 1);
    rig_free(&r);
}

Test(fault, a_seed_gives_faults_of_all_kinds)
{
    unsigned seen = 0;
    uint64_t seed = 1, same = 1;
    for (unsigned k = 0; k < 200; k++) {
        fault f = fault_pick(&seed, NULL, SIZE), again = fault_pick(&same, NULL, SIZE);
        cr_assert(f.kind == again.kind && f.error == again.error && f.torn == again.torn);
        cr_assert(f.error > 0 && f.offset < SIZE && f.length <= SIZE - f.offset);
        seen |= 1u << f.kind | (unsigned)(f.shreds != 0) << 16;
    }
    cr_assert_eq(seen, 1u << FAULT_READ | 1u << FAULT_WRITE | 1u << FAULT_CLEAR |
                           1u << FAULT_FLUSH | 1u << 16);
}
