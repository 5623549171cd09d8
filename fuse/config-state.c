/*
 * config-state.c: where a set of replicas keeps its state.
 *
 * The directory is named after the real paths of all replicas, sorted, so that the same
 * set finds its state again whatever the order, the mount point or the spelling of the
 * paths; where the paths are others, config-record.c looks for it. What is written there is
 * trusted later, so it must be ours and nobody else's.
 */
#include "formats/nbd.h"
#include "fuse/config-internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int compare_paths(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* "FIRST-DISK-0123456789abcdef". */
static char *set_name(const mount_config *config)
{
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(free);
    for (guint i = 0; i < config->disks->len; i++) {
        const disk_options *d = g_ptr_array_index(config->disks, i);
        for (guint j = 0; j < d->replicas->len; j++) {
            const replica_options *replica = g_ptr_array_index(d->replicas, j);
            char *real = chain_is_remote(replica->path)
                             ? nbd_source_identity(replica->path)
                             : realpath(replica->path, NULL);
            g_ptr_array_add(paths, real ? real : strdup(replica->path));
        }
    }
    g_ptr_array_sort(paths, compare_paths);
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    for (guint i = 0; i < paths->len; i++) {
        const char *path = g_ptr_array_index(paths, i);
        g_checksum_update(sum, (const guchar *)path, (gssize)strlen(path) + 1);
    }
    const disk_options *first = g_ptr_array_index(config->disks, 0);
    return g_strdup_printf("%s-%.16s", first->name, g_checksum_get_string(sum));
}

static char *base_dir(const mount_config *config)
{
    if (config->state_dir)
        return g_strdup(config->state_dir);
    if (geteuid() == 0)
        return g_strdup("/var/lib/quorumfs");
    return g_build_filename(g_get_user_state_dir(), "quorumfs", NULL);
}

static const char *make_private_dir(const char *dir)
{
    if (g_mkdir_with_parents(dir, 0700) < 0)
        return g_strerror(errno);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    const char *why = NULL;
    if (fd < 0 || fstat(fd, &st) < 0)
        why = g_strerror(errno);
    else if (st.st_uid != geteuid())
        why = "belongs to another user";
    else if ((st.st_mode & 0777) != 0700 && fchmod(fd, 0700) < 0)
        why = g_strerror(errno);
    if (fd >= 0)
        close(fd);
    return why;
}

char *config_find_state_dir(const mount_config *config)
{
    g_autofree char *base = base_dir(config);
    g_autofree char *name = set_name(config);
    return g_build_filename(base, name, NULL);
}

char *config_make_state_dir(const mount_config *config, GError **error)
{
    g_autofree char *dir = config_find_state_dir(config);
    const char *why = make_private_dir(dir);
    if (!why)
        return g_steal_pointer(&dir);
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE,
                "state directory %s: %s (choose another with -o state-dir=)", dir, why);
    return NULL;
}
