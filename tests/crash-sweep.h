/*
 * crash-sweep.h: what must become of the states that a power failure leaves of a disk
 * (crash-disk.h). Each is recovered in a process of its own and compared with what it has to
 * lead to; the power fails again while that is done (depth 2).
 *
 * A state is recovered: the disk opens; replicas differ only where that is known; each sector
 * holds what W6 says, which the model allows; all replicas are equal when the worker is done;
 * the journal tells what was decided; opening again changes nothing. Sometimes one replica
 * cannot be read any more: what the others decide is served all the same, and the rest is
 * right or an error.
 */
#ifndef TESTS_CRASH_SWEEP_H
#define TESTS_CRASH_SWEEP_H

#include "tests/crash-disk.h"
#include "tests/disk-model.h"

#define SWEEP_SECTOR  512u
#define SWEEP_SECTORS ((CRASH_DISK_SIZE + SWEEP_SECTOR - 1) / SWEEP_SECTOR)

/* What all processes of a life share. */
typedef struct sweep_report {
    char wrong[2000];      /* the first thing that was; "": nothing */
    unsigned states, deep; /* recovered; of crashes while they were */
    unsigned decided;      /* of them, where replicas differed */
    unsigned stale;        /* where a replica was stale */
    unsigned qemu;         /* qemu-img looked at the files in the end */
} sweep_report;

/* What a recovery has to lead to, whatever happens meanwhile. */
typedef struct sweep_outcome {
    uint8_t content[SWEEP_SECTORS * SWEEP_SECTOR];
    bool decided[SWEEP_SECTORS];
    gsize journal_from; /* records from here on are of this recovery */
} sweep_outcome;

typedef struct sweep sweep;
struct sweep {
    const crash_set *set;
    sweep_report *report;
    uint64_t life;    /* the seed that gives all others */
    uint64_t seed;    /* of the requests */
    uint64_t choices; /* of crash states */
    /* One point in so many is looked at, so many states of it each, one in so many by QEMU. */
    unsigned one_in, per_point, qemu_one_in;
    void (*use)(sweep *s); /* some requests, none of which fails */

    crash_disk *c; /* the files, and the disk if it is open */
    disk_model *model;
    unsigned depth;
    const sweep_outcome *before; /* of the recovery that crashed; NULL: not known yet */
    bool
        undecided; /* an earlier crash left what no flush covers yet, though it is known */

    uint64_t tag; /* of the last bytes written */
    unsigned victim, kills;
};

/* A crash_hook; user is the sweep. */
void sweep_at_point(void *user, crash_kind kind);

/* Below `limit`. */
uint64_t sweep_number(uint64_t *seed, uint64_t limit);
/* Takes `why`; NULL: nothing is wrong. False: something is, now or before. */
bool sweep_fine(sweep *s, const char *when, char *why);
bool sweep_good(sweep *s, const char *what, bool is);
/* Runs it in a child; what that changes in memory is lost. */
void sweep_fork(sweep *s, void (*run)(sweep *s));

/* All of the disk; the caller frees. */
uint8_t *sweep_read_disk(sweep *s, const char *when);
bool sweep_is_in_sync(sweep *s);

/* What the replicas hold (ret_raw: of CRASH_DISK_N), which are not open; to be freed. */
bool sweep_read_replicas(sweep *s, const char *when, uint8_t **ret_raw);
void sweep_free_replicas(uint8_t **raw);
/* What has to become of that; the disk was opened since, and nothing was done yet. */
bool sweep_foresee(sweep *s, uint8_t *const *raw, sweep_outcome *ret);
/* A model of the disk that goes on from there. Until a sector is seen it may hold whatever a
 * voter holds: one that drops out meanwhile has no part in the decision. */
disk_model *sweep_model_after(sweep *s, uint8_t *const *raw,
                              const sweep_outcome *outcome);

#endif
