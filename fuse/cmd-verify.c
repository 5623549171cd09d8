/*
 * cmd-verify.c: quorumfs verify: options, disks, exit codes.
 */
#include "fuse/cli.h"
#include "fuse/interrupt.h"
#include "fuse/verify-job.h"
#include <string.h>

static int verify_disk(const disk_options *options, const verify_request *request,
                       verify_output *out)
{
    g_autoptr(GError) error = NULL;
    disk *d = disk_open(options, NULL, &error);
    if (!d) {
        const char *where = request->several ? options->name : "";
        cli_error("%s%s%s", where, request->several ? ": " : "", error->message);
        verify_output_disk_failed(out, options, error->message);
        return g_error_matches(error, DISK_ERROR, DISK_ERROR_OPTIONS) ? CLI_VERIFY_USAGE
                                                                      : 2;
    }
    bool interrupted = false;
    int code = verify_job_run(d, request, out, &interrupted);
    disk_close(d);
    return interrupted ? 128 + interrupt_signal : code;
}

/* Interruption and wrong usage end it at once; else all disks are verified. */
static int verify_disks(const mount_config *config, verify_request *request, bool json)
{
    request->several = config->disks->len > 1;
    verify_output *out = verify_output_new(json, request->several);
    int code = 0;
    for (guint i = 0; i < config->disks->len; i++) {
        int one = verify_disk(g_ptr_array_index(config->disks, i), request, out);
        if (one >= CLI_VERIFY_USAGE) {
            code = one;
            break;
        }
        code = verify_worst(code, one);
    }
    if (!verify_output_end(out, code) && code < CLI_VERIFY_USAGE) {
        cli_error("standard output cannot be written");
        code = 2;
    }
    verify_output_free(out);
    return code;
}

static bool config_prepare(mount_config *config, GPtrArray *words, const char *format,
                           const char *threshold, GPtrArray *options, GError **error)
{
    if (!config_from_words(config, (char *const *)words->pdata, words->len, format, NULL,
                           error))
        return false;
    g_autofree char *option =
        threshold ? g_strdup_printf("threshold=%s", threshold) : NULL;
    if (option && !config_apply_options(config, option, error))
        return false;
    for (guint i = 0; i < options->len; i++) {
        if (!config_apply_options(config, g_ptr_array_index(options, i), error))
            return false;
    }
    config_make_offline(config);
    return true;
}

/* Whatever is written there (/dev/stdout) takes as many reports as come. */
static bool is_same(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0 && !g_str_has_prefix(a, "/dev/");
}

static int request_check(verify_request *request, const char *range)
{
    if (request->manifest && request->check)
        return cli_usage_error("verify", CLI_VERIFY_USAGE,
                               "--manifest and --check exclude each other");
    if (is_same(request->mapfile, request->svg) ||
        is_same(request->mapfile, request->manifest) ||
        is_same(request->svg, request->manifest))
        return cli_usage_error("verify", CLI_VERIFY_USAGE,
                               "two reports cannot be one file");
    if (range && !request->manifest)
        return cli_usage_error("verify", CLI_VERIFY_USAGE,
                               "--manifest-range needs --manifest");
    if (range && (!config_parse_size(range, &request->manifest_range) ||
                  request->manifest_range < MANIFEST_RANGE_MIN ||
                  request->manifest_range > MANIFEST_RANGE_MAX))
        return cli_usage_error("verify", CLI_VERIFY_USAGE,
                               "--manifest-range '%s' is not a size from 512 to 1T",
                               range);
    return -1;
}

int cmd_verify(int argc, char **argv)
{
    bool json = false;
    const char *threshold = NULL, *format = NULL, *range = NULL;
    verify_request request = {.manifest_range = MANIFEST_RANGE_DEFAULT,
                              .cancel = &interrupt_signal,
                              .line_wanted = &interrupt_line};
    g_autoptr(GPtrArray) mount_options = g_ptr_array_new();
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    const cli_option options[] = {
        {.name = "threshold", .value = &threshold},
        {.name = "format", .value = &format},
        {.name = "json", .flag = &json},
        {.name = "mapfile", .value = &request.mapfile},
        {.name = "svg", .value = &request.svg},
        {.name = "manifest", .value = &request.manifest},
        {.name = "manifest-range", .value = &range},
        {.name = "check", .value = &request.check},
        {.name = "progress", .letter = 'p', .flag = &request.progress},
        {.letter = 'o', .values = mount_options},
        {0},
    };
    int code = cli_parse(argc, argv, options, CLI_VERIFY_USAGE, words);
    if (code < 0 && words->len == 0)
        code = cli_usage_error("verify", CLI_VERIFY_USAGE, "no image given");
    if (code < 0)
        code = request_check(&request, range);
    if (code >= 0)
        return code;
    mount_config *config = mount_config_new();
    g_autoptr(GError) error = NULL;
    if (!config_prepare(config, words, format, threshold, mount_options, &error)) {
        cli_error("%s", error->message);
        code = cli_config_exit(error, CLI_VERIFY_USAGE, 2);
    } else {
        interrupt_catch();
        code = verify_disks(config, &request, json);
    }
    mount_config_free(config);
    return code;
}
