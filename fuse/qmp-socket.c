/*
 * qmp-socket.c: Unix sockets by path.
 *
 * A socket's address holds 107 bytes. A longer path goes through /proc/self/fd: its
 * directory is opened, and the address names the socket below that descriptor.
 */
#include "fuse/qmp.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Returns 0 or -errno. *ret_dir: to be closed after use, or -1. */
static int make_address(const char *path, struct sockaddr_un *ret_address, int *ret_dir)
{
    *ret_dir = -1;
    memset(ret_address, 0, sizeof *ret_address);
    ret_address->sun_family = AF_UNIX;
    size_t room = sizeof ret_address->sun_path;
    if (strlen(path) < room) {
        strcpy(ret_address->sun_path, path);
        return 0;
    }
    g_autofree char *dir = g_path_get_dirname(path);
    g_autofree char *name = g_path_get_basename(path);
    int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int length = snprintf(ret_address->sun_path, room, "/proc/self/fd/%d/%s", fd, name);
    if (length < 0 || (size_t)length >= room) {
        close(fd);
        return -ENAMETOOLONG;
    }
    *ret_dir = fd;
    return 0;
}

typedef int (*address_call)(int fd, const struct sockaddr *address, socklen_t length);

/* bind or connect. 0 or -errno. */
static int at_address(int fd, const char *path, address_call call)
{
    struct sockaddr_un address;
    int dir;
    int result = make_address(path, &address, &dir);
    if (result == 0 && call(fd, (struct sockaddr *)&address, sizeof address) < 0)
        result = -errno;
    if (dir >= 0)
        close(dir);
    return result;
}

static int new_socket(int flags)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
}

static void set_error(GError **error, const char *path, const char *why)
{
    g_set_error(error, QMP_ERROR, QMP_ERROR_GENERIC, "%s: %s", path, why);
}

/* Whether somebody accepts connections there: 0 or -errno, -ECONNREFUSED if it is dead. */
static int probe(const char *path)
{
    int fd = new_socket(SOCK_NONBLOCK);
    if (fd < 0)
        return -errno;
    int result = at_address(fd, path, connect);
    close(fd);
    return result == -EAGAIN ? 0 : result; /* alive, its backlog is full */
}

/* Takes a dead socket out of the way. */
static bool make_room(const char *path, GError **error)
{
    struct stat st;
    if (lstat(path, &st) < 0) {
        if (errno == ENOENT)
            return true;
        set_error(error, path, g_strerror(errno));
        return false;
    }
    if (!S_ISSOCK(st.st_mode) || st.st_uid != geteuid()) {
        set_error(error, path, "exists and is not a socket of this user");
        return false;
    }
    int result = probe(path);
    if (result == 0) {
        set_error(error, path, "in use by another process");
        return false;
    }
    if (result != -ECONNREFUSED || unlink(path) < 0) {
        set_error(error, path, g_strerror(result != -ECONNREFUSED ? -result : errno));
        return false;
    }
    return true;
}

int qmp_socket_listen(const char *path, GError **error)
{
    if (!make_room(path, error))
        return -1;
    int fd = new_socket(SOCK_NONBLOCK);
    int result = fd < 0 ? -errno : 0;
    /* Before bind, so that there is no moment at which others could connect. */
    if (result == 0 && fchmod(fd, 0600) < 0)
        result = -errno;
    if (result == 0)
        result = at_address(fd, path, bind);
    if (result == 0 && listen(fd, 16) < 0)
        result = -errno;
    if (result < 0) {
        set_error(error, path, g_strerror(-result));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

int qmp_socket_connect(const char *path, GError **error)
{
    int fd = new_socket(0);
    int result = fd < 0 ? -errno : at_address(fd, path, connect);
    if (result < 0) {
        set_error(error, path, g_strerror(-result));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}
