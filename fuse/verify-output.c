/*
 * verify-output.c: text for people and line tools, JSON for programs.
 *
 * Text: OFFSET LENGTH differs: LOSERS wins: WINNERS unreadable: FAILED. Members of a group
 * are joined with commas; without a majority `differs` lists all groups, joined with bars.
 */
#include "fuse/verify-output.h"
#include "fuse/cli.h"
#include <inttypes.h>

struct verify_output {
    bool json, several;
    unsigned n_disks; /* written so far */
    disk *d;          /* the present one */
    unsigned n_ranges, n_manifest;
    /* JSON: lines about the manifest, which come while ranges are being written. */
    GString *manifest;
};

verify_output *verify_output_new(bool json, bool several)
{
    verify_output *out = g_new0(verify_output, 1);
    out->json = json;
    out->several = several;
    out->manifest = g_string_new(NULL);
    if (json)
        printf("{\"version\": \"%s\", \"disks\": [", QUORUMFS_VERSION);
    return out;
}

void verify_output_free(verify_output *out)
{
    if (!out)
        return;
    g_string_free(out->manifest, TRUE);
    g_free(out);
}

static const char *replica_name(disk *d, unsigned i)
{
    replica_status status;
    disk_replica_status(d, i, &status);
    return status.name;
}

/* --- JSON --- */

static json_t *json_text(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text ? text : "", -1);
    return json_string(valid);
}

/* Takes over `value`. */
static void json_put(GString *to, json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(value);
    g_string_append(to, text ? text : "null");
    free(text);
}

static void json_print(json_t *value)
{
    GString *text = g_string_new(NULL);
    json_put(text, value);
    fputs(text->str, stdout);
    g_string_free(text, TRUE);
}

static json_t *json_number(uint64_t number)
{
    return json_integer((json_int_t)number);
}

static json_t *json_set_of(disk *d, uint64_t set)
{
    json_t *names = json_array();
    for (unsigned i = 0; i < disk_replica_count(d); i++) {
        if (set >> i & 1)
            json_array_append_new(names, json_text(replica_name(d, i)));
    }
    return names;
}

static uint64_t group_members(disk *d, const verify_range *range, unsigned group)
{
    uint64_t set = 0;
    for (unsigned i = 0; i < disk_replica_count(d); i++)
        set |= (uint64_t)(range->group[i] == group) << i;
    return set;
}

static void json_range(verify_output *out, const verify_range *range)
{
    json_t *groups = json_array();
    for (unsigned g = 0; g < range->n_groups; g++)
        json_array_append_new(groups,
                              json_set_of(out->d, group_members(out->d, range, g)));
    json_t *row = json_object();
    json_object_set_new(row, "offset", json_number(range->offset));
    json_object_set_new(row, "length", json_number(range->length));
    json_object_set_new(row, "winners", json_set_of(out->d, range->winners));
    json_object_set_new(row, "losers", json_set_of(out->d, range->losers));
    json_object_set_new(row, "failed", json_set_of(out->d, range->failed));
    json_object_set_new(row, "groups", groups);
    fputs(out->n_ranges ? ",\n" : "\n", stdout);
    json_print(row);
}

static json_t *json_replicas(disk *d, const verify_summary *summary)
{
    json_t *replicas = json_array();
    for (unsigned i = 0; i < disk_replica_count(d); i++) {
        replica_status status;
        disk_replica_status(d, i, &status);
        json_t *row = json_object();
        json_object_set_new(row, "name", json_text(status.name));
        json_object_set_new(row, "source", json_text(status.source));
        json_object_set_new(row, "format", json_text(status.format));
        json_object_set_new(row, "decoder", json_text(status.decoder));
        json_object_set_new(row, "differing-bytes",
                            json_number(summary->replica_differing_bytes[i]));
        json_object_set_new(row, "unreadable-bytes",
                            json_number(summary->replica_error_bytes[i]));
        json_array_append_new(replicas, row);
    }
    return replicas;
}

static json_t *json_summary(const verify_summary *s,
                            const verify_manifest_summary *manifest)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"checked-bytes", s->checked_bytes},
        {"skipped-bytes", s->skipped_bytes},
        {"differing-bytes", s->differing_bytes},
        {"differing-ranges", s->differing_ranges},
        {"no-majority-bytes", s->no_majority_bytes},
        {"no-majority-ranges", s->no_majority_ranges},
        {"read-error-bytes", s->read_error_bytes},
        {"read-error-ranges", s->read_error_ranges},
    };
    json_t *object = json_object();
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++)
        json_object_set_new(object, numbers[i].name, json_number(numbers[i].value));
    if (manifest->checked) {
        json_object_set_new(object, "manifest-different-bytes",
                            json_number(manifest->different_bytes));
        json_object_set_new(object, "manifest-unknown-bytes",
                            json_number(manifest->unknown_bytes));
    }
    json_object_set_new(object, "interrupted", json_boolean(s->interrupted));
    return object;
}

/* --- text --- */

/* "a,c" */
static char *text_set_of(disk *d, uint64_t set)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < disk_replica_count(d); i++) {
        if (set >> i & 1)
            g_string_append_printf(text, "%s%s", text->len ? "," : "",
                                   replica_name(d, i));
    }
    return g_string_free(text, FALSE);
}

static void text_place(const verify_output *out, uint64_t offset, uint64_t length)
{
    if (out->several)
        printf("%s: ", disk_name(out->d));
    printf("%" PRIu64 " %" PRIu64, offset, length);
}

static void text_range(const verify_output *out, const verify_range *range)
{
    text_place(out, range->offset, range->length);
    g_autofree char *winners = text_set_of(out->d, range->winners);
    g_autofree char *losers = text_set_of(out->d, range->losers);
    g_autofree char *failed = text_set_of(out->d, range->failed);
    if (range->losers) {
        printf(" differs: %s", losers);
    } else if (range->n_groups > 1) {
        for (unsigned g = 0; g < range->n_groups; g++) {
            g_autofree char *members =
                text_set_of(out->d, group_members(out->d, range, g));
            printf("%s%s", g ? "|" : " differs: ", members);
        }
    }
    printf(" wins: %s", range->winners ? winners : "none");
    if (range->failed)
        printf(" unreadable: %s", failed);
    putchar('\n');
}

static void text_found(GString *text, const char *what, uint64_t ranges, uint64_t bytes)
{
    if (ranges)
        g_string_append_printf(text, "; %s: %" PRIu64 " range%s, %" PRIu64 " bytes", what,
                               ranges, ranges == 1 ? "" : "s", bytes);
}

char *verify_summary_text(disk *d, const verify_summary *s,
                          const verify_manifest_summary *manifest)
{
    unsigned n = disk_replica_count(d);
    GString *text = g_string_new(s->interrupted ? "interrupted: " : NULL);
    g_string_append_printf(text,
                           "%u replica%s of %" PRIu64 " bytes, threshold %u: %" PRIu64
                           " bytes %s, %" PRIu64 " zero in every map",
                           n, n == 1 ? "" : "s", s->size, disk_threshold(d),
                           s->checked_bytes, n == 1 ? "read" : "compared",
                           s->skipped_bytes);
    if (!s->differing_ranges && !s->no_majority_ranges && !s->read_error_ranges)
        g_string_append(text, n > 1 ? "; all agree" : "; all read");
    text_found(text, "differing", s->differing_ranges, s->differing_bytes);
    text_found(text, "without a majority", s->no_majority_ranges, s->no_majority_bytes);
    text_found(text, "unreadable", s->read_error_ranges, s->read_error_bytes);
    if (manifest->checked && !manifest->different_bytes && !manifest->unknown_bytes)
        g_string_append(text, "; as in the manifest");
    if (manifest->different_bytes)
        g_string_append_printf(text, "; not as in the manifest: %" PRIu64 " bytes",
                               manifest->different_bytes);
    if (manifest->unknown_bytes)
        g_string_append_printf(text, "; unknown to the manifest: %" PRIu64 " bytes",
                               manifest->unknown_bytes);
    return g_string_free(text, FALSE);
}

/* --- both --- */

void verify_output_disk_failed(verify_output *out, const disk_options *options,
                               const char *message)
{
    if (!out->json)
        return;
    json_t *object = json_object();
    json_object_set_new(object, "name", json_text(options->name));
    json_object_set_new(object, "error", json_text(message));
    fputs(out->n_disks++ ? ",\n" : "\n", stdout);
    json_print(object);
}

void verify_output_disk_begin(verify_output *out, disk *d)
{
    out->d = d;
    out->n_ranges = 0;
    out->n_manifest = 0;
    g_string_truncate(out->manifest, 0);
    if (!out->json)
        return;
    fputs(out->n_disks++ ? ",\n{\"name\": " : "\n{\"name\": ", stdout);
    json_print(json_text(disk_name(d)));
    printf(", \"size\": %" PRIu64 ", \"threshold\": %u, \"ranges\": [", disk_size(d),
           disk_threshold(d));
}

void verify_output_range(verify_output *out, const verify_range *range)
{
    if (out->json)
        json_range(out, range);
    else
        text_range(out, range);
    out->n_ranges++;
}

void verify_output_manifest(verify_output *out, uint64_t offset, uint64_t length,
                            manifest_verdict verdict)
{
    bool different = verdict == MANIFEST_DIFFERENT;
    if (out->json) {
        json_t *row = json_object();
        json_object_set_new(row, "offset", json_number(offset));
        json_object_set_new(row, "length", json_number(length));
        json_object_set_new(row, "state", json_text(different ? "different" : "unknown"));
        g_string_append(out->manifest, out->n_manifest++ ? ",\n" : "\n");
        json_put(out->manifest, row);
    } else {
        text_place(out, offset, length);
        puts(different ? " differs from the manifest"
                       : " is not in the manifest (no majority when it was made)");
    }
}

void verify_output_summary(verify_output *out, const verify_summary *summary,
                           const verify_manifest_summary *manifest, double seconds)
{
    if (!out->json) {
        g_autofree char *text = verify_summary_text(out->d, summary, manifest);
        if (out->several)
            printf("%s: ", disk_name(out->d));
        printf("%s; %.1f s\n", text, seconds);
        fflush(stdout);
        return;
    }
    fputs(out->n_ranges ? "\n]" : "]", stdout);
    if (manifest->checked)
        printf(", \"manifest\": [%s%s]", out->manifest->str, out->n_manifest ? "\n" : "");
    fputs(", \"replicas\": ", stdout);
    json_print(json_replicas(out->d, summary));
    fputs(", \"summary\": ", stdout);
    json_print(json_summary(summary, manifest));
}

void verify_output_disk_close(verify_output *out, json_t *repair, const char *text,
                              int exit_code)
{
    if (!out->json) {
        json_decref(repair);
        if (text)
            puts(text);
        fflush(stdout);
        return;
    }
    if (repair) {
        fputs(", \"repair\": ", stdout);
        json_print(repair);
    }
    printf(", \"exit\": %d}", exit_code);
}

void verify_output_disk_end(verify_output *out, const verify_summary *summary,
                            const verify_manifest_summary *manifest, double seconds,
                            int exit_code)
{
    verify_output_summary(out, summary, manifest, seconds);
    verify_output_disk_close(out, NULL, NULL, exit_code);
}

bool verify_output_end(verify_output *out, int exit_code)
{
    if (out->json)
        printf("\n], \"exit\": %d}\n", exit_code);
    return fflush(stdout) == 0 && !ferror(stdout);
}
