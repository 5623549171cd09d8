/*
 * journal.h: the divergence journal (R4): JSON lines, one per event, nothing dropped.
 *
 * A range that keeps losing in the same way is one record with a count: the count's field
 * is padded with blanks and rewritten in place, everything else is only ever appended.
 * The record goes into the file (one write each) before journal_append returns, so a
 * killed daemon loses nothing; journal_sync makes it survive a power cut. A torn last
 * line is cut off at open. Rotation by size: NAME.jsonl becomes NAME.jsonl.1 (replacing
 * what was there). Only records of this session and of the present file are counted up,
 * and only the last 262,144 of those: a repeat of another one is a new record. A file that
 * somebody empties or deletes begins anew.
 *
 * Threads: all functions may be called from any thread; one lock inside.
 */
#ifndef QUORUM_JOURNAL_H
#define QUORUM_JOURNAL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define JOURNAL_DIGEST_SIZE 32

typedef enum journal_event {
    JOURNAL_DIVERGENCE,
    JOURNAL_QUORUM_FAILURE,
    JOURNAL_REPLICA_ERROR,
    JOURNAL_REPLICA_STATE,
    JOURNAL_RECONCILE,
    JOURNAL_REPAIR,
    JOURNAL_JOB,
} journal_event;

typedef struct journal_loser {
    const char *replica;
    bool has_sha256; /* false: the replica failed, see error */
    uint8_t sha256[JOURNAL_DIGEST_SIZE];
    int error; /* 0 or a positive errno; written as its number, e.g. "errno": 5 */
} journal_loser;

/* Everything is borrowed for the call. Members that are NULL, 0 or empty where that says
 * nothing are left out of the line; offset, length and count are always there. */
typedef struct journal_record {
    journal_event event;
    const char *disk;
    const char
        *op; /* "read", "write", "flush", "write-zeroes", "discard", "resize" ... */
    uint64_t offset, length; /* bytes, exactly the range that differs */
    const char *const *winner_replicas;
    unsigned n_winner_replicas; /* 0: no winner */
    uint8_t winner_sha256[JOURNAL_DIGEST_SIZE];
    bool winner_has_sha256;
    const journal_loser *losers;
    unsigned n_losers;
    int error;          /* positive errno of the event, 0: none */
    const char *action; /* "served", "refused", "logged", "in-sync -> failed" ... */
} journal_record;

typedef struct journal journal;

/* Opens or makes the file (0600; the directory must exist) and locks it: it is an error
 * if another process or another journal still has it open. `max_size`: bytes at which it
 * is rotated, 0: 64 MiB. `now` gives the time of a record in nanoseconds since 1970, NULL:
 * the clock (tests pass their own). */
typedef uint64_t (*journal_clock)(void);
journal *journal_open(const char *path, uint64_t max_size, journal_clock now,
                      GError **error);
/* Syncs and closes. NULL is allowed. */
void journal_close(journal *j);

/* 0 or -errno. A failure (a full disk) is remembered: journal_lost counts the records that
 * could not be written, and the next record that can be written is preceded by one that
 * says so (event "records-lost", with their number as count and the last errno), so that a
 * gap is never silent. */
int journal_append(journal *j, const journal_record *record);
uint64_t journal_lost(journal *j);
int journal_sync(journal *j);
int journal_reopen(journal *j); /* SIGHUP: the file was moved away */

/* The whole of the present file's text, a consistent snapshot; g_free it. */
char *journal_snapshot(journal *j, gsize *ret_length, GError **error);

/* Called for each record, also one that repeats another and has its count then, and one that
 * could not be written: with its line (no newline), under no lock, in order per thread. Set
 * once, before the journal is used by more than one thread. */
typedef void (*journal_listener)(void *opaque, const char *line);
void journal_set_listener(journal *j, journal_listener listener, void *opaque);

/* Name as in the journal: "divergence", "quorum-failure" ... */
const char *journal_event_name(journal_event event);
/* SHA-256 by OpenSSL. */
void journal_digest(const void *data, size_t length,
                    uint8_t ret_digest[JOURNAL_DIGEST_SIZE]);

#endif
