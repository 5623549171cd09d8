/*
 * reading.h: what must hold of any image that a driver opened, and of the error if not.
 */
#ifndef TESTS_FUZZ_READING_H
#define TESTS_FUZZ_READING_H

#include "formats/image.h"
#include "tests/fuzz/packed.h"

/* One line of text, and not a word that is not printable. */
void reading_error(const GError *error);

/* Maps and reads, from the start and before the end, as much as time allows. `readable`:
 * false for an image that only maps. */
void reading_whole(image *im, bool readable);

#endif
