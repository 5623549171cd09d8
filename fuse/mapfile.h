/*
 * mapfile.h: GNU ddrescue map files.
 */
#ifndef FUSE_MAPFILE_H
#define FUSE_MAPFILE_H

#include <glib.h>
#include <stdint.h>

typedef struct mapfile_block {
    uint64_t offset, length; /* bytes */
    char status;             /* '?', '*', '/', '-', '+' */
} mapfile_block;

/* Text of a map over [0, size): `blocks` ascending and disjoint, gaps filled with `filler`,
 * neighbours of one status merged. `comment` is a line of its own after '#'. g_free it.
 * ddrescuelog accepts the result, also for size 0. */
char *mapfile_format(uint64_t size, char filler, const mapfile_block *blocks,
                     size_t n_blocks, const char *comment);

#endif
