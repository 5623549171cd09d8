/*
 * progress.h: how far a long command has come, on standard error: a bar where that is a
 * terminal, lines where it is not. Threads: one.
 */
#ifndef FUSE_PROGRESS_H
#define FUSE_PROGRESS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct progress {
    const char *name; /* what is worked on; borrowed */
    bool bar;         /* standard error is a terminal */
    bool lines;       /* it is not, but progress was asked for */
    bool shown;       /* the bar is on the screen */
    bool plain;       /* nothing is looked for: no ranges are told; set after _begin */
    int64_t started_us, told_us;
} progress;

void progress_begin(progress *p, const char *name, bool wanted);
/* `ranges`: how many were found differing so far. */
void progress_tell(progress *p, uint64_t done, uint64_t size, uint64_t ranges);
/* One line, whatever else is shown. */
void progress_line(progress *p, uint64_t done, uint64_t size, uint64_t ranges);
/* Takes the bar away before something else is printed, and at the end. */
void progress_hide(progress *p);

#endif
