/*
 * Host files that fail beneath a qcow2 image that is written: full, broken, or unable to
 * make holes; at each operation, once or for a while.
 *
 * Somebody is told: the write's caller or the flush's. Nothing that was flushed is lost,
 * everything else reads as before, and when the fault is gone the image goes on, but for
 * two things, after which every write and flush is -EIO until the image is opened again:
 * when a sync has failed the page cache is not trusted any more, and when the header could
 * not be changed nobody knows which of two tables it names.
 *
 * QUORUMFS_TEST_THOROUGH=1: all variants, every operation. QUORUMFS_TEST_VARIANT=name.
 */
#include "tests/crash-file.h"
#include "tests/qcow2-fsck.h"
#include "tests/qcow2-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define PRISTINE "pristine"
#define REQUESTS 24 /* after which the fault is gone */
#define LATER    8  /* then so many */
#define FAILURES 3  /* a fault that lasts is over after so many requests that failed */

typedef struct mode {
    const char *name;
    crash_fault fault;
} mode;

typedef struct run {
    const qcow2_rig *model; /* of the variant */
    qcow2_rig *rig;
    const mode *mode;
    unsigned at;
    uint64_t printed_seed, seed;
    bool told;
    bool ended;   /* refuses everything by now */
    bool may_end; /* or not: it struck while the image was being opened */
    unsigned failures;
} run;

static void assert_fine(const run *r, const char *when, const char *wrong)
{
    cr_assert_null(wrong, "%s, seed %" PRIu64 ", %s at %u: %s: %s",
                   r->model->variant->name, r->printed_seed, r->mode->name, r->at, when,
                   wrong);
}

static void copy_image(const char *from, const char *to)
{
    support_run("cp %s %s; [ ! -e %s.data ] || cp %s.data %s.data", from, to, from, from,
                to);
}

static void watch(const run *r)
{
    const char *const ends[] = {"", ".data"};
    unsigned count = r->model->variant->traits & VARIANT_DATA_FILE ? 2 : 1;
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *path = support_path("%s%s", r->rig->name, ends[i]);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        cr_assert_geq(fd, 0);
        crash_watch(fd);
        close(fd);
    }
}

/* What a crash now may leave. */
static void check_crashes(run *r)
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t size;
        g_autofree uint8_t *content = NULL;
        g_autofree char *path = support_path("state");
        g_autofree char *data_path = support_path("state.data");
        crash_choice choice = i == 0 ? CRASH_DROP_ALL : CRASH_SOME;
        crash_state_save(0, path, choice, &r->seed);
        if (r->model->variant->traits & VARIANT_DATA_FILE)
            crash_state_save(1, data_path, choice, &r->seed);
        g_autofree char *wrong = qcow2_rig_read(r->rig, "state", &content, &size);
        assert_fine(r, "after a crash", wrong);
        wrong = disk_model_crashed(r->rig->model, content, size);
        assert_fine(r, "after a crash", wrong);
        wrong = qcow2_fsck_run(path).error;
        assert_fine(r, "after a crash", wrong);
    }
}

static void see(run *r, const char *when)
{
    g_autofree char *wrong = qcow2_rig_see(r->rig);
    assert_fine(r, when, wrong);
}

/* What needs no change of a file may succeed at any time. */
static bool may_be_nothing(rig_request request)
{
    return request == RIG_ZEROES || request == RIG_DISCARD || request == RIG_RESIZE;
}

/* As fault and request have it; the model knows of it already. */
static void check_result(run *r, rig_request request, int error, unsigned hits)
{
    g_autofree char *wrong = NULL;
    int expected = -r->mode->fault.error;
    bool unable = error == -ENOTSUP && request == RIG_RESIZE;
    r->ended |= r->may_end && error == -EIO && hits == 0;
    if (error == 0 && r->ended && !may_be_nothing(request))
        wrong = g_strdup("succeeded after the end");
    else if (error && !unable && (r->ended ? error != -EIO : hits == 0))
        wrong = g_strdup_printf("%s, %u hits", g_strerror(-error), hits);
    else if (error && !unable && error != expected && error != -EIO)
        wrong = g_strdup_printf("%s", g_strerror(-error));
    r->told |= error && !unable;
    r->failures += error && !unable;
    g_autofree char *when = g_strdup_printf("request of kind %u", request);
    assert_fine(r, when, wrong);
}

static rig_request pick(run *r, unsigned i)
{
    static const rig_request requests[] = {RIG_WRITE,  RIG_WRITE,   RIG_FLUSH, RIG_WRITE,
                                           RIG_ZEROES, RIG_DISCARD, RIG_WRITE, RIG_FLUSH};
    if (i % 11 == 10)
        return RIG_RESIZE;
    return requests[(support_random(&r->seed) >> 20) % G_N_ELEMENTS(requests)];
}

static void note_end(run *r)
{
    bool sync = r->mode->fault.kinds & CRASH_SYNC;
    bool struck = sync ? crash_fault_hits() > 0 : crash_fault_header_hits() > 0;
    r->ended |= struck && !r->may_end;
}

static void request_while_failing(run *r, unsigned i)
{
    rig_request request = pick(r, i);
    unsigned before = crash_fault_hits();
    int error = qcow2_rig_do(r->rig, request);
    unsigned hits = crash_fault_hits() - before;
    check_result(r, request, error, hits);
    note_end(r);
    bool harmless = r->mode->fault.kinds & (CRASH_READ | CRASH_PUNCH | CRASH_ZERO);
    if (request == RIG_FLUSH && error == 0 && crash_fault_hits() > 0 && !r->told &&
        !harmless)
        assert_fine(r, "flush", "nobody was told");
    if (error && !(r->mode->fault.kinds & CRASH_READ))
        see(r, "while it fails");
    if (error && r->mode->fault.kinds & CRASH_READ)
        crash_set_fault((crash_fault){0});
    if (r->failures == FAILURES)
        crash_set_fault((crash_fault){0});
}

static void requests_afterwards(run *r)
{
    see(r, "afterwards");
    for (unsigned i = 0; i < LATER; i++) {
        rig_request request = i == LATER - 1 ? RIG_FLUSH : pick(r, i);
        int error = qcow2_rig_do(r->rig, request);
        check_result(r, request, error, 0);
    }
    see(r, "afterwards");
    check_crashes(r);
}

static void check_closed(run *r, bool failed_in_close, bool once)
{
    uint64_t size;
    g_autofree uint8_t *content = NULL;
    g_autofree char *path = support_path("%s", r->rig->name);
    g_autofree char *wrong = qcow2_rig_read(r->rig, r->rig->name, &content, &size);
    assert_fine(r, "closed", wrong);
    bool clean = !failed_in_close && !r->ended && !r->may_end;
    if (clean)
        wrong = disk_model_see(r->rig->model, content, 0, size);
    else
        wrong = disk_model_crashed(r->rig->model, content, size);
    assert_fine(r, "closed", wrong);
    qcow2_fsck found = qcow2_fsck_run(path);
    wrong = found.error;
    assert_fine(r, "closed", wrong);
    if (clean && (found.dirty || (once && found.leaks > 0)))
        wrong = g_strdup_printf("%u leaks%s", (unsigned)found.leaks,
                                found.dirty ? ", dirty" : "");
    assert_fine(r, "closed", wrong);
    wrong = qcow2_rig_check_snapshots(r->rig, r->rig->name);
    assert_fine(r, "closed", wrong);
    if (support_random(&r->seed) % 16 == 0 && !found.dirty)
        cr_assert(qcow2_rig_qemu_check(r->rig, r->rig->name, "") % 3 == 0);
}

/* Opens under the fault; if that fails, then without it. */
static void open_image(run *r)
{
    g_autofree char *wrong = qcow2_rig_open(r->rig);
    if (wrong && crash_fault_hits() > 0) {
        crash_set_fault((crash_fault){0});
        r->told = true;
        g_free(wrong);
        wrong = qcow2_rig_open(r->rig);
    }
    assert_fine(r, "open", wrong);
    r->may_end = crash_fault_hits() > 0;
}

/* Returns whether the fault struck at all. */
static bool run_once(const qcow2_rig *model, const mode *m, unsigned at,
                     uint64_t printed_seed, uint64_t seed, const uint8_t *content,
                     uint64_t size)
{
    run r = {
        .model = model, .mode = m, .at = at, .printed_seed = printed_seed, .seed = seed};
    crash_fault fault = m->fault;
    fault.at = at;
    copy_image(QCOW2_RIG_IMAGE, PRISTINE);
    r.rig = qcow2_rig_new_copy(model, PRISTINE, content, size, seed);
    watch(&r);
    crash_set_fault(fault);
    open_image(&r);
    bool open_hit = crash_fault_hits() > 0;
    for (unsigned i = 0; i < REQUESTS; i++)
        request_while_failing(&r, i);
    bool struck = open_hit || r.told || crash_fault_hits() > 0;
    unsigned before = crash_fault_hits();
    if (struck) {
        crash_set_fault((crash_fault){0});
        before = 0;
        requests_afterwards(&r);
    }
    qcow2_rig_close(r.rig);
    bool in_close = crash_fault_hits() > before;
    struck |= in_close;
    crash_reset();
    bool reads = m->fault.kinds & CRASH_READ; /* what cannot be read is not lowered */
    check_closed(&r, in_close, !m->fault.for_ever && !reads);
    qcow2_rig_free(r.rig);
    return struck;
}

static const mode modes[] = {
    {"full once", {.kinds = CRASH_CHANGES, .error = ENOSPC}},
    {"full", {.kinds = CRASH_CHANGES, .error = ENOSPC, .for_ever = true}},
    {"broken once", {.kinds = CRASH_CHANGES, .error = EIO, .tear = 1234567}},
    {"broken", {.kinds = CRASH_CHANGES, .error = EIO, .for_ever = true, .tear = 1234567}},
    {"sync", {.kinds = CRASH_SYNC, .error = EIO}},
    {"read once", {.kinds = CRASH_READ, .error = EIO}},
    {"no holes", {.kinds = CRASH_PUNCH, .error = ENOTSUP, .for_ever = true}},
};

static void fail_variant(const qcow2_variant *v, const mode *m, uint64_t printed_seed)
{
    uint64_t seed = printed_seed ^ (uint64_t)g_str_hash(v->name) << 24 ^
                    (uint64_t)m->fault.kinds << 8;
    uint64_t size;
    bool thorough = g_getenv("QUORUMFS_TEST_THOROUGH") != NULL;
    unsigned stride = thorough ? 1 : 9;
    g_autofree uint8_t *content = NULL;
    qcow2_rig *rig = qcow2_rig_new(v, 0, seed);
    g_autofree char *wrong = qcow2_rig_read(rig, rig->name, &content, &size);
    cr_assert_null(wrong);
    unsigned at = 1 + (unsigned)(support_random(&seed) >> 20) % stride;
    if (m->fault.error == ENOTSUP)
        run_once(rig, m, 1, printed_seed, seed, content, size);
    else
        while (run_once(rig, m, at, printed_seed, seed, content, size))
            at += stride;
    qcow2_rig_free(rig);
    support_run("rm -f " PRISTINE "* state*");
}

static void fail_variants(unsigned first, unsigned count)
{
    uint64_t seed = support_seed();
    const char *only = g_getenv("QUORUMFS_TEST_VARIANT");
    bool thorough = g_getenv("QUORUMFS_TEST_THOROUGH") != NULL;
    for (size_t i = 0; i < qcow2_variants_count; i++) {
        const qcow2_variant *v = &qcow2_variants[i];
        bool wanted =
            only ? strcmp(only, v->name) == 0 : thorough || v->traits & VARIANT_FEW;
        for (unsigned k = first; wanted && k < first + count; k++)
            fail_variant(v, &modes[k], seed);
    }
}

Test(qcow2_faults, a_full_disk)
{
    fail_variants(0, 2);
}

Test(qcow2_faults, a_broken_disk)
{
    fail_variants(2, 2);
}

Test(qcow2_faults, a_failed_sync_ends_it)
{
    fail_variants(4, 1);
}

Test(qcow2_faults, what_is_not_read_is_not_guessed)
{
    fail_variants(5, 1);
}

Test(qcow2_faults, a_disk_without_holes)
{
    fail_variants(6, 1);
}
