/*
 * qcow2-writer.h: what the files that write qcow2 share; beside them only qcow2.c includes
 * it. The order in which everything reaches the disk is told atop qcow2-alloc.c.
 *
 * Locks, in the order in which they are taken
 *   flush_lock    one flush at a time; held from its first step to its last
 *   map->lock     all tables and everything below that is not said to be otherwise. Never
 *                 held while data is read or written, nor while a flush writes or syncs. What
 *                 does happen under it: a slice that a change needs is read; the file is
 *                 made longer (in steps); a new L2 table or refcount block is cleared where it
 *                 is not fresh, a shared L2 table copied; a cluster that was discarded in
 *                 part is punched in a data file; the header is changed and synced, before
 *                 the first change, by a resize, where the image turns out to be corrupt; a
 *                 larger refcount table is written and synced
 *   decode_lock   shared: a compressed cluster is looked up and read; exclusive, for a
 *                 moment and without map->lock: none is any more
 *
 * "Cluster" as a number is an index of host clusters; offsets are bytes.
 */
#ifndef FORMATS_QCOW2_WRITER_H
#define FORMATS_QCOW2_WRITER_H

#include "formats/qcow2-internal.h"
#include "formats/uring.h"
#include <stdatomic.h>

/* ---- qcow2-overlap.c: which host clusters hold tables, by their offset ------------------- */

typedef enum qcow2_table_kind {
    QCOW2_TABLE_L2 = 1,
    QCOW2_TABLE_REFCOUNT,
} qcow2_table_kind;
qcow2_overlap *qcow2_overlap_new(void);
void qcow2_overlap_free(qcow2_overlap *o); /* NULL is allowed */
void qcow2_overlap_add(qcow2_overlap *o, uint64_t offset, qcow2_table_kind kind);
void qcow2_overlap_remove(qcow2_overlap *o, uint64_t offset);
/* 0: none. */
qcow2_table_kind qcow2_overlap_find(const qcow2_overlap *o, uint64_t offset);
/* What of the image's structure lies in the cluster at `offset`, or NULL. */
const char *qcow2_overlap_name(const qcow2_map *map, uint64_t offset);

/* ---- qcow2-refcount.c ---------------------------------------------------------------------- */

typedef struct qcow2_refcounts {
    qcow2_map *map;
    unsigned order;      /* log2 of the bits of an entry */
    unsigned block_bits; /* log2 of the entries of a block */
    uint64_t offset;     /* of the table */
    uint64_t entries;
    uint64_t *table;    /* host order; 0: all zero, no block */
    GArray *new_blocks; /* indices of entries that the disk does not have (uint64_t) */
} qcow2_refcounts;

int qcow2_refcounts_load(qcow2_refcounts *r, qcow2_map *map, const qcow2_header *header);
void qcow2_refcounts_clear(qcow2_refcounts *r);
int qcow2_refcounts_get(const qcow2_refcounts *r, uint64_t cluster, uint64_t *ret_count);
/* -EIO: there is no block for it. */
int qcow2_refcounts_set(qcow2_refcounts *r, uint64_t cluster, uint64_t count);
/* Looks from `cluster` on, no further than the table reaches, for one that is free. -EXFULL:
 * there is none. *ret_cluster may have no block. -ERESTART: there is none in so many slices,
 * *ret_cluster is where to go on. */
int qcow2_refcounts_find_free(const qcow2_refcounts *r, uint64_t cluster, unsigned slices,
                              uint64_t *ret_cluster);
/* How many clusters a slice counts; where the slice is that counts a cluster for which there
 * is a block, and which of its entries does; the first entry from `index` on that is free, of
 * a slice with these bytes (per_slice: none). */
uint64_t qcow2_refcounts_per_slice(const qcow2_refcounts *r);
uint64_t qcow2_refcounts_place(const qcow2_refcounts *r, uint64_t cluster,
                               uint64_t *ret_index);
uint64_t qcow2_refcounts_find_in(const qcow2_refcounts *r, const uint8_t *bytes,
                                 uint64_t index);
/* Whether the table reaches to it, and whether there is a block for it. */
bool qcow2_refcounts_reach(const qcow2_refcounts *r, uint64_t cluster);
bool qcow2_refcounts_cover(const qcow2_refcounts *r, uint64_t cluster);
/* Makes `cluster`, whose bytes are zero on disk, the block of table entry `index`. It must
 * be counted by that block or by one that is there. */
int qcow2_refcounts_add_block(qcow2_refcounts *r, uint64_t index, uint64_t cluster);

/* ---- qcow2-alloc.c ---------------------------------------------------------------------- */

typedef struct qcow2_run {
    uint64_t cluster, count;
} qcow2_run;

/* Clusters that have lost a reference of a table in memory, not yet on disk. */
typedef struct qcow2_unlinked {
    qcow2_run run;
    bool hold; /* somebody may still read there: freed at close only */
} qcow2_unlinked;

typedef enum qcow2_unlink_kind {
    QCOW2_UNLINK_OWN, /* nobody else had it, or that is not known: the next flush frees it */
    QCOW2_UNLINK_SHARED, /* others still have it */
    QCOW2_UNLINK_HELD,   /* somebody may still read there: freed at close only */
} qcow2_unlink_kind;

/* All that one flush carries to disk (qcow2-flush.c). */
typedef struct qcow2_cut {
    qcow2_batch *refcounts, *new_tables, *links;
    bool refcounts_written;
    GArray *refcount_words, *l1_words; /* of qcow2_word */
    GArray *l1_indices, *new_blocks;   /* what these are of; given back if it fails */
    GArray *unlinked;
    uint64_t unlinked_bytes;
    bool ordered;  /* links depend on data or on refcounts */
    bool l1_begun; /* some of l1_words may be on disk */
} qcow2_cut;

typedef struct qcow2_word {
    uint64_t offset;
    uint64_t value; /* big-endian */
} qcow2_word;

typedef struct qcow2_claim {
    struct qcow2_claim *next;
    uint64_t first, last; /* guest clusters */
} qcow2_claim;

typedef struct qcow2_writer {
    qcow2_map *map;
    int fd, data_fd;
    qcow2_header header; /* a copy, kept current; owns its strings */
    bool lazy;
    bool external, raw_external;
    bool fd_is_device, data_fd_is_device;
    bool write_refcounts;         /* the next flush writes them even if they are lazy */
    qcow2_read_below *read_below; /* NULL: no backing file */
    void *below;
    uint64_t below_size;
    qcow2_decoder *decoder; /* set by the driver, as are these three */

    qcow2_refcounts refcounts;
    bool started; /* the header says what the first change must say */
    atomic_int
        failed; /* what every later call returns, for ever: a sync failed, something
                            was abandoned (-ETIMEDOUT), or corrupt */
    uint64_t fresh_from; /* clusters from here on were never used: they read as zero */
    uint64_t data_fresh; /* the same in the data file, an offset */
    uint64_t scan_at;    /* none before this is free but those of free_runs */
    GArray *free_runs;   /* of qcow2_run */
    GArray *unlinked;    /* of qcow2_unlinked, since the last cut */
    GArray *held;        /* of qcow2_run */
    uint64_t unlinked_bytes; /* in `unlinked`, of which a flush frees most */
    GArray *l1_dirty;        /* indices of L1 entries that the disk does not have ... */
    bool l1_unsure;          /* ... or may have: a flush failed while it wrote them */
    bool links;              /* entries were made that depend on data or on refcounts */
    qcow2_claim *claims;     /* of changes between prepare and finish */
    pthread_cond_t changed;  /* one of these is gone */

    pthread_mutex_t flush_lock;
    qcow2_cut *cut; /* under flush_lock */
    pthread_rwlock_t decode_lock;
    atomic_int_fast64_t allocated; /* guest bytes that hold data */
} qcow2_writer;

/* Loads what writing needs. The image is not changed. */
qcow2_writer *qcow2_writer_new(qcow2_map *map, int fd, int data_fd,
                               const qcow2_header *header, const char *filename,
                               GError **error);
/* Writes back everything, in order, then frees. NULL is allowed. */
void qcow2_writer_free(qcow2_writer *w);

/* Takes the lock, and keeps it if it returns 0: the image may be changed. Writes back first
 * if a lot waits for it. Before the first change, marks in the header what will not be
 * current any more, and the image as dirty if its refcounts are written lazily. */
int qcow2_writer_enter(qcow2_writer *w);
/* What ended it, or -ETIMEDOUT while something is abandoned; else 0. Needs no lock. */
int qcow2_writer_check(qcow2_writer *w);
/* What became of a call on its files, with the lock or without: I9. Returns -ETIMEDOUT if
 * something was abandoned, else `error`. */
int qcow2_writer_note(qcow2_writer *w, int error);
/* The same where a sync failed, or may have: I8. */
int qcow2_writer_unsure(qcow2_writer *w, int error);
/* Under the lock. The image contradicts itself: marks it so, refuses everything from now
 * on. Returns -EIO. */
int qcow2_writer_corrupt(qcow2_writer *w);
/* Writes back everything, on a list of its own. */
int qcow2_writer_flush(qcow2_writer *w);

/* Without the lock. If a call failed because it could not go on under the lock (-EXFULL,
 * -ERESTART), does what it wants: after 0 all that was begun must be begun again. Else
 * returns `error`. */
int qcow2_alloc_retry(qcow2_writer *w, int error);

/* All under the lock. -EXFULL: the refcount table does not reach far enough; -ERESTART: what
 * is free must be looked for further. */

/* Gives out up to `wanted` neighbouring clusters, each with a refcount of 1. *ret_fresh:
 * they read as zero. */
int qcow2_alloc_clusters(qcow2_writer *w, uint64_t wanted, qcow2_run *ret_run,
                         bool *ret_fresh);
/* Exactly so many, for a table. */
int qcow2_alloc_table(qcow2_writer *w, uint64_t count, uint64_t *ret_cluster);
/* I7, before anything is put into a cluster that the refcounts call free. */
int qcow2_alloc_check_free(qcow2_writer *w, uint64_t cluster);
/* Takes back what no table ever named. */
void qcow2_alloc_undo(qcow2_writer *w, qcow2_run run);
/* What no table in memory names any more, but one on disk may. */
void qcow2_alloc_unlink(qcow2_writer *w, uint64_t offset, uint64_t length,
                        qcow2_unlink_kind kind);
/* Drops the references that a flush has shown to be gone; without the lock. */
void qcow2_alloc_reclaim(qcow2_writer *w, GArray *unlinked);
/* The L2 table of the cluster at `guest` can be changed from here on. */
int qcow2_alloc_l2(qcow2_writer *w, uint64_t guest);
/* As qcow2_map_get, for whoever is going to write: `copied` only if its refcount is 1. */
int qcow2_alloc_get_entry(qcow2_writer *w, uint64_t guest, qcow2_entry *ret_entry);
/* The file (the data file) reaches to `end`. */
int qcow2_alloc_extend(qcow2_writer *w, uint64_t end);
int qcow2_alloc_extend_data(qcow2_writer *w, uint64_t end);

/* ---- qcow2-grow.c ----------------------------------------------------------------------- */

/* Without the lock. Makes the refcount table reach further. */
int qcow2_alloc_grow(qcow2_writer *w);

/* ---- qcow2-scan.c ----------------------------------------------------------------------- */

/* Without the lock. Moves scan_at on to what may be free. */
int qcow2_alloc_scan(qcow2_writer *w);

/* ---- qcow2-flush.c ---------------------------------------------------------------------- */

int qcow2_flush_step(qcow2_writer *w, image_flush_state *flush, unsigned owner,
                     io_list *list);
/* Starts one whose caller has taken flush_lock, and has seen that nothing failed; it ends
 * without the lock as any. */
void qcow2_flush_locked(image_flush_state *flush);

/* ---- qcow2-write.c ---------------------------------------------------------------------- */

/* As image.h's prepare_write and finish_write. */
int qcow2_write_prepare(qcow2_writer *w, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change);
int qcow2_write_finish(qcow2_writer *w, image_change *change, int result);
/* Both, with a list of its own. */
int qcow2_write_now(qcow2_writer *w, const void *buf, uint64_t offset, size_t length);

/* qcow2-claim.c: guest clusters [first, last] whose entries only their claimant changes. All
 * under the lock. */
void qcow2_claim_take(qcow2_writer *w, qcow2_claim *claim, uint64_t first, uint64_t last);
void qcow2_claim_drop(qcow2_writer *w, const qcow2_claim *claim);
/* Lets the lock go while it waits until no cluster of [first, last] is claimed. Returns whether
 * it waited. */
bool qcow2_claim_await(qcow2_writer *w, uint64_t first, uint64_t last);

/* ---- qcow2-fill.c ----------------------------------------------------------------------- */

/* Reads what the disk has at a range, through this image and what is below, without the
 * caches of a reader; zeroes past the virtual size. *ret_zero: all of it is zero. */
int qcow2_fill_read(qcow2_writer *w, void *buf, uint64_t offset, size_t length,
                    bool *ret_zero);

/* ---- qcow2-zero.c ----------------------------------------------------------------------- */

typedef enum qcow2_zero_mode {
    QCOW2_ZERO_KEEP,    /* write-zeroes: the space stays where it can */
    QCOW2_ZERO_DISCARD, /* the space is freed */
    QCOW2_ZERO_DROP, /* freed, and what lies below may show: nobody reads there again */
} qcow2_zero_mode;
int qcow2_zero_range(qcow2_writer *w, uint64_t offset, uint64_t length,
                     qcow2_zero_mode mode);
/* By writing zeroes where there are none yet; may reach past the virtual size, but not out
 * of its last cluster. */
int qcow2_zero_part(qcow2_writer *w, uint64_t offset, uint64_t length);

/* A raw data file is read by others without the tables: makes [offset, end) zero in it, as
 * far as it goes. Does nothing if there is none. */
int qcow2_zero_data_file(qcow2_writer *w, uint64_t offset, uint64_t end,
                         qcow2_zero_mode mode);

/* ---- qcow2-resize.c --------------------------------------------------------------------- */

int qcow2_resize(qcow2_writer *w, uint64_t size);

#endif
