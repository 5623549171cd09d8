/*
 * libvirt-attribute.c: what an element says, and the one line that tells what is wrong
 * with it.
 *
 * Values are bounded, and have no control characters, before they are kept; messages are
 * bounded whatever was in the document.
 */
#include "fuse/libvirt.h"
#include <string.h>

#define VALUE_MAX 4096u
#define SHOWN_MAX 400u

/* Names and values may be long, or cut within a character. */
static bool fail(const libvirt_reader *r, config_error code, const char *message,
                 GError **error)
{
    g_autofree char *where = r->element
                                 ? g_strdup_printf("<%.64s>: %s", r->element, message)
                                 : g_strdup(message);
    g_autofree char *why = g_utf8_make_valid(where, -1);
    if (strlen(why) > SHOWN_MAX)
        strcpy(g_utf8_find_prev_char(why, why + SHOWN_MAX - 3), "...");
    g_set_error(error, CONFIG_ERROR, (gint)code, "%s: line %u: %s", r->file, r->line,
                config_one_line(why));
    return false;
}

bool libvirt_invalid(const libvirt_reader *r, GError **error, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

bool libvirt_invalid(const libvirt_reader *r, GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = g_strdup_vprintf(format, args);
    va_end(args);
    return fail(r, CONFIG_ERROR_INVALID, why, error);
}

bool libvirt_unavailable(const libvirt_reader *r, GError **error, const char *what)
{
    g_autofree char *why = g_strdup_printf("%s is not available in this version", what);
    return fail(r, CONFIG_ERROR_UNAVAILABLE, why, error);
}

/* What the setters say, with file, line and element. */
bool libvirt_invalid_value(const libvirt_reader *r, GError *cause, GError **error)
{
    config_error code = g_error_matches(cause, CONFIG_ERROR, CONFIG_ERROR_UNAVAILABLE)
                            ? CONFIG_ERROR_UNAVAILABLE
                            : CONFIG_ERROR_INVALID;
    fail(r, code, cause->message, error);
    g_error_free(cause);
    return false;
}

static bool check_attribute(const libvirt_reader *r, const char *name, const char *value,
                            GError **error)
{
    if (strlen(value) > VALUE_MAX)
        return libvirt_invalid(r, error, "%.64s= is too long (more than %u bytes)", name,
                               VALUE_MAX);
    for (const char *p = value; *p; p++)
        if (g_ascii_iscntrl(*p))
            return libvirt_invalid(r, error, "%.64s=: a control character", name);
    return true;
}

static bool unknown_attribute(const libvirt_reader *r, const libvirt_wanted *known,
                              const char *name, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (; known->name; known++)
        g_ptr_array_add(names, (gpointer)known->name);
    g_ptr_array_add(names, NULL);
    g_autofree char *hint = config_hint(name, (const char *const *)names->pdata);
    return libvirt_invalid(r, error, "unknown attribute '%.64s'%s", name, hint);
}

bool libvirt_take_attributes(const libvirt_reader *r, const libvirt_wanted *known,
                             GError **error)
{
    for (unsigned i = 0; r->names[i]; i++) {
        const libvirt_wanted *w = known;
        while (w->name && strcmp(w->name, r->names[i]) != 0)
            w++;
        if (!w->name && g_str_has_prefix(r->names[i], "xmlns"))
            continue;
        if (!w->name)
            return unknown_attribute(r, known, r->names[i], error);
        if (!w->value)
            continue;
        if (*w->value)
            return libvirt_invalid(r, error, "%s= is given twice", w->name);
        if (!check_attribute(r, r->names[i], r->values[i], error))
            return false;
        *w->value = r->values[i];
    }
    return true;
}

/* An element with one libvirt_attribute, which it must have. */
bool libvirt_take_one(const libvirt_reader *r, const char *name, const char **ret_value,
                      GError **error)
{
    *ret_value = NULL;
    return libvirt_take_attributes(r, (libvirt_wanted[]){{name, ret_value}, {0}},
                                   error) &&
           (*ret_value || libvirt_invalid(r, error, "no %s=", name));
}

const char *libvirt_attribute(const libvirt_reader *r, const char *name)
{
    for (unsigned i = 0; r->names[i]; i++)
        if (strcmp(r->names[i], name) == 0)
            return r->values[i];
    return NULL;
}

bool libvirt_unknown_option(const libvirt_reader *r, void (*add_names)(GPtrArray *names),
                            const char *name, GError **error)
{
    g_autoptr(GPtrArray) known = g_ptr_array_new();
    add_names(known);
    g_ptr_array_add(known, (gpointer) "name");
    g_ptr_array_add(known, NULL);
    g_autofree char *hint = config_hint(name, (const char *const *)known->pdata);
    return libvirt_invalid(r, error, "unknown attribute '%.64s'%s", name, hint);
}

static bool is_given_twice(const libvirt_reader *r, unsigned index)
{
    for (unsigned i = 0; i < index; i++)
        if (strcmp(r->names[i], r->names[index]) == 0)
            return true;
    return false;
}

/* At most as many attributes as there are keys, so that looking for one twice is cheap. */
bool libvirt_check_option(const libvirt_reader *r, unsigned index, GError **error)
{
    if (index > 32 || is_given_twice(r, index))
        return libvirt_invalid(r, error, "%.64s= is given twice", r->names[index]);
    return check_attribute(r, r->names[index], r->values[index], error);
}

bool libvirt_set_name(const libvirt_reader *r, const char *what, char **name,
                      const char *value, GError **error)
{
    GError *cause = NULL;
    if (!config_check_name(what, value, &cause))
        return libvirt_invalid_value(r, cause, error);
    if (strpbrk(value, "[]"))
        return libvirt_invalid(r, error, "%s name '%s' contains a bracket", what, value);
    g_free(*name);
    *name = g_strdup(value);
    return true;
}

/* type= is the driver and format= the image's format; an older way to write the format is
 * as the type. What else a driver has is for the guest's device. */
bool libvirt_take_driver(const libvirt_reader *r, const char **ret_type,
                         const char **ret_format, GError **error)
{
    const char *name = NULL;
    *ret_type = *ret_format = NULL;
    if (!libvirt_take_attributes(r,
                                 (libvirt_wanted[]){{"name", &name},
                                                    {"type", ret_type},
                                                    {"format", ret_format},
                                                    {"mode", NULL},
                                                    {"cache", NULL},
                                                    {"io", NULL},
                                                    {"discard", NULL},
                                                    {"detect_zeroes", NULL},
                                                    {"error_policy", NULL},
                                                    {"rerror_policy", NULL},
                                                    {"ioeventfd", NULL},
                                                    {"event_idx", NULL},
                                                    {"copy_on_read", NULL},
                                                    {"discard_no_unref", NULL},
                                                    {"iothread", NULL},
                                                    {"queues", NULL},
                                                    {"queue_size", NULL},
                                                    {"iommu", NULL},
                                                    {"ats", NULL},
                                                    {"packed", NULL},
                                                    {"page_per_vq", NULL},
                                                    {"max_bufsize", NULL},
                                                    {0}},
                                 error))
        return false;
    if (name && strcmp(name, "qemu") != 0)
        return libvirt_invalid(r, error, "name='%s': not qemu", name);
    if (*ret_type && strcmp(*ret_type, "replication") == 0)
        return libvirt_unavailable(r, error, "replication");
    return true;
}

/* Whose alias it is may be said later. */
bool libvirt_read_reference(libvirt_reader *r, GError **error)
{
    const char *name;
    if (!libvirt_take_one(r, "name", &name, error))
        return false;
    libvirt_reference reference = {g_strdup(name), r->line};
    r->replica_refers = true;
    g_array_append_val(r->references, reference);
    return true;
}
