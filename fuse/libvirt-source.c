/*
 * libvirt-source.c: <source> and <host> as a path or an NBD URI.
 *
 * XML never starts a program: a path is a path whatever it looks like, and of the network
 * there is NBD alone. libvirt leaves to its own configuration by what a server is to be
 * checked; here <quorumfs:tls> has to say it, because nbd.h takes no TLS without.
 */
#include "formats/nbd-address.h"
#include "fuse/libvirt.h"
#include <string.h>

void libvirt_source_clear(libvirt_source *source)
{
    g_free(source->path);
    g_free(source->protocol);
    g_free(source->export_name);
    g_free(source->tls);
    g_free(source->host);
    g_free(source->port);
    g_free(source->transport);
    g_free(source->socket);
    g_free(source->user);
    g_free(source->psk_file);
    g_free(source->certificates);
    *source = (libvirt_source){0};
}

static bool refuse(GError **error, config_error code, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static bool refuse(GError **error, config_error code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, CONFIG_ERROR, (gint)code, why);
    return false;
}

bool libvirt_source_set_type(libvirt_source *source, const char *type, GError **error)
{
    static const char *const types[] = {[LIBVIRT_SOURCE_FILE] = "file",
                                        [LIBVIRT_SOURCE_BLOCK] = "block",
                                        [LIBVIRT_SOURCE_NETWORK] = "network"};
    if (!type)
        return refuse(error, CONFIG_ERROR_INVALID, "no type= (file, block or network)");
    if (strcmp(type, "quorum") == 0)
        return refuse(error, CONFIG_ERROR_INVALID, "a quorum in a quorum");
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        if (strcmp(type, types[i]) == 0) {
            source->type = (libvirt_source_type)i;
            return true;
        }
    }
    return refuse(error, CONFIG_ERROR_INVALID,
                  "type='%s': not a replica's (file, block or network)", type);
}

static bool parse_tls(const libvirt_source *s, bool *ret_tls, GError **error)
{
    *ret_tls = s->tls && strcmp(s->tls, "yes") == 0;
    if (s->tls && !*ret_tls && strcmp(s->tls, "no") != 0)
        return refuse(error, CONFIG_ERROR_INVALID, "tls='%s': not yes or no", s->tls);
    if (!*ret_tls && (s->user || s->psk_file || s->certificates))
        return refuse(error, CONFIG_ERROR_INVALID, "<" LIBVIRT_TLS "> without tls='yes'");
    if (*ret_tls && !s->psk_file && !s->certificates)
        return refuse(error, CONFIG_ERROR_INVALID,
                      "tls='yes': nothing to check the server by (add <" LIBVIRT_TLS
                      " certificates='DIR'/>)");
    return true;
}

/* Without a transport it is that of what is given. */
static bool parse_transport(const libvirt_source *s, bool *ret_local, GError **error)
{
    *ret_local = s->transport ? strcmp(s->transport, "unix") == 0 : s->socket != NULL;
    if (s->transport && !*ret_local && strcmp(s->transport, "tcp") != 0)
        return refuse(error, CONFIG_ERROR_INVALID, "transport='%s': not tcp or unix",
                      s->transport);
    if (*ret_local && (!s->socket || s->host || s->port))
        return refuse(
            error, CONFIG_ERROR_INVALID,
            "a <host> of a Unix socket has socket= and neither name= nor port=");
    if (!*ret_local && (!s->host || s->socket))
        return refuse(error, CONFIG_ERROR_INVALID,
                      s->host ? "a <host> has name= or socket=, not both"
                              : "no <host name='HOST'/>");
    return true;
}

static bool parse_port(const char *text, gint *ret_port, GError **error)
{
    guint64 port = 0;
    *ret_port = -1;
    if (!text || strcmp(text, NBD_PORT_DEFAULT) == 0)
        return true;
    if (!g_ascii_string_to_unsigned(text, 10, 1, 65535, &port, NULL))
        return refuse(error, CONFIG_ERROR_INVALID, "port='%s': not a port", text);
    *ret_port = (gint)port;
    return true;
}

static void add_parameter(GString *query, const char *name, const char *value)
{
    if (!value)
        return;
    if (query->len > 0)
        g_string_append_c(query, '&');
    g_string_append_printf(query, "%s=", name);
    g_string_append_uri_escaped(query, value, "/", TRUE);
}

static char *make_uri(const libvirt_source *s, GError **error)
{
    bool tls, local;
    gint port;
    if (!s->protocol || strcmp(s->protocol, "nbd") != 0) {
        refuse(error, CONFIG_ERROR_UNAVAILABLE,
               "protocol='%s' is not available in this version (nbd is; serve the disk "
               "with qemu-nbd)",
               s->protocol ? s->protocol : "");
        return NULL;
    }
    if (!parse_tls(s, &tls, error) || !parse_transport(s, &local, error) ||
        !parse_port(s->port, &port, error))
        return NULL;
    g_autoptr(GString) query = g_string_new(NULL);
    add_parameter(query, "socket", s->socket);
    add_parameter(query, "tls-psk-file", s->psk_file);
    add_parameter(query, "tls-certificates", s->certificates);
    g_autofree char *scheme =
        g_strdup_printf("nbd%s%s", tls ? "s" : "", local ? "+unix" : "");
    g_autofree char *path = g_strconcat("/", s->export_name ? s->export_name : "", NULL);
    return g_uri_join_with_user(G_URI_FLAGS_ENCODED_QUERY, scheme, s->user, NULL, NULL,
                                local ? "" : s->host, port, path,
                                query->len > 0 ? query->str : NULL, NULL);
}

bool libvirt_source_apply(const libvirt_source *source, replica_options *replica,
                          const char *dir, GError **error)
{
    bool remote = source->type == LIBVIRT_SOURCE_NETWORK;
    if (!remote && (source->host || source->port || source->transport || source->socket ||
                    source->user || source->psk_file || source->certificates))
        return refuse(error, CONFIG_ERROR_INVALID,
                      "<host> and <" LIBVIRT_TLS "> are for type='network'");
    if (!remote && (!source->path || !*source->path))
        return refuse(error, CONFIG_ERROR_INVALID, "no <source %s='PATH'/>",
                      source->type == LIBVIRT_SOURCE_BLOCK ? "dev" : "file");
    g_autofree char *word =
        remote ? make_uri(source, error) : config_absolute(dir, source->path);
    return word && config_set_source(replica, word, NULL, error);
}
