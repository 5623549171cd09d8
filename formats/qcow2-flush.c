/*
 * qcow2-flush.c: one flush, step by step, so that several images are synced together.
 *
 *   step            writes before                               sync         next
 *   0 lock          nothing
 *   1 begin         takes the cut; new blocks: refcounts        image        2
 *   2 ordered       refcounts, refcount table, new L2 tables    image, data  3
 *   3 final         L2 tables that are linked, L1               image, data  4
 *   4 end           nothing: reclaims what was unlinked
 *
 * A step that has nothing to put in order falls through to the next without a sync; the
 * final one always syncs. The invariants I1 to I8 are told atop qcow2-alloc.c.
 *
 * flush_lock is held from the first step to the last, so a cut is the newest that is on its
 * way; the lock of the image only while the cut is taken and given back.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

enum { STEP_LOCK, STEP_BEGIN, STEP_ORDERED, STEP_FINAL, STEP_END };

/* ---- The cut ------------------------------------------------------------------------------ */

static bool is_refcount(const qcow2_slice *slice, const void *user)
{
    (void)user;
    return slice->kind == QCOW2_SLICE_REFCOUNT;
}

/* `user`: the indices of L1 entries that are not on disk. */
static bool is_of_new_table(const qcow2_slice *slice, const void *user)
{
    return slice->kind == QCOW2_SLICE_L2 &&
           g_hash_table_contains((GHashTable *)user, GSIZE_TO_POINTER(slice->table));
}

static bool is_of_linked_table(const qcow2_slice *slice, const void *user)
{
    return slice->kind == QCOW2_SLICE_L2 && !is_of_new_table(slice, user);
}

static GArray *take_array(GArray **array)
{
    GArray *taken = *array;
    *array = g_array_new(FALSE, FALSE, g_array_get_element_size(taken));
    return taken;
}

static GArray *words_of(const GArray *indices, uint64_t offset, const uint64_t *table)
{
    GArray *words = g_array_new(FALSE, FALSE, sizeof(qcow2_word));
    for (guint i = 0; i < indices->len; i++) {
        uint64_t index = g_array_index(indices, uint64_t, i);
        qcow2_word word = {offset + index * 8, htobe64(table[index])};
        g_array_append_val(words, word);
    }
    return words;
}

static void take_tables(qcow2_writer *w, qcow2_cut *cut)
{
    g_autoptr(GHashTable) new_tables = g_hash_table_new(NULL, NULL);
    cut->l1_indices = take_array(&w->l1_dirty);
    cut->l1_words = words_of(cut->l1_indices, w->header.l1_offset, w->map->l1);
    for (guint i = 0; i < cut->l1_indices->len && !w->l1_unsure; i++)
        g_hash_table_add(new_tables,
                         GSIZE_TO_POINTER(g_array_index(cut->l1_indices, uint64_t, i)));
    cut->new_tables = qcow2_batch_new(w->map->slices);
    cut->links = qcow2_batch_new(w->map->slices);
    qcow2_batch_take(cut->new_tables, w->map->slices, is_of_new_table, new_tables);
    qcow2_batch_take(cut->links, w->map->slices, is_of_linked_table, new_tables);
}

/* Lazily means at close, or when there are too many to be kept: until then the dirty bit says
 * that they are not to be trusted. */
static void take_refcounts(qcow2_writer *w, qcow2_cut *cut)
{
    qcow2_refcounts *r = &w->refcounts;
    bool wanted = !w->lazy || w->write_refcounts;
    w->write_refcounts = false;
    cut->refcounts = qcow2_batch_new(w->map->slices);
    cut->new_blocks =
        wanted ? take_array(&r->new_blocks) : g_array_new(FALSE, FALSE, sizeof(uint64_t));
    cut->refcount_words = words_of(cut->new_blocks, r->offset, r->table);
    if (wanted)
        qcow2_batch_take(cut->refcounts, w->map->slices, is_refcount, NULL);
}

static qcow2_cut *cut_take(qcow2_writer *w)
{
    qcow2_cut *cut = g_new0(qcow2_cut, 1);
    pthread_mutex_lock(&w->map->lock);
    take_refcounts(w, cut);
    take_tables(w, cut);
    cut->unlinked = take_array(&w->unlinked);
    cut->ordered = w->links || cut->l1_indices->len > 0;
    cut->unlinked_bytes = w->unlinked_bytes;
    w->unlinked_bytes = 0;
    w->links = false;
    pthread_mutex_unlock(&w->map->lock);
    return cut;
}

static void give_back(GArray *to, GArray *from)
{
    g_array_prepend_vals(to, from->data, from->len);
}

/* On failure everything is as if it had been changed just now. */
static void cut_end(qcow2_writer *w, qcow2_cut *cut, bool stable)
{
    pthread_mutex_lock(&w->map->lock);
    qcow2_batch_end(cut->refcounts, w->map->slices, stable);
    qcow2_batch_end(cut->new_tables, w->map->slices, stable);
    qcow2_batch_end(cut->links, w->map->slices, stable);
    if (!stable) {
        give_back(w->l1_dirty, cut->l1_indices);
        give_back(w->refcounts.new_blocks, cut->new_blocks);
        give_back(w->unlinked, cut->unlinked);
        w->unlinked_bytes += cut->unlinked_bytes;
        w->links |= cut->ordered;
    }
    w->l1_unsure = !stable && (w->l1_unsure || cut->l1_begun);
    pthread_mutex_unlock(&w->map->lock);
    if (stable)
        qcow2_alloc_reclaim(w, cut->unlinked);
    g_array_unref(cut->l1_indices);
    g_array_unref(cut->l1_words);
    g_array_unref(cut->new_blocks);
    g_array_unref(cut->refcount_words);
    g_array_unref(cut->unlinked);
    g_free(cut);
}

/* ---- The steps ---------------------------------------------------------------------------- */

static int compare_words(const void *a, const void *b)
{
    const qcow2_word *left = a, *right = b;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

/* Neighbours in one write, up to a sector. */
static int write_words(const qcow2_writer *w, GArray *words)
{
    uint64_t values[IMAGE_SECTOR / 8];
    int error = 0;
    g_array_sort(words, compare_words);
    for (guint i = 0, n; i < words->len && !error; i += n) {
        const qcow2_word *first = &g_array_index(words, qcow2_word, i);
        for (n = 0; i + n < words->len && n < G_N_ELEMENTS(values); n++) {
            if (first[n].offset != first->offset + n * 8)
                break;
            values[n] = first[n].value;
        }
        error = file_write_full(w->fd, values, n * 8, first->offset);
    }
    return error;
}

static int write_refcounts(const qcow2_writer *w, qcow2_cut *cut)
{
    if (cut->refcounts_written)
        return 0;
    cut->refcounts_written = true;
    return qcow2_batch_write(cut->refcounts, w->fd);
}

static void add_sync(io_list *list, int fd, unsigned owner)
{
    io_list_add(list, (io_op){.fd = fd, .flush = true, .owner = owner});
}

static void add_data_sync(const qcow2_writer *w, io_list *list, unsigned owner)
{
    if (w->external)
        add_sync(list, w->data_fd, owner);
}

/* I4: blocks before the table names them. */
static int begin(qcow2_writer *w, io_list *list, unsigned owner)
{
    w->cut = cut_take(w);
    if (w->cut->refcount_words->len == 0)
        return 0;
    add_sync(list, w->fd, owner);
    return write_refcounts(w, w->cut);
}

/* I1, I2, I3: what is linked comes before the links. */
static int write_ordered(const qcow2_writer *w, io_list *list, unsigned owner)
{
    qcow2_cut *cut = w->cut;
    int error = write_refcounts(w, cut);
    if (!error)
        error = write_words(w, cut->refcount_words);
    if (!error)
        error = qcow2_batch_write(cut->new_tables, w->fd);
    if (cut->ordered) {
        add_sync(list, w->fd, owner);
        add_data_sync(w, list, owner);
    }
    return error;
}

static int write_links(const qcow2_writer *w, io_list *list, unsigned owner)
{
    qcow2_cut *cut = w->cut;
    int error = qcow2_batch_write(cut->links, w->fd);
    cut->l1_begun = !error && cut->l1_words->len > 0;
    if (!error)
        error = write_words(w, cut->l1_words);
    add_sync(list, w->fd, owner);
    if (!cut->ordered)
        add_data_sync(w, list, owner);
    return error;
}

static int end(qcow2_writer *w, int result)
{
    cut_end(w, g_steal_pointer(&w->cut), result == 0);
    pthread_mutex_unlock(&w->flush_lock);
    return result;
}

static int run_step(qcow2_writer *w, unsigned step, io_list *list, unsigned owner)
{
    switch (step) {
    case STEP_LOCK:
        pthread_mutex_lock(&w->flush_lock);
        return 0;
    case STEP_BEGIN:
        return begin(w, list, owner);
    case STEP_ORDERED:
        return write_ordered(w, list, owner);
    default:
        return write_links(w, list, owner);
    }
}

void qcow2_flush_locked(image_flush_state *flush)
{
    *flush = (image_flush_state){.step = STEP_BEGIN};
}

int qcow2_flush_step(qcow2_writer *w, image_flush_state *flush, unsigned owner,
                     io_list *list)
{
    size_t before = list->count;
    int error = flush->step == STEP_LOCK ? qcow2_writer_check(w) : 0;
    if (error)
        return error;
    if (flush->step > STEP_BEGIN && flush->result != 0) {
        error = qcow2_writer_unsure(w, flush->result);
        return end(w, error == -ETIMEDOUT ? error : -EIO);
    }
    while (!error && flush->step < STEP_END && list->count == before)
        error = run_step(w, flush->step++, list, owner);
    if (error) {
        list->count = before;
        return end(w, qcow2_writer_note(w, error));
    }
    return list->count > before ? 1 : end(w, 0);
}
