/*
 * identity.h: which file a replica is, and whether somebody changed it while nobody here
 * had it open (O5). The comparison is pure.
 *
 * What can be told. After a clean close the record is of files at rest: any write moves
 * mtime, so a difference of size, mtime or qcow2 header means that somebody wrote. After a
 * crash our own last writes moved them too, so only "another file" can be told. A device has
 * no times that count: its number, size and qcow2 header. A remote export has only a size.
 *
 * Threads: none of its own.
 */
#ifndef QUORUM_IDENTITY_H
#define QUORUM_IDENTITY_H

#include "formats/chain.h"

#define IDENTITY_HEADER 4096u /* bytes of a qcow2 file's start that are digested */

typedef enum identity_kind {
    IDENTITY_NONE, /* nothing is recorded */
    IDENTITY_FILE,
    IDENTITY_DEVICE,
    IDENTITY_REMOTE,
} identity_kind;

typedef struct identity_file {
    uint64_t dev, ino;          /* of a device: its own number, and 0 */
    int64_t birth_ns;           /* 0: the file system does not tell */
    uint64_t size;              /* bytes */
    int64_t mtime_ns, ctime_ns; /* since 1970; 0 of a device */
} identity_file;

/* Plain data; compare with identity_compare, not with memcmp. */
typedef struct identity {
    identity_kind kind;
    identity_file top;
    bool has_data;
    identity_file data; /* the external data file of the top layer */
    bool has_header;    /* the top layer is a qcow2 */
    uint8_t header[32]; /* SHA-256, see identity_digest_header */
    qcow2_mark mark;    /* of a qcow2; not looked at here: generation.h */
} identity;

/* The files of a replica's top layer, by descriptors of its own (no locks), so that they can
 * be looked at when the chain is closed and can no longer write to them. */
typedef struct identity_source identity_source;
/* Fails (IMAGE_ERROR_IO, or _REFUSED where the name now leads to another file than the
 * chain has open). */
identity_source *identity_source_open(const chain *c, GError **error);
void identity_source_close(identity_source *source); /* NULL is allowed */

/* What they are now. `settle`: for a record that is to be compared after the next boot;
 * syncs the inodes first, as fdatasync leaves a file's times to be lost in a power cut and
 * the file would then look changed. 0 or -errno. */
int identity_read(const identity_source *source, bool settle, identity *ret_identity);
/* The same by name, without a chain and without waiting; the data file is left out. Of kind
 * NONE if it cannot be looked at. */
void identity_look(const char *path, bool is_qcow2, identity *ret_identity);
/* Of a remote export of that size. */
void identity_set_remote(identity *ret_identity, uint64_t size);

/* SHA-256 of the first 4 KiB of a qcow2 file, or of its first cluster if that is smaller.
 * Left out: the dirty and corrupt bits and the autoclear bits, which opening an image for
 * writing changes before anything is written to the disk. `length` is at least 104, or
 * what the file has. */
void identity_digest_header(const uint8_t *header, size_t length, uint8_t ret_digest[32]);

typedef enum identity_verdict {
    IDENTITY_SAME,
    IDENTITY_TOUCHED, /* only its inode changed (renamed, chown, a link): the content is what
                         it was, unless somebody also set mtime back on purpose */
    IDENTITY_CHANGED, /* the same file, written to since */
    IDENTITY_OTHER,   /* another file, or nothing was recorded */
} identity_verdict;

/* `clean`: the record was made at a clean close. The same file is the same inode number and
 * birth time; device numbers, which change with a reboot, decide only where the file system
 * does not tell the birth time. */
identity_verdict identity_compare(const identity *recorded, const identity *now,
                                  bool clean);
/* Whether a file, this one or another, has the size, mtime and header that are recorded. */
bool identity_same_content(const identity *recorded, const identity *now);
/* Whether it is the same file, whatever it holds. False of what is no file. */
bool identity_same_file(const identity *recorded, const identity *now);
/* "unchanged", "touched", "changed", "another file" */
const char *identity_verdict_name(identity_verdict verdict);

#endif
