/*
 * nbd-address.c: NBD URIs, parsed here rather than by libnbd, which would follow more of what
 * a URI may say than we want to (the TLS rules of nbd.h).
 */
#include "formats/nbd-internal.h"
#include "formats/path.h"
#include <stdlib.h>
#include <string.h>

#define EXPORT_NAME_MAX 4096u

typedef struct scheme {
    const char *name;
    bool tls, local;
} scheme;

static const scheme schemes[] = {
    {"nbd", false, false},
    {"nbds", true, false},
    {"nbd+unix", false, true},
    {"nbds+unix", true, true},
};

bool nbd_is_uri(const char *word)
{
    size_t length = strcspn(word, ":/");
    return word[length] == ':' &&
           (g_str_has_prefix(word, "nbd:") || g_str_has_prefix(word, "nbds:") ||
            g_str_has_prefix(word, "nbd+") || g_str_has_prefix(word, "nbds+"));
}

static bool refuse(GError **error, const char *shown, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static bool refuse(GError **error, const char *shown, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *clean = path_printable(why);
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED, "%s: %s", shown, clean);
    return false;
}

static const scheme *find_scheme(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(schemes); i++)
        if (name && !strcmp(name, schemes[i].name))
            return &schemes[i];
    return NULL;
}

static bool take_path(nbd_address *a, const char *name, const char *value, char **to,
                      GError **error)
{
    if (*to)
        return refuse(error, a->shown, "%s= is given twice", name);
    if (!g_path_is_absolute(value))
        return refuse(error, a->shown, "%s=%s: must be an absolute path", name, value);
    *to = g_strdup(value);
    return true;
}

static bool take_parameters(nbd_address *a, const char *query, GError **error)
{
    GUriParamsIter iter;
    g_uri_params_iter_init(&iter, query ? query : "", -1, "&;", G_URI_PARAMS_NONE);
    for (;;) {
        g_autofree char *name = NULL, *value = NULL;
        g_autoptr(GError) cause = NULL;
        if (!g_uri_params_iter_next(&iter, &name, &value, &cause))
            return !cause || refuse(error, a->shown, "%s", cause->message);
        char **to = !strcmp(name, "socket")             ? &a->socket
                    : !strcmp(name, "tls-psk-file")     ? &a->psk_file
                    : !strcmp(name, "tls-certificates") ? &a->certificates
                                                        : NULL;
        if (!to)
            return refuse(error, a->shown,
                          "unknown parameter '%s' (socket=, tls-psk-file= and "
                          "tls-certificates= are known)",
                          name);
        if (!take_path(a, name, value, to, error))
            return false;
    }
}

/* What libnbd checks in no other case: see nbd.h. */
static bool check_tls(const nbd_address *a, bool local, GError **error)
{
    const char *given = a->psk_file       ? "tls-psk-file="
                        : a->certificates ? "tls-certificates="
                                          : NULL;
    if (!a->tls && (given || a->user))
        return refuse(error, a->shown, "%s without TLS (use nbds%s://)",
                      given ? given : "a user", local ? "+unix" : "");
    if (local && a->certificates)
        return refuse(
            error, a->shown,
            "certificates are not checked on a Unix socket (use tls-psk-file=)");
    if (a->psk_file && a->certificates)
        return refuse(error, a->shown,
                      "tls-psk-file= and tls-certificates= (one of them is enough)");
    if (a->psk_file && !a->user)
        return refuse(error, a->shown, "no user for the key (write %s://USER@%s)",
                      local ? "nbds+unix" : "nbds", local ? "/EXPORT" : "HOST/EXPORT");
    if (a->tls && !given)
        return refuse(error, a->shown, "nothing to check the server by (add %s)",
                      local ? "?tls-psk-file=FILE"
                            : "?tls-psk-file=FILE or ?tls-certificates=DIR");
    return true;
}

static bool check_place(const nbd_address *a, bool local, GError **error)
{
    if (local && a->host && *a->host)
        return refuse(error, a->shown,
                      "a host and a Unix socket (write nbd+unix:///EXPORT?socket=PATH)");
    if (local && !a->socket)
        return refuse(error, a->shown, "no socket (add ?socket=PATH)");
    if (!local && a->socket)
        return refuse(error, a->shown, "socket= (use nbd%s+unix://)", a->tls ? "s" : "");
    if (!local && (!a->host || !*a->host))
        return refuse(error, a->shown, "no host (write nbd://HOST/EXPORT)");
    return true;
}

static void set_identity(nbd_address *a)
{
    if (a->socket) {
        g_autofree char *plain = g_canonicalize_filename(a->socket, "/");
        char *real = realpath(plain, NULL);
        a->identity = g_strdup_printf("unix %s %s", real ? real : plain, a->export_name);
        free(real);
    } else {
        g_autofree char *host = g_ascii_strdown(a->host, -1);
        a->identity = g_strdup_printf("tcp %s %s %s", host, a->port, a->export_name);
    }
}

/* A URI with a password is not even shown. */
static bool split(const char *uri, nbd_address *a, char **ret_scheme, char **ret_query,
                  GError **error)
{
    g_autofree char *password = NULL, *path = NULL, *fragment = NULL, *parameters = NULL;
    g_autoptr(GError) cause = NULL;
    gint port = -1;
    bool parsed =
        g_uri_split_with_user(uri,
                              G_URI_FLAGS_HAS_PASSWORD | G_URI_FLAGS_HAS_AUTH_PARAMS |
                                  G_URI_FLAGS_ENCODED_QUERY,
                              ret_scheme, &a->user, &password, &parameters, &a->host,
                              &port, &path, ret_query, &fragment, &cause);
    if (!parsed && strchr(uri, '@'))
        return refuse(error, "an NBD URI", "is not a URI");
    if (password)
        return refuse(error, "an NBD URI",
                      "a password cannot be given in it (use tls-psk-file=FILE)");
    a->shown = path_printable(uri);
    if (!parsed)
        return refuse(error, a->shown, "%s", cause->message);
    if (fragment || parameters)
        return refuse(error, a->shown, "a '%c' in it (write it as %%%02X)",
                      fragment ? '#' : ';', fragment ? '#' : ';');
    a->port = port > 0 ? g_strdup_printf("%d", port) : g_strdup(NBD_PORT_DEFAULT);
    a->export_name = g_strdup(path[0] == '/' ? path + 1 : path);
    if (strlen(a->export_name) > EXPORT_NAME_MAX)
        return refuse(error, "an NBD URI", "the export's name is too long");
    return true;
}

bool nbd_address_parse(const char *uri, nbd_address *ret_address, GError **error)
{
    nbd_address *a = ret_address;
    g_autofree char *scheme_name = NULL, *query = NULL;
    *a = (nbd_address){0};
    if (!split(uri, a, &scheme_name, &query, error))
        goto fail;
    const scheme *known = find_scheme(scheme_name);
    if (!known) {
        refuse(error, a->shown, "unknown scheme (nbd, nbds, nbd+unix or nbds+unix)");
        goto fail;
    }
    if (!g_str_has_prefix(uri + strlen(scheme_name), "://")) {
        refuse(error, a->shown, "not a URI (write %s://%s/EXPORT)", scheme_name,
               known->local ? "" : "HOST");
        goto fail;
    }
    a->tls = known->tls;
    if (!take_parameters(a, query, error) || !check_tls(a, known->local, error) ||
        !check_place(a, known->local, error))
        goto fail;
    set_identity(a);
    return true;
fail:
    nbd_address_clear(a);
    return false;
}

void nbd_address_clear(nbd_address *address)
{
    g_free(address->shown);
    g_free(address->identity);
    g_free(address->host);
    g_free(address->port);
    g_free(address->socket);
    g_free(address->export_name);
    g_free(address->user);
    g_free(address->psk_file);
    g_free(address->certificates);
    *address = (nbd_address){0};
}

/* ---- Sources: URIs and commands ------------------------------------------------------ */

bool nbd_is_source(const char *word)
{
    return nbd_is_uri(word) || nbd_is_command(word);
}

bool nbd_check_source(const char *source, GError **error)
{
    nbd_address address;
    if (nbd_is_command(source))
        return nbd_check_command(source, error);
    bool good = nbd_address_parse(source, &address, error);
    nbd_address_clear(&address);
    return good;
}

char *nbd_source_identity(const char *source)
{
    nbd_address address;
    if (nbd_is_command(source))
        return g_strdup(source);
    char *identity = NULL;
    if (nbd_address_parse(source, &address, NULL))
        identity = g_steal_pointer(&address.identity);
    nbd_address_clear(&address);
    return identity;
}
