/*
 * nbd-internal.h: what the files of the NBD driver share.
 *
 *   nbd-address.c  URIs
 *   nbd-connect.c  from an address to a connected handle, with a deadline
 *   nbd-link.c     one connection: requests go in, its thread brings the answers
 *   nbd-remote.c   all connections of an image, and what is known about its writes
 *   nbd-exec.c     servers that we start ourselves
 *   nbd.c          the image
 */
#ifndef FORMATS_NBD_INTERNAL_H
#define FORMATS_NBD_INTERNAL_H

#include "formats/nbd-address.h"
#include "formats/nbd.h"
#include <libnbd.h>
#include <stdatomic.h>

#define NBD_LINKS_MAX 4u

/* ---- nbd-exec.c -------------------------------------------------------------------- */

bool nbd_is_command(const char *word);
bool nbd_check_command(const char *command, GError **error);

typedef struct nbd_helper nbd_helper;
/* Starts the server; it need not listen yet. */
nbd_helper *nbd_helper_start(const char *command, GError **error);
/* Where it will listen. */
const char *nbd_helper_uri(const nbd_helper *helper);
/* Waits until there is a socket; false: it ended, or it is `until`. */
bool nbd_helper_await(nbd_helper *helper, gint64 until, GError **error);
/* From now on what it says is for the log. */
void nbd_helper_serves(nbd_helper *helper);
/* Ends the server, and waits for that. NULL is allowed. */
void nbd_helper_end(nbd_helper *helper);

/* ---- nbd-connect.c ----------------------------------------------------------------- */

/* What a server says of an export. */
typedef struct nbd_facts {
    uint64_t size;
    uint32_t block_min; /* a power of two; 1: any */
    uint32_t block_max; /* of data in one command; a multiple of block_min */
    bool read_only, can_flush, can_fua, can_zero, can_map, many_connections;
} nbd_facts;

bool nbd_facts_equal(const nbd_facts *a, const nbd_facts *b);

/* Connects within `timeout_ms`, or until wake_fd (-1: none) becomes readable. */
struct nbd_handle *nbd_handle_connect(const nbd_address *address, unsigned timeout_ms,
                                      int wake_fd, nbd_facts *ret_facts, GError **error);

/* ---- nbd-link.c -------------------------------------------------------------------- */

typedef enum nbd_op {
    NBD_OP_READ,
    NBD_OP_WRITE,
    NBD_OP_ZERO,
    NBD_OP_FLUSH,
    NBD_OP_MAP
} nbd_op;

typedef struct nbd_link nbd_link;
typedef struct nbd_remote nbd_remote;

/* One request, of as many commands as the server's block size makes of it. */
typedef struct nbd_request {
    nbd_op op;
    uint32_t flags; /* LIBNBD_CMD_FLAG_* */
    uint8_t *buf;
    uint64_t offset, length;
    uint64_t seen; /* of a READ: bytes that came */
    /* A MAP's answer: */
    bool zero;
    uint64_t extent;

    /* Of the link; under its lock once the request is started: */
    nbd_link *link;
    gint64 deadline;
    unsigned pending; /* commands to be answered, and one while some are to be issued */
    int error;
    GCond answered;
    struct nbd_request *next, *before;

    /* Of the remote: */
    uint64_t losses, written; /* of a FLUSH: when it began */
    uint8_t *memory;          /* kept from use to use */
    size_t capacity;
    struct nbd_request *next_free, *next_made;
} nbd_request;

typedef enum nbd_link_state {
    NBD_LINK_DOWN,
    NBD_LINK_CONNECTING,
    NBD_LINK_UP,
} nbd_link_state;

/* Takes over `handle`, which is connected, or NULL: not connected yet. NULL with errno, and
 * the handle is not taken. */
nbd_link *nbd_link_new(nbd_remote *remote, struct nbd_handle *handle);
/* Nobody waits for a request. NULL is allowed. */
void nbd_link_free(nbd_link *link);

/* For choosing; may have changed already. */
nbd_link_state nbd_link_get_state(nbd_link *link);
unsigned nbd_link_get_load(nbd_link *link);
/* Connects in the background, if it is time to. */
void nbd_link_kick(nbd_link *link);

/* 0: started; nbd_link_wait must follow some time. A link that is not up takes requests for
 * when it is, if `connect`; otherwise -EAGAIN. */
int nbd_link_start(nbd_link *link, nbd_request *request, bool connect);
/* The request's result, at its deadline at the latest. */
int nbd_link_wait(nbd_request *request);

/* ---- nbd-remote.c ------------------------------------------------------------------ */

/* Lock order: a link's lock before the remote's. */
struct nbd_remote {
    nbd_address address;
    nbd_facts facts; /* what the first connection found */
    unsigned timeout_ms;
    atomic_bool changed; /* another connection found something else */

    nbd_link *links[NBD_LINKS_MAX];
    unsigned n_links;

    GMutex lock;
    nbd_request *free_requests; /* under the lock, as is the rest */
    nbd_request *made_requests; /* all */
    uint64_t written;           /* changes acknowledged */
    uint64_t flushed;           /* of those, on stable storage, or known to be lost */
    uint64_t losses;            /* how often connections went with changes not flushed */
    uint64_t losses_told;
    GArray *draining; /* of int: sockets; NULL: none ever */
};

/* `shown` (may be NULL) stands for the URI in messages. After a failure, too,
 * nbd_remote_close must follow. */
bool nbd_remote_open(nbd_remote *remote, const char *uri, const char *shown,
                     unsigned timeout_ms, GError **error);
void nbd_remote_close(nbd_remote *remote);

/* A request with memory for `bytes`. Given back with nbd_remote_put, when not under way. */
nbd_request *nbd_remote_get(nbd_remote *remote, size_t bytes);
void nbd_remote_put(nbd_remote *remote, nbd_request *request);

int nbd_remote_start(nbd_remote *remote, nbd_request *request);
/* Waits, and gives the request back. */
int nbd_remote_finish(nbd_remote *remote, nbd_request *request);
int nbd_remote_run(nbd_remote *remote, nbd_request *request);

/* For links: a connection is given up with requests on it, of which the server may still
 * carry out those that it was sent. Takes a descriptor of its own. */
void nbd_remote_drain(nbd_remote *remote, int fd);
/* How many of these connections the server has not ended yet. */
unsigned nbd_remote_draining(nbd_remote *remote);

/* For links: a change was acknowledged; a connection is gone. */
void nbd_remote_note_written(nbd_remote *remote);
void nbd_remote_note_loss(nbd_remote *remote);

#endif
