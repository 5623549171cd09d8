/*
 * outfile.h: a report that is either there whole or not at all: written beside its place
 * and renamed. What exists there and is no regular file (a FIFO), and all below /dev and
 * /proc (/dev/stdout may well lead to a regular file) is appended to as it is. A symbolic
 * link stays one: what it leads to is replaced.
 */
#ifndef FUSE_OUTFILE_H
#define FUSE_OUTFILE_H

#include <glib.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct outfile outfile;

/* NULL: it cannot be made there. */
outfile *outfile_open(const char *path, GError **error);
/* Where to write; errors may be ignored, outfile_commit tells. */
FILE *outfile_stream(outfile *out);
/* Puts the file in its place, on stable storage, and frees `out` in any case. */
bool outfile_commit(outfile *out, GError **error);
/* Leaves what was there before as it was, and frees. NULL is allowed. */
void outfile_discard(outfile *out);

#endif
