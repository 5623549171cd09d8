/*
 * config-settings.c: settings of a disk and of a replica, one row each. -o and the keyfile
 * look them up here, so that a setting means the same wherever it is written.
 */
#include "fuse/config-internal.h"
#include <stdarg.h>
#include <string.h>

typedef struct setting_value {
    const char *name, *text, *base;
} setting_value;

static bool refuse(GError **error, config_error code, const setting_value *v,
                   const char *format, ...) G_GNUC_PRINTF(4, 5);

static bool refuse(GError **error, config_error code, const setting_value *v,
                   const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, CONFIG_ERROR, code, "%s%s%s: %s", v->name, v->text ? "=" : "",
                v->text ? v->text : "", why);
    return false;
}

static const struct {
    const char *name;
    chain_decoder decoder;
} decoders[] = {
    {"auto", CHAIN_DECODER_AUTO},
    {"libqcow", CHAIN_DECODER_LIBQCOW},
    {"native", CHAIN_DECODER_NATIVE},
    {"both", CHAIN_DECODER_BOTH},
};

static bool parse_decoder(const setting_value *v, int *ret_decoder, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(decoders); i++) {
        if (strcmp(v->text, decoders[i].name) == 0) {
            *ret_decoder = (int)decoders[i].decoder;
            return true;
        }
    }
    return refuse(error, CONFIG_ERROR_USAGE, v,
                  "unknown decoder (auto, libqcow, native or both)");
}

static bool parse_timeout(const setting_value *v, unsigned *ret_ms, GError **error)
{
    if (config_parse_time_ms(v->text, ret_ms) && *ret_ms > 0)
        return true;
    return refuse(error, CONFIG_ERROR_USAGE, v, "not a time (5s, 500ms)");
}

static bool parse_count(const setting_value *v, unsigned *ret_count, GError **error)
{
    guint64 value;
    if (!g_ascii_string_to_unsigned(v->text, 10, 0, G_MAXUINT, &value, NULL))
        return refuse(error, CONFIG_ERROR_USAGE, v, "not a number");
    if (value == 0)
        return refuse(error, CONFIG_ERROR_USAGE, v, "parameter '%s' expects a value >= 1",
                      v->name);
    *ret_count = (unsigned)value;
    return true;
}

static bool set_threshold(disk_options *d, const setting_value *v, GError **error)
{
    return parse_count(v, &d->threshold, error);
}

static bool set_min_replicas(disk_options *d, const setting_value *v, GError **error)
{
    unsigned count = 0;
    if (!parse_count(v, &count, error))
        return false;
    if (count > d->replicas->len)
        return refuse(error, CONFIG_ERROR_USAGE, v, "there are only %u replicas",
                      d->replicas->len);
    d->min_replicas = count;
    return true;
}

static bool set_decoder(disk_options *d, const setting_value *v, GError **error)
{
    int decoder;
    if (!parse_decoder(v, &decoder, error))
        return false;
    d->decoder = (chain_decoder)decoder;
    return true;
}

static bool set_timeout(disk_options *d, const setting_value *v, GError **error)
{
    return parse_timeout(v, &d->timeout_ms, error);
}

static bool set_on_divergence(disk_options *d, const setting_value *v, GError **error)
{
    d->on_divergence_repair = strcmp(v->text, "repair") == 0;
    return d->on_divergence_repair || strcmp(v->text, "log") == 0 ||
           refuse(error, CONFIG_ERROR_USAGE, v, "unknown value (log or repair)");
}

static bool set_read_pattern(disk_options *d, const setting_value *v, GError **error)
{
    return disk_pattern_find(v->text, &d->read_pattern) ||
           refuse(error, CONFIG_ERROR_USAGE, v, "unknown value (quorum, rotate or fifo)");
}

static bool set_degraded(disk_options *d, const setting_value *v, GError **error)
{
    d->degraded_warn = strcmp(v->text, "warn") == 0;
    return d->degraded_warn || strcmp(v->text, "refuse") == 0 ||
           refuse(error, CONFIG_ERROR_USAGE, v, "unknown value (refuse or warn)");
}

static bool set_blkverify(disk_options *d, const setting_value *v G_GNUC_UNUSED,
                          GError **error G_GNUC_UNUSED)
{
    d->blkverify = true;
    return true;
}

/* Never echoed, never taken: others can read command lines. */
static bool refuse_password(GError **error)
{
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE,
                "a password cannot be given here (use password-file=PATH)");
    return false;
}

static bool set_password(disk_options *d G_GNUC_UNUSED,
                         const setting_value *v G_GNUC_UNUSED, GError **error)
{
    return refuse_password(error);
}

static bool set_allow_dir(disk_options *d, const setting_value *v,
                          GError **error G_GNUC_UNUSED)
{
    g_ptr_array_add(d->allow_dirs, config_absolute(v->base, v->text));
    return true;
}

/* For every replica that has none of its own. */
static bool set_disk_password_file(disk_options *d, const setting_value *v,
                                   GError **error G_GNUC_UNUSED)
{
    g_autofree char *path = config_absolute(v->base, v->text);
    for (guint i = 0; i < d->replicas->len; i++) {
        replica_options *replica = g_ptr_array_index(d->replicas, i);
        if (!replica->password_file)
            replica->password_file = g_strdup(path);
    }
    return true;
}

static const struct {
    const char *name;
    bool takes_value;
    bool (*set)(disk_options *d, const setting_value *v, GError **error);
} disk_rows[] = {
    {"threshold", true, set_threshold},
    {"on-divergence", true, set_on_divergence},
    {"min-replicas", true, set_min_replicas},
    {"decoder", true, set_decoder},
    {"read-pattern", true, set_read_pattern},
    {"replica-timeout", true, set_timeout},
    {"degraded", true, set_degraded},
    {"allow-dir", true, set_allow_dir},
    {"password-file", true, set_disk_password_file},
    {"blkverify", false, set_blkverify},
    {"password", true, set_password},
};

void config_add_disk_settings(GPtrArray *names)
{
    for (size_t i = 0; i < G_N_ELEMENTS(disk_rows); i++)
        g_ptr_array_add(names, (gpointer)disk_rows[i].name);
}

static bool check_value(const setting_value *v, bool takes_value, GError **error)
{
    if (takes_value && (!v->text || !*v->text)) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, "'%s' needs a value",
                    v->name);
        return false;
    }
    if (!takes_value && v->text) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_USAGE, "'%s' takes no value",
                    v->name);
        return false;
    }
    return true;
}

config_set_result config_set_disk(disk_options *d, const char *name, const char *value,
                                  const char *base, GError **error)
{
    const setting_value v = {name, value, base};
    for (size_t i = 0; i < G_N_ELEMENTS(disk_rows); i++) {
        if (strcmp(disk_rows[i].name, name) != 0)
            continue;
        return check_value(&v, disk_rows[i].takes_value, error) &&
                       disk_rows[i].set(d, &v, error)
                   ? CONFIG_SET_OK
                   : CONFIG_SET_FAILED;
    }
    return CONFIG_SET_UNKNOWN;
}

/* source=FMT:PATH and format= may both be there, in any order, if they agree. */
static bool check_one_format(const char *before, const char *after,
                             const setting_value *v, GError **error)
{
    if (!before || strcmp(before, after) == 0)
        return true;
    return refuse(error, CONFIG_ERROR_USAGE, v, "the other key says '%s'", before);
}

static bool set_source(replica_options *replica, const setting_value *v, GError **error)
{
    g_autofree char *before = g_strdup(replica->format);
    return config_set_source(replica, v->text, v->base, error) &&
           check_one_format(before, replica->format, v, error);
}

static bool set_format(replica_options *replica, const setting_value *v, GError **error)
{
    if (!config_check_format(v->text, error) ||
        !check_one_format(replica->format, v->text, v, error))
        return false;
    g_free(replica->format);
    replica->format = g_strdup(v->text);
    return true;
}

static bool set_replica_decoder(replica_options *replica, const setting_value *v,
                                GError **error)
{
    return parse_decoder(v, &replica->decoder, error);
}

static bool set_replica_timeout(replica_options *replica, const setting_value *v,
                                GError **error)
{
    return parse_timeout(v, &replica->timeout_ms, error);
}

static bool set_password_file(replica_options *replica, const setting_value *v,
                              GError **error G_GNUC_UNUSED)
{
    g_free(replica->password_file);
    replica->password_file = config_absolute(v->base, v->text);
    return true;
}

static bool set_replica_password(replica_options *replica G_GNUC_UNUSED,
                                 const setting_value *v G_GNUC_UNUSED, GError **error)
{
    return refuse_password(error);
}

static const struct {
    const char *name;
    bool (*set)(replica_options *replica, const setting_value *v, GError **error);
} replica_rows[] = {
    {"source", set_source},
    {"format", set_format},
    {"decoder", set_replica_decoder},
    {"timeout", set_replica_timeout},
    {"password-file", set_password_file},
    {"password", set_replica_password},
};

void config_add_replica_settings(GPtrArray *names)
{
    for (size_t i = 0; i < G_N_ELEMENTS(replica_rows); i++)
        g_ptr_array_add(names, (gpointer)replica_rows[i].name);
}

config_set_result config_set_replica(replica_options *replica, const char *name,
                                     const char *value, const char *base, GError **error)
{
    const setting_value v = {name, value, base};
    for (size_t i = 0; i < G_N_ELEMENTS(replica_rows); i++) {
        if (strcmp(replica_rows[i].name, name) != 0)
            continue;
        return check_value(&v, true, error) && replica_rows[i].set(replica, &v, error)
                   ? CONFIG_SET_OK
                   : CONFIG_SET_FAILED;
    }
    return CONFIG_SET_UNKNOWN;
}

/* ---- The other way round ------------------------------------------------------------- */

static void list_add(GPtrArray *pairs, const char *name, const char *value)
{
    g_ptr_array_add(pairs, g_strdup(name));
    g_ptr_array_add(pairs, g_strdup(value));
}

static void list_number(GPtrArray *pairs, const char *name, unsigned value,
                        const char *unit)
{
    g_autofree char *text = g_strdup_printf("%u%s", value, unit);
    if (value > 0)
        list_add(pairs, name, text);
}

static void list_decoder(GPtrArray *pairs, int decoder)
{
    for (size_t i = 0; i < G_N_ELEMENTS(decoders); i++)
        if ((int)decoders[i].decoder == decoder)
            list_add(pairs, "decoder", decoders[i].name);
}

GPtrArray *config_list_disk_keys(const disk_options *d)
{
    GPtrArray *pairs = g_ptr_array_new_with_free_func(g_free);
    list_number(pairs, "threshold", d->threshold, "");
    if (d->on_divergence_repair)
        list_add(pairs, "on-divergence", "repair");
    list_number(pairs, "min-replicas", d->min_replicas, "");
    if (d->degraded_warn)
        list_add(pairs, "degraded", "warn");
    if (d->decoder != CHAIN_DECODER_AUTO)
        list_decoder(pairs, (int)d->decoder);
    if (d->read_pattern != DISK_PATTERN_QUORUM)
        list_add(pairs, "read-pattern", disk_pattern_name(d->read_pattern));
    list_number(pairs, "replica-timeout", d->timeout_ms, "ms");
    if (d->blkverify)
        list_add(pairs, "blkverify", "true");
    return pairs;
}

GPtrArray *config_list_replica_keys(const replica_options *replica)
{
    GPtrArray *pairs = g_ptr_array_new_with_free_func(g_free);
    list_decoder(pairs, replica->decoder);
    list_number(pairs, "timeout", replica->timeout_ms, "ms");
    if (replica->password_file)
        list_add(pairs, "password-file", replica->password_file);
    return pairs;
}
