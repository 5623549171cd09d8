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
