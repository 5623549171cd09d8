/*
 * qcow2-rig.h: an image of the table of variants, written by random requests and compared
 * with a model. Images and what belongs to them lie in the scratch directory: NAME,
 * NAME.data; what they stand on belongs to the image that the variant was made as.
 * QUORUMFS_TEST_TRACE=1 prints the requests.
 */
#ifndef TESTS_QCOW2_RIG_H
#define TESTS_QCOW2_RIG_H

#include "formats/qcow2.h"
#include "tests/disk-model.h"
#include "tests/qcow2-variants.h"

#define QCOW2_RIG_IMAGE "i"

typedef enum rig_request {
    RIG_WRITE,
    RIG_ZEROES,
    RIG_DISCARD,
    RIG_FLUSH,
    RIG_RESIZE,
    RIG_REOPEN,
    RIG_REQUESTS
} rig_request;

typedef struct qcow2_rig {
    const qcow2_variant *variant;
    uint8_t *below; /* what the image stands on; NULL: nothing */
    size_t below_size;
    GPtrArray *snapshots; /* of GBytes: what they hold */

    char *name; /* of the image that is open */
    image *im;  /* NULL: none */
    disk_model *model;
    uint64_t size_max;
    uint64_t seed; /* of the requests */
    uint64_t tag;  /* of the last bytes written */
    uint64_t hot;  /* where a part of the requests goes */
    uint8_t *buf;

    /* Called when a request is done and its result not yet in the model. May be NULL. */
    void (*before_end)(void *user);
    void *user;
} qcow2_rig;

/* Makes the variant, fills `prefill` bytes of it, and a model of what it holds. */
qcow2_rig *qcow2_rig_new(const qcow2_variant *v, uint64_t prefill, uint64_t seed);
/* A rig for a copy of the image, with a model that knows nothing but its content. Borrows from
 * `r`, which must live longer. */
qcow2_rig *qcow2_rig_new_copy(const qcow2_rig *r, const char *name,
                              const uint8_t *content, uint64_t size, uint64_t seed);
void qcow2_rig_free(qcow2_rig *r);

/* Opens for writing; NULL, or the error (the caller frees). */
char *qcow2_rig_open(qcow2_rig *r);
void qcow2_rig_close(qcow2_rig *r);

/* One random request, or that one, in disk and model. Returns what the driver did. */
int qcow2_rig_step(qcow2_rig *r, rig_request *ret_request);
int qcow2_rig_do(qcow2_rig *r, rig_request request);
/* A write of new bytes, at most 128 KiB. */
int qcow2_rig_write(qcow2_rig *r, uint64_t offset, size_t length);
/* Reads all of the open disk and shows it to the model. NULL or what is wrong. */
char *qcow2_rig_see(qcow2_rig *r);

/* Reads an image that is not open, from header to last byte, by a reader of its own. On failure
 * *ret_content is NULL and the error is returned; the caller frees both. */
char *qcow2_rig_read(const qcow2_rig *r, const char *name, uint8_t **ret_content,
                     uint64_t *ret_size);
/* Whether all its snapshots hold what they held. */
char *qcow2_rig_check_snapshots(const qcow2_rig *r, const char *name);
/* Exit status of `qemu-img check OPTIONS`; what it said is in NAME.check. */
int qcow2_rig_qemu_check(const qcow2_rig *r, const char *name, const char *options);

#endif
