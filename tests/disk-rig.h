/*
 * disk-rig.h: a disk on raw replicas with a journal, for tests of the disk.
 */
#ifndef TESTS_DISK_RIG_H
#define TESTS_DISK_RIG_H

#include "quorum/disk.h"
#include "tests/fault.h"
#include "tests/support.h"
#include <jansson.h>

typedef struct disk_rig {
    disk *disk;
    journal *journal;
    char *paths[VOTE_REPLICAS_MAX]; /* named a, b, c ... */
    uint8_t *model; /* what all replicas were made of; the test's to change */
    uint64_t size;
    unsigned n;
    disk_pattern read_pattern; /* of the next open, as is the following */
    bool blkverify;
} disk_rig;

/* N equal raw files of support_pattern, opened as one disk. threshold 0: the majority. */
disk_rig *disk_rig_new(unsigned n, unsigned threshold, uint64_t size);
/* Closes the disk and opens it again. */
void disk_rig_reopen(disk_rig *rig, unsigned threshold);
void disk_rig_free(disk_rig *rig);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(disk_rig, disk_rig_free)

/* Options for files that the test made; format may be NULL. */
disk_options *disk_rig_options(char *const *paths, unsigned n, const char *format);

/* Replaces bytes of one replica behind the disk's back: each of its bytes xor `mask`. */
void disk_rig_corrupt(disk_rig *rig, unsigned replica, uint64_t offset, size_t length,
                      uint8_t mask);
/* Fails the test unless the read works and returns the model's bytes. */
void disk_rig_check_read(disk_rig *rig, uint64_t offset, size_t length);
int disk_rig_read(disk_rig *rig, uint64_t offset, size_t length);
/* Fails the test unless each replica of the set holds exactly the model. */
void disk_rig_check_replicas(disk_rig *rig, uint64_t set);

/* The model takes another size; grown space is zeroes. */
void disk_rig_model_resize(disk_rig *rig, uint64_t size);

/* The next such call of one replica fails with `error`, a write after `torn` bytes. */
void disk_rig_fail(disk_rig *rig, unsigned i, fault_kind kind, int error, uint64_t torn);
void disk_rig_expect_state(disk_rig *rig, unsigned i, replica_state state);

/* The journal's records with these values ("": any), as an array; json_decref it. */
json_t *disk_rig_records(disk_rig *rig, const char *event, const char *op);
unsigned disk_rig_count(disk_rig *rig, const char *event, const char *op);
/* Member of a record; fails the test if it is not there. */
int64_t record_int(const json_t *record, const char *name);
const char *record_str(const json_t *record, const char *name);
/* "a,b|c=DIGEST,d!5": winners, then losers with the first 8 digits of the digest or the
 * errno; `winner` has the digest after an equals sign too. The caller frees. */
char *record_parties(const json_t *record);
/* The only record with this event and operation: "OFFSET+LENGTH PARTIES errno N, ACTION". */
char *disk_rig_only_record(disk_rig *rig, const char *event, const char *op);
/* The first 8 digits of the SHA-256 of the model's bytes, each xor mask. */
char *disk_rig_digest(disk_rig *rig, uint64_t offset, size_t length, uint8_t mask);

#endif
