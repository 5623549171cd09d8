/*
 * Internal snapshots of an image that we write stay what they were, and when they go all
 * that they shared is given back.
 */
#include "tests/qcow2-model.h"
#include <criterion/criterion.h>
#include <string.h>

/* QEMU does not where that takes one reference more than there are, nor with bitmaps. */
static bool goes_back(const qcow2_variant *v)
{
    return !(v->traits & VARIANT_NO_SNAPSHOT) && strncmp(v->name, "bitmap", 6) != 0;
}

/* What the disk is when it goes back to a snapshot, also to that one's size. */
static void read_snapshot(const qcow2_variant *v, const char *name, const char *to)
{
    if (!goes_back(v)) {
        support_run("qemu-img convert -f qcow2 -l %s -O raw image.qcow2 %s", name, to);
        return;
    }
    support_run("cp --sparse=always image.qcow2 back.qcow2 && "
                "qemu-img snapshot -a %s back.qcow2 && "
                "qemu-img convert -f qcow2 -O raw back.qcow2 %s",
                name, to);
}

static void keep_snapshot(const qcow2_variant *v, const char *name)
{
    g_autofree char *to = g_strdup_printf("image.qcow2.snap-%s", name);
    read_snapshot(v, name, to);
}

static void assert_snapshot(const qcow2_variant *v, const char *name)
{
    read_snapshot(v, name, "back.raw");
    cr_assert_eq(support_try("cmp back.raw image.qcow2.snap-%s", name), 0,
                 "%s: snapshot %s changed", v->name, name);
}

static GPtrArray *snapshot_names(void)
{
    g_autofree char *text = support_output(
        "qemu-img info --output=json image.qcow2 | jq -r '.snapshots[]?.name'");
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    for (char **line = lines; *line; line++)
        if (**line)
            g_ptr_array_add(names, g_strdup(*line));
    return names;
}

/* Snapshots of version 2 do not tell their disk's size. */
static bool can_resize(const qcow2_variant *v)
{
    return strcmp(v->name, "snap-v2") != 0 && goes_back(v);
}

/* After each round of writes the snapshots are as they were, and one more is taken. */
static void write_under_snapshots(const qcow2_variant *v, uint64_t seed)
{
    qcow2_model m;
    qcow2_variant_create(v, "image.qcow2");
    g_autoptr(GPtrArray) names = snapshot_names();
    for (guint i = 0; i < names->len; i++)
        keep_snapshot(v, names->pdata[i]);
    qcow2_model_start(&m, v, "image.qcow2", qcow2_model_seed(v, seed));
    for (unsigned round = 0; round < 2; round++) {
        m.resizes = round == 1 && can_resize(v);
        qcow2_model_steps(&m, qcow2_model_many(100));
        qcow2_model_close(&m);
        qcow2_model_check(&m);
        for (guint i = 0; i < names->len; i++)
            assert_snapshot(v, names->pdata[i]);
        if (!(v->traits & VARIANT_NO_SNAPSHOT)) {
            char *name = g_strdup_printf("round%u", round);
            support_run("qemu-img snapshot -c %s image.qcow2", name);
            g_ptr_array_add(names, name);
            keep_snapshot(v, name);
        }
        qcow2_model_open(&m);
    }
    qcow2_model_stop(&m);
    /* What they shared is given back when they go. */
    for (guint i = 0; i < names->len; i++)
        support_run("qemu-img snapshot -d %s image.qcow2", (char *)names->pdata[i]);
    qcow2_assert_clean("image.qcow2", v->name);
    qcow2_variant_remove("image.qcow2");
}

Test(qcow2_write_snapshots, snapshots_stay_as_they_are)
{
    uint64_t seed = support_seed();
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        const qcow2_variant *v = &qcow2_variants[i];
        if ((v->traits & VARIANT_SNAPSHOTS) && qcow2_model_is_chosen(v))
            write_under_snapshots(v, seed);
    }
}

Test(qcow2_write_snapshots, first_snapshot_of_an_image_stays_as_it_is)
{
    static const char *const names[] = {"c512",   "ext-raw", "lazy",   "zstd-4k",
                                        "on-raw", "bitmap",  "c4k-r4", "metadata"};
    uint64_t seed = support_seed();
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        if (qcow2_model_is_chosen(qcow2_variant_find(names[i])))
            write_under_snapshots(qcow2_variant_find(names[i]), seed);
}
