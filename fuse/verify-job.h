/*
 * verify-job.h: the verification of one opened disk with all that was asked for: standard
 * output, progress, map, picture, manifest. Threads: one.
 */
#ifndef FUSE_VERIFY_JOB_H
#define FUSE_VERIFY_JOB_H

#include "fuse/verify-output.h"
#include <signal.h>

/* Names of files are NULL where none was asked for. */
typedef struct verify_request {
    const char *mapfile, *svg, *manifest, *check;
    uint64_t manifest_range;
    bool progress;
    bool several; /* more than one disk: "x.svg" of disk vm1 is "x-vm1.svg" */
    const volatile sig_atomic_t *cancel; /* not 0: stop */
    volatile sig_atomic_t *line_wanted;  /* not 0: print a line of progress, set to 0 */
} verify_request;

/* The exit code of several results: the first of 2, 5, 4, 1, 0 that one of them is. */
int verify_worst(int a, int b);

/* Prints its own errors. Returns 0, 1, 2, 4 or 5; 2: a report could not be written, or a
 * manifest not be used. *ret_interrupted is set if the verification was cut short. */
int verify_job_run(disk *d, const verify_request *request, verify_output *out,
                   bool *ret_interrupted);

#endif
