/*
 * disk.c: what can be asked about a disk. Nothing here changes one.
 */
#include "quorum/disk.h"
#include "quorum/disk-internal.h"
#include <errno.h>

const char *disk_name(const disk *d)
{
    return d->name;
}

const char *disk_file(const disk *d)
{
    return d->file;
}

uint64_t disk_size(disk *d)
{
    return atomic_load(&d->size);
}

unsigned disk_threshold(const disk *d)
{
    return d->threshold;
}

unsigned disk_replica_count(const disk *d)
{
    return d->n;
}

bool disk_writable(const disk *d)
{
    return d->writable;
}

const char *disk_read_only_reason(const disk *d)
{
    return d->read_only_reason;
}

uint64_t disk_unreconciled_bytes(disk *d)
{
    return d->store ? state_unreconciled_bytes(d->store) : 0;
}

const char *disk_degraded_reason(const disk *d)
{
    return d->degraded_reason;
}

chain *disk_chain(disk *d, unsigned i)
{
    return d->replicas[i].chain;
}

const char *disk_replica_file(disk *d, unsigned i)
{
    g_rw_lock_reader_lock(&d->attach_lock);
    const char *file = d->replicas[i].file;
    g_rw_lock_reader_unlock(&d->attach_lock);
    return file;
}

void disk_replica_status(disk *d, unsigned i, replica_status *ret_status)
{
    disk_replica *replica = &d->replicas[i];
    *ret_status = (replica_status){
        .name = replica->name,
        .read_errors = atomic_load(&replica->read_errors),
        .write_errors = atomic_load(&replica->write_errors),
        .latency_us = atomic_load(&replica->latency_ns) / 1000,
    };
    g_rw_lock_reader_lock(&d->attach_lock);
    ret_status->source = replica->source;
    ret_status->format = replica->format;
    ret_status->decoder = replica->decoder;
    g_rw_lock_reader_unlock(&d->attach_lock);
    g_mutex_lock(&d->state_lock);
    ret_status->state = replica->state;
    ret_status->stale_bytes = rangeset_bytes(&replica->missed);
    ret_status->divergent_bytes = replica->divergent_bytes;
    g_mutex_unlock(&d->state_lock);
}

const char *disk_state_name(disk *d)
{
    g_mutex_lock(&d->state_lock);
    bool healthy = atomic_load(&d->in_sync) == disk_members(d);
    bool works = disk_quorum_everywhere(d, disk_takers(d), 0, IMAGE_SIZE_MAX);
    g_mutex_unlock(&d->state_lock);
    return healthy ? "healthy" : works ? "degraded" : "failed";
}

void disk_get_counters(disk *d, disk_counters *ret_counters)
{
    *ret_counters = (disk_counters){
        .reads = atomic_load(&d->reads),
        .read_bytes = atomic_load(&d->read_bytes),
        .writes = atomic_load(&d->writes),
        .write_bytes = atomic_load(&d->write_bytes),
        .flushes = atomic_load(&d->flushes),
        .divergences = atomic_load(&d->divergences),
        .quorum_failures = atomic_load(&d->quorum_failures),
    };
}

static void append_bad(GArray *bad, uint64_t start, uint64_t end, bool no_quorum)
{
    disk_bad_range range = {start, end - start, no_quorum};
    if (end > start)
        g_array_append_val(bad, range);
}

static int compare_bad(const void *a, const void *b)
{
    uint64_t x = ((const disk_bad_range *)a)->offset;
    uint64_t y = ((const disk_bad_range *)b)->offset;
    return (x > y) - (x < y);
}

/* What once had no quorum is shown as that, even if it also differed with one. */
GArray *disk_bad_ranges(disk *d)
{
    GArray *bad = g_array_new(FALSE, FALSE, sizeof(disk_bad_range));
    g_mutex_lock(&d->state_lock);
    unsigned n = rangeset_count(&d->no_quorum), next = 0;
    for (unsigned k = 0; k < n; k++) {
        rangeset_range range = rangeset_get(&d->no_quorum, k);
        append_bad(bad, range.start, range.end, true);
    }
    for (unsigned k = 0; k < rangeset_count(&d->differing); k++) {
        rangeset_range range = rangeset_get(&d->differing, k);
        while (next < n && rangeset_get(&d->no_quorum, next).end <= range.start)
            next++;
        uint64_t start = range.start;
        for (unsigned j = next; j < n; j++) {
            rangeset_range hole = rangeset_get(&d->no_quorum, j);
            if (hole.start >= range.end)
                break;
            append_bad(bad, start, hole.start, false);
            start = MIN(hole.end, range.end);
        }
        append_bad(bad, start, range.end, false);
    }
    g_mutex_unlock(&d->state_lock);
    g_array_sort(bad, compare_bad);
    return bad;
}

static bool is_zero(image_extent_kind kind)
{
    return kind == IMAGE_EXTENT_ZERO || kind == IMAGE_EXTENT_UNALLOCATED;
}

/* A replica whose map cannot be had may hold data anywhere. */
static int map_locked(disk *d, uint64_t offset, uint64_t length, bool *ret_zero,
                      uint64_t *ret_length)
{
    if (!disk_has_range(d, offset, length))
        return -EINVAL;
    uint64_t run_end;
    uint64_t asked = disk_voter_run(d, offset, offset + length, &run_end);
    length = run_end - offset;
    if (disk_set_size(asked) < d->threshold)
        return -EIO;
    uint64_t zero_run = length, data_run = 0;
    for (unsigned i = 0; i < d->n; i++) {
        chain_extent extent;
        if (!disk_has_bit(asked, i))
            continue;
        disk_wait_for(d, i);
        int r = chain_map(d->replicas[i].chain, offset, length, &extent);
        disk_wait_for_ever();
        if (disk_is_gone(r))
            disk_lose(d, i, "map", r);
        if (r < 0)
            data_run = length;
        else if (is_zero(extent.kind))
            zero_run = MIN(zero_run, extent.length);
        else
            data_run = MAX(data_run, extent.length);
    }
    *ret_zero = data_run == 0;
    *ret_length = MIN(*ret_zero ? zero_run : data_run, length);
    return 0;
}

int disk_map(disk *d, uint64_t offset, uint64_t length, bool *ret_zero,
             uint64_t *ret_length)
{
    if (length == 0 || length > IMAGE_SIZE_MAX || offset > IMAGE_SIZE_MAX)
        return -EINVAL;
    rangelock_held held;
    disk_lock_sectors(d, &held, offset, length, RANGELOCK_SHARED);
    int r = map_locked(d, offset, length, ret_zero, ret_length);
    rangelock_release(d->range_lock, &held);
    return r;
}

/* A look without a range lock. It may take as long as a replica has time; status does not come here. */
uint64_t disk_allocated(disk *d)
{
    uint64_t largest = 0, asked = disk_takers(d);
    g_rw_lock_reader_lock(&d->attach_lock);
    for (unsigned i = 0; i < d->n; i++) {
        if (!disk_has_bit(asked, i) || !d->replicas[i].chain)
            continue;
        disk_wait_for(d, i);
        largest = MAX(largest, chain_allocated(d->replicas[i].chain));
    }
    g_rw_lock_reader_unlock(&d->attach_lock);
    disk_wait_for_ever();
    return largest;
}
