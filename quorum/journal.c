/*
 * journal.c: the journal's file.
 *
 * The file holds whole lines up to `end`, and nothing is ever written elsewhere but counts
 * into lines that stand. A line is one pwrite at `end`; only when all of it is in the file
 * does `end` move, and a failed one is cut off again (`torn` remembers that even that
 * failed, and nothing is written before it is done). So whatever kills the daemon leaves
 * at most one torn line, at the end, which the next open cuts off.
 *
 * The table knows the records of the present file since it was opened, by identity: 128
 * bits of the SHA-256 of the line without time and count. It is bounded; when it is full
 * the oldest record is forgotten, and if that happens again it is a new record. Rotation
 * and reopening forget all of them, because their lines are in another file.
 *
 * The file is locked (flock), because two writers would put their lines over each other.
 * It may be cut short or deleted by others all the same (follow_file).
 */
#include "quorum/journal-format.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_SIZE_DEFAULT (64u << 20)
#define TABLE_MAX        262144u
#define KEY_SIZE         16u
#define EVENT_LOST       "records-lost"
/* How long an earlier owner of the file, on its way out, is waited for. */
#define LOCK_TRIES    20
#define LOCK_PAUSE_US 100000

typedef struct known_record {
    uint8_t key[KEY_SIZE];
    uint64_t count;
    uint64_t count_at; /* in the file */
} known_record;

struct journal {
    GMutex mutex; /* innermost (disk.h); guards everything below */
    char *path;
    uint64_t max_size;
    journal_clock now;
    journal_listener listener; /* set before there are threads */
    void *listener_opaque;
    int fd;
    uint64_t end;
    bool torn;
    GHashTable *table; /* of known_record, owned by `age` */
    GQueue age;        /* of known_record, oldest first */
    uint64_t lost, lost_announced;
    int lost_error; /* of the last one lost */
};

static uint64_t clock_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static guint known_hash(gconstpointer record)
{
    guint hash;
    memcpy(&hash, ((const known_record *)record)->key, sizeof hash);
    return hash;
}

static gboolean known_equal(gconstpointer a, gconstpointer b)
{
    return memcmp(((const known_record *)a)->key, ((const known_record *)b)->key,
                  KEY_SIZE) == 0;
}

/* ---- The file ---------------------------------------------------------------------- */

/* Where the last whole line of the file ends: after its newline. A line with a NUL in it
 * is what some file systems leave of one that was being written when the power went. */
static int find_end(int fd, uint64_t size, uint64_t *ret_end)
{
    char part[4096];
    bool found = false;
    uint64_t end = 0;
    while (size > 0) {
        size_t length = MIN(size, sizeof part);
        uint64_t start = size - length;
        ssize_t got = pread(fd, part, length, (off_t)start);
        if (got != (ssize_t)length)
            return got < 0 ? -errno : -EIO;
        for (size_t i = length; i-- > 0;) {
            if (part[i] == '\n' && found) {
                *ret_end = end;
                return 0;
            }
            if (part[i] == '\n') {
                found = true;
                end = start + i + 1;
            } else if (part[i] == '\0') {
                found = false;
            }
        }
        size = start;
    }
    *ret_end = found ? end : 0;
    return 0;
}

static int lock_file(int fd)
{
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        if (errno != EWOULDBLOCK)
            return 0; /* a file system without locks */
        if (i == LOCK_TRIES)
            return -EWOULDBLOCK;
        g_usleep(LOCK_PAUSE_US);
    }
    return 0;
}

static void sync_directory(const char *path)
{
    g_autofree char *dir = g_path_get_dirname(path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

/* Opens or makes the file and cuts off what is torn. Returns the descriptor or -errno. */
static int open_file(const char *path, uint64_t *ret_end)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
    if (fd < 0)
        return -errno;
    struct stat st;
    int result = fstat(fd, &st) < 0 ? -errno : 0;
    if (result == 0 && !S_ISREG(st.st_mode))
        result = -EINVAL;
    if (result == 0)
        result = lock_file(fd);
    /* Only now: an earlier owner may have written until it let go of the lock. */
    if (result == 0 && fstat(fd, &st) < 0)
        result = -errno;
    if (result == 0)
        result = find_end(fd, (uint64_t)st.st_size, ret_end);
    if (result == 0 && *ret_end < (uint64_t)st.st_size &&
        ftruncate(fd, (off_t)*ret_end) < 0)
        result = -errno;
    if (result < 0) {
        close(fd);
        return result;
    }
    if (st.st_size == 0)
        sync_directory(path);
    return fd;
}

static int write_all(int fd, const char *data, size_t length, uint64_t offset)
{
    while (length > 0) {
        ssize_t done = pwrite(fd, data, length, (off_t)offset);
        if (done < 0 && errno != EINTR)
            return -errno;
        if (done == 0)
            return -ENOSPC;
        if (done > 0) {
            data += done;
            length -= (size_t)done;
            offset += (uint64_t)done;
        }
    }
    return 0;
}

static void forget_records(journal *j)
{
    g_hash_table_remove_all(j->table);
    g_queue_clear_full(&j->age, g_free);
}

/* Takes over a file at the journal's path; the records known so far are elsewhere. */
static void switch_file(journal *j, int fd, uint64_t end)
{
    fdatasync(j->fd);
    close(j->fd);
    j->fd = fd;
    j->end = end;
    j->torn = false;
    forget_records(j);
}

/* People empty logs and delete them. Then lines would follow a hole, counts would go into
 * the middle of other lines, or all of it into a file that nobody can see. */
static void follow_file(journal *j)
{
    struct stat st;
    uint64_t end;
    if (fstat(j->fd, &st) < 0)
        return;
    if (st.st_nlink == 0) {
        int fd = open_file(j->path, &end);
        if (fd >= 0)
            switch_file(j, fd, end);
    } else if ((uint64_t)st.st_size < j->end &&
               find_end(j->fd, (uint64_t)st.st_size, &end) == 0) {
        j->end = end;
        j->torn = end < (uint64_t)st.st_size;
        forget_records(j);
    }
}

/* The new file is made before the old one is moved, so that a failure changes nothing and
 * the old one, then too large, goes on. */
static void rotate(journal *j)
{
    g_autofree char *fresh = g_strconcat(j->path, ".new", NULL);
    g_autofree char *old = g_strconcat(j->path, ".1", NULL);
    unlink(fresh);
    uint64_t end;
    int fd = open_file(fresh, &end);
    if (fd < 0)
        return;
    if (rename(j->path, old) < 0) {
        unlink(fresh);
        close(fd);
        return;
    }
    if (rename(fresh, j->path) < 0) {
        (void)!rename(old, j->path);
        unlink(fresh);
        close(fd);
        return;
    }
    switch_file(j, fd, end);
    sync_directory(j->path);
}

/* ---- Appending --------------------------------------------------------------------- */

/* Appends a line with one write, all or nothing. */
static int append_text(journal *j, const char *text, size_t length)
{
    if (j->end > 0 && j->end + length > j->max_size)
        rotate(j);
    if (j->torn && ftruncate(j->fd, (off_t)j->end) < 0)
        return -errno;
    j->torn = false;
    int result = write_all(j->fd, text, length, j->end);
    if (result < 0) {
        j->torn = ftruncate(j->fd, (off_t)j->end) < 0;
        return result;
    }
    j->end += length;
    return 0;
}

static void stamp(journal *j, journal_line *line)
{
    journal_format_time(j->now(), line->text->str + line->time_at);
}

/* The line that tells of a gap; text is NULL if there is none. */
static void gap_line(journal *j, const char *disk, journal_line *ret_gap)
{
    ret_gap->text = NULL;
    if (j->lost == j->lost_announced)
        return;
    journal_record record = {.disk = disk, .op = "append", .error = j->lost_error};
    journal_line_init(ret_gap, &record, EVENT_LOST);
    journal_format_count(j->lost - j->lost_announced,
                         ret_gap->text->str + ret_gap->count_at);
}

static void remember(journal *j, const uint8_t *key, uint64_t count_at)
{
    known_record *record = g_new(known_record, 1);
    memcpy(record->key, key, KEY_SIZE);
    record->count = 1;
    record->count_at = count_at;
    if (g_queue_get_length(&j->age) == TABLE_MAX) {
        known_record *oldest = g_queue_pop_head(&j->age);
        g_hash_table_remove(j->table, oldest);
        g_free(oldest);
    }
    g_queue_push_tail(&j->age, record);
    g_hash_table_add(j->table, record);
}

static int append_new(journal *j, const uint8_t *key, journal_line *line)
{
    stamp(j, line);
    int result = append_text(j, line->text->str, line->text->len);
    if (result == 0)
        remember(j, key, j->end - line->text->len + line->count_at);
    return result;
}

static int append_gap(journal *j, journal_line *gap)
{
    stamp(j, gap);
    int result = append_text(j, gap->text->str, gap->text->len);
    if (result == 0)
        j->lost_announced = j->lost;
    return result;
}

/* The same again: its count grows in place, which needs no room on the disk. */
static int count_again(journal *j, known_record *record)
{
    char text[JOURNAL_COUNT_WIDTH];
    journal_format_count(record->count + 1, text);
    int result = write_all(j->fd, text, sizeof text, record->count_at);
    record->count += result == 0;
    return result;
}

static known_record *find_known(journal *j, const uint8_t *key)
{
    known_record wanted;
    memcpy(wanted.key, key, KEY_SIZE);
    return g_hash_table_lookup(j->table, &wanted);
}

static void tell(journal *j, journal_line *line)
{
    if (!j->listener)
        return;
    g_string_truncate(line->text, line->text->len - 1);
    j->listener(j->listener_opaque, line->text->str);
}

int journal_append(journal *j, const journal_record *record)
{
    journal_line line, gap;
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    journal_line_init(&line, record, NULL);
    journal_digest(line.text->str + line.body_start, line.body_length, digest);

    g_mutex_lock(&j->mutex);
    follow_file(j);
    gap_line(j, record->disk, &gap);
    int gap_result = gap.text ? append_gap(j, &gap) : 0;
    known_record *known = find_known(j, digest);
    int result = known ? count_again(j, known) : gap_result;
    if (!known && result == 0)
        result = append_new(j, digest, &line);
    if (known && j->listener) {
        stamp(j, &line);
        journal_format_count(known->count, line.text->str + line.count_at);
    }
    if (result < 0) {
        j->lost++;
        j->lost_error = -result;
    }
    g_mutex_unlock(&j->mutex);

    if (gap.text) {
        if (gap_result == 0)
            tell(j, &gap);
        journal_line_clear(&gap);
    }
    tell(j, &line);
    journal_line_clear(&line);
    return result;
}

/* ---- The rest of the interface ----------------------------------------------------- */

journal *journal_open(const char *path, uint64_t max_size, journal_clock now,
                      GError **error)
{
    uint64_t end;
    int fd = open_file(path, &end);
    if (fd < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-fd), "%s: %s", path,
                    fd == -EWOULDBLOCK ? "in use by another quorumfs (umount it, or "
                                         "name another state-dir)"
                    : fd == -EINVAL    ? "not a regular file"
                                       : g_strerror(-fd));
        return NULL;
    }
    journal *j = g_new0(journal, 1);
    g_mutex_init(&j->mutex);
    j->path = g_strdup(path);
    j->max_size = max_size ? max_size : MAX_SIZE_DEFAULT;
    j->now = now ? now : clock_now;
    j->fd = fd;
    j->end = end;
    j->table = g_hash_table_new(known_hash, known_equal);
    g_queue_init(&j->age);
    return j;
}

void journal_close(journal *j)
{
    if (!j)
        return;
    journal_line gap;
    gap_line(j, NULL, &gap);
    if (gap.text) {
        (void)append_gap(j, &gap);
        journal_line_clear(&gap);
    }
    fdatasync(j->fd);
    close(j->fd);
    g_hash_table_destroy(j->table);
    g_queue_clear_full(&j->age, g_free);
    g_mutex_clear(&j->mutex);
    g_free(j->path);
    g_free(j);
}

void journal_set_listener(journal *j, journal_listener listener, void *opaque)
{
    j->listener = listener;
    j->listener_opaque = opaque;
}

uint64_t journal_lost(journal *j)
{
    g_mutex_lock(&j->mutex);
    uint64_t lost = j->lost;
    g_mutex_unlock(&j->mutex);
    return lost;
}

/* Through a descriptor of its own, so that nobody who appends waits for the disk. What is
 * in an earlier file was synced when that was left. */
int journal_sync(journal *j)
{
    g_mutex_lock(&j->mutex);
    int fd = fcntl(j->fd, F_DUPFD_CLOEXEC, 0);
    g_mutex_unlock(&j->mutex);
    if (fd < 0)
        return -errno;
    int result = fdatasync(fd) < 0 ? -errno : 0;
    close(fd);
    return result;
}

static bool is_same_file(const char *path, int fd)
{
    struct stat a, b;
    return stat(path, &a) == 0 && fstat(fd, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

int journal_reopen(journal *j)
{
    int result = 0;
    g_mutex_lock(&j->mutex);
    if (!is_same_file(j->path, j->fd)) {
        uint64_t end;
        int fd = open_file(j->path, &end);
        if (fd >= 0)
            switch_file(j, fd, end);
        else
            result = fd;
    }
    g_mutex_unlock(&j->mutex);
    return result;
}

char *journal_snapshot(journal *j, gsize *ret_length, GError **error)
{
    g_mutex_lock(&j->mutex);
    follow_file(j);
    uint64_t length = j->end;
    char *text = g_try_malloc(length + 1);
    int result = text ? 0 : -ENOMEM;
    for (uint64_t at = 0; result == 0 && at < length;) {
        ssize_t got = pread(j->fd, text + at, length - at, (off_t)at);
        if (got > 0)
            at += (uint64_t)got;
        else if (got == 0 || errno != EINTR)
            result = got == 0 ? -EIO : -errno;
    }
    g_mutex_unlock(&j->mutex);
    if (result < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(-result), "%s: %s",
                    j->path, g_strerror(-result));
        g_free(text);
        return NULL;
    }
    text[length] = '\0';
    *ret_length = length;
    return text;
}
