/*
 * undo.c: see undo.h; the bytes are undo-format.h's.
 *
 * Each record tells up to where the file had been synced when it was written. What is not valid
 * behind that place, in all records that there are, was being written when the power failed,
 * and nothing was overwritten because of it. What is not valid before was damaged.
 *
 * Room is taken in advance by making the file larger, so that a full file system is met
 * before the images are changed; what is left of it is zeroes, and cut off in the end.
 */
#include "quorum/undo.h"
#include "formats/file.h"
#include "quorum/undo-format.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCAN_BYTES (1u << 20)

GQuark undo_error_quark(void)
{
    return g_quark_from_static_string("quorumfs-undo-error");
}

static void set_io_error(GError **error, const char *path, int failed)
{
    g_set_error(error, UNDO_ERROR, UNDO_ERROR_IO, "%s: %s", path, g_strerror(-failed));
}

static void set_bad(GError **error, const char *path, const char *why)
{
    g_set_error(error, UNDO_ERROR, UNDO_ERROR_BAD, "%s: %s", path, why);
}

/* ---- Saving -------------------------------------------------------------------------- */

struct undo_writer {
    int fd;
    int failed; /* a sync did: what is on disk is not known */
    undo_header header;
    uint64_t at, synced, count;
    uint8_t *record; /* of UNDO_SECTOR + UNDO_LENGTH_MAX */
};

uint64_t undo_space(uint64_t length)
{
    /* Runs are cut where requests are, and once more by where they begin. */
    uint64_t records = length / (1u << 20) + 2;
    return records * UNDO_SECTOR +
           ((length + UNDO_SECTOR - 1) & ~(uint64_t)(UNDO_SECTOR - 1));
}

/* A file appears under its name when its header is whole. */
static int open_new(const char *path, const char *fresh)
{
    struct stat st;
    if (lstat(path, &st) == 0)
        return -EEXIST;
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd = open(fresh, flags, 0600);
    if (fd < 0)
        return -errno;
    return fd;
}

/* A file system that cannot is no reason to do without. */
static int take_room(int fd, uint64_t length)
{
    int r;
    do
        r = length ? fallocate(fd, 0, 0, (off_t)length) : 0;
    while (r < 0 && errno == EINTR);
    return r < 0 && errno != EOPNOTSUPP && errno != ENOSYS ? -errno : 0;
}

static int begin_file(undo_writer *w, const undo_disk *about, uint64_t expected)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    w->header.about = *about;
    if (getentropy(w->header.id, UNDO_ID_SIZE) < 0)
        return -errno;
    if (!undo_encode_header(&w->header, bytes))
        return -ENAMETOOLONG;
    int r = take_room(w->fd, bytes->len + expected);
    if (r == 0)
        r = file_write_full(w->fd, bytes->data, bytes->len, 0);
    w->at = w->synced = bytes->len;
    return r < 0 ? r : file_sync(w->fd);
}

undo_writer *undo_writer_new(const char *path, const undo_disk *about, uint64_t expected,
                             GError **error)
{
    undo_writer *w = g_new0(undo_writer, 1);
    g_autofree char *fresh = g_strconcat(path, ".new", NULL);
    w->fd = open_new(path, fresh);
    int failed = w->fd < 0 ? w->fd : begin_file(w, about, expected);
    if (failed == 0 && rename(fresh, path) < 0)
        failed = -errno;
    if (failed == 0) {
        w->record = g_malloc(UNDO_SECTOR + UNDO_LENGTH_MAX);
        return w;
    }
    set_io_error(error, path, failed);
    if (w->fd >= 0) {
        close(w->fd);
        unlink(fresh);
    }
    g_free(w);
    return NULL;
}

/* Of the names, only their number is needed from here on. */
int undo_writer_add(undo_writer *w, unsigned replica, uint64_t offset, const void *old,
                    const void *new, size_t length, bool stale)
{
    if (w->failed)
        return w->failed;
    if (length == 0 || length > UNDO_LENGTH_MAX)
        return -EINVAL;
    undo_record record = {.replica = replica,
                          .stale = stale,
                          .unreadable = !old,
                          .offset = offset,
                          .length = length,
                          .at = w->at,
                          .synced = w->synced};
    journal_digest(new, length, record.new_sha256);
    if (old)
        journal_digest(old, length, record.old_sha256);
    undo_encode_record(&w->header, &record, w->record);
    uint64_t payload = undo_payload(&record);
    if (old) {
        memcpy(w->record + UNDO_SECTOR, old, length);
        memset(w->record + UNDO_SECTOR + length, 0, payload - length);
    }
    int r = file_write_full(w->fd, w->record, UNDO_SECTOR + payload, w->at);
    if (r < 0)
        return r;
    w->at += UNDO_SECTOR + payload;
    w->count++;
    return 0;
}

int undo_writer_sync(undo_writer *w)
{
    if (!w->failed && w->synced < w->at)
        w->failed = file_sync(w->fd);
    if (!w->failed)
        w->synced = w->at;
    return w->failed;
}

uint64_t undo_writer_count(const undo_writer *w)
{
    return w->count;
}

/* With an end behind it, a hole in the last records is known to be one. */
static int end_file(undo_writer *w)
{
    uint8_t sector[UNDO_SECTOR];
    undo_record end = {.end = true, .unreadable = true, .at = w->at, .synced = w->synced};
    undo_encode_record(&w->header, &end, sector);
    int r = file_write_full(w->fd, sector, sizeof sector, w->at);
    return r ? r : file_resize(w->fd, w->at + sizeof sector);
}

void undo_writer_free(undo_writer *w)
{
    if (!w)
        return;
    /* What fails here is a waste, and nothing else. */
    if (undo_writer_sync(w) == 0 && end_file(w) == 0)
        file_sync(w->fd);
    close(w->fd);
    g_free(w->record);
    g_free(w);
}

/* ---- Reading ------------------------------------------------------------------------- */

struct undo_reader {
    int fd;
    char *path;
    uint64_t size; /* of the file */
    undo_header header;
    GStringChunk *strings;
    GArray *records; /* of uint64_t: where they are */
    uint8_t *old;    /* of UNDO_LENGTH_MAX */
};

static bool read_record(const undo_reader *r, uint64_t at, undo_record *ret_record)
{
    uint8_t sector[UNDO_SECTOR];
    return at <= r->size && r->size - at >= UNDO_SECTOR &&
           file_read_exact(r->fd, sector, sizeof sector, at) == 0 &&
           undo_decode_record(&r->header, sector, at, ret_record);
}

int undo_reader_old(const undo_reader *r, const undo_record *record, void *buf)
{
    uint8_t sum[JOURNAL_DIGEST_SIZE];
    if (record->unreadable)
        return -ENODATA;
    int failed = file_read_exact(r->fd, buf, record->length, record->at + UNDO_SECTOR);
    if (failed)
        return failed;
    journal_digest(buf, record->length, sum);
    return memcmp(sum, record->old_sha256, sizeof sum) == 0 ? 0 : -EIO;
}

/* All of a record; *ret_next is where the one after it would be. */
static bool check_record(const undo_reader *r, uint64_t at, uint64_t *ret_next)
{
    undo_record record;
    if (!read_record(r, at, &record) || record.end)
        return false;
    *ret_next = at + UNDO_SECTOR + undo_payload(&record);
    return *ret_next <= r->size &&
           (record.unreadable || undo_reader_old(r, &record, r->old) == 0);
}

/* Whether it had been synced to behind `end`, by any record there. */
static bool was_synced(const undo_reader *r, uint64_t end)
{
    undo_record record;
    g_autofree uint8_t *bytes = g_malloc(SCAN_BYTES);
    for (uint64_t at = end + UNDO_SECTOR; at + UNDO_SECTOR <= r->size; at += SCAN_BYTES) {
        size_t length = (size_t)MIN(SCAN_BYTES, r->size - at);
        if (file_read_full(r->fd, bytes, length, at) < 0)
            return true;
        for (size_t k = 0; k + UNDO_SECTOR <= length; k += UNDO_SECTOR)
            if (undo_decode_record(&r->header, bytes + k, at + k, &record) &&
                record.synced > end)
                return true;
    }
    return false;
}

static bool read_header(undo_reader *r, uint64_t *ret_end, GError **error)
{
    uint8_t first[UNDO_SECTOR];
    int failed = file_read_full(r->fd, first, sizeof first, 0);
    uint32_t length = failed ? 0 : undo_header_length(first);
    if (!failed && (length == 0 || length > r->size)) {
        set_bad(error, r->path, "is no undo file of this version of quorumfs");
        return false;
    }
    g_autofree uint8_t *bytes = g_malloc(MAX(length, UNDO_SECTOR));
    if (!failed)
        failed = file_read_exact(r->fd, bytes, length, 0);
    if (failed)
        set_io_error(error, r->path, failed);
    else if (!undo_decode_header(bytes, length, &r->header, r->strings))
        set_bad(error, r->path, "is damaged");
    else
        *ret_end = length;
    return *ret_end > 0;
}

static bool read_records(undo_reader *r, uint64_t at, GError **error)
{
    for (uint64_t next; check_record(r, at, &next); at = next)
        g_array_append_val(r->records, at);
    if (!was_synced(r, at))
        return true;
    g_set_error(error, UNDO_ERROR, UNDO_ERROR_BAD,
                "%s: is damaged at %" G_GUINT64_FORMAT ", nothing is put back", r->path,
                at);
    return false;
}

undo_reader *undo_reader_open(const char *path, GError **error)
{
    undo_reader *r = g_new0(undo_reader, 1);
    uint64_t end = 0;
    r->path = g_strdup(path);
    r->strings = g_string_chunk_new(4096);
    r->records = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    r->old = g_malloc(UNDO_LENGTH_MAX);
    r->fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    bool is_device = false;
    int failed = r->fd < 0 ? -errno : file_get_size(r->fd, &r->size, &is_device);
    if (failed == -EINVAL || is_device)
        set_bad(error, path, "is no undo file of this version of quorumfs");
    else if (failed)
        set_io_error(error, path, failed);
    else if (read_header(r, &end, error) && read_records(r, end, error))
        return r;
    undo_reader_free(r);
    return NULL;
}

void undo_reader_free(undo_reader *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    g_array_unref(r->records);
    g_string_chunk_free(r->strings);
    g_free(r->old);
    g_free(r->path);
    g_free(r);
}

const undo_disk *undo_reader_about(const undo_reader *r)
{
    return &r->header.about;
}

size_t undo_reader_count(const undo_reader *r)
{
    return r->records->len;
}

int undo_reader_get(const undo_reader *r, size_t index, undo_record *ret_record)
{
    uint64_t at = g_array_index(r->records, uint64_t, index);
    return read_record(r, at, ret_record) ? 0 : -EIO;
}

/* ---- Whose it is --------------------------------------------------------------------- */

static void set_other(GError **error, const undo_reader *r, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static void set_other(GError **error, const undo_reader *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *why = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, UNDO_ERROR, UNDO_ERROR_OTHER, "%s: %s", r->path, why);
}

bool undo_reader_match(const undo_reader *r, const undo_disk *now,
                       unsigned ret_map[VOTE_REPLICAS_MAX], GError **error)
{
    const undo_disk *then = &r->header.about;
    if (then->n != now->n) {
        set_other(error, r, "is of a disk of %u replicas, this one has %u", then->n,
                  now->n);
        return false;
    }
    for (unsigned i = 0; i < then->n; i++) {
        unsigned k = 0;
        while (k < now->n && strcmp(then->sources[i], now->sources[k]) != 0)
            k++;
        ret_map[i] = k;
        if (k < now->n)
            continue;
        set_other(error, r, "is of another disk, which has a replica '%s' (%s)",
                  then->names[i], then->sources[i]);
        return false;
    }
    if (then->size == now->size)
        return true;
    set_other(error, r,
              "is of a disk of %" G_GUINT64_FORMAT " bytes, this one has "
              "%" G_GUINT64_FORMAT,
              then->size, now->size);
    return false;
}
