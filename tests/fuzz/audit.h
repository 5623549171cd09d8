/*
 * audit.h: whether a qcow2 file's refcounts say what its tables use: what `qemu-img check`
 * tells, without a process for each question, and without a line of what is tested.
 */
#ifndef TESTS_FUZZ_AUDIT_H
#define TESTS_FUZZ_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

typedef enum audit_verdict {
    AUDIT_CLEAN,
    AUDIT_LEAKS,   /* a refcount is too large */
    AUDIT_BAD,     /* one is too small, a copied flag is wrong, a table is broken */
    AUDIT_UNKNOWN, /* too large for this */
} audit_verdict;

typedef struct audit {
    audit_verdict verdict;
    bool dirty,
        corrupt; /* as the header says; refcounts of a dirty image may be anything */
    const char *reason; /* of BAD or LEAKS, static */
    uint64_t at;        /* the offset that it is about */
} audit;

audit audit_file(int fd);

#endif
