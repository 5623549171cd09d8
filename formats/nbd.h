/*
 * nbd.h: exports of NBD servers, through libnbd.
 *
 * A source is a URI, or exec:COMMAND: a program with its words, started without a shell, that
 * must serve NBD on the Unix socket whose path takes the place of {socket}. It is ended with
 * the image, and dies with us; what it says on standard error goes to the log. It is not
 * started again.
 *
 * A URI is nbd://[USER@]HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or one of the two
 * with nbds for TLS. TLS is never left to the system's list of authorities, which libnbd
 * would take without looking at the host's name: it is either tls-psk-file=FILE, or
 * (TCP only) tls-certificates=DIR with a ca-cert.pem in it. Paths are absolute. There are no
 * secrets in a URI.
 *
 * Size: any up to IMAGE_SIZE_MAX. A server that takes only blocks of more than a sector is
 * read-only here, because the disk is voted on, locked and written by sectors; reads are
 * widened, and writes completed from what the server holds, within a sector.
 *
 * Errors: a request that is not answered in time is -ETIMEDOUT, and its connection is given
 * up, so that nothing touches the caller's memory after that. A server that dies, lies or
 * refuses is -EIO (-ENOSPC where it says so). Without a connection the next request makes
 * one, not more often than a growing pause allows; in the pause requests are -ENOTCONN at
 * once. An export that came back with another size or other abilities is -EIO for good.
 * If a connection is lost with writes that were acknowledged but not flushed, the next flush
 * is -ENOTCONN: the server may have forgotten them (W4), as if it had not answered, and they
 * lie where the intent bits say. No server has said that they are lost.
 *
 * A server may still carry out a write that timed out here, even after a later one. As long as it may, this
 * counts as abandoned (image.h): until the server has ended the connection, or has been ended.
 */
#ifndef FORMATS_NBD_H
#define FORMATS_NBD_H

#include "formats/image.h"

#define NBD_TIMEOUT_DEFAULT_MS 30000u

typedef struct nbd_options {
    const char *source;
    bool writable;
    unsigned timeout_ms; /* of each request, and of connecting; 0: default */
} nbd_options;

/* Connects, after starting the server of an exec:. If `writable` is asked for and cannot be, the image is read_only and
 * nbd_read_only_reason tells why. */
image *nbd_open(const nbd_options *options, GError **error);
const char *nbd_read_only_reason(const image *im); /* NULL: there is none */

/* Whether the word is a source, good or bad, by its beginning. */
bool nbd_is_source(const char *word);
bool nbd_check_source(const char *source, GError **error);
/* What two sources of one export have in common; the caller frees. NULL for a bad one. */
char *nbd_source_identity(const char *source);

#endif
