/*
 * verify-read.c: a replica's bytes in order, read ahead into a ring of slots.
 *
 * The reader's thread plans one piece ahead of what it reads: where the map has data next
 * is told to the chain before the present piece is waited for, so that a decoder's process
 * works while this one copies and compares.
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
 * Invariants: produced - consumed <= SLOTS, and at most n_buffers of these slots hold data;
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
 * bring: what is compared should still be in a cache. A decoder's process, whose memory is
 * used if it lends some, fills a third. */
#define BUFFERS     2u
#define BUFFERS_MAX 3u
#define SLOTS       16u

typedef struct slot {
    uint64_t offset, length;
    uint8_t *buf;     /* a piece; the part at disk offset x is at buf + x - offset */
    slot_part *parts; /* room for one per sector and one more */
    unsigned n_parts;
} slot;

typedef struct plan {
    uint64_t zeroes;      /* so many bytes before `offset` are zeroes by the map */
    uint64_t offset, end; /* then this, within one piece; empty at the disk's end */
    slot_part *parts;     /* as in a slot, without errors */
    unsigned n_parts;
} plan;

struct verify_reader {
    chain *c;
    uint64_t size;
    size_t piece;
    GThread *thread;
    slot slots[SLOTS];
    uint8_t *lent;                 /* the chain's; buffers lie in it */
    uint8_t *buffers[BUFFERS_MAX]; /* a piece each */
    unsigned n_buffers;

    GMutex lock; /* guards what follows, up to the blank line */
    GCond filled, freed;
    uint64_t produced, consumed;           /* slots so far */
    uint64_t data_produced, data_consumed; /* those of them that have a buffer */
    bool consumer_waits, reader_waits;
    bool stop;

    uint64_t extent_end; /* reader's thread: what the last question to the map said */
    bool extent_zero;
    plan plans[2];

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

/* --- the plan of a piece --- */

/* Zeroes by the map up to the end of a piece or further. */
static void plan_zeroes(verify_reader *r, plan *p, uint64_t at)
{
    uint64_t end = MIN(r->size, (at / r->piece + 1) * r->piece);
    p->zeroes = 0;
    p->offset = at;
    while (p->offset < r->size) {
        reader_map(r, p->offset);
        if (!r->extent_zero || r->extent_end < end)
            return;
        p->zeroes += r->extent_end - p->offset;
        p->offset = r->extent_end;
        end = MIN(r->size, (p->offset / r->piece + 1) * r->piece);
    }
}

static void plan_add(plan *p, uint64_t length, bool zero)
{
    if (p->n_parts > 0 && p->parts[p->n_parts - 1].zero == zero)
        p->parts[p->n_parts - 1].length += length;
    else
        p->parts[p->n_parts++] = (slot_part){.length = length, .zero = zero};
    p->end += length;
}

/* What comes at `at`: zeroes, and a piece with data in it unless that was all. */
static void plan_make(verify_reader *r, plan *p, uint64_t at)
{
    p->n_parts = 0;
    plan_zeroes(r, p, at);
    p->end = p->offset;
    uint64_t end = MIN(r->size, (p->offset / r->piece + 1) * r->piece);
    while (p->end < end) {
        reader_map(r, p->end);
        plan_add(p, MIN(end, r->extent_end) - p->end, r->extent_zero);
    }
}

/* Tells the chain about the first data from part `i` on; false: there is none. `buf` is
 * where the piece goes. */
static bool plan_tell(const verify_reader *r, const plan *p, unsigned i, uint8_t *buf)
{
    uint64_t at = p->offset;
    for (unsigned k = 0; k < p->n_parts; k++) {
        if (k >= i && !p->parts[k].zero) {
            chain_read_ahead(r->c, buf + (at - p->offset), at, p->parts[k].length);
            return true;
        }
        at += p->parts[k].length;
    }
    return false;
}

/* --- reading it --- */

/* Where the piece after the one that is being read will go; NULL: not known yet. */
static uint8_t *next_buffer(verify_reader *r)
{
    g_mutex_lock(&r->lock);
    bool free = r->data_produced + 1 - r->data_consumed < r->n_buffers;
    uint8_t *buf = free ? r->buffers[(r->data_produced + 1) % r->n_buffers] : NULL;
    g_mutex_unlock(&r->lock);
    return buf;
}

static void slot_fill(verify_reader *r, slot *s, const plan *now, const plan *next)
{
    for (unsigned i = 0; i < now->n_parts; i++) {
        const slot_part *part = &now->parts[i];
        if (part->zero) {
            slot_add(s, part->length, true, 0);
            continue;
        }
        plan_tell(r, now, i, s->buf);
        if (!plan_tell(r, now, i + 1, s->buf)) {
            uint8_t *buf = next_buffer(r);
            if (buf)
                plan_tell(r, next, 0, buf);
        }
        slot_read(r, s, part->length);
    }
}

static bool slot_free(const verify_reader *r, bool data)
{
    return r->produced - r->consumed < SLOTS &&
           (!data || r->data_produced - r->data_consumed < r->n_buffers);
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
    s->buf = data ? r->buffers[r->data_produced % r->n_buffers] : NULL;
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

static bool reader_zeroes(verify_reader *r, const plan *p)
{
    slot *s = p->zeroes ? reader_claim(r, p->offset - p->zeroes, false) : NULL;
    if (s) {
        slot_add(s, p->zeroes, true, 0);
        reader_publish(r, s);
    }
    return s || !p->zeroes;
}

static bool reader_data(verify_reader *r, const plan *now, const plan *next)
{
    slot *s = now->n_parts ? reader_claim(r, now->offset, true) : NULL;
    if (s) {
        slot_fill(r, s, now, next);
        reader_publish(r, s);
    }
    return s || !now->n_parts;
}

static void *reader_thread(void *opaque)
{
    verify_reader *r = opaque;
    plan *now = &r->plans[0], *next = &r->plans[1];
    plan_make(r, now, 0);
    while (now->zeroes || now->n_parts) {
        plan_make(r, next, now->end);
        if (!reader_zeroes(r, now) || !reader_data(r, now, next))
            break;
        plan *done = now;
        now = next;
        next = done;
    }
    return NULL;
}

static void reader_buffers(verify_reader *r)
{
    r->lent = chain_lend(r->c, BUFFERS_MAX * r->piece);
    r->n_buffers = r->lent ? BUFFERS_MAX : BUFFERS;
    for (unsigned i = 0; i < r->n_buffers; i++)
        r->buffers[i] =
            r->lent ? r->lent + i * r->piece : g_aligned_alloc(1, r->piece, 4096);
}

verify_reader *verify_reader_new(chain *c, uint64_t size, size_t piece)
{
    verify_reader *r = g_new0(verify_reader, 1);
    r->c = c;
    r->size = size;
    r->piece = piece;
    for (unsigned i = 0; i < SLOTS; i++)
        r->slots[i].parts = g_new(slot_part, piece / IMAGE_SECTOR + 1);
    for (unsigned i = 0; i < G_N_ELEMENTS(r->plans); i++)
        r->plans[i].parts = g_new(slot_part, piece / IMAGE_SECTOR + 1);
    reader_buffers(r);
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
    for (unsigned i = 0; i < G_N_ELEMENTS(r->plans); i++)
        g_free(r->plans[i].parts);
    for (unsigned i = 0; !r->lent && i < r->n_buffers; i++)
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
