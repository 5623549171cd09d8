/*
 * qcow2-variants.h: the kinds of qcow2 images that a writer has to get right, made by
 * qemu-img in the scratch directory, and what QEMU says of them.
 */
#ifndef TESTS_QCOW2_VARIANTS_H
#define TESTS_QCOW2_VARIANTS_H

#include "tests/support.h"

enum {
    VARIANT_BACKING = 1,      /* has a backing file */
    VARIANT_DATA_FILE = 2,    /* has an external data file, IMAGE.data */
    VARIANT_RAW_FILE = 4,     /* which is a raw image of the disk */
    VARIANT_SNAPSHOTS = 8,    /* has internal snapshots */
    VARIANT_NO_SNAPSHOT = 16, /* can take no (further) snapshot, with its refcounts or its
                                 data file */
    VARIANT_FEW = 32, /* one of the few that differ most, for tests that are slow */
};

typedef struct qcow2_variant {
    const char *name;
    uint64_t size; /* virtual, as qemu-img makes it */
    unsigned trim; /* then taken off the size in the header: no multiple of 512 */
    uint32_t cluster_size;
    unsigned traits;
    const char
        *commands; /* of the shell; $i: the image, $s: its size, `content`: a file of
                             16 MiB, in parts random, compressible and zero */
} qcow2_variant;

extern const qcow2_variant qcow2_variants[];
extern const size_t qcow2_variants_count;
/* NULL: there is none of that name. */
const qcow2_variant *qcow2_variant_find(const char *name);

/* Makes `image` in the scratch directory, with the files it needs beside it. */
void qcow2_variant_create(const qcow2_variant *v, const char *image);
/* Removes them. */
void qcow2_variant_remove(const char *image);

/* What qemu-img reads from the image, or from one of its snapshots (NULL: none); the caller
 * frees. QEMU drops what an odd size has beyond the last whole sector. */
uint8_t *qcow2_qemu_content(const char *image, const char *snapshot, size_t *ret_length);
/* `qemu-img check` finds nothing at all. */
void qcow2_assert_clean(const char *image, const char *what);
/* Random content of `length` bytes: compressible, incompressible or zero in parts. */
void qcow2_random_content(uint8_t *buf, size_t length, uint64_t *seed);

#endif
