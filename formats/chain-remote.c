/*
 * chain-remote.c: a replica on a server is a chain of one raw layer without a file of ours:
 * it cannot be locked here, and has no identity but its address (O2, O5).
 */
#include "formats/chain-internal.h"
#include "formats/nbd.h"
#include <string.h>

bool chain_is_remote(const char *path)
{
    return nbd_is_source(path);
}

bool chain_open_remote(chain *c, layer *l, const chain_options *options, GError **error)
{
    if (options->format && strcmp(options->format, "raw") != 0) {
        g_autofree char *shown = path_printable(options->path);
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED,
                    "%s: %s over NBD (have the server read the format: qemu-nbd -f %s "
                    "FILE)",
                    shown, options->format, options->format);
        return false;
    }
    const nbd_options nbd = {
        .source = options->path,
        .writable = c->writable,
        .timeout_ms = options->timeout_ms,
    };
    l->im = nbd_open(&nbd, error);
    if (!l->im)
        return false;
    const char *why = nbd_read_only_reason(l->im);
    if (why)
        c->read_only_reason = g_strdup_printf("%s: %s", l->im->filename, why);
    c->writable = !l->im->read_only;
    l->kind = LAYER_RAW;
    l->info.remote = true;
    l->address = nbd_source_identity(options->path);
    l->info.filename = g_strdup(l->im->filename);
    l->info.format = chain_kind_name(LAYER_RAW);
    l->info.note = "not locked: only the server can keep others out";
    l->info.size = l->info.file_size = l->info.file_allocated = l->im->size;
    return true;
}
