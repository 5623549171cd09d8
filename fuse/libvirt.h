/*
 * libvirt.h: what the files that read and write libvirt XML share.
 *
 *   libvirt-read.c       the document: which element may stand where
 *   libvirt-attribute.c  what an element says, and what is wrong with it
 *   libvirt-disk.c       the elements of a <disk type='quorum'>
 *   libvirt-replica.c    the elements of a replica
 *   libvirt-source.c     a replica's <source> and <host> as a source of ours
 *   libvirt-write.c      the way back
 */
#ifndef FUSE_LIBVIRT_H
#define FUSE_LIBVIRT_H

#include "fuse/config-internal.h"

/* Our own elements; the prefix is taken by its letters. */
#define LIBVIRT_NAMESPACE "urn:quorumfs:libvirt:1"
#define LIBVIRT_OPTIONS   "quorumfs:options"
#define LIBVIRT_ALLOW_DIR "quorumfs:allow-dir"
#define LIBVIRT_TLS       "quorumfs:tls"

typedef enum libvirt_source_type {
    LIBVIRT_SOURCE_FILE,
    LIBVIRT_SOURCE_BLOCK,
    LIBVIRT_SOURCE_NETWORK,
} libvirt_source_type;

/* As in the document; owned. */
typedef struct libvirt_source {
    libvirt_source_type type;
    char *path; /* file=, dev= */
    char *protocol, *export_name, *tls;
    char *host, *port, *transport, *socket;
    char *user, *psk_file, *certificates; /* LIBVIRT_TLS */
} libvirt_source;
void libvirt_source_clear(libvirt_source *source);

/* "file", "block" or "network". */
bool libvirt_source_set_type(libvirt_source *source, const char *type, GError **error);
/* Sets source and path of `replica`. The error has no file and no line yet. */
bool libvirt_source_apply(const libvirt_source *source, replica_options *replica,
                          const char *dir, GError **error);

/* ---- libvirt-read.c --------------------------------------------------------------- */

#define LIBVIRT_PLACES_MAX 100u

typedef enum libvirt_place {
    PLACE_DOCUMENT,
    PLACE_DOMAIN,
    PLACE_DEVICES,
    PLACE_DISK, /* a quorum */
    PLACE_REPLICA,
    PLACE_SOURCE,
    PLACE_LAYER, /* below a replica's top */
    PLACE_OTHER, /* a disk that is no quorum, and its layers */
    PLACE_EMPTY, /* nothing may stand in it */
    PLACE_SKIP,
} libvirt_place;

typedef struct libvirt_reference {
    char *alias;
    unsigned line;
} libvirt_reference;

typedef struct libvirt_reader {
    mount_config *config;
    const char *file;
    char *dir;
    GMarkupParseContext *parser;
    libvirt_place places[LIBVIRT_PLACES_MAX];
    unsigned depth;
    const char *element; /* that is looked at; borrowed, NULL: none */
    const char **names, **values;

    unsigned first_line; /* of what GMarkup is given */
    unsigned line;       /* that messages name */
    bool has_root;

    disk_options *disk; /* borrowed from config; NULL: not in one */
    unsigned disk_line, options_line, replica_line;
    uint64_t disk_seen, replica_seen; /* rows of the table */
    GPtrArray *settings;              /* of the disk, as pairs */
    replica_options *replica;         /* borrowed */
    bool replica_refers;
    libvirt_source source;

    GArray *lines;           /* of each disk */
    GHashTable *aliases;     /* of all disks, quorums or not */
    GHashTable *names_taken; /* of quorums */
    GArray *references;
} libvirt_reader;

typedef struct libvirt_wanted {
    const char *name;
    const char **value; /* NULL: it may be there, and means nothing here */
} libvirt_wanted;

/* ---- libvirt-attribute.c ---------------------------------------------------------- */

/* Errors name the file, r->line and r->element. All return false. */
bool libvirt_invalid(const libvirt_reader *r, GError **error, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
bool libvirt_unavailable(const libvirt_reader *r, GError **error, const char *what);
/* What the setters of a configuration say; frees `cause`. */
bool libvirt_invalid_value(const libvirt_reader *r, GError *cause, GError **error);

/* Fills in the values of `known`, which ends with {0}, and refuses other attributes but
 * namespaces. */
bool libvirt_take_attributes(const libvirt_reader *r, const libvirt_wanted *known,
                             GError **error);
/* The same for an element with one attribute, which it must have. */
bool libvirt_take_one(const libvirt_reader *r, const char *name, const char **ret_value,
                      GError **error);
/* The value in an element that is not ours to check; NULL. */
const char *libvirt_attribute(const libvirt_reader *r, const char *name);
/* Attribute `index` of an element with a setting in each. */
bool libvirt_check_option(const libvirt_reader *r, unsigned index, GError **error);
bool libvirt_unknown_option(const libvirt_reader *r, void (*add_names)(GPtrArray *names),
                            const char *name, GError **error);
/* The name of a disk or a replica (`what`). */
bool libvirt_set_name(const libvirt_reader *r, const char *what, char **name,
                      const char *value, GError **error);
/* type= is the driver and format= the image's format. What else a driver has is for the
 * guest's device. */
bool libvirt_take_driver(const libvirt_reader *r, const char **ret_type,
                         const char **ret_format, GError **error);
bool libvirt_read_reference(libvirt_reader *r, GError **error);

/* ---- libvirt-disk.c, libvirt-replica.c: what the table of libvirt-read.c calls ---- */

/* r->disk stays what it was if the disk is no quorum. */
bool libvirt_begin_disk(libvirt_reader *r, GError **error);
bool libvirt_end_disk(libvirt_reader *r, GError **error);
bool libvirt_read_disk_driver(libvirt_reader *r, GError **error);
bool libvirt_read_threshold(libvirt_reader *r, GError **error);
bool libvirt_read_target(libvirt_reader *r, GError **error);
bool libvirt_read_alias(libvirt_reader *r, GError **error);
bool libvirt_read_readonly(libvirt_reader *r, GError **error);
bool libvirt_read_allow_dir(libvirt_reader *r, GError **error);
bool libvirt_read_disk_options(libvirt_reader *r, GError **error);

bool libvirt_begin_replica(libvirt_reader *r, GError **error);
bool libvirt_end_replica(libvirt_reader *r, GError **error);
bool libvirt_read_format(libvirt_reader *r, GError **error);
bool libvirt_read_replica_driver(libvirt_reader *r, GError **error);
bool libvirt_read_replica_options(libvirt_reader *r, GError **error);
bool libvirt_read_source(libvirt_reader *r, GError **error);
bool libvirt_read_host(libvirt_reader *r, GError **error);
bool libvirt_read_tls(libvirt_reader *r, GError **error);

#endif
