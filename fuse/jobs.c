/* jobs.c: see jobs.h. */
#include "fuse/jobs.h"
#include "quorum/scrub.h"

static void set_count(json_t *row, const char *key, uint64_t value)
{
    json_object_set_new(row, key, json_integer((json_int_t)MIN(value, INT64_MAX)));
}

static void set_text(json_t *row, const char *key, const char *text)
{
    json_object_set_new(row, key, json_string(text));
}

typedef struct job_figures {
    const char *type, *status;
    uint64_t length, offset, speed;
    bool busy, paused;
    int error; /* -errno */
} job_figures;

static json_t *job_row(disk *d, const job_figures *f)
{
    g_autofree char *name = g_utf8_make_valid(disk_name(d), -1);
    g_autofree char *device = g_strdup_printf("%s-%s", f->type, name);
    json_t *row = json_object();
    set_text(row, "type", f->type);
    set_text(row, "device", device);
    set_count(row, "len", f->length);
    set_count(row, "offset", f->offset);
    set_count(row, "speed", f->speed);
    json_object_set_new(row, "busy", json_boolean(f->busy));
    json_object_set_new(row, "paused", json_boolean(f->paused));
    json_object_set_new(row, "ready", json_false());
    set_text(row, "io-status", f->error ? "failed" : "ok");
    set_text(row, "status", f->status);
    json_object_set_new(row, "auto-finalize", json_true());
    json_object_set_new(row, "auto-dismiss", json_false());
    if (f->error)
        set_text(row, "error", g_strerror(-f->error));
    return row;
}

static void add_stats(json_t *row, const repair_stats *stats)
{
    set_count(row, "checked-bytes", stats->checked);
    set_count(row, "differing-bytes", stats->differing);
    set_count(row, "unreadable-bytes", stats->unreadable);
    set_count(row, "repaired-bytes", stats->repaired);
    set_count(row, "failed-bytes", stats->failed);
    set_count(row, "no-majority-bytes", stats->no_quorum);
    set_count(row, "ranges", stats->ranges);
}

static void add_end(json_t *row, const scrub_status *status)
{
    static const char *const results[] = {[SCRUB_COMPLETED] = "completed",
                                          [SCRUB_CANCELLED] = "cancelled",
                                          [SCRUB_FAILED] = "failed"};
    g_autoptr(GDateTime) ended =
        g_date_time_new_from_unix_utc(status->ended_us / G_USEC_PER_SEC);
    g_autofree char *text = g_date_time_format_iso8601(ended);
    set_text(row, "result", results[status->state]);
    set_text(row, "ended", text);
}

static json_t *scrub_row(disk *d)
{
    scrub_status status;
    scrub_get_status(d, &status);
    bool runs = status.state == SCRUB_RUNNING;
    if (status.state == SCRUB_NONE)
        return NULL;
    const job_figures figures = {.type = "scrub",
                                 .status = runs ? "running" : "concluded",
                                 .length = status.length,
                                 .offset = status.offset,
                                 .speed = status.options.speed,
                                 .busy = runs,
                                 .error = status.error};
    json_t *row = job_row(d, &figures);
    json_object_set_new(row, "repair", json_boolean(status.options.repair));
    set_count(row, "skipped-bytes", status.skipped);
    set_count(row, "seconds", (uint64_t)status.took_us / G_USEC_PER_SEC);
    add_stats(row, &status.stats);
    if (!runs)
        add_end(row, &status);
    return row;
}

static json_t *resync_row(disk *d)
{
    disk_resync_status status;
    disk_get_resync_status(d, &status);
    if (!status.stale && !status.running)
        return NULL;
    const job_figures figures = {.type = "resync",
                                 .status = status.running ? "running" : "paused",
                                 .length = status.length,
                                 .offset = status.length - status.missed,
                                 .busy = status.running,
                                 .paused = !status.running,
                                 .error = status.error};
    return job_row(d, &figures);
}

json_t *jobs_json(disk *d)
{
    json_t *jobs[] = {scrub_row(d), resync_row(d)}, *rows = json_array();
    for (size_t i = 0; i < G_N_ELEMENTS(jobs); i++)
        if (jobs[i])
            json_array_append_new(rows, jobs[i]);
    return rows;
}
