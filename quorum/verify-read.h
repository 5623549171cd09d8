/*
 * verify-read.h: one replica, read ahead from its first byte to its last by a thread of its
 * own. Part of verify.c.
 *
 * Threads: verify_reader_new, _peek, _consume and _free are the consumer's, one thread. The
 * reader's own thread starts in _new and has ended when _free returns.
 */
#ifndef QUORUM_VERIFY_READ_H
#define QUORUM_VERIFY_READ_H

#include "formats/chain.h"

/* The most that one read asks of a chain, and the longest span with data. So much,
 * because each read of a decoder's process costs two wake-ups. */
#define VERIFY_PIECE_MAX (2u << 20)

/* The next bytes of a replica. Every span but the last of the disk starts and ends at a
 * sector. */
typedef struct verify_span {
    uint64_t length;     /* never 0 */
    const uint8_t *data; /* NULL: zeroes by the replica's map (any length), or an error.
                            May be memory that a decoder's process can still write to:
                            what is checked there must be copied out first, once. */
    int error;           /* 0, or the -errno with which exactly these sectors failed */
} verify_span;

typedef struct verify_reader verify_reader;

/* Reads [0, size) of `c`, which is borrowed, in pieces of `piece` bytes (a power of two,
 * sectors at least). */
verify_reader *verify_reader_new(chain *c, uint64_t size, size_t piece);
void verify_reader_free(verify_reader *r); /* NULL is allowed */

/* The span at the consumer's position, which must lie before the end. Waits at most
 * `timeout_us`; false: nothing yet. The span's data is valid until consumed. */
bool verify_reader_peek(verify_reader *r, int64_t timeout_us, verify_span *ret_span);
/* Moves the position on by `length`, at most what the span has. */
void verify_reader_consume(verify_reader *r, uint64_t length);

#endif
