/*
 * Images whose tables do not fit into the memory that is kept for them, and writing that
 * goes on for long without a flush.
 */
#include "tests/qcow2-write-support.h"

#define GIB ((uint64_t)1 << 30)

/* A disk on which few sectors were written: where, and with which pattern. */
typedef struct sparse_disk {
    image *im;
    GHashTable *tags; /* sector -> tag */
    GArray *sectors;  /* uint64_t, each once */
    uint64_t seed;
} sparse_disk;

static void write_sector(sparse_disk *d, uint64_t sector)
{
    uint64_t tag = 1 + support_random(&d->seed) % 1000000;
    write_pattern(d->im, sector * 512, 512, tag);
    if (!g_hash_table_contains(d->tags, GSIZE_TO_POINTER(sector)))
        g_array_append_val(d->sectors, sector);
    g_hash_table_insert(d->tags, GSIZE_TO_POINTER(sector), GSIZE_TO_POINTER(tag));
}

static void discard_cluster(sparse_disk *d, uint64_t sector, uint64_t cluster_size)
{
    uint64_t per_cluster = cluster_size / 512, first = sector - sector % per_cluster;
    cr_assert_eq(image_discard(d->im, first * 512, cluster_size), 0);
    for (uint64_t i = first; i < first + per_cluster; i++)
        if (g_hash_table_contains(d->tags, GSIZE_TO_POINTER(i)))
            g_hash_table_insert(d->tags, GSIZE_TO_POINTER(i), NULL);
}

static void check_sector(const sparse_disk *d, uint64_t sector)
{
    uint64_t tag =
        GPOINTER_TO_SIZE(g_hash_table_lookup(d->tags, GSIZE_TO_POINTER(sector)));
    if (tag)
        assert_pattern(d->im, sector * 512, 512, tag);
    else
        assert_zero(d->im, sector * 512, 512);
}

static uint64_t old_sector(sparse_disk *d)
{
    return g_array_index(d->sectors, uint64_t,
                         support_random(&d->seed) % d->sectors->len);
}

static void write_everywhere(const char *options, uint64_t size, uint64_t cluster_size,
                             unsigned count, uint64_t *seed)
{
    g_autofree char *commands =
        g_strdup_printf("s=%" PRIu64 "; create -o %s", size, options);
    make(commands);
    sparse_disk d = {.im = open_written(),
                     .tags = g_hash_table_new(NULL, NULL),
                     .sectors = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
                     .seed = *seed};
    for (unsigned i = 0; i < count; i++) {
        write_sector(&d, support_random(&d.seed) % (size / 512));
        check_sector(&d, old_sector(&d));
        if (support_random(&d.seed) % 8 == 0)
            discard_cluster(&d, old_sector(&d), cluster_size);
        if (support_random(&d.seed) % 2000 == 0)
            cr_assert_eq(image_flush(d.im), 0);
    }
    for (guint i = 0; i < d.sectors->len; i++)
        check_sector(&d, g_array_index(d.sectors, uint64_t, i));
    close_clean(d.im);
    d.im = open_written();
    for (guint i = 0; i < d.sectors->len; i++)
        check_sector(&d, g_array_index(d.sectors, uint64_t, i));
    close_clean(d.im);
    *seed = d.seed;
    g_hash_table_unref(d.tags);
    g_array_unref(d.sectors);
    qcow2_variant_remove(file);
}

Test(qcow2_write_large, tables_that_do_not_fit_into_memory)
{
    uint64_t seed = support_seed();
    write_everywhere("cluster_size=4k", 64 * GIB, 4096, 12000, &seed);
    write_everywhere("cluster_size=4k,lazy_refcounts=on", 64 * GIB, 4096, 12000, &seed);
    write_everywhere("cluster_size=16k,extended_l2=on", 512 * GIB, 16384, 6000, &seed);
}

/* What is freed is given out again although nobody ever flushes. */
Test(qcow2_write_large, freed_clusters_are_used_again_without_a_flush)
{
    static const char *const options[] = {"create -o cluster_size=2M", "create",
                                          "create -o lazy_refcounts=on"};
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        g_autofree char *commands = g_strdup_printf("s=16M; %s", options[i]);
        make(commands);
        image *im = open_written();
        for (unsigned round = 0; round < 24; round++) {
            for (uint64_t at = 0; at < 16 * MIB; at += 4 * MIB)
                write_pattern(im, at, 4 * MIB, round);
            cr_assert_eq(image_discard(im, 0, 16 * MIB), 0);
        }
        cr_assert_leq(file_stat().st_size, 160 * (off_t)MIB, "%s: %lld", options[i],
                      (long long)file_stat().st_size);
        write_pattern(im, MIB, 100, 5);
        assert_pattern(im, MIB, 100, 5);
        close_clean(im);
    }
}
