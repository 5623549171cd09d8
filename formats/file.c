/*
 * file.c: see file.h.
 *
 * With a timeout each function first does what takes no waiting, and has a spare thread, which
 * has no timeout, call the same function for the rest.
 */
#include "formats/file.h"
#include "formats/spare.h"
#include "formats/uring.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* The kernel transfers at most this much at once anyway (MAX_RW_COUNT is a little more). */
#define TRANSFER_MAX ((size_t)1 << 30)
#define ZEROES_CHUNK (64u << 10)
/* Below this, writing zeroes costs less than a hole, which splits the file's extents. */
#define PUNCH_WORTH (128u << 10)

size_t file_try(int fd, void *buf, size_t length, uint64_t offset, bool is_write)
{
    struct iovec iov = {buf, length};
    ssize_t done = is_write ? pwritev2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT)
                            : preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT);
    return done > 0 ? (size_t)done : 0;
}

/* ---- Transfers --------------------------------------------------------------------------- */

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

static int make_read_full(const spare_call *call)
{
    return file_read_full(call->fd, call->buf, call->length, call->offset);
}

static int make_read_exact(const spare_call *call)
{
    return file_read_exact(call->fd, call->buf, call->length, call->offset);
}

static int make_write_full(const spare_call *call)
{
    return file_write_full(call->fd, call->buf, call->length, call->offset);
}

static int transfer_in_time(spare_call call)
{
    size_t done = file_try(call.fd, call.buf, call.length, call.offset, !call.fills);
    if (done == call.length)
        return 0;
    call.buf = (uint8_t *)call.buf + done;
    call.length -= done;
    call.offset += done;
    return spare_make(&call);
}

static spare_call read_call(int (*make)(const spare_call *), int fd, void *buf,
                            size_t length, uint64_t offset)
{
    return (spare_call){.make = make,
                        .fd = fd,
                        .buf = buf,
                        .length = length,
                        .fills = true,
                        .offset = offset};
}

int file_read_full(int fd, void *buf, size_t length, uint64_t offset)
{
    if (io_get_timeout() > 0)
        return transfer_in_time(read_call(make_read_full, fd, buf, length, offset));
    ssize_t done = read_up_to_end(fd, buf, length, offset);
    if (done < 0)
        return (int)done;
    memset((uint8_t *)buf + done, 0, length - (size_t)done);
    return 0;
}

int file_read_exact(int fd, void *buf, size_t length, uint64_t offset)
{
    if (io_get_timeout() > 0)
        return transfer_in_time(read_call(make_read_exact, fd, buf, length, offset));
    ssize_t done = read_up_to_end(fd, buf, length, offset);
    if (done < 0)
        return (int)done;
    return (size_t)done == length ? 0 : -EIO;
}

int file_write_full(int fd, const void *buf, size_t length, uint64_t offset)
{
    const uint8_t *bytes = buf;
    if (io_get_timeout() > 0)
        return transfer_in_time((spare_call){.make = make_write_full,
                                             .fd = fd,
                                             .buf = (void *)(uintptr_t)buf,
                                             .length = length,
                                             .offset = offset});
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

static int make_sync(const spare_call *call)
{
    return file_sync(call->fd);
}

int file_sync(int fd)
{
    if (io_get_timeout() > 0)
        return spare_make(&(spare_call){.make = make_sync, .fd = fd});
    return fdatasync(fd) < 0 ? -errno : 0;
}

int file_sync_error(int result)
{
    return result == -ENOSPC || result == -EDQUOT ? -EIO : result;
}

/* ---- Space ------------------------------------------------------------------------------- */

/* EINVAL: a device whose blocks are larger than the range's alignment. */
static int allocate(int fd, int mode, uint64_t offset, uint64_t length);

static int make_allocate(const spare_call *call)
{
    return allocate(call->fd, call->mode, call->offset, call->size);
}

static int allocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct stat st;
    int rc;
    if (io_get_timeout() > 0)
        return spare_make(&(spare_call){.make = make_allocate,
                                        .fd = fd,
                                        .mode = mode,
                                        .offset = offset,
                                        .size = length});
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

static int make_resize(const spare_call *call)
{
    return file_resize(call->fd, call->size);
}

int file_resize(int fd, uint64_t size)
{
    int rc;
    if (io_get_timeout() > 0)
        return spare_make(&(spare_call){.make = make_resize, .fd = fd, .size = size});
    do
        rc = ftruncate(fd, (off_t)size);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static int make_seek(const spare_call *call)
{
    return file_seek(call->fd, call->offset, call->mode, call->buf);
}

int file_seek(int fd, uint64_t offset, int whence, uint64_t *ret_offset)
{
    if (io_get_timeout() > 0)
        return spare_make(&(spare_call){.make = make_seek,
                                        .fd = fd,
                                        .offset = offset,
                                        .mode = whence,
                                        .buf = ret_offset,
                                        .length = sizeof *ret_offset,
                                        .fills = true});
    off_t found = lseek(fd, (off_t)offset, whence);
    if (found < 0)
        return -errno;
    *ret_offset = (uint64_t)found;
    return 0;
}

static int make_forget(const spare_call *call)
{
    return -posix_fadvise(call->fd, 0, 0, POSIX_FADV_DONTNEED);
}

void file_forget_cache(int fd)
{
    spare_make(&(spare_call){.make = make_forget, .fd = fd});
}

void file_close(int fd)
{
    if (fd >= 0)
        spare_close(fd);
}

/* ---- What is known of a file ----------------------------------------------------------------- */

static int make_stat(const spare_call *call)
{
    return file_get_stat(call->fd, call->buf);
}

int file_get_stat(int fd, struct stat *ret_stat)
{
    if (io_get_timeout() > 0)
        return spare_make(&(spare_call){.make = make_stat,
                                        .fd = fd,
                                        .buf = ret_stat,
                                        .length = sizeof *ret_stat,
                                        .fills = true});
    return fstat(fd, ret_stat) < 0 ? -errno : 0;
}

static int make_device_size(const spare_call *call)
{
    return ioctl(call->fd, BLKGETSIZE64, call->buf) < 0 ? -errno : 0;
}

int file_get_size(int fd, uint64_t *ret_size, bool *ret_is_device)
{
    struct stat st;
    int error = file_get_stat(fd, &st);
    if (error)
        return error;
    bool is_device = S_ISBLK(st.st_mode);
    if (ret_is_device)
        *ret_is_device = is_device;
    *ret_size = (uint64_t)st.st_size;
    if (is_device)
        return spare_make(&(spare_call){.make = make_device_size,
                                        .fd = fd,
                                        .buf = ret_size,
                                        .length = sizeof *ret_size,
                                        .fills = true});
    return S_ISREG(st.st_mode) ? 0 : -EINVAL;
}

/* Kernels before 6.13 stamp inodes with the time of the last tick, 10 ms at most: a change
 * in the tick of a look may leave the same stamp. */
#define TICK_NS 20000000

static int64_t to_ns(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* File systems of this machine that answer fstat from memory, whatever their disk does. */
static bool answers_at_once(long type)
{
    static const long types[] = {EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC,
                                 TMPFS_MAGIC};
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++)
        if (types[i] == type)
            return true;
    return false;
}

static int make_look_at_system(const spare_call *call)
{
    struct statfs fs;
    int rc = fstatfs(call->fd, &fs);
    *(bool *)call->buf = rc == 0 && answers_at_once((long)fs.f_type);
    return rc < 0 ? -errno : 0;
}

/* Asking a spare thread costs more than the answer is worth where it is not needed. */
static int stat_for_stamp(file_stamp *stamp, int fd, struct stat *ret_stat)
{
    if (io_get_timeout() > 0 && !stamp->looked) {
        int error = spare_make(&(spare_call){.make = make_look_at_system,
                                             .fd = fd,
                                             .buf = &stamp->at_once,
                                             .length = sizeof stamp->at_once,
                                             .fills = true});
        if (error)
            return error;
        stamp->looked = true;
    }
    if (stamp->at_once)
        return fstat(fd, ret_stat) < 0 ? -errno : 0;
    return file_get_stat(fd, ret_stat);
}

bool file_stamp_changed(file_stamp *stamp, int fd)
{
    struct stat st;
    struct timespec now;
    if (stat_for_stamp(stamp, fd, &st) || clock_gettime(CLOCK_REALTIME, &now) < 0)
        return true;
    int64_t changed_ns = to_ns(st.st_ctim);
    bool same = stamp->settled && changed_ns == stamp->changed_ns;
    stamp->changed_ns = changed_ns;
    stamp->settled = to_ns(now) - changed_ns > TICK_NS;
    return !same;
}
