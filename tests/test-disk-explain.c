/*
 * test-disk-explain.c: maps, and who holds what.
 */
#include "tests/disk-rig.h"
#include "tests/fault.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define SECTOR 512u
#define KIB    1024u
#define MIB    (1024u * 1024u)

/* ---- Explain ---- */

/* One line for each run: "offset+length: a=DIGEST* b!5 c=DIGEST", the winners starred. */
typedef struct listing {
    GString *text;
    uint64_t offset;
} listing;

static void list_row(void *opaque, const disk_explain_row *row)
{
    listing *list = opaque;
    if (row->replica_index == 0)
        g_string_append_printf(list->text, "%s%llu+%llu%s:", list->text->len ? "\n" : "",
                               (unsigned long long)row->offset,
                               (unsigned long long)row->length,
                               row->no_quorum ? " none"
                               : row->differs ? " differ"
                                              : "");
    g_string_append_printf(list->text, " %s", row->replica);
    if (row->error)
        g_string_append_printf(list->text, "!%d", row->error);
    else
        g_string_append_printf(list->text, "=%02x%02x%02x%02x", row->sha256[0],
                               row->sha256[1], row->sha256[2], row->sha256[3]);
    if (row->wins)
        g_string_append_c(list->text, '*');
    cr_assert_eq(row->extent.length, row->length);
}

static char *explain(disk *d, uint64_t offset, uint64_t length)
{
    listing list = {.text = g_string_new(NULL)};
    cr_assert_eq(disk_explain(d, offset, length, list_row, &list), 0);
    return g_string_free(list.text, FALSE);
}

static char *digest(disk_rig *rig, uint64_t offset, size_t length, uint8_t mask)
{
    return disk_rig_digest(rig, offset, length, mask);
}

Test(disk_explain, agreeing_run_grows_across_requests)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 5 * MIB / 2 + 100);
    g_autofree char *same = digest(rig, 0, rig->size, 0);
    g_autofree char *wanted = g_strdup_printf(
        "0+%llu: a=%s* b=%s* c=%s*", (unsigned long long)rig->size, same, same, same);
    g_autofree char *text = explain(rig->disk, 0, rig->size);
    cr_assert_str_eq(text, wanted);
}

Test(disk_explain, who_holds_what)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, 2 * MIB);
    disk_rig_corrupt(rig, 1, MIB - SECTOR, 2 * SECTOR, 5); /* over a request's end */
    disk_rig_corrupt(rig, 0, MIB + 4 * SECTOR, SECTOR, 6);
    disk_rig_corrupt(rig, 2, MIB + 4 * SECTOR, SECTOR, 7);
    g_autofree char *r0 = digest(rig, MIB - 2 * SECTOR, SECTOR, 0);
    g_autofree char *r1 = digest(rig, MIB - SECTOR, 2 * SECTOR, 0);
    g_autofree char *w1 = digest(rig, MIB - SECTOR, 2 * SECTOR, 5);
    g_autofree char *r2 = digest(rig, MIB + SECTOR, 3 * SECTOR, 0);
    g_autofree char *a3 = digest(rig, MIB + 4 * SECTOR, SECTOR, 6);
    g_autofree char *b3 = digest(rig, MIB + 4 * SECTOR, SECTOR, 0);
    g_autofree char *c3 = digest(rig, MIB + 4 * SECTOR, SECTOR, 7);
    g_autofree char *wanted =
        g_strdup_printf("1047552+512: a=%s* b=%s* c=%s*\n"
                        "1048064+1024 differ: a=%s* b=%s c=%s*\n"
                        "1049088+1536: a=%s* b=%s* c=%s*\n"
                        "1050624+512 none: a=%s b=%s c=%s",
                        r0, r0, r0, r1, w1, r1, r2, r2, r2, a3, b3, c3);
    g_autofree char *text = explain(rig->disk, MIB - 2 * SECTOR + 1, 7 * SECTOR - 2);
    cr_assert_str_eq(text, wanted);
    cr_assert_eq(disk_rig_count(rig, "", ""), 0); /* it writes no journal */
    disk_counters counters;
    disk_get_counters(rig->disk, &counters);
    cr_assert_eq(counters.divergences + counters.quorum_failures + counters.reads, 0);
}

Test(disk_explain, failed_and_stale_replicas)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_add((fault){.chain = disk_chain(rig->disk, 0),
                      .kind = FAULT_READ,
                      .offset = 1024,
                      .length = 1,
                      .error = EIO});
    g_autofree char *first = digest(rig, 0, 1024, 0);
    g_autofree char *second = digest(rig, 1024, 512, 0);
    g_autofree char *wanted =
        g_strdup_printf("0+1024: a=%s* b=%s* c=%s*\n1024+512 differ: a!5 b=%s* c=%s*",
                        first, first, first, second, second);
    g_autofree char *text = explain(rig->disk, 0, 1536);
    cr_assert_str_eq(text, wanted);

    fault_clear();
    fault_add(
        (fault){.chain = disk_chain(rig->disk, 2), .kind = FAULT_FLUSH, .error = 5});
    cr_assert_eq(disk_flush(rig->disk), 0);
    g_autofree char *stale =
        g_strdup_printf("0+1024 differ: a=%s* b=%s* c!%d", first, first, ESTALE);
    g_autofree char *after = explain(rig->disk, 0, 1024);
    cr_assert_str_eq(after, stale);
}

Test(disk_explain, range_is_checked)
{
    g_autoptr(disk_rig) rig = disk_rig_new(2, 2, 4096);
    listing list = {.text = g_string_new(NULL)};
    cr_assert_eq(disk_explain(rig->disk, 4096, 1, list_row, &list), -EINVAL);
    cr_assert_eq(disk_explain(rig->disk, UINT64_MAX, 2, list_row, &list), -EINVAL);
    cr_assert_eq(disk_explain(rig->disk, 0, DISK_EXPLAIN_MAX + 1, list_row, &list),
                 -EINVAL);
    cr_assert_eq(disk_explain(rig->disk, 0, 0, list_row, &list), 0);
    cr_assert_eq(list.text->len, 0);
    g_string_free(list.text, TRUE);
}

/* ---- Chains of qcow2 ---- */

/* Three replicas, each an overlay over a base of its own; the same guest data. Clusters
 * of 64 KiB: 0 base, 1 overlay, 2 zeroed in the overlay, 3 in neither. */
static disk *open_chains(void)
{
    for (const char *name = "abc"; *name; name++) {
        support_run("qemu-img create -q -f qcow2 %c-base.qcow2 256k && "
                    "qemu-img create -q -f qcow2 -F qcow2 -b %c-base.qcow2 %c.qcow2",
                    *name, *name, *name);
        support_run("qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 1 128k 64k' "
                    "%c-base.qcow2 >/dev/null",
                    *name);
        support_run("qemu-io -f qcow2 -c 'write -P 2 64k 64k' -c 'write -z 128k 64k' "
                    "%c.qcow2 >/dev/null",
                    *name);
    }
    char *paths[] = {support_path("a.qcow2"), support_path("b.qcow2"),
                     support_path("c.qcow2")};
    disk_options *options = disk_rig_options(paths, 3, "qcow2");
    options->read_only = true;
    options->decoder = CHAIN_DECODER_NATIVE;
    g_autoptr(GError) error = NULL;
    disk *d = disk_open(options, NULL, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "no error");
    disk_options_free(options);
    for (unsigned i = 0; i < 3; i++)
        g_free(paths[i]);
    return d;
}

static void expect_byte(disk *d, uint64_t offset, size_t length, uint8_t byte)
{
    const void *data;
    cr_assert_eq(disk_read(d, offset, length, &data), 0);
    for (size_t k = 0; k < length; k++)
        cr_assert_eq(((const uint8_t *)data)[k], byte);
}

static void first_of_b(void *opaque, const disk_explain_row *row)
{
    disk_explain_row *first = opaque;
    if (row->replica_index == 1 && !first->replica)
        *first = *row;
}

Test(disk_explain, chains_of_qcow2)
{
    disk *d = open_chains();
    expect_byte(d, 0, 64 * KIB, 1);
    expect_byte(d, 64 * KIB, 64 * KIB, 2);
    expect_byte(d, 128 * KIB, 128 * KIB, 0);
    bool zero;
    uint64_t length;
    cr_assert_eq(disk_map(d, 128 * KIB, 128 * KIB, &zero, &length), 0);
    cr_assert(zero);
    cr_assert_eq(disk_map(d, 0, 256 * KIB, &zero, &length), 0);
    cr_assert(!zero);

    disk_explain_row row = {0};
    cr_assert_eq(disk_explain(d, 4096, 512, first_of_b, &row), 0);
    cr_assert_eq(row.extent.layer, 1); /* held by b's base, where its data lies */
    cr_assert(g_str_has_suffix(row.layer_file, "b-base.qcow2"));
    cr_assert(row.extent.has_host);

    /* One byte of b's base goes bad, found by what explain said. */
    g_autofree char *base = support_path("b-base.qcow2");
    support_poke(base, row.extent.host_offset + 10, "\xff", 1);
    expect_byte(d, 0, 64 * KIB, 1);
    replica_status status;
    disk_replica_status(d, 1, &status);
    cr_assert_eq(status.divergent_bytes, 512);
    cr_assert_str_eq(status.format, "qcow2");

    g_autofree char *text = explain(d, 0, 256 * KIB);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    cr_assert_eq(g_strv_length(lines), 6, "%s", text); /* cut where extents change */
    cr_assert(g_str_has_prefix(lines[1], "4096+512 differ:"));
    cr_assert(g_str_has_prefix(lines[3], "65536+65536:"));
    disk_close(d);
}

/* ---- Maps ---- */

Test(disk_explain, map_is_zero_only_if_all_say_so)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    bool zero = true;
    uint64_t length = 0;
    cr_assert_eq(disk_map(rig->disk, 4096, MIB - 4096, &zero, &length), 0);
    cr_assert(!zero);
    cr_assert_eq(length, MIB - 4096);
    cr_assert_eq(disk_discard(rig->disk, 64 * KIB, 128 * KIB), 0);
    cr_assert_eq(disk_map(rig->disk, 64 * KIB, MIB - 64 * KIB, &zero, &length), 0);
    if (!zero)
        cr_skip_test("this file system punches no holes");
    cr_assert_eq(length, 128 * KIB);
    cr_assert_eq(disk_map(rig->disk, 128 * KIB, 4096, &zero, &length), 0);
    cr_assert(zero);
    cr_assert_eq(length, 4096);

    support_poke(rig->paths[1], 128 * KIB, "x", 1); /* b holds data in the hole */
    cr_assert_eq(disk_map(rig->disk, 64 * KIB, MIB - 64 * KIB, &zero, &length), 0);
    cr_assert(zero);
    cr_assert_eq(length, 64 * KIB);
    cr_assert_eq(disk_map(rig->disk, 128 * KIB, 64 * KIB, &zero, &length), 0);
    cr_assert(!zero);
    cr_assert_leq(length, 64 * KIB);
    cr_assert_eq(disk_map(rig->disk, 0, MIB + 1, &zero, &length), -EINVAL);
    cr_assert_eq(disk_map(rig->disk, 0, 0, &zero, &length), -EINVAL);
}

Test(disk_explain, allocated_follows_the_files)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(disk_flush(rig->disk), 0);
    uint64_t before = disk_allocated(rig->disk);
    cr_assert_geq(before, MIB);
    cr_assert_eq(disk_discard(rig->disk, 0, MIB), 0);
    cr_assert_leq(disk_allocated(rig->disk), before);
    cr_assert_eq(disk_resize(rig->disk, 4 * MIB), 0);
    for (unsigned k = 0; k < 4; k++)
        cr_assert_eq(disk_write(rig->disk, k * MIB, MIB, rig->model), 0);
    cr_assert_eq(disk_flush(rig->disk), 0);
    cr_assert_geq(disk_allocated(rig->disk), 4 * MIB);
}
