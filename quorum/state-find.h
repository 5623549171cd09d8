/*
 * state-find.h: the record of a disk among those that earlier mounts left, found by its
 * replicas (O5). Changes nothing, takes no lock, waits for nobody, and looks at no more than
 * STATE_FIND_DIRS directories.
 */
#ifndef QUORUM_STATE_FIND_H
#define QUORUM_STATE_FIND_H

#include "quorum/state.h"

#define STATE_FIND_DIRS 10000u

typedef struct state_found {
    char *dir, *disk; /* DIR/DISK.state; NULL: nowhere */
    uint64_t
        behind; /* then: the replicas that are recorded elsewhere as missing changes */
    char *
        elsewhere; /* then: a record that has some of the replicas, among more than as many
                         others; NULL: none has */
    unsigned shared; /* one of those replicas */
    bool
        strangers; /* then: such a record knows one of them as in sync and as it is now, and
                        others not so, who might outvote it */
    bool cut;      /* then: there were more directories */
} state_found;

/* Looks at DIR/DISK.state, and if that is not certainly it at BASE/<any>/<any>.state. A record is
 * it if at least half of its replicas are there: of several the one that knows most of them as
 * they are now. `shape` has identities; its size does not matter. Fails (STATE_ERROR_TWO) if
 * two know them equally well, unless one of them is DIR/DISK.state. */
bool state_find(const char *base, const char *dir, const char *disk,
                const state_shape *shape, state_found *ret_found, GError **error);
void state_found_clear(state_found *found);

#endif
