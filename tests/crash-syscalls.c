/*
 * crash-syscalls.c: the system calls of those that do not use file.h for what they write, as
 * far as they reach a file that crash-file.h watches.
 */
#include "formats/file.h"
#include "tests/crash-file.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

ssize_t __real_pwrite64(int fd, const void *buf, size_t length, off64_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t length, off64_t offset);
int __real_ftruncate64(int fd, off64_t size);
int __wrap_ftruncate64(int fd, off64_t size);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_posix_fadvise64(int fd, off64_t offset, off64_t length, int advice);
int __wrap_posix_fadvise64(int fd, off64_t offset, off64_t length, int advice);

static int as_errno(int error)
{
    errno = error < 0 ? -error : errno;
    return error < 0 ? -1 : 0;
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t length, off64_t offset)
{
    if (!crash_is_watched(fd))
        return __real_pwrite64(fd, buf, length, offset);
    int error = file_write_full(fd, buf, length, (uint64_t)offset);
    return as_errno(error) ? -1 : (ssize_t)length;
}

int __wrap_ftruncate64(int fd, off64_t size)
{
    if (!crash_is_watched(fd))
        return __real_ftruncate64(fd, size);
    return as_errno(file_resize(fd, (uint64_t)size));
}

int __wrap_fdatasync(int fd)
{
    int error = crash_sync(fd);
    return error == 1 ? __real_fdatasync(fd) : as_errno(error);
}

int __wrap_fsync(int fd)
{
    int error = crash_sync(fd);
    return error == 1 ? __real_fsync(fd) : as_errno(error);
}

int __wrap_posix_fadvise64(int fd, off64_t offset, off64_t length, int advice)
{
    if (advice == POSIX_FADV_DONTNEED)
        crash_forget_cache(fd);
    return __real_posix_fadvise64(fd, offset, length, advice);
}
