/*
 * status.c: see status.h. Each row of a Prometheus metric is made by walking all disks (or
 * replicas) once per metric, because the text format wants a metric's rows together.
 */
#include "fuse/status.h"
#include "fuse/jobs.h"
#include "fuse/mapfile.h"
#include <jansson.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int64_t uptime_seconds(const daemon_context *daemon)
{
    return (g_get_monotonic_time() - daemon->started_us) / G_USEC_PER_SEC;
}

/* ---- JSON ------------------------------------------------------------------------- */

/* Paths may hold any bytes; JSON text may not. */
static json_t *json_text(const char *text)
{
    if (!text)
        return json_null();
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    return json_string(valid);
}

static void set_count(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)MIN(value, INT64_MAX)));
}

static json_t *replica_row(disk *d, unsigned index)
{
    replica_status status;
    disk_replica_status(d, index, &status);
    json_t *row = json_object();
    json_object_set_new(row, "name", json_text(status.name));
    json_object_set_new(row, "source", json_text(status.source));
    json_object_set_new(row, "format", json_text(status.format));
    json_object_set_new(row, "decoder", json_text(status.decoder));
    json_object_set_new(row, "state", json_text(replica_state_name(status.state)));
    set_count(row, "stale-bytes", status.stale_bytes);
    set_count(row, "read-errors", status.read_errors);
    set_count(row, "write-errors", status.write_errors);
    set_count(row, "divergent-bytes", status.divergent_bytes);
    set_count(row, "latency-us", status.latency_us);
    return row;
}

static json_t *disk_row(disk *d, journal *j)
{
    json_t *row = json_object();
    json_object_set_new(row, "name", json_text(disk_name(d)));
    json_object_set_new(row, "file", json_text(disk_file(d)));
    set_count(row, "size", disk_size(d));
    set_count(row, "threshold", disk_threshold(d));
    json_object_set_new(row, "read-pattern",
                        json_text(disk_pattern_name(disk_read_pattern(d))));
    json_object_set_new(row, "blkverify", json_boolean(disk_blkverify(d)));
    json_object_set_new(row, "state", json_text(disk_state_name(d)));
    json_object_set_new(row, "read-only", json_boolean(!disk_writable(d)));
    json_object_set_new(row, "read-only-reason", json_text(disk_read_only_reason(d)));
    set_count(row, "unreconciled-bytes", disk_unreconciled_bytes(d));
    disk_counters counters;
    disk_get_counters(d, &counters);
    set_count(row, "quorum-failures", counters.quorum_failures);
    set_count(row, "journal-lost-records", j ? journal_lost(j) : 0);
    json_t *replicas = json_array();
    for (unsigned i = 0; i < disk_replica_count(d); i++)
        json_array_append_new(replicas, replica_row(d, i));
    json_object_set_new(row, "replicas", replicas);
    json_object_set_new(row, "jobs", jobs_json(d));
    return row;
}

char *status_json(const daemon_context *daemon)
{
    json_t *root = json_object();
    json_object_set_new(root, "version", json_text(QUORUMFS_VERSION));
    json_object_set_new(root, "pid", json_integer(getpid()));
    json_object_set_new(root, "mountpoint", json_text(daemon->config->mountpoint));
    json_object_set_new(root, "uptime", json_integer(uptime_seconds(daemon)));
    json_object_set_new(root, "socket", json_text(daemon->socket_path));
    json_object_set_new(root, "state-dir", json_text(daemon->state_dir));
    json_t *disks = json_array();
    for (unsigned i = 0; i < daemon->disks->len; i++)
        json_array_append_new(
            disks, disk_row(daemon->disks->pdata[i], daemon->journals->pdata[i]));
    json_object_set_new(root, "disks", disks);
    char *dump = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    char *text = g_strconcat(dump, "\n", NULL);
    free(dump);
    return text;
}

/* ---- Prometheus ------------------------------------------------------------------- */

/* The value of a label: backslash, quote and line feed are escaped. */
static char *label(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    GString *out = g_string_new(NULL);
    for (const char *c = valid; *c; c++) {
        if (*c == '\\' || *c == '"')
            g_string_append_c(out, '\\');
        if (*c == '\n')
            g_string_append(out, "\\n");
        else
            g_string_append_c(out, *c);
    }
    return g_string_free(out, FALSE);
}

static void begin_metric(GString *text, const char *name, const char *type,
                         const char *help)
{
    g_string_append_printf(text, "# HELP quorumfs_%s %s\n# TYPE quorumfs_%s %s\n", name,
                           help, name, type);
}

typedef struct disk_figures {
    disk *disk;
    journal *journal;
    disk_counters counters;
} disk_figures;

typedef struct disk_metric {
    const char *name, *type, *help;
    uint64_t (*value)(const disk_figures *figures);
} disk_metric;

static uint64_t figure_size(const disk_figures *f)
{
    return disk_size(f->disk);
}
static uint64_t figure_allocated(const disk_figures *f)
{
    return disk_allocated(f->disk);
}
static uint64_t figure_threshold(const disk_figures *f)
{
    return disk_threshold(f->disk);
}
static uint64_t figure_writable(const disk_figures *f)
{
    return disk_writable(f->disk);
}
static uint64_t figure_unreconciled(const disk_figures *f)
{
    return disk_unreconciled_bytes(f->disk);
}
static uint64_t figure_reads(const disk_figures *f)
{
    return f->counters.reads;
}
static uint64_t figure_read_bytes(const disk_figures *f)
{
    return f->counters.read_bytes;
}
static uint64_t figure_writes(const disk_figures *f)
{
    return f->counters.writes;
}
static uint64_t figure_write_bytes(const disk_figures *f)
{
    return f->counters.write_bytes;
}
static uint64_t figure_flushes(const disk_figures *f)
{
    return f->counters.flushes;
}
static uint64_t figure_divergences(const disk_figures *f)
{
    return f->counters.divergences;
}
static uint64_t figure_quorum_failures(const disk_figures *f)
{
    return f->counters.quorum_failures;
}
static uint64_t figure_journal_lost(const disk_figures *f)
{
    return f->journal ? journal_lost(f->journal) : 0;
}

static const disk_metric disk_metrics[] = {
    {"disk_size_bytes", "gauge", "Size of the virtual disk.", figure_size},
    {"disk_allocated_bytes", "gauge", "Bytes allocated, the most of any replica.",
     figure_allocated},
    {"disk_threshold", "gauge", "Replicas that must agree.", figure_threshold},
    {"disk_writable", "gauge", "1 if the disk takes writes.", figure_writable},
    {"disk_unreconciled_bytes", "gauge",
     "Bytes that a crash left to be made equal on all replicas.", figure_unreconciled},
    {"disk_reads_total", "counter", "Read requests.", figure_reads},
    {"disk_read_bytes_total", "counter", "Bytes read.", figure_read_bytes},
    {"disk_writes_total", "counter", "Write requests.", figure_writes},
    {"disk_write_bytes_total", "counter", "Bytes written.", figure_write_bytes},
    {"disk_flushes_total", "counter", "Flush requests.", figure_flushes},
    {"disk_divergences_total", "counter", "Requests on which replicas differed.",
     figure_divergences},
    {"disk_quorum_failures_total", "counter", "Requests without a majority.",
     figure_quorum_failures},
    {"disk_journal_lost_records_total", "counter",
     "Journal records that could not be written.", figure_journal_lost},
};

typedef struct replica_metric {
    const char *name, *type, *help;
    size_t offset; /* of a uint64_t in replica_status */
} replica_metric;

static const replica_metric replica_metrics[] = {
    {"replica_stale_bytes", "gauge", "Bytes that the replica missed.",
     offsetof(replica_status, stale_bytes)},
    {"replica_read_errors_total", "counter", "Failed reads.",
     offsetof(replica_status, read_errors)},
    {"replica_write_errors_total", "counter", "Failed writes and flushes.",
     offsetof(replica_status, write_errors)},
    {"replica_divergent_bytes_total", "counter", "Bytes on which the replica lost.",
     offsetof(replica_status, divergent_bytes)},
    {"replica_latency_microseconds", "gauge", "Moving average of one request.",
     offsetof(replica_status, latency_us)},
};

static void append_disk_metric(GString *text, const daemon_context *daemon,
                               const disk_metric *metric)
{
    begin_metric(text, metric->name, metric->type, metric->help);
    for (unsigned i = 0; i < daemon->disks->len; i++) {
        disk_figures figures = {.disk = daemon->disks->pdata[i],
                                .journal = daemon->journals->pdata[i]};
        disk_get_counters(figures.disk, &figures.counters);
        g_autofree char *name = label(disk_name(figures.disk));
        g_string_append_printf(text, "quorumfs_%s{disk=\"%s\"} %" G_GUINT64_FORMAT "\n",
                               metric->name, name, metric->value(&figures));
    }
}

static void append_disk_states(GString *text, const daemon_context *daemon)
{
    static const char *const states[] = {"healthy", "degraded", "failed"};
    begin_metric(text, "disk_state", "gauge", "1 for the state that the disk is in.");
    for (unsigned i = 0; i < daemon->disks->len; i++) {
        disk *d = daemon->disks->pdata[i];
        const char *present = disk_state_name(d);
        g_autofree char *name = label(disk_name(d));
        for (unsigned j = 0; j < G_N_ELEMENTS(states); j++)
            g_string_append_printf(text,
                                   "quorumfs_disk_state{disk=\"%s\",state=\"%s\"} %d\n",
                                   name, states[j], strcmp(states[j], present) == 0);
    }
}

/* Calls `row` for each replica of each disk with its labels. */
typedef void (*replica_fn)(GString *text, const char *labels,
                           const replica_status *status, const replica_metric *metric);

static void each_replica(GString *text, const daemon_context *daemon, replica_fn row,
                         const replica_metric *metric)
{
    begin_metric(text, metric->name, metric->type, metric->help);
    for (unsigned i = 0; i < daemon->disks->len; i++) {
        disk *d = daemon->disks->pdata[i];
        g_autofree char *disk_label = label(disk_name(d));
        for (unsigned j = 0; j < disk_replica_count(d); j++) {
            replica_status status;
            disk_replica_status(d, j, &status);
            g_autofree char *name = label(status.name);
            g_autofree char *labels =
                g_strdup_printf("disk=\"%s\",replica=\"%s\"", disk_label, name);
            row(text, labels, &status, metric);
        }
    }
}

static void figure_row(GString *text, const char *labels, const replica_status *status,
                       const replica_metric *metric)
{
    uint64_t value;
    memcpy(&value, (const char *)status + metric->offset, sizeof value);
    g_string_append_printf(text, "quorumfs_%s{%s} %" G_GUINT64_FORMAT "\n", metric->name,
                           labels, value);
}

static void state_row(GString *text, const char *labels, const replica_status *status,
                      const replica_metric *metric)
{
    static const replica_state states[] = {REPLICA_IN_SYNC,   REPLICA_STALE,
                                           REPLICA_RESYNCING, REPLICA_HUNG,
                                           REPLICA_FAILED,    REPLICA_REMOVED};
    for (unsigned i = 0; i < G_N_ELEMENTS(states); i++)
        g_string_append_printf(text, "quorumfs_%s{%s,state=\"%s\"} %d\n", metric->name,
                               labels, replica_state_name(states[i]),
                               states[i] == status->state);
}

char *status_metrics(const daemon_context *daemon)
{
    static const replica_metric state = {"replica_state", "gauge",
                                         "1 for the state that the replica is in.", 0};
    GString *text = g_string_new(NULL);
    begin_metric(text, "info", "gauge", "Always 1; its label is the version.");
    g_string_append(text, "quorumfs_info{version=\"" QUORUMFS_VERSION "\"} 1\n");
    begin_metric(text, "uptime_seconds", "gauge", "Seconds since the mount was made.");
    g_string_append_printf(text, "quorumfs_uptime_seconds %" G_GINT64_FORMAT "\n",
                           uptime_seconds(daemon));
    append_disk_states(text, daemon);
    for (unsigned i = 0; i < G_N_ELEMENTS(disk_metrics); i++)
        append_disk_metric(text, daemon, &disk_metrics[i]);
    each_replica(text, daemon, state_row, &state);
    for (unsigned i = 0; i < G_N_ELEMENTS(replica_metrics); i++)
        each_replica(text, daemon, figure_row, &replica_metrics[i]);
    return g_string_free(text, FALSE);
}

/* ---- Map --------------------------------------------------------------------------- */

char *status_divergence_map(disk *d)
{
    g_autoptr(GArray) ranges = disk_bad_ranges(d);
    g_autofree mapfile_block *blocks = g_new(mapfile_block, ranges->len + 1);
    for (unsigned i = 0; i < ranges->len; i++) {
        const disk_bad_range *range = &g_array_index(ranges, disk_bad_range, i);
        blocks[i] = (mapfile_block){.offset = range->offset,
                                    .length = range->length,
                                    .status = range->no_quorum ? '-' : '/'};
    }
    g_autofree char *comment =
        g_strdup_printf("where the replicas of disk %s differed", disk_name(d));
    return mapfile_format(disk_size(d), '?', blocks, ranges->len, comment);
}
