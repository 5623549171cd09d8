/*
 * loop.h: takes the kernel's requests and has libfuse work them off, on as many threads as
 * it takes.
 */
#ifndef FUSE_LOOP_H
#define FUSE_LOOP_H

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct loop_options {
    size_t request_max; /* bytes of data in one request, as told to the kernel at INIT */
    unsigned threads;   /* at most so many while requests are answered */
    unsigned spares;    /* at most so many more when nothing is */
    unsigned stall_ms;  /* at the end: how long without any answer is for ever */
} loop_options;

typedef struct loop loop;

/* Of a session that is mounted, before its first request is taken. The session must outlive
 * the loop. */
loop *loop_new(struct fuse_session *fuse, const loop_options *options);

/* Serves until the file system is unmounted or loop_end is called, then waits for requests that
 * were taken: as long as some are answered, and stall_ms more. 0 or -errno. When it returns, no
 * descriptor of the kernel's device is open any more but the session's own. */
int loop_run(loop *l);

/* From any other thread, at any time before loop_free. Only asks. */
void loop_end(loop *l);

/* Grows with each answer. */
uint64_t loop_progress(loop *l);
/* After loop_run: requests that it gave up on. Their threads still use what requests use,
 * for as long as the process lives. */
unsigned loop_stuck(loop *l);

/* Not if something is stuck. */
void loop_free(loop *l);

#endif
