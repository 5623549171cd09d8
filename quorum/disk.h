/*
 * disk.h: one virtual disk of N replicas. One request comes in, its range is locked, it is
 * fanned out, voted, journalled and answered.
 *
 * Units: bytes. Convention: 0 or -errno on the data path, GError (IMAGE_ERROR or
 * DISK_ERROR) at open. Threads: every disk_* function but open and close may be called
 * from any thread.
 *
 * Lock order: range lock (rangelock.h) before the turn to flush (disk-flush.c) before the
 * disk's state lock before the journal's.
 * No lock but the first two is held during I/O.
 */
#ifndef QUORUM_DISK_H
#define QUORUM_DISK_H

#include "formats/chain.h"
#include "quorum/journal.h"
#include "quorum/vote.h"

#define DISK_ERROR (disk_error_quark())
typedef enum disk_error {
    DISK_ERROR_OPTIONS, /* threshold out of range, too few replicas, a name used twice */
    DISK_ERROR_SIZES,   /* replicas of different sizes */
    DISK_ERROR_STALE,   /* too few replicas are in sync (O5) */
} disk_error;
GQuark disk_error_quark(void);

/* What the operator asked for. Plain data; made by the command line, the keyfile and the
 * libvirt reader alike. Strings are owned. */
typedef struct replica_options {
    char *name;          /* "a", "b", ... or the configuration's */
    char *source;        /* as given; shown in status */
    char *path;          /* the file */
    char *format;        /* "raw", "qcow", "qcow2", NULL: O1 */
    char *password_file; /* NULL: none */
    int decoder;         /* chain_decoder, or -1: the disk's */
    unsigned timeout_ms; /* 0: the disk's */
    bool behind; /* another record says that it missed changes: without one of this
                            disk it is not trusted */
} replica_options;
replica_options *replica_options_new(void);
replica_options *replica_options_copy(const replica_options *options);
void replica_options_free(replica_options *options); /* NULL is allowed */

/* Whom a read asks (disk-pattern.c). */
typedef enum disk_pattern {
    DISK_PATTERN_QUORUM, /* everybody, and all vote */
    DISK_PATTERN_ROTATE, /* in turn as many as decide the vote; the rest if these do not */
    DISK_PATTERN_FIFO,   /* the first that can be read; no vote */
} disk_pattern;
const char *disk_pattern_name(disk_pattern pattern);
bool disk_pattern_find(const char *name, disk_pattern *ret_pattern);

typedef struct disk_options {
    char *name;         /* of the disk: "disk", "vm1" */
    char *file;         /* its file in the mount: "disk.img" */
    char *alias;        /* by which libvirt XML refers to it; only kept; NULL: none */
    unsigned threshold; /* 0: the majority, N / 2 + 1 */
    chain_decoder decoder;
    bool read_only;
    unsigned timeout_ms;   /* how long a request waits for a replica; 0: default */
    char *state_dir;       /* where state is kept across restarts; NULL: nowhere */
    char *state_name;      /* what it is called there; NULL: as the disk */
    unsigned min_replicas; /* wholly in sync when it is opened; 0: any number */
    bool degraded_warn;    /* fewer than min_replicas, or some that cannot be opened:
                                      opened all the same */
    bool force;            /* see disk_open */
    /* What a read finds differing is repaired soon after (repair.h). Refused with a threshold
     * of half or less (O4), and on a disk that cannot be written to. */
    bool on_divergence_repair;
    disk_pattern read_pattern;
    bool blkverify; /* two replicas are compared: where they differ, the journal names the
                       first byte that does; only with threshold 2 and quorum reads */
    bool offline;   /* opened to be repaired (offline.h): see disk_open */
    GPtrArray *replicas;   /* of replica_options*, freed with it */
    GPtrArray *allow_dirs; /* of char*, freed with it */
} disk_options;
disk_options *disk_options_new(void);
void disk_options_free(disk_options *options); /* NULL is allowed */

/* Of a file; remote replicas and decoders have defaults of their own (nbd.h, qcow-libqcow.h). */
#define DISK_TIMEOUT_DEFAULT_MS 30000u

typedef struct disk disk;

/* Opens all replicas (O1 to O3, O5), compares their sizes, checks the threshold. `options`
 * is only read; `journal` (may be NULL: nothing is recorded) must outlive the disk.
 * Error texts of QEMU for the threshold. Messages about a replica start "replica 'b': ".
 *
 * By what is recorded in state_dir, and DISK_ERROR_STALE where it says no:
 * - Somewhere fewer replicas than the threshold are current: refused. With `force` it is
 *   opened read-only: nothing that is recorded changes, no replica gets a vote that it does
 *   not have, and what lacks voters is EIO.
 * - Everywhere a quorum, but fewer than min_replicas are in sync on all of the disk: refused.
 *   With degraded_warn or `force` it is opened as it is. Those that are stale catch up.
 * What was let pass is in disk_degraded_reason.
 *
 * With `offline` none of this is refused, since whoever asks for it has the disk for himself
 * and decides what is done with it; nothing is done in the background, and changes leave no
 * intent: what a crash then leaves different is to be found by a vote, and not reconciled. */
disk *disk_open(const disk_options *options, journal *journal, GError **error);
/* Flushes, then frees. No request may be running. NULL is allowed. Returns what the last
 * flush returned. */
int disk_close(disk *d);

const char *disk_name(const disk *d);
const char *disk_file(const disk *d);
uint64_t disk_size(disk *d);
unsigned disk_threshold(const disk *d);
unsigned disk_replica_count(const disk *d);
bool disk_writable(const disk *d);
disk_pattern disk_read_pattern(const disk *d);
bool disk_blkverify(const disk *d);
/* One line for people: why a disk that should be writable is not; NULL if it is, or if
 * read-only was asked for. */
const char *disk_read_only_reason(const disk *d);
/* Bytes of regions that the last session left dirty and that are not equal yet (W6). They become
 * so in the background, unless the disk is read-only. */
uint64_t disk_unreconciled_bytes(disk *d);
/* One line for people: what disk_open let pass because of degraded_warn or force; NULL:
 * nothing. */
const char *disk_degraded_reason(const disk *d);
/* Replica i's chain; borrowed. NULL: it has none now. Of a disk without a session (state_dir NULL) it stays
 * what it is. */
chain *disk_chain(disk *d, unsigned i);
/* Its top layer's file, when it was open last; interned. NULL: it never was. */
const char *disk_replica_file(disk *d, unsigned i);

/* Reads and votes. *ret_data points to the voted bytes: memory of this thread, valid until
 * its next call into any disk. The range lies within the disk, else -EINVAL. Any offset
 * and length up to DISK_REQUEST_MAX; whole sectors are voted on (R1). */
#define DISK_REQUEST_MAX (1u << 20)
int disk_read(disk *d, uint64_t offset, size_t length, const void **ret_data);

/* W1, W2. -EROFS on a read-only disk. Any offset and length up to DISK_REQUEST_MAX. */
int disk_write(disk *d, uint64_t offset, size_t length, const void *data);
int disk_write_zeroes(disk *d, uint64_t offset, uint64_t length);
int disk_discard(disk *d, uint64_t offset, uint64_t length);
int disk_resize(disk *d, uint64_t size); /* -ENOTSUP unless all replicas can */
int disk_flush(disk *d);                 /* W4 */

/* For SEEK_DATA and SEEK_HOLE: whether the extent at `offset` reads as zeroes in every
 * replica that votes (its map says so), and how many bytes further that holds; looks no
 * further than `length`. */
int disk_map(disk *d, uint64_t offset, uint64_t length, bool *ret_zero,
             uint64_t *ret_length);
/* Bytes that hold data, as the largest of the replicas (chain_allocated), for st_blocks: a
 * display figure. */
uint64_t disk_allocated(disk *d);

/* Takes replica i out, for this disk and its record; DISK_ERROR_OPTIONS where the others would
 * not be enough. Waits for what is under way. Both may be called while the disk is used. */
bool disk_remove_replica(disk *d, unsigned i, GError **error);
/* In the place of one that was removed: another file, of the disk's size, whatever it holds.
 * It is stale as a whole, and is filled. Needs a state_dir and O4's majority. `options` is only
 * read; its name is not. */
bool disk_put_replica(disk *d, unsigned i, const replica_options *options,
                      GError **error);
/* Both, if the file can be put in. */
bool disk_replace_replica(disk *d, unsigned i, const replica_options *options,
                          GError **error);

/* A replica's state. The table of states and transitions is in replica.c. */
typedef enum replica_state {
    REPLICA_IN_SYNC,
    REPLICA_STALE,     /* missed changes somewhere, votes elsewhere */
    REPLICA_RESYNCING, /* the same, while it catches up */
    REPLICA_HUNG,      /* did not answer in time: out until it does */
    REPLICA_FAILED,    /* out until it was opened anew */
    REPLICA_REMOVED,   /* taken out by the operator */
} replica_state;
const char *replica_state_name(replica_state state);

typedef struct replica_status {
    const char *name, *source, *format,
        *decoder; /* of the top layer, when it was open last; borrowed from the disk */
    replica_state state;
    uint64_t stale_bytes; /* changes that it missed; each byte counts once */
    uint64_t read_errors, write_errors; /* requests */
    uint64_t divergent_bytes;           /* where it was outvoted, or versions differed and
                                           none won; each byte counts once */
    uint64_t latency_us; /* moving average of one read on this replica; where replicas are
                                 read in one submission, that submission's time */
} replica_status;
void disk_replica_status(disk *d, unsigned i, replica_status *ret_status);
/* "healthy", "degraded", "failed" (somewhere fewer than `threshold` replicas are current). */
const char *disk_state_name(disk *d);

/* Stale replicas are filled in the background, and those that could not be are tried again
 * now and then, as those that are hung or failed. This one: at once. 0; -EROFS; -EPERM:
 * without a majority of all replicas none is filled (O4). */
int disk_resync(disk *d);
typedef struct disk_resync_status {
    bool stale; /* some replica is */
    bool
        running; /* some is being filled, or brought back, or about to be; else they wait */
    uint64_t length; /* the most that they missed together since all were in sync */
    uint64_t missed; /* what is left of that */
    int error; /* -errno of the last copy that failed since it was asked for; or 0 */
} disk_resync_status;
void disk_get_resync_status(disk *d, disk_resync_status *ret_status);

/* Who votes at `offset`, bit i is replica i: in sync, or stale elsewhere; and how far they stay
 * the same, at most up to `end`, which is larger. Under the range's lock, or where nothing
 * else runs. */
uint64_t disk_voter_run(disk *d, uint64_t offset, uint64_t end, uint64_t *ret_end);

typedef struct disk_counters {
    uint64_t reads, read_bytes, writes, write_bytes, flushes;
    uint64_t divergences, quorum_failures; /* events, repeats included */
} disk_counters;
void disk_get_counters(disk *d, disk_counters *ret_counters);

/* Ranges on which a read or write found replicas differing since the disk was opened,
 * merged, ascending. For divergence.map. Bounded (rangeset.h): beyond some 65,536 ranges
 * near neighbours are merged. g_array_unref it; elements are disk_bad_range. */
typedef struct disk_bad_range {
    uint64_t offset, length;
    bool no_quorum; /* else: differing, with a majority */
} disk_bad_range;
GArray *disk_bad_ranges(disk *d);

/* Who holds what in a range: for each run of sectors with the same grouping the digest of
 * each replica's bytes and the layer and host offset they come from. Reads under a shared
 * lock, DISK_REQUEST_MAX at a time; changes no counter and writes no journal. Calls `row`
 * in order for each replica of each run, under no lock. Rows are whole sectors. Runs are
 * also cut where any replica's extent changes. A replica that is out is not read: ESTALE.
 * length is at most DISK_EXPLAIN_MAX. */
#define DISK_EXPLAIN_MAX (64u << 20)
typedef struct disk_explain_row {
    uint64_t offset, length;
    const char *replica;
    unsigned replica_index;
    int error; /* positive errno if it could not be read; then no digest */
    uint8_t sha256[JOURNAL_DIGEST_SIZE];
    bool wins;      /* belongs to the run's winner */
    bool no_quorum; /* nobody wins this run */
    bool differs;   /* the run has more than one version, or a failed replica */
    chain_extent extent;
    const char *layer_file; /* interned; NULL: the replica is out of reach */
} disk_explain_row;
typedef void (*disk_explain_fn)(void *opaque, const disk_explain_row *row);
int disk_explain(disk *d, uint64_t offset, uint64_t length, disk_explain_fn row,
                 void *opaque);

#endif
