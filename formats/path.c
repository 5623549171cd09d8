/*
 * path.c: which files may be opened (O2).
 *
 * Every open has three steps, so that nothing but a file of an allowed type is ever really
 * opened, and nothing can be exchanged between the check and the use:
 *   1. O_PATH: resolves the name, has no effect on a FIFO or device and never blocks;
 *   2. fstat on that descriptor: type and identity;
 *   3. a real open of /proc/self/fd/N, which is that very file.
 *
 * What an image names is first brought beneath an allowed directory by its text alone, then
 * opened from that directory's descriptor with the kernel watching every step. The text is
 * only trusted to choose the directory: if it lies, step 1 fails.
 */
#include "formats/path.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OPENAT2_TRIES  16
#define NAME_SHOWN_MAX 4096

typedef struct allowed_dir {
    char *prefix; /* absolute, no symlinks but those the operator typed, ends in '/' */
    int fd;       /* O_PATH, of the directory behind the prefix */
} allowed_dir;

struct path_policy {
    GArray *dirs; /* of allowed_dir */
};

static void allowed_dir_clear(void *dir)
{
    allowed_dir *d = dir;
    g_free(d->prefix);
    close(d->fd);
}

path_policy *path_policy_new(void)
{
    path_policy *policy = g_new0(path_policy, 1);
    policy->dirs = g_array_new(FALSE, FALSE, sizeof(allowed_dir));
    g_array_set_clear_func(policy->dirs, allowed_dir_clear);
    return policy;
}

void path_policy_free(path_policy *policy)
{
    if (!policy)
        return;
    g_array_unref(policy->dirs);
    g_free(policy);
}

static void set_io_error(GError **error, const char *path, int saved_errno)
{
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: %s", path,
                g_strerror(saved_errno));
}

static void close_keeping_errno(int fd)
{
    int saved_errno = errno;
    close(fd);
    errno = saved_errno;
}

static bool policy_has(const path_policy *policy, const char *prefix)
{
    for (guint i = 0; i < policy->dirs->len; i++)
        if (!strcmp(g_array_index(policy->dirs, allowed_dir, i).prefix, prefix))
            return true;
    return false;
}

/* Takes both. */
static void policy_append(path_policy *policy, int fd, char *prefix)
{
    const allowed_dir dir = {.prefix = prefix, .fd = fd};
    g_array_append_val(policy->dirs, dir);
}

static bool policy_add(path_policy *policy, const char *dir, GError **error)
{
    g_autofree char *prefix =
        g_str_has_suffix(dir, "/") ? g_strdup(dir) : g_strconcat(dir, "/", NULL);
    if (policy_has(policy, prefix))
        return true;
    int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        set_io_error(error, dir, errno);
        return false;
    }
    policy_append(policy, fd, g_steal_pointer(&prefix));
    return true;
}

path_policy *path_policy_copy(const path_policy *policy)
{
    path_policy *copy = path_policy_new();
    for (unsigned i = 0; i < policy->dirs->len; i++) {
        const allowed_dir *dir = &g_array_index(policy->dirs, allowed_dir, i);
        int fd = fcntl(dir->fd, F_DUPFD_CLOEXEC, 0);
        if (fd >= 0) /* else what lies there is refused, with a message */
            policy_append(copy, fd, g_strdup(dir->prefix));
    }
    return copy;
}

/* The real directory, and the operator's own spelling of it: an image may name its
 * backing file by the path that the operator used too. */
bool path_policy_add_dir(path_policy *policy, const char *dir, GError **error)
{
    g_autofree char *real = realpath(dir, NULL);
    if (!real) {
        set_io_error(error, dir, errno);
        return false;
    }
    g_autofree char *spelled = g_canonicalize_filename(dir, NULL);
    g_autofree char *behind_spelled = realpath(spelled, NULL);
    if (!policy_add(policy, real, error))
        return false;
    return g_strcmp0(real, behind_spelled) || policy_add(policy, spelled, error);
}

bool path_policy_add_image(path_policy *policy, const char *image_path, GError **error)
{
    g_autofree char *real = realpath(image_path, NULL);
    if (!real) {
        set_io_error(error, image_path, errno);
        return false;
    }
    g_autofree char *real_dir = g_path_get_dirname(real);
    g_autofree char *dir = g_path_get_dirname(image_path);
    g_autofree char *behind_dir = realpath(dir, NULL);
    return path_policy_add_dir(policy, g_strcmp0(real_dir, behind_dir) ? real_dir : dir,
                               error);
}

static char *fd_link(int fd)
{
    return g_strdup_printf("/proc/self/fd/%d", fd);
}

int path_reopen(int fd, bool writable)
{
    g_autofree char *link = fd_link(fd);
    /* O_NONBLOCK for the open only (a lease on the file would block it): left on, it makes
     * io_uring give EAGAIN for what is not in the page cache. */
    int opened =
        open(link, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (opened < 0)
        return -1;
    int flags = fcntl(opened, F_GETFL);
    if (flags < 0 || fcntl(opened, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        close_keeping_errno(opened);
        return -1;
    }
    return opened;
}

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
        return "a character device";
    case S_IFBLK:
        return "a block device";
    default:
        return "not a file";
    }
}

/* Steps 2 and 3. Takes over path_fd. `shown` starts the messages. */
static int open_checked(int path_fd, bool writable, bool block_device_allowed,
                        const char *shown, char **ret_real_path, struct stat *ret_st,
                        GError **error)
{
    struct stat st;
    g_autofree char *link = fd_link(path_fd);
    g_autofree char *real = NULL;
    int fd = -1;
    if (fstat(path_fd, &st) < 0) {
        set_io_error(error, shown, errno);
    } else if (!S_ISREG(st.st_mode) && !(S_ISBLK(st.st_mode) && block_device_allowed)) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED, "%s: is %s (%s)", shown,
                    type_name(st.st_mode),
                    block_device_allowed ? "an image is a regular file or a block device"
                                         : "only regular files are opened for an image");
    } else if (!(real = g_file_read_link(link, NULL)) ||
               (fd = path_reopen(path_fd, writable)) < 0) {
        set_io_error(error, shown, errno);
    } else {
        *ret_real_path = g_steal_pointer(&real);
        *ret_st = st;
    }
    close(path_fd);
    return fd;
}

int path_open_named(const char *path, bool writable, char **ret_real_path,
                    struct stat *ret_st, GError **error)
{
    int path_fd = open(path, O_PATH | O_CLOEXEC);
    if (path_fd < 0) {
        set_io_error(error, path, errno);
        return -1;
    }
    return open_checked(path_fd, writable, true, path, ret_real_path, ret_st, error);
}

/* A colon before the first slash makes a protocol, as QEMU reads names. */
static bool is_protocol_name(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static bool is_symlink(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

/* Removes ".", ".." and empty parts from an absolute path by its text. NULL where that
 * would not mean the same as for the kernel, because ".." follows a symlink. */
static char *clean_path(const char *path)
{
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    g_autoptr(GString) clean = g_string_new(NULL);
    for (char **part = parts; *part; part++) {
        if (**part == '\0' || !strcmp(*part, "."))
            continue;
        if (strcmp(*part, "..")) {
            g_string_append_printf(clean, "/%s", *part);
        } else if (is_symlink(clean->str)) {
            return NULL;
        } else {
            const char *slash = strrchr(clean->str, '/');
            g_string_truncate(clean, slash ? (gsize)(slash - clean->str) : 0);
        }
    }
    return g_string_free(g_steal_pointer(&clean), FALSE);
}

/* The allowed directory above `path`, and where in path its inside begins. */
static const allowed_dir *policy_find(const path_policy *policy, const char *path,
                                      const char **ret_inside)
{
    for (guint i = 0; i < policy->dirs->len; i++) {
        const allowed_dir *dir = &g_array_index(policy->dirs, allowed_dir, i);
        if (g_str_has_prefix(path, dir->prefix) && path[strlen(dir->prefix)] != '\0') {
            *ret_inside = path + strlen(dir->prefix);
            return dir;
        }
    }
    return NULL;
}

static int open_beneath(int dir_fd, const char *inside)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
                                      RESOLVE_NO_MAGICLINKS};
    for (int tries = OPENAT2_TRIES;; tries--) {
        int fd = (int)syscall(SYS_openat2, dir_fd, inside, &how, sizeof how);
        /* EAGAIN: something was renamed meanwhile, and ".." could not be judged. */
        if (fd >= 0 || errno != EAGAIN || tries == 0)
            return fd;
    }
}

static void set_refused(GError **error, const char *shown, const char *why)
{
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED, "%s: %s", shown, why);
}

char *path_printable(const char *name)
{
    g_autofree char *part = g_strndup(name, NAME_SHOWN_MAX);
    g_autofree char *valid = g_utf8_make_valid(part, -1);
    GString *shown = g_string_new(NULL);
    for (const char *c = valid; *c; c = g_utf8_next_char(c)) {
        gunichar character = g_utf8_get_char(c);
        g_string_append_unichar(shown, g_unichar_isprint(character) ? character : '?');
    }
    return g_string_free(shown, FALSE);
}

static char *show(const char *referrer, const char *what, const char *name,
                  const char *format)
{
    g_autofree char *valid = path_printable(name);
    return g_strdup_printf("%s: %s %s%s%s%s", referrer, what, valid, format ? " (" : "",
                           format ? format : "", format ? ")" : "");
}

static int open_in_policy(const path_policy *policy, const char *path, const char *shown,
                          GError **error)
{
    const char *inside = NULL;
    const allowed_dir *dir = policy_find(policy, path, &inside);
    if (!dir) {
        g_autofree char *parent = g_path_get_dirname(path);
        g_autofree char *shown_parent = path_printable(parent);
        g_autofree char *why =
            g_strdup_printf("lies outside the directories of the named images "
                            "(allow it with allow-dir=%s)",
                            shown_parent);
        set_refused(error, shown, why);
        return -1;
    }
    int path_fd = open_beneath(dir->fd, inside);
    if (path_fd < 0 && (errno == ELOOP || errno == EXDEV))
        set_refused(error, shown,
                    "is behind a symbolic link (name the file itself in the image: "
                    "qemu-img rebase -u)");
    else if (path_fd < 0)
        set_io_error(error, shown, errno);
    return path_fd;
}

int path_open_referred(const path_policy *policy, const char *name, const char *referrer,
                       const char *what, const char *format, char **ret_real_path,
                       struct stat *ret_st, GError **error)
{
    if (name[0] == '\0' || is_protocol_name(name)) {
        g_autofree char *shown = show(referrer, what, name, format);
        set_refused(error, shown,
                    name[0] == '\0' ? "the name is empty"
                                    : "images may name files only, no json: and no "
                                      "protocols (write ./ before a name with a colon)");
        return -1;
    }
    g_autofree char *dir = g_path_get_dirname(referrer);
    g_autofree char *full =
        name[0] == '/' ? g_strdup(name) : g_strconcat(dir, "/", name, NULL);
    g_autofree char *path = clean_path(full);
    g_autofree char *shown = show(referrer, what, path ? path : full, format);
    if (!path) {
        set_refused(error, shown, "has '..' after a symbolic link");
        return -1;
    }
    int path_fd = open_in_policy(policy, path, shown, error);
    if (path_fd < 0)
        return -1;
    return open_checked(path_fd, false, false, shown, ret_real_path, ret_st, error);
}
