/*
 * The checker that stands in for qemu-img check, against qemu-img check; and the model of
 * what a crash may leave.
 */
#include "tests/disk-model.h"
#include "tests/qcow2-fsck.h"
#include "tests/qcow2-variants.h"
#include <criterion/criterion.h>
#include <string.h>
#include <sys/stat.h>

#define KIB     1024u
#define CLUSTER (64u * KIB)
#define COPIED  ((uint64_t)1 << 63)

Test(qcow2_fsck, finds_nothing_in_what_QEMU_made)
{
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        const qcow2_variant *v = &qcow2_variants[i];
        if (!(v->traits & VARIANT_FEW))
            continue;
        qcow2_variant_create(v, "i");
        g_autofree char *path = support_path("i");
        qcow2_fsck result = qcow2_fsck_run(path);
        cr_assert_null(result.error, "%s: %s", v->name, result.error);
        cr_assert_eq(result.leaks, 0, "%s", v->name);
        cr_assert(!result.dirty);
        qcow2_variant_remove("i");
    }
}

/* An image with two data clusters, and where what is in it lies. */
typedef struct victim {
    char *path;
    uint64_t l1, l2, block, size;
} victim;

static uint64_t word_at(const victim *v, uint64_t offset)
{
    size_t length;
    uint64_t word;
    g_autofree uint8_t *file = support_load(v->path, &length);
    cr_assert_leq(offset + 8, length);
    memcpy(&word, file + offset, 8);
    return GUINT64_FROM_BE(word);
}

static void put_word(const victim *v, uint64_t offset, uint64_t word)
{
    word = GUINT64_TO_BE(word);
    support_poke(v->path, offset, &word, 8);
}

static void put_refcount(const victim *v, uint64_t cluster, uint16_t refcount)
{
    refcount = GUINT16_TO_BE(refcount);
    support_poke(v->path, v->block + 2 * cluster, &refcount, 2);
}

static victim victim_new(void)
{
    victim v = {.path = support_path("v")};
    struct stat st;
    support_run("rm -f v; qemu-img create -q -f qcow2 v 2M");
    support_run(
        "qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 2 64k 64k' v >/dev/null");
    cr_assert_eq(stat(v.path, &st), 0);
    v.size = (uint64_t)st.st_size;
    v.l1 = word_at(&v, 40);
    v.l2 = word_at(&v, v.l1) & ~COPIED;
    v.block = word_at(&v, word_at(&v, 48));
    return v;
}

/* `status`: of qemu-img check: 0 nothing, 2 corrupt, 3 leaks. */
static void assert_found(victim *v, int status, const char *text)
{
    qcow2_fsck result = qcow2_fsck_run(v->path);
    cr_assert_eq(support_try("qemu-img check -q v >/dev/null 2>&1"), status, "qemu: %s",
                 text);
    cr_assert_eq(result.error != NULL, status == 2, "%s: %s", text, result.error);
    cr_assert(!result.error || strstr(result.error, text), "'%s' is not in: %s", text,
              result.error);
    cr_assert_eq(result.leaks > 0, status == 3, "%s", text);
    g_free(result.error);
    g_free(v->path);
}

Test(qcow2_fsck, clean)
{
    victim v = victim_new();
    assert_found(&v, 0, "");
}

Test(qcow2_fsck, a_refcount_too_low)
{
    victim v = victim_new();
    uint64_t word = word_at(&v, v.l2);
    put_word(&v, v.l2, word & ~COPIED);
    put_refcount(&v, (word & ~COPIED) / CLUSTER, 0);
    assert_found(&v, 2, "refcount 0, references 1");
}

Test(qcow2_fsck, COPIED_that_is_not_so)
{
    victim v = victim_new();
    put_refcount(&v, (word_at(&v, v.l2) & ~COPIED) / CLUSTER, 2);
    assert_found(&v, 2, "COPIED is 1");
    v = victim_new();
    put_word(&v, v.l2, word_at(&v, v.l2) & ~COPIED);
    assert_found(&v, 2, "COPIED is 0");
    v = victim_new();
    put_word(&v, v.l1, word_at(&v, v.l1) & ~COPIED);
    assert_found(&v, 2, "L2 table");
}

Test(qcow2_fsck, leaks)
{
    victim v = victim_new();
    put_refcount(&v, v.size / CLUSTER - 1, 1);
    put_word(&v, v.l2 + 8, 0);
    assert_found(&v, 3, "");
}

Test(qcow2_fsck, a_cluster_used_twice)
{
    victim v = victim_new();
    put_word(&v, v.l2 + 8, word_at(&v, v.l2));
    assert_found(&v, 2, "is data and data");
    v = victim_new();
    put_word(&v, v.l2 + 8, v.l1 | COPIED);
    assert_found(&v, 2, "is an L1 table and data");
}

Test(qcow2_fsck, behind_the_end)
{
    victim v = victim_new();
    put_word(&v, v.l2 + 8, (v.size / CLUSTER + 3) * CLUSTER | COPIED);
    qcow2_fsck result = qcow2_fsck_run(v.path);
    cr_assert_not_null(result.error);
    g_free(result.error);
    g_free(v.path);
}

/* ---- The model ----------------------------------------------------------------------- */

static disk_model *small_model(void)
{
    uint8_t content[2 * 512];
    memset(content, 'o', sizeof content);
    return disk_model_new(content, sizeof content, 4 * 512);
}

/* One character for each sector. */
static bool may_leave(const disk_model *m, const char *picture)
{
    uint8_t content[4 * 512];
    for (size_t i = 0; picture[i]; i++)
        memset(content + 512 * i, picture[i] == '.' ? 0 : picture[i], 512);
    g_autofree char *wrong = disk_model_crashed(m, content, 512 * strlen(picture));
    return !wrong;
}

static void change(disk_model *m, char byte, uint64_t offset, uint64_t length, bool done)
{
    uint8_t buf[2 * 512];
    memset(buf, byte, sizeof buf);
    disk_model_begin(m, byte ? buf : NULL, offset, length);
    disk_model_end(m, done);
}

static bool sees(disk_model *m, char byte, uint64_t sector)
{
    uint8_t buf[512];
    memset(buf, byte, sizeof buf);
    g_autofree char *wrong = disk_model_see(m, buf, sector * 512, 512);
    return !wrong;
}

Test(disk_model, a_crash_leaves_any_version_since_the_flush)
{
    disk_model *m = small_model();
    change(m, 'a', 0, 1024, true);
    change(m, 'b', 0, 512, true);
    cr_assert(may_leave(m, "oo") && may_leave(m, "ao") && may_leave(m, "ba"));
    cr_assert(!may_leave(m, "ob") && !may_leave(m, "co") && !may_leave(m, ".o"));
    disk_model_flushed(m);
    cr_assert(may_leave(m, "ba"));
    cr_assert(!may_leave(m, "aa") && !may_leave(m, "bo") && !may_leave(m, "oa"));
    change(m, 0, 512, 512, true);
    cr_assert(may_leave(m, "b.") && may_leave(m, "ba"));
    disk_model_free(m);
}

Test(disk_model, a_write_under_way_may_be_there)
{
    uint8_t buf[512];
    disk_model *m = small_model();
    memset(buf, 'a', sizeof buf);
    disk_model_begin(m, buf, 512, 512);
    cr_assert(may_leave(m, "oo") && may_leave(m, "oa") && !may_leave(m, "ao"));
    disk_model_end(m, true);
    disk_model_free(m);
}

Test(disk_model, W3_a_failed_write_is_old_or_new_and_stays_that)
{
    disk_model *m = small_model();
    change(m, 'a', 0, 1024, false);
    disk_model_flushed(m);
    cr_assert(may_leave(m, "oa") && may_leave(m, "ao") && !may_leave(m, "bo"));
    cr_assert(sees(m, 'a', 0) && sees(m, 'o', 1));
    cr_assert(!sees(m, 'o', 0));
    disk_model_free(m);
    m = small_model();
    change(m, 'a', 0, 1024, true);
    cr_assert(!sees(m, 'o', 0));
    disk_model_free(m);
}

static bool may_leave_bytes(const disk_model *m, const uint8_t *content)
{
    g_autofree char *wrong = disk_model_crashed(m, content, 1024);
    return !wrong;
}

Test(disk_model, parts_of_a_sector_change_every_version)
{
    uint8_t content[1024];
    disk_model *m = small_model();
    change(m, 'a', 0, 512, false);
    change(m, 'b', 0, 500, true);
    memset(content, 'b', 500);
    memset(content + 500, 'o', 524);
    cr_assert(may_leave_bytes(m, content));
    cr_assert_null(disk_model_see(m, content, 0, 1024));
    cr_assert(!sees(m, 'a', 0));
    content[510] = 'a'; /* byte by byte, because the change was not of whole sectors */
    content[2] = 'o';
    cr_assert(may_leave_bytes(m, content));
    content[511] = 'b';
    cr_assert(!may_leave_bytes(m, content));
    disk_model_free(m);
    m = small_model();
    change(m, 'a', 0, 512, false);
    memset(content, 'a', 512);
    cr_assert(may_leave_bytes(m, content));
    content[2] = 'o';
    cr_assert(!may_leave_bytes(m, content));
    disk_model_free(m);
}

Test(disk_model, sizes)
{
    char below[3 * 512];
    memset(below, 'b', sizeof below);
    disk_model *m = small_model();
    disk_model_begin_resize(m, 3 * 512, NULL, 0);
    cr_assert(may_leave(m, "oo") && may_leave(m, "oo.") && !may_leave(m, "ooo"));
    disk_model_end(m, true);
    disk_model_flushed(m);
    cr_assert(may_leave(m, "oo.") && !may_leave(m, "oo") && !may_leave(m, "oo.."));
    disk_model_begin_resize(m, 512, (const uint8_t *)below, sizeof below);
    cr_assert(may_leave(m, "obb") && may_leave(m, "o.b") && !may_leave(m, "b"));
    disk_model_end(m, true);
    disk_model_begin_resize(m, 2 * 512, NULL, 0);
    disk_model_end(m, true);
    cr_assert(may_leave(m, "oo") && may_leave(m, "o") && may_leave(m, "oo.") &&
              may_leave(m, "o."));
    cr_assert_null(disk_model_see_size(m, 2 * 512));
    cr_assert(sees(m, 0, 1) && !sees(m, 'o', 1));
    disk_model_free(m);
}
