#include "tests/disk-model.h"
#include <glib.h>
#include <string.h>

#define SECTOR 512u

typedef struct version {
    struct version *next;
    bool current; /* the live disk may hold it */
    bool fresh;   /* by the change that is under way */
    bool partial; /* made by a change of a part of the sector */
    uint8_t bytes[SECTOR];
} version;

/* A size, as a version of the disk. */
typedef struct extent {
    uint64_t size;
    bool current, fresh;
} extent;

struct disk_model {
    uint64_t sectors;
    uint8_t *stable;       /* the version of the last flush of each sector */
    bool *stable_current;  /* whether the live disk may hold that */
    version **newer;       /* the others of each sector, newest first */
    GArray *sizes;         /* of extent; the first one is stable */
    uint64_t first, after; /* sectors of the change under way */
};

disk_model *disk_model_new(const uint8_t *content, uint64_t size, uint64_t size_max)
{
    disk_model *m = g_new0(disk_model, 1);
    m->sectors = (MAX(size, size_max) + SECTOR - 1) / SECTOR;
    m->stable = g_malloc0(m->sectors * SECTOR);
    memcpy(m->stable, content, size);
    m->stable_current = g_new(bool, m->sectors);
    memset(m->stable_current, true, m->sectors);
    m->newer = g_new0(version *, m->sectors);
    m->sizes = g_array_new(FALSE, FALSE, sizeof(extent));
    extent only = {size, true, false};
    g_array_append_val(m->sizes, only);
    return m;
}

static void versions_free(version *v)
{
    while (v) {
        version *next = v->next;
        g_free(v);
        v = next;
    }
}

void disk_model_free(disk_model *m)
{
    for (uint64_t s = 0; s < m->sectors; s++)
        versions_free(m->newer[s]);
    g_array_free(m->sizes, TRUE);
    g_free(m->newer);
    g_free(m->stable);
    g_free(m->stable_current);
    g_free(m);
}

/* ---- Changes ------------------------------------------------------------------------- */

static void add_version(disk_model *m, uint64_t s, const uint8_t *old, const uint8_t *buf,
                        size_t skip, size_t length)
{
    version *v = g_new0(version, 1);
    memcpy(v->bytes, old, SECTOR);
    if (buf)
        memcpy(v->bytes + skip, buf, length);
    else
        memset(v->bytes + skip, 0, length);
    v->current = v->fresh = true;
    v->partial = length < SECTOR;
    v->next = m->newer[s];
    m->newer[s] = v;
}

/* Every version that the sector may have now gets a changed copy. */
static void change_sector(disk_model *m, uint64_t s, const uint8_t *buf, size_t skip,
                          size_t length)
{
    version *known = m->newer[s];
    if (length == SECTOR) {
        add_version(m, s, m->stable, buf, 0, SECTOR);
        return;
    }
    if (m->stable_current[s])
        add_version(m, s, m->stable + s * SECTOR, buf, skip, length);
    for (version *v = known; v; v = v->next)
        if (v->current)
            add_version(m, s, v->bytes, buf, skip, length);
}

void disk_model_begin(disk_model *m, const uint8_t *buf, uint64_t offset, uint64_t length)
{
    m->first = offset / SECTOR;
    m->after = m->first;
    for (uint64_t end = offset + length; offset < end; m->after++) {
        size_t skip = offset % SECTOR;
        size_t part = (size_t)MIN(end - offset, SECTOR - skip);
        g_assert_cmpuint(m->after, <, m->sectors);
        change_sector(m, m->after, buf, skip, part);
        buf = buf ? buf + part : NULL;
        offset += part;
    }
}

static uint64_t least_size(const disk_model *m)
{
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < m->sizes->len; i++)
        if (g_array_index(m->sizes, extent, i).current)
            least = MIN(least, g_array_index(m->sizes, extent, i).size);
    return least;
}

/* What lies behind the least size that the disk may have now is zero when it comes back. */
void disk_model_begin_resize(disk_model *m, uint64_t size, const uint8_t *below,
                             size_t below_size)
{
    uint64_t least = MIN(size, least_size(m));
    bool shrinks = size == least;
    extent e = {size, true, true};
    g_array_append_val(m->sizes, e);
    disk_model_begin(m, NULL, least, m->sectors * SECTOR - least);
    for (uint64_t at = (size + SECTOR - 1) / SECTOR * SECTOR; shrinks && at < below_size;
         at += SECTOR) {
        uint8_t bytes[SECTOR] = {0};
        if (at / SECTOR == m->sectors)
            break;
        memcpy(bytes, below + at, (size_t)MIN(SECTOR, below_size - at));
        add_version(m, at / SECTOR, bytes, bytes, 0, SECTOR);
    }
}

static void settle(disk_model *m, uint64_t s)
{
    m->stable_current[s] = false;
    for (version *v = m->newer[s]; v; v = v->next)
        v->current = v->fresh;
}

void disk_model_end(disk_model *m, bool done)
{
    bool resized = false;
    for (uint64_t s = m->first; s < m->after; s++) {
        if (done)
            settle(m, s);
        for (version *v = m->newer[s]; v; v = v->next)
            v->fresh = false;
    }
    for (unsigned i = 0; i < m->sizes->len; i++)
        resized |= g_array_index(m->sizes, extent, i).fresh;
    for (unsigned i = 0; resized && i < m->sizes->len; i++) {
        extent *e = &g_array_index(m->sizes, extent, i);
        e->current = done ? e->fresh : e->current;
        e->fresh = false;
    }
    m->first = m->after = 0;
}

static void flush_sector(disk_model *m, uint64_t s)
{
    version *kept = NULL;
    for (version *v = m->newer[s], *next; v; v = next) {
        next = v->next;
        if (v->current && !m->stable_current[s]) {
            memcpy(m->stable + s * SECTOR, v->bytes, SECTOR);
            m->stable_current[s] = true;
            g_free(v);
        } else if (v->current) {
            v->next = kept;
            kept = v;
        } else {
            g_free(v);
        }
    }
    m->newer[s] = kept;
}

void disk_model_flushed(disk_model *m)
{
    for (uint64_t s = 0; s < m->sectors; s++)
        flush_sector(m, s);
    for (unsigned i = m->sizes->len; i-- > 0;)
        if (!g_array_index(m->sizes, extent, i).current)
            g_array_remove_index(m->sizes, i);
}

/* ---- What is seen -------------------------------------------------------------------- */

static char *describe(uint64_t s, const uint8_t *seen, const uint8_t *stable,
                      size_t length)
{
    size_t first = 0, last = length - 1;
    bool zero = seen[0] == 0 && memcmp(seen, seen + 1, length - 1) == 0;
    while (seen[first] == stable[first])
        first++;
    while (seen[last] == stable[last])
        last--;
    return g_strdup_printf("sector %" G_GUINT64_FORMAT
                           " holds%s what it never held since "
                           "the last flush, when bytes %zu to %zu were others",
                           s, zero ? " zeroes," : "", first, last);
}

char *disk_model_see(disk_model *m, const uint8_t *buf, uint64_t offset, uint64_t length)
{
    for (uint64_t end = offset + length; offset < end;) {
        uint64_t s = offset / SECTOR;
        size_t skip = offset % SECTOR;
        size_t part = (size_t)MIN(end - offset, SECTOR - skip);
        bool *old = &m->stable_current[s];
        *old = *old && memcmp(m->stable + s * SECTOR + skip, buf, part) == 0;
        bool found = *old;
        for (version *v = m->newer[s]; v; v = v->next) {
            v->current = v->current && memcmp(v->bytes + skip, buf, part) == 0;
            found |= v->current;
        }
        if (!found)
            return g_strdup_printf("sector %" G_GUINT64_FORMAT " reads %02x%02x%02x%02x, "
                                   "which it cannot hold",
                                   s, buf[0], buf[1], buf[2], buf[3]);
        buf += part;
        offset += part;
    }
    return NULL;
}

char *disk_model_see_size(disk_model *m, uint64_t size)
{
    bool found = false;
    for (unsigned i = 0; i < m->sizes->len; i++) {
        extent *e = &g_array_index(m->sizes, extent, i);
        e->current = e->current && e->size == size;
        found |= e->current;
    }
    return found ? NULL : g_strdup_printf("size %" G_GUINT64_FORMAT, size);
}

/* A driver may write a part of a sector, and the rest of it, by two calls: where a change
 * was not of whole sectors, each byte is that of some version. */
static bool is_mixture(const disk_model *m, uint64_t s, const uint8_t *seen,
                       size_t length)
{
    bool partial = false;
    for (const version *v = m->newer[s]; v; v = v->next)
        partial |= v->partial;
    for (size_t i = 0; partial && i < length; i++) {
        const version *v = m->newer[s];
        if (m->stable[s * SECTOR + i] == seen[i])
            continue;
        while (v && v->bytes[i] != seen[i])
            v = v->next;
        partial = v != NULL;
    }
    return partial;
}

static bool is_version(const disk_model *m, uint64_t s, const uint8_t *seen,
                       size_t length)
{
    const version *v = m->newer[s];
    if (memcmp(m->stable + s * SECTOR, seen, length) == 0)
        return true;
    while (v && memcmp(v->bytes, seen, length) != 0)
        v = v->next;
    return v != NULL;
}

char *disk_model_crashed(const disk_model *m, const uint8_t *content, uint64_t size)
{
    bool found = false;
    for (unsigned i = 0; i < m->sizes->len; i++)
        found |= g_array_index(m->sizes, extent, i).size == size;
    if (!found)
        return g_strdup_printf("size %" G_GUINT64_FORMAT " after a crash", size);
    for (uint64_t at = 0; at < size; at += SECTOR) {
        size_t length = (size_t)MIN(SECTOR, size - at);
        if (!is_version(m, at / SECTOR, content + at, length) &&
            !is_mixture(m, at / SECTOR, content + at, length))
            return describe(at / SECTOR, content + at, m->stable + at, length);
    }
    return NULL;
}
