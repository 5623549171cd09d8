/*
 * disk-internal.h: what the files of the disk share. Private to disk*.c and replica.c.
 *
 *   disk-open.c     options, opening
 *   disk-close.c    closing
 *   disk.c          questions: names, status, counters, bad ranges, map
 *   disk-read.c     this thread's buffers, the fan-out, the agreeing read
 *   disk-recover.c  re-reading what one replica could not read, in smaller pieces
 *   disk-pattern.c  reads that ask some replicas first, or only one
 *   disk-judge.c    the vote where replicas differ or failed, and its journal records
 *   disk-write.c    write, write-zeroes, discard
 *   disk-flush.c    flush
 *   disk-resize.c   resize
 *   disk-change.c   who took a change, who is out because of it
 *   disk-behind.c   what who is out may have lost, on record
 *   disk-explain.c  who holds what
 *   disk-state.c    what is remembered, tied to the replicas
 *   disk-mark.c     the session's marks in the images
 *   disk-admit.c    whether enough replicas are in sync to be opened
 *   disk-reconcile.c  regions that a crash left different
 *   resync.c        a stale replica catches up
 *   repair.c        replicas that differ are given what the majority holds
 *   repair-noted.c  what reads found differing, repaired soon after
 *   offline.c       the same for a disk that nobody uses meanwhile
 *   disk-worker.c   the thread that does so
 *   scrub.c         all of the disk is looked at, on a thread of its own
 *   rejoin.c        a replica that was out is opened anew and comes back
 *   disk-members.c  replicas are taken out and put in
 *   replica.c       states of a replica
 *
 * Who votes on a range is found out after its range lock was taken (disk_voters), so a
 * replica that missed a write to a range is never asked for that range afterwards: the writer
 * notes it before it lets go of the range.
 *
 * A replica's chain is there as long as it votes or takes changes anywhere; it is exchanged
 * only under an exclusive lock of the whole disk. Who looks at one without a range lock
 * holds attach_lock, which is never held for longer than a look, and asks no replica that is out.
 */
#ifndef QUORUM_DISK_INTERNAL_H
#define QUORUM_DISK_INTERNAL_H

#include "quorum/disk.h"
#include "quorum/rangelock.h"
#include "quorum/rangeset.h"
#include "quorum/repair.h"
#include "quorum/scrub.h"
#include "quorum/state.h"
#include <stdatomic.h>

typedef enum replica_event {
    REPLICA_EVENT_CHANGE_FAILED, /* a write, write-zeroes or discard */
    REPLICA_EVENT_OUTVOTED,      /* differs after a change that failed as a whole (W3) */
    REPLICA_EVENT_LOST,          /* its size is not the disk's */
    REPLICA_EVENT_FLUSH_FAILED,
    REPLICA_EVENT_GONE, /* no answer in time, or no connection (R5) */
    REPLICA_EVENT_RESYNC_BEGINS,
    REPLICA_EVENT_CAUGHT_UP, /* it has missed nothing any more */
    REPLICA_EVENT_RESYNC_STOPS,
    REPLICA_EVENT_RETURNED, /* opened anew; what it missed is noted */
    REPLICA_EVENT_REMOVED,  /* by the operator */
    REPLICA_EVENT_ADDED,    /* by the operator: to be opened, and filled as a whole */
    REPLICA_EVENTS
} replica_event;

typedef struct disk_worker disk_worker;
typedef struct rejoin rejoin;

typedef struct disk_replica {
    char *name;
    const char *source;       /* interned; under attach_lock */
    replica_options *options; /* to open it anew */
    unsigned timeout_ms;      /* how long a request waits for it (R5) */
    chain *chain;             /* NULL: it could not be opened, or was removed */
    const char *file, *format,
        *decoder; /* of the top layer, interned; under attach_lock */
    atomic_uint_fast64_t read_errors, write_errors, latency_ns;
    atomic_uint_fast64_t pace_ns; /* pattern_pace */
    /* Under state_lock: */
    replica_state state;
    rangeset differing; /* where it was outvoted, or nobody won */
    rangeset missed;    /* changes that it did not take: no vote there */
    rangeset copied;    /* was missed, and is not flushed since it was copied */
    uint64_t divergent_bytes;
    bool suspect; /* a flush failed since it was opened: what it took may be lost */
    bool behind_recorded; /* is out, and what it may have lost until now is on record */
    rejoin *rejoin;       /* under rejoin_lock; NULL: it never was out */
    identity_source
        *identity; /* at open and close, and its rejoin's; NULL: nothing is remembered */
    /* The worker's: */
    _Atomic gint64 resync_after_us; /* not before that, on the monotonic clock */
    uint64_t resync_from;           /* where the regions begin that are to be looked at */
    int resync_left_out;            /* why something before that was not copied */
} disk_replica;

/* disk-flush.c: one flush at a time. */
typedef struct disk_flusher disk_flusher;
typedef struct disk_turns {
    GMutex lock; /* before state_lock; guards the rest */
    GCond gathered;
    bool taken;            /* a flush is under way, or about to begin */
    disk_flusher *waiting; /* those that the next one is for */
    unsigned n_waiting, expected;
    gint64 took_us; /* the last one */
} disk_turns;

struct disk {
    char *name;
    char *file;
    unsigned n;
    unsigned threshold;
    bool read_only_wanted;
    bool writable;
    disk_pattern read_pattern;
    bool blkverify;
    char *read_only_reason;
    char *degraded_reason;
    bool on_divergence_repair; /* the disk is writable, and its threshold a majority */
    path_policy *policy;
    journal *journal; /* borrowed; may be NULL */
    disk_replica *replicas;
    rangelock *range_lock;

    atomic_uint_fast64_t size;
    uint64_t other_size; /* while it is opened: a smaller one that some replicas have */
    /* Written by replica_transition only: */
    atomic_uint_fast64_t in_sync, partly, removed;
    atomic_uint_fast64_t reads, read_bytes, writes, write_bytes, flushes;
    atomic_uint_fast64_t divergences, quorum_failures;
    atomic_int_fast64_t
        probed_us; /* when a rotating read last tried those that are slow */

    GMutex state_lock;
    rangeset differing, no_quorum; /* under state_lock */
    rangeset to_repair;            /* likewise: noted by reads */
    uint64_t unrecorded; /* under state_lock: who is out, and the journal is not synced */
    GCond recorded;      /* unrecorded has lost a bit */

    disk_turns flush_turns;

    GMutex
        record_lock;  /* before state_lock: what is recorded of a replica is the newest */
    state *store;     /* NULL: nothing is remembered */
    bool session;     /* the store is written to: the disk is */
    GMutex mark_lock; /* before record_lock, and held while images are marked */
    atomic_bool marked; /* the session's marks are in the images */
    bool offline;       /* disk_options.offline */
    repair_saver saver; /* none: all NULL */
    disk_worker *worker;
    atomic_int resync_error; /* of the last copy that failed: -errno */
    uint64_t resync_peak;    /* under state_lock: see disk_get_resync_status */
    scrub *scrub;

    bool outage; /* under state_lock: too few were left, and nobody has come back since */
    _Atomic gint64
        decide_after_us; /* until then what has no quorum waits for who is out */

    GRWLock attach_lock; /* innermost */
    GMutex rejoin_lock;  /* before state_lock */
    GCond rejoin_wake;
    bool closing, left; /* under rejoin_lock; left: to the end of the process */
};

#define DISK_COUNT(counter, by)                                                          \
    atomic_fetch_add_explicit(&(counter), (by), memory_order_relaxed)

/* Of guests: whether some came since somebody looked last. */
static inline uint64_t disk_requests(disk *d)
{
    return atomic_load(&d->reads) + atomic_load(&d->writes);
}

static inline uint64_t disk_all_replicas(const disk *d)
{
    return d->n == 64 ? UINT64_MAX : (UINT64_C(1) << d->n) - 1;
}

/* All that were not removed. */
static inline uint64_t disk_members(disk *d)
{
    return disk_all_replicas(d) & ~atomic_load(&d->removed);
}

static inline bool disk_has_bit(uint64_t set, unsigned i)
{
    return set >> i & 1;
}

static inline unsigned disk_set_size(uint64_t set)
{
    return (unsigned)__builtin_popcountll(set);
}

/* replica.c */

replica_state replica_state_after(replica_state from, replica_event event);
/* The only place where a state changes; state_lock is held. Returns whether it changed. */
bool replica_transition(disk *d, unsigned i, replica_event event);

/* As disk_voter_run; state_lock is held. */
uint64_t disk_voter_run_locked(const disk *d, uint64_t offset, uint64_t end,
                               uint64_t *ret_end);
/* Who takes changes and flushes: in sync or stale anywhere. */
uint64_t disk_takers(disk *d);
/* Whether each byte of the range has at least `threshold` of the set that vote there.
 * state_lock is held. */
bool disk_quorum_everywhere(const disk *d, uint64_t set, uint64_t offset, uint64_t end);

/* disk-read.c: memory of one thread, freed with it. */

/* One replica's buffer holds a request and the rest of its first and last sector. */
#define DISK_BUFFER_SIZE (DISK_REQUEST_MAX + 4096u)

typedef struct disk_thread {
    io_list list;
    uint8_t *buffers[VOTE_REPLICAS_MAX];
    unsigned n_buffers;
    uint8_t *voted;  /* where no single replica won everything */
    uint8_t *joined; /* where not everywhere the same replicas vote */
} disk_thread;

disk_thread *disk_thread_get(unsigned n_replicas);
uint8_t *disk_thread_voted(disk_thread *thread);
uint8_t *disk_thread_joined(disk_thread *thread);

/* What the replicas returned for one range, before anybody judged it. */
typedef struct disk_reading {
    uint64_t offset; /* a sector's start */
    size_t length;   /* whole sectors, but for the disk's odd tail */
    uint64_t asked;
    vote_ballot ballots[VOTE_REPLICAS_MAX];
    /* Of a replica that failed, -errno or 0 for each sector (disk_recover); else NULL. */
    int *sector_errors[VOTE_REPLICAS_MAX];
    uint64_t gone; /* those that did not answer: disk_lose_all is due */
} disk_reading;

/* Takes the range lock for all sectors that the range touches. */
void disk_lock_sectors(disk *d, rangelock_held *held, uint64_t offset, uint64_t length,
                       rangelock_mode mode);
/* The same for a request: of a range that is reconciled by then (W6). 0 or -errno: no lock. */
int disk_lock_equal(disk *d, rangelock_held *held, uint64_t offset, uint64_t length,
                    rangelock_mode mode);
/* Keeps resizes away, and nothing else: shared, a byte that lies behind every disk. */
void disk_lock_size(disk *d, rangelock_held *held);
/* Whether the range lies within the disk. Under a range lock, or a resize may pass. */
bool disk_has_range(disk *d, uint64_t offset, uint64_t length);

/* Widens to whole sectors and reads from every replica of `asked`. */
void disk_gather(disk *d, disk_thread *thread, uint64_t asked, uint64_t offset,
                 size_t length, disk_reading *ret_reading);
void disk_reading_clear(disk_reading *reading);

/* How long this thread waits for replica i from now on (R5), and then for ever again: what the disk itself
 * keeps is not to be given up halfway. */
void disk_wait_for(const disk *d, unsigned i);
void disk_wait_for_ever(void);
/* Runs what the replicas have prepared; each op waits as long as its replica (its owner) may take. */
void disk_run_list(const disk *d, io_list *list);

/* disk-recover.c: finds out for each replica that failed which sectors it was, and reads
 * the others. */
void disk_recover(disk *d, disk_reading *reading);

/* disk-judge.c */
typedef struct disk_verdict {
    int result;       /* as vote_verdict's */
    uint64_t winners; /* agree with the winner on all of it */
    GArray *ranges;   /* of vote_range, offsets from the reading's start */
} disk_verdict;

/* Votes by runs of sectors in which the same replicas failed. `out` may be NULL. */
void disk_vote(disk *d, const disk_reading *reading, uint8_t *out,
               disk_verdict *ret_verdict);
void disk_verdict_clear(disk_verdict *verdict);
/* The way of a read that is not unanimous: recovers, votes, journals, counts.
 * *ret_data is the voted data of the whole reading if the result is 0. */
int disk_judge(disk *d, disk_thread *thread, disk_reading *reading,
               const uint8_t **ret_data);
/* The same after disk_recover. */
int disk_judge_recovered(disk *d, disk_thread *thread, disk_reading *reading,
                         const uint8_t **ret_data);
/* The end of the run of sectors with the same failures that starts at `at`. */
size_t disk_failure_run(const disk *d, const disk_reading *reading, size_t at);
/* -errno with which replica i failed at a byte of the reading, 0 if it did not. */
int disk_sector_error(const disk_reading *reading, unsigned i, size_t at);

/* Appends, with the disk's name filled in; nothing without a journal. A journal that
 * cannot write counts what it lost itself. */
void disk_journal(disk *d, journal_record record);

/* One record of a range that was voted on: "divergence", or "quorum-failure" without a winner,
 * where `event` is JOURNAL_DIVERGENCE, else that event. */
void disk_report_range(disk *d, const disk_reading *reading, const vote_range *range,
                       journal_event event, const char *op, const char *action);
/* Counts and notes such a range, which lies at `offset` of the disk. */
void disk_account_range(disk *d, const vote_range *range, uint64_t offset);
/* A "replica-error" for each run of sectors that a replica could not read. */
void disk_report_failures(disk *d, const disk_reading *reading, const char *op,
                          const char *action);
/* A replica's state has changed. */
void disk_journal_state(disk *d, const char *op, unsigned i, int error,
                        replica_state from, replica_state to);

/* disk-read.c: a range on which the same replicas vote everywhere, at most a request. Under
 * its range lock. All of them are asked. *ret_data is this thread's, until its next call. */
int disk_read_run(disk *d, uint64_t voters, uint64_t offset, size_t length,
                  const uint8_t **ret_data);

/* disk-pattern.c: the same for a guest, who is served as the disk's read pattern says. */
int disk_serve_run(disk *d, uint64_t voters, uint64_t offset, size_t length,
                   const uint8_t **ret_data);
/* Whether read_pattern and blkverify go with the other options. */
bool disk_pattern_check(const disk_options *options, GError **error);

/* disk-flush.c: the flush itself, for who already keeps resizes away. May share one with
 * others, which began after this was called. */
int disk_flush_locked(disk *d);

/* disk-resize.c: what a crash cut off is finished, or undone, while the disk is opened. */
bool disk_resize_resume(disk *d, GError **error);

/* disk-state.c */

/* Compares the replicas with what is recorded; without a state directory nothing is. */
bool disk_state_open(disk *d, const disk_options *options, GError **error);
/* disk-admit.c: whether the replicas in sync are enough (disk_open). *ret_whole: a quorum
 * everywhere; if not, the disk is not to be written to. */
bool disk_admit(disk *d, const disk_options *options, bool *ret_whole, GError **error);

/* disk-mark.c */

/* Before the first change of a replica in this session, whoever makes it, under a range lock:
 * puts the session's marks into the images. Fast when that is done. 0 or -errno: do not
 * change anything. */
int disk_mark(disk *d);
/* Replica i is in again, or has caught up. Under a range lock. 0 or -errno of the record. */
int disk_mark_replica(disk *d, unsigned i);
/* All is flushed, and nobody writes any more. False: it is not known what stands in an image,
 * so the session must not count as closed cleanly. */
bool disk_mark_end(disk *d);

/* disk-state.c: before the first write of all. */
bool disk_state_begin(disk *d, GError **error);
/* Durable: the state that replica i has now. 0 or -errno. */
int disk_state_record(disk *d, unsigned i);
/* Durable: the size, and the resize that is under way (from == to: none). */
/* Other replicas; map as in state_reshape. Durable. All of the disk is locked. */
int disk_state_reshape(disk *d, const int *map);
int disk_state_resize(disk *d, uint64_t size, uint64_t from, uint64_t to);
/* Clears intent bits of regions that are equal and flushed. */
void disk_state_tidy(disk *d);
/* Nothing is written any more, and all that was is flushed. */
void disk_state_end(disk *d);
/* The chains are closed. `flushed`: nothing that anybody wrote may be missing. */
void disk_state_close(disk *d, bool flushed);

/* disk-reconcile.c: the region in which `offset` lies. No lock is held. */
int disk_reconcile_region(disk *d, uint64_t offset);
/* The first one at or after `offset`; false: none. */
/* Somebody is out who may come back, and what lacks a quorum is to be decided: not at once. */
void disk_wait_for_all(disk *d);
bool disk_next_unreconciled(disk *d, uint64_t offset, uint64_t *ret_offset);

/* resync.c: copies some of what a replica missed. False: there is nothing to do now. */
bool disk_resync_step(disk *d);

/* repair.c: writes to replica i what of [at, end) of the reading it holds otherwise than
 * `right` (a buffer like the ballots'), or could not read while somebody else could; reads it
 * back and compares. 0 or -errno. This thread's voted buffer is used. */
int disk_write_differing(disk *d, const disk_reading *reading, unsigned i, size_t at,
                         size_t end, const uint8_t *right);
/* Before it: hands what it would overwrite to the saver (repair.h), if there is one; when that
 * is done for all, disk_save_commit. Not 0: nothing of it is to be overwritten. */
int disk_save_differing(disk *d, const disk_reading *reading, unsigned i, size_t at,
                        size_t end, const uint8_t *right);
int disk_save_commit(disk *d);

/* repair-noted.c: what a read found is to be repaired, if that is wanted. `verdict` NULL: there
 * was no vote, and who could not be read is all that was found. */
void disk_note_repairs(disk *d, const disk_reading *reading, const disk_verdict *verdict);
/* Repairs some of it. False: there is nothing to do. */
bool disk_repair_step(disk *d);

/* disk-worker.c: nothing unless there is a session, or reads want repairs. */
void disk_worker_start(disk *d);
/* There is something to do. Any lock may be held. */
void disk_worker_wake(disk *d);
/* What the thread does until there is nothing to do; false: there is nothing now. For tests
 * without the thread, too. */
bool disk_worker_step(disk *d);
void disk_worker_stop(disk *d);
void disk_worker_free(disk *d); /* nobody wakes it any more */

/* rejoin.c */

/* Whether an error means that the replica is out of reach, and not that it refuses. */
bool disk_is_gone(int error);
/* Those are out of reach (R5), and how each of them failed. Journalled; they come back by
 * themselves. Under a range lock (disk_lock_size will do); not under state_lock. */
void disk_lose(disk *d, unsigned i, const char *op, int error);
void disk_lose_all(disk *d, const disk_reading *reading, const char *op);
/* Replica i is hung or failed: it is opened anew as soon and as often as that makes sense,
 * if what it missed can be told. state_lock is not held. */
void disk_rejoin_start(disk *d, unsigned i);
/* The replica, which was removed, is opened by this thread alone, until it is released. False:
 * another one still opens what it was, which hangs. */
bool disk_rejoin_claim(disk *d, unsigned i);
void disk_rejoin_release(disk *d, unsigned i);
/* All that are out are tried at once; and whether that is still to be done. */
void disk_rejoin_hurry(disk *d);
bool disk_rejoin_hurries(disk *d);
/* One try, by whoever alone does this for the replica. It may block as long as the replica hangs. */
typedef enum rejoin_result {
    REJOIN_WAITS, /* something that it was asked is still under way */
    REJOIN_FAILED,
    REJOIN_BACK,
} rejoin_result;
rejoin_result disk_rejoin_try(disk *d, unsigned i, GError **error);
/* No more threads. False: a thread is stuck in a replica that hangs, and the disk must not be freed. */
bool disk_rejoin_stop(disk *d);

/* disk-behind.c */

bool disk_is_out(replica_state now);
/* What may be lost of what replica i took is missed: all that is dirty and not still to be
 * reconciled. Nothing without a session. state_lock is held, and a range lock. Returns whether
 * that is more than was known. */
bool disk_miss_dirty(disk *d, unsigned i);
/* The same of all that are out, durably: a flush succeeded without them. 0 or -errno. */
int disk_record_behind(disk *d);

/* disk-open.c: opens a replica's chain by its options, of which the decoder is known, with O1
 * to O5. */
chain *disk_open_chain(const replica_options *replica, const path_policy *policy,
                       bool writable, GError **error);
/* rejoin.c: one of a disk that has been open for a while. */
chain *disk_open_anew(const disk *d, const replica_options *options, GError **error);
/* disk-close.c: frees what disk_open made so far. `flushed`: as in disk_state_close. */
void disk_free(disk *d, bool flushed);
/* Closes one that may hang: what is waited for is bounded (R5). Either may be NULL. */
void disk_close_hung(chain *c, identity_source *source);
/* Under an exclusive lock of the whole disk. NULL: it has none. Returns the one it had. */
chain *disk_set_chain(disk *d, unsigned i, chain *c);

/* disk-change.c */
typedef struct disk_change {
    const char *op;
    uint64_t offset, length; /* whole sectors; 0, 0 for a flush */
    uint64_t asked;          /* takers */
    uint64_t counted;        /* those of them that were current on the range before */
    int results[VOTE_REPLICAS_MAX]; /* of replicas asked: 0 or -errno */
    const void *data;               /* what all of the range was to hold, or NULL */
    replica_event event;            /* what a failure means */
    bool intended; /* its intent is recorded, until it is finished (W5) */
    uint64_t lost; /* of those that failed: out even if the change failed */
} disk_change;

/* Asks all takers, and says -EIO at once if too few of them vote somewhere in the range. */
int disk_change_begin(disk *d, disk_change *ret_change, const char *op, uint64_t offset,
                      uint64_t length);
/* W2 to W4: who is out, what is journalled (durably before this returns), and what the
 * guest is told. Called under the exclusive range lock (a flush: under none). */
int disk_change_finish(disk *d, const disk_change *change);

#endif
