/*
 * chain.h: a replica's chain of layers, opened under O1 to O3 and O5 and read as one disk.
 *
 * Units: bytes. Convention: 0 or -errno on the data path, GError (IMAGE_ERROR) at open.
 * Threads: as in image.h; reads and writes that do not overlap may run at the same time.
 */
#ifndef FORMATS_CHAIN_H
#define FORMATS_CHAIN_H

#include "formats/image.h"
#include "formats/path.h"

#define CHAIN_DEPTH_MAX 64
/* L1 and refcount tables of all layers together (O3). One layer's are at most 40 MiB; a
 * terabyte in clusters of 64 KiB has 16 KiB and 256 KiB. */
#define CHAIN_TABLE_BYTES_MAX (256u << 20)

typedef enum chain_decoder {
    CHAIN_DECODER_AUTO, /* read-only: libqcow for the runs of layers that it decodes rightly;
                           writable: native, but for AES layers below the top */
    CHAIN_DECODER_LIBQCOW, /* error if a qcow or qcow2 layer is outside the proven subset;
                              never writable */
    CHAIN_DECODER_NATIVE,  /* error for what only libqcow reads: AES */
    CHAIN_DECODER_BOTH, /* qcow2 that both read: both, and -EBADMSG where they differ; what
                           only one of them reads is read by that one; never writable, as
                           the second reader does not see what was written */
} chain_decoder;

typedef struct chain_options {
    const char *path;   /* as the operator gave it; may be remote */
    const char *format; /* "raw", "qcow", "qcow2"; NULL: suffix and content (O1) */
    chain_decoder decoder;
    bool writable; /* open the top layer for writing, if that is possible */
    const char
        *password_file;  /* for AES images: first line without its newline; or NULL */
    unsigned timeout_ms; /* for decoder helpers; 0: default */
    const path_policy *policy; /* never NULL */
} chain_options;

/* What `info` and `status` tell about a layer. Owned by the chain. */
typedef struct chain_layer {
    const char *filename;     /* real path, or the source of what is remote */
    const char *format;       /* "raw", "qcow", "qcow2" */
    const char *decoder;      /* "raw", "native", "libqcow", "both", "nbd" */
    const char *note;         /* why not libqcow, which auto prefers ("zero clusters", "is
                                   opened for writing"), or NULL */
    uint64_t size;            /* virtual size of this layer */
    uint32_t cluster_size;    /* 0: raw */
    uint32_t version;         /* 0: raw */
    const char *backing_file; /* as in the image; NULL */
    const char *backing_format; /* as in the image; NULL */
    const char *data_file;      /* real path; NULL */
    const char *compression;    /* "zlib", "zstd"; NULL: not qcow2 */
    bool remote; /* on a server: no file, no lock, and no identity but its source */
    bool encrypted;
    bool extended_l2;
    bool lazy_refcounts;
    bool dirty; /* at open; false once chain_begin_writing has repaired it */
    uint32_t snapshot_count;
    uint32_t refcount_bits;
    uint64_t file_size;      /* bytes; this and the next at open, and after a resize */
    uint64_t file_allocated; /* st_blocks * 512 */
    uint64_t dev, ino;       /* identity (O2) */
} chain_layer;

/* The extent of the whole chain at an offset. */
typedef struct chain_extent {
    image_extent_kind kind; /* ZERO, DATA or COMPRESSED; UNALLOCATED: in no layer, or past
                               the end of a short backing: reads as zero */
    uint64_t length;
    unsigned layer; /* index of the layer that holds it, 0 is the top; for UNALLOCATED
                             the bottom one */
    uint64_t host_offset; /* DATA with has_host, COMPRESSED */
    bool has_host;
} chain_extent;

typedef struct chain chain;

/* Whether this names no file but a server (nbd.h): an NBD URI or exec:COMMAND. */
bool chain_is_remote(const char *path);
/* Whether it is opened as a qcow2: by its format or, where that is NULL, its suffix (O1). */
bool chain_names_qcow2(const char *path, const char *format);

/* Opens every layer, checks it, walks the backing files, chooses decoders, takes the
 * locks. Nothing is changed on disk. On failure everything is closed again.
 *
 * Raw and qcow2 tops can be written; the lock of a writer is then held on the top and on its
 * data file. What cannot be written (qcow version 1, AES, an image marked corrupt, a decoder
 * that does not write, a file that may not be) is opened for reading instead, with a
 * reader's locks, and chain_read_only_reason tells why. */
chain *chain_open(const chain_options *options, GError **error);
/* NULL is allowed. Where something is abandoned (uring.h), the file and its lock are given up
 * when that has returned, and nothing more is written to it. */
void chain_close(chain *c);
/* Abandoned calls on its files that have not returned yet. */
unsigned chain_abandoned(const chain *c);
/* Has the page cache forget its files: after a sync that failed, what it has is not what the
 * disk has (W4). */
void chain_forget_cache(chain *c);

/* Two chains must not share a file (O2: a vote among copies of one file is no vote). */
bool chain_check_distinct(chain *const *chains, unsigned n, GError **error);

uint64_t chain_size(const chain *c);
bool chain_writable(const chain *c); /* was opened for writing */
/* One line; NULL if writable or not asked for. */
const char *chain_read_only_reason(const chain *c);
unsigned chain_depth(const chain *c);
const chain_layer *chain_get_layer(const chain *c, unsigned index); /* 0 is the top */

/* Reads now, on this thread. */
int chain_read(chain *c, void *buf, uint64_t offset, size_t length);

/* Prepares a read: what needs no host file (zeroes, compressed clusters, libqcow) is in
 * buf when this returns; for the rest reads are appended to `list` with `owner`. The
 * data is there when the list has run and none of these ops failed. */
int chain_prepare_read(chain *c, void *buf, uint64_t offset, size_t length,
                       unsigned owner, io_list *list);

/* As in image.h: the same read is to follow. Never waits and never fails. */
void chain_read_ahead(chain *c, void *buf, uint64_t offset, size_t length);
/* As in image.h: memory that others can write to, and that is the faster for it. NULL: none. */
uint8_t *chain_lend(chain *c, size_t length);

/* Guest bytes that hold data, in all layers together, at most the size: what st_blocks
 * tells of the disk. May lag behind; covered parts of lower layers count too. */
uint64_t chain_allocated(const chain *c);

int chain_map(chain *c, uint64_t offset, uint64_t length, chain_extent *ret_extent);

/* Writes go to the top layer only. Everything here is as in image.h. */

/* Before the first change, when it is certain that the chain is to be changed: nothing is
 * changed on disk before this, and changes are -EROFS where the top's driver has something
 * to do here. Also for a chain that is not writable, which it leaves alone. */
bool chain_begin_writing(chain *c, GError **error);
int chain_prepare_write(chain *c, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change);
int chain_finish_write(chain *c, image_change *change, int result);
int chain_flush_step(chain *c, image_flush_state *flush, unsigned owner, io_list *list);

/* At once, on this thread. */
int chain_write(chain *c, const void *buf, uint64_t offset, size_t length);
int chain_write_zeroes(chain *c, uint64_t offset, uint64_t length);
int chain_discard(chain *c, uint64_t offset, uint64_t length);
int chain_resize(chain *c, uint64_t size);
int chain_flush(chain *c);

/* The top's mark (qcow2-mark.h). Durable. -ENOTSUP: it goes without, as all that is no qcow2
 * image. Between chain_begin_writing and chain_close. */
int chain_write_mark(chain *c, const qcow2_mark *mark);
/* Without one *ret_why says why there can be none, or is NULL; a static string. */
int chain_read_mark(const chain *c, qcow2_mark *ret_mark, const char **ret_why);

#endif
