/*
 * cmd-repair.c: repair, in its forms: of images that are not mounted (repair-job.c), its
 * undoing (repair-undo.c), and of a disk that is mounted, which is a scrub that repairs
 * (cmd-scrub.c). Which one is meant is told by the first word: a mount of ours, or not.
 */
#include "fuse/cli.h"
#include "fuse/interrupt.h"
#include "fuse/repair-job.h"
#include "fuse/repair-undo.h"
#include "fuse/verify-job.h"
#include <signal.h>
#include <string.h>

typedef struct repair_words {
    const char *threshold, *format, *from, *undo;
    bool json, dry_run, progress, wait;
    GPtrArray *options; /* -o */
    GPtrArray *words;
} repair_words;

/* ---- Offline ------------------------------------------------------------------------- */

static void append_word(GString *text, const char *option, const char *word)
{
    g_autofree char *quoted = g_shell_quote(word);
    bool plain = *word && !word[strspn(word, "abcdefghijklmnopqrstuvwxyz"
                                             "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                             "0123456789_./:=,+-")];
    g_string_append_printf(text, "%s%s%s%s", text->len ? " " : "", option ? option : "",
                           option ? " " : "", plain ? word : quoted);
}

/* What names the same set again. */
static char *set_words(const repair_words *w)
{
    GString *text = g_string_new(NULL);
    if (w->format)
        append_word(text, "--format", w->format);
    if (w->threshold)
        append_word(text, "--threshold", w->threshold);
    for (guint i = 0; i < w->options->len; i++)
        append_word(text, "-o", w->options->pdata[i]);
    for (guint i = 0; i < w->words->len; i++)
        append_word(text, NULL, w->words->pdata[i]);
    return g_string_free(text, FALSE);
}

/* Interruption and wrong usage end it at once; else all disks are repaired. */
static int repair_disks(repair_set *set, const repair_words *w)
{
    g_autofree char *undo_words = set_words(w);
    repair_request request = {.from = w->from,
                              .dry_run = w->dry_run,
                              .progress = w->progress,
                              .cancel = &interrupt_signal,
                              .line_wanted = &interrupt_line,
                              .undo_words = undo_words};
    const GPtrArray *disks = set->config->disks;
    verify_output *out = verify_output_new(w->json, disks->len > 1);
    int code = 0;
    for (guint i = 0; i < disks->len && code < CLI_VERIFY_USAGE; i++) {
        bool interrupted = false;
        int one = repair_job_run(set, disks->pdata[i], &request, out, &interrupted);
        if (interrupted)
            one = 128 + interrupt_signal;
        code = one >= CLI_VERIFY_USAGE ? one : verify_worst(code, one);
    }
    if (!verify_output_end(out, code) && code < CLI_VERIFY_USAGE) {
        cli_error("standard output cannot be written");
        code = 2;
    }
    verify_output_free(out);
    g_free(request.undo_id);
    return code;
}

/* O4: nothing is written to what was not given to be written to. */
static int check_writable(const mount_config *config, const repair_words *w)
{
    if (w->dry_run || g_strcmp0(w->undo, "list") == 0)
        return -1;
    for (guint i = 0; i < config->disks->len; i++) {
        const disk_options *options = config->disks->pdata[i];
        if (options->read_only || config->read_only)
            return cli_usage_error("repair", CLI_VERIFY_USAGE,
                                   "disk '%s' is to be read only: --dry-run looks at it",
                                   options->name);
    }
    return -1;
}

static int repair_set_of(mount_config *config, const repair_words *w)
{
    g_autoptr(GError) error = NULL;
    repair_set set;
    int code = check_writable(config, w);
    if (code >= 0)
        return code;
    code = CLI_UNREACHABLE;
    interrupt_catch();
    signal(SIGXFSZ, SIG_IGN); /* a limit is met with an error, not in the middle */
    if (!repair_set_open(&set, config, &error))
        cli_error("%s", error->message);
    else if (!w->undo)
        code = repair_disks(&set, w);
    else if (strcmp(w->undo, "list") == 0)
        code = repair_undo_list(&set);
    else
        code = repair_undo(&set, w->undo, w->dry_run);
    repair_set_close(&set);
    return code;
}

static int repair_offline(const repair_words *w)
{
    mount_config *config = mount_config_new();
    g_autoptr(GError) error = NULL;
    int code;
    if (!config_from_words(config, (char *const *)w->words->pdata, w->words->len,
                           w->format, NULL, &error) ||
        !cli_apply_options(config, w->threshold, w->options, &error)) {
        cli_error("%s", error->message);
        code = cli_config_exit(error, CLI_VERIFY_USAGE, CLI_UNREACHABLE);
    } else {
        code = repair_set_of(config, w);
    }
    mount_config_free(config);
    return code;
}

/* ---- Live ---------------------------------------------------------------------------- */

static int repair_live(const repair_words *w)
{
    if (w->threshold || w->format || w->from || w->undo || w->json || w->dry_run ||
        w->options->len > 0)
        return cli_usage_error("repair", CLI_VERIFY_USAGE,
                               "a mounted disk takes --wait and -p only");
    if (w->words->len != 2)
        return cli_usage_error("repair", CLI_VERIFY_USAGE,
                               w->words->len < 2 ? "a mount point and a disk are needed"
                                                 : "too many words");
    const cli_scrub_options options = {
        .repair = true, .wait = w->wait, .lines = w->progress};
    return cli_scrub(w->words->pdata[0], w->words->pdata[1], &options);
}

static int check_offline(const repair_words *w)
{
    const char *first = w->words->pdata[0];
    const char *why = NULL;
    if (w->wait)
        why = "--wait is for a mounted disk";
    else if (w->undo && (w->json || w->from))
        why = "--undo takes neither --json nor --from";
    if (why)
        return cli_usage_error("repair", CLI_VERIFY_USAGE, "%s", why);
    if (!g_file_test(first, G_FILE_TEST_IS_DIR))
        return -1;
    cli_error("%s: not a quorumfs mount, and a directory is no image", first);
    return CLI_UNREACHABLE;
}

int cmd_repair(int argc, char **argv)
{
    g_autoptr(GPtrArray) mount_options = g_ptr_array_new();
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    repair_words w = {.options = mount_options, .words = words};
    const cli_option options[] = {
        {.name = "threshold", .value = &w.threshold},
        {.name = "format", .value = &w.format},
        {.name = "from", .value = &w.from},
        {.name = "undo", .value = &w.undo},
        {.name = "dry-run", .letter = 'n', .flag = &w.dry_run},
        {.name = "json", .flag = &w.json},
        {.name = "progress", .letter = 'p', .flag = &w.progress},
        {.name = "wait", .flag = &w.wait},
        {.letter = 'o', .values = mount_options},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_VERIFY_USAGE, words);
    if (code < 0 && words->len == 0)
        code = cli_usage_error("repair", CLI_VERIFY_USAGE, "no image given");
    if (code >= 0)
        return code;
    if (cli_is_mount(words->pdata[0]))
        return repair_live(&w);
    code = check_offline(&w);
    return code >= 0 ? code : repair_offline(&w);
}
