/*
 * image.h: the contract between one image file (a layer) and whoever reads it.
 *
 * A driver (raw.c, qcow2.c, qcow-libqcow.c) embeds `struct image` first in its own
 * struct, fills in `driver`, `filename`, `size` and `read_only`, and exports one
 * constructor. Callers use only the image_* functions below: image.c checks ranges,
 * flags and errnos once, so that a driver never has to.
 *
 * Units: offsets, lengths and sizes are bytes. Convention: 0 or -errno.
 * Errors of opening are GErrors of the domain IMAGE_ERROR, one line, no final
 * full stop, that starts with the file's name.
 *
 * Threads: every method but `close`, `resize` and `begin_writing` may run on several
 * threads at once. The caller (the disk's range locks, W1) guarantees that no two writes
 * that run at the same time overlap (a write runs from prepare to finish), and that nothing
 * overlaps a resize.
 */
#ifndef FORMATS_IMAGE_H
#define FORMATS_IMAGE_H

#include "formats/file.h"
#include "formats/qcow2-mark.h"
#include "formats/uring.h"
#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_SECTOR 512u
/* Largest virtual size that anything here accepts: 2^62, so that offset + length of two
 * valid values never overflows a signed 64-bit off_t (O3). */
#define IMAGE_SIZE_MAX ((uint64_t)1 << 62)

/* IMAGE_ERROR_* tell the command line which exit code a failure to open deserves and
 * let tests name the cause. All of them mean "this image cannot be opened". */
#define IMAGE_ERROR (image_error_quark())
typedef enum image_error {
    IMAGE_ERROR_IO,          /* open, stat, read failed: the message ends in strerror */
    IMAGE_ERROR_FORMAT,      /* not the format that was named, or O1 refuses to guess */
    IMAGE_ERROR_INVALID,     /* a field of the image breaks a rule of its format (O3) */
    IMAGE_ERROR_UNSUPPORTED, /* valid, but with a feature that no decoder here has */
    IMAGE_ERROR_REFUSED,     /* O2: a path, a FIFO, json:, a cycle, the same file twice */
    IMAGE_ERROR_LOCKED,      /* O5: somebody else has the image open */
    IMAGE_ERROR_PASSWORD,    /* encrypted, and the password is missing or wrong */
} image_error;
GQuark image_error_quark(void);

/* What lies at an offset of one layer. */
typedef enum image_extent_kind {
    IMAGE_EXTENT_UNALLOCATED, /* this layer says nothing: ask the next one down */
    IMAGE_EXTENT_ZERO,        /* reads as zeroes, whatever lies below */
    IMAGE_EXTENT_DATA,        /* bytes of this layer */
    IMAGE_EXTENT_COMPRESSED,  /* bytes of this layer, to be had through read() only */
} image_extent_kind;

typedef struct image_extent {
    image_extent_kind kind;
    uint64_t length; /* bytes of this kind from the offset asked for; never 0 */
    int fd;          /* DATA that is plain bytes of a host file: that file (owned by
                             the image, valid until image_close); else -1 */
    uint64_t
        host_offset; /* DATA with an fd, COMPRESSED: where in the host file; else 0 */
} image_extent;

typedef struct image image;

/* A driver's record of one write that is under way. */
typedef struct image_change image_change;

/* A flush that is under way. Starts zeroed. */
typedef struct image_flush_state {
    unsigned step; /* the driver's: how far it is */
    void *request; /* the driver's */
    int result;    /* the caller's: 0, or the first error of the ops of the last step */
} image_flush_state;

/* A method that a driver lacks is NULL; what image.c does then stands beside it. */
typedef struct image_driver {
    const char *name; /* "raw", "qcow2", "libqcow" */

    /* Frees everything, closes every descriptor, ends helpers. Never NULL. */
    void (*close)(image *im);

    /* Fills buf with exactly `length` bytes. The range lies within the image's size.
     * Unallocated bytes read as zeroes (a driver knows nothing of backing files, save
     * libqcow's, which is given a whole run of layers). Never NULL. */
    int (*read)(image *im, void *buf, uint64_t offset, size_t length);

    /* Says that read() will be called with the same arguments soon: a driver whose data
     * comes from another process has it fetch them already, if that takes no waiting.
     * Until that read `buf` may change. A hint: nothing depends on it, and read() tells of
     * errors. NULL: nothing to gain. */
    void (*read_ahead)(image *im, void *buf, uint64_t offset, size_t length);

    /* Memory of `length` bytes into which read() copies once less than into any other. It
     * is the image's, valid until close, and there for one user. The other process may
     * write to it at any time: what is checked there must be copied out first, once.
     * Returns NULL if it is too long. NULL: nothing to gain. */
    uint8_t *(*lend)(image *im, size_t length);

    /* Describes the extent at `offset`, looking no further than `length` bytes; the
     * range lies within the image's size. NULL: all DATA with fd -1. */
    int (*map)(image *im, uint64_t offset, uint64_t length, image_extent *ret_extent);

    /* Makes ready for the first change; called once, after the open, when it is certain
     * that the image may be changed (qcow2: repairs what an unclean end left). A driver that
     * has this opens images read_only, and changes nothing before; image.c sets read_only to
     * false when this has succeeded. NULL: nothing to do. */
    bool (*begin_writing)(image *im, GError **error);

    /* A write is split in two, so that several images are written in one submission.
     *
     * prepare_write begins one: it appends to `list` (with `owner`) the writes of host files
     * that carry its bytes, or sends them on their way to a server. buf stays valid until the
     * list has run and the write is finished. *ret_change: to be given to finish_write when
     * the list has run, also if an op failed; NULL: there is nothing to finish. Memory of
     * the driver's own that an abandoned op uses is the driver's to keep.
     * On failure nothing is to be run or finished. Waits while another write is between
     * prepare and finish in the same cluster: a thread that writes several images prepares
     * them in an order that all threads share, and finishes all before it prepares the next
     * request. NULL: -EROFS. */
    int (*prepare_write)(image *im, const void *buf, uint64_t offset, size_t length,
                         unsigned owner, io_list *list, image_change **ret_change);

    /* `result`: 0, or the error of an op. Returns what the write's caller is to be told.
     * Frees the change. Never NULL where prepare_write gives changes. */
    int (*finish_write)(image *im, image_change *change, int result);

    /* Makes the range read as zeroes; may keep or free the space. NULL, or -ENOTSUP:
     * image.c writes zeroes. */
    int (*write_zeroes)(image *im, uint64_t offset, uint64_t length);

    /* Frees the range's space where it can AND makes it read as zeroes: replicas must
     * stay equal after a discard, so "undefined content" is not allowed here.
     * NULL, or -ENOTSUP: write_zeroes. */
    int (*discard)(image *im, uint64_t offset, uint64_t length);

    /* New size in bytes, larger or smaller. Grown space reads as zeroes. image.c updates
     * `size` on success. The present size changes nothing, and tells whether the image can be
     * resized (-ENOTSUP). NULL: -ENOTSUP. */
    int (*resize)(image *im, uint64_t size);

    /* One step of putting everything that was written before on stable storage. 1: ops were
     * appended, or a server was asked; run them, put 0 or their first error into flush->result, and call again, on
     * the same thread. 0 or -errno: done. -ENOSPC or -EDQUOT: there was no room for what the
     * flush has to write; nothing is lost, and a later one carries it. After any other error
     * it is not known what is on stable storage. A flush that was begun must be carried on to
     * its end, whatever fails. Order of several images: as for prepare_write. NULL: nothing to
     * do. */
    int (*flush_step)(image *im, image_flush_state *flush, unsigned owner, io_list *list);

    /* Guest bytes that hold data by the image's own maps (for st_blocks); may lag behind.
     * UINT64_MAX, or NULL: unknown. */
    uint64_t (*allocated)(image *im);

    /* Abandoned calls on its host files that have not returned yet (uring.h). NULL: none. */
    unsigned (*abandoned)(const image *im);

    /* Puts the mark into the file, durably, beside whatever else changes it. NULL, or
     * -ENOTSUP: this image goes without. */
    int (*write_mark)(image *im, const qcow2_mark *mark);
} image_driver;

struct image {
    const image_driver *driver;
    char *filename; /* for messages; owned */
    uint64_t size;  /* virtual size in bytes, any number, need not be sector aligned */
    bool read_only; /* writes are refused with -EROFS before they reach the driver */
};

/* NULL is allowed and does nothing. */
void image_close(image *im);

/* All of these: -EINVAL for a range that leaves the image; length 0 succeeds at once. */
int image_read(image *im, void *buf, uint64_t offset, size_t length);
/* A range that leaves the image is ignored. */
void image_read_ahead(image *im, void *buf, uint64_t offset, size_t length);
uint8_t *image_lend(image *im, size_t length);
int image_map(image *im, uint64_t offset, uint64_t length, image_extent *ret_extent);
bool image_begin_writing(image *im, GError **error);
/* On failure the list is as it was, and *ret_change is NULL; so it is for length 0. */
int image_prepare_write(image *im, const void *buf, uint64_t offset, size_t length,
                        unsigned owner, io_list *list, image_change **ret_change);
/* Of a change that is NULL, `result`. */
int image_finish_write(image *im, image_change *change, int result);
/* Prepares, runs and finishes on this thread. */
int image_write(image *im, const void *buf, uint64_t offset, size_t length);
int image_write_zeroes(image *im, uint64_t offset, uint64_t length);
int image_discard(image *im, uint64_t offset, uint64_t length);
int image_resize(image *im, uint64_t size);
int image_flush_step(image *im, image_flush_state *flush, unsigned owner, io_list *list);
/* All steps on this thread. */
int image_flush(image *im);
uint64_t image_allocated(image *im);
unsigned image_abandoned(const image *im); /* NULL is allowed */
int image_write_mark(image *im, const qcow2_mark *mark);

#endif
