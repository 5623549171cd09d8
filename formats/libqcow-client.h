/*
 * libqcow-client.h: the daemon's side of one decoder process. Private to qcow-libqcow.c,
 * which opens what this serves and is the image driver on top.
 *
 * Threads: one at a time (libqcow_image's lock), but `pid` may be looked at by any.
 */
#ifndef FORMATS_LIBQCOW_CLIENT_H
#define FORMATS_LIBQCOW_CLIENT_H

#include "formats/image.h"
#include "formats/libqcow-wire.h"
#include <stdatomic.h>

/* What one request asks for. */
typedef struct libqcow_piece {
    uint64_t offset;
    uint32_t length; /* at most LIBQCOW_SLOT_BYTES */
    uint8_t *lent; /* where in the shared buffer, past the slots; NULL: a slot's memory */
} libqcow_piece;

typedef enum libqcow_slot_state {
    SLOT_FREE,
    SLOT_ASKED,
    SLOT_ANSWERED
} libqcow_slot_state;

typedef struct libqcow_slot {
    libqcow_slot_state state;
    uint32_t sequence; /* of the request; the lower, the older */
    libqcow_piece piece;
    wire_reply reply; /* SLOT_ANSWERED */
} libqcow_slot;

typedef struct libqcow_client {
    /* Filled in by who opens the images; the descriptors and the buffer stay theirs. */
    unsigned n_layers;
    int fds[LIBQCOW_LAYERS_MAX]; /* n_files of them, the stand-in's is the last */
    file_stamp stamps[LIBQCOW_LAYERS_MAX];
    unsigned n_files;
    int timeout_ms;
    int memory_fd;
    uint8_t *buffer;   /* shared with the helper: the slots', then what is lent */
    wire_open opening; /* what each new helper is told; holds the key */

    uint32_t sequence;
    libqcow_slot slots[LIBQCOW_SLOTS];
    int socket;     /* valid if pid is not 0 */
    atomic_int pid; /* 0: no helper */
    bool replace;   /* the helper asked for it */
} libqcow_client;

/* Starts a helper. 0: there is an answer in *ret_reply, and a helper if it is WIRE_OK. */
int libqcow_client_start(libqcow_client *lc, wire_reply *ret_reply);
void libqcow_client_stop(libqcow_client *lc); /* none: nothing to do */

/* Has a piece decoded, by the helper that runs or a new one, into `buf`, or only into
 * p->lent. 0 or -errno. */
int libqcow_client_read(libqcow_client *lc, void *buf, const libqcow_piece *p);
/* Asks for a piece that will be read next, if that takes no waiting. */
void libqcow_client_read_ahead(libqcow_client *lc, const libqcow_piece *p);

#endif
