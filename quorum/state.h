/*
 * state.h: what a disk remembers across crashes and restarts (W2, W5, W6, O5), in one file,
 * DISK.state, that one daemon at a time has open.
 *
 * How it is used
 *   1. Chains are open, nothing is written yet. identity_source_open for each replica,
 *      identity_read. state_open. If it says VOID_*, or if no replica is trusted by
 *      generation_compare: journal "recorded state is void", state_reset, and start as on a
 *      first mount (state_is_new).
 *   2. A replica that alone is not trusted is stale as a whole: state_set_replica. One that
 *      is recorded as FAILED or STALE_WHOLE stays so; one with state_stale_bytes > 0
 *      does not vote in those ranges (state_is_stale), though its record says in sync.
 *   3. If it is to be written to: state_begin_session (generation + 1, not clean, identities
 *      as they are), before chain_begin_writing. Before the first change: state_get_mark into
 *      the images, then state_set_marks.
 *   4. Dirty regions of the last session (W6): before a request is served, and before it
 *      takes its own range lock, while state_is_unreconciled(range) do: range lock over
 *      the region, exclusive; reconcile; flush; state_reconciled; unlock. A background job
 *      does the same with state_next_unreconciled. After a clean close there are none.
 *   5. A write, zeroes or discard, under its exclusive range lock: state_write_begin (W5: may
 *      sync), replicas, state_mark_stale for those that missed it (W2), state_write_end,
 *      unlock, reply. A failed mark: the request fails.
 *   6. Every few seconds: state_collect; if it gave something, disk_flush of all replicas;
 *      if all of them took it, state_clear. Regions that were written to in between stay.
 *   7. A replica fails: state_set_replica(FAILED) before the reply. Resync of a whole one:
 *      state_mark_stale(0, size), then state_set_replica(STALE_RANGES), then as for ranges:
 *      for each run of state_next_stale: lock the range exclusively, copy it from the others,
 *      state_stale_copied, unlock; now and then flush the replica and state_stale_clear.
 *      None left: state_set_replica(IN_SYNC).
 *   8. disk_resize, adding and removing replicas: state_reshape, all of the disk locked.
 *   9. Close: no request is left; collect, flush, clear; chain_close; identity_read(settle);
 *      state_end_session; state_close.
 *
 * Units: bytes. 0 or -errno; GError (STATE_ERROR) at open. What "is durable" has been
 * followed by file_sync; a crash at any byte leaves the old or the new content of each
 * slot and each sector. A failed write or sync leaves the change in memory, says -errno, and
 * is repeated with the next change: nobody is told 0 before it is on disk.
 *
 * Threads: all functions from any thread but open, reset, reshape and close. One lock inside,
 * after the disk's state lock and before the journal's, which is never held during I/O; those
 * that wait for the disk share one sync. Functions marked (fast) take no lock and make no
 * syscall.
 */
#ifndef QUORUM_STATE_H
#define QUORUM_STATE_H

#include "quorum/generation.h"
#include "quorum/rangeset.h"
#include "quorum/vote.h"

#define STATE_ERROR (state_error_quark())
typedef enum state_error {
    STATE_ERROR_IO,     /* the message ends in strerror */
    STATE_ERROR_SHAPE,  /* what was asked for cannot be: too many replicas, long names */
    STATE_ERROR_LOCKED, /* another daemon, or this one, has it open */
    STATE_ERROR_NEWER,  /* valid, but of a newer format: neither read nor reset it */
    STATE_ERROR_VOID_BROKEN, /* no slot is valid, or it is no state file: state_reset */
    STATE_ERROR_VOID_OTHER,  /* of another set of replicas: state_reset */
    STATE_ERROR_TWO,  /* two records know the replicas equally well (state-find.h) */
    STATE_ERROR_SIZE, /* no resize is recorded between the sizes that the shape names */
} state_error;
GQuark state_error_quark(void);

/* Where the file is, for messages; g_free it. */
char *state_path(const char *dir, const char *disk);

/* The disk as it is now. Borrowed for the call. */
typedef struct state_shape {
    uint64_t size; /* of the disk, at most IMAGE_SIZE_MAX */
    unsigned n, threshold;
    const char *const *names; /* of n; at most 127 bytes */
    const char *const
        *sources; /* of n; real paths if they are to be recognised in another
                                   order; only the last 500 bytes or so count */
    const identity *identities; /* of n, to be recognised by; NULL: by the others alone */
    /* Bytes that one bit stands for, powers of two, at least 4096. 0: 64 MiB and 1 MiB; for
     * either the next one that keeps the bitmap within 128 KiB and 1 MiB. */
    uint64_t intent_region, stale_region;
    /* A resize is under way between these sizes; equal: none. `size` is the larger one, or the
     * new one. */
    uint64_t resize_from, resize_to;
} state_shape;

typedef struct state state;

/* Opens or makes DIR/DISK.state (0600). The replicas recorded are found again in any order:
 * by file, by the mark in the image, by source; one without an identity, or all if none is
 * found by these, by name. If at least half of them are there it is their record: others than
 * those are new, in state STALE_WHOLE, and those that are not there are forgotten. With fewer
 * it is VOID_OTHER. Another size of the disk, order or membership is taken over, in memory;
 * what the disk has gained is neither dirty nor stale. A shape that names a resize is for
 * replicas of both its sizes, in any order: it must be on record, and nothing is made or
 * changed if it is not. */
state *state_open(const char *dir, const char *disk, const state_shape *shape,
                  GError **error);
/* Before anything is changed: durably, what state_open took over. Until then nothing reaches the
 * file, so that a mount that is refused, or only reads, forgets nobody. */
int state_take_over(state *s);
/* Moves what is there to DISK.state.void, and makes a new one. */
state *state_reset(const char *dir, const char *disk, const state_shape *shape,
                   GError **error);
/* Durable: whatever an earlier call failed to write. No I/O if there is nothing. */
int state_settle(state *s);
uint64_t state_size(state *s); /* the disk's, as recorded */
/* The resize that is recorded as under way; false: none. A crash may have cut it off. */
bool state_get_resize(state *s, uint64_t *ret_from, uint64_t *ret_to);
/* Does not end the session. NULL is allowed. Returns what its last sync returned. */
int state_close(state *s);

/* A new size, or other replicas. map[i] is the place that replica i had, or -1: it is new,
 * in state STALE_WHOLE. map NULL: as before. Durable, all or nothing; the generation counts
 * up if there is a map. Nothing else may run; no write may be between begin and end. */
int state_reshape(state *s, const state_shape *shape, const int *map);

/* ---- The set ------------------------------------------------------------------------- */

bool state_is_new(const state *s);               /* made by this open, or never used */
bool state_was_clean(const state *s);            /* when it was opened */
void state_set_id(state *s, uint8_t ret_id[16]); /* random, made with the file */
uint64_t state_generation(state *s);             /* 0: no session yet */

/* As recorded; what is stale in ranges is told by state_stale_bytes in any state. */
typedef enum state_replica_state {
    STATE_IN_SYNC,
    STATE_STALE_RANGES,
    STATE_STALE_WHOLE,
    STATE_FAILED,
    STATE_REMOVED, /* is not asked, and keeps nothing dirty */
} state_replica_state;

typedef struct state_replica {
    state_replica_state state;
    uint64_t number;            /* random, for its marks; kept by this module */
    uint64_t synced_generation; /* the last one with it in sync; kept by this module */
    identity identity;
} state_replica;
void state_get_replica(state *s, unsigned i, state_replica *ret_replica);
/* Durable. synced_generation and number are ignored. */
int state_set_replica(state *s, unsigned i, const state_replica *replica);

/* Durable, as one change. `identities`: of n replicas; one of kind NONE leaves what was
 * recorded. state_begin_session: the set is about to be written to. */
int state_begin_session(state *s, const identity *identities);
/* Everything is flushed and nobody writes any more. */
int state_end_session(state *s, const identity *identities);
/* The session's marks are in the images: `marks` of n replicas, what stands there now. Before
 * the first change of the disk, and when a replica is marked later. Durable. */
int state_set_marks(state *s, const qcow2_mark *marks);
/* The mark of replica i for the present session. */
void state_get_mark(state *s, unsigned i, bool clean, qcow2_mark *ret_mark);
/* What is recorded of replica i; `clean` is what it was when this was opened. `record` is where
 * the identity is put. */
void state_get_generation(state *s, unsigned i, state_replica *record,
                          generation_record *ret);

/* ---- Intent: regions that may differ after a crash (W5, W6) --------------------------- */

/* Between begin and end nothing clears the bits of the range's regions. begin returns 0 when
 * they are all on stable storage (fast, if they were); -errno: not begun, do not write.
 * -EINVAL: the range leaves the disk. */
int state_write_begin(state *s, uint64_t offset, uint64_t length);
/* (fast) The same range. `equal`: every replica that is in sync took it; if not, the
 * regions stay dirty until they are reconciled, now or after the next open. */
void state_write_end(state *s, uint64_t offset, uint64_t length, bool equal);

/* (fast) Whether some region of the range was left dirty by the session before this one. */
bool state_is_unreconciled(const state *s, uint64_t offset, uint64_t length);
/* The next run of such regions at or after `from`; false: none. */
bool state_next_unreconciled(state *s, uint64_t from, uint64_t *ret_offset,
                             uint64_t *ret_length);
/* The next run of regions whose intent bit is set: written to since they were last known to
 * be equal and flushed. As state_next_unreconciled. */
bool state_next_dirty(state *s, uint64_t from, uint64_t *ret_offset,
                      uint64_t *ret_length);
/* All that is dirty is unreconciled again, as after a crash. All of the disk is locked
 * exclusively: no write is between begin and end. */
void state_unreconcile(state *s);
/* The regions that lie wholly in the range are equal on all replicas in sync, flushed. Under
 * the range lock of all of it. In memory: the bits are cleared by state_clear, later. */
void state_reconciled(state *s, uint64_t offset, uint64_t length);
uint64_t state_intent_region(const state *s); /* bytes of one */

/* Lazy clearing. Phase one notes the regions that are dirty, reconciled and without a write
 * under way. NULL: none, or a replica is missing (neither in sync nor removed). */
typedef struct state_collection state_collection;
state_collection *state_collect(state *s);
void state_collection_free(state_collection *collection); /* NULL is allowed */
/* Phase two, when a flush that began after phase one has succeeded on every replica: clears
 * those to which no write began since. Frees. Returns how many, or -errno. */
int64_t state_clear(state *s, state_collection *collection);

/* ---- Stale ranges of one replica (W2) ------------------------------------------------- */

/* Durable when it returns 0; no I/O if it was so already. */
int state_mark_stale(state *s, unsigned i, uint64_t offset, uint64_t length);
/* In memory; durable with the next call that is. */
void state_note_stale(state *s, unsigned i, const rangeset *missed);
/* (fast) Whether the replica missed something in the range, durable or not. Seen by whoever
 * takes the range lock after the one who marked it. */
bool state_is_stale(const state *s, unsigned i, uint64_t offset, uint64_t length);
/* The next run at or after `from` of what it missed: exactly where that is recorded, else in
 * whole regions. */
bool state_next_stale(state *s, unsigned i, uint64_t from, uint64_t *ret_offset,
                      uint64_t *ret_length);
/* Whether fewer replicas than the threshold are recorded as current on all of the region
 * around `offset`: then the exact ranges are worth recording. */
bool state_is_crowded(state *s, uint64_t offset);
/* What replica i missed of the region around `offset`, or holds unflushed since it was copied,
 * is `missed`. In memory; durable with the next call that is. Later marks are added to
 * it. False: nothing changed, as it is recorded exactly already, or there is no room. The caller
 * holds a lock under which `missed` is complete: whoever adds to it marks after that. */
bool state_set_exact(state *s, unsigned i, uint64_t offset, const rangeset *missed);
/* The regions that lie wholly in the range hold on replica i what the others hold. Under the
 * range lock. A mark that comes later undoes it for its regions. */
void state_stale_copied(state *s, unsigned i, uint64_t offset, uint64_t length);
/* Clears what was copied. Between the begin of the flush of replica i, which succeeded, and
 * this call nobody may call state_stale_copied for it. Durable. */
int state_stale_clear(state *s, unsigned i);
uint64_t state_stale_region(const state *s); /* bytes of one */

/* (fast) Totals, in whole regions, the last one cut at the disk's end. */
uint64_t state_stale_bytes(const state *s, unsigned i);
uint64_t state_dirty_bytes(const state *s);
uint64_t state_unreconciled_bytes(const state *s);

#endif
