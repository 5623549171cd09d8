/*
 * lock.c: the locks that QEMU takes on images (O5), so that it and quorumfs see each other.
 *
 * Every permission has a number. Whoever holds a permission has a read lock on byte
 * PERM_BASE + number; whoever does not let others have it has one on SHARED_BASE + number.
 * Locks never exclude each other directly (all are read locks): each side first takes its
 * own, then looks whether a write lock would fit on the bytes that contradict it. Taking
 * first means that of two that start together at least one sees the other.
 *
 * A lock that is in the way is waited for a moment: the kernel closes the files of a killed
 * process some time after it has told of its end, and whoever starts the next one then
 * should not be told that the image is in use.
 */
#include "formats/path.h"
#include "formats/spare.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define WAIT_MS      400
#define WAIT_STEP_MS 20

enum { PERM_BASE = 100, SHARED_BASE = 200 };

enum {
    PERM_CONSISTENT_READ = 1u << 0,
    PERM_WRITE = 1u << 1,
    PERM_RESIZE = 1u << 3,
    PERM_COUNT = 5, /* with "write unchanged" (2) and "modify the graph" (4) */
};

static int lock_set(int fd, short type, off_t start, off_t length)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    int rc;
    do
        rc = fcntl(fd, F_OFD_SETLK, &lock);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

static int lock_take(int fd, off_t base, unsigned bits)
{
    for (int i = 0; i < PERM_COUNT; i++) {
        int error = (bits & (1u << i)) ? lock_set(fd, F_RDLCK, base + i, 1) : 0;
        if (error)
            return error;
    }
    return 0;
}

static int lock_check(int fd, off_t base, unsigned bits)
{
    for (int i = 0; i < PERM_COUNT; i++) {
        struct flock lock = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + i, .l_len = 1};
        if (!(bits & (1u << i)))
            continue;
        if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
            return -errno;
        if (lock.l_type != F_UNLCK)
            return -EAGAIN;
    }
    return 0;
}

static int lock_permissions(int fd, unsigned held, unsigned unshared)
{
    int error = lock_take(fd, PERM_BASE, held);
    if (!error)
        error = lock_take(fd, SHARED_BASE, unshared);
    if (!error)
        error = lock_check(fd, SHARED_BASE, held);
    if (!error)
        error = lock_check(fd, PERM_BASE, unshared);
    return error;
}

static int make_unlock(const spare_call *call)
{
    return lock_set(call->fd, F_UNLCK, PERM_BASE, SHARED_BASE + PERM_COUNT - PERM_BASE);
}

/* Takes the thread's timeout at most: a server may keep the locks. */
void path_unlock(int fd)
{
    spare_make(&(spare_call){.make = make_unlock, .fd = fd});
}

bool path_lock(int fd, bool writable, const char *filename, GError **error)
{
    unsigned unshared = PERM_WRITE | PERM_RESIZE;
    unsigned held = PERM_CONSISTENT_READ | (writable ? unshared : 0);
    int failed = lock_permissions(fd, held, unshared);
    for (int waited = 0; failed == -EAGAIN && waited < WAIT_MS; waited += WAIT_STEP_MS) {
        path_unlock(fd);
        g_usleep(WAIT_STEP_MS * 1000);
        failed = lock_permissions(fd, held, unshared);
    }
    if (!failed)
        return true;
    path_unlock(fd);
    if (failed == -EAGAIN || failed == -EACCES)
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_LOCKED,
                    "%s: in use by another process (%s)", filename,
                    writable
                        ? "QEMU or another quorumfs has it open, or it is named twice"
                        : "QEMU or another quorumfs has it open for writing");
    else
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: cannot be locked: %s",
                    filename, g_strerror(-failed));
    return false;
}
