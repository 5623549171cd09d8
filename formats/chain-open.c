/*
 * chain-open.c: the layers of a chain, from the top down (O1 to O3, O5).
 *
 * For each layer: open (path.c), lock, compare with every file that the chain already has,
 * decide the format, parse and check the header, open its data file; then its backing file
 * is the next layer. Nothing is decoded before the whole chain stands.
 *
 * Whether the top can be written turns out on the way: by its name, its permissions, its
 * header, its data file. A chain that was to be written and cannot be is closed and opened
 * anew for reading, so that it has a reader's descriptors and locks, and holds nothing that
 * was read before it had them.
 */
#include "formats/chain-internal.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int chain_dup(int fd, const char *filename, GError **error)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s", filename,
                    g_strerror(errno));
    return copy;
}

/* Empty, at the bottom of the chain. */
static layer *layer_add(chain *c)
{
    layer *l = g_new0(layer, 1);
    l->fd = -1;
    l->data_fd = -1;
    l->allocated = UINT64_MAX;
    c->layers[c->depth++] = l;
    return l;
}

/* The lock is the file's as long as something may still happen to it. */
static void layer_close(int fd, bool keep_lock)
{
    if (fd < 0)
        return;
    if (!keep_lock)
        path_unlock(fd);
    file_close(fd);
}

static void layer_free(layer *l, bool keep_locks)
{
    image_close(l->im);
    layer_close(l->fd, keep_locks);
    layer_close(l->data_fd, keep_locks);
    g_free((char *)l->info.filename);
    g_free((char *)l->info.backing_file);
    g_free((char *)l->info.backing_format);
    g_free((char *)l->info.data_file);
    g_free(l->address);
    qcow1_header_clear(&l->qcow1);
    qcow2_header_clear(&l->qcow2);
    g_free(l);
}

/* Two nodes of one block device are one device. */
static void identify(const struct stat *st, uint64_t *ret_dev, uint64_t *ret_ino)
{
    *ret_dev = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev;
    *ret_ino = S_ISBLK(st->st_mode) ? 0 : st->st_ino;
}

static bool layer_holds(const layer *l, uint64_t dev, uint64_t ino)
{
    return (l->fd >= 0 && l->info.dev == dev && l->info.ino == ino) ||
           (l->data_fd >= 0 && l->data_dev == dev && l->data_ino == ino);
}

static bool check_new_to_chain(const chain *c, const char *filename, uint64_t dev,
                               uint64_t ino, GError **error)
{
    for (unsigned i = 0; i < c->depth; i++) {
        if (layer_holds(c->layers[i], dev, ino)) {
            g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED,
                        "%s: occurs twice in the chain of %s (a cycle?)", filename,
                        c->layers[0]->info.filename);
            return false;
        }
    }
    return true;
}

/* Takes the opened file in. `writable` is how it is to be locked. */
static bool layer_take_file(chain *c, layer *l, char *filename, const struct stat *st,
                            bool writable, GError **error)
{
    uint64_t dev, ino;
    identify(st, &dev, &ino);
    bool is_new = check_new_to_chain(c, filename, dev, ino, error);
    l->info.filename = filename;
    l->info.dev = dev;
    l->info.ino = ino;
    l->info.file_size = (uint64_t)st->st_size;
    l->info.file_allocated = (uint64_t)st->st_blocks * 512;
    return is_new && path_lock(l->fd, writable, filename, error);
}

/* A layer alone is bounded by its format; a chain of many must be, too: a table is held in
 * memory whole, and costs an attacker a hole in a file. */
static bool take_tables(chain *c, const layer *l, uint64_t bytes, GError **error)
{
    if (bytes <= c->table_budget) {
        c->table_budget -= bytes;
        return true;
    }
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED,
                "%s: the tables of the chain of %s are too large (%u MiB are allowed)",
                l->info.filename, c->layers[0]->info.filename,
                CHAIN_TABLE_BYTES_MAX >> 20);
    return false;
}

static bool load_qcow1(chain *c, layer *l, GError **error)
{
    if (!qcow1_header_read(l->fd, l->info.filename, &l->qcow1, error))
        return false;
    unsigned entry_bits = l->qcow1.cluster_bits + l->qcow1.l2_bits;
    if (!take_tables(c, l, ((l->qcow1.size >> entry_bits) + 1) * 8, error))
        return false;
    l->info.version = 1;
    l->info.size = l->qcow1.size;
    l->info.cluster_size = 1u << l->qcow1.cluster_bits;
    l->info.encrypted = l->qcow1.crypt_method != 0;
    l->info.backing_file = g_strdup(l->qcow1.backing_file);
    l->refusal = libqcow_refuses_qcow1(l->fd, &l->qcow1, &c->check_budget);
    return true;
}

/* The chain cannot be written; always returns false, without a GError. */
static bool refuse_writing(chain *c, const char *filename, const char *why)
{
    c->read_only_reason = g_strdup_printf("%s: %s", filename, why);
    return false;
}

static bool is_written(const chain *c, const layer *l)
{
    return c->writable && l == c->layers[0];
}

/* The data file was opened for reading, as everything that an image names. */
static bool reopen_data_file(chain *c, layer *l)
{
    int fd = path_reopen(l->data_fd, true);
    if (fd < 0)
        return refuse_writing(c, l->info.data_file, g_strerror(errno));
    close(l->data_fd);
    l->data_fd = fd;
    return true;
}

static bool open_data_file(chain *c, layer *l, const path_policy *policy, GError **error)
{
    struct stat st;
    char *filename = NULL;
    if (!l->qcow2.data_file) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_INVALID,
                    "%s: has an external data file but does not name it (qemu-img amend "
                    "-o data_file=NAME)",
                    l->info.filename);
        return false;
    }
    l->data_fd = path_open_referred(policy, l->qcow2.data_file, l->info.filename,
                                    "data file", "raw", &filename, &st, error);
    if (l->data_fd < 0)
        return false;
    l->info.data_file = filename;
    l->info.file_allocated += (uint64_t)st.st_blocks * 512;
    uint64_t dev, ino;
    identify(&st, &dev, &ino);
    /* The layer itself is in the chain already: it may not be its own data file. */
    if (!check_new_to_chain(c, filename, dev, ino, error))
        return false;
    l->data_dev = dev;
    l->data_ino = ino;
    if (is_written(c, l) && !reopen_data_file(c, l))
        return false;
    return path_lock(l->data_fd, is_written(c, l), filename, error);
}

static void describe_qcow2(layer *l)
{
    const qcow2_header *h = &l->qcow2;
    l->info.version = h->version;
    l->info.size = h->size;
    l->info.cluster_size = 1u << h->cluster_bits;
    l->info.encrypted = h->crypt_method != 0;
    l->info.backing_file = g_strdup(h->backing_file);
    l->info.backing_format = g_strdup(h->backing_format);
    l->info.compression = h->compression == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib";
    l->info.extended_l2 = h->incompatible & QCOW2_INCOMPAT_EXTL2;
    l->info.dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY;
    l->info.lazy_refcounts = h->compatible & 1;
    l->info.snapshot_count = h->snapshot_count;
    l->info.refcount_bits = 1u << h->refcount_order;
}

/* A device does not grow, and nothing tells where in it the image ends. */
static bool check_qcow2_writable(chain *c, const layer *l)
{
    struct stat st;
    const char *why = qcow2_write_refusal(&l->qcow2);
    if (!why && fstat(l->fd, &st) == 0 && S_ISBLK(st.st_mode))
        why = "qcow2 images on block devices are not written (put the image into a file)";
    return !why || refuse_writing(c, l->info.filename, why);
}

static bool load_qcow2(chain *c, layer *l, const path_policy *policy, GError **error)
{
    if (!qcow2_header_read(l->fd, l->info.filename, &l->qcow2, error))
        return false;
    describe_qcow2(l);
    if (is_written(c, l) && !check_qcow2_writable(c, l))
        return false;
    uint64_t tables =
        (uint64_t)l->qcow2.l1_entries * 8 +
        ((uint64_t)l->qcow2.refcount_table_clusters << l->qcow2.cluster_bits);
    if (!take_tables(c, l, tables, error))
        return false;
    struct stat st;
    bool external = l->qcow2.incompatible & QCOW2_INCOMPAT_DATA_FILE;
    if (external && !open_data_file(c, l, policy, error))
        return false;
    if (fstat(external ? l->data_fd : l->fd, &st) < 0)
        st.st_size = 0;
    qcow2_check check = {0};
    if (!qcow2_check_tables(l->fd, (uint64_t)st.st_size, &l->qcow2, l->info.filename,
                            &c->check_budget, &check, error))
        return false;
    l->refusal = libqcow_refuses_qcow2(&l->qcow2, &check);
    if (check.complete)
        l->allocated = check.allocated_bytes;
    return true;
}

static bool load_raw(const chain *c, layer *l, GError **error)
{
    int fd = chain_dup(l->fd, l->info.filename, error);
    if (fd >= 0)
        l->im = raw_open(fd, l->info.filename, is_written(c, l), error);
    if (!l->im)
        return false;
    l->info.size = l->im->size;
    l->info.file_size = l->im->size;
    return true;
}

static bool layer_load(chain *c, layer *l, const path_policy *policy, GError **error)
{
    l->info.format = chain_kind_name(l->kind);
    switch (l->kind) {
    case LAYER_RAW:
        return load_raw(c, l, error);
    case LAYER_QCOW1:
        return load_qcow1(c, l, error);
    case LAYER_QCOW2:
        return load_qcow2(c, l, policy, error);
    }
    return false;
}

/* The top's format, before it is opened. False if nothing tells it. */
static bool top_kind(const chain_options *options, layer_kind *ret_kind)
{
    return options->format ? chain_kind_from_name(options->format, ret_kind)
                           : chain_kind_from_suffix(options->path, ret_kind);
}

/* Why a top of this kind is never written; NULL: it may be. */
static const char *kind_refusal(layer_kind kind, chain_decoder decoder)
{
    switch (kind) {
    case LAYER_RAW:
        return NULL;
    case LAYER_QCOW1:
        return "qcow images of version 1 are not written (qemu-img convert -O qcow2)";
    case LAYER_QCOW2:
        break;
    }
    if (decoder == CHAIN_DECODER_LIBQCOW)
        return "libqcow does not write (decoder=auto or native)";
    if (decoder == CHAIN_DECODER_BOTH)
        return "decoder=both only reads (decoder=auto or native)";
    return NULL;
}

/* A file that may not be written, or not at all, is opened for reading anew: that tells
 * which of the two. */
static int open_top_file(chain *c, const chain_options *options, layer_kind kind,
                         char **ret_filename, struct stat *ret_st, GError **error)
{
    if (!c->writable)
        return path_open_named(options->path, false, ret_filename, ret_st, error);
    const char *why = kind_refusal(kind, options->decoder);
    if (why) {
        refuse_writing(c, options->path, why);
        return -1;
    }
    g_autoptr(GError) refused = NULL;
    int fd = path_open_named(options->path, true, ret_filename, ret_st, &refused);
    if (fd < 0)
        c->read_only_reason = g_strdup(refused->message);
    return fd;
}

static bool open_top(chain *c, const chain_options *options, GError **error)
{
    struct stat st;
    char *filename = NULL;
    layer_kind kind = LAYER_QCOW2;
    if (chain_is_remote(options->path))
        return chain_open_remote(c, layer_add(c), options, error);
    bool known = top_kind(options, &kind);
    if (options->format && !known) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_FORMAT,
                    "%s: unknown format '%s' (raw, qcow and qcow2 are known)",
                    options->path, options->format);
        return false;
    }
    layer *l = layer_add(c);
    l->kind = kind;
    c->writable = c->writable && known;
    l->fd = open_top_file(c, options, kind, &filename, &st, error);
    if (l->fd < 0 || !layer_take_file(c, l, filename, &st, c->writable, error))
        return false;
    if (!known) {
        chain_kind_unknown(l->fd, options->path, NULL, error);
        return false;
    }
    if (!options->format && !chain_kind_agrees(l->fd, kind, options->path, NULL, error))
        return false;
    return layer_load(c, l, options->policy, error);
}

/* The backing file's format, once it is open. */
static bool backing_kind(layer *l, const layer *referrer, GError **error)
{
    const char *filename = l->info.filename;
    if (referrer->info.backing_format)
        return chain_kind_from_name(referrer->info.backing_format, &l->kind);
    if (!chain_kind_from_suffix(filename, &l->kind)) {
        chain_kind_unknown(l->fd, filename, referrer, error);
        return false;
    }
    return chain_kind_agrees(l->fd, l->kind, filename, referrer, error);
}

static bool load_backing(chain *c, layer *l, const layer *referrer,
                         const path_policy *policy, GError **error)
{
    if (backing_kind(l, referrer, error) && layer_load(c, l, policy, error))
        return true;
    g_prefix_error(error, "%s: backing file ", referrer->info.filename);
    return false;
}

static bool open_backing(chain *c, const path_policy *policy, GError **error)
{
    const layer *referrer = c->layers[c->depth - 1];
    const char *format = referrer->info.backing_format;
    layer_kind kind;
    if (c->depth == CHAIN_DEPTH_MAX) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED,
                    "%s: the chain has more than %d layers", c->layers[0]->info.filename,
                    CHAIN_DEPTH_MAX);
        return false;
    }
    if (format && !chain_kind_from_name(format, &kind)) {
        g_autofree char *shown_file = path_printable(referrer->info.backing_file);
        g_autofree char *shown_format = path_printable(format);
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED,
                    "%s: backing file %s: unknown format '%s' (raw, qcow and qcow2 are "
                    "known)",
                    referrer->info.filename, shown_file, shown_format);
        return false;
    }
    struct stat st;
    char *filename = NULL;
    layer *l = layer_add(c);
    l->fd =
        path_open_referred(policy, referrer->info.backing_file, referrer->info.filename,
                           "backing file", format, &filename, &st, error);
    if (l->fd < 0 || !layer_take_file(c, l, filename, &st, false, error))
        return false;
    return load_backing(c, l, referrer, policy, error);
}

static bool open_layers(chain *c, const chain_options *options, GError **error)
{
    if (!open_top(c, options, error))
        return false;
    while (c->layers[c->depth - 1]->info.backing_file)
        if (!open_backing(c, options->policy, error))
            return false;
    c->size = c->layers[0]->info.size;
    return true;
}

/* NULL with *ret_reason (or NULL there) and without an error: it cannot be written. */
static chain *open_once(const chain_options *options, bool writable, char **ret_reason,
                        GError **error)
{
    chain *c = g_new0(chain, 1);
    c->check_budget = QCOW2_CHECK_BYTES_MAX;
    c->table_budget = CHAIN_TABLE_BYTES_MAX;
    c->writable = writable;
    if (open_layers(c, options, error) && chain_choose_decoders(c, options, error))
        return c;
    *ret_reason = g_steal_pointer(&c->read_only_reason);
    chain_close(c);
    return NULL;
}

chain *chain_open(const chain_options *options, GError **error)
{
    g_autofree char *reason = NULL, *none = NULL;
    if (options->writable) {
        chain *c = open_once(options, true, &reason, error);
        if (c || !reason)
            return c;
    }
    chain *c = open_once(options, false, &none, error);
    if (c)
        c->read_only_reason = g_steal_pointer(&reason);
    return c;
}

void chain_close(chain *c)
{
    if (!c)
        return;
    bool hangs = chain_abandoned(c) > 0;
    chain_stack_clear(&c->stack);
    chain_stack_clear(&c->check);
    for (unsigned i = 0; i < c->depth; i++)
        layer_free(c->layers[i], hangs);
    g_free(c->read_only_reason);
    g_free(c);
}

static bool check_not_shared(const layer *l, const chain *other, GError **error)
{
    for (unsigned i = 0; i < other->depth; i++) {
        const layer *o = other->layers[i];
        bool same = (l->fd >= 0 && layer_holds(o, l->info.dev, l->info.ino)) ||
                    (l->address && !g_strcmp0(l->address, o->address)) ||
                    (l->data_fd >= 0 && layer_holds(o, l->data_dev, l->data_ino));
        if (same) {
            g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED,
                        "%s: belongs to two replicas (a vote among copies of one file is "
                        "no vote)",
                        o->info.filename);
            return false;
        }
    }
    return true;
}

bool chain_check_distinct(chain *const *chains, unsigned n, GError **error)
{
    for (unsigned i = 1; i < n; i++)
        for (unsigned j = 0; j < i; j++)
            for (unsigned k = 0; k < chains[j]->depth; k++)
                if (!check_not_shared(chains[j]->layers[k], chains[i], error))
                    return false;
    return true;
}
