/*
 * chain-internal.h: what the files of the chain share. chain-format.c decides what a file
 * is, chain-open.c collects the layers, chain-remote.c those on servers, chain-decoder.c chooses who reads them, chain.c
 * reads and writes.
 */
#ifndef FORMATS_CHAIN_INTERNAL_H
#define FORMATS_CHAIN_INTERNAL_H

#include "formats/chain.h"
#include "formats/qcow-libqcow.h"
#include "formats/qcow2.h"
#include "formats/raw.h"

typedef enum layer_kind { LAYER_RAW, LAYER_QCOW1, LAYER_QCOW2 } layer_kind;

typedef struct layer {
    chain_layer info; /* its strings, save the static ones, belong to the layer */
    layer_kind kind;
    int fd; /* holds the lock; O_RDWR if this is the top of a writable chain, as data_fd */
    int data_fd; /* holds the data file's lock; -1: no such file */
    uint64_t data_dev, data_ino;
    qcow1_header qcow1;
    qcow2_header qcow2;
    const char *refusal; /* why libqcow must not read this layer; NULL: it may */
    uint64_t allocated;  /* guest bytes that hold data, at open; UINT64_MAX: unknown */
    image *im;           /* maps the layer, and reads it unless it is encrypted */
    char *address;       /* of a layer on a server: what identifies it; else NULL */
} layer;

/* One step of the walk from the top down. `map` says what the step holds; what it does not
 * hold is asked of the next one. */
typedef struct chain_unit {
    image *map;    /* borrowed from the unit's first layer */
    image *reader; /* the same, or the unit's own: libqcow */
    int raw_fd;    /* raw: all of it is read here, without a map; else -1 */
    bool whole;    /* the reader answers for all layers down to the bottom: no map */
} chain_unit;

typedef struct chain_stack {
    chain_unit units[CHAIN_DEPTH_MAX];
    unsigned count;
} chain_stack;

struct chain {
    layer *layers[CHAIN_DEPTH_MAX];
    unsigned depth;
    uint64_t check_budget; /* bytes of L2 tables that opening may still look at (O3) */
    uint64_t
        table_budget; /* bytes of L1 and refcount tables that layers may still have */
    uint64_t size;    /* atomic: status threads look while a resize runs */
    bool writable;
    char *read_only_reason;
    chain_stack stack; /* answers reads */
    chain_stack check; /* decoder=both: must answer the same; empty: no check */
};

const char *chain_kind_name(layer_kind kind);

/* What kind of image the operator, or a backing-format header, says it is. */
bool chain_kind_from_name(const char *name, layer_kind *ret_kind);
bool chain_kind_from_suffix(const char *path, layer_kind *ret_kind);
/* Whether the content of fd is what the suffix promised (O1). The hints are for a file
 * that the operator named, or (referrer not NULL) that an image names. */
bool chain_kind_agrees(int fd, layer_kind kind, const char *path, const layer *referrer,
                       GError **error);
/* There was neither a format nor a suffix. */
void chain_kind_unknown(int fd, const char *path, const layer *referrer, GError **error);

/* Another descriptor of the same open file: the lock stays while either is open. */
int chain_dup(int fd, const char *filename, GError **error);

/* The only layer of a replica on a server. */
bool chain_open_remote(chain *c, layer *l, const chain_options *options, GError **error);

/* Opens the layers' images, chooses decoders and builds the stacks. */
bool chain_choose_decoders(chain *c, const chain_options *options, GError **error);
void chain_stack_clear(chain_stack *stack);

/* What the layers below the top hold, as a disk: a qcow2_read_below of a chain. */
int chain_read_below(void *opaque, void *buf, uint64_t offset, size_t length);

#endif
