/*
 * writing.h: what must hold of writes into a qcow2 image.
 */
#ifndef TESTS_FUZZ_WRITING_H
#define TESTS_FUZZ_WRITING_H

#include "formats/qcow2.h"
#include "tests/fuzz/packed.h"

/* Opens the input's image once more, for writing, does what the script says, and compares
 * with what the operations mean. */
void writing_run(const packed *p, const qcow2_header *header);

/* Opens what the files hold now, for reading. NULL, and the error: it is refused. */
image *writing_reopen(const packed *p, GError **error);

#endif
