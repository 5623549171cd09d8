/*
 * qcow2-mark.h: a header extension of our own that says which replica of which set an image
 * is, and of which session what it holds (O5). Whoever knows nothing of it keeps it (qcow2:
 * Header extensions), so it says what was last written here by us, and nothing about what
 * others wrote since.
 *
 * The extension has type 0x71766d6b ("qvmk") and 128 bytes: two slots of 64, of which the
 * valid one with the higher sequence number counts, so that an update never touches what it
 * replaces. A slot, big-endian: 0 version (4 bytes, 1), 4 flags (4; bit 0: the session ended
 * cleanly), 8 set (16), 24 replica (8), 32 generation (8), 40 sequence (8), 48 the first half
 * of the SHA-256 of what stands before (16).
 *
 * A mark lies within the first QCOW2_MARK_END bytes of the file, or the image goes without.
 *
 * Threads: no state. Convention: 0 or -errno.
 */
#ifndef FORMATS_QCOW2_MARK_H
#define FORMATS_QCOW2_MARK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QCOW2_MARK_END 4096u

/* Plain data; compare with qcow2_mark_equal. */
typedef struct qcow2_mark {
    bool present;       /* the rest is 0 if it is not, and where no slot is valid */
    uint8_t set_id[16]; /* random */
    uint64_t replica;   /* random, never 0: which of the set */
    uint64_t generation;
    bool clean; /* nothing was missing, and the session ended */
} qcow2_mark;

bool qcow2_mark_equal(const qcow2_mark *a, const qcow2_mark *b);

/* What the first `length` bytes of a file say; any bytes are allowed (O3). Without a mark
 * *ret_why tells why there can be none, NULL: there can be one. ret_why may be NULL. */
void qcow2_mark_find(const uint8_t *header, size_t length, qcow2_mark *ret_mark,
                     const char **ret_why);
/* The same of an open file. 0 or -errno. */
int qcow2_mark_read(int fd, qcow2_mark *ret_mark, const char **ret_why);

/* Durable when it returns 0. A crash at any moment leaves a valid image with the old mark or
 * the new one. -ENOTSUP: it must go without. Nobody else may change the header meanwhile. */
int qcow2_mark_write(int fd, const qcow2_mark *mark);

#endif
