/*
 * qcow2-writer.c: the beginning and the end of writing to one image.
 *
 * Nothing is changed on disk by opening, and nothing by closing an image that was not
 * changed. Before the first change the header is made true for an image that changes: what
 * nobody here keeps current is marked so (autoclear bits of features that are not known,
 * bitmaps), and lazy refcounts set the dirty bit.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

#define SLICE_BYTES   ((size_t)32 << 20)
#define UNLINKED_MAX  ((uint64_t)64 << 20) /* bytes that a flush would free */
#define UNLINKED_RUNS 65536u               /* in memory, of whatever kind */

#define COMPATIBLE_LAZY_REFCOUNTS 1u
#define AUTOCLEAR_KNOWN           3u /* bitmaps, raw data file */

/* ---- Opening ------------------------------------------------------------------------------ */

/* All of the L1 table, not just what the size needs: it may grow into the rest. */
static int load_l1(qcow2_map *map, const qcow2_header *header)
{
    uint64_t table;
    map->l1 = g_renew(uint64_t, map->l1, MAX(1, header->l1_entries));
    map->l1_entries = header->l1_entries;
    int error = qcow2_words_read(map->fd, header->l1_offset, map->l1, header->l1_entries);
    for (uint32_t i = 0; i < header->l1_entries && !error; i++) {
        if (qcow2_l1_decode(&map->layout, map->l1[i], &table))
            return -EIO;
        if (table)
            qcow2_overlap_add(map->overlap, table, QCOW2_TABLE_L2);
    }
    return error;
}

static int load_tables(qcow2_writer *w)
{
    qcow2_map *map = w->map;
    qcow2_layout *layout = &map->layout;
    int error = file_get_size(w->fd, &layout->file_size, &w->fd_is_device);
    if (!error)
        error = file_get_size(w->data_fd, &layout->data_size, &w->data_fd_is_device);
    w->fresh_from =
        qcow2_round_up(layout->file_size, layout->cluster_size) >> layout->cluster_bits;
    w->data_fresh = w->data_fd_is_device ? UINT64_MAX : layout->data_size;
    if (!error)
        error = load_l1(map, &w->header);
    if (!error)
        error = qcow2_refcounts_load(&w->refcounts, map, &w->header);
    return error;
}

static void writer_destroy(qcow2_writer *w)
{
    qcow2_overlap_free(g_steal_pointer(&w->map->overlap));
    qcow2_refcounts_clear(&w->refcounts);
    qcow2_header_clear(&w->header);
    g_array_unref(w->free_runs);
    g_array_unref(w->unlinked);
    g_array_unref(w->held);
    g_array_unref(w->l1_dirty);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->flush_lock);
    pthread_rwlock_destroy(&w->decode_lock);
    g_free(w);
}

/* Readers that overlap without end must not keep a flush waiting. */
static void decode_lock_init(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(lock, &attr);
    pthread_rwlockattr_destroy(&attr);
}

qcow2_writer *qcow2_writer_new(qcow2_map *map, int fd, int data_fd,
                               const qcow2_header *header, const char *filename,
                               GError **error)
{
    qcow2_writer *w = g_new0(qcow2_writer, 1);
    w->map = map;
    w->fd = fd;
    w->data_fd = data_fd;
    qcow2_header_copy(&w->header, header);
    w->lazy = header->compatible & COMPATIBLE_LAZY_REFCOUNTS;
    w->external = map->layout.external;
    w->raw_external = header->data_file_raw;
    w->free_runs = g_array_new(FALSE, FALSE, sizeof(qcow2_run));
    w->unlinked = g_array_new(FALSE, FALSE, sizeof(qcow2_unlinked));
    w->held = g_array_new(FALSE, FALSE, sizeof(qcow2_run));
    w->l1_dirty = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    pthread_cond_init(&w->changed, NULL);
    pthread_mutex_init(&w->flush_lock, NULL);
    decode_lock_init(&w->decode_lock);

    pthread_mutex_lock(&map->lock);
    map->overlap = qcow2_overlap_new();
    qcow2_slices_set_max(map->slices, SLICE_BYTES / map->slice_bytes);
    int failed = load_tables(w);
    pthread_mutex_unlock(&map->lock);
    if (!failed)
        return w;
    qcow2_fail(error, IMAGE_ERROR_IO, filename, "cannot read the tables: %s",
               g_strerror(-failed));
    writer_destroy(w);
    return NULL;
}

/* ---- Changing ----------------------------------------------------------------------------- */

/* The first thing that ended it stays what ended it. */
static int writer_end(qcow2_writer *w, int error)
{
    int none = 0;
    atomic_compare_exchange_strong(&w->failed, &none, error);
    return atomic_load(&w->failed);
}

static bool writer_hangs(const qcow2_writer *w)
{
    return io_abandoned(w->fd) > 0 || (w->external && io_abandoned(w->data_fd) > 0);
}

int qcow2_writer_check(qcow2_writer *w)
{
    int failed = atomic_load(&w->failed);
    return !failed && writer_hangs(w) ? writer_end(w, -ETIMEDOUT) : failed;
}

int qcow2_writer_note(qcow2_writer *w, int error)
{
    if (!error || (error != -ETIMEDOUT && !writer_hangs(w)))
        return error;
    writer_end(w, -ETIMEDOUT);
    return -ETIMEDOUT;
}

int qcow2_writer_unsure(qcow2_writer *w, int error)
{
    error = qcow2_writer_note(w, error);
    if (error != -ETIMEDOUT)
        writer_end(w, -EIO);
    return error;
}

/* The sync of what it says of bitmaps comes with one of the header's. I8: whether the header
 * is on disk is not known when that failed. */
static int start_header(qcow2_writer *w)
{
    uint64_t unknown = w->header.autoclear & ~(uint64_t)AUTOCLEAR_KNOWN;
    int error = 0;
    if (unknown)
        error = qcow2_update_autoclear(w->fd, unknown);
    if (!error && w->lazy)
        error = qcow2_update_incompatible(w->fd, QCOW2_INCOMPAT_DIRTY, 0);
    if (!error && !unknown && !w->lazy && (w->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        error = file_sync(w->fd);
    return error ? qcow2_writer_unsure(w, error) : 0;
}

static int start(qcow2_writer *w)
{
    int error =
        qcow2_writer_note(w, qcow2_bitmaps_disown(w->fd, &w->header, &w->map->layout));
    if (!error)
        error = start_header(w);
    w->started = !error;
    return error;
}

static bool much_waits(const qcow2_writer *w)
{
    size_t slices = SLICE_BYTES / w->map->slice_bytes;
    return qcow2_slices_dirty(w->map->slices) > slices / 2 ||
           w->unlinked->len > UNLINKED_RUNS || w->unlinked_bytes > UNLINKED_MAX;
}

/* Version 2 has no such bit; it is refused all the same. */
int qcow2_writer_corrupt(qcow2_writer *w)
{
    if (!w->failed && w->header.version >= 3)
        qcow2_update_incompatible(w->fd, QCOW2_INCOMPAT_CORRUPT, 0);
    w->failed = -EIO;
    return -EIO;
}

static int run_flush(qcow2_writer *w, image_flush_state *flush)
{
    io_list list = {0};
    int result;
    while ((result = qcow2_flush_step(w, flush, 0, &list)) == 1) {
        io_list_run(&list);
        flush->result = io_list_error(&list);
        io_list_clear(&list);
    }
    io_list_free(&list);
    return result;
}

int qcow2_writer_flush(qcow2_writer *w)
{
    image_flush_state flush = {0};
    return run_flush(w, &flush);
}

/* Of all threads that see how much waits one writes it back. */
static int flush_early(qcow2_writer *w)
{
    image_flush_state flush;
    pthread_mutex_lock(&w->flush_lock);
    pthread_mutex_lock(&w->map->lock);
    bool still = !w->failed && much_waits(w);
    int error = w->failed;
    w->write_refcounts |= still;
    pthread_mutex_unlock(&w->map->lock);
    if (!still) {
        pthread_mutex_unlock(&w->flush_lock);
        return error;
    }
    qcow2_flush_locked(&flush);
    return run_flush(w, &flush);
}

int qcow2_writer_enter(qcow2_writer *w)
{
    int error = 0;
    pthread_mutex_lock(&w->map->lock);
    if (much_waits(w)) {
        pthread_mutex_unlock(&w->map->lock);
        error = flush_early(w);
        pthread_mutex_lock(&w->map->lock);
    }
    if (!error)
        error = qcow2_writer_check(w);
    if (!error && !w->started)
        error = start(w);
    if (error)
        pthread_mutex_unlock(&w->map->lock);
    return error;
}

/* ---- Closing ------------------------------------------------------------------------------ */

/* What was held back: no reader is left. */
static void release_held(qcow2_writer *w)
{
    for (guint i = 0; i < w->held->len; i++) {
        qcow2_unlinked u = {.run = g_array_index(w->held, qcow2_run, i)};
        g_array_append_val(w->unlinked, u);
    }
    g_array_set_size(w->held, 0);
}

static bool anything_waits(const qcow2_writer *w)
{
    return qcow2_slices_dirty(w->map->slices) > 0 || w->unlinked->len > 0 ||
           w->l1_dirty->len > 0 || w->refcounts.new_blocks->len > 0;
}

/* A flush frees what was unlinked, which makes refcounts dirty again: another follows. */
static int write_everything(qcow2_writer *w)
{
    int error = qcow2_writer_check(w);
    for (bool held = w->held->len > 0; !error && (anything_waits(w) || held);
         held = w->held->len > 0) {
        w->write_refcounts = true;
        error = qcow2_writer_flush(w);
        if (!error && !anything_waits(w))
            release_held(w);
    }
    return error;
}

/* What goes wrong here leaves leaked clusters, or the dirty bit, with which the next open
 * repairs them: every flush that anybody waited for has told of its own errors. */
static void finish(qcow2_writer *w)
{
    const qcow2_layout *layout = &w->map->layout;
    uint64_t used = w->fresh_from << layout->cluster_bits;
    int error = write_everything(w);
    if (!error && w->lazy)
        error = qcow2_update_incompatible(w->fd, 0, QCOW2_INCOMPAT_DIRTY);
    if (!error && !w->fd_is_device && layout->file_size > used)
        file_resize(w->fd, used);
}

void qcow2_writer_free(qcow2_writer *w)
{
    if (!w)
        return;
    if (w->started)
        finish(w);
    writer_destroy(w);
}
