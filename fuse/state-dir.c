/*
 * state-dir.c: see state-dir.h.
 */
#include "fuse/state-dir.h"
#include "fuse/config.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

int state_dir_lock(const char *dir, const char *hint, GError **error)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    if (fd >= 0 && errno == EWOULDBLOCK)
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                    "state directory %s: in use by another mount or repair of the same "
                    "images (%s)",
                    dir, hint);
    else
        g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "state directory %s: %s", dir,
                    g_strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

char *state_dir_journal_path(const char *dir, const char *name)
{
    return g_build_filename(dir, name, "divergence.jsonl", NULL);
}

journal *state_dir_open_journal(const char *dir, const char *name, GError **error)
{
    g_autofree char *path = state_dir_journal_path(dir, name);
    g_autofree char *parent = g_path_get_dirname(path);
    if (g_mkdir_with_parents(parent, 0700) == 0)
        return journal_open(path, 0, NULL, error);
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "journal directory %s: %s",
                parent, g_strerror(errno));
    return NULL;
}
