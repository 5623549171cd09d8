/*
 * libvirt-replica.c: a <backingStore> of a quorum, which is a replica.
 */
#include "fuse/libvirt.h"
#include <string.h>

static bool set_format(const libvirt_reader *r, const char *format, GError **error)
{
    GError *cause = NULL;
    if (strcmp(format, "quorum") == 0)
        return libvirt_invalid(r, error, "a quorum in a quorum");
    if (config_set_replica(r->replica, "format", format, NULL, &cause) == CONFIG_SET_OK)
        return true;
    return libvirt_invalid_value(r, cause, error);
}

bool libvirt_read_format(libvirt_reader *r, GError **error)
{
    const char *type = NULL;
    return libvirt_take_attributes(r, (libvirt_wanted[]){{"type", &type}, {0}}, error) &&
           (type ? set_format(r, type, error) : libvirt_invalid(r, error, "no type="));
}

bool libvirt_read_replica_driver(libvirt_reader *r, GError **error)
{
    const char *type, *format;
    if (!libvirt_take_driver(r, &type, &format, error))
        return false;
    return (!type || set_format(r, type, error)) &&
           (!format || set_format(r, format, error));
}

bool libvirt_read_replica_options(libvirt_reader *r, GError **error)
{
    for (unsigned i = 0; r->names[i]; i++) {
        const char *name = r->names[i];
        GError *cause = NULL;
        if (!libvirt_check_option(r, i, error))
            return false;
        if (g_str_has_prefix(name, "xmlns"))
            continue;
        if (strcmp(name, "name") == 0) {
            if (!libvirt_set_name(r, "replica", &r->replica->name, r->values[i], error))
                return false;
            continue;
        }
        if (strcmp(name, "source") == 0 || strcmp(name, "format") == 0)
            return libvirt_invalid(r, error, "%s= has an element of its own", name);
        switch (config_set_replica(r->replica, name, r->values[i], r->dir, &cause)) {
        case CONFIG_SET_OK:
            break;
        case CONFIG_SET_FAILED:
            return libvirt_invalid_value(r, cause, error);
        case CONFIG_SET_UNKNOWN:
            return libvirt_unknown_option(r, config_add_replica_settings, name, error);
        }
    }
    return true;
}

bool libvirt_begin_replica(libvirt_reader *r, GError **error)
{
    const char *type = NULL;
    GError *cause = NULL;
    if (!libvirt_take_attributes(
            r, (libvirt_wanted[]){{"type", &type}, {"index", NULL}, {0}}, error))
        return false;
    if (r->disk->replicas->len == VOTE_REPLICAS_MAX)
        return libvirt_invalid(r, error, "more than %u replicas", VOTE_REPLICAS_MAX);
    libvirt_source_clear(&r->source);
    if (!libvirt_source_set_type(&r->source, type, &cause))
        return libvirt_invalid_value(r, cause, error);
    r->replica = replica_options_new();
    r->replica_seen = 0;
    r->replica_refers = false;
    r->replica_line = r->line;
    g_ptr_array_add(r->disk->replicas, r->replica);
    g_free(r->replica->name);
    r->replica->name = config_replica_name(r->disk->replicas->len - 1);
    return true;
}

/* What a reference would bring is not here, and it is refused when its disk is known. */
bool libvirt_end_replica(libvirt_reader *r, GError **error)
{
    const GPtrArray *replicas = r->disk->replicas;
    GError *cause = NULL;
    r->line = r->replica_line;
    for (guint i = 0; i + 1 < replicas->len; i++) {
        const replica_options *other = g_ptr_array_index(replicas, i);
        if (strcmp(other->name, r->replica->name) == 0)
            return libvirt_invalid(r, error, "two replicas have the name '%s'",
                                   other->name);
    }
    return r->replica_refers ||
           libvirt_source_apply(&r->source, r->replica, r->dir, &cause) ||
           libvirt_invalid_value(r, cause, error);
}

bool libvirt_read_source(libvirt_reader *r, GError **error)
{
    libvirt_source *s = &r->source;
    const char *path = NULL, *protocol = NULL, *name = NULL, *tls = NULL;
    const libvirt_wanted file[] = {{"file", &path}, {"index", NULL}, {0}};
    const libvirt_wanted block[] = {{"dev", &path}, {"index", NULL}, {0}};
    const libvirt_wanted network[] = {
        {"protocol", &protocol}, {"name", &name}, {"tls", &tls}, {"index", NULL}, {0}};
    const libvirt_wanted *const known[] = {[LIBVIRT_SOURCE_FILE] = file,
                                           [LIBVIRT_SOURCE_BLOCK] = block,
                                           [LIBVIRT_SOURCE_NETWORK] = network};
    if (!libvirt_take_attributes(r, known[s->type], error))
        return false;
    s->path = g_strdup(path);
    s->protocol = g_strdup(protocol);
    s->export_name = g_strdup(name);
    s->tls = g_strdup(tls);
    return true;
}

bool libvirt_read_host(libvirt_reader *r, GError **error)
{
    libvirt_source *s = &r->source;
    const char *name = NULL, *port = NULL, *transport = NULL, *socket = NULL;
    const libvirt_wanted known[] = {{"name", &name},
                                    {"port", &port},
                                    {"transport", &transport},
                                    {"socket", &socket},
                                    {0}};
    if (s->host || s->port || s->transport || s->socket)
        return libvirt_invalid(r, error,
                               "one replica, one host (give each a <backingStore>)");
    if (!libvirt_take_attributes(r, known, error))
        return false;
    s->host = g_strdup(name);
    s->port = g_strdup(port);
    s->transport = g_strdup(transport);
    s->socket = g_strdup(socket);
    return true;
}

bool libvirt_read_tls(libvirt_reader *r, GError **error)
{
    libvirt_source *s = &r->source;
    const char *user = NULL, *psk_file = NULL, *certificates = NULL;
    const libvirt_wanted known[] = {
        {"user", &user}, {"psk-file", &psk_file}, {"certificates", &certificates}, {0}};
    if (!libvirt_take_attributes(r, known, error))
        return false;
    s->user = g_strdup(user);
    s->psk_file = g_strdup(psk_file);
    s->certificates = g_strdup(certificates);
    return true;
}
