/*
 * disk-model.h: what a disk may hold, sector by sector, while it is written, after writes
 * that failed, and after a crash.
 *
 * A sector has versions. Those that it may hold now: one, but for a write under way or
 * failed (W3). Those that a crash may leave: what it held at the last flush and all that
 * was written since. The size is treated alike.
 */
#ifndef TESTS_DISK_MODEL_H
#define TESTS_DISK_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct disk_model disk_model;

/* `size` bytes of content, all of it stable. The disk never grows beyond `size_max`. */
disk_model *disk_model_new(const uint8_t *content, uint64_t size, uint64_t size_max);
void disk_model_free(disk_model *m);

/* A change is under way from `begin` to `end`; buf NULL: zeroes. `done`: it succeeded. */
void disk_model_begin(disk_model *m, const uint8_t *buf, uint64_t offset,
                      uint64_t length);
/* What is cut off may be `below`'s before it is gone (NULL: zeroes only). */
void disk_model_begin_resize(disk_model *m, uint64_t size, const uint8_t *below,
                             size_t below_size);
void disk_model_end(disk_model *m, bool done);
/* A flush succeeded that began after everything before. */
void disk_model_flushed(disk_model *m);

/* What was read of the live disk: NULL and the rest is ruled out (two reads never
 * disagree), or what is wrong; the caller frees. */
char *disk_model_see(disk_model *m, const uint8_t *buf, uint64_t offset, uint64_t length);
char *disk_model_see_size(disk_model *m, uint64_t size);

/* Whether a crash may leave this. NULL, or what is wrong; the caller frees. */
char *disk_model_crashed(const disk_model *m, const uint8_t *content, uint64_t size);

#endif
