/*
 * repair-job.h: the offline repair of one disk: what differs is found and told as verify does
 * it, then what can be decided is repaired, with what is overwritten saved before.
 * Threads: one.
 */
#ifndef FUSE_REPAIR_JOB_H
#define FUSE_REPAIR_JOB_H

#include "fuse/repair-set.h"
#include "fuse/verify-output.h"
#include <signal.h>

typedef struct repair_request {
    const char *from; /* the replica that is right; NULL: the vote decides */
    bool dry_run, progress;
    const volatile sig_atomic_t *cancel; /* not 0: stop */
    volatile sig_atomic_t *line_wanted;  /* not 0: print a line of progress, set to 0 */
    /* One for all disks; made with the first that is changed. Owned by the request's owner. */
    char *undo_id;
    const char *undo_words; /* what stands behind "--undo ID" to undo this */
} repair_request;

/* Prints its own errors. 0, 1, 4 or 5 tell what was found, as for verify; 2: it could not be
 * opened, or not be repaired. *ret_interrupted is set if it was cut short. */
int repair_job_run(repair_set *set, disk_options *options, repair_request *request,
                   verify_output *out, bool *ret_interrupted);

#endif
