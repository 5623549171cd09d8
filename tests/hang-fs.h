/*
 * hang-fs.h: a file system whose files do not answer until they are told to.
 *
 * A process of its own serves the files of one directory over FUSE, uncached: every call
 * reaches it. Requests that match what is held wait there, not yet carried out. The process
 * ends, and the mount with it, when the one that started it does.
 */
#ifndef TESTS_HANG_FS_H
#define TESTS_HANG_FS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum hang_kind {
    HANG_READ = 1 << 0,
    HANG_WRITE = 1 << 1,
    HANG_SYNC = 1 << 2,
    HANG_SPACE = 1 << 3, /* fallocate */
    HANG_SIZE = 1 << 4,  /* truncate */
    HANG_STAT = 1 << 5,
    HANG_SEEK = 1 << 6,
    HANG_CLOSE = 1 << 7, /* what close waits for */
} hang_kind;
#define HANG_CHANGES  (HANG_WRITE | HANG_SPACE | HANG_SIZE)
#define HANG_ALL      0xffu
#define HANG_ANYWHERE UINT64_MAX

/* Mounts it; skips the test where that is not possible. A file that is made at
 * hang_made(name) is served at hang_path(name). Both are the caller's to free. */
void hang_start(void);
char *hang_made(const char *name);
char *hang_path(const char *name);
void hang_stop(void); /* releases everything first */

/* Requests of these kinds at this offset (reads and writes only) are held from now on, after
 * `pass` of them were answered. Replaces what was held before, but for what waits already. */
void hang_hold(unsigned kinds, uint64_t offset, unsigned pass);
/* Only one of them, the next after `pass`. */
void hang_hold_one(unsigned kinds, unsigned pass);
/* Answers what waits, at this offset or anywhere; with HANG_ANYWHERE nothing is held then. */
void hang_release(uint64_t offset);
/* Waits until so many requests wait. */
void hang_await(unsigned count);
unsigned hang_waiting(void);
/* Requests of these kinds that have come since hang_start. */
unsigned hang_seen(unsigned kinds);

#endif
