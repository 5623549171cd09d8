/*
 * raw.h: raw files and block devices.
 */
#ifndef FORMATS_RAW_H
#define FORMATS_RAW_H

#include "formats/image.h"

/* Takes over `fd` (also on failure) and opens it as raw. `filename` is for messages.
 * The size is the file's or the device's, to the byte. `writable` says what the
 * descriptor was opened for. map: SEEK_DATA/SEEK_HOLE (a hole is ZERO). */
image *raw_open(int fd, const char *filename, bool writable, GError **error);

#endif
