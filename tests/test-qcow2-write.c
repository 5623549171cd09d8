/*
 * Writing qcow2 against QEMU: every kind of image takes random operations, holds after each
 * what a plain array of bytes holds, and is an image in which qemu-img check finds nothing
 * and QEMU reads the same bytes. Writes by QEMU and by us alternate.
 */
#include "tests/qcow2-model.h"
#include <criterion/criterion.h>
#include <inttypes.h>
#include <string.h>

/* Snapshots of version 2 do not tell their disk's size. */
static bool can_resize(const qcow2_variant *v)
{
    return strcmp(v->name, "snap-v2") != 0;
}

/* A raw data file is the disk. */
static void check_data_file(const qcow2_model *m, const qcow2_variant *v)
{
    if (!(v->traits & VARIANT_RAW_FILE))
        return;
    size_t length = 0;
    g_autofree char *path = support_path("%s.data", m->image);
    g_autofree uint8_t *bytes = support_load(path, &length);
    cr_assert_geq(length, m->size, "%s: data file of %zu bytes", m->what, length);
    cr_assert_eq(memcmp(bytes, m->bytes, m->size), 0, "%s: data file", m->what);
}

static void write_randomly(const qcow2_variant *v, uint64_t seed, unsigned count)
{
    qcow2_model m;
    qcow2_variant_create(v, "image.qcow2");
    qcow2_model_start(&m, v, "image.qcow2", qcow2_model_seed(v, seed));
    for (unsigned round = 0; round < 2; round++) {
        m.resizes = round > 0 && can_resize(v);
        qcow2_model_steps(&m, count);
        qcow2_model_close(&m);
        qcow2_model_check(&m);
        check_data_file(&m, v);
        qcow2_model_open(&m);
    }
    qcow2_model_stop(&m);
    qcow2_variant_remove("image.qcow2");
}

/* A quarter of the table each, for Criterion runs them side by side. */
static void write_quarter(unsigned quarter)
{
    uint64_t seed = support_seed();
    for (size_t i = quarter; i < qcow2_variants_count; i += 4)
        if (qcow2_model_is_chosen(&qcow2_variants[i]))
            write_randomly(&qcow2_variants[i], seed, qcow2_model_many(200));
}

Test(qcow2_write, every_variant_holds_what_is_written_1)
{
    write_quarter(0);
}

Test(qcow2_write, every_variant_holds_what_is_written_2)
{
    write_quarter(1);
}

Test(qcow2_write, every_variant_holds_what_is_written_3)
{
    write_quarter(2);
}

Test(qcow2_write, every_variant_holds_what_is_written_4)
{
    write_quarter(3);
}

static void write_by_qemu(const qcow2_model *m, uint64_t *seed, unsigned count)
{
    static const char *const verbs[] = {"write -P 17", "write -P 34", "write -s content",
                                        "write -z",    "write -z -u", "discard"};
    g_autoptr(GString) commands = g_string_new(NULL);
    for (unsigned i = 0; i < count; i++) {
        uint64_t sectors = m->size / 512;
        uint64_t offset = support_random(seed) % sectors;
        uint64_t length = 1 + support_random(seed) % (2 * m->cluster_size / 512 + 8);
        g_string_append_printf(commands, " -c '%s %" PRIu64 " %" PRIu64 "'",
                               verbs[support_random(seed) % G_N_ELEMENTS(verbs)],
                               offset * 512, MIN(length, sectors - offset) * 512);
    }
    support_run("qemu-io -t unsafe -f qcow2 %s %s >qemu-io.log 2>&1 || "
                "{ tail -n 3 qemu-io.log >&2; false; }",
                commands->str, m->image);
}

static void alternate(const qcow2_variant *v, uint64_t seed, unsigned rounds)
{
    qcow2_model m;
    qcow2_variant_create(v, "image.qcow2");
    qcow2_model_start(&m, v, "image.qcow2", qcow2_model_seed(v, seed));
    for (unsigned round = 0; round < rounds; round++) {
        qcow2_model_steps(&m, 60);
        qcow2_model_close(&m);
        qcow2_model_check(&m);
        write_by_qemu(&m, &m.seed, 12);
        qcow2_assert_clean(m.image, "after QEMU wrote");
        qcow2_model_load(&m);
        qcow2_model_open(&m);
        qcow2_model_verify(&m);
    }
    qcow2_model_stop(&m);
    qcow2_variant_remove("image.qcow2");
}

Test(qcow2_write, QEMU_and_we_write_in_turns)
{
    uint64_t seed = support_seed();
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        const qcow2_variant *v = &qcow2_variants[i];
        if ((v->traits & VARIANT_FEW) && qcow2_model_is_chosen(v))
            alternate(v, seed, qcow2_model_many(3));
    }
}
