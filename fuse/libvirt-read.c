/*
 * libvirt-read.c: <disk type='quorum'> out of a domain.
 *
 * GMarkup tells tags; a stack of places says where they stand, and one table what may stand
 * there. Inside a quorum every element is known: it is read, it is about the guest's device
 * and skipped, or it is refused, since an option that is overlooked would be a disk other
 * than the one that was asked for. All else in the document is skipped unseen.
 *
 * Bounds: 1 MiB of text (config_read_text), LIBVIRT_PLACES_MAX levels, DISKS_MAX disks,
 * VALUE_MAX bytes in a value that is kept, and GMarkup's of the attributes in a tag. There
 * are no document types, and so no entities.
 *
 * What a <backingStore> in a replica says is not used: which layers there are is in the
 * images (O1).
 */
#include "fuse/libvirt.h"
#include <string.h>

/* Of the end of a tag. GMarkup counts a line when it comes to the end of the one before. */
static unsigned line_now(const libvirt_reader *r)
{
    gint line = 1, character = 0;
    g_markup_parse_context_get_position(r->parser, &line, &character);
    return r->first_line + (unsigned)(line > 1 && character == 1 ? line - 2 : line - 1);
}

static bool read_other_alias(libvirt_reader *r, GError **error G_GNUC_UNUSED)
{
    const char *name = libvirt_attribute(r, "name");
    if (name)
        g_hash_table_add(r->aliases, g_strdup(name));
    return true;
}

static bool check_layer(libvirt_reader *r, GError **error)
{
    if (g_strcmp0(libvirt_attribute(r, "type"), "quorum") == 0)
        return libvirt_invalid(r, error, "a quorum is a whole disk, not a layer of one");
    return true;
}

/* ---- What may stand where --------------------------------------------------------- */

#define ONCE true

static const struct row {
    libvirt_place in;
    const char *name;
    bool once;
    bool (*read)(libvirt_reader *r, GError **error); /* NULL: skipped, or refused */
    libvirt_place then;                              /* where its children stand */
    const char *refused; /* "... is not available in this version" */
} rows[] = {
    {PLACE_DOCUMENT, "domain", false, NULL, PLACE_DOMAIN, NULL},
    {PLACE_DOCUMENT, "devices", false, NULL, PLACE_DEVICES, NULL},
    {PLACE_DOCUMENT, "disk", false, libvirt_begin_disk, PLACE_DISK, NULL},
    {PLACE_DOMAIN, "devices", false, NULL, PLACE_DEVICES, NULL},
    {PLACE_DEVICES, "disk", false, libvirt_begin_disk, PLACE_DISK, NULL},

    {PLACE_DISK, "driver", ONCE, libvirt_read_disk_driver, PLACE_SKIP, NULL},
    {PLACE_DISK, "threshold", ONCE, libvirt_read_threshold, PLACE_EMPTY, NULL},
    {PLACE_DISK, "backingStore", false, libvirt_begin_replica, PLACE_REPLICA, NULL},
    {PLACE_DISK, "target", ONCE, libvirt_read_target, PLACE_EMPTY, NULL},
    {PLACE_DISK, "readonly", ONCE, libvirt_read_readonly, PLACE_EMPTY, NULL},
    {PLACE_DISK, "alias", ONCE, libvirt_read_alias, PLACE_EMPTY, NULL},
    {PLACE_DISK, "reference", false, libvirt_read_reference, PLACE_EMPTY, NULL},
    {PLACE_DISK, LIBVIRT_OPTIONS, ONCE, libvirt_read_disk_options, PLACE_EMPTY, NULL},
    {PLACE_DISK, LIBVIRT_ALLOW_DIR, false, libvirt_read_allow_dir, PLACE_EMPTY, NULL},
    {PLACE_DISK, "address", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "acpi", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "backenddomain", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "blockio", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "boot", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "geometry", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "iotune", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "product", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "serial", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "shareable", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "vendor", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "wwn", false, NULL, PLACE_SKIP, NULL},
    {PLACE_DISK, "source", false, NULL, PLACE_SKIP, "a source of the quorum itself"},
    {PLACE_DISK, "mirror", false, NULL, PLACE_SKIP, "a block job"},
    {PLACE_DISK, "encryption", false, NULL, PLACE_SKIP, "libvirt's encryption"},
    {PLACE_DISK, "auth", false, NULL, PLACE_SKIP, "libvirt's authentication"},
    {PLACE_DISK, "transient", false, NULL, PLACE_SKIP, "a disk that forgets"},

    {PLACE_REPLICA, "driver", ONCE, libvirt_read_replica_driver, PLACE_SKIP, NULL},
    {PLACE_REPLICA, "format", ONCE, libvirt_read_format, PLACE_SKIP, NULL},
    {PLACE_REPLICA, "source", ONCE, libvirt_read_source, PLACE_SOURCE, NULL},
    {PLACE_REPLICA, "backingStore", ONCE, check_layer, PLACE_LAYER, NULL},
    {PLACE_REPLICA, "reference", false, libvirt_read_reference, PLACE_EMPTY, NULL},
    {PLACE_REPLICA, LIBVIRT_OPTIONS, ONCE, libvirt_read_replica_options, PLACE_EMPTY,
     NULL},
    {PLACE_REPLICA, LIBVIRT_TLS, ONCE, libvirt_read_tls, PLACE_EMPTY, NULL},
    {PLACE_REPLICA, "threshold", false, NULL, PLACE_SKIP, "a quorum in a quorum"},
    {PLACE_REPLICA, "encryption", false, NULL, PLACE_SKIP, "libvirt's encryption"},
    {PLACE_REPLICA, "auth", false, NULL, PLACE_SKIP, "libvirt's authentication"},

    {PLACE_SOURCE, "host", false, libvirt_read_host, PLACE_EMPTY, NULL},
    {PLACE_SOURCE, "privateData", false, NULL, PLACE_SKIP, NULL},
    {PLACE_SOURCE, "seclabel", false, NULL, PLACE_SKIP, NULL},
    {PLACE_SOURCE, "auth", false, NULL, PLACE_SKIP, "libvirt's authentication"},
    {PLACE_SOURCE, "dataStore", false, NULL, PLACE_SKIP, "<dataStore>"},
    {PLACE_SOURCE, "encryption", false, NULL, PLACE_SKIP, "libvirt's encryption"},
    {PLACE_SOURCE, "reservations", false, NULL, PLACE_SKIP, "<reservations>"},
    {PLACE_SOURCE, "slices", false, NULL, PLACE_SKIP, "a slice of a source"},

    {PLACE_LAYER, "backingStore", false, check_layer, PLACE_LAYER, NULL},
    {PLACE_LAYER, "reference", false, libvirt_read_reference, PLACE_EMPTY, NULL},
    {PLACE_OTHER, "backingStore", false, check_layer, PLACE_OTHER, NULL},
    {PLACE_OTHER, "alias", false, read_other_alias, PLACE_SKIP, NULL},
};
G_STATIC_ASSERT(G_N_ELEMENTS(rows) <= 64);

static bool is_strict(libvirt_place in)
{
    return in == PLACE_DISK || in == PLACE_REPLICA || in == PLACE_SOURCE ||
           in == PLACE_EMPTY;
}

static bool unknown_element(const libvirt_reader *r, libvirt_place in, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        if (rows[i].in == in && !rows[i].refused)
            g_ptr_array_add(names, (gpointer)rows[i].name);
    g_ptr_array_add(names, NULL);
    g_autofree char *hint = config_hint(r->element, (const char *const *)names->pdata);
    return libvirt_invalid(r, error, "unknown element%s", hint);
}

/* ---- GMarkup ---------------------------------------------------------------------- */

static bool push(libvirt_reader *r, libvirt_place next, GError **error)
{
    if (r->depth + 1 == LIBVIRT_PLACES_MAX)
        return libvirt_invalid(r, error, "nested too deeply");
    r->places[++r->depth] = next;
    return true;
}

static uint64_t *seen_at(libvirt_reader *r, libvirt_place in)
{
    return in == PLACE_REPLICA || in == PLACE_SOURCE ? &r->replica_seen : &r->disk_seen;
}

static bool begin_row(libvirt_reader *r, size_t index, GError **error)
{
    const struct row *row = &rows[index];
    uint64_t *seen = seen_at(r, row->in), bit = (uint64_t)1 << index;
    if (row->refused)
        return libvirt_unavailable(r, error, row->refused);
    if (row->once && *seen & bit)
        return libvirt_invalid(r, error, "is repeated");
    *seen |= bit;
    const disk_options *before = r->disk;
    if (row->read && !row->read(r, error))
        return false;
    bool other = row->then == PLACE_DISK && r->disk == before;
    if (other && row->in == PLACE_DOCUMENT)
        return libvirt_invalid(r, error, "not of type='quorum'");
    return push(r, other ? PLACE_OTHER : row->then, error);
}

static bool begin_element(libvirt_reader *r, GError **error)
{
    libvirt_place in = r->places[r->depth];
    if (in == PLACE_DOCUMENT && r->has_root)
        return libvirt_invalid(r, error, "a second document");
    r->has_root = true;
    if (in != PLACE_SKIP)
        for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
            if (rows[i].in == in && strcmp(rows[i].name, r->element) == 0)
                return begin_row(r, i, error);
    if (in == PLACE_DOCUMENT)
        return libvirt_invalid(r, error, "neither <domain> nor <disk>");
    if (is_strict(in))
        return unknown_element(r, in, error);
    return push(r, PLACE_SKIP, error);
}

static void on_start(GMarkupParseContext *context G_GNUC_UNUSED, const char *name,
                     const char **names, const char **values, gpointer data,
                     GError **error)
{
    libvirt_reader *r = data;
    r->line = line_now(r);
    r->element = name;
    r->names = names;
    r->values = values;
    begin_element(r, error);
    r->element = NULL;
}

static void on_end(GMarkupParseContext *context G_GNUC_UNUSED, const char *name,
                   gpointer data, GError **error)
{
    libvirt_reader *r = data;
    r->line = line_now(r);
    r->element = name;
    libvirt_place left = r->places[r->depth];
    if (left == PLACE_REPLICA)
        libvirt_end_replica(r, error);
    else if (left == PLACE_DISK)
        libvirt_end_disk(r, error);
    r->depth--;
    r->element = NULL;
}

static void on_text(GMarkupParseContext *context G_GNUC_UNUSED, const char *text,
                    gsize length, gpointer data, GError **error)
{
    libvirt_reader *r = data;
    if (!is_strict(r->places[r->depth]))
        return;
    for (gsize i = 0; i < length; i++) {
        if (!g_ascii_isspace(text[i])) {
            r->line = line_now(r);
            libvirt_invalid(r, error,
                            "text among a disk's elements (values are attributes)");
            return;
        }
    }
}

static void on_passthrough(GMarkupParseContext *context G_GNUC_UNUSED, const char *text,
                           gsize length, gpointer data, GError **error)
{
    libvirt_reader *r = data;
    r->line = line_now(r);
    if (length >= strlen("<!DOCTYPE") && g_ascii_strncasecmp(text, "<!DOCTYPE", 9) == 0)
        libvirt_invalid(r, error, "a document type (libvirt's XML has none)");
}

static bool resolve_references(libvirt_reader *r, GError **error)
{
    if (r->references->len == 0)
        return true;
    const libvirt_reference *first = &g_array_index(r->references, libvirt_reference, 0);
    r->element = "reference";
    r->line = first->line;
    if (g_hash_table_contains(r->aliases, first->alias))
        return libvirt_unavailable(r, error, "replication");
    return libvirt_invalid(r, error, "no disk has the alias '%s'", first->alias);
}

static bool check_document(libvirt_reader *r, GError **error)
{
    if (!resolve_references(r, error))
        return false;
    if (r->config->disks->len == 0) {
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_INVALID,
                    "%s: no <disk type='quorum'>", r->file);
        return false;
    }
    const disk_options *second = config_name_files(r->config);
    if (!second)
        return true;
    unsigned at = 0;
    while (g_ptr_array_index(r->config->disks, at) != second)
        at++;
    r->element = "disk";
    r->line = g_array_index(r->lines, unsigned, at);
    return libvirt_invalid(r, error, "another disk has the file '%s' too", second->file);
}

/* GMarkup's own messages begin with a line of their own making. */
static bool markup_error(libvirt_reader *r, GError *cause, GError **error)
{
    if (cause->domain == CONFIG_ERROR) {
        g_propagate_error(error, cause);
        return false;
    }
    const char *why = cause->message;
    const char *colon =
        g_str_has_prefix(why, "Error on line ") ? strstr(why, ": ") : NULL;
    r->line = line_now(r);
    libvirt_invalid(r, error, "%s", colon ? colon + 2 : why);
    g_error_free(cause);
    return false;
}

static void reference_clear(gpointer reference)
{
    g_free(((libvirt_reference *)reference)->alias);
}

/* A mark of the encoding, and lines before the document, which GMarkup may count or not. */
static const char *skip_blank(libvirt_reader *r, const char *text)
{
    if (g_str_has_prefix(text, "\xef\xbb\xbf"))
        text += 3;
    r->first_line = 1;
    for (; g_ascii_isspace(*text); text++)
        r->first_line += *text == '\n';
    return text;
}

bool config_parse_libvirt(mount_config *config, const char *file, const char *text,
                          GError **error)
{
    static const GMarkupParser callbacks = {on_start, on_end, on_text, on_passthrough,
                                            NULL};
    g_autofree char *path = config_absolute(NULL, file);
    g_autofree char *dir = g_path_get_dirname(path);
    g_autoptr(GPtrArray) settings = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) lines = g_array_new(FALSE, FALSE, sizeof(unsigned));
    g_autoptr(GHashTable) aliases =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GArray) references = g_array_new(FALSE, FALSE, sizeof(libvirt_reference));
    g_array_set_clear_func(references, reference_clear);
    libvirt_reader r = {.config = config,
                        .file = file,
                        .dir = dir,
                        .settings = settings,
                        .lines = lines,
                        .aliases = aliases,
                        .names_taken = names,
                        .references = references};
    r.parser = g_markup_parse_context_new(&callbacks, G_MARKUP_DEFAULT_FLAGS, &r, NULL);
    GError *cause = NULL;
    text = skip_blank(&r, text);
    bool good =
        (g_markup_parse_context_parse(r.parser, text, (gssize)strlen(text), &cause) &&
         g_markup_parse_context_end_parse(r.parser, &cause)) ||
        markup_error(&r, cause, error);
    good = good && check_document(&r, error);
    g_markup_parse_context_free(r.parser);
    libvirt_source_clear(&r.source);
    return good;
}

bool config_load_libvirt(mount_config *config, const char *file, GError **error)
{
    g_autofree char *text = config_read_text(file, error);
    return text && config_parse_libvirt(config, file, text, error);
}
