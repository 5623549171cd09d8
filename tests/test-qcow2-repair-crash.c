/*
 * A repair that does not come to its end: after each of its writes and syncs the power
 * fails, or one of its calls does. What is left opens, holds the same bytes, and is either
 * still dirty and can be repaired, or done.
 */
#include "tests/crash-file.h"
#include "tests/qcow2-fsck.h"
#include "tests/qcow2-open.h"
#include "tests/qcow2-repair.h"
#include <sys/stat.h>

#define SIZE ((size_t)4 << 20)

/* Each leaves r.qcow2 dirty, with flags, blocks and the table in need of a repair. */
static const struct {
    const char *options;
    const char *commands; /* of the shell, before it is made dirty */
    const char *spoil;    /* after it */
} images[] = {
    {"cluster_size=64k", ":", ":"},
    {"cluster_size=4k,refcount_bits=2", "qemu-img snapshot -c one r.qcow2", ":"},
    /* The table is one cluster of four, and has lost its first two blocks. */
    {"cluster_size=512,refcount_bits=64", "qemu-img snapshot -c one r.qcow2",
     "printf '\\0\\0\\0\\1' | dd of=r.qcow2 bs=1 seek=56 conv=notrunc; "
     "dd if=/dev/zero of=r.qcow2 bs=1 seek=$table count=16 conv=notrunc"},
    {"cluster_size=16k,extended_l2=on", "qemu-img bitmap --add r.qcow2 a",
     "dd if=/dev/zero of=r.qcow2 bs=1 seek=$table count=8 conv=notrunc"},
};

typedef struct rig {
    char *state, *path;
    uint8_t *content;
    uint64_t seed;
    unsigned states;
} rig;

static void read_content(const char *path, uint8_t *content)
{
    g_autoptr(GError) error = NULL;
    image *im = qcow2_open_with(qcow2_open, path, &error);
    cr_assert_not_null(im, "%s", error ? error->message : "");
    cr_assert_eq(im->size, SIZE);
    cr_assert_eq(image_read(im, content, 0, SIZE), 0);
    image_close(im);
}

static void make_image(rig *r, size_t i)
{
    repair_create_sized(images[i].options, "4M");
    support_run(
        "qemu-io -t unsafe -f qcow2 -c 'write -P 1 0 2600k' r.qcow2 >/dev/null; %s",
        images[i].commands);
    repair_make_dirty("-c 'write -P 2 300k 200k' -c 'write -P 3 3M 200k' -c flush",
                      images[i].options);
    support_run("table=$(printf '%%d' 0x$(od -An -tx1 -j48 -N8 r.qcow2 | tr -d ' ')); "
                "{ %s; } 2>/dev/null",
                images[i].spoil);
    support_run("cp r.qcow2 start.qcow2");
    read_content(r->path, r->content);
}

static uint64_t start_size(void)
{
    struct stat st;
    g_autofree char *path = support_path("start.qcow2");
    cr_assert_eq(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static rig rig_new(void)
{
    return (rig){.state = support_path("state.qcow2"),
                 .path = support_path("r.qcow2"),
                 .content = g_malloc(SIZE),
                 .seed = support_seed()};
}

static void rig_free(rig *r)
{
    g_free(r->state);
    g_free(r->path);
    g_free(r->content);
}

static void assert_clean(const char *path)
{
    qcow2_fsck result = qcow2_fsck_run(path);
    cr_assert_null(result.error, "%s", result.error);
    cr_assert(!result.dirty);
    cr_assert_eq(result.leaks, 0);
}

/* What is in `path` opens, is dirty or done, and can be repaired. */
static void assert_repairable(rig *r, const char *path, const char *name)
{
    g_autofree uint8_t *content = g_malloc(SIZE);
    qcow2_fsck result = qcow2_fsck_run(path);
    cr_assert_null(result.error, "%s", result.error);
    cr_assert(result.dirty || result.leaks == 0);
    read_content(path, content);
    cr_assert_eq(memcmp(content, r->content, SIZE), 0);
    repair_ok(name, "after a crash");
    assert_clean(path);
    read_content(path, content);
    cr_assert_eq(memcmp(content, r->content, SIZE), 0);
    r->states++;
}

static void power_failure(void *user, crash_kind kind)
{
    rig *r = user;
    (void)kind;
    for (unsigned i = 0; i < 4; i++) {
        crash_choice choice = i == 0   ? CRASH_DROP_ALL
                              : i == 1 ? CRASH_KEEP_ALL
                                       : CRASH_SOME;
        if (crash_queued(0) == 0 && i != 0)
            break;
        crash_state_save(0, r->state, choice, &r->seed);
        assert_repairable(r, r->state, "state.qcow2");
    }
}

Test(qcow2_repair_crash, a_power_failure_at_any_point)
{
    rig r = rig_new();
    for (size_t i = 0; i < G_N_ELEMENTS(images); i++) {
        g_autoptr(GError) error = NULL;
        make_image(&r, i);
        int fd = open(r.path, O_RDWR | O_CLOEXEC);
        crash_watch(fd);
        crash_set_hook(power_failure, &r);
        cr_assert(repair_fd(fd, -1, &error), "%s", error ? error->message : "");
        cr_assert_eq(crash_queued(0), 0); /* durable when it returns */
        unsigned points = crash_points();
        uint64_t end = (uint64_t)lseek(fd, 0, SEEK_END);
        crash_reset();
        close(fd);
        cr_assert_eq(end > start_size(), i >= 2); /* blocks, and once a table, are new */
        cr_assert_geq(points, 4, "%s: %u", images[i].options, points);
        assert_repairable(&r, r.path, "r.qcow2");
        qcow2_assert_clean("r.qcow2", images[i].options);
    }
    rig_free(&r);
}

/* Each call fails once; then the image is as after a crash, and the next run repairs it. */
Test(qcow2_repair_crash, a_call_that_fails)
{
    static const unsigned kinds[] = {CRASH_CHANGES, CRASH_SYNC, CRASH_READ};
    rig r = rig_new();
    for (size_t i = 0; i < G_N_ELEMENTS(images) * G_N_ELEMENTS(kinds); i++) {
        unsigned kind = kinds[i % G_N_ELEMENTS(kinds)];
        make_image(&r, i / G_N_ELEMENTS(kinds));
        for (unsigned at = 1;; at += 1 + at / 8) {
            g_autoptr(GError) error = NULL;
            support_run("cp start.qcow2 r.qcow2");
            int fd = open(r.path, O_RDWR | O_CLOEXEC);
            crash_watch(fd);
            crash_set_fault((crash_fault){.kinds = kind, .at = at, .error = EIO});
            bool ok = repair_fd(fd, -1, &error);
            bool hit = crash_fault_hits() > 0;
            crash_reset();
            close(fd);
            cr_assert_eq(ok, !hit);
            if (!hit)
                break;
            cr_assert(strstr(error->message, g_strerror(EIO)), "%s", error->message);
            assert_repairable(&r, r.path, "r.qcow2");
        }
    }
    rig_free(&r);
}
