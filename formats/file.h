/*
 * file.h: host files as drivers use them: whole transfers, zeroing, sizes.
 *
 * A host file is a regular file or a block device. Units: bytes. Convention: 0 or -errno;
 * EINTR and short transfers never reach the caller. No state, any number of threads.
 * Whatever the qcow2 writer does to a file goes through these functions or an io_list.
 *
 * Each call takes the thread's timeout at most, then it is -ETIMEDOUT: see uring.h, which also
 * tells what becomes of it. What a caller passes is its own again at once. file_zero makes
 * several calls.
 */
#ifndef FORMATS_FILE_H
#define FORMATS_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

/* file_read_full fills what lies past the end of the file with zeroes; file_read_exact
 * gives -EIO there (a raw file that somebody truncated must not turn into zeroes). */
int file_read_full(int fd, void *buf, size_t length, uint64_t offset);
int file_read_exact(int fd, void *buf, size_t length, uint64_t offset);
int file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
/* Transfers what takes no waiting, and returns how much that was. */
size_t file_try(int fd, void *buf, size_t length, uint64_t offset, bool is_write);

/* fdatasync: what was written, and the file's size, are on stable storage. */
int file_sync(int fd);
/* What image.h's flush_step says of a sync that failed: one that found no room has lost what
 * it was to write. */
int file_sync_error(int result);

/* Makes the range, which lies inside of the file, read as zeroes. file_punch also gives
 * its space back to the host; file_allocate_zero keeps it where the host can. -ENOTSUP: the
 * file system or device cannot, or not at this alignment; nothing was changed. */
int file_punch(int fd, uint64_t offset, uint64_t length);
int file_allocate_zero(int fd, uint64_t offset, uint64_t length);
/* The same by whatever works: a punched hole if that is possible and the range is worth
 * it, else written zeroes. Never -ENOTSUP. */
int file_zero(int fd, uint64_t offset, uint64_t length);

/* New size of a regular file; what is gained reads as zeroes. */
int file_resize(int fd, uint64_t size);
int file_get_stat(int fd, struct stat *ret_stat);
/* lseek, for SEEK_DATA, SEEK_HOLE and SEEK_END: the position itself is nobody's. */
int file_seek(int fd, uint64_t offset, int whence, uint64_t *ret_offset);
/* Size of a regular file or block device; -EINVAL: neither. ret_is_device may be NULL. */
int file_get_size(int fd, uint64_t *ret_size, bool *ret_is_device);

/* Lets go of what the page cache has of it and need not write. */
void file_forget_cache(int fd);
/* When nothing is abandoned on it any more: then its number can be another file's, and its
 * locks are gone. -1 is nothing to do. */
void file_close(int fd);

/* Whether somebody changed a file behind our back, for caches of what was decoded from it:
 * a sector that rots under a mounted disk must be seen by the next read, not hidden. True
 * if the inode changed since the last call with this stamp, or may have within the clock
 * tick of that call. Start with a zeroed stamp: the first call says true. Not locked. */
typedef struct file_stamp {
    int64_t changed_ns;   /* st_ctim */
    bool settled;         /* it was older than a tick when we looked */
    bool looked, at_once; /* known to be where looking takes no waiting */
} file_stamp;
bool file_stamp_changed(file_stamp *stamp, int fd);

#endif
