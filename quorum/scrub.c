/*
 * scrub.c: see scrub.h. The reading, voting and repairing is disk_repair_range's; this is the
 * thread that walks, rests, counts and can be stopped.
 *
 * The status is written by the thread, under the lock, after each piece. The thread's last
 * act is to write there that it is done; it is joined by the next start, or at the close.
 */
#include "quorum/scrub.h"
#include "quorum/disk-internal.h"
#include <errno.h>

/* The most that is locked to look at maps only. */
#define MAP_MAX     (64u << 20)
#define REST_MAX_US (G_USEC_PER_SEC / 10)

struct scrub {
    GMutex lock; /* nothing else is taken under it */
    GCond wake;
    GThread *thread;
    gint64 started_us; /* on the monotonic clock */
    bool cancel;
    scrub_status status;
};

/* The walk of one scrub; its thread's. */
typedef struct walk {
    disk *d;
    scrub_status now;
    uint64_t data_end; /* up to here somebody holds data, by the maps */
    uint64_t requests; /* of guests, when it was last looked */
    gint64 due_us;     /* by the speed, the next piece is not to begin before */
} walk;

scrub *scrub_new(void)
{
    scrub *s = g_new0(scrub, 1);
    g_mutex_init(&s->lock);
    g_cond_init(&s->wake);
    return s;
}

void scrub_free(scrub *s)
{
    if (!s)
        return;
    g_mutex_clear(&s->lock);
    g_cond_clear(&s->wake);
    g_free(s);
}

/* ---- The walk ---------------------------------------------------------------------------- */

static void scrub_journal(disk *d, const scrub_status *status, const char *action)
{
    disk_journal(d, (journal_record){.event = JOURNAL_JOB,
                                     .op = "scrub",
                                     .length = status->offset,
                                     .error = -status->error,
                                     .action = action});
}

/* How many of the next bytes are zeroes everywhere by the maps: whole sectors, or up to the
 * end. 0: somebody may hold data in the next sector. */
static uint64_t zero_run(walk *w, uint64_t at, uint64_t size)
{
    bool zero;
    uint64_t length;
    if (at < w->data_end)
        return 0;
    if (disk_map(w->d, at, MIN(size - at, MAP_MAX), &zero, &length) < 0)
        return 0;
    if (!zero) {
        w->data_end = at + length;
        return 0;
    }
    return at + length == size ? length : length & ~(uint64_t)(VOTE_SECTOR - 1);
}

/* Returns how much was read. */
static uint64_t look_at_piece(walk *w, uint64_t size)
{
    scrub_status *now = &w->now;
    uint64_t skipped = zero_run(w, now->offset, size);
    now->offset += skipped;
    now->skipped += skipped;
    if (skipped > 0)
        return 0;
    const repair_options options = {
        .dry_run = !now->options.repair, .from = -1, .op = "scrub"};
    uint64_t length = MIN(size - now->offset, DISK_REQUEST_MAX);
    int r = disk_repair_range(w->d, now->offset, length, &options, &now->stats);
    now->error = now->error ? now->error : r;
    now->offset += length;
    return length;
}

/* How long to rest after a piece of `length` bytes that began at `before`. */
static gint64 rest_after(walk *w, gint64 before, uint64_t length)
{
    gint64 now = g_get_monotonic_time(), pause = 0;
    uint64_t requests = disk_requests(w->d);
    if (requests != w->requests)
        pause = MIN(now - before, REST_MAX_US);
    w->requests = requests;
    if (w->now.options.speed > 0) {
        double us = (double)length * G_USEC_PER_SEC / (double)w->now.options.speed;
        w->due_us = MAX(w->due_us, before) + (gint64)MIN(us, 1e15);
        pause = MAX(pause, w->due_us - now);
    }
    return pause;
}

/* Tells how far it is, and rests. False: it is to stop. */
static bool go_on(walk *w, gint64 pause)
{
    scrub *s = w->d->scrub;
    gint64 until = g_get_monotonic_time() + pause;
    g_mutex_lock(&s->lock);
    s->status = w->now;
    while (!s->cancel && pause > 0 && g_cond_wait_until(&s->wake, &s->lock, until))
        ;
    bool cancel = s->cancel;
    g_mutex_unlock(&s->lock);
    return !cancel;
}

/* What was repaired is on stable storage before it is said to be (W4 if it is not). */
static int flush_repairs(disk *d, const repair_stats *stats)
{
    rangelock_held held;
    if (stats->repaired == 0 && stats->failed == 0)
        return 0;
    disk_lock_size(d, &held);
    int r = disk_flush_locked(d);
    rangelock_release(d->range_lock, &held);
    return r;
}

static void conclude(walk *w, bool whole)
{
    static const char *const names[] = {[SCRUB_COMPLETED] = "completed",
                                        [SCRUB_CANCELLED] = "cancelled",
                                        [SCRUB_FAILED] = "failed"};
    scrub *s = w->d->scrub;
    int flushed = flush_repairs(w->d, &w->now.stats);
    w->now.error = w->now.error ? w->now.error : flushed;
    w->now.state = w->now.error ? SCRUB_FAILED
                   : whole      ? SCRUB_COMPLETED
                                : SCRUB_CANCELLED;
    w->now.ended_us = g_get_real_time();
    scrub_journal(w->d, &w->now, names[w->now.state]);
    g_mutex_lock(&s->lock);
    w->now.took_us = g_get_monotonic_time() - s->started_us;
    s->status = w->now;
    g_mutex_unlock(&s->lock);
}

/* So that what is read is what the media hold, and not what they held when it was read last. */
static void forget_caches(disk *d)
{
    rangelock_held held;
    disk_lock_size(d, &held);
    if (d->writable)
        disk_flush_locked(d); /* what is not written yet cannot be forgotten */
    uint64_t takers = disk_takers(d);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(takers, i))
            continue;
        disk_wait_for(d, i);
        chain_forget_cache(d->replicas[i].chain);
    }
    disk_wait_for_ever();
    rangelock_release(d->range_lock, &held);
}

static void *scrub_run(void *opaque)
{
    walk w = {.d = opaque};
    gint64 pause = 0;
    g_mutex_lock(&w.d->scrub->lock);
    w.now = w.d->scrub->status;
    g_mutex_unlock(&w.d->scrub->lock);
    w.requests = disk_requests(w.d);
    scrub_journal(w.d, &w.now, "started");
    forget_caches(w.d);
    bool goes_on = true;
    while (goes_on && w.now.offset < w.now.length) {
        gint64 before = g_get_monotonic_time();
        uint64_t length = look_at_piece(&w, w.now.length);
        pause = rest_after(&w, before, length);
        w.now.length = disk_size(w.d);
        goes_on = go_on(&w, pause);
    }
    conclude(&w, w.now.offset >= w.now.length);
    return NULL;
}

/* ---- What others ask for ------------------------------------------------------------------ */

int scrub_start(disk *d, const scrub_options *options)
{
    scrub *s = d->scrub;
    const repair_options wanted = {.dry_run = !options->repair, .from = -1};
    repair_stats nothing = {0};
    int r = disk_repair_range(d, 0, 0, &wanted, &nothing);
    if (r < 0)
        return r;
    g_mutex_lock(&s->lock);
    bool busy = s->status.state == SCRUB_RUNNING;
    if (!busy) {
        g_clear_pointer(&s->thread, g_thread_join);
        s->cancel = false;
        s->status = (scrub_status){
            .state = SCRUB_RUNNING, .options = *options, .length = disk_size(d)};
        s->started_us = g_get_monotonic_time();
        s->thread = g_thread_new("scrub", scrub_run, d);
    }
    g_mutex_unlock(&s->lock);
    return busy ? -EBUSY : 0;
}

int scrub_cancel(disk *d)
{
    scrub *s = d->scrub;
    g_mutex_lock(&s->lock);
    bool runs = s->status.state == SCRUB_RUNNING;
    s->cancel = runs;
    g_cond_broadcast(&s->wake);
    g_mutex_unlock(&s->lock);
    return runs ? 0 : -ENOENT;
}

void scrub_get_status(disk *d, scrub_status *ret_status)
{
    const scrub *s = d->scrub;
    g_mutex_lock(&d->scrub->lock);
    *ret_status = s->status;
    if (s->status.state == SCRUB_RUNNING)
        ret_status->took_us = g_get_monotonic_time() - s->started_us;
    g_mutex_unlock(&d->scrub->lock);
}

void scrub_stop(disk *d)
{
    scrub_cancel(d);
    g_clear_pointer(&d->scrub->thread, g_thread_join);
}
