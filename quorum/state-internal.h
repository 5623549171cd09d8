/*
 * state-internal.h: what the files of the state share. Private to state*.c.
 *
 *   state.c         policy: the set, intent
 *   state-stale.c   stale ranges
 *   state-exact.c   ranges known exactly within stale regions, pure
 *   state-open.c    opening, making, resetting
 *   state-shape.c   which replicas the recorded ones are; other shapes
 *   state-file.c    rounds: what is wanted reaches the file, once for all who wait
 *   state-find.c    which file it is
 *   state-format.c  slots and sectors as bytes, pure
 *
 * The file: slot 0, slot 1, then one area: the intent bitmap and one stale bitmap for each
 * replica. A slot is written as a whole, with a sequence number and a sum. A bitmap is in
 * sectors of 62 words of bits, a word that says which sector it is, and half a SHA-256's half
 * over both and over the set and layout that it belongs to. A sector that is not valid
 * counts as all set. The area is replaced, never moved: a new layout is written elsewhere in
 * the file, and counts when a slot says so. Numbers are little-endian.
 */
#ifndef QUORUM_STATE_INTERNAL_H
#define QUORUM_STATE_INTERNAL_H

#include "quorum/state.h"
#include <stdatomic.h>

#define STATE_SECTOR       512u
#define STATE_SECTOR_WORDS 62u
#define STATE_SECTOR_BITS  (STATE_SECTOR_WORDS * 64)
#define STATE_SLOT_MAX     (128u << 10)
#define STATE_AREA_MIN     (2 * STATE_SLOT_MAX) /* where the first area may lie */
#define STATE_NAME_SIZE    128u
#define STATE_SOURCE_SIZE  512u
#define STATE_BITMAPS_MAX  (1 + VOTE_REPLICAS_MAX)
#define STATE_INTENT_BITS  (1u << 20) /* at most: 8 bytes of memory each */
#define STATE_STALE_BITS   (1u << 23)
#define STATE_EXACT_MAX    1024u

/* Part of a stale region that a replica missed: what it missed of that region is such ranges
 * and nothing else. */
typedef struct state_exact {
    uint32_t replica;
    uint64_t offset, length; /* within one region */
} state_exact;

/* What a slot says. */
typedef struct state_facts {
    uint64_t sequence;
    uint8_t set_id[16];
    uint64_t generation;
    bool clean;
    bool reconcile; /* though clean, what is dirty may differ */
    uint64_t size;
    uint64_t resize_from, resize_to; /* equal: no resize is under way */
    unsigned n, threshold;
    unsigned intent_shift, stale_shift; /* a region is 1 << shift bytes */
    uint64_t layout;                    /* counts up with each area */
    uint64_t area;                      /* where it is */
    struct {
        char name[STATE_NAME_SIZE], source[STATE_SOURCE_SIZE];
        state_replica record;
    } replicas[VOTE_REPLICAS_MAX];
    unsigned n_exact;
    state_exact exact[STATE_EXACT_MAX]; /* by replica, then offset; never overlapping */
} state_facts;

/* One bitmap. */
typedef struct state_bitmap {
    unsigned index; /* 0: intent; 1 + i: replica i's */
    unsigned shift;
    uint32_t bits, sectors;
    atomic_uint_fast64_t *wanted; /* what the file is to hold; changed under the lock */
    uint64_t *stable;             /* what it holds for certain; under the lock */
    uint64_t *copied;             /* of a replica; NULL: nothing; under the lock */
    bool *queued;                 /* by sector; under the lock */
} state_bitmap;

/* A region's word: writes under way, flags, writes ever begun. */
#define STATE_WRITE_ONE    ((UINT64_C(1) << 24) + 1)
#define STATE_WRITES       ((UINT64_C(1) << 20) - 1) /* mask: under way */
#define STATE_STABLE       (UINT64_C(1) << 20)       /* its bit is on disk */
#define STATE_KEPT         (UINT64_C(1) << 21)       /* a write failed: replicas differ */
#define STATE_UNRECONCILED (UINT64_C(1) << 22)       /* was dirty at open */

struct state {
    int fd;
    char *path;
    bool is_new, was_clean;
    atomic_uint_fast64_t *regions; /* of bitmap 0, one word each */
    state_bitmap bitmaps[STATE_BITMAPS_MAX];
    atomic_uint_fast64_t stale_bytes[VOTE_REPLICAS_MAX], dirty_bytes, unreconciled_bytes;

    GMutex lock; /* guards what follows, and what the bitmaps say of it */
    GCond changed;
    state_facts facts;
    bool facts_dirty;
    unsigned durable_slot;
    GArray *queue; /* of uint64_t: bitmap << 32 | sector */
    bool running;  /* a round, or a reshape */
    bool pending;  /* another shape was adopted: nothing is written (state_take_over) */
    uint64_t begun, ended, good; /* rounds; `good`: the last one that succeeded */
    int error;                   /* of the last one that did not */
};

/* state-format.c */

static inline uint32_t state_bits(uint64_t size, unsigned shift)
{
    return (uint32_t)((size >> shift) + ((size & ((UINT64_C(1) << shift) - 1)) != 0));
}
static inline uint32_t state_sectors(uint32_t bits)
{
    return bits / STATE_SECTOR_BITS + 1;
}
uint64_t state_area_length(const state_facts *facts);
/* Where a bitmap's sector lies in the file. */
uint64_t state_sector_at(const state_facts *facts, unsigned bitmap, uint32_t sector);

/* How long the slot is: a multiple of 4096. */
size_t state_slot_length(const state_facts *facts);
void state_encode_slot(const state_facts *facts, uint8_t *ret_slot);
typedef enum state_slot_kind {
    STATE_SLOT_INVALID,
    STATE_SLOT_VALID,
    STATE_SLOT_NEWER, /* valid, but of a later version */
} state_slot_kind;
/* `slot` holds STATE_SLOT_MAX bytes. Everything is checked (O3). */
state_slot_kind state_decode_slot(const uint8_t *slot, state_facts *ret_facts);

/* The bits are in the sector already. */
void state_seal_sector(const state_facts *facts, unsigned bitmap, uint32_t sector,
                       uint8_t *bytes);
bool state_sector_is_sealed(const state_facts *facts, unsigned bitmap, uint32_t sector,
                            const uint8_t *bytes);

/* state-exact.c. A region with entries of a replica is told by them; one without, by its bit. */

/* The replica's entries that end behind `offset`: the first one's index, or n_exact. */
unsigned state_exact_find(const state_facts *facts, unsigned replica, uint64_t offset);
/* Whether there is an entry of the replica in the region around `offset`. */
bool state_exact_has(const state_facts *facts, unsigned replica, uint64_t offset);
/* The replica missed a range: regions with entries get it, or lose their entries where
 * that says more. Returns whether something changed. */
bool state_exact_add(state_facts *facts, unsigned replica, uint64_t offset,
                     uint64_t length);
/* What it missed of the region around `offset` is this. False: there is no room for it. */
bool state_exact_set(state_facts *facts, unsigned replica, uint64_t offset,
                     const rangeset *missed);
/* Entries that `keep` denies are forgotten. Returns whether there were any. */
typedef bool state_exact_keep(void *opaque, const state_exact *entry);
bool state_exact_filter(state_facts *facts, state_exact_keep *keep, void *opaque);

/* state-file.c; the lock is held, and given up meanwhile */

/* Waits until everything that is wanted now is durable. */
int state_commit(state *s);
/* Nobody else leads a round until state_leave. */
void state_enter(state *s);
void state_leave(state *s);

void state_bitmap_init(state_bitmap *bitmap, unsigned index, const state_facts *facts);
void state_bitmap_clear(state_bitmap *bitmap);
void state_queue_sector(state *s, state_bitmap *bitmap, uint32_t sector);
/* Bytes that a bit stands for. */
uint64_t state_bit_bytes(const state *s, const state_bitmap *bitmap, uint32_t bit);
static inline bool state_has_bit(const state_bitmap *bitmap, uint32_t bit)
{
    return atomic_load_explicit(&bitmap->wanted[bit / 64], memory_order_acquire) >>
               bit % 64 &
           1;
}
/* Returns whether it changed; then its sector is queued. */
bool state_want_bit(state *s, state_bitmap *bitmap, uint32_t bit, bool value);

/* Queues every sector and makes them durable, then each slot. Takes the lock. */
int state_write_all(state *s);

/* state-open.c */
state *state_new(int fd, char *path); /* owns both */
void state_free(state *s);
void state_init_bitmaps(state *s); /* as the facts say, all clear */

/* state-shape.c */

/* Returns why it cannot be, or NULL. */
const char *state_set_shape(state_facts *facts, const state_shape *shape);
/* Which of the replicas recorded are among those of the shape, whatever they are called;
 * ret_map as for state_reshape. Returns how many, 0 (and no map) for a shape that cannot be. */
unsigned state_match(const state_facts *recorded, const state_shape *shape, int *ret_map);
uint64_t state_random_number(void); /* not 0 */
/* Makes what was loaded that of the shape, in memory. -EINVAL: *ret_why; -ENOENT: other replicas. */
int state_adopt(state *s, const state_shape *shape, const char **ret_why);

/* state-stale.c: a state_exact_keep of a state. */
bool state_has_exact_bit(void *opaque, const state_exact *entry);

/* state.c */

/* The totals, from the bitmaps; after an open or a reshape. */
void state_recount(state *s);

typedef struct state_range {
    uint32_t first, end; /* bits [first, end) */
} state_range;
/* The bits that the range touches; false: it leaves the disk. */
bool state_touched(const state *s, const state_bitmap *bitmap, uint64_t offset,
                   uint64_t length, state_range *ret_range);
/* The bits that lie wholly in it; the last one ends with the disk. */
state_range state_covered(const state *s, const state_bitmap *bitmap, uint64_t offset,
                          uint64_t length);

typedef bool state_test_bit(const state *s, const state_bitmap *bitmap, uint32_t bit);
bool state_is_set(const state *s, const state_bitmap *bitmap, uint32_t bit);
/* The next run of bits that pass, at or after `from`; false: none. */
bool state_next_run(const state *s, const state_bitmap *bitmap, state_test_bit *test,
                    uint64_t from, uint64_t *ret_offset, uint64_t *ret_length);

#endif
