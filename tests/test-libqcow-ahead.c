/*
 * Reading ahead from the decoder process, and into memory that it lends: the bytes are
 * those of a plain read, whatever was announced, and whatever becomes of the process.
 */
#include "tests/libqcow-open.h"
#include <signal.h>
#include <sys/wait.h>

typedef struct source {
    image *im;
    uint8_t *want;
    size_t length;
} source;

static source source_open(void)
{
    source_make("source.raw");
    support_run("qemu-img convert -f raw -O qcow2 source.raw a.qcow2");
    g_autofree char *path = support_path("source.raw");
    source src = {0};
    src.want = support_load(path, &src.length);
    src.im = run_open("a.qcow2");
    return src;
}

static void source_close(source *src)
{
    image_close(src->im);
    g_free(src->want);
}

typedef struct range {
    uint8_t *buf;
    uint64_t offset;
    size_t length;
} range;

#define PART_MAX 400000u
#define RANGES   (LIBQCOW_SLOTS + 2)

/* `k`: each range has a place of its own, because what was announced may still be written. */
static range range_random(const source *src, uint8_t *own, uint8_t *lent, unsigned k,
                          uint64_t *seed)
{
    range r = {.offset = support_random(seed) % src->length};
    r.length = 1 + support_random(seed) % (support_random(seed) % 2 ? 5000 : PART_MAX);
    r.length = MIN(r.length, src->length - r.offset);
    r.buf = (support_random(seed) % 2 ? own : lent) + k * PART_MAX;
    return r;
}

static void assert_range(const source *src, const range *r)
{
    cr_assert_eq(image_read(src->im, r->buf, r->offset, r->length), 0);
    cr_assert_eq(memcmp(r->buf, src->want + r->offset, r->length), 0, "%zu+%zu",
                 (size_t)r->offset, r->length);
}

/* Up to more announcements than there are slots, of which some are kept, in any order, and some are not. */
Test(libqcow_ahead, whatever_was_announced_the_bytes_are_right)
{
    uint64_t seed = support_seed();
    source src = source_open();
    g_autofree uint8_t *own = g_malloc((RANGES + 1) * PART_MAX);
    uint8_t *lent = image_lend(src.im, (RANGES + 1) * PART_MAX);
    cr_assert_not_null(lent);
    for (unsigned i = 0; i < 400; i++) {
        range ranges[RANGES];
        unsigned n = (unsigned)(support_random(&seed) % (RANGES + 1));
        for (unsigned k = 0; k < n; k++) {
            ranges[k] = range_random(&src, own, lent, k, &seed);
            image_read_ahead(src.im, ranges[k].buf, ranges[k].offset, ranges[k].length);
        }
        for (unsigned k = 0; k < n; k++)
            if (support_random(&seed) % 4)
                assert_range(&src, &ranges[support_random(&seed) % n]);
        range other = range_random(&src, own, lent, RANGES, &seed);
        assert_range(&src, &other);
    }
    source_close(&src);
}

Test(libqcow_ahead, longer_than_the_buffer)
{
    source src = source_open();
    g_autofree uint8_t *own = g_malloc(src.length);
    range all = {own, 0, src.length};
    cr_assert_gt(src.length, LIBQCOW_SLOT_BYTES);
    image_read_ahead(src.im, own, 0, src.length);
    assert_range(&src, &all);
    all.buf = image_lend(src.im, src.length);
    cr_assert_not_null(all.buf);
    assert_range(&src, &all);
    cr_assert_null(image_lend(src.im, LIBQCOW_LENT_BYTES + 1));
    source_close(&src);
}

/* What was asked ahead of a change must not be served after it. */
Test(libqcow_ahead, R1_rot_after_the_announcement_is_seen)
{
    source src = source_open();
    g_autofree char *path = support_path("a.qcow2");
    uint8_t *lent = image_lend(src.im, 512), own[512];
    for (unsigned round = 0; round < 6; round++) {
        uint8_t *buf = round % 2 ? lent : own, rot = (uint8_t)(0x80 + round);
        cr_assert_eq(image_read(src.im, buf, 0, 512), 0);
        cr_assert_neq(buf[0], rot);
        image_read_ahead(src.im, buf, 0, 512);
        support_poke(path, 5 * 65536, &rot, 1); /* the first data cluster */
        cr_assert_eq(image_read(src.im, buf, 0, 512), 0);
        cr_assert_eq(buf[0], rot, "in round %u", round);
    }
    source_close(&src);
}

/* The announcement is not an attempt: the read itself still has its two. */
Test(libqcow_ahead, killed_after_the_announcement)
{
    uint64_t seed = support_seed();
    source src = source_open();
    uint8_t *lent = image_lend(src.im, 65536);
    for (unsigned i = 0; i < 6; i++) {
        range r = {lent, support_random(&seed) % 1000000, 65536};
        pid_t pid = libqcow_helper_pid(src.im);
        if (i % 2)
            image_read_ahead(src.im, r.buf, r.offset, r.length);
        /* Dead for certain, but still the client's to reap; an image this new may have
         * had it replaced already. */
        siginfo_t info;
        if (kill(pid, SIGKILL) == 0)
            waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
        image_read_ahead(src.im, r.buf, r.offset, r.length);
        assert_range(&src, &r);
        /* That may have been answered before the end. This was not. */
        r.offset += 4096;
        assert_range(&src, &r);
        cr_assert_neq(libqcow_helper_pid(src.im), pid);
    }
    source_close(&src);
}
