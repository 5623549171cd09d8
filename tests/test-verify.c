/*
 * The verification of real images: every decoder between it and the files. What it makes of
 * maps, errors and groups is tested with test-verify-model; the command with tests/e2e.
 */
#include "quorum/verify.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define SIZE    (4u << 20)
#define SECTORS (SIZE / 512)

static disk *open_set(const char *const *names, unsigned n, chain_decoder decoder)
{
    disk_options *options = disk_options_new();
    options->name = g_strdup("disk");
    options->read_only = true;
    options->decoder = decoder;
    for (unsigned i = 0; i < n; i++) {
        replica_options *replica = replica_options_new();
        replica->name = g_strdup_printf("r%u", i);
        replica->source = support_path("%s", names[i]);
        replica->path = g_strdup(replica->source);
        replica->decoder = -1;
        g_ptr_array_add(options->replicas, replica);
    }
    GError *error = NULL;
    disk *d = disk_open(options, NULL, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "");
    disk_options_free(options);
    return d;
}

typedef struct found {
    uint64_t winners[SECTORS], losers[SECTORS], failed[SECTORS];
} found;

static void mark(void *opaque, const verify_range *range)
{
    found *f = opaque;
    for (uint64_t s = range->offset / 512; s * 512 < range->offset + range->length; s++) {
        f->winners[s] = range->winners;
        f->losers[s] = range->losers;
        f->failed[s] = range->failed;
    }
}

static int verify_set(const char *const *names, unsigned n, chain_decoder decoder,
                      found *ret_found, verify_summary *ret_summary)
{
    disk *d = open_set(names, n, decoder);
    memset(ret_found, 0, sizeof *ret_found);
    verify_options options = {.on_range = mark, .opaque = ret_found};
    verify_run(d, &options, ret_summary);
    disk_close(d);
    return verify_exit_code(ret_summary);
}

/* The replicas' contents, damaged at random places, in files of four kinds. */
typedef struct set {
    uint8_t *data[3];
} set;

static void set_make(set *s, uint64_t *seed)
{
    for (unsigned i = 0; i < 3; i++) {
        s->data[i] = g_malloc0(SIZE);
        support_pattern(s->data[i], SIZE / 3, 0, 1);
        support_pattern(s->data[i] + SIZE / 2, SIZE / 4, SIZE / 2, 1);
    }
    for (unsigned k = 0; k < 40; k++) {
        uint8_t *data = s->data[support_random(seed) % 3];
        uint64_t at = support_random(seed) % SIZE;
        uint64_t length = 1 + support_random(seed) % (k % 8 ? 2000 : 200000);
        memset(data + at, (int)(support_random(seed) % 3), MIN(length, SIZE - at));
    }
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *path = support_path("%u.raw", i);
        support_save(path, s->data[i], SIZE);
        support_run("cp --sparse=always %u.raw holes%u.raw &&"
                    "qemu-img convert -q -f raw -O qcow2 %u.raw %u.qcow2 &&"
                    "qemu-img convert -q -c -f raw -O qcow2 -o cluster_size=4k %u.raw "
                    "z%u.qcow2",
                    i, i, i, i, i, i);
    }
}

static void set_clear(set *s)
{
    for (unsigned i = 0; i < 3; i++)
        g_free(s->data[i]);
}

static void assert_found(const set *s, const found *f)
{
    for (unsigned sector = 0; sector < SECTORS; sector++) {
        const uint8_t *a = s->data[0] + sector * 512, *b = s->data[1] + sector * 512,
                      *c = s->data[2] + sector * 512;
        bool ab = !memcmp(a, b, 512), bc = !memcmp(b, c, 512), ac = !memcmp(a, c, 512);
        uint64_t losers = ab && bc ? 0 : ab ? 4 : bc ? 1 : ac ? 2 : 0;
        uint64_t winners = losers ? 7 & ~losers : 0;
        cr_assert_eq(f->losers[sector], losers, "sector %u", sector);
        cr_assert_eq(f->winners[sector], winners, "sector %u", sector);
        cr_assert_eq(f->failed[sector], 0u);
    }
}

Test(verify, R2_random_damage_is_found_exactly_in_every_kind_of_image)
{
    static const char *const sets[][3] = {
        {"0.raw", "1.raw", "2.raw"},
        {"holes0.raw", "holes1.raw", "holes2.raw"},
        {"0.qcow2", "1.qcow2", "2.qcow2"},
        {"z0.qcow2", "holes1.raw", "2.qcow2"},
    };
    uint64_t seed = support_seed();
    found *f = g_new(found, 1);
    for (unsigned round = 0; round < 3; round++) {
        set s;
        set_make(&s, &seed);
        for (unsigned i = 0; i < G_N_ELEMENTS(sets); i++) {
            for (unsigned decoder = 0; decoder < 2; decoder++) {
                verify_summary summary;
                verify_set(sets[i], 3,
                           decoder ? CHAIN_DECODER_NATIVE : CHAIN_DECODER_AUTO, f,
                           &summary);
                assert_found(&s, f);
                cr_assert_eq(summary.checked_bytes + summary.skipped_bytes, SIZE);
            }
        }
        set_clear(&s);
    }
    g_free(f);
}

Test(verify, as_many_replicas_as_there_may_be)
{
    char names[VOTE_REPLICAS_MAX][16];
    const char *list[VOTE_REPLICAS_MAX];
    support_run("head -c %u /dev/urandom >source && printf '\\000' >>source", SIZE - 1);
    for (unsigned i = 0; i < VOTE_REPLICAS_MAX; i++) {
        snprintf(names[i], sizeof names[i], "n%u.raw", i);
        list[i] = names[i];
        support_run("cp source n%u.raw", i);
    }
    g_autofree char *path = support_path("n63.raw");
    support_poke(path, SIZE - 1, "\1", 1);
    found *f = g_new(found, 1);
    verify_summary summary;
    int code = verify_set(list, VOTE_REPLICAS_MAX, CHAIN_DECODER_AUTO, f, &summary);
    cr_assert_eq(code, 1);
    cr_assert_eq(summary.differing_bytes, 512u);
    cr_assert_eq(f->losers[SECTORS - 1], UINT64_C(1) << 63);
    cr_assert_eq(f->winners[SECTORS - 1], ~(UINT64_C(1) << 63));
    g_free(f);
}

Test(verify, R3_a_raw_file_that_shrinks_is_unreadable_from_there_on)
{
    static const char *const names[] = {"s0.raw", "s1.raw", "s2.raw"};
    support_run("head -c %u /dev/urandom >s0.raw && cp s0.raw s1.raw && cp s0.raw s2.raw",
                SIZE);
    disk *d = open_set(names, 3, CHAIN_DECODER_AUTO);
    support_run("truncate -s 2M s1.raw");
    found *f = g_new0(found, 1);
    verify_summary summary;
    verify_options options = {.on_range = mark, .opaque = f};
    verify_run(d, &options, &summary);
    disk_close(d);
    for (unsigned sector = 0; sector < SECTORS; sector++)
        cr_assert_eq(f->failed[sector] | f->losers[sector],
                     sector < SECTORS / 2 ? 0u : 2u, "sector %u", sector);
    g_free(f);
}
