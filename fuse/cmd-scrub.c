/*
 * cmd-scrub.c: scrub and resync of a disk that is mounted, through its control socket. The
 * daemon does the work; these begin it, and with --wait they look at its status until it is
 * done. Who interrupts them (SIGINT, SIGTERM) stops only the looking.
 */
#include "fuse/config-internal.h"
#include "fuse/interrupt.h"
#include "fuse/live.h"
#include "fuse/progress.h"
#include "quorum/repair.h"
#include <inttypes.h>
#include <string.h>

#define POLL_US 200000

#define EXIT_READ_ERRORS 4
#define EXIT_INTERRUPTED 130

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

/* Looks at the row of a job until it does not run any more; a new reference. *ret_disk: the
 * disk's row, likewise. NULL and no disk: the daemon cannot be asked, or an interruption. */
static json_t *await_job(const live_disk *l, const char *type, progress *p,
                         json_t **ret_disk)
{
    for (;;) {
        json_t *disk_row = interrupt_signal ? NULL : live_status(l);
        *ret_disk = disk_row;
        json_t *job = live_row(json_object_get(disk_row, "jobs"), "type", type);
        if (!job || strcmp(text_of(job, "status"), "running") != 0) {
            progress_hide(p);
            return json_incref(job);
        }
        uint64_t done = number_of(job, "offset"), size = number_of(job, "len");
        progress_tell(p, done, size, number_of(job, "ranges"));
        if (interrupt_line)
            progress_line(p, done, size, number_of(job, "ranges"));
        interrupt_line = 0;
        json_decref(disk_row);
        g_usleep(POLL_US);
    }
}

/* The exit code without an answer. */
static int no_answer(const live_disk *l, const char *what)
{
    if (!interrupt_signal)
        return CLI_UNREACHABLE;
    cli_error("%s: the %s of disk '%s' goes on", l->mountpoint, what, l->name);
    return 128 + interrupt_signal;
}

/* ---- Scrub --------------------------------------------------------------------------- */

static void append_bytes(GString *text, const json_t *job, const char *what,
                         const char *key)
{
    uint64_t bytes = number_of(job, key);
    if (bytes)
        g_string_append_printf(text, "; %s: %" PRIu64 " bytes", what, bytes);
}

static void print_scrub(const live_disk *l, const json_t *job)
{
    const char *result = text_of(job, "result");
    GString *text = g_string_new(NULL);
    if (strcmp(result, "completed") != 0)
        g_string_append_printf(text, "%s: ", result);
    g_string_append_printf(
        text, "%" PRIu64 " bytes compared, %" PRIu64 " zero in every map",
        number_of(job, "checked-bytes"), number_of(job, "skipped-bytes"));
    if (!number_of(job, "ranges"))
        g_string_append(text, "; all agree");
    append_bytes(text, job, "differing", "differing-bytes");
    append_bytes(text, job, "without a majority", "no-majority-bytes");
    append_bytes(text, job, "unreadable", "unreadable-bytes");
    append_bytes(text, job, "repaired", "repaired-bytes");
    append_bytes(text, job, "not repaired", "failed-bytes");
    printf("%s: %s; %" PRIu64 " s\n", l->name, text->str, number_of(job, "seconds"));
    g_string_free(text, TRUE);
}

static int scrub_exit(const json_t *job)
{
    const repair_stats stats = {.differing = number_of(job, "differing-bytes"),
                                .unreadable = number_of(job, "unreadable-bytes"),
                                .failed = number_of(job, "failed-bytes"),
                                .no_quorum = number_of(job, "no-majority-bytes")};
    int code = repair_exit_code(&stats);
    if (strcmp(text_of(job, "result"), "cancelled") == 0)
        return EXIT_INTERRUPTED;
    if (strcmp(text_of(job, "result"), "failed") != 0 || code == 5)
        return code;
    cli_error("some of it could not be looked at, or not be flushed: %s",
              text_of(job, "error"));
    return EXIT_READ_ERRORS;
}

static int scrub_wait(const live_disk *l, bool lines)
{
    progress p;
    json_t *disk_row = NULL;
    progress_begin(&p, l->name, lines);
    json_t *job = await_job(l, "scrub", &p, &disk_row);
    int code = disk_row ? CLI_UNREACHABLE : no_answer(l, "scrub");
    if (job) {
        print_scrub(l, job);
        code = scrub_exit(job);
    } else if (disk_row) {
        cli_error("%s: the scrub is not in the status any more", l->mountpoint);
    }
    json_decref(job);
    json_decref(disk_row);
    return code;
}

int cli_scrub(const char *mountpoint, const char *name, const cli_scrub_options *options)
{
    live_disk l;
    int code = CLI_UNREACHABLE;
    if (!live_find(&l, mountpoint, name))
        return code;
    json_t *arguments = json_pack("{s:s}", "disk", name);
    if (!options->cancel) {
        json_object_set_new(arguments, "repair", json_boolean(options->repair));
        json_object_set_new(arguments, "speed", json_integer((json_int_t)options->speed));
    }
    if (options->wait)
        interrupt_catch();
    if (live_begin(&l, options->cancel ? "quorumfs-scrub-cancel" : "quorumfs-scrub",
                   arguments)) {
        code = CLI_OK;
        if (options->wait)
            code = scrub_wait(&l, options->lines);
        else if (!options->cancel)
            printf("%s: the scrub has begun (quorumfs status tells how far it is)\n",
                   name);
    }
    live_clear(&l);
    return code;
}

int cmd_scrub(int argc, char **argv)
{
    cli_scrub_options scrub = {0};
    const char *speed = NULL;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {
        {.name = "repair", .flag = &scrub.repair},
        {.name = "wait", .flag = &scrub.wait},
        {.name = "cancel", .flag = &scrub.cancel},
        {.name = "progress", .letter = 'p', .flag = &scrub.lines},
        {.name = "speed", .value = &speed},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_VERIFY_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len != 2)
        return cli_usage_error("scrub", CLI_VERIFY_USAGE,
                               words->len < 2 ? "a mount point and a disk are needed"
                                              : "too many words");
    if (scrub.cancel && (scrub.repair || speed))
        return cli_usage_error("scrub", CLI_VERIFY_USAGE, "--cancel begins nothing");
    if (speed && (!config_parse_size(speed, &scrub.speed) || scrub.speed == 0 ||
                  scrub.speed > INT64_MAX))
        return cli_usage_error("scrub", CLI_VERIFY_USAGE, "--speed '%s' is not a size",
                               speed);
    return cli_scrub(g_ptr_array_index(words, 0), g_ptr_array_index(words, 1), &scrub);
}

/* ---- Resync -------------------------------------------------------------------------- */

/* Whoever is neither in sync nor filled by a resync. */
static bool report_out(const live_disk *l, const json_t *disk_row)
{
    bool any = false;
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(disk_row, "replicas"), i, row)
    {
        const char *state = text_of(row, "state");
        if (strcmp(state, "in-sync") == 0 || strcmp(state, "removed") == 0)
            continue;
        cli_error("%s: replica '%s' is %s (quorumfs events tells why)", l->mountpoint,
                  text_of(row, "name"), state);
        any = true;
    }
    return any;
}

static int resync_wait(const live_disk *l, bool lines)
{
    progress p;
    json_t *disk_row = NULL;
    progress_begin(&p, l->name, lines);
    p.plain = true;
    json_t *job = await_job(l, "resync", &p, &disk_row);
    int code = disk_row ? CLI_OK : no_answer(l, "resync");
    if (job && json_object_get(job, "error"))
        cli_error("%s: disk '%s': %s", l->mountpoint, l->name, text_of(job, "error"));
    if (disk_row && report_out(l, disk_row))
        code = EXIT_READ_ERRORS;
    if (code == CLI_OK)
        printf("%s: all replicas%s are in sync\n", l->name,
               live_row(json_object_get(disk_row, "replicas"), "state", "removed")
                   ? " but what was removed"
                   : "");
    json_decref(job);
    json_decref(disk_row);
    return code;
}

int cmd_resync(int argc, char **argv)
{
    bool wait = false, lines = false;
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {
        {.name = "wait", .flag = &wait},
        {.name = "progress", .letter = 'p', .flag = &lines},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_VERIFY_USAGE, words);
    if (code >= 0)
        return code;
    if (words->len != 2)
        return cli_usage_error("resync", CLI_VERIFY_USAGE,
                               words->len < 2 ? "a mount point and a disk are needed"
                                              : "too many words");
    live_disk l;
    if (!live_find(&l, g_ptr_array_index(words, 0), g_ptr_array_index(words, 1)))
        return CLI_UNREACHABLE;
    code = CLI_UNREACHABLE;
    if (wait)
        interrupt_catch();
    if (live_begin(&l, "quorumfs-resync", json_pack("{s:s}", "disk", l.name)))
        code = wait ? resync_wait(&l, lines) : CLI_OK;
    live_clear(&l);
    return code;
}
