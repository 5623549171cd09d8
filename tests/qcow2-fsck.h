/*
 * qcow2-fsck.h: what `qemu-img check` says of a qcow2 image, a hundred times faster, and
 * made from nothing but the file's bytes: no code of the formats is asked.
 */
#ifndef TESTS_QCOW2_FSCK_H
#define TESTS_QCOW2_FSCK_H

#include <stdbool.h>
#include <stdint.h>

typedef struct qcow2_fsck {
    char *error; /* the first thing that is corrupt, NULL: nothing; the caller frees */
    bool dirty;  /* the dirty bit is set: refcounts and COPIED flags were not compared */
    uint64_t leaks; /* clusters with a refcount higher than the references to them */
} qcow2_fsck;

/* A cluster that is used for two things is an error even in a dirty image. */
qcow2_fsck qcow2_fsck_run(const char *path);

#endif
