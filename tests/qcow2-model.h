/*
 * qcow2-model.h: a qcow2 image that is written through a chain, beside the bytes that it has
 * to hold, and random operations on both.
 */
#ifndef TESTS_QCOW2_MODEL_H
#define TESTS_QCOW2_MODEL_H

#include "formats/chain.h"
#include "tests/qcow2-variants.h"

typedef struct qcow2_model {
    char *image; /* in the scratch directory */
    char *what;  /* for messages: the variant, the operation, its number */
    const char *variant;
    chain *disk; /* NULL: closed */
    uint64_t seed;
    uint32_t cluster_size;
    bool resizes;    /* operations that change the size are done, too */
    uint64_t size;   /* of the disk */
    uint64_t room;   /* it never grows larger */
    uint8_t *bytes;  /* `room` long; zero past the size */
    uint8_t *buffer; /* of the same length */
    unsigned steps;
} qcow2_model;

/* QUORUMFS_TEST_VARIANT=NAME: that variant only, with the random numbers that it has among
 * all; QUORUMFS_TEST_THOROUGH=1: ten times as many operations; QUORUMFS_TEST_TRACE=1: tells
 * each of them. */
bool qcow2_model_is_chosen(const qcow2_variant *v);
uint64_t qcow2_model_seed(const qcow2_variant *v, uint64_t seed);
unsigned qcow2_model_many(unsigned count);

/* Opens what qcow2_variant_create made, reads it and compares with what QEMU reads. */
void qcow2_model_start(qcow2_model *m, const qcow2_variant *v, const char *name,
                       uint64_t seed);
void qcow2_model_stop(qcow2_model *m);

/* Close, and open again for writing. */
void qcow2_model_close(qcow2_model *m);
void qcow2_model_open(qcow2_model *m);

/* Each does one thing to disk and model and reads its surroundings back. */
void qcow2_model_write(qcow2_model *m, uint64_t offset, uint64_t length);
void qcow2_model_zero(qcow2_model *m, uint64_t offset, uint64_t length);
void qcow2_model_discard(qcow2_model *m, uint64_t offset, uint64_t length);
void qcow2_model_resize(qcow2_model *m, uint64_t size);
void qcow2_model_flush(qcow2_model *m);
/* `count` operations, chosen at random. */
void qcow2_model_steps(qcow2_model *m, unsigned count);
/* The whole disk reads as the model, by reads and by the map. */
void qcow2_model_verify(qcow2_model *m);
/* Of the closed image: qemu-img check finds nothing, QEMU reads the model's bytes, and so do
 * we after opening read-only. */
void qcow2_model_check(qcow2_model *m);
/* Takes over what QEMU wrote to the closed image. */
void qcow2_model_load(qcow2_model *m);

#endif
