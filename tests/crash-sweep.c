/* crash-sweep.c: see crash-sweep.h. */
#include "tests/crash-sweep.h"
#include "tests/qcow2-fsck.h"
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECTOR    SWEEP_SECTOR
#define SECTORS   SWEEP_SECTORS
#define READ_MAX  (80u << 10)
#define STEPS_MAX 20000u /* of the worker: more is no progress */

uint64_t sweep_number(uint64_t *seed, uint64_t limit)
{
    return (support_random(seed) >> 16) % limit;
}

/* The first thing that is wrong ends everything. Takes `why`. */
bool sweep_fine(sweep *s, const char *when, char *why)
{
    if (why && !s->report->wrong[0])
        g_snprintf(s->report->wrong, sizeof s->report->wrong,
                   "%s, QUORUMFS_TEST_SEED=%" PRIu64 ", point %u, depth %u: %s: %s",
                   s->set->name, s->life, crash_points(), s->depth, when, why);
    g_free(why);
    return !s->report->wrong[0];
}

bool sweep_good(sweep *s, const char *when, bool is)
{
    return sweep_fine(s, when, is ? NULL : g_strdup("is not so"));
}

void sweep_fork(sweep *s, void (*run)(sweep *s))
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        crash_forked();
        run(s);
        _exit(0);
    }
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    if (WIFSIGNALED(status))
        sweep_fine(s, "a child",
                   g_strdup_printf("killed by signal %d", WTERMSIG(status)));
}

/* ---- The disk as it is -------------------------------------------------------------------- */

uint8_t *sweep_read_disk(sweep *s, const char *when)
{
    uint8_t *content = g_malloc0(SECTORS * SECTOR);
    uint64_t size = disk_size(s->c->disk);
    const void *data;
    if (!sweep_good(s, "the size", size == CRASH_DISK_SIZE))
        return content;
    for (uint64_t at = 0; at < size;) {
        size_t length = 1 + (size_t)sweep_number(&s->choices, READ_MAX);
        length = MIN(length, size - at);
        int r = disk_read(s->c->disk, at, length, &data);
        if (!sweep_fine(s, when,
                        r ? g_strdup_printf("read %zu at %" PRIu64 ": %s", length, at,
                                            g_strerror(-r))
                          : NULL))
            return content;
        memcpy(content + at, data, length);
        at += length;
    }
    return content;
}

bool sweep_is_in_sync(sweep *s)
{
    return strcmp(disk_state_name(s->c->disk), "healthy") == 0 &&
           state_unreconciled_bytes(s->c->disk->store) == 0;
}

static void work_all(sweep *s)
{
    unsigned steps = 0;
    crash_disk_wait(20 * G_USEC_PER_SEC);
    while (steps++ < STEPS_MAX && disk_worker_step(s->c->disk))
        ;
    sweep_good(s, "the worker has an end", steps < STEPS_MAX);
}

/* ---- What must become of a crash state ----------------------------------------------------- */

static bool votes(const disk *d, unsigned i, uint64_t offset, size_t length)
{
    uint64_t end = offset + length, run_end;
    const disk_replica *replica = &d->replicas[i];
    return replica->state != REPLICA_FAILED &&
           !rangeset_run(&replica->missed, offset, end, &run_end) && run_end == end;
}

static unsigned count_equal(uint8_t *const *raw, uint64_t voters, unsigned i, uint64_t at,
                            size_t length)
{
    unsigned count = 0;
    for (unsigned k = 0; k < CRASH_DISK_N; k++)
        count += disk_has_bit(voters, k) && memcmp(raw[k] + at, raw[i] + at, length) == 0;
    return count;
}

/* W6: a quorum is kept, else the first one in sync is taken. Returns whether all agree. */
static bool decide_sector(const disk *d, uint8_t *const *raw, uint64_t at, size_t length,
                          uint8_t *ret_bytes)
{
    uint64_t voters = 0;
    for (unsigned i = 0; i < d->n; i++)
        voters |= (uint64_t)votes(d, i, at, length) << i;
    unsigned winner = (unsigned)__builtin_ctzll(voters);
    bool agree =
        count_equal(raw, voters, winner, at, length) == (unsigned)disk_set_size(voters);
    for (unsigned i = d->n; i-- > 0;)
        if (disk_has_bit(voters, i) &&
            count_equal(raw, voters, i, at, length) >= d->threshold)
            winner = i;
    memcpy(ret_bytes, raw[winner] + at, length);
    return agree;
}

/* The disk was opened, and nothing was done yet. */
bool sweep_foresee(sweep *s, uint8_t *const *raw, sweep_outcome *ret)
{
    disk *d = s->c->disk;
    bool any = false;
    memset(ret->decided, 0, sizeof ret->decided);
    for (uint64_t at = 0; at < CRASH_DISK_SIZE; at += SECTOR) {
        size_t length = (size_t)MIN(SECTOR, CRASH_DISK_SIZE - at);
        if (decide_sector(d, raw, at, length, ret->content + at))
            continue;
        any = ret->decided[at / SECTOR] = true;
        if (!state_is_unreconciled(d->store, at, length))
            return sweep_fine(s, "W5",
                              g_strdup_printf("replicas differ at %" PRIu64
                                              ", which is not known to be dirty",
                                              at));
    }
    g_free(journal_snapshot(s->c->journal, &ret->journal_from, NULL));
    s->report->decided += any;
    s->report->stale += atomic_load(&d->partly) != 0;
    return true;
}

disk_model *sweep_model_after(sweep *s, uint8_t *const *raw, const sweep_outcome *outcome)
{
    disk_model *model =
        disk_model_new(outcome->content, CRASH_DISK_SIZE, CRASH_DISK_SIZE);
    for (uint64_t at = 0; at < CRASH_DISK_SIZE; at += SECTOR) {
        size_t length = (size_t)MIN(SECTOR, CRASH_DISK_SIZE - at);
        for (unsigned i = 0; i < s->set->n && outcome->decided[at / SECTOR]; i++) {
            if (!votes(s->c->disk, i, at, length))
                continue;
            disk_model_begin(model, raw[i] + at, at, length);
            disk_model_end(model, false);
        }
    }
    return model;
}

static bool is_reconcile(const json_t *record, uint64_t *ret_offset, uint64_t *ret_length)
{
    const char *event = json_string_value(json_object_get(record, "event"));
    *ret_offset = (uint64_t)json_integer_value(json_object_get(record, "offset"));
    *ret_length = (uint64_t)json_integer_value(json_object_get(record, "length"));
    return g_strcmp0(event, "reconcile") == 0;
}

/* Sectors that the journal says were decided; a line may be torn. */
static void read_decisions(const crash_disk *c, gsize from, bool *ret_decided)
{
    gsize length;
    uint64_t offset, bytes;
    g_autofree char *text = journal_snapshot(c->journal, &length, NULL);
    memset(ret_decided, 0, SECTORS);
    for (gsize at = from; at < length; at += strlen(text + at) + 1) {
        char *end = memchr(text + at, '\n', length - at);
        if (end)
            *end = '\0';
        json_t *record = json_loads(text + at, 0, NULL);
        if (is_reconcile(record, &offset, &bytes))
            for (uint64_t k = offset / SECTOR; k < (offset + bytes + SECTOR - 1) / SECTOR;
                 k++)
                ret_decided[k] = true;
        json_decref(record);
    }
}

static bool check_journal(sweep *s, const sweep_outcome *expected)
{
    bool written[SECTORS];
    read_decisions(s->c, expected->journal_from, written);
    for (unsigned k = 0; k < SECTORS; k++)
        if (expected->decided[k] && !written[k])
            return sweep_fine(
                s, "W6",
                g_strdup_printf("sector %u was decided, and the journal does not "
                                "say so",
                                k));
    return true;
}

static bool same(sweep *s, const char *when, const uint8_t *content,
                 const uint8_t *expected)
{
    unsigned k = 0;
    while (k < CRASH_DISK_SIZE && content[k] == expected[k])
        k++;
    return k == CRASH_DISK_SIZE ||
           sweep_fine(s, when, g_strdup_printf("sector %u is another", k / SECTOR));
}

bool sweep_read_replicas(sweep *s, const char *when, uint8_t **ret_raw)
{
    uint64_t size;
    for (unsigned i = 0; i < s->set->n; i++) {
        char *wrong = crash_disk_read_replica(s->c, i, &ret_raw[i], &size);
        if (!sweep_fine(s, when, wrong) ||
            !sweep_good(s, "a replica's size", size == CRASH_DISK_SIZE))
            return false;
    }
    return true;
}

void sweep_free_replicas(uint8_t **raw)
{
    for (unsigned i = 0; i < CRASH_DISK_N; i++)
        g_free(raw[i]);
}

/* By QEMU, on a sample. */
static void check_qemu(sweep *s)
{
    if (sweep_number(&s->choices, s->qemu_one_in) != 0)
        return;
    g_autofree char *first = crash_disk_path(s->c, 0);
    for (unsigned i = 0; i < s->set->n; i++) {
        const char *format = s->set->replicas[i].format;
        g_autofree char *path = crash_disk_path(s->c, i);
        if (strcmp(format, "qcow2") == 0)
            sweep_good(s, "qemu-img check",
                       support_try("qemu-img check -q %s >/dev/null 2>&1 || [ $? = 3 ]",
                                   path) == 0);
        if (i > 0)
            sweep_good(s, "qemu-img compare",
                       support_try("qemu-img compare -q -f %s -F %s %s %s >&2",
                                   s->set->replicas[0].format, format, first, path) == 0);
    }
    s->report->qemu++;
}

/* Closed: all replicas hold this, and the images are sound. */
static bool check_closed(sweep *s, const uint8_t *content)
{
    uint8_t *raw[CRASH_DISK_N] = {NULL};
    bool ok = sweep_read_replicas(s, "closed", raw);
    for (unsigned i = 0; ok && i < s->set->n; i++) {
        g_autofree char *path = crash_disk_path(s->c, i);
        ok = same(s, "all replicas are equal", raw[i], content);
        if (strcmp(s->set->replicas[i].format, "qcow2") != 0)
            continue;
        qcow2_fsck found = qcow2_fsck_run(path);
        ok = sweep_fine(s, "fsck", found.error) &&
             sweep_good(s, "a clean image", !found.dirty);
    }
    sweep_free_replicas(raw);
    if (ok)
        check_qemu(s);
    return ok;
}

/* ---- Recovering --------------------------------------------------------------------------- */

/* Recovering again is no more than opening. */
static void open_again(sweep *s, const uint8_t *content)
{
    bool before[SECTORS], after[SECTORS];
    if (!sweep_fine(s, "opened again", crash_disk_open(s->c)))
        return;
    read_decisions(s->c, 0, before);
    sweep_good(s, "nothing is left to recover", sweep_is_in_sync(s));
    work_all(s);
    read_decisions(s->c, 0, after);
    sweep_good(s, "nothing is decided again", memcmp(before, after, sizeof before) == 0);
    g_autofree uint8_t *again = sweep_read_disk(s, "opened again");
    same(s, "opened again", again, content);
    sweep_fine(s, "closed again", crash_disk_close(s->c));
}

/* The disk is recovered; now somebody uses it. */
static void go_on(sweep *s, const uint8_t *content)
{
    disk_model *model = s->model;
    s->model = disk_model_new(content, CRASH_DISK_SIZE, CRASH_DISK_SIZE);
    s->seed = s->choices;
    crash_set_hook(NULL, NULL);
    s->use(s);
    disk_model_free(s->model);
    s->model = model;
}

static void finish_recovery(sweep *s, const sweep_outcome *expected)
{
    if (sweep_number(&s->choices, 2))
        work_all(s);
    g_autofree uint8_t *content = sweep_read_disk(s, "recovered");
    if (!same(s, "recovered", content, expected->content))
        return;
    work_all(s);
    sweep_good(s, "all are in sync", sweep_is_in_sync(s));
    if (!check_journal(s, expected) || (s->before && !check_journal(s, s->before)))
        return;
    if (sweep_number(&s->choices, 4) == 0) {
        go_on(s, content);
        g_free(content);
        content = sweep_read_disk(s, "used");
    }
    if (sweep_fine(s, "recovered", crash_disk_close(s->c)) && check_closed(s, content))
        open_again(s, content);
}

/* Whether everything is decided by the others: a region is reconciled as one, and all of the
 * disk is flushed before it counts. */
static bool has_quorum_without(const disk *d, unsigned lost)
{
    for (uint64_t at = 0; at < CRASH_DISK_SIZE; at += SECTOR) {
        unsigned voters = 0;
        for (unsigned i = 0; i < d->n; i++)
            voters += i != lost && votes(d, i, at, 1);
        if (voters < d->threshold)
            return false;
    }
    return true;
}

/* And if the crash took a replica with it, which can be read no more: what the others decide
 * is served, and what they cannot is an error. */
static void recover_without(sweep *s, unsigned lost, sweep_outcome *expected)
{
    disk *d = s->c->disk;
    const void *data;
    bool decided = has_quorum_without(d, lost);
    crash_set_hook(NULL, NULL);
    crash_set_fault((crash_fault){.kinds = CRASH_READ,
                                  .at = 1,
                                  .error = EIO,
                                  .for_ever = true,
                                  .files = 1u << lost});
    for (uint64_t at = 0; at < CRASH_DISK_SIZE; at += SECTOR) {
        size_t length = (size_t)MIN(SECTOR, CRASH_DISK_SIZE - at);
        int r = disk_read(d, at, length, &data);
        if (r == 0)
            memcpy(expected->content + at, data, length);
        else if (decided)
            sweep_fine(s, "W6: enough replicas survive",
                       g_strdup_printf("read %" PRIu64 ": %s", at, g_strerror(-r)));
    }
    sweep_fine(s, "after a crash and without a replica",
               disk_model_crashed(s->model, expected->content, CRASH_DISK_SIZE));
}

/* One state of files that is not open. */
static void recover(sweep *s)
{
    sweep_outcome expected;
    uint8_t *raw[CRASH_DISK_N] = {NULL};
    sweep next = *s;
    next.choices = support_random(&s->choices);
    next.before = NULL;
    crash_disk_watch(s->c);
    if (!sweep_read_replicas(s, "after a crash", raw))
        goto out;
    if (s->depth == 1 && sweep_number(&s->choices, 3) == 0)
        crash_set_hook(sweep_at_point, &next);
    if (!sweep_fine(s, "after a crash", crash_disk_open(s->c)) ||
        !sweep_foresee(s, raw, &expected))
        goto out;
    next.before = &expected;
    if (!sweep_fine(s, "after a crash",
                    disk_model_crashed(s->model, expected.content, CRASH_DISK_SIZE)))
        goto out;
    if (sweep_number(&s->choices, 4) == 0)
        recover_without(s, (unsigned)sweep_number(&s->choices, s->set->n), &expected);
    else if (!s->before ||
             same(s, "decided as before", expected.content, s->before->content))
        finish_recovery(s, &expected);
out:
    sweep_free_replicas(raw);
    (*(s->depth == 1 ? &s->report->states : &s->report->deep))++;
}

/* In a child: several states, and what becomes of each. */
static void take_states(sweep *s)
{
    crash_disk *states[16];
    unsigned count = s->depth == 0 ? s->per_point : 1;
    s->depth++;
    for (unsigned k = 0; k < count; k++) {
        g_autofree char *name = g_strdup_printf("state-%u-%u", s->depth, k);
        states[k] = crash_disk_save(s->c, name, &s->choices);
    }
    for (unsigned k = 0; k < count && !s->report->wrong[0]; k++) {
        s->c = states[k];
        sweep_fork(s, recover);
    }
}

void sweep_at_point(void *user, crash_kind kind)
{
    sweep *s = user;
    (void)kind;
    uint64_t choice = support_random(&s->choices);
    unsigned one_in = s->depth == 0 ? s->one_in : 40;
    if (s->report->wrong[0] || sweep_number(&choice, one_in) != 0)
        return;
    sweep child = *s;
    child.choices = choice;
    sweep_fork(&child, take_states);
}
