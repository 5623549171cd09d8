/*
 * fault.h: replicas that fail, tear and recover on command. Only for faults that cannot
 * be had from a file system; where a truncated or corrupted file does, use that.
 *
 * A program that links fault.o is linked with --wrap for the chain_* functions below, for
 * io_list_run and for the journal's (Makefile: FAULT_WRAP), so every call that the disk
 * makes passes here first. Set faults while no request is running.
 */
#ifndef TESTS_FAULT_H
#define TESTS_FAULT_H

#include "formats/chain.h"

typedef enum fault_kind {
    FAULT_READ,   /* chain_prepare_read, chain_read */
    FAULT_WRITE,  /* chain_prepare_write, chain_write */
    FAULT_FINISH, /* chain_finish_write, as if the op had failed; with tracked changes */
    FAULT_CLEAR,  /* chain_write_zeroes, chain_discard */
    FAULT_RESIZE, /* chain_resize to another size; offset and length are ignored */
    FAULT_PROBE,  /* chain_resize to the present size, likewise */
    FAULT_BEGIN,  /* chain_begin_writing, likewise */
    FAULT_FLUSH, /* chain_flush, the first chain_flush_step; offset, length are ignored */
} fault_kind;

typedef struct fault {
    const chain *chain; /* NULL: any */
    fault_kind kind;
    uint64_t offset, length; /* what touches this range fails; length 0: everything */
    int error;     /* positive errno; 0: the call goes on, see hook, delay_ms, rot */
    uint64_t torn; /* so many bytes of a failing write are written all the same */
    uint64_t
        shreds;     /* a seed, not 0: of what is torn, or of all, only some sectors are */
    bool late;      /* they are written by fault_land, and until then they are abandoned
                          (chain_abandoned); without torn and shreds all of it is. Also of
                          write-zeroes and discard. */
    uint8_t rot;    /* not 0, and error 0: what is read or written of the range comes out
                          xor'ed with this, and nobody is told */
    unsigned times; /* then it is gone; 0: for ever */
    unsigned after; /* so many calls pass before the first one fails */
    unsigned delay_ms;  /* a call that it strikes waits so long first */
    void (*hook)(void); /* called when it strikes */
} fault;

void fault_add(fault f);
void fault_clear(void);
/* A random fault of a chain, on a disk of `size` bytes: an error of any kind but FINISH, RESIZE,
 * PROBE and BEGIN, for some calls, in a range or everywhere; writes are torn or shredded. */
fault fault_pick(uint64_t *seed, const chain *c, uint64_t size);
/* What is late on a chain (NULL: on any) happens now. Returns how many calls that were. What
 * has not happened by fault_clear never does. */
unsigned fault_land(const chain *c);
/* Journal records appended since the last journal_sync. */
unsigned fault_unsynced_records(void);
/* Called once, by the next journal_sync, before anything is on disk. NULL: not at all. */
void fault_on_sync(void (*hook)(void));
/* How often any fault struck since fault_clear. */
unsigned fault_hits(void);
/* How often the page cache was to forget the files of a chain since fault_clear. */
unsigned fault_forgotten(void);

/* All of this ends with fault_clear too. */

/* Every write that is prepared has a change from now on, whatever the driver; how many were
 * finished, and how many were not. */
void fault_track_changes(void);
unsigned fault_finished_changes(void);
unsigned fault_open_changes(void);
/* A flush of this chain takes so many rounds more, before its own. */
void fault_flush_rounds(const chain *c, unsigned rounds);
/* After so many runs of lists that write or flush, the ops of `owner` fail in the next. */
void fault_ops(unsigned owner, int error, unsigned after);
/* How many such runs there were, and how many ops the last one had. */
unsigned fault_runs(void);
unsigned fault_run_ops(void);

#endif
