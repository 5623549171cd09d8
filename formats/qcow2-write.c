/*
 * qcow2-write.c: a guest's write.
 *
 * Each cluster that a write touches is of one of three kinds:
 *   in place    its host cluster is ours alone (COPIED and a refcount of 1, which costs next to
 *               nothing: a slice counts more clusters than one of L2 maps) and all that is
 *               touched of it is allocated: bytes are written, no table changes
 *   same host   ours alone, but what is touched was zero or unallocated: bytes are written,
 *               then the entry says so
 *   new host    unallocated, shared with a snapshot, or compressed: a new host cluster is
 *               written, then linked
 *
 * prepare decides all of that under the lock, claims the guest clusters of the second and
 * third kind, gives out host clusters, lets the lock go, reads what must be copied around
 * the bytes (only what the write does not cover), and lists the writes. finish links what
 * was written, and gives the claim up.
 *
 * Invariants
 * - Claims of two changes are disjoint, and a change takes all of its claim at once: what
 *   waits for another's clusters holds none itself. So a cluster is given one host cluster
 *   however many writes meet in it, and the one that comes later finds it in place.
 * - Between prepare and finish the entries of claimed clusters do not change.
 * - An entry is changed only when the bytes it will show are in the file (I1 is about the
 *   disk, this is about readers of this process).
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

#define ZEROES_BYTES (64u << 10)
#define OP_BYTES_MAX ((size_t)1 << 30) /* io_op's limit */

static uint8_t zeroes[ZEROES_BYTES]; /* never written to; io_op.buf is not const */

/* One cluster whose entry is to change. */
typedef struct placement {
    uint64_t guest; /* offset */
    uint64_t host;  /* offset */
    bool is_new;
    bool fresh;      /* the host cluster reads as zero */
    bool zero;       /* so does what `filled` had before */
    uint32_t filled; /* subclusters that this allocates */
} placement;

struct image_change {
    qcow2_claim claim; /* of all clusters that it touches */
    size_t n_places;
    placement *places;
    GPtrArray *copies; /* bytes that the ops read; NULL: none */
};

/* A write while it is being prepared. */
typedef struct request {
    qcow2_writer *w;
    const uint8_t *buf;
    uint64_t offset, end;
    unsigned owner;
    io_list *list;
    size_t first_op;
    image_change *change;
} request;

static uint64_t cluster_start(const request *r, uint64_t offset)
{
    return offset & ~(r->w->map->layout.cluster_size - 1);
}

static void copies_free(void *copies)
{
    g_ptr_array_unref(copies);
}

/* An op that was abandoned may be reading the copies, whatever became of the others. */
static void change_free(image_change *change, bool failed)
{
    if (!change)
        return;
    if (change->copies && failed)
        io_free_later(change->copies, copies_free);
    else if (change->copies)
        copies_free(change->copies);
    g_free(change->places);
    g_free(change);
}

/* ---- Ops ------------------------------------------------------------------------------------ */

static void add_op(request *r, const void *buf, uint64_t host, size_t length)
{
    io_list *list = r->list;
    io_op *last = list->count > r->first_op ? &list->ops[list->count - 1] : NULL;
    if (last && last->offset + last->length == host &&
        (const uint8_t *)last->buf + last->length == buf &&
        last->length + length <= OP_BYTES_MAX) {
        last->length += length;
        return;
    }
    io_list_add(list, (io_op){.fd = r->w->data_fd,
                              .write = true,
                              .owner = r->owner,
                              .buf = (void *)buf,
                              .length = length,
                              .offset = host});
}

/* The part of the guest's bytes that lies in the cluster at `guest`. */
static void add_guest_bytes(request *r, uint64_t guest, uint64_t host)
{
    uint64_t size = r->w->map->layout.cluster_size;
    uint64_t start = MAX(r->offset, guest), end = MIN(r->end, guest + size);
    add_op(r, r->buf + (start - r->offset), host + (start - guest),
           (size_t)(end - start));
}

/* ---- Deciding, under the lock --------------------------------------------------------------- */

static uint32_t touched_subclusters(const request *r, uint64_t guest)
{
    const qcow2_layout *layout = &r->w->map->layout;
    uint64_t start = MAX(r->offset, guest) - guest;
    uint64_t end = MIN(r->end, guest + layout->cluster_size) - guest;
    uint64_t first = start >> layout->subcluster_bits;
    uint64_t last = (end - 1) >> layout->subcluster_bits;
    uint64_t upto_last = ((uint64_t)2 << last) - 1;
    return (uint32_t)(upto_last & ~(((uint64_t)1 << first) - 1));
}

static bool is_in_place(const qcow2_entry *entry, uint32_t touched)
{
    return entry->copied && !entry->compressed && (entry->alloc & touched) == touched;
}

/* I7 for data: what an L2 entry names may be anything. The file may end within it. */
static int check_host(qcow2_writer *w, const qcow2_entry *entry)
{
    uint64_t host = entry->host_offset;
    if (!w->external && qcow2_overlap_name(w->map, host))
        return qcow2_writer_corrupt(w);
    return qcow2_alloc_extend_data(w, host + w->map->layout.cluster_size);
}

/* How many clusters cannot be written in place; the bytes of the others become ops. */
static int scan_entries(request *r, size_t *ret_others)
{
    uint64_t size = r->w->map->layout.cluster_size;
    *ret_others = 0;
    for (uint64_t guest = cluster_start(r, r->offset); guest < r->end; guest += size) {
        qcow2_entry entry;
        int error = qcow2_alloc_get_entry(r->w, guest, &entry);
        if (error)
            return error;
        if (!is_in_place(&entry, touched_subclusters(r, guest))) {
            ++*ret_others;
            continue;
        }
        error = check_host(r->w, &entry);
        if (error)
            return error;
        add_guest_bytes(r, guest, entry.host_offset);
    }
    return 0;
}

/* What must be allocated after the write: what it touches, and what moves with it. */
static uint32_t filled_subclusters(const qcow2_writer *w, const qcow2_entry *entry,
                                   uint32_t touched, bool is_new)
{
    uint32_t all = w->map->layout.subclusters == 1 ? 1 : UINT32_MAX;
    if (entry->compressed)
        return all;
    return is_new ? touched | entry->alloc : touched & ~entry->alloc;
}

/* A run of host clusters that was given out and is handed on one by one. */
typedef struct supply {
    qcow2_run run;
    bool fresh;
} supply;

static int take_host(request *r, supply *s, uint64_t guest, placement *place)
{
    qcow2_writer *w = r->w;
    const qcow2_layout *layout = &w->map->layout;
    if (w->external) {
        place->host = guest;
        place->fresh = guest >= w->data_fresh;
        return qcow2_alloc_extend_data(w, guest + layout->cluster_size);
    }
    if (s->run.count == 0) {
        uint64_t wanted =
            (r->end - guest + layout->cluster_size - 1) >> layout->cluster_bits;
        int error = qcow2_alloc_clusters(w, wanted, &s->run, &s->fresh);
        if (error) {
            s->run.count = 0;
            return error;
        }
    }
    place->host = s->run.cluster++ << layout->cluster_bits;
    place->fresh = s->fresh;
    s->run.count--;
    return 0;
}

static bool had_zeroes(const qcow2_writer *w, const qcow2_entry *entry, uint64_t guest,
                       uint32_t filled)
{
    bool below = w->read_below && guest < w->below_size;
    return !entry->compressed && !(entry->alloc & filled) &&
           (!below || (entry->zero & filled) == filled);
}

static int plan_place(request *r, supply *s, uint64_t guest)
{
    qcow2_writer *w = r->w;
    qcow2_entry entry;
    placement *place = &r->change->places[r->change->n_places];
    uint32_t touched = touched_subclusters(r, guest);
    int error = qcow2_alloc_get_entry(w, guest, &entry);
    if (error || is_in_place(&entry, touched))
        return error;
    error = qcow2_alloc_l2(w, guest);
    if (error)
        return error;
    *place = (placement){.guest = guest, .host = entry.host_offset};
    place->is_new = entry.compressed || !entry.copied;
    place->filled = filled_subclusters(w, &entry, touched, place->is_new);
    place->zero = had_zeroes(w, &entry, guest, place->filled);
    error = place->is_new ? take_host(r, s, guest, place) : check_host(w, &entry);
    if (!error)
        r->change->n_places++;
    return error;
}

/* Host clusters that no entry names. Some of the bytes may be there: in the data file the
 * next write to that cluster finds them. */
static void undo_hosts(qcow2_writer *w, const image_change *change)
{
    const qcow2_layout *layout = &w->map->layout;
    for (size_t i = 0; i < change->n_places; i++) {
        const placement *place = &change->places[i];
        if (place->is_new && w->external)
            w->data_fresh = MAX(w->data_fresh, place->guest + layout->cluster_size);
        else if (place->is_new)
            qcow2_alloc_undo(w, (qcow2_run){place->host >> layout->cluster_bits, 1});
    }
}

static int plan_places(request *r, size_t count)
{
    qcow2_writer *w = r->w;
    uint64_t size = w->map->layout.cluster_size;
    supply s = {0};
    int error = 0;
    r->change = g_new0(image_change, 1);
    r->change->places = g_new(placement, count);
    for (uint64_t at = cluster_start(r, r->offset); at < r->end && !error; at += size)
        error = plan_place(r, &s, at);
    if (s.run.count > 0)
        qcow2_alloc_undo(w, s.run);
    if (error) {
        undo_hosts(w, r->change);
        change_free(g_steal_pointer(&r->change), false);
        return error;
    }
    unsigned bits = w->map->layout.cluster_bits;
    qcow2_claim_take(w, &r->change->claim, r->offset >> bits, (r->end - 1) >> bits);
    return 0;
}

/* Scans again after each wait: what was awaited has changed entries. */
static int decide(request *r)
{
    size_t others;
    unsigned bits = r->w->map->layout.cluster_bits;
    for (;;) {
        r->list->count = r->first_op;
        int error = scan_entries(r, &others);
        if (error || others == 0)
            return error;
        if (!qcow2_claim_await(r->w, r->offset >> bits, (r->end - 1) >> bits))
            break;
        error = qcow2_writer_check(r->w);
        if (error)
            return error;
    }
    return plan_places(r, others);
}

/* ---- Filling, without the lock ---------------------------------------------------------------- */

static void add_zeroes(request *r, uint64_t host, uint64_t length)
{
    while (length > 0) {
        size_t part = sizeof zeroes - host % sizeof zeroes; /* tears no sector */
        part = MIN(part, length);
        add_op(r, zeroes, host, part);
        host += part;
        length -= part;
    }
}

/* [start, end) of the cluster, which the guest's bytes do not cover. In a data file nothing
 * is written past the disk's end. */
static int fill_range(request *r, const placement *place, uint64_t start, uint64_t end)
{
    const qcow2_layout *layout = &r->w->map->layout;
    if (r->w->external)
        end = MIN(end, layout->size > place->guest ? layout->size - place->guest : 0);
    if (start >= end)
        return 0;
    if (place->zero) {
        if (!place->fresh)
            add_zeroes(r, place->host + start, end - start);
        return 0;
    }
    size_t length = (size_t)(end - start);
    g_autofree uint8_t *bytes = g_malloc(length);
    bool zero;
    int error = qcow2_fill_read(r->w, bytes, place->guest + start, length, &zero);
    if (error)
        return error;
    if (zero && place->fresh)
        return 0;
    if (zero) {
        add_zeroes(r, place->host + start, length);
        return 0;
    }
    if (!r->change->copies)
        r->change->copies = g_ptr_array_new_with_free_func(g_free);
    add_op(r, bytes, place->host + start, length);
    g_ptr_array_add(r->change->copies, g_steal_pointer(&bytes));
    return 0;
}

/* The runs of `filled` but for what the guest's bytes cover. */
static int fill_cluster(request *r, const placement *place)
{
    const qcow2_layout *layout = &r->w->map->layout;
    uint64_t covered = MAX(r->offset, place->guest) - place->guest;
    uint64_t covered_end =
        MIN(r->end, place->guest + layout->cluster_size) - place->guest;
    int error = 0;
    for (unsigned sub = 0, next; sub < layout->subclusters && !error; sub = next) {
        next = sub + 1;
        if (!(place->filled >> sub & 1))
            continue;
        while (next < layout->subclusters && (place->filled >> next & 1))
            next++;
        uint64_t start = (uint64_t)sub << layout->subcluster_bits;
        uint64_t end = (uint64_t)next << layout->subcluster_bits;
        error = fill_range(r, place, start, MIN(end, MAX(start, covered)));
        if (!error)
            error = fill_range(r, place, MAX(start, MIN(end, covered_end)), end);
    }
    return error;
}

static int add_places(request *r)
{
    int error = 0;
    for (size_t i = 0; i < r->change->n_places && !error; i++) {
        const placement *place = &r->change->places[i];
        add_guest_bytes(r, place->guest, place->host);
        error = fill_cluster(r, place);
    }
    return error;
}

/* ---- prepare and finish ------------------------------------------------------------------------ */

static int prepare_once(request *r)
{
    int error = qcow2_writer_enter(r->w);
    if (error)
        return error;
    error = decide(r);
    pthread_mutex_unlock(&r->w->map->lock);
    if (!error && r->change)
        error = add_places(r);
    if (error && r->change)
        qcow2_write_finish(r->w, g_steal_pointer(&r->change), error);
    return error;
}

int qcow2_write_prepare(qcow2_writer *w, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change)
{
    request r = {.w = w,
                 .buf = buf,
                 .offset = offset,
                 .end = offset + length,
                 .owner = owner,
                 .list = list,
                 .first_op = list->count};
    int error;
    do
        error = prepare_once(&r);
    while (error && (error = qcow2_alloc_retry(w, error)) == 0);
    if (error)
        list->count = r.first_op;
    *ret_change = error ? NULL : r.change;
    return error;
}

/* What the entry named before, if the new one does not. */
static void unlink_old(qcow2_writer *w, const qcow2_entry *old)
{
    if (old->compressed)
        qcow2_alloc_unlink(w, old->host_offset, old->compressed_size, QCOW2_UNLINK_OWN);
    else if (old->has_host && !w->external)
        qcow2_alloc_unlink(w, old->host_offset, w->map->layout.cluster_size,
                           QCOW2_UNLINK_HELD);
}

static uint64_t data_bytes(const qcow2_writer *w, const qcow2_entry *entry)
{
    if (entry->compressed)
        return w->map->layout.cluster_size;
    return (uint64_t)__builtin_popcount(entry->alloc) << w->map->layout.subcluster_bits;
}

static int link_cluster(qcow2_writer *w, const placement *place)
{
    qcow2_entry old;
    int error = qcow2_map_get(w->map, place->guest, &old);
    if (error)
        return error;
    qcow2_entry entry = {.copied = true,
                         .has_host = true,
                         .host_offset = place->host,
                         .alloc = old.alloc | place->filled,
                         .zero = old.zero & ~place->filled};
    error = qcow2_map_put(w->map, place->guest, &entry);
    if (error)
        return error;
    if (place->is_new)
        unlink_old(w, &old);
    atomic_fetch_add(&w->allocated,
                     (int_fast64_t)(data_bytes(w, &entry) - data_bytes(w, &old)));
    w->links = true;
    return 0;
}

int qcow2_write_finish(qcow2_writer *w, image_change *change, int result)
{
    bool ran = result == 0;
    pthread_mutex_lock(&w->map->lock);
    result = ran ? qcow2_writer_check(w) : qcow2_writer_note(w, result);
    size_t linked = 0;
    while (!result && linked < change->n_places) {
        result = link_cluster(w, &change->places[linked]);
        linked += result == 0;
    }
    memmove(change->places, change->places + linked,
            (change->n_places - linked) * sizeof *change->places);
    change->n_places -= linked;
    undo_hosts(w, change);
    qcow2_claim_drop(w, &change->claim);
    pthread_mutex_unlock(&w->map->lock);
    change_free(change, !ran);
    return result;
}

int qcow2_write_now(qcow2_writer *w, const void *buf, uint64_t offset, size_t length)
{
    io_list list = {0};
    image_change *change;
    int result = qcow2_write_prepare(w, buf, offset, length, 0, &list, &change);
    if (!result) {
        io_list_run(&list);
        result = io_list_error(&list);
        if (change)
            result = qcow2_write_finish(w, change, result);
    }
    io_list_free(&list);
    return result;
}
