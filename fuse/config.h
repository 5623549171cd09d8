/*
 * config.h: everything that was asked for, whichever way: command line, keyfile and libvirt
 * XML fill the same struct.
 */
#ifndef FUSE_CONFIG_H
#define FUSE_CONFIG_H

#include "quorum/disk.h"

#define CONFIG_ERROR (config_error_quark())
GQuark config_error_quark(void);
typedef enum config_error {
    CONFIG_ERROR_USAGE,   /* wrong words on the command line: exit 1 (64 for verify) */
    CONFIG_ERROR_FILE,    /* the configuration cannot be read */
    CONFIG_ERROR_INVALID, /* unknown or repeated group or key, bad value */
    CONFIG_ERROR_UNAVAILABLE, /* designed, but not in this version; says so by name */
} config_error;

typedef enum config_cache {
    CONFIG_CACHE_AUTO,
    CONFIG_CACHE_NONE,
    CONFIG_CACHE_WRITEBACK,
} config_cache;

typedef struct mount_config {
    GPtrArray *disks;  /* of disk_options*, freed with it */
    char *file;        /* the CONFIG, absolute; NULL: images */
    char *mountpoint;  /* absolute, NULL where the command has none */
    char *state_dir;   /* NULL: the default */
    char *socket_path; /* qmp=; NULL: in the state directory */
    config_cache cache;
    bool foreground, debug, single_thread;
    bool read_only; /* -o ro; of no effect before config_make_read_only */
    bool force;     /* --force, -o force; of no effect before config_make_forced */
    bool allow_other;
    bool has_uid, has_gid, has_umask;
    uid_t uid;
    gid_t gid;
    mode_t umask; /* with it disks have 0666, .quorumfs 0444 and 0555, less these bits;
                     without it 0600, 0440 and 0550 */
    GPtrArray *fuse_options; /* of char*: passed on to libfuse's mount ("fsname=...") */
} mount_config;
mount_config *mount_config_new(void);
void mount_config_free(mount_config *config); /* NULL is allowed */

/* One IMAGE word of the command line: a path, or FMT:PATH (a path that itself has a colon
 * is written ./a:b or FMT:a:b). An NBD URI or exec:COMMAND is not a path: it
 * stays as it is, and only its form is checked.
 * `format` (may be NULL) is --format's. */
replica_options *config_parse_image(const char *word, const char *format, GError **error);

/* One -o string ("ro,threshold=2,allow_other"). Values with K, M, G, T for sizes and s, ms
 * for times. Options that mount(8) and fstab pass (rw, nofail, _netdev, x-*, user, ...) are
 * accepted. Unknown: USAGE "unknown option 'treshold=2' (did you mean 'threshold='?)".
 * Applies to every disk of the config; call after the disks are there. */
bool config_apply_options(mount_config *config, const char *options, GError **error);

/* All disks of it, whatever -o and the keyfile say. */
void config_make_read_only(mount_config *config);
/* The same for a command that only looks: what is to be done in a mount does not matter. */
void config_make_offline(mount_config *config);

/* All disks of it. That is for one mount, so no file can say it. */
void config_make_forced(mount_config *config);

/* Reads a keyfile. Messages: "FILE: [disk vm1]: unknown key 'treshold' (did you mean
 * 'threshold'?)". Relative sources are relative to the file's directory. */
bool config_load_keyfile(mount_config *config, const char *file, GError **error);

/* Reads libvirt XML: a <domain>, of which only the <disk type='quorum'> matter, one such
 * <disk>, or <devices>. Messages: "FILE: line 7: <threshold>: ...". Relative paths as in a
 * keyfile. */
bool config_load_libvirt(mount_config *config, const char *file, GError **error);

/* The disks as a text that config_load_keyfile, or config_load_libvirt, makes the same disks
 * of, with absolute paths; the caller frees. What cannot be written so is an error. */
char *config_write_keyfile(const mount_config *config, GError **error);
char *config_write_libvirt(const mount_config *config, GError **error);

/* True if the word names a configuration (.conf or .xml suffix) and not an image. */
bool config_is_config_file(const char *word);

/* Fills `config` from positional words: one CONFIG, or N images as one disk named "disk"
 * in the file `name` ("disk.img" if NULL). Replicas are named a, b, c ... (then aa, ab). */
bool config_from_words(mount_config *config, char *const *words, unsigned n_words,
                       const char *format, const char *name, GError **error);

/* The directory for state: state_dir, or /var/lib/quorumfs (root) or
 * $XDG_STATE_HOME/quorumfs, and below that one named after the set of replicas (their real
 * paths), so that the same set finds it again. Made with mode 0700. */
char *config_make_state_dir(const mount_config *config, GError **error);
/* Where that is, whether it is there or not. */
char *config_find_state_dir(const mount_config *config);
/* Where a disk's record is: state_dir and state_name of its options. In `state_dir`, which is
 * what config_make_state_dir returned, or where earlier mounts kept that of these replicas,
 * beside it. Appends lines for people to `notes` (of char*). */
bool config_find_record(disk_options *d, const char *state_dir, GPtrArray *notes,
                        GError **error);

/* The known word nearest to `word` (edit distance at most 3 and less than half of it), or
 * NULL. */
const char *config_nearest(const char *word, const char *const *known);

bool config_parse_size(const char *text, uint64_t *ret_bytes);
bool config_parse_time_ms(const char *text, unsigned *ret_ms);

#endif
