/*
 * file.c: see file.h.
 */
#include "formats/file.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The kernel transfers at most this much at once anyway (MAX_RW_COUNT is a little more). */
#define TRANSFER_MAX ((size_t)1 << 30)
#define ZEROES_CHUNK (64u << 10)
/* Below this, writing zeroes costs less than a hole, which splits the file's extents. */
#define PUNCH_WORTH (128u << 10)

/* Returns how much was read before the end of the file, or -errno. */
static ssize_t read_up_to_end(int fd, uint8_t *buf, size_t length, uint64_t offset)
{
    size_t done = 0;
    while (done < length) {
        ssize_t got = pread(fd, buf + done, MIN(length - done, TRANSFER_MAX),
                            (off_t)(offset + done));
        if (got == 0)
            break;
        if (got > 0)
            done += (size_t)got;
        else if (errno != EINTR) /* a bad checksum must not look like chain.h's EBADMSG */
            return errno == EBADMSG ? -EIO : -errno;
    }
    return (ssize_t)done;
}

int file_read_full(int fd, void *buf, size_t length, uint64_t offset)
{
    ssize_t done = read_up_to_end(fd, buf, length, offset);
    if (done < 0)
        return (int)done;
    memset((uint8_t *)buf + done, 0, length - (size_t)done);
    return 0;
}

int file_read_exact(int fd, void *buf, size_t length, uint64_t offset)
{
    ssize_t done = read_up_to_end(fd, buf, length, offset);
    if (done < 0)
        return (int)done;
    return (size_t)done == length ? 0 : -EIO;
}

int file_write_full(int fd, const void *buf, size_t length, uint64_t offset)
{
    const uint8_t *bytes = buf;
    while (length > 0) {
        ssize_t put = pwrite(fd, bytes, MIN(length, TRANSFER_MAX), (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        bytes += put;
        offset += (uint64_t)put;
        length -= (size_t)put;
    }
    return 0;
}

int file_sync(int fd)
{
    return fdatasync(fd) < 0 ? -errno : 0;
}

int file_sync_error(int result)
{
    return result == -ENOSPC || result == -EDQUOT ? -EIO : result;
}

/* EINVAL: a device whose blocks are larger than the range's alignment. */
static int allocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct stat st;
    int rc;
    do
        rc = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
    while (rc < 0 && errno == EINTR);
    if (rc == 0)
        return 0;
    if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV)
        return -ENOTSUP;
    int error = errno;
    bool misaligned = error == EINVAL && fstat(fd, &st) == 0 && S_ISBLK(st.st_mode);
    return misaligned ? -ENOTSUP : -error;
}

/* A punched hole reads as zeroes, in files and in devices alike (devices that cannot
 * promise that refuse the call). */
int file_punch(int fd, uint64_t offset, uint64_t length)
{
    return allocate(fd, FALLOC_FL_PUNCH_HOLE, offset, length);
}

int file_allocate_zero(int fd, uint64_t offset, uint64_t length)
{
    return allocate(fd, FALLOC_FL_ZERO_RANGE, offset, length);
}

int file_zero(int fd, uint64_t offset, uint64_t length)
{
    static const uint8_t zeroes[ZEROES_CHUNK];
    int error = length < PUNCH_WORTH ? -ENOTSUP : file_punch(fd, offset, length);
    if (error != -ENOTSUP)
        return error;
    for (error = 0; length > 0 && !error;) {
        size_t part = sizeof zeroes - offset % sizeof zeroes; /* tears no sector */
        part = MIN(part, length);
        error = file_write_full(fd, zeroes, part, offset);
        offset += part;
        length -= part;
    }
    return error;
}

int file_resize(int fd, uint64_t size)
{
    int rc;
    do
        rc = ftruncate(fd, (off_t)size);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

int file_get_size(int fd, uint64_t *ret_size, bool *ret_is_device)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    bool is_device = S_ISBLK(st.st_mode);
    if (ret_is_device)
        *ret_is_device = is_device;
    *ret_size = (uint64_t)st.st_size;
    if (is_device)
        return ioctl(fd, BLKGETSIZE64, ret_size) < 0 ? -errno : 0;
    return S_ISREG(st.st_mode) ? 0 : -EINVAL;
}

/* Kernels before 6.13 stamp inodes with the time of the last tick, 10 ms at most: a change
 * in the tick of a look may leave the same stamp. */
#define TICK_NS 20000000

static int64_t to_ns(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

bool file_stamp_changed(file_stamp *stamp, int fd)
{
    struct stat st;
    struct timespec now;
    if (fstat(fd, &st) < 0 || clock_gettime(CLOCK_REALTIME, &now) < 0)
        return true;
    file_stamp seen = {.changed_ns = to_ns(st.st_ctim)};
    seen.settled = to_ns(now) - seen.changed_ns > TICK_NS;
    bool same = stamp->settled && seen.changed_ns == stamp->changed_ns;
    *stamp = seen;
    return !same;
}
