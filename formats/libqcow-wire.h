/*
 * libqcow-wire.h: what the client (qcow-libqcow.c) and its helper process
 * (libqcow-helper.c) say to each other. Private to the two and to their tests.
 *
 * A SOCK_SEQPACKET socket keeps messages apart. The first message goes to the helper and
 * carries the descriptors: the shared buffer first, then the layers, top first. After it
 * each request has exactly one reply, in the order of the requests. The data of a read lies
 * in the shared buffer where the request wanted it. Both ends are the same program, so the
 * structs need no byte order; the client believes nothing that a reply says before it has
 * checked it.
 */
#ifndef FORMATS_LIBQCOW_WIRE_H
#define FORMATS_LIBQCOW_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define LIBQCOW_HELPER_NAME  "quorumfs-decoder" /* argv[0] of a helper */
#define LIBQCOW_LAYERS_MAX   65 /* a whole chain and a stand-in for its parent */
#define LIBQCOW_SLOTS        8u /* requests at a time: fewer than net.unix.max_dgram_qlen */
#define LIBQCOW_SLOT_BYTES   (2u << 20)
#define LIBQCOW_LENT_BYTES   (6u << 20) /* after the slots */
#define LIBQCOW_BUFFER_BYTES (LIBQCOW_SLOTS * LIBQCOW_SLOT_BYTES + LIBQCOW_LENT_BYTES)
#define LIBQCOW_KEY_BYTES    16

/* A sanitizer's runtime maps shadow memory without bound and makes calls of its own when
 * it reports: no address space limit and no filter in such builds, which nobody ships. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIBQCOW_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LIBQCOW_SANITIZED 1
#endif
#endif
#ifndef LIBQCOW_SANITIZED
#define LIBQCOW_SANITIZED 0
#endif

typedef struct wire_open {
    uint32_t sequence;
    uint32_t n_layers;
    uint32_t cut; /* no single read may cross a multiple of this; 0: reads need no cut */
    uint32_t has_key;
    uint64_t memory;        /* heap after which the helper asks to be replaced */
    uint64_t address_space; /* RLIMIT_AS */
    uint64_t sizes[LIBQCOW_LAYERS_MAX];
    uint8_t key[LIBQCOW_KEY_BYTES];
} wire_open;

typedef struct wire_read {
    uint32_t sequence;
    uint32_t length; /* 1 to LIBQCOW_SLOT_BYTES */
    uint64_t offset;
    uint64_t place; /* in the shared buffer */
} wire_read;

typedef enum wire_status {
    WIRE_OK,
    WIRE_READ_FAILED,
    /* the answers to wire_open; `value` is the index of the layer that it is about */
    WIRE_OPEN_FAILED,
    WIRE_SIZE_DIFFERS,
    WIRE_KEY_MISSING,
    WIRE_CIPHER_UNKNOWN,
    WIRE_PARENT_REFUSED,
    WIRE_SANDBOX_FAILED,
    WIRE_STATUS_COUNT,
} wire_status;

typedef struct wire_reply {
    uint32_t sequence;
    uint32_t status;  /* wire_status */
    uint32_t value;   /* WIRE_OK: bytes in the buffer; else see above */
    uint32_t replace; /* 1: its caches have grown large, start a fresh one at leisure */
} wire_reply;

/* A helper process and the socket to it. Ending one also waits for it, but not for ever:
 * a process that cannot die just now is left to a thread. 0 or -errno. */
int libqcow_process_start(pid_t *ret_pid, int *ret_socket);
void libqcow_process_end(pid_t pid, int socket);

/* Sends one message, with descriptors if there are any. 0 or -errno. */
int wire_send(int socket, void *data, size_t length, const int *fds, unsigned n_fds);

/* Waits for the reply to the message `sequence` until the monotonic time `deadline` (us).
 * 0, -ETIMEDOUT, or -EIO for the end of the socket and for a reply that cannot be one. */
int wire_receive(int socket, uint32_t sequence, int64_t deadline, wire_reply *ret_reply);

/* What libqcow_process_start calls: starts a helper whose descriptor 0 is `socket`. 0 or -errno. A variable so that tests
 * can put a liar in its place. */
extern int (*libqcow_spawn)(int socket, pid_t *ret_pid);

#endif
