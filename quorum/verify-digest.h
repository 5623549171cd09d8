/*
 * verify-digest.h: SHA-256 of the voted data, range after range. Part of verify.c.
 * Threads: one.
 */
#ifndef QUORUM_VERIFY_DIGEST_H
#define QUORUM_VERIFY_DIGEST_H

#include "quorum/verify.h"

typedef struct verify_digest verify_digest;

/* Reports to options->on_digest in steps of options->manifest_range. NULL if that callback
 * is NULL; all functions then do nothing. */
verify_digest *verify_digest_new(const verify_options *options);
void verify_digest_free(verify_digest *d);

/* The next `length` bytes of the disk. NULL: zeroes. */
void verify_digest_add(verify_digest *d, const uint8_t *data, uint64_t length);
/* The same where no version has a majority. */
void verify_digest_add_unknown(verify_digest *d, uint64_t length);
/* Reports the last range, if it is shorter than the others. */
void verify_digest_end(verify_digest *d);

#endif
