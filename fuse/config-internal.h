/*
 * config-internal.h: what the readers of config.h share: names, paths, and the settings
 * that -o and the keyfile spell alike.
 */
#ifndef FUSE_CONFIG_INTERNAL_H
#define FUSE_CONFIG_INTERNAL_H

#include "fuse/config.h"

typedef enum config_set_result {
    CONFIG_SET_OK,
    CONFIG_SET_FAILED, /* the error is set */
    CONFIG_SET_UNKNOWN /* no such setting; no error */
} config_set_result;

/* One setting of a disk, by the name that -o and the [disk NAME] group share. The disk's
 * replicas must be there (min-replicas is compared with their number). Relative paths
 * start at `base`; NULL: the working directory. `value` NULL: the word had none. Errors
 * (USAGE, UNAVAILABLE) start with the setting: "threshold=0: ...". */
config_set_result config_set_disk(disk_options *d, const char *name, const char *value,
                                  const char *base, GError **error);
/* Likewise for a [replica DISK/NAME] group. */
config_set_result config_set_replica(replica_options *replica, const char *name,
                                     const char *value, const char *base, GError **error);
/* Appends the (static) names of these settings, for hints. */
void config_add_disk_settings(GPtrArray *names);
void config_add_replica_settings(GPtrArray *names);

/* As config_set_disk, with the keys that only a file has: file, alias, read-only, and
 * blkverify with a value. Not allow-dir, of which there may be several. */
config_set_result config_set_disk_key(disk_options *d, const char *key, const char *value,
                                      const char *base, GError **error);
void config_add_disk_keys(GPtrArray *names);

/* What is set and is not the default, as pairs of name and value (of char*), for one who
 * writes a file: all keys but file, alias, read-only and allow-dir of a disk, and but
 * source and format of a replica. */
GPtrArray *config_list_disk_keys(const disk_options *d);
GPtrArray *config_list_replica_keys(const replica_options *replica);

/* The text of a regular file of at most 1 MiB, all of it UTF-8, and no NUL in it. */
char *config_read_text(const char *file, GError **error);
/* What config.h's readers do with such a text; `file` is where it is from. */
bool config_parse_keyfile(mount_config *config, const char *file, const char *text,
                          GError **error);
bool config_parse_libvirt(mount_config *config, const char *file, const char *text,
                          GError **error);
/* Control characters become '?', in place. */
char *config_one_line(char *text);

/* Disks without a file get their default: disk.img for one disk, NAME.img for each of
 * several. Returns the first whose file another has too, or NULL. */
const disk_options *config_name_files(mount_config *config);
char *config_default_file(const mount_config *config, const disk_options *d);
/* a ... z, aa, ab ... */
char *config_replica_name(unsigned index);

/* Fills source and path of `replica` (and format, where the word names one). */
bool config_set_source(replica_options *replica, const char *word, const char *base,
                       GError **error);
/* "raw", "qcow" or "qcow2". */
bool config_check_format(const char *format, GError **error);

/* A name that can be a file's: not empty, no '/', no control characters, valid UTF-8, not
 * "." or "..", nor one of those that .quorumfs uses itself. `what` is for the message. */
bool config_check_name(const char *what, const char *name, GError **error);

/* `path` made absolute without following links. */
char *config_absolute(const char *base, const char *path);

/* " (did you mean 'x'?)" or "". */
char *config_hint(const char *word, const char *const *known);

#endif
