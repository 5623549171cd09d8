/*
 * cmd-status.c: status.
 *
 * The mount's own files are the source, so that what people see, what programs parse and
 * what a scraper collects cannot differ.
 */
#include "fuse/cli.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define METRICS_BYTES_MAX (16u << 20)

#define GREEN  "\033[32m"
#define YELLOW "\033[33m"
#define RED    "\033[31m"

static const char *text_of(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "?";
}

static uint64_t number_of(const json_t *row, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(row, key));
    return value > 0 ? (uint64_t)value : 0;
}

static bool has_colours(void)
{
    return isatty(STDOUT_FILENO) && !g_getenv("NO_COLOR") &&
           g_strcmp0(g_getenv("TERM"), "dumb") != 0;
}

static const char *colour_of(const char *state)
{
    if (!has_colours())
        return "";
    if (strcmp(state, "healthy") == 0 || strcmp(state, "in-sync") == 0)
        return GREEN;
    return strcmp(state, "failed") == 0 || strcmp(state, "hung") == 0 ? RED : YELLOW;
}

/* `text` in exactly or, for width < 0, at most so many columns; the start is cut away,
 * because the end of a path tells more. Control characters are shown as '?'. g_free it. */
static char *cell(const char *text, int width)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    for (char *p = valid; *p; p++)
        if (g_ascii_iscntrl(*p))
            *p = '?';
    glong columns = ABS(width), length = g_utf8_strlen(valid, -1);
    if (length > columns)
        return g_strconcat("...", g_utf8_offset_to_pointer(valid, length - columns + 3),
                           NULL);
    return g_strdup_printf("%s%*s", valid, width > 0 ? (int)(columns - length) : 0, "");
}

/* At most 5 columns. */
static char *count_text(uint64_t count)
{
    static const char units[] = " KMGTPE";
    unsigned unit = 0;
    if (count < 100000)
        return g_strdup_printf("%" G_GUINT64_FORMAT, count);
    for (; count >= 1000; unit++)
        count /= 1000;
    return g_strdup_printf("%" G_GUINT64_FORMAT "%c", count, units[unit]);
}

static char *latency_text(uint64_t us)
{
    if (us < 10000)
        return g_strdup_printf("%" G_GUINT64_FORMAT " us", us);
    return g_strdup_printf("%" G_GUINT64_FORMAT " ms", us / 1000);
}

/* 80 columns: 4 + name + 1 + 9 + 1 + 5 + 1 + 6 + 2 + 9 + 1 + 8 + 2 + 7 + 2 + source. */
static void print_replica(const json_t *row, int name_width)
{
    const char *state = text_of(row, "state");
    const char *colour = colour_of(state);
    g_autofree char *name = cell(text_of(row, "name"), name_width);
    g_autofree char *state_cell = cell(state, 9);
    g_autofree char *reads = count_text(number_of(row, "read-errors"));
    g_autofree char *writes = count_text(number_of(row, "write-errors"));
    g_autofree char *latency = latency_text(number_of(row, "latency-us"));
    g_autofree char *decoder = cell(text_of(row, "decoder"), 7);
    g_autofree char *source = cell(text_of(row, "source"), -(18 - (name_width - 4)));
    printf("    %s %s%s%s %5s %6s  %9s %8s  %s  %s\n", name, colour, state_cell,
           *colour ? "\033[0m" : "", reads, writes,
           cli_size_text(number_of(row, "divergent-bytes")), latency, decoder, source);
}

/* What to do next, as `zpool status` does. */
static const char *advice(const json_t *d)
{
    bool failed = strcmp(text_of(d, "state"), "failed") == 0;
    bool errors = false, divergent = false, lost = false, stale = false, filling = false;
    bool hung = false;
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(d, "replicas"), i, row)
    {
        errors |= number_of(row, "read-errors") || number_of(row, "write-errors");
        divergent |= number_of(row, "divergent-bytes") > 0;
        lost |= strcmp(text_of(row, "state"), "failed") == 0;
        hung |= strcmp(text_of(row, "state"), "hung") == 0;
        stale |= strcmp(text_of(row, "state"), "stale") == 0;
        filling |= strcmp(text_of(row, "state"), "resyncing") == 0;
    }
    if (failed && (hung || lost))
        return "too few replicas are left: requests fail. Those that are out come\n"
               "            back by themselves when they can; the events say why not.";
    if (failed)
        return "too few replicas are in sync: requests fail. Look at the events;\n"
               "            quorumfs repair --from REPLICA, unmounted, makes all like "
               "one.";
    if (lost)
        return "a replica failed and is out. It comes back by itself when it can\n"
               "            be opened; the events say why not (quorumfs replica "
               "replace\n"
               "            puts another in its place).";
    if (hung)
        return "a replica does not answer, and nobody waits for it. It comes back\n"
               "            by itself when it does.";
    if (stale)
        return "a replica missed changes, and is tried again now and then (at once\n"
               "            by quorumfs resync --wait, which says why it cannot be "
               "filled).";
    if (filling)
        return "a replica missed changes and is catching up. Nothing to be done.";
    if (number_of(d, "quorum-failures"))
        return "requests failed since the mount, because too few replicas were\n"
               "            there or agreed. The events and explain say where.";
    if (divergent)
        return "replicas differed since the mount, and were outvoted. The events\n"
               "            and explain say where; quorumfs scrub --repair gives them "
               "the\n"
               "            majority's bytes, if that is not done yet.";
    if (errors)
        return "replicas had errors and were outvoted. Look at the events,\n"
               "            and at the disks below.";
    if (number_of(d, "unreconciled-bytes") &&
        json_is_true(json_object_get(d, "read-only")))
        return "after a crash replicas may differ where they were written to. A\n"
               "            mount that may write makes them equal.";
    return NULL;
}

/* "     scrub: running, 45.1% of 10.0 GiB; differing: 512 bytes; repaired: 512 bytes" */
static void print_job(const json_t *job)
{
    static const struct {
        const char *what, *key;
    } found[] = {
        {"differing", "differing-bytes"},
        {"unreadable", "unreadable-bytes"},
        {"without a majority", "no-majority-bytes"},
        {"repaired", "repaired-bytes"},
        {"not repaired", "failed-bytes"},
    };
    uint64_t length = number_of(job, "len"), offset = number_of(job, "offset");
    const char *ended = json_string_value(json_object_get(job, "ended"));
    printf("%10s: %s", text_of(job, "type"),
           ended ? text_of(job, "result") : text_of(job, "status"));
    if (ended)
        printf(" %s", ended);
    printf(", %.1f%% of %s", length ? 100.0 * (double)offset / (double)length : 100.0,
           cli_size_text(length));
    for (size_t i = 0; i < G_N_ELEMENTS(found); i++)
        if (number_of(job, found[i].key))
            printf("; %s: %s", found[i].what,
                   cli_size_text(number_of(job, found[i].key)));
    if (json_object_get(job, "error"))
        printf("; %s", text_of(job, "error"));
    putchar('\n');
}

/* "     state: ", and in 80 columns as many lines as it takes. */
static void print_text(const char *label, const char *text)
{
    g_autofree char *whole = cell(text, -1000);
    g_auto(GStrv) words = g_strsplit(whole, " ", -1);
    glong column = 12;
    printf("%10s:", label);
    for (char **word = words; *word; word++) {
        g_autofree char *shown = cell(*word, -67);
        glong width = g_utf8_strlen(shown, -1);
        if (column > 12 && column + width > 80) {
            printf("\n           ");
            column = 12;
        }
        printf(" %s", shown);
        column += width + 1;
    }
    putchar('\n');
}

/* What a crash left is being made equal, unless nobody may write. Until then a disk is not
 * called healthy. */
static void print_state(const json_t *d)
{
    const char *state = text_of(d, "state"), *left = NULL;
    bool read_only = json_is_true(json_object_get(d, "read-only"));
    uint64_t unequal = number_of(d, "unreconciled-bytes");
    bool well = strcmp(state, "healthy") == 0;
    const char *colour = colour_of(unequal && well ? "degraded" : state);
    if (unequal)
        left = cli_size_text(unequal);
    printf("     state: %s%s", colour, left && well ? "" : state);
    if (left)
        printf("%s%s, %s%s", well ? "" : ", ",
               read_only ? "not reconciled" : "reconciling", left,
               read_only ? "" : " left");
    printf("%s\n", *colour ? "\033[0m" : "");
    if (!read_only)
        return;
    const char *why = json_string_value(json_object_get(d, "read-only-reason"));
    print_text("read-only", why ? why : "as asked for");
}

static void print_disk(const json_t *d)
{
    const json_t *replicas = json_object_get(d, "replicas");
    g_autofree char *name = cell(text_of(d, "name"), -60);
    g_autofree char *file = cell(text_of(d, "file"), -60);
    const char *todo = advice(d);
    printf("      disk: %s\n", name);
    printf("      file: %s\n", file);
    print_state(d);
    printf("      size: %s (%" G_GUINT64_FORMAT " bytes)\n",
           cli_size_text(number_of(d, "size")), number_of(d, "size"));
    printf(" threshold: %" G_GUINT64_FORMAT " of %zu\n", number_of(d, "threshold"),
           json_array_size(replicas));
    if (todo)
        printf("    action: %s\n", todo);
    if (number_of(d, "journal-lost-records"))
        printf("   journal: %" G_GUINT64_FORMAT
               " records could not be written. Make room "
               "in the state directory\n            (status --json names it).\n",
               number_of(d, "journal-lost-records"));

    int width = 4;
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(d, "jobs"), i, row)
    {
        print_job(row);
    }
    json_array_foreach(replicas, i, row)
    {
        glong length = g_utf8_strlen(text_of(row, "name"), -1);
        width = (int)CLAMP(length, width, 12);
    }
    g_autofree char *title = cell("name", width);
    printf("\n    %*s %-9s -- errors --\n", width, "", "");
    printf("    %s %-9s %5s %6s  %9s %8s  %-7s  %s\n", title, "state", "read", "write",
           "differing", "latency", "decoder", "source");
    json_array_foreach(replicas, i, row)
    {
        print_replica(row, width);
    }
}

/* Metrics of one disk, and those that belong to no disk. */
static void print_metrics(const char *text, const char *only)
{
    GString *label = g_string_new("disk=\"");
    for (const char *p = only ? only : ""; *p; p++) {
        if (*p == '"' || *p == '\\')
            g_string_append_c(label, '\\');
        g_string_append_c(label, *p);
    }
    g_string_append_c(label, '"');
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++)
        if (**line && (!only || **line == '#' || !strstr(*line, "disk=\"") ||
                       strstr(*line, label->str)))
            puts(*line);
    g_string_free(label, TRUE);
}

static int status_metrics_of(const cli_mount *mount, const char *only)
{
    g_autofree char *path = g_build_filename(mount->path, ".quorumfs", "metrics", NULL);
    g_autofree char *text = cli_read_file(path, METRICS_BYTES_MAX, NULL);
    if (!text) {
        cli_error("%s: %s", path, g_strerror(errno));
        return CLI_UNREACHABLE;
    }
    print_metrics(text, only);
    return CLI_OK;
}

static int status_json_of(const cli_mount *mount, json_t *only)
{
    json_t *disks = only ? json_pack("[O]", only) : NULL;
    if (disks)
        json_object_set_new(mount->status, "disks", disks);
    json_dumpf(mount->status, stdout, JSON_INDENT(2));
    putchar('\n');
    return CLI_OK;
}

static int status_table(const cli_mount *mount, const json_t *only)
{
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(mount->status, "disks"), i, d)
    {
        if (only && d != only)
            continue;
        if (i > 0 && !only)
            putchar('\n');
        print_disk(d);
    }
    return CLI_OK;
}

int cmd_status(int argc, char **argv)
{
    bool json = false, prometheus = false;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {{.name = "json", .flag = &json},
                                  {.name = "prometheus", .flag = &prometheus},
                                  {0}};
    int code = cli_parse(argc, argv, options, CLI_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len < 1 || words->len > 2)
        return cli_usage_error("status", CLI_USAGE,
                               words->len ? "too many words" : "no mount point given");
    if (json && prometheus)
        return cli_usage_error("status", CLI_USAGE, "--json or --prometheus, not both");
    cli_mount mount;
    if (!cli_mount_find_live(g_ptr_array_index(words, 0), &mount))
        return CLI_UNREACHABLE;
    const char *name = words->len > 1 ? g_ptr_array_index(words, 1) : NULL;
    json_t *only = name ? cli_mount_disk(&mount, name) : NULL;
    if (name && !only)
        code = CLI_UNREACHABLE;
    else if (prometheus)
        code = status_metrics_of(&mount, name);
    else
        code = json ? status_json_of(&mount, only) : status_table(&mount, only);
    cli_mount_clear(&mount);
    return code;
}
