/*
 * uring.h: many reads, writes or flushes of local files in one submission, with deadlines.
 *
 * Each thread has its own ring, made on first use and freed with the thread, so that
 * there is no lock here. Where io_uring is not to be had (ENOSYS, EPERM), the same list
 * is worked off with pread, pwrite and fdatasync.
 *
 * Deadlines (R5). A local file need not answer: one on NFS, on a file system whose server
 * has stopped, on a dying disk. A thread, or an op, that has a timeout is told -ETIMEDOUT by
 * then, for what has not answered and for nothing else. What the page cache has is read at
 * once as ever; what would wait is done by a spare thread (spare.h) on which this one waits.
 * What does not answer in time is abandoned: it may still be carried out, whenever the file
 * answers, and until then
 * - its spare thread and its memory remain. The memory is a copy of the caller's, so that
 *   the caller's is free for other uses at once, unless the caller lends it;
 * - it counts in io_abandoned. Descriptors are closed by file_close, which keeps the number
 *   until then: what is not yet begun would go to whatever file got it next;
 * - what else would wait for that descriptor is -ETIMEDOUT at once, where there is a
 *   timeout. So threads that wait for one another's locks wait one timeout, not one each.
 * A thread that abandoned something may end, and be joined, at any time. So may the process,
 * for all that this process does (exit and _exit wait for nothing here); but the kernel keeps
 * it, a zombie with its descriptors and their locks, until calls have returned that it cannot
 * interrupt. Measured on FUSE: a request that the server has read, and the one that closing
 * sends when a process ends. Aborting the connection (umount -f) ends them.
 *
 * Not covered: what a local file system does on the caller's thread before it knows that it
 * would have to wait (ext4 may look up where a block is), and opening.
 */
#ifndef FORMATS_URING_H
#define FORMATS_URING_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IO_BYTES_MAX ((size_t)1 << 30)

/* From now on this thread waits at most so long for each op of a list and for each call of
 * file.h. 0, as a thread begins: for ever. */
void io_set_timeout(unsigned ms);
unsigned io_get_timeout(void);

typedef struct io_op {
    int fd;
    bool write;
    bool flush;     /* fdatasync; buf, length and offset stay 0 */
    unsigned owner; /* free for the caller: which replica this belongs to */
    void *buf;     /* valid until io_list_run returns; io_list.lends: until freed later */
    size_t length; /* bytes, at most IO_BYTES_MAX */
    uint64_t offset;     /* in fd */
    unsigned timeout_ms; /* 0: the thread's */
    int result; /* set by io_list_run: 0 or -errno; a read past the end of the file is
                        -EIO, a short transfer is continued */
} io_op;

/* A list that grows; keep it (one per thread) and the steady state allocates nothing. */
typedef struct io_list {
    io_op *ops;
    size_t count;
    size_t capacity;
    bool lends; /* whoever made the list hands the memory of ops that came back -ETIMEDOUT
                   to io_free_later and does not touch it again: then nothing is copied */
} io_list;

void io_list_clear(io_list *list); /* count = 0, memory kept */
void io_list_free(io_list *list);
void io_list_add(io_list *list, io_op op);
/* This thread's list for what is done at once, empty. Each use that may be within another one
 * has a key of its own, of G_PRIVATE_INIT(io_list_destroy). */
io_list *io_list_own(GPrivate *key);
void io_list_destroy(void *list);

/* Runs all of the list in as few submissions as the ring's depth allows and waits for
 * all of it, for each op at most its timeout. Sets every op's result. */
void io_list_run(io_list *list);

/* After a run: the error of the first op that failed, or 0. */
int io_list_error(const io_list *list);

/* Abandoned calls on this descriptor that have not returned yet. */
unsigned io_abandoned(int fd);
/* Since this thread last asked: has it abandoned anything? */
bool io_thread_abandoned(void);
/* Calls free_fn, on any thread, when all that any thread has abandoned until now has
 * returned; at once if there is nothing. */
void io_free_later(void *memory, void (*free_fn)(void *));

#endif
