/*
 * qcow2-internal.h: what the qcow2-*.c files share; nobody else includes it.
 *
 *   qcow2-header.c    the header, its extensions and names         (pure)
 *   qcow2-entry.c     what one L1 or L2 entry means                (pure)
 *   qcow2-refword.c   one entry of a refcount block                (pure)
 *   qcow2-ranges.c    where the tables of fixed place lie
 *   qcow2-check.c     the bounded walk over L1, L2 and refcount table at open
 *   qcow2-slices.c    slices of tables in memory, clean and dirty
 *   qcow2-map.c       guest offset -> entry, extent
 *   qcow2-cache.c     a bounded cache of equal blocks, loaded without a lock
 *   qcow2-compress.c  one compressed cluster -> plain bytes
 *   qcow2.c           the driver
 *
 * and for writing
 *
 *   qcow2-overlap.c   which host clusters hold tables
 *   qcow2-refcount.c  refcount table and blocks
 *   qcow2-alloc.c     which cluster is given out, and the order in which all reaches disk
 *   qcow2-grow.c      a larger refcount table
 *   qcow2-scan.c      what is free, far from where it was looked for last
 *   qcow2-flush.c     the steps of a flush in that order
 *   qcow2-write.c     a guest's write
 *   qcow2-fill.c      what such a write must copy besides
 *   qcow2-zero.c      write-zeroes and discard
 *   qcow2-resize.c    growing and shrinking
 *   qcow2-update.c    fields of the header on disk
 *   qcow2-bitmaps.c   bitmaps that are not kept current
 *   qcow2-repair.c    refcounts after an unclean end
 *   qcow2-references.c  what they have to be
 *   qcow2-copied.c    the flags in L1 and L2 that follow from them
 */
#ifndef FORMATS_QCOW2_INTERNAL_H
#define FORMATS_QCOW2_INTERNAL_H

#include "formats/qcow2.h"
#include <endian.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#define QCOW2_L1_BYTES_MAX             (32u << 20)
#define QCOW2_REFCOUNT_TABLE_BYTES_MAX (8u << 20)
#define QCOW2_SNAPSHOTS_MAX            65536u
#define QCOW2_SNAPSHOT_HEADER          40u
#define QCOW2_OFFSET_MASK              0x00fffffffffffe00u /* bits 9 to 55 of any entry */

static inline uint32_t qcow2_be32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return be32toh(value);
}

static inline uint64_t qcow2_be64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return be64toh(value);
}

static inline uint64_t qcow2_round_up(uint64_t value, uint64_t power_of_two)
{
    return (value + power_of_two - 1) & ~(power_of_two - 1);
}

/* Sets an IMAGE_ERROR "FILENAME: ..."; always returns false. */
bool qcow2_fail(GError **error, image_error code, const char *filename,
                const char *format, ...) G_GNUC_PRINTF(4, 5);

/* Reads big-endian words of a table into host order. 0 or -errno. */
int qcow2_words_read(int fd, uint64_t offset, uint64_t *words, size_t count);
/* Ascending, in place; no input is slow. */
void qcow2_words_sort(uint64_t *words, size_t count);

/* The geometry that a checked header implies. */
typedef struct qcow2_layout {
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t entry_bits;      /* log2 of the bytes of an L2 entry: 3, extended 4 */
    uint32_t l2_bits;         /* log2 of the entries of an L2 table */
    uint32_t subcluster_bits; /* = cluster_bits unless extended */
    uint32_t subclusters;     /* per cluster: 1, extended 32 */
    bool external;            /* data clusters lie in a data file */
    uint64_t cluster_size;
    uint64_t size;      /* virtual */
    uint64_t file_size; /* of the image file */
    uint64_t data_size; /* of the file that holds the data clusters */
} qcow2_layout;

void qcow2_layout_init(qcow2_layout *layout, const qcow2_header *header,
                       uint64_t file_size, uint64_t data_size);
/* How many L1 entries the virtual size needs. */
uint64_t qcow2_layout_l1_needed(const qcow2_layout *layout);

/* One L2 entry. An image without subclusters has one subcluster per cluster. */
typedef struct qcow2_entry {
    bool compressed;
    bool copied;              /* the refcount of the host cluster is 1: write in place */
    bool has_host;            /* a host cluster belongs to it (also under zeroes) */
    uint64_t host_offset;     /* of the cluster, or of the first compressed byte */
    uint32_t compressed_size; /* bytes, up to the end of the last 512-byte sector */
    uint32_t alloc;           /* a bit per subcluster: its bytes are the host cluster's */
    uint32_t zero;            /* a bit per subcluster: reads as zeroes */
} qcow2_entry;

/* Decode and check one entry by itself: reserved bits, alignment, file ends. Overlaps
 * with metadata are qcow2_ranges' and the check's. NULL on success, else a static string
 * that says what is wrong. `guest` is the guest offset of the cluster. */
const char *qcow2_entry_decode(const qcow2_layout *layout, uint64_t guest, uint64_t word,
                               uint64_t bitmap, qcow2_entry *ret_entry);
/* The other way, for entries that are not compressed. */
void qcow2_entry_encode(const qcow2_layout *layout, const qcow2_entry *entry,
                        uint64_t *ret_word, uint64_t *ret_bitmap);
#define QCOW2_FLAG_COPIED ((uint64_t)1 << 63) /* of L1 and L2 entries */
/* *ret_table = 0: no L2 table. */
const char *qcow2_l1_decode(const qcow2_layout *layout, uint64_t word,
                            uint64_t *ret_table);

/* Entry `index` of a refcount block whose entries have 1 << order bits (order 0 to 6). A
 * value is at most qcow2_refword_max. */
uint64_t qcow2_refword_get(const uint8_t *block, uint64_t index, unsigned order);
void qcow2_refword_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value);
uint64_t qcow2_refword_max(unsigned order);

/* Fields of the header on disk. Each change is one write of the first 512 bytes and
 * a file_sync, so that a crash leaves the old fields or the new ones; the caller has synced
 * what the new values point to. 0 or -errno; -EIO: the file does not start with a qcow2
 * header; -ENOTSUP: a version 2 image has no feature bits to be set. */
int qcow2_update_incompatible(int fd, uint64_t set, uint64_t clear);
int qcow2_update_autoclear(int fd, uint64_t clear);
int qcow2_update_size(int fd, uint64_t size);
int qcow2_update_l1(int fd, uint64_t size, uint32_t l1_entries, uint64_t l1_offset);
int qcow2_update_refcount_table(int fd, uint64_t offset, uint32_t clusters);
int qcow2_update_backing_offset(int fd, uint64_t offset);

/* The tables that lie at one place: header, active L1, refcount table, snapshot table,
 * the snapshots' L1 tables, bitmap directory. Whole clusters, sorted, disjoint. */
typedef struct qcow2_range {
    uint64_t start, end;
    const char *what; /* static, for messages */
} qcow2_range;
typedef struct qcow2_ranges {
    qcow2_range *at;
    size_t count;
} qcow2_ranges;

bool qcow2_ranges_load(int fd, const qcow2_header *header, const qcow2_layout *layout,
                       const char *filename, qcow2_ranges *ret_ranges, GError **error);
void qcow2_ranges_clear(qcow2_ranges *ranges);
/* A table moved. The range of this name that starts at `old`, if there is one, goes; there is a new one at
 * [start, start + bytes), whole clusters that no other range has. `what` is static. */
void qcow2_ranges_replace(qcow2_ranges *ranges, uint64_t old, uint64_t start,
                          uint64_t bytes, const char *what);
/* What lies anywhere in [start, end), or NULL. */
const char *qcow2_ranges_hit(const qcow2_ranges *ranges, uint64_t start, uint64_t end);
/* Whether the bitmap directory is among them. Where it overlaps another table it is not:
 * no reader needs it, so a bad one keeps nobody from reading. */
bool qcow2_ranges_has_bitmaps(const qcow2_ranges *ranges, const qcow2_header *header);
/* Visits each snapshot's L1 table, which lies in the file; *ret_bytes (may be NULL) is the
 * length of the snapshot table. */
typedef bool qcow2_snapshot_visit(void *user, uint64_t l1_offset, uint32_t l1_entries,
                                  GError **error);
bool qcow2_snapshots_walk(int fd, const qcow2_header *header, const qcow2_layout *layout,
                          const char *filename, qcow2_snapshot_visit *visit, void *user,
                          uint64_t *ret_bytes, GError **error);

/* Told of references: host clusters [first, first + count) are referred to `times` times. */
typedef void qcow2_reference_visit(void *user, uint64_t first, uint64_t count,
                                   uint64_t times);

/* Marks every bitmap as in use: what it says of the disk is not kept current from now on,
 * while its clusters and the directory stay well-formed. If the directory is not valid, the
 * autoclear bit is cleared instead. Nothing to do if that bit is clear. Bounded (O3). 0 or
 * -errno. The caller syncs, also if all stood marked: by a run that may not have got as far
 * as that. */
int qcow2_bitmaps_disown(int fd, const qcow2_header *header, const qcow2_layout *layout);
/* Visits the clusters of each bitmap and of its table; the directory is one of the ranges.
 * *budget is what may be read, in bytes, and is lowered by what was. -EINVAL: directory,
 * table or entry are not valid; -E2BIG: the budget did not suffice; or another -errno. */
int qcow2_bitmaps_walk(int fd, const qcow2_header *header, const qcow2_layout *layout,
                       uint64_t *budget, qcow2_reference_visit *visit, void *user);
/* If any of that is not valid, nobody could count the clusters: gives the bitmaps up, on
 * disk (autoclear bit) and in *header. 0 or -errno; -E2BIG as above. */
int qcow2_bitmaps_drop_invalid(int fd, qcow2_header *header, const qcow2_layout *layout,
                               uint64_t budget);

/* Who refers to which host cluster. Zeroed: none. */
typedef struct qcow2_references {
    int fd;
    const qcow2_header *header;
    const qcow2_layout *layout;
    const char *filename;
    qcow2_ranges ranges;
    uint64_t budget; /* bytes that may still be read */
    uint64_t *tables;
    size_t n_tables, tables_size;
    uint64_t *piece;
} qcow2_references;
/* Reads all L1 tables. Borrows fd, header, layout and filename. Clear it also on failure. */
bool qcow2_references_collect(qcow2_references *r, int fd, const qcow2_header *header,
                              const qcow2_layout *layout, const char *filename,
                              uint64_t budget, GError **error);
void qcow2_references_clear(qcow2_references *r);
/* Visits all references but those to the refcount table and its blocks. Fails at the first
 * entry that is not valid. */
bool qcow2_references_walk(qcow2_references *r, qcow2_reference_visit *visit, void *user,
                           GError **error);
/* The next L2 table, and how many L1 entries of all L1 tables refer to it. Start with *at = 0
 * and go on while it is below n_tables. */
uint64_t qcow2_references_table(const qcow2_references *r, size_t *at,
                                uint64_t *ret_times);
/* False with an error: the budget does not suffice. */
bool qcow2_references_charge(qcow2_references *r, uint64_t bytes, GError **error);

/* Makes the COPIED flags of the active L1 and L2 tables agree with counted refcounts.
 * `counted` returns false for clusters that it does not know. */
typedef bool qcow2_counted(const void *user, uint64_t cluster, bool *ret_one);
bool qcow2_copied_correct(qcow2_references *references, qcow2_counted *counted,
                          const void *user, GError **error);

/* After an unclean end (dirty bit): computes every refcount from what refers to the
 * clusters, corrects the refcount blocks and the COPIED flags of the active tables, creates
 * blocks and a larger refcount table where they are missing, then clears the dirty bit.
 * Durable when it returns. A crash or a failure leaves the image dirty, and such that it
 * can be opened and repaired. Bitmaps that are not valid lose the autoclear bit. Memory
 * (some 256 MiB) and time are bounded; an image that needs more, or whose tables contradict
 * each other, is left to qemu-img. *header and *layout follow what changed. */
bool qcow2_repair_refcounts(int fd, qcow2_header *header, qcow2_layout *layout,
                            const char *filename, GError **error);

/* A bounded cache of blocks of one size. Any number of threads. */
typedef struct qcow2_cache qcow2_cache;
/* A block that is lent out; all zero: none. */
typedef struct qcow2_block {
    const void *data;
    uint32_t slot;
} qcow2_block;
/* Fills a block. Runs without the cache's lock; never twice at once for one key. */
typedef int qcow2_cache_load(const void *user, uint64_t key, void *block);
qcow2_cache *qcow2_cache_new(size_t block_size, unsigned n_blocks);
void qcow2_cache_free(qcow2_cache *cache); /* NULL is allowed; no block may be in use */
/* 0 and a block that stays valid until qcow2_cache_put, or what `load` returned. A thread
 * holds at most one block of a cache at a time, else it may wait for itself. */
int qcow2_cache_get(qcow2_cache *cache, uint64_t key, qcow2_cache_load *load,
                    const void *user, qcow2_block *ret_block);
void qcow2_cache_put(qcow2_cache *cache, qcow2_block *block); /* none is allowed */
/* Forgets everything; blocks that are in use stay valid until they are put. */
void qcow2_cache_clear(qcow2_cache *cache);

/* What qcow2-slices.c keeps: pieces of tables, as on disk. */
#define QCOW2_SLICE_BYTES_MAX 4096u
typedef enum qcow2_slice_kind { QCOW2_SLICE_L2, QCOW2_SLICE_REFCOUNT } qcow2_slice_kind;
typedef struct qcow2_slice {
    uint64_t offset; /* in the image file */
    struct qcow2_slice *next;
    qcow2_slice_kind kind; /* of a dirty one */
    bool dirty;
    bool recent;
    unsigned writing;
    uint64_t table; /* of a dirty one: index in L1 or in the refcount table */
    uint8_t bytes[] __attribute__((aligned(8)));
} qcow2_slice;

/* All of these: under the image's lock, but for qcow2_batch_write. */
typedef struct qcow2_slices qcow2_slices;
qcow2_slices *qcow2_slices_new(int fd, size_t slice_bytes, size_t max);
void qcow2_slices_free(qcow2_slices *s); /* NULL is allowed */
qcow2_slice *qcow2_slices_find(const qcow2_slices *s, uint64_t offset); /* NULL: absent */
/* Loads what is absent, with the lock held. */
int qcow2_slices_get(qcow2_slices *s, uint64_t offset, qcow2_slice **ret_slice);
/* For loads without the lock: look at the generation, let the lock go, read, take the
 * lock, fill. Does nothing if what was read may be old. */
uint64_t qcow2_slices_generation(const qcow2_slices *s);
void qcow2_slices_fill(qcow2_slices *s, uint64_t offset, const void *bytes,
                       uint64_t generation);
/* Somebody wrote this range of the file himself, or gave up its clusters. */
void qcow2_slices_replaced(qcow2_slices *s, uint64_t offset, uint64_t length);
/* The slice's bytes were changed. */
void qcow2_slices_mark(qcow2_slices *s, qcow2_slice *slice, qcow2_slice_kind kind,
                       uint64_t table);
size_t qcow2_slices_dirty(const qcow2_slices *s);       /* how many */
void qcow2_slices_set_max(qcow2_slices *s, size_t max); /* never lower than it was */

/* Copies of dirty slices on their way to disk. Take them once, write, end. */
typedef struct qcow2_batch qcow2_batch;
typedef bool qcow2_batch_filter(const qcow2_slice *slice, const void *user);
qcow2_batch *qcow2_batch_new(const qcow2_slices *s);
void qcow2_batch_take(qcow2_batch *batch, qcow2_slices *s, qcow2_batch_filter *filter,
                      const void *user);
int qcow2_batch_write(const qcow2_batch *batch, int fd);
/* `stable`: it was written and synced; else all of it is dirty again. Frees the batch. */
void qcow2_batch_end(qcow2_batch *batch, qcow2_slices *s, bool stable);

/* Guest offset -> where its bytes are. */
typedef struct qcow2_extent {
    image_extent_kind kind;
    uint64_t length;
    uint64_t host_offset;     /* DATA, COMPRESSED */
    uint32_t compressed_size; /* COMPRESSED */
} qcow2_extent;

typedef struct qcow2_overlap qcow2_overlap;

/* L1, and L2 through slices. `lock` is the image's: it guards all tables, the sizes in
 * `layout`, and everything of a writer that is not said to be otherwise. */
typedef struct qcow2_map {
    int fd;
    qcow2_layout layout;
    pthread_mutex_t lock;
    qcow2_ranges ranges;
    qcow2_overlap *overlap; /* a writer's; NULL: nobody writes */
    uint64_t *l1;           /* host order */
    uint64_t l1_entries;
    uint32_t slice_bytes;
    uint32_t slice_bits; /* log2 of the L2 entries of a slice */
    qcow2_slices *slices;
} qcow2_map;

/* Borrows fd. The header must have passed qcow2_check_tables. */
qcow2_map *qcow2_map_new(int fd, const qcow2_header *header, const qcow2_layout *layout,
                         const char *filename, GError **error);
void qcow2_map_free(qcow2_map *map); /* NULL is allowed */
/* The extent at `offset` (below the virtual size), at most `length` (not 0) bytes; it may
 * be shorter than what really is alike. -EIO: an entry is not valid. Takes the lock. While
 * the caller holds the range against changes, what it says stays true. */
int qcow2_map_lookup(qcow2_map *map, uint64_t offset, uint64_t length,
                     qcow2_extent *ret_extent);
/* Under the lock. The entry of the cluster at `guest`, checked; all zero without a table. */
int qcow2_map_get(qcow2_map *map, uint64_t guest, qcow2_entry *ret_entry);
/* Under the lock. Its L2 table must be there and be the active state's alone. */
int qcow2_map_put(qcow2_map *map, uint64_t guest, const qcow2_entry *entry);
static inline uint64_t qcow2_map_l1_index(const qcow2_map *map, uint64_t guest)
{
    return guest >> (map->layout.l2_bits + map->layout.cluster_bits);
}

/* Decompresses clusters of one image, a few of them cached. Any number of threads. */
typedef struct qcow2_decoder qcow2_decoder;
/* Borrows fd. */
qcow2_decoder *qcow2_decoder_new(int fd, qcow2_compression compression,
                                 uint32_t cluster_bits);
void qcow2_decoder_free(qcow2_decoder *decoder); /* NULL is allowed */
/* The file is going to be written here too; before any other thread reads. */
void qcow2_decoder_set_written(qcow2_decoder *decoder);
/* Copies bytes [skip, skip + length) of the cluster compressed at host_offset. -EIO: the
 * data does not decompress to a whole cluster. */
int qcow2_decoder_read(qcow2_decoder *decoder, uint64_t host_offset,
                       uint32_t compressed_size, void *buf, uint64_t skip, size_t length);

#endif
