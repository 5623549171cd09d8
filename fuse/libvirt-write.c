/*
 * libvirt-write.c: the disks of a configuration as libvirt's elements.
 *
 * What libvirt has no word for stands in elements of ours, and only where it is not what
 * the reader assumes.
 */
#include "formats/nbd-address.h"
#include "formats/nbd.h"
#include "fuse/libvirt.h"
#include <string.h>
#include <sys/stat.h>

typedef struct writer {
    GString *out;
    int indent;
    GError *error; /* the first */
} writer;

/* XML has no control characters. */
static void attribute(writer *w, const char *name, const char *value)
{
    g_autofree char *text = g_markup_printf_escaped(" %s='%s'", name, value);
    g_string_append(w->out, text);
    for (const char *p = value; *p && !w->error; p++) {
        if (!g_ascii_iscntrl(*p))
            continue;
        g_autofree char *shown = config_one_line(g_strdup(value));
        g_set_error(&w->error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                    "'%s' cannot be written in XML (a control character)", shown);
    }
}

static void end_tag(writer *w, const char *end)
{
    g_string_append(w->out, end);
}

/* A tag up to its end. Names and values, NULL after the last; one whose value is NULL is
 * left out. */
static void begin_tag(writer *w, const char *name, const char *const *pairs)
{
    g_string_append_printf(w->out, "%*s<%s", w->indent, "", name);
    for (; pairs[0]; pairs += 2)
        if (pairs[1])
            attribute(w, pairs[0], pairs[1]);
}

#define PAIRS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void write_empty(writer *w, const char *name, const char *const *pairs)
{
    begin_tag(w, name, pairs);
    end_tag(w, "/>\n");
}

static void write_open(writer *w, const char *name, const char *const *pairs)
{
    begin_tag(w, name, pairs);
    end_tag(w, ">\n");
    w->indent += 2;
}

static void write_close(writer *w, const char *name)
{
    w->indent -= 2;
    g_string_append_printf(w->out, "%*s</%s>\n", w->indent, "", name);
}

/* A name and a value that may be NULL, and pairs, which are freed. */
static void write_options(writer *w, const char *name, const char *value,
                          GPtrArray *pairs)
{
    bool any = value != NULL;
    for (guint i = 0; i < pairs->len; i += 2)
        any |= strcmp(g_ptr_array_index(pairs, i), "threshold") != 0;
    if (any) {
        begin_tag(w, LIBVIRT_OPTIONS,
                  PAIRS("xmlns:quorumfs", LIBVIRT_NAMESPACE, name, value));
        for (guint i = 0; i < pairs->len; i += 2)
            if (strcmp(g_ptr_array_index(pairs, i), "threshold") != 0)
                attribute(w, g_ptr_array_index(pairs, i),
                          g_ptr_array_index(pairs, i + 1));
        end_tag(w, "/>\n");
    }
    g_ptr_array_unref(pairs);
}

static void write_network_source(writer *w, const nbd_address *a)
{
    const char *port =
        a->socket || strcmp(a->port, NBD_PORT_DEFAULT) == 0 ? NULL : a->port;
    write_open(
        w, "source",
        PAIRS("protocol", "nbd", "name", a->export_name, "tls", a->tls ? "yes" : NULL));
    write_empty(w, "host",
                PAIRS("transport", a->socket ? "unix" : NULL, "socket", a->socket, "name",
                      a->socket ? NULL : a->host, "port", port));
    write_close(w, "source");
    if (a->tls)
        write_empty(w, LIBVIRT_TLS,
                    PAIRS("xmlns:quorumfs", LIBVIRT_NAMESPACE, "user", a->user,
                          "psk-file", a->psk_file, "certificates", a->certificates));
}

static void write_source(writer *w, const replica_options *replica)
{
    struct stat st;
    if (!nbd_is_source(replica->path)) {
        bool block = stat(replica->path, &st) == 0 && S_ISBLK(st.st_mode);
        write_open(w, "backingStore", PAIRS("type", block ? "block" : "file"));
        if (replica->format)
            write_empty(w, "format", PAIRS("type", replica->format));
        write_empty(w, "source", PAIRS(block ? "dev" : "file", replica->path));
        return;
    }
    nbd_address address;
    GError *cause = NULL;
    if (!nbd_is_uri(replica->path)) {
        g_set_error(
            &cause, CONFIG_ERROR, CONFIG_ERROR_INVALID,
            "exec: cannot be written in libvirt XML (serve it, and give its URI)");
    } else if (nbd_address_parse(replica->path, &address, &cause)) {
        write_open(w, "backingStore", PAIRS("type", "network"));
        if (replica->format)
            write_empty(w, "format", PAIRS("type", replica->format));
        write_network_source(w, &address);
        nbd_address_clear(&address);
    }
    if (!cause)
        return;
    if (!w->error)
        g_set_error_literal(&w->error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                            cause->message);
    g_error_free(cause);
}

static void write_replica(writer *w, const disk_options *d, guint index)
{
    const replica_options *replica = g_ptr_array_index(d->replicas, index);
    g_autofree char *name = config_replica_name(index);
    write_source(w, replica);
    if (w->error) {
        g_prefix_error(&w->error, "[replica %s/%s]: ", d->name, replica->name);
        return;
    }
    write_options(w, "name", strcmp(name, replica->name) == 0 ? NULL : replica->name,
                  config_list_replica_keys(replica));
    write_close(w, "backingStore");
}

static void write_disk(writer *w, const mount_config *config, const disk_options *d)
{
    g_autofree char *threshold =
        d->threshold > 0 ? g_strdup_printf("%u", d->threshold) : NULL;
    g_autofree char *file = config_default_file(config, d);
    write_open(w, "disk", PAIRS("type", "quorum", "device", "disk"));
    write_empty(w, "driver", PAIRS("name", "qemu", "type", "quorum"));
    if (threshold)
        write_empty(w, "threshold", PAIRS("value", threshold));
    for (guint i = 0; i < d->replicas->len && !w->error; i++)
        write_replica(w, d, i);
    write_empty(w, "target", PAIRS("dev", d->name, "bus", "virtio"));
    if (d->read_only)
        write_empty(w, "readonly", PAIRS(NULL));
    if (d->alias)
        write_empty(w, "alias", PAIRS("name", d->alias));
    write_options(w, "file", strcmp(file, d->file) == 0 ? NULL : d->file,
                  config_list_disk_keys(d));
    for (guint i = 0; i < d->allow_dirs->len; i++)
        write_empty(w, LIBVIRT_ALLOW_DIR,
                    PAIRS("xmlns:quorumfs", LIBVIRT_NAMESPACE, "path",
                          (const char *)g_ptr_array_index(d->allow_dirs, i)));
    write_close(w, "disk");
}

char *config_write_libvirt(const mount_config *config, GError **error)
{
    g_autoptr(GString) out = g_string_new(NULL);
    writer w = {.out = out};
    bool several = config->disks->len > 1;
    if (several)
        write_open(&w, "devices", PAIRS(NULL));
    for (guint i = 0; i < config->disks->len && !w.error; i++)
        write_disk(&w, config, g_ptr_array_index(config->disks, i));
    if (several)
        write_close(&w, "devices");
    if (w.error) {
        g_propagate_error(error, w.error);
        return NULL;
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}
