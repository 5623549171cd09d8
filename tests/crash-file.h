/*
 * crash-file.h: host files under a simulated power failure, or with calls that fail.
 *
 * A program that links crash-file.o is linked with --wrap for the functions of file.h, for
 * io_list_run, and for the system calls of the journal and of identity.c (Makefile:
 * CRASH_WRAP), so that whatever anybody does to a watched file passes here first. It happens at once, as ever, but what the last file_sync of that file
 * did not cover is also queued. A crash state is the stable content plus some of the queue:
 * each operation kept, dropped or torn, whatever its place in the order, because that is
 * all that is promised of operations that no sync separates. A sync of one file says
 * nothing about another one.
 *
 * Sectors of 512 bytes are atomic. Everything is deterministic, given the seeds.
 */
#ifndef TESTS_CRASH_FILE_H
#define TESTS_CRASH_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum crash_kind {
    CRASH_WRITE = 1 << 0,  /* file_write_full, writes of an io_list */
    CRASH_ZERO = 1 << 1,   /* file_zero */
    CRASH_PUNCH = 1 << 2,  /* file_punch, file_allocate_zero */
    CRASH_RESIZE = 1 << 3, /* file_resize */
    CRASH_SYNC = 1 << 4,   /* file_sync, flushes of an io_list */
    CRASH_READ = 1 << 5,   /* file_read_full, file_read_exact: for faults only */
} crash_kind;
#define CRASH_CHANGES (CRASH_WRITE | CRASH_ZERO | CRASH_PUNCH | CRASH_RESIZE)

/* Watches the file of fd (by device and inode, so that every descriptor of it counts); what
 * it holds now is stable. Returns its number: 0, 1, ... in the order of the calls. */
unsigned crash_watch(int fd);
/* Forgets all files, the hook, the fault, the count; the dead live again. */
void crash_reset(void);

/* Called after each change and each sync that succeeded: the points at which the power
 * may fail. It may use any file, watched ones only through crash_state_save. It may fork: the
 * child calls crash_forked first, may do whatever it likes, and never returns from here. */
typedef void crash_hook(void *user, crash_kind kind);
void crash_set_hook(crash_hook *hook, void *user);
void crash_forked(void);
/* Points passed since crash_reset. */
unsigned crash_points(void);
/* Operations on that file that a power failure now may undo; and all there ever were. */
unsigned crash_queued(unsigned file);
unsigned crash_changes(unsigned file);

typedef enum crash_choice {
    CRASH_DROP_ALL,
    CRASH_KEEP_ALL, /* must be what the file holds: else somebody went past us; asserted */
    CRASH_SOME,     /* by *seed, which moves on */
} crash_choice;
/* Writes what a power failure now leaves of a watched file to `path`. */
void crash_state_save(unsigned file, const char *path, crash_choice choice,
                      uint64_t *seed);

/* The process is dead: every further operation on a watched file is -EIO and does
 * nothing, until crash_reset. */
void crash_die(void);

/* From now on syncs of these files succeed and cover nothing: a program without them, to
 * find out whether a test notices. Bit k: file k. 0: as ever. */
void crash_set_lies(unsigned files);
unsigned crash_lies(void);

/* One fault at a time. It is armed until it is replaced; crash_reset removes it. */
typedef struct crash_fault {
    unsigned kinds; /* which operations count and fail: crash_kind, or-ed */
    unsigned at;    /* the at-th of them from now on fails; 1 is the next one */
    int error;      /* positive errno; 0: nothing fails */
    bool for_ever;  /* and so do all later ones */
    uint64_t tear;  /* a seed, not 0: some sectors of a failing write are written */
    unsigned files; /* bit k: of file k; 0: of any */
    uint64_t lose;  /* a seed, not 0: some of what a failing sync was to cover is never
                       stable. It can be read until the page cache forgets the file. */
} crash_fault;
void crash_set_fault(crash_fault fault);
/* How often the present fault struck, and how often in the first sector of file 0. */
unsigned crash_fault_hits(void);
unsigned crash_fault_header_hits(void);

/* For crash-syscalls.c: 1 if it is not watched, or if we are asked on our own behalf. */
int crash_sync(int fd);
bool crash_is_watched(int fd);
void crash_forget_cache(int fd);

#endif
