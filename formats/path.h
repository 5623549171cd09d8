/*
 * path.h: which files may be opened at all (O2), and how they are locked (O5).
 */
#ifndef FORMATS_PATH_H
#define FORMATS_PATH_H

#include "formats/image.h"
#include <sys/stat.h>

/* The directories beneath which files that an *image* names may lie: those of the images
 * that the operator named, and his allow-dirs. Built once, then only read. */
typedef struct path_policy path_policy;
path_policy *path_policy_new(void);
path_policy *path_policy_copy(const path_policy *policy);
void path_policy_free(path_policy *policy);
/* Adds a directory (its real path), e.g. an allow-dir. */
bool path_policy_add_dir(path_policy *policy, const char *dir, GError **error);
/* Adds the directory in which the real file behind `image_path` lies. A path that does
 * not exist is an error that path_open_named would give too. */
bool path_policy_add_image(path_policy *policy, const char *image_path, GError **error);

/* Opens a file that the operator named: symlinks are followed, a regular file or a block
 * device, never blocking (a FIFO is refused, not waited for). Returns the descriptor
 * (O_CLOEXEC) or -1. *ret_real_path: absolute, resolved, owned by the caller. */
int path_open_named(const char *path, bool writable, char **ret_real_path,
                    struct stat *ret_st, GError **error);

/* Opens a file that an image names (backing or data file). `name` is as in the image;
 * relative names start at the directory of `referrer`, a real path.
 * Refused: json:, protocol names ("nbd:...", "http://..."), whatever is not beneath a
 * directory of the policy, symlinks, anything but a regular file. The last step is
 * openat2 with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS on the
 * allowed directory's descriptor. `what` is "backing file" or "data file", `format` its
 * format for the message or NULL: "/x.qcow2: backing file /y (raw): ...". */
int path_open_referred(const path_policy *policy, const char *name, const char *referrer,
                       const char *what, const char *format, char **ret_real_path,
                       struct stat *ret_st, GError **error);

/* A name from inside an image as it may stand in a message: valid UTF-8, printable
 * characters, not endless. The caller frees. */
char *path_printable(const char *name);

/* Another descriptor of an open file, with an open file description, and so with locks,
 * of its own (O_CLOEXEC). -1 with errno on failure. */
int path_reopen(int fd, bool writable);

/* Locks as QEMU's file-posix.c does (OFD locks; permission bytes from 100, sharing bytes
 * from 200): a reader refuses writers and resizers, a writer refuses everyone but pure
 * readers that share with it. Held until the descriptor's last close. Locks belong to the
 * open file description: two opens in one process conflict as two processes do. */
bool path_lock(int fd, bool writable, const char *filename, GError **error);
/* Gives them up at once, whoever still has the open file: io_uring lets go of a file that
 * it flushed some time after the process has ended. */
void path_unlock(int fd);

#endif
