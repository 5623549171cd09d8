/*
 * verify-output.h: what verify prints on standard output, as text or as one JSON object,
 * while it goes on: nothing is collected, however many ranges differ.
 *
 * Order of calls: for each disk begin, any number of range and manifest, end (or summary and
 * disk_close); or failed.
 * Then end once. Threads: one.
 */
#ifndef FUSE_VERIFY_OUTPUT_H
#define FUSE_VERIFY_OUTPUT_H

#include "fuse/manifest.h"
#include "quorum/verify.h"
#include <jansson.h>

/* What a --check found, in bytes of whole ranges. */
typedef struct verify_manifest_summary {
    bool checked;
    uint64_t different_bytes, unknown_bytes;
} verify_manifest_summary;

typedef struct verify_output verify_output;

/* `several`: more than one disk will follow, lines must name theirs. */
verify_output *verify_output_new(bool json, bool several);
void verify_output_free(verify_output *out); /* NULL is allowed */

void verify_output_disk_failed(verify_output *out, const disk_options *options,
                               const char *message);
/* `d` is borrowed until the disk's end. */
void verify_output_disk_begin(verify_output *out, disk *d);
void verify_output_range(verify_output *out, const verify_range *range);
/* MANIFEST_DIFFERENT or MANIFEST_UNKNOWN. */
void verify_output_manifest(verify_output *out, uint64_t offset, uint64_t length,
                            manifest_verdict verdict);
void verify_output_disk_end(verify_output *out, const verify_summary *summary,
                            const verify_manifest_summary *manifest, double seconds,
                            int exit_code);
/* The same in two steps, of which the second needs no disk any more. `repair` (an object, stolen)
 * and `text` (a line without a newline) tell what was done about it; NULL: nothing. */
void verify_output_summary(verify_output *out, const verify_summary *summary,
                           const verify_manifest_summary *manifest, double seconds);
void verify_output_disk_close(verify_output *out, json_t *repair, const char *text,
                              int exit_code);
/* False: not all of it could be written. */
bool verify_output_end(verify_output *out, int exit_code);

/* The summary as one line without a newline, as it stands in the text; g_free it. */
char *verify_summary_text(disk *d, const verify_summary *summary,
                          const verify_manifest_summary *manifest);

#endif
