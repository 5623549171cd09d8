/*
 * identity.c: see identity.h.
 */
#include "quorum/identity.h"
#include "quorum/journal.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct identity_source {
    int fd, data_fd; /* -1: no data file */
    bool is_qcow2;
};

/* ---- Reading ------------------------------------------------------------------------- */

static int64_t to_ns(struct statx_timestamp time)
{
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int read_file(int fd, identity_kind *ret_kind, identity_file *ret_file)
{
    struct statx st;
    unsigned mask = STATX_BASIC_STATS | STATX_BTIME;
    if (statx(fd, "", AT_EMPTY_PATH, mask, &st) < 0)
        return -errno;
    *ret_file = (identity_file){0};
    bool is_device;
    int error = file_get_size(fd, &ret_file->size, &is_device);
    if (error)
        return error;
    *ret_kind = is_device ? IDENTITY_DEVICE : IDENTITY_FILE;
    if (is_device) {
        ret_file->dev = makedev(st.stx_rdev_major, st.stx_rdev_minor);
        return 0;
    }
    ret_file->dev = makedev(st.stx_dev_major, st.stx_dev_minor);
    ret_file->ino = st.stx_ino;
    ret_file->birth_ns = st.stx_mask & STATX_BTIME ? to_ns(st.stx_btime) : 0;
    ret_file->mtime_ns = to_ns(st.stx_mtime);
    ret_file->ctime_ns = to_ns(st.stx_ctime);
    return 0;
}

static int open_file(const char *path, const char *what, GError **error)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s: %s", path, what,
                    g_strerror(errno));
    return fd;
}

static bool check_same(int fd, const chain_layer *top, GError **error)
{
    identity_kind kind;
    identity_file file;
    int failed = read_file(fd, &kind, &file);
    if (failed)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s", top->filename,
                    g_strerror(-failed));
    else if (file.dev != top->dev || file.ino != top->ino)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED,
                    "%s: was replaced by another file while it was being opened",
                    top->filename);
    else
        return true;
    return false;
}

identity_source *identity_source_open(const chain *c, GError **error)
{
    const chain_layer *top = chain_get_layer(c, 0);
    identity_source *source = g_new(identity_source, 1);
    source->data_fd = -1;
    source->is_qcow2 = strcmp(top->format, "qcow2") == 0;
    source->fd = open_file(top->filename, "identity", error);
    if (source->fd < 0 || !check_same(source->fd, top, error))
        goto fail;
    if (!top->data_file)
        return source;
    source->data_fd = open_file(top->data_file, "identity of the data file", error);
    if (source->data_fd >= 0)
        return source;
fail:
    identity_source_close(source);
    return NULL;
}

void identity_source_close(identity_source *source)
{
    if (!source)
        return;
    if (source->fd >= 0)
        close(source->fd);
    if (source->data_fd >= 0)
        close(source->data_fd);
    g_free(source);
}

static int read_header(const identity_source *source, identity *ret_identity)
{
    uint8_t header[IDENTITY_HEADER];
    size_t length = (size_t)MIN(ret_identity->top.size, sizeof header);
    int error = file_read_exact(source->fd, header, length, 0);
    if (error)
        return error;
    identity_digest_header(header, length, ret_identity->header);
    qcow2_mark_find(header, length, &ret_identity->mark, NULL);
    ret_identity->has_header = true;
    return 0;
}

int identity_read(const identity_source *source, bool settle, identity *ret_identity)
{
    *ret_identity = (identity){0};
    if (settle &&
        (fsync(source->fd) < 0 || (source->data_fd >= 0 && fsync(source->data_fd) < 0)))
        return -errno;
    identity_kind data_kind;
    identity found = {.has_data = source->data_fd >= 0};
    int error = read_file(source->fd, &found.kind, &found.top);
    if (!error && found.has_data)
        error = read_file(source->data_fd, &data_kind, &found.data);
    if (!error && source->is_qcow2)
        error = read_header(source, &found);
    if (!error)
        *ret_identity = found;
    return error;
}

/* A FIFO or a tape is not even opened. */
void identity_look(const char *path, bool is_qcow2, identity *ret_identity)
{
    struct stat st;
    *ret_identity = (identity){0};
    if (stat(path, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
        return;
    identity_source source = {
        .fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC),
        .data_fd = -1,
        .is_qcow2 = is_qcow2,
    };
    if (source.fd < 0)
        return;
    if (identity_read(&source, false, ret_identity) < 0)
        *ret_identity = (identity){0};
    close(source.fd);
}

void identity_set_remote(identity *ret_identity, uint64_t size)
{
    *ret_identity = (identity){.kind = IDENTITY_REMOTE, .top.size = size};
}

/* ---- Pure ---------------------------------------------------------------------------- */

/* Places in a qcow2 header. The bits of a big-endian number that opening changes are in the
 * last byte of the incompatible features. */
enum {
    AT_VERSION = 7,
    AT_CLUSTER_BITS = 23,
    AT_INCOMPATIBLE = 79,
    AT_AUTOCLEAR = 88,
    FEATURES_END = 96,
    OPENING_CHANGES = 3, /* dirty, corrupt */
};

void identity_digest_header(const uint8_t *header, size_t length, uint8_t ret_digest[32])
{
    uint8_t kept[IDENTITY_HEADER];
    length = MIN(length, sizeof kept);
    if (length > AT_CLUSTER_BITS && header[AT_CLUSTER_BITS] < 12)
        length = MIN(length, (size_t)1 << header[AT_CLUSTER_BITS]);
    memcpy(kept, header, length);
    if (length >= FEATURES_END && kept[AT_VERSION] >= 3) {
        kept[AT_INCOMPATIBLE] &= (uint8_t)~OPENING_CHANGES;
        memset(kept + AT_AUTOCLEAR, 0, FEATURES_END - AT_AUTOCLEAR);
    }
    journal_digest(kept, length, ret_digest);
}

static bool is_same_file(const identity_file *a, const identity_file *b)
{
    if (a->ino != b->ino)
        return false;
    bool born = a->birth_ns != 0 && b->birth_ns != 0;
    return born ? a->birth_ns == b->birth_ns : a->dev == b->dev;
}

static bool has_same_content(const identity_file *a, const identity_file *b)
{
    return a->size == b->size && a->mtime_ns == b->mtime_ns;
}

static bool has_same_header(const identity *a, const identity *b)
{
    return a->has_header == b->has_header &&
           (!a->has_header || memcmp(a->header, b->header, sizeof a->header) == 0);
}

bool identity_same_content(const identity *recorded, const identity *now)
{
    const identity *a = recorded, *b = now;
    return a->kind == b->kind && a->has_data == b->has_data &&
           has_same_content(&a->top, &b->top) && has_same_header(a, b) &&
           (!a->has_data || has_same_content(&a->data, &b->data));
}

bool identity_same_file(const identity *recorded, const identity *now)
{
    return recorded->kind == IDENTITY_FILE && now->kind == IDENTITY_FILE &&
           is_same_file(&recorded->top, &now->top);
}

identity_verdict identity_compare(const identity *recorded, const identity *now,
                                  bool clean)
{
    const identity *a = recorded, *b = now;
    if (a->kind == IDENTITY_NONE || a->kind != b->kind || a->has_data != b->has_data)
        return IDENTITY_OTHER;
    if (!is_same_file(&a->top, &b->top) ||
        (a->has_data && !is_same_file(&a->data, &b->data)))
        return IDENTITY_OTHER;
    if (!clean)
        return IDENTITY_SAME;
    if (!identity_same_content(a, b))
        return IDENTITY_CHANGED;
    bool touched = a->top.ctime_ns != b->top.ctime_ns ||
                   (a->has_data && a->data.ctime_ns != b->data.ctime_ns);
    return touched ? IDENTITY_TOUCHED : IDENTITY_SAME;
}

const char *identity_verdict_name(identity_verdict verdict)
{
    static const char *const names[] = {
        [IDENTITY_SAME] = "unchanged",
        [IDENTITY_TOUCHED] = "touched",
        [IDENTITY_CHANGED] = "changed",
        [IDENTITY_OTHER] = "another file",
    };
    return names[verdict];
}
