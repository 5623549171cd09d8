/*
 * qcow-libqcow.h: images decoded by libqcow, in a process of their own.
 *
 * libqcow is not memory-safe and in places silently wrong (libqcow-subset.c), so it never
 * runs in the daemon. Each image gets a helper process: this program executed again
 * (posix_spawn is safe from a process with threads) with nothing but the image's
 * descriptors, a socket and a shared buffer; it gives up all but what opening them needs
 * (libqcow-sandbox.h), opens the images, gives up the rest and then serves reads. A helper
 * that crashes, lies about lengths or does not answer within the time-out is killed and
 * started anew, once per request; if that fails too, the read fails (R3) and the daemon
 * goes on.
 *
 * Only this module includes <libqcow.h>.
 */
#ifndef FORMATS_QCOW_LIBQCOW_H
#define FORMATS_QCOW_LIBQCOW_H

#include "formats/qcow2.h"

/* One layer of a run, top first. Only borrowed during the call. */
typedef struct libqcow_layer {
    int fd; /* open for reading; taken over by libqcow_open (also on failure) */
    const char *filename;
    uint32_t version;      /* 1, 2 or 3 */
    uint64_t size;         /* virtual size */
    uint32_t cluster_size; /* bytes */
    bool has_backing;      /* the header names a backing file */
} libqcow_layer;

typedef struct libqcow_options {
    const char *password; /* bytes (QEMU uses the first 16), NULL or "": none. Copied,
                             wiped on close, never logged. AES images hold nothing to check
                             it by: with a wrong one they read as noise. */
    unsigned timeout_ms;  /* how long one request may take; 0: the default, 5 s */
} libqcow_options;

/* Must be the first thing that main() does in every program that links this module: if
 * the process was started as a helper it serves until its socket closes and exits. */
void libqcow_helper_main(int argc, char **argv);

/* Opens a run of layers. Normally the last one is the bottom of the chain and names no
 * backing. If it does name one (a qcow 1 or AES overlay over a layer that libqcow refuses),
 * an empty image of the same size stands in as its parent, and the caller must know what
 * the layer holds itself, and take the rest from the layers below.
 * There is no map(): the caller keeps maps of its own (qcow2_open_mapper,
 * qcow1_open_mapper). A file that changes under the image is seen by the next read. */
image *libqcow_open(const libqcow_layer *layers, unsigned n_layers,
                    const libqcow_options *options, GError **error);

/* The pid of the helper, for tests and status; 0 if it is not running at the moment. */
int libqcow_helper_pid(const image *im);

/* Whether a qcow2 layer lies in libqcow's proven subset: NULL if so, else a static
 * string that says why not ("zero clusters", "zstd compression", ...). `check` is the
 * result of qcow2_check_tables. */
const char *libqcow_refuses_qcow2(const qcow2_header *header, const qcow2_check *check);

/* qcow version 1: header and tables, checked (O3) like qcow2's. Parsing is ours, decoding
 * is libqcow's where it decodes rightly (libqcow_refuses_qcow1), else ours. */
typedef struct qcow1_header {
    uint64_t size;
    uint32_t cluster_bits;
    uint32_t l2_bits;
    uint32_t crypt_method; /* 0 none, 1 AES */
    uint64_t l1_offset;
    char *backing_file; /* NULL: none */
} qcow1_header;
bool qcow1_header_read(int fd, const char *filename, qcow1_header *ret_header,
                       GError **error);
void qcow1_header_clear(qcow1_header *header);

/* The same question as libqcow_refuses_qcow2 for version 1. libqcow takes the offset of a
 * level 2 table for a multiple of the table's size, and a cluster's for a multiple of the
 * cluster size. With a backing file qemu-img makes tables of 32 KiB at any sector: such
 * overlays fail or, worse, read as something else. Walks the tables; *budget as in
 * qcow2_check_tables. */
const char *libqcow_refuses_qcow1(int fd, const qcow1_header *header, uint64_t *budget);

/* Opens read-only for map() and read(), for what libqcow refuses: plain and zlib clusters.
 * AES is refused (IMAGE_ERROR_UNSUPPORTED). Takes over fd, also on failure. */
image *qcow1_open(int fd, const qcow1_header *header, const char *filename,
                  GError **error);
/* For map() only: AES is taken too, read() is -ENOTSUP. Takes over fd, also on failure. */
image *qcow1_open_mapper(int fd, const qcow1_header *header, const char *filename,
                         GError **error);

#endif
