/*
 * verify-read.c: a replica's bytes in order, read ahead into a ring of slots.
 *
 * A slot is either a stretch of zeroes of any length, for which nothing is read, or the
 * disk up to the next multiple of the piece's size, as a list of parts: data, zeroes by the
 * map, or sectors that cannot be read. All boundaries are sector boundaries, also where
 * the map's are not (a hole that starts inside a sector starts at the next one here), so
 * that the consumer can vote on whatever the spans of all replicas have in common.
 *
 * A read that fails is repeated in smaller and smaller steps, down to single sectors, so
 * that what is called unreadable is exactly that. A read that timed out is not: each step
 * would cost the time-out again, and the replica's decoder has gone, not a sector.
 *
 * Zeroes take no buffer, so that a replica of data between holes is read ahead, too.
 *
 * Invariants: produced - consumed <= SLOTS, and at most BUFFERS of these slots hold data;
 * the slot at `produced` belongs to the reader's thread, the one at `consumed` to the
 * consumer (once produced > consumed); all counters and `stop` change under the lock only.
 * Each side sets its `waits` flag under the lock before it sleeps, so that nobody is
 * signalled in vain, and is signalled when the lock is free again, so that it can have it.
 */
#include "quorum/verify-read.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* How far one question to the map looks: far enough that a fully allocated file is asked
 * about once, near enough that the tables behind the answer are still cached when read. */
#define MAP_WINDOW ((uint64_t)1 << 30)

typedef struct slot_part {
    uint64_t length;
    int error;
    bool zero;
} slot_part;

/* One buffer is filled while the other is compared. More of them cost more than they
 * bring: what is compared should still be in a cache. Powers of two, so that the counters
 * may wrap. */
#define BUFFERS 2u
#define SLOTS   16u

typedef struct slot {
    uint64_t offset, length;
    uint8_t *buf;     /* a piece; the part at disk offset x is at buf + x - offset */
    slot_part *parts; /* room for one per sector and one more */
    unsigned n_parts;
} slot;

struct verify_reader {
    chain *c;
    uint64_t size;
    size_t piece;
    GThread *thread;
    slot slots[SLOTS];
    uint8_t *buffers[BUFFERS]; /* a piece each */

    GMutex lock; /* guards what follows, up to the blank line */
    GCond filled, freed;
    unsigned produced, consumed;           /* slots so far; may wrap */
    unsigned data_produced, data_consumed; /* those of them that have a buffer */
    bool consumer_waits, reader_waits;
    bool stop;

    uint64_t extent_end; /* reader's thread: what the last question to the map said */
    bool extent_zero;

    unsigned part;      /* consumer: where it is in the slot at `consumed` */
    uint64_t part_done; /* bytes of that part already consumed */
    uint64_t slot_done; /* bytes of the slot already consumed */
};

static uint64_t sector_up(const verify_reader *r, uint64_t at)
{
    uint64_t up = (at + IMAGE_SECTOR - 1) / IMAGE_SECTOR * IMAGE_SECTOR;
    return MIN(up, r->size);
}

/* Makes extent_end and extent_zero tell about the sector at `at`; a map that fails says
 * data, and the read will tell. */
static void reader_map(verify_reader *r, uint64_t at)
{
    if (at < r->extent_end)
        return;
    uint64_t window = MIN(r->size - at, MAP_WINDOW);
    chain_extent extent;
    if (chain_map(r->c, at, window, &extent) < 0) {
        r->extent_zero = false;
        r->extent_end = sector_up(r, at + MIN(window, r->piece));
        return;
    }
    uint64_t end = at + MIN(extent.length, window);
    r->extent_zero =
        extent.kind == IMAGE_EXTENT_ZERO || extent.kind == IMAGE_EXTENT_UNALLOCATED;
    if (r->extent_zero && end < r->size)
        end = end / IMAGE_SECTOR * IMAGE_SECTOR;
    if (end > at) {
        r->extent_end = sector_up(r, end);
    } else { /* zeroes that end within this sector */
        r->extent_zero = false;
        r->extent_end = sector_up(r, at + 1);
    }
}

static void slot_add(slot *s, uint64_t length, bool zero, int error)
{
    slot_part *last = s->n_parts ? &s->parts[s->n_parts - 1] : NULL;
    if (last && last->zero == zero && last->error == error)
        last->length += length;
    else
        s->parts[s->n_parts++] = (slot_part){length, error, zero};
    s->length += length;
}

/* Appends the disk's next `length` bytes to the slot: read whole, or where that fails in
 * ever smaller steps. */
static void slot_read(const verify_reader *r, slot *s, size_t length)
{
    uint64_t at = s->offset + s->length;
    int error = chain_read(r->c, s->buf + s->length, at, length);
    if (error == 0 || error == -ETIMEDOUT || length <= IMAGE_SECTOR) {
        slot_add(s, length, false, error);
        return;
    }
    size_t step = length > 65536 ? 65536 : length > 4096 ? 4096 : IMAGE_SECTOR;
    uint64_t end = at + length;
    while (at < end) {
        uint64_t next = MIN(end, (at / step + 1) * step);
        slot_read(r, s, next - at);
        at = next;
    }
}

/* How far it is from `at` to the end of a stretch of zeroes that reaches the piece's end;
 * 0: there is data in the piece. */
static uint64_t zero_stretch(verify_reader *r, uint64_t at, uint64_t piece_end)
{
    reader_map(r, at);
    return r->extent_zero && r->extent_end >= piece_end ? r->extent_end - at : 0;
}

static void slot_fill(verify_reader *r, slot *s, uint64_t end)
{
    uint64_t at = s->offset;
    while (at < end) {
        reader_map(r, at);
        bool zero = r->extent_zero;
        uint64_t next = MIN(end, r->extent_end);
        while (!zero && next < end) { /* data that touches is one read */
            reader_map(r, next);
            if (r->extent_zero)
                break;
            next = MIN(end, r->extent_end);
        }
        if (zero)
            slot_add(s, next - at, true, 0);
        else
            slot_read(r, s, next - at);
        at = next;
    }
}

static bool slot_free(const verify_reader *r, bool data)
{
    return r->produced - r->consumed < SLOTS &&
           (!data || r->data_produced - r->data_consumed < BUFFERS);
}

/* Waits until a slot is free, and a buffer if there is data; NULL: stopped. */
static slot *reader_claim(verify_reader *r, uint64_t offset, bool data)
{
    g_mutex_lock(&r->lock);
    while (!r->stop && !slot_free(r, data)) {
        r->reader_waits = true;
        g_cond_wait(&r->freed, &r->lock);
        r->reader_waits = false;
    }
    slot *s = r->stop ? NULL : &r->slots[r->produced % SLOTS];
    g_mutex_unlock(&r->lock);
    if (!s)
        return NULL;
    s->offset = offset;
    s->length = 0;
    s->n_parts = 0;
    s->buf = data ? r->buffers[r->data_produced % BUFFERS] : NULL;
    return s;
}

static void reader_publish(verify_reader *r, const slot *s)
{
    g_mutex_lock(&r->lock);
    r->produced++;
    r->data_produced += s->buf != NULL;
    bool wake = r->consumer_waits;
    g_mutex_unlock(&r->lock);
    if (wake)
        g_cond_signal(&r->filled);
}

static void *reader_thread(void *opaque)
{
    verify_reader *r = opaque;
    for (uint64_t at = 0; at < r->size;) {
        uint64_t end = MIN(r->size, (at / r->piece + 1) * r->piece);
        uint64_t zeroes = zero_stretch(r, at, end);
        slot *s = reader_claim(r, at, zeroes == 0);
        if (!s)
            break;
        if (zeroes)
            slot_add(s, zeroes, true, 0);
        else
            slot_fill(r, s, end);
        at += s->length;
        reader_publish(r, s);
    }
    return NULL;
}

verify_reader *verify_reader_new(chain *c, uint64_t size, size_t piece)
{
    verify_reader *r = g_new0(verify_reader, 1);
    r->c = c;
    r->size = size;
    r->piece = piece;
    for (unsigned i = 0; i < SLOTS; i++)
        r->slots[i].parts = g_new(slot_part, piece / IMAGE_SECTOR + 1);
    for (unsigned i = 0; i < BUFFERS; i++)
        r->buffers[i] = g_aligned_alloc(1, piece, 4096);
    g_mutex_init(&r->lock);
    g_cond_init(&r->filled);
    g_cond_init(&r->freed);
    r->thread = g_thread_new("verify-read", reader_thread, r);
    return r;
}

void verify_reader_free(verify_reader *r)
{
    if (!r)
        return;
    g_mutex_lock(&r->lock);
    r->stop = true;
    g_cond_signal(&r->freed);
    g_mutex_unlock(&r->lock);
    g_thread_join(r->thread);
    for (unsigned i = 0; i < SLOTS; i++)
        g_free(r->slots[i].parts);
    for (unsigned i = 0; i < BUFFERS; i++)
        g_aligned_free(r->buffers[i]);
    g_mutex_clear(&r->lock);
    g_cond_clear(&r->filled);
    g_cond_clear(&r->freed);
    g_free(r);
}

/* False: the slot at `consumed` did not come within the time. */
static bool slot_await(verify_reader *r, int64_t timeout_us)
{
    g_mutex_lock(&r->lock);
    int64_t deadline = 0;
    bool woken = true;
    while (woken && r->produced == r->consumed) {
        deadline = deadline ? deadline : g_get_monotonic_time() + timeout_us;
        r->consumer_waits = true;
        woken = g_cond_wait_until(&r->filled, &r->lock, deadline);
        r->consumer_waits = false;
    }
    bool there = r->produced != r->consumed;
    g_mutex_unlock(&r->lock);
    return there;
}

bool verify_reader_peek(verify_reader *r, int64_t timeout_us, verify_span *ret_span)
{
    /* A slot that was begun is this side's already. */
    if (r->slot_done == 0 && !slot_await(r, timeout_us))
        return false;
    const slot *s = &r->slots[r->consumed % SLOTS];
    const slot_part *part = &s->parts[r->part];
    ret_span->length = part->length - r->part_done;
    ret_span->error = part->error;
    ret_span->data = part->zero || part->error ? NULL : s->buf + r->slot_done;
    return true;
}

void verify_reader_consume(verify_reader *r, uint64_t length)
{
    const slot *s = &r->slots[r->consumed % SLOTS];
    r->slot_done += length;
    r->part_done += length;
    if (r->part_done < s->parts[r->part].length)
        return;
    r->part_done = 0;
    r->part++;
    if (r->slot_done < s->length)
        return;
    r->part = 0;
    r->slot_done = 0;
    g_mutex_lock(&r->lock);
    r->consumed++;
    r->data_consumed += s->buf != NULL;
    bool wake = r->reader_waits;
    g_mutex_unlock(&r->lock);
    if (wake)
        g_cond_signal(&r->freed);
}
