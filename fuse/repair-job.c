/*
 * repair-job.c: see repair-job.h.
 *
 * In two openings: the first only looks, so that replicas that agree are not even touched, and
 * a dry run is the first half of a repair. Between the two, room for what will be overwritten
 * is taken; the lock of the state directory is held throughout, so no mount comes between, and
 * whatever else changed is seen because everything is voted on afresh.
 *
 * What was found decides the exit status, and which ranges are looked at again; who is right
 * there is decided under the lock of the range, by the same rules.
 */
#include "fuse/repair-job.h"
#include "fuse/cli.h"
#include "fuse/progress.h"
#include "quorum/offline.h"
#include "quorum/rangeset.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

typedef struct repair_job {
    repair_set *set;
    disk_options *options;
    repair_request *request;
    verify_output *out;
    disk *d;  /* the one that is open */
    int from; /* -1: the vote decides */
    unsigned n;
    progress progress;
    uint64_t n_ranges;
    rangeset wanted;                                 /* to be repaired */
    uint64_t room;                                   /* what its saved blocks take */
    uint64_t stale[VOTE_REPLICAS_MAX], unreconciled; /* by the record */
    uint64_t bytes[VOTE_REPLICAS_MAX]; /* that are overwritten, or would be */
    uint64_t left;                     /* of the disk: differing, and nobody is right */
    undo_writer *undo;
    bool failed, interrupted;
} repair_job;

static bool is_cancelled(const repair_job *job)
{
    return *job->request->cancel != 0;
}

static void say(repair_job *job, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void say(repair_job *job, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    bool several = job->set->config->disks->len > 1;
    progress_hide(&job->progress);
    cli_error("%s%s%s", several ? job->options->name : "", several ? ": " : "", text);
}

static const char *replica_name(const repair_job *job, unsigned i)
{
    const replica_options *replica = g_ptr_array_index(job->options->replicas, i);
    return replica->name;
}

/* ---- Finding ------------------------------------------------------------------------- */

/* As disk_repair_range will decide. */
static void judge(const repair_job *job, verify_range *range)
{
    bool majority = 2 * disk_threshold(job->d) > job->n;
    unsigned right = job->from < 0 ? VOTE_NO_GROUP : range->group[job->from];
    if (right == VOTE_NO_GROUP && !majority)
        range->winners = range->losers = 0;
    if (right == VOTE_NO_GROUP)
        return;
    range->winners = range->losers = 0;
    for (unsigned i = 0; i < job->n; i++)
        if (range->group[i] != VOTE_NO_GROUP)
            *(range->group[i] == right ? &range->winners : &range->losers) |= UINT64_C(1)
                                                                              << i;
}

static void on_range(void *opaque, const verify_range *found)
{
    repair_job *job = opaque;
    verify_range range = *found;
    judge(job, &range);
    uint64_t wrong = range.losers | range.failed;
    job->n_ranges++;
    if (range.winners)
        rangeset_add(&job->wanted, range.offset, range.length);
    else if (!disk_offline_is_unreconciled(job->d, range.offset, range.length))
        job->left += range.length;
    for (unsigned i = 0; i < job->n && range.winners; i++) {
        if (!(wrong >> i & 1))
            continue;
        job->bytes[i] += range.length;
        job->room += undo_space(range.length);
    }
    progress_hide(&job->progress);
    verify_output_range(job->out, &range);
}

static void on_progress(void *opaque, uint64_t done, uint64_t size)
{
    repair_job *job = opaque;
    if (*job->request->line_wanted) {
        *job->request->line_wanted = 0;
        progress_line(&job->progress, done, size, job->n_ranges);
    }
    progress_tell(&job->progress, done, size, job->n_ranges);
}

static bool find_from(repair_job *job)
{
    job->from = -1;
    for (unsigned i = 0; job->request->from && i < job->n; i++)
        if (strcmp(replica_name(job, i), job->request->from) == 0)
            job->from = (int)i;
    return !job->request->from || job->from >= 0;
}

/* What the record says that the replicas do not show. */
static void look_at_record(repair_job *job)
{
    for (unsigned i = 0; i < job->n; i++) {
        replica_status status;
        disk_replica_status(job->d, i, &status);
        job->stale[i] = status.stale_bytes;
    }
    job->unreconciled = disk_offline_unreconciled(job->d);
}

/* The code of what was found. */
static int find(repair_job *job)
{
    static const verify_manifest_summary no_manifest;
    look_at_record(job);
    for (unsigned i = 0; i < job->n; i++) /* what is on the medium counts */
        chain_forget_cache(disk_chain(job->d, i));
    if (job->from >= 0)
        disk_offline_trust(job->d);
    verify_options options = {
        .on_range = on_range,
        .on_progress = on_progress,
        .opaque = job,
        .cancel = job->request->cancel,
    };
    verify_summary summary;
    progress_begin(&job->progress, disk_name(job->d), job->request->progress);
    int64_t started = g_get_monotonic_time();
    verify_run(job->d, &options, &summary);
    double seconds = (double)(g_get_monotonic_time() - started) / 1e6;
    progress_hide(&job->progress);
    verify_output_summary(job->out, &summary, &no_manifest, seconds);
    job->interrupted = summary.interrupted;
    return verify_exit_code(&summary);
}

static bool has_work(const repair_job *job)
{
    bool any = rangeset_count(&job->wanted) > 0 || job->unreconciled > 0;
    for (unsigned i = 0; i < job->n; i++)
        any |= job->stale[i] > 0;
    return any;
}

/* ---- Saving -------------------------------------------------------------------------- */

static void say_unsaved(repair_job *job, int r)
{
    if (r < 0 && !job->failed)
        say(job,
            "what is to be overwritten cannot be saved in %s: %s (nothing more is "
            "changed)",
            job->set->dir, g_strerror(-r));
    job->failed |= r < 0;
}

static int on_save(void *opaque, unsigned replica, uint64_t offset, const void *old,
                   const void *new, size_t length)
{
    repair_job *job = opaque;
    if (job->failed)
        return -ECANCELED;
    bool stale = disk_offline_is_stale(job->d, replica, offset, length);
    int r = undo_writer_add(job->undo, replica, offset, old, new, length, stale);
    say_unsaved(job, r);
    job->bytes[replica] += r == 0 ? length : 0;
    return r;
}

static int on_commit(void *opaque)
{
    repair_job *job = opaque;
    int r = job->failed ? -ECANCELED : undo_writer_sync(job->undo);
    say_unsaved(job, r);
    return r;
}

/* Before anything is changed. */
static bool begin_saving(repair_job *job)
{
    g_autoptr(GError) error = NULL;
    undo_disk about;
    repair_set_about(job->d, &about);
    if (repair_set_make_undo(job->set, &job->request->undo_id, &error)) {
        g_autofree char *path =
            repair_set_undo_path(job->set, job->request->undo_id, job->options->name);
        job->undo = undo_writer_new(path, &about, job->room, &error);
    }
    if (job->undo && repair_set_sync_undo(job->set, job->request->undo_id, &error))
        return true;
    say(job, "what is to be overwritten cannot be saved: %s (nothing was changed)",
        error->message);
    job->failed = true;
    return false;
}

static void end_saving(repair_job *job)
{
    uint64_t count = job->undo ? undo_writer_count(job->undo) : 0;
    undo_writer_free(g_steal_pointer(&job->undo));
    if (count == 0) /* a file without a record is none */
        repair_set_remove_undo(job->set, &job->request->undo_id, job->options->name);
}

/* ---- Repairing ----------------------------------------------------------------------- */

/* What lies near to each other is repaired, and saved, together: up to where. */
static uint64_t next_window(const repair_job *job, unsigned *k, uint64_t at)
{
    uint64_t end = at, limit = (at | (DISK_REQUEST_MAX - 1)) + 1;
    for (; *k < rangeset_count(&job->wanted); (*k)++) {
        rangeset_range range = rangeset_get(&job->wanted, *k);
        if (range.start >= limit)
            break;
        end = MIN(range.end, limit);
        if (range.end > limit)
            break;
    }
    return end;
}

/* 0, or why the rest was not looked at. */
static int repair_ranges(repair_job *job, repair_stats *stats)
{
    const repair_options options = {.from = job->from, .op = "repair"};
    uint64_t size = disk_size(job->d), at = 0;
    unsigned k = 0;
    int r = 0;
    while (k < rangeset_count(&job->wanted) && r == 0) {
        at = MAX(at, rangeset_get(&job->wanted, k).start);
        uint64_t end = next_window(job, &k, at);
        r = is_cancelled(job) ? -EINTR
            : job->failed     ? -EIO
                              : disk_repair_range(job->d, at, end - at, &options, stats);
        on_progress(job, end, size);
        at = end;
    }
    return r;
}

static void on_caught_up(void *opaque, uint64_t offset)
{
    repair_job *job = opaque;
    on_progress(job, offset, disk_size(job->d));
}

static int repair_by_vote(repair_job *job, repair_stats *stats)
{
    int r = disk_offline_reconcile(job->d, job->request->cancel);
    if (r == 0)
        r = disk_offline_catch_up(job->d, job->request->cancel, on_caught_up, job);
    return r == 0 ? repair_ranges(job, stats) : r;
}

static int repair_by_one(repair_job *job, repair_stats *stats)
{
    disk_offline_trust(job->d);
    int r = repair_ranges(job, stats);
    bool equal = r == 0 && !stats->failed && !stats->no_quorum && !job->left;
    int settled = disk_offline_settle(job->d, equal);
    return r ? r : settled;
}

static void repair_disk(repair_job *job)
{
    repair_stats stats = {0};
    memset(job->bytes, 0, sizeof job->bytes);
    disk_set_saver(job->d, (repair_saver){on_save, on_commit, job});
    progress_begin(&job->progress, disk_name(job->d), job->request->progress);
    int r = job->from < 0 ? repair_by_vote(job, &stats) : repair_by_one(job, &stats);
    progress_hide(&job->progress);
    job->interrupted = r == -EINTR && is_cancelled(job);
    if (r < 0 && !job->interrupted && !job->failed)
        say(job, "the repair has stopped: %s (the journal in %s tells where)",
            g_strerror(-r), job->set->dir);
    else if (stats.failed && !job->failed)
        say(job,
            "%" PRIu64 " bytes could not be repaired (the journal in %s tells where)",
            stats.failed, job->set->dir);
    job->failed |= (r < 0 && !job->interrupted) || stats.failed;
}

static void change(repair_job *job)
{
    g_autoptr(GError) error = NULL;
    journal *records = NULL;
    bool saving = begin_saving(job);
    disk_close(g_steal_pointer(&job->d));
    if (saving)
        job->d = repair_set_begin(job->set, job->options, &records, &error);
    if (job->d) {
        repair_disk(job);
        int closed = repair_set_end(g_steal_pointer(&job->d), records);
        if (closed < 0)
            say(job, "the last flush failed: %s", g_strerror(-closed));
        job->failed |= closed < 0;
    } else if (saving) {
        say(job, "%s", error->message);
        job->failed = true;
    }
    end_saving(job);
}

/* ---- Telling ------------------------------------------------------------------------- */

static json_t *json_number(uint64_t number)
{
    return json_integer((json_int_t)number);
}

static json_t *report_json(const repair_job *job)
{
    json_t *object = json_pack("{s:b}", "dry-run", job->request->dry_run);
    json_t *rows = json_array();
    if (job->request->from)
        json_object_set_new(object, "from", json_string(job->request->from));
    if (job->request->undo_id)
        json_object_set_new(object, "undo", json_string(job->request->undo_id));
    for (unsigned i = 0; i < job->n; i++) {
        json_t *row = json_pack("{s:s}", "name", replica_name(job, i));
        json_object_set_new(row, "stale-bytes", json_number(job->stale[i]));
        json_object_set_new(row, "overwritten-bytes", json_number(job->bytes[i]));
        json_array_append_new(rows, row);
    }
    json_object_set_new(object, "replicas", rows);
    json_object_set_new(object, "unreconciled-bytes", json_number(job->unreconciled));
    json_object_set_new(object, "left-bytes", json_number(job->left));
    json_object_set_new(object, "failed", json_boolean(job->failed));
    json_object_set_new(object, "interrupted", json_boolean(job->interrupted));
    return object;
}

/* "b 512 bytes, c 1024 bytes" behind `what`; nothing if all are 0. */
static void append_bytes(GString *text, const repair_job *job, const char *what,
                         const uint64_t *bytes)
{
    bool any = false;
    for (unsigned i = 0; i < job->n; i++) {
        if (bytes[i] == 0)
            continue;
        g_string_append_printf(text, "%s%s %" PRIu64 " bytes", any ? ", " : what,
                               replica_name(job, i), bytes[i]);
        any = true;
    }
}

/* What was done, as one line; NULL: there was nothing to do or to tell. */
static char *report_text(const repair_job *job)
{
    bool dry = job->request->dry_run;
    GString *text = g_string_new(NULL);
    append_bytes(text, job, "; stale by the record: ", job->stale);
    if (job->unreconciled)
        g_string_append_printf(text,
                               "; left unequal by a crash, at most: %" PRIu64 " bytes",
                               job->unreconciled);
    append_bytes(text, job,
                 dry ? "; would be overwritten: " : "; overwritten: ", job->bytes);
    if (job->left)
        g_string_append_printf(
            text, "; left as it is, without a majority: %" PRIu64 " bytes%s", job->left,
            job->from < 0 ? " (--from REPLICA decides)" : "");
    if (job->failed || job->interrupted)
        g_string_append(text, job->failed ? "; not all was repaired" : "; interrupted");
    if (job->request->undo_id)
        g_string_append_printf(text, "; to undo it: quorumfs repair --undo %s %s",
                               job->request->undo_id, job->request->undo_words);
    if (text->len == 0) {
        g_string_free(text, TRUE);
        return NULL;
    }
    if (job->set->config->disks->len > 1) {
        g_string_erase(text, 0, 2);
        g_string_prepend(text, ": ");
        g_string_prepend(text, job->options->name);
    } else {
        g_string_erase(text, 0, 2);
    }
    return g_string_free(text, FALSE);
}

/* ---- One disk ------------------------------------------------------------------------ */

static int open_failed(const repair_job *job, const GError *error)
{
    bool several = job->set->config->disks->len > 1;
    cli_error("%s%s%s", several ? job->options->name : "", several ? ": " : "",
              error->message);
    verify_output_disk_failed(job->out, job->options, error->message);
    return g_error_matches(error, DISK_ERROR, DISK_ERROR_OPTIONS) ? CLI_VERIFY_USAGE : 2;
}

static bool check_words(repair_job *job, GError **error)
{
    unsigned threshold = job->options->threshold;
    if (!find_from(job))
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                    "disk '%s' has no replica '%s'", job->options->name,
                    job->request->from);
    else if (job->from < 0 && threshold && 2 * threshold <= job->n)
        g_set_error(error, DISK_ERROR, DISK_ERROR_OPTIONS,
                    "a repair needs a majority, and %u of %u is none (give a threshold "
                    "of %u or more, or say with --from REPLICA who is right)",
                    threshold, job->n, job->n / 2 + 1);
    else
        return true;
    return false;
}

static bool check_quorum(const repair_job *job, GError **error)
{
    if (job->from >= 0 || strcmp(disk_state_name(job->d), "failed") != 0)
        return true;
    g_set_error(
        error, DISK_ERROR, DISK_ERROR_STALE,
        "too few replicas are in sync for a threshold of %u: they missed changes, "
        "or changed while they were not mounted (--from REPLICA makes all like one)",
        disk_threshold(job->d));
    return false;
}

int repair_job_run(repair_set *set, disk_options *options, repair_request *request,
                   verify_output *out, bool *ret_interrupted)
{
    g_autoptr(GError) error = NULL;
    repair_job job = {.set = set,
                      .options = options,
                      .request = request,
                      .out = out,
                      .n = options->replicas->len};
    if (!check_words(&job, &error))
        return open_failed(&job, error);
    job.d = repair_set_look(set, options, &error);
    if (!job.d)
        return open_failed(&job, error);
    if (!check_quorum(&job, &error)) {
        disk_close(job.d);
        return open_failed(&job, error);
    }
    verify_output_disk_begin(out, job.d);
    int code = find(&job);
    if (!job.interrupted && !request->dry_run && has_work(&job))
        change(&job);
    disk_close(job.d);
    if (job.failed)
        code = 2;
    *ret_interrupted = job.interrupted;
    g_autofree char *text = report_text(&job);
    verify_output_disk_close(out, report_json(&job), text, code);
    rangeset_clear(&job.wanted);
    return code;
}
