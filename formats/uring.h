/*
 * uring.h: many reads, writes or flushes of local files in one submission.
 *
 * Each thread has its own ring, made on first use and freed with the thread, so that
 * there is no lock here. Where io_uring is not to be had (ENOSYS, EPERM), the same list
 * is worked off with pread, pwrite and fdatasync.
 */
#ifndef FORMATS_URING_H
#define FORMATS_URING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IO_BYTES_MAX ((size_t)1 << 30)

typedef struct io_op {
    int fd;
    bool write;
    bool flush;      /* fdatasync; buf, length and offset stay 0 */
    unsigned owner;  /* free for the caller: which replica this belongs to */
    void *buf;       /* valid until io_list_run returns */
    size_t length;   /* bytes, at most IO_BYTES_MAX */
    uint64_t offset; /* in fd */
    int result; /* set by io_list_run: 0 or -errno; a read past the end of the file is
                        -EIO, a short transfer is continued */
} io_op;

/* A list that grows; keep it (one per thread) and the steady state allocates nothing. */
typedef struct io_list {
    io_op *ops;
    size_t count;
    size_t capacity;
} io_list;

void io_list_clear(io_list *list); /* count = 0, memory kept */
void io_list_free(io_list *list);
void io_list_add(io_list *list, io_op op);

/* Runs all of the list in as few submissions as the ring's depth allows and waits for
 * all of it. Sets every op's result. */
void io_list_run(io_list *list);

/* After a run: the error of the first op that failed, or 0. */
int io_list_error(const io_list *list);

#endif
