/*
 * nbd.c: the image driver on top of a server's connections (nbd-remote.c).
 *
 * Data goes directly between the caller's memory and the socket, in three cases excepted:
 * what is read ahead, because nobody promises to come for it; and what is not aligned to the
 * server's blocks. There reads are widened, and writes completed from what the server holds
 * beside them: only within a sector, because nobody else writes to a sector meanwhile (the
 * disk's range locks are by sectors, W1).
 *
 * What was read ahead is served once, to a read of the same range that begins before its
 * deadline, unless that range was written in between.
 *
 * Locks: nbd_image.lock covers the announcements; nothing else is taken while it is held.
 */
#include "formats/nbd-internal.h"
#include <errno.h>
#include <string.h>

#define AHEAD_MAX       16u
#define AHEAD_BYTES_MAX (4u << 20)

/* A write-zeroes command at a time: each has a deadline of its own. */
#define ZERO_STEP (128u << 20)

/* A read that was announced. */
typedef struct ahead {
    nbd_request *request; /* NULL: the slot is free */
    const void *buf;
    uint64_t offset, length; /* as announced */
    uint64_t age;
    bool outdated;
} ahead;

typedef struct nbd_image {
    image base; /* first */
    nbd_remote remote;
    nbd_helper *helper; /* exec: */
    const char *read_only_reason;
    uint32_t write_flags; /* FUA where that is the only way to stable storage */
    GMutex lock;
    ahead aheads[AHEAD_MAX];
    unsigned n_aheads;
    uint64_t next_age;
} nbd_image;

static nbd_image *nbd_of(image *im)
{
    return (nbd_image *)im;
}

static uint64_t align_down(const nbd_image *n, uint64_t value)
{
    return value & ~(uint64_t)(n->remote.facts.block_min - 1);
}

/* The size is a multiple of a block, so this stays within it. */
static uint64_t align_up(const nbd_image *n, uint64_t value)
{
    return align_down(n, value + n->remote.facts.block_min - 1);
}

static bool is_aligned(const nbd_image *n, uint64_t offset, uint64_t length)
{
    return ((offset | length) & (n->remote.facts.block_min - 1)) == 0;
}

/* A read of the blocks around the range, into the request's own memory. */
static nbd_request *widened_read(nbd_image *n, uint64_t offset, uint64_t length)
{
    uint64_t start = align_down(n, offset), end = align_up(n, offset + length);
    nbd_request *r = nbd_remote_get(&n->remote, end - start);
    r->op = NBD_OP_READ;
    r->buf = r->memory;
    r->offset = start;
    r->length = end - start;
    return r;
}

/* Waits for a widened read and copies the range out of it. */
static int take_widened(nbd_image *n, nbd_request *r, void *buf, uint64_t offset,
                        size_t length)
{
    int error = nbd_link_wait(r);
    if (!error)
        memcpy(buf, r->memory + (offset - r->offset), length);
    nbd_remote_put(&n->remote, r);
    return error;
}

static int read_widened(nbd_image *n, void *buf, uint64_t offset, size_t length)
{
    nbd_request *r = widened_read(n, offset, length);
    int error = nbd_remote_start(&n->remote, r);
    if (!error)
        return take_widened(n, r, buf, offset, length);
    nbd_remote_put(&n->remote, r);
    return error;
}

static int read_plain(nbd_image *n, void *buf, uint64_t offset, size_t length)
{
    nbd_request *r = nbd_remote_get(&n->remote, 0);
    r->op = NBD_OP_READ;
    r->buf = buf;
    r->offset = offset;
    r->length = length;
    return nbd_remote_run(&n->remote, r);
}

/* ---- Reading ahead ------------------------------------------------------------------- */

static nbd_request *take_slot(nbd_image *n, ahead *slot)
{
    n->n_aheads--;
    return g_steal_pointer(&slot->request);
}

/* The announced read, if there is one; it may still be under way. */
static nbd_request *take_ahead(nbd_image *n, const void *buf, uint64_t offset,
                               size_t length)
{
    nbd_request *found = NULL, *useless = NULL;
    g_mutex_lock(&n->lock);
    for (unsigned i = 0; n->n_aheads > 0 && i < AHEAD_MAX; i++) {
        ahead *a = &n->aheads[i];
        if (!a->request || a->buf != buf || a->offset != offset || a->length != length)
            continue;
        bool useful = !a->outdated && g_get_monotonic_time() < a->request->deadline;
        *(useful ? &found : &useless) = take_slot(n, a);
        break;
    }
    g_mutex_unlock(&n->lock);
    if (useless)
        nbd_remote_finish(&n->remote, useless);
    return found;
}

static bool is_announced(nbd_image *n, const void *buf, uint64_t offset, size_t length)
{
    bool found = false;
    g_mutex_lock(&n->lock);
    for (unsigned i = 0; n->n_aheads > 0 && i < AHEAD_MAX; i++) {
        const ahead *a = &n->aheads[i];
        found |= a->request && !a->outdated && a->buf == buf && a->offset == offset &&
                 a->length == length;
    }
    g_mutex_unlock(&n->lock);
    return found;
}

/* A free slot, or the oldest: nobody came for that one. */
static ahead *slot_for(nbd_image *n)
{
    ahead *oldest = &n->aheads[0];
    for (unsigned i = 0; i < AHEAD_MAX; i++) {
        ahead *a = &n->aheads[i];
        if (!a->request)
            return a;
        if (a->age < oldest->age)
            oldest = a;
    }
    return oldest;
}

static void nbd_image_read_ahead(image *im, void *buf, uint64_t offset, size_t length)
{
    nbd_image *n = nbd_of(im);
    if (length > AHEAD_BYTES_MAX)
        return;
    nbd_request *r = widened_read(n, offset, length), *evicted = NULL;
    if (is_announced(n, buf, offset, length) || nbd_remote_start(&n->remote, r) < 0) {
        nbd_remote_put(&n->remote, r);
        return;
    }
    g_mutex_lock(&n->lock);
    ahead *a = slot_for(n);
    if (a->request)
        evicted = take_slot(n, a);
    *a = (ahead){r, buf, offset, length, n->next_age++, false};
    n->n_aheads++;
    g_mutex_unlock(&n->lock);
    if (evicted)
        nbd_remote_finish(&n->remote, evicted);
}

/* A change begins: what was read before it must not be served after it. */
static void outdate(nbd_image *n, uint64_t offset, uint64_t length)
{
    g_mutex_lock(&n->lock);
    for (unsigned i = 0; n->n_aheads > 0 && i < AHEAD_MAX; i++) {
        ahead *a = &n->aheads[i];
        if (a->request && a->offset < offset + length && offset < a->offset + a->length)
            a->outdated = true;
    }
    g_mutex_unlock(&n->lock);
}

static int nbd_image_read(image *im, void *buf, uint64_t offset, size_t length)
{
    nbd_image *n = nbd_of(im);
    nbd_request *announced = take_ahead(n, buf, offset, length);
    if (announced)
        return take_widened(n, announced, buf, offset, length);
    return is_aligned(n, offset, length) ? read_plain(n, buf, offset, length)
                                         : read_widened(n, buf, offset, length);
}

/* ---- The map ------------------------------------------------------------------------- */

/* What a server does not know, or gives no sense, is data. */
static int nbd_image_map(image *im, uint64_t offset, uint64_t length,
                         image_extent *ret_extent)
{
    enum { STEP = 1u << 30 };
    nbd_image *n = nbd_of(im);
    *ret_extent = (image_extent){.kind = IMAGE_EXTENT_DATA, .length = length, .fd = -1};
    if (!n->remote.facts.can_map)
        return 0;
    nbd_request *r = nbd_remote_get(&n->remote, 0);
    uint64_t start = align_down(n, offset);
    r->op = NBD_OP_MAP;
    r->flags = LIBNBD_CMD_FLAG_REQ_ONE;
    r->offset = start;
    r->length = MIN(align_up(n, offset + length) - start, STEP);
    r->extent = 0;
    int error = nbd_remote_start(&n->remote, r);
    if (!error) {
        error = nbd_link_wait(r);
        if (!error && r->extent > offset - start) {
            ret_extent->kind = r->zero ? IMAGE_EXTENT_ZERO : IMAGE_EXTENT_DATA;
            ret_extent->length = r->extent - (offset - start);
        }
    }
    nbd_remote_put(&n->remote, r);
    return error;
}

/* ---- Writing ------------------------------------------------------------------------- */

/* Puts what the server holds in the block at `start` around the write into memory. */
static int complete_block(nbd_image *n, nbd_request *r, uint64_t start)
{
    return read_plain(n, r->memory + (start - r->offset), start,
                      n->remote.facts.block_min);
}

static int widen_write(nbd_image *n, const void *buf, uint64_t offset, size_t length,
                       nbd_request **ret_request)
{
    uint64_t end = offset + length, wide_end = align_up(n, end);
    uint32_t block = n->remote.facts.block_min;
    nbd_request *r = widened_read(n, offset, length);
    int error = 0;
    if (r->offset < offset)
        error = complete_block(n, r, r->offset);
    bool same_block = r->offset < offset && wide_end - r->offset == block;
    if (!error && wide_end > end && !same_block)
        error = complete_block(n, r, wide_end - block);
    memcpy(r->memory + (offset - r->offset), buf, length);
    if (error)
        nbd_remote_put(&n->remote, r);
    else
        *ret_request = r;
    return error;
}

static int nbd_image_prepare_write(image *im, const void *buf, uint64_t offset,
                                   size_t length, unsigned owner G_GNUC_UNUSED,
                                   io_list *list G_GNUC_UNUSED, image_change **ret_change)
{
    nbd_image *n = nbd_of(im);
    nbd_request *r = NULL;
    int error = 0;
    outdate(n, offset, length);
    if (is_aligned(n, offset, length)) {
        r = nbd_remote_get(&n->remote, 0);
        r->buf = (uint8_t *)buf;
        r->offset = offset;
        r->length = length;
    } else {
        error = widen_write(n, buf, offset, length, &r);
    }
    if (error)
        return error;
    r->op = NBD_OP_WRITE;
    r->flags = n->write_flags;
    error = nbd_remote_start(&n->remote, r);
    if (error)
        nbd_remote_put(&n->remote, r);
    else
        *ret_change = (image_change *)r;
    return error;
}

static int nbd_image_finish_write(image *im, image_change *change, int result)
{
    int error = nbd_remote_finish(&nbd_of(im)->remote, (nbd_request *)change);
    return error ? error : result;
}

static int zero_blocks(nbd_image *n, uint64_t offset, uint64_t length, uint32_t flags)
{
    int error = 0;
    while (length > 0 && !error) {
        nbd_request *r = nbd_remote_get(&n->remote, 0);
        r->op = NBD_OP_ZERO;
        r->flags = flags | n->write_flags;
        r->offset = offset;
        r->length = MIN(length, ZERO_STEP);
        offset += r->length;
        length -= r->length;
        error = nbd_remote_run(&n->remote, r);
    }
    return error;
}

/* Blocks that are zeroed in part are written. */
static int zero_part(nbd_image *n, uint64_t offset, uint64_t length)
{
    static const uint8_t zeroes[IMAGE_SECTOR];
    return length ? image_write(&n->base, zeroes, offset, length) : 0;
}

static int zero_range(nbd_image *n, uint64_t offset, uint64_t length, uint32_t flags)
{
    if (!n->remote.facts.can_zero)
        return -ENOTSUP;
    outdate(n, offset, length);
    uint64_t end = offset + length;
    uint64_t from = MIN(align_up(n, offset), end);
    uint64_t to = MAX(align_down(n, end), from);
    int error = zero_blocks(n, from, to - from, flags);
    if (!error)
        error = zero_part(n, offset, from - offset);
    return error ? error : zero_part(n, to, end - to);
}

static int nbd_image_write_zeroes(image *im, uint64_t offset, uint64_t length)
{
    return zero_range(nbd_of(im), offset, length, LIBNBD_CMD_FLAG_NO_HOLE);
}

/* Not NBD's trim, after which anything may be read. */
static int nbd_image_discard(image *im, uint64_t offset, uint64_t length)
{
    return zero_range(nbd_of(im), offset, length, 0);
}

static int nbd_image_flush_step(image *im, image_flush_state *flush,
                                unsigned owner G_GNUC_UNUSED, io_list *list G_GNUC_UNUSED)
{
    nbd_remote *remote = &nbd_of(im)->remote;
    if (!remote->facts.can_flush)
        return 0;
    if (flush->step++ > 0)
        return file_sync_error(nbd_remote_finish(remote, flush->request));
    nbd_request *r = nbd_remote_get(remote, 0);
    r->op = NBD_OP_FLUSH;
    r->offset = r->length = 0;
    flush->request = r;
    int error = nbd_remote_start(remote, r);
    if (error)
        nbd_remote_put(remote, r);
    return error ? error : 1;
}

/* What we started ourselves ends, and what it was doing with it, when the image is closed. */
static unsigned nbd_image_abandoned(const image *im)
{
    nbd_image *n = nbd_of((image *)(uintptr_t)im);
    return n->helper ? 0 : nbd_remote_draining(&n->remote);
}

/* ---- Opening and closing ------------------------------------------------------------- */

static void nbd_image_close(image *im)
{
    nbd_image *n = nbd_of(im);
    nbd_remote_close(&n->remote);
    nbd_helper_end(n->helper);
    g_mutex_clear(&n->lock);
    g_free(n->base.filename);
    g_free(n);
}

static const image_driver nbd_driver = {
    .name = "nbd",
    .close = nbd_image_close,
    .read = nbd_image_read,
    .read_ahead = nbd_image_read_ahead,
    .map = nbd_image_map,
    .prepare_write = nbd_image_prepare_write,
    .finish_write = nbd_image_finish_write,
    .write_zeroes = nbd_image_write_zeroes,
    .discard = nbd_image_discard,
    .flush_step = nbd_image_flush_step,
    .abandoned = nbd_image_abandoned,
};

static const char *why_read_only(const nbd_facts *facts)
{
    if (facts->read_only)
        return "the server exports it read-only";
    if (!facts->can_flush && !facts->can_fua)
        return "the server cannot flush, so no write would ever be safe";
    if (facts->block_min > IMAGE_SECTOR)
        return "the server writes only blocks larger than a sector (put nbdkit "
               "--filter=blocksize before it)";
    return NULL;
}

const char *nbd_read_only_reason(const image *im)
{
    return im->driver == &nbd_driver ? ((const nbd_image *)im)->read_only_reason : NULL;
}

/* A socket is there a moment before somebody listens on it. A program that serves only one
 * client would take a look there for that client, so the first real connection is tried
 * until it succeeds; not for long, because it may also be refused for good. */
static bool open_command(nbd_image *n, const char *command, unsigned timeout_ms,
                         GError **error)
{
    enum { TRY_US = 500000, TRY_AGAIN_US = 10000 };
    gint64 until = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    gint64 give_up = 0;
    n->helper = nbd_helper_start(command, error);
    while (n->helper && nbd_helper_await(n->helper, until, error)) {
        g_autoptr(GError) cause = NULL;
        if (nbd_remote_open(&n->remote, nbd_helper_uri(n->helper), command, timeout_ms,
                            &cause)) {
            nbd_helper_serves(n->helper);
            return true;
        }
        gint64 now = g_get_monotonic_time();
        give_up = give_up ? give_up : now + TRY_US;
        if (now >= give_up) {
            g_propagate_error(error, g_steal_pointer(&cause));
            return false;
        }
        nbd_remote_close(&n->remote);
        n->remote = (nbd_remote){0};
        g_usleep(TRY_AGAIN_US);
    }
    return false;
}

image *nbd_open(const nbd_options *options, GError **error)
{
    nbd_image *n = g_new0(nbd_image, 1);
    unsigned timeout_ms =
        options->timeout_ms ? options->timeout_ms : NBD_TIMEOUT_DEFAULT_MS;
    g_mutex_init(&n->lock);
    n->base.driver = &nbd_driver;
    bool opened =
        nbd_is_command(options->source)
            ? open_command(n, options->source, timeout_ms, error)
            : nbd_remote_open(&n->remote, options->source, NULL, timeout_ms, error);
    if (!opened) {
        nbd_image_close(&n->base);
        return NULL;
    }
    const nbd_facts *facts = &n->remote.facts;
    n->base.filename = g_strdup(n->remote.address.shown);
    n->base.size = facts->size;
    n->read_only_reason = options->writable ? why_read_only(facts) : NULL;
    n->base.read_only = !options->writable || n->read_only_reason;
    n->write_flags = facts->can_flush ? 0 : LIBNBD_CMD_FLAG_FUA;
    return &n->base;
}
