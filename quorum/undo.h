/*
 * undo.h: what a repair overwrites, saved before it is overwritten, so that it can be put
 * back: one file for each disk and repair.
 *
 * A record is on stable storage before the bytes that it holds are touched, so a crash at any
 * moment leaves a file that has all that was overwritten; what was added after the last sync may
 * be missing then, and nothing else. A file in which something is wrong before that, or anywhere
 * if the repair came to its end, was damaged, and is refused as a whole.
 *
 * Units: bytes. 0 or -errno; GError (UNDO_ERROR) at open. Threads: one at a time.
 */
#ifndef QUORUM_UNDO_H
#define QUORUM_UNDO_H

#include "quorum/journal.h"
#include "quorum/vote.h"

#define UNDO_ERROR (undo_error_quark())
typedef enum undo_error {
    UNDO_ERROR_IO,    /* the message ends in strerror */
    UNDO_ERROR_BAD,   /* no undo file, or damaged, or of a newer quorumfs */
    UNDO_ERROR_OTHER, /* of another disk, or of this one with another size */
} undo_error;
GQuark undo_error_quark(void);

/* The most that one record holds. */
#define UNDO_LENGTH_MAX (2u << 20)

/* Which disk it is about. Strings are borrowed. */
typedef struct undo_disk {
    uint64_t size;
    unsigned n;
    const char *names[VOTE_REPLICAS_MAX];
    const char *sources[VOTE_REPLICAS_MAX]; /* real paths: they tell replicas apart */
} undo_disk;

/* Bytes of a replica as they were. */
typedef struct undo_record {
    unsigned replica; /* in the file's order */
    bool stale;       /* by the record of the disk it had missed something there */
    bool unreadable;  /* the old bytes could not be read: there are none */
    uint64_t offset;
    size_t length;
    uint8_t old_sha256[JOURNAL_DIGEST_SIZE]; /* not if unreadable */
    uint8_t new_sha256[JOURNAL_DIGEST_SIZE]; /* of what they were overwritten with */
    uint64_t at, synced;                     /* the module's, as is the next */
    bool end;                                /* no record, but the end of all */
} undo_record;

/* ---- Saving -------------------------------------------------------------------------- */

typedef struct undo_writer undo_writer;

/* Makes the file (0600), which must not exist, with room for records of about `expected`
 * bytes, so that a full file system is met before anything is overwritten. Durable, but for the
 * directory's own entry. */
undo_writer *undo_writer_new(const char *path, const undo_disk *about, uint64_t expected,
                             GError **error);
/* `old` NULL: unreadable. `new` is what will be written, but not before undo_writer_sync. */
int undo_writer_add(undo_writer *writer, unsigned replica, uint64_t offset,
                    const void *old, const void *new, size_t length, bool stale);
/* All that was added is durable. After one that failed, all that follows fails too. */
int undo_writer_sync(undo_writer *writer);
/* How many records were added. */
uint64_t undo_writer_count(const undo_writer *writer);
/* What `length` bytes of one replica take in the file, at most, added in one run. */
uint64_t undo_space(uint64_t length);
/* The end: gives back room that was not needed, and frees. NULL is allowed. */
void undo_writer_free(undo_writer *writer);

/* ---- Putting back -------------------------------------------------------------------- */

typedef struct undo_reader undo_reader;

/* Reads and checks all of it. */
undo_reader *undo_reader_open(const char *path, GError **error);
void undo_reader_free(undo_reader *reader); /* NULL is allowed */
const undo_disk *undo_reader_about(const undo_reader *reader);
size_t undo_reader_count(const undo_reader *reader);
/* Record `index`, in the order in which they were added. -EIO: it has changed since. */
int undo_reader_get(const undo_reader *reader, size_t index, undo_record *ret_record);
/* The old bytes, record->length of them. -EIO: they have changed since. */
int undo_reader_old(const undo_reader *reader, const undo_record *record, void *buf);
/* Whether it is about this disk: the same size and, in any order, the same replicas.
 * ret_map[i] is the place that the file's replica i has now. */
bool undo_reader_match(const undo_reader *reader, const undo_disk *now,
                       unsigned ret_map[VOTE_REPLICAS_MAX], GError **error);

#endif
