/*
 * state-format.c: the bytes of the state file (state-internal.h). No I/O.
 */
#include "quorum/journal.h"
#include "quorum/state-internal.h"
#include <endian.h>
#include <string.h>

#define MAGIC   UINT64_C(0x6574617473667071) /* "qpfstate" */
#define VERSION 2u

/* A slot. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_LENGTH = 12,
    AT_SUM = 16, /* of all of the slot, with zeroes here */
    AT_SEQUENCE = 48,
    AT_SET_ID = 56,
    AT_GENERATION = 72,
    AT_SIZE = 80,
    AT_FLAGS = 88,
    AT_N = 92,
    AT_THRESHOLD = 96,
    AT_INTENT_SHIFT = 100,
    AT_STALE_SHIFT = 104,
    AT_LAYOUT = 112,
    AT_AREA = 120,
    AT_REPLICAS = 128,
    SUM_SIZE = 32,
    FLAG_CLEAN = 1,
    FLAG_RECONCILE = 2,
};

/* A replica in a slot. */
enum {
    AT_NAME = 0,
    AT_SOURCE = AT_NAME + STATE_NAME_SIZE,
    AT_STATE = AT_SOURCE + STATE_SOURCE_SIZE,
    AT_KIND = AT_STATE + 4,
    AT_HAS = AT_KIND + 4,
    AT_SYNCED = AT_HAS + 8,
    AT_TOP = AT_SYNCED + 8,
    FILE_SIZE = 48,
    AT_DATA = AT_TOP + FILE_SIZE,
    AT_HEADER = AT_DATA + FILE_SIZE,
    AT_NUMBER = AT_HEADER + 32,
    AT_MARK = AT_NUMBER + 8, /* set, replica, generation */
    REPLICA_SIZE = 1024,
    HAS_DATA = 1,
    HAS_HEADER = 2,
    HAS_MARK = 4,
    MARK_CLEAN = 8,
};

/* Behind the replicas. Version 1 has nothing there. */
enum {
    AT_RESIZE_FROM = 0,
    AT_RESIZE_TO = 8,
    AT_N_EXACT = 16,
    AT_EXACT = 32, /* entries: replica, 4 bytes unused, offset, length */
    EXACT_SIZE = 24,
};
G_STATIC_ASSERT(AT_MARK + 32 <= REPLICA_SIZE);
G_STATIC_ASSERT(AT_REPLICAS + VOTE_REPLICAS_MAX * REPLICA_SIZE + AT_EXACT +
                    STATE_EXACT_MAX * EXACT_SIZE <=
                STATE_SLOT_MAX);

static void put32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

/* ---- Where things are ---------------------------------------------------------------- */

static uint32_t bitmap_sectors(const state_facts *facts, unsigned bitmap)
{
    unsigned shift = bitmap == 0 ? facts->intent_shift : facts->stale_shift;
    return state_sectors(state_bits(facts->size, shift));
}

uint64_t state_sector_at(const state_facts *facts, unsigned bitmap, uint32_t sector)
{
    uint64_t before = bitmap == 0 ? 0
                                  : bitmap_sectors(facts, 0) +
                                        (uint64_t)(bitmap - 1) * bitmap_sectors(facts, 1);
    return facts->area + (before + sector) * STATE_SECTOR;
}

uint64_t state_area_length(const state_facts *facts)
{
    return state_sector_at(facts, facts->n + 1, 0) - facts->area;
}

static size_t at_tail(unsigned n)
{
    return AT_REPLICAS + (size_t)n * REPLICA_SIZE;
}

static size_t slot_length(size_t used)
{
    return (used + 4095) & ~(size_t)4095;
}

size_t state_slot_length(const state_facts *facts)
{
    return slot_length(at_tail(facts->n) + AT_EXACT +
                       (size_t)facts->n_exact * EXACT_SIZE);
}

/* ---- Slots --------------------------------------------------------------------------- */

static void encode_file(uint8_t *at, const identity_file *file)
{
    put64(at, file->dev);
    put64(at + 8, file->ino);
    put64(at + 16, file->size);
    put64(at + 24, (uint64_t)file->birth_ns);
    put64(at + 32, (uint64_t)file->mtime_ns);
    put64(at + 40, (uint64_t)file->ctime_ns);
}

static void decode_file(const uint8_t *at, identity_file *ret_file)
{
    ret_file->dev = get64(at);
    ret_file->ino = get64(at + 8);
    ret_file->size = get64(at + 16);
    ret_file->birth_ns = (int64_t)get64(at + 24);
    ret_file->mtime_ns = (int64_t)get64(at + 32);
    ret_file->ctime_ns = (int64_t)get64(at + 40);
}

static void encode_replica(uint8_t *at, const state_replica *record)
{
    const identity *id = &record->identity;
    put32(at + AT_STATE, record->state);
    put32(at + AT_KIND, id->kind);
    put32(at + AT_HAS, (id->has_data ? HAS_DATA : 0) | (id->has_header ? HAS_HEADER : 0) |
                           (id->mark.present ? HAS_MARK : 0) |
                           (id->mark.clean ? MARK_CLEAN : 0));
    put64(at + AT_SYNCED, record->synced_generation);
    encode_file(at + AT_TOP, &id->top);
    encode_file(at + AT_DATA, &id->data);
    memcpy(at + AT_HEADER, id->header, sizeof id->header);
    put64(at + AT_NUMBER, record->number);
    memcpy(at + AT_MARK, id->mark.set_id, sizeof id->mark.set_id);
    put64(at + AT_MARK + 16, id->mark.replica);
    put64(at + AT_MARK + 24, id->mark.generation);
}

static bool decode_replica(const uint8_t *at, state_replica *ret_record)
{
    identity *id = &ret_record->identity;
    uint32_t health = get32(at + AT_STATE), kind = get32(at + AT_KIND);
    if (health > STATE_REMOVED || kind > IDENTITY_REMOTE)
        return false;
    ret_record->state = (state_replica_state)health;
    ret_record->synced_generation = get64(at + AT_SYNCED);
    id->kind = (identity_kind)kind;
    id->has_data = get32(at + AT_HAS) & HAS_DATA;
    id->has_header = get32(at + AT_HAS) & HAS_HEADER;
    decode_file(at + AT_TOP, &id->top);
    decode_file(at + AT_DATA, &id->data);
    memcpy(id->header, at + AT_HEADER, sizeof id->header);
    ret_record->number = get64(at + AT_NUMBER);
    id->mark.present = get32(at + AT_HAS) & HAS_MARK;
    id->mark.clean = get32(at + AT_HAS) & MARK_CLEAN;
    memcpy(id->mark.set_id, at + AT_MARK, sizeof id->mark.set_id);
    id->mark.replica = get64(at + AT_MARK + 16);
    id->mark.generation = get64(at + AT_MARK + 24);
    return true;
}

/* `slot` is changed only while this runs. */
static void sum_slot(const uint8_t *slot, size_t length, uint8_t ret_sum[SUM_SIZE])
{
    g_autofree uint8_t *copy = g_memdup2(slot, length);
    memset(copy + AT_SUM, 0, SUM_SIZE);
    journal_digest(copy, length, ret_sum);
}

static void encode_tail(const state_facts *facts, uint8_t *tail)
{
    put64(tail + AT_RESIZE_FROM, facts->resize_from);
    put64(tail + AT_RESIZE_TO, facts->resize_to);
    put32(tail + AT_N_EXACT, facts->n_exact);
    for (unsigned k = 0; k < facts->n_exact; k++) {
        uint8_t *at = tail + AT_EXACT + (size_t)k * EXACT_SIZE;
        put32(at, facts->exact[k].replica);
        put64(at + 8, facts->exact[k].offset);
        put64(at + 16, facts->exact[k].length);
    }
}

static bool has_valid_exact(const state_facts *facts)
{
    for (unsigned k = 0; k < facts->n_exact; k++) {
        const state_exact *entry = &facts->exact[k];
        if (entry->replica >= facts->n || entry->length == 0 ||
            entry->offset >= facts->size || entry->length > facts->size - entry->offset ||
            entry->offset >> facts->stale_shift !=
                (entry->offset + entry->length - 1) >> facts->stale_shift)
            return false;
        if (k > 0 && (entry[-1].replica > entry->replica ||
                      (entry[-1].replica == entry->replica &&
                       entry[-1].offset + entry[-1].length > entry->offset)))
            return false;
    }
    return true;
}

static bool decode_tail(const uint8_t *tail, state_facts *facts)
{
    facts->resize_from = get64(tail + AT_RESIZE_FROM);
    facts->resize_to = get64(tail + AT_RESIZE_TO);
    facts->n_exact = get32(tail + AT_N_EXACT);
    if (facts->n_exact > STATE_EXACT_MAX || facts->resize_from > IMAGE_SIZE_MAX ||
        facts->resize_to > IMAGE_SIZE_MAX)
        return false;
    for (unsigned k = 0; k < facts->n_exact; k++) {
        const uint8_t *at = tail + AT_EXACT + (size_t)k * EXACT_SIZE;
        facts->exact[k] = (state_exact){get32(at), get64(at + 8), get64(at + 16)};
    }
    return has_valid_exact(facts);
}

void state_encode_slot(const state_facts *facts, uint8_t *ret_slot)
{
    size_t length = state_slot_length(facts);
    memset(ret_slot, 0, length);
    put64(ret_slot + AT_MAGIC, MAGIC);
    put32(ret_slot + AT_VERSION, VERSION);
    put32(ret_slot + AT_LENGTH, (uint32_t)length);
    put64(ret_slot + AT_SEQUENCE, facts->sequence);
    memcpy(ret_slot + AT_SET_ID, facts->set_id, sizeof facts->set_id);
    put64(ret_slot + AT_GENERATION, facts->generation);
    put64(ret_slot + AT_SIZE, facts->size);
    put32(ret_slot + AT_FLAGS,
          (facts->clean ? FLAG_CLEAN : 0) | (facts->reconcile ? FLAG_RECONCILE : 0));
    put32(ret_slot + AT_N, facts->n);
    put32(ret_slot + AT_THRESHOLD, facts->threshold);
    put32(ret_slot + AT_INTENT_SHIFT, facts->intent_shift);
    put32(ret_slot + AT_STALE_SHIFT, facts->stale_shift);
    put64(ret_slot + AT_LAYOUT, facts->layout);
    put64(ret_slot + AT_AREA, facts->area);
    for (unsigned i = 0; i < facts->n; i++) {
        uint8_t *at = ret_slot + AT_REPLICAS + (size_t)i * REPLICA_SIZE;
        memcpy(at + AT_NAME, facts->replicas[i].name, STATE_NAME_SIZE);
        memcpy(at + AT_SOURCE, facts->replicas[i].source, STATE_SOURCE_SIZE);
        encode_replica(at, &facts->replicas[i].record);
    }
    encode_tail(facts, ret_slot + at_tail(facts->n));
    sum_slot(ret_slot, length, ret_slot + AT_SUM);
}

static bool has_valid_shape(const state_facts *facts)
{
    return facts->size <= IMAGE_SIZE_MAX && facts->intent_shift >= 12 &&
           facts->intent_shift <= 62 && facts->stale_shift >= 12 &&
           facts->stale_shift <= 62 &&
           facts->size >> facts->intent_shift < STATE_INTENT_BITS + 1 &&
           facts->size >> facts->stale_shift < STATE_STALE_BITS + 1 &&
           state_bits(facts->size, facts->intent_shift) <= STATE_INTENT_BITS &&
           state_bits(facts->size, facts->stale_shift) <= STATE_STALE_BITS &&
           facts->area >= STATE_AREA_MIN && facts->area % 4096 == 0 &&
           facts->area <= IMAGE_SIZE_MAX;
}

static bool decode_facts(const uint8_t *slot, state_facts *facts)
{
    facts->sequence = get64(slot + AT_SEQUENCE);
    memcpy(facts->set_id, slot + AT_SET_ID, sizeof facts->set_id);
    facts->generation = get64(slot + AT_GENERATION);
    facts->clean = get32(slot + AT_FLAGS) & FLAG_CLEAN;
    facts->reconcile = get32(slot + AT_FLAGS) & FLAG_RECONCILE;
    facts->size = get64(slot + AT_SIZE);
    facts->n = get32(slot + AT_N);
    facts->threshold = get32(slot + AT_THRESHOLD);
    facts->intent_shift = get32(slot + AT_INTENT_SHIFT);
    facts->stale_shift = get32(slot + AT_STALE_SHIFT);
    facts->layout = get64(slot + AT_LAYOUT);
    facts->area = get64(slot + AT_AREA);
    if (facts->n < 1 || facts->n > VOTE_REPLICAS_MAX || facts->threshold < 1 ||
        facts->threshold > facts->n || !has_valid_shape(facts))
        return false;
    for (unsigned i = 0; i < facts->n; i++) {
        const uint8_t *at = slot + AT_REPLICAS + (size_t)i * REPLICA_SIZE;
        memcpy(facts->replicas[i].name, at + AT_NAME, STATE_NAME_SIZE);
        memcpy(facts->replicas[i].source, at + AT_SOURCE, STATE_SOURCE_SIZE);
        if (facts->replicas[i].name[STATE_NAME_SIZE - 1] != '\0' ||
            facts->replicas[i].source[STATE_SOURCE_SIZE - 1] != '\0' ||
            !decode_replica(at, &facts->replicas[i].record))
            return false;
    }
    if (get32(slot + AT_VERSION) == 1)
        return get32(slot + AT_LENGTH) == slot_length(at_tail(facts->n));
    return decode_tail(slot + at_tail(facts->n), facts) &&
           get32(slot + AT_LENGTH) == state_slot_length(facts);
}

state_slot_kind state_decode_slot(const uint8_t *slot, state_facts *ret_facts)
{
    uint32_t length = get32(slot + AT_LENGTH);
    uint8_t sum[SUM_SIZE];
    memset(ret_facts, 0, sizeof *ret_facts);
    if (get64(slot + AT_MAGIC) != MAGIC || length < AT_REPLICAS ||
        length > STATE_SLOT_MAX)
        return STATE_SLOT_INVALID;
    sum_slot(slot, length, sum);
    if (memcmp(sum, slot + AT_SUM, SUM_SIZE) != 0)
        return STATE_SLOT_INVALID;
    if (get32(slot + AT_VERSION) > VERSION)
        return STATE_SLOT_NEWER;
    return decode_facts(slot, ret_facts) ? STATE_SLOT_VALID : STATE_SLOT_INVALID;
}

/* ---- Sectors ------------------------------------------------------------------------- */

enum { AT_PLACE = STATE_SECTOR_WORDS * 8, AT_SECTOR_SUM = AT_PLACE + 8 };
G_STATIC_ASSERT(AT_SECTOR_SUM + 8 == STATE_SECTOR);

static uint64_t place_of(unsigned bitmap, uint32_t sector)
{
    return (uint64_t)bitmap << 32 | sector;
}

/* Set and layout are in the sum, though not in the sector: what an earlier layout or
 * another file left there is not valid. */
static uint64_t sum_sector(const state_facts *facts, const uint8_t *bytes)
{
    uint8_t text[24 + AT_SECTOR_SUM], digest[32];
    memcpy(text, facts->set_id, 16);
    put64(text + 16, facts->layout);
    memcpy(text + 24, bytes, AT_SECTOR_SUM);
    journal_digest(text, sizeof text, digest);
    return get64(digest);
}

void state_seal_sector(const state_facts *facts, unsigned bitmap, uint32_t sector,
                       uint8_t *bytes)
{
    put64(bytes + AT_PLACE, place_of(bitmap, sector));
    put64(bytes + AT_SECTOR_SUM, sum_sector(facts, bytes));
}

bool state_sector_is_sealed(const state_facts *facts, unsigned bitmap, uint32_t sector,
                            const uint8_t *bytes)
{
    return get64(bytes + AT_PLACE) == place_of(bitmap, sector) &&
           get64(bytes + AT_SECTOR_SUM) == sum_sector(facts, bytes);
}
