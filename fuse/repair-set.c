/*
 * repair-set.c: see repair-set.h.
 *
 * What is recorded of a disk is brought up to date by merely opening it: another order of the
 * replicas, a record that turns out to be void. To look at a disk without that, its record is
 * copied into a directory that is gone again when the disk is open.
 */
#include "fuse/repair-set.h"
#include "fuse/cli.h"
#include "fuse/state-dir.h"
#include "quorum/state.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HINT        "while it is mounted: quorumfs repair MOUNTPOINT DISK"
#define RECORD_MAX  ((size_t)512 << 20)
#define UNDO_SUFFIX ".undo"

bool repair_set_open(repair_set *set, mount_config *config, GError **error)
{
    *set = (repair_set){.config = config, .lock_fd = -1};
    set->dir = config_find_state_dir(config);
    if (access(set->dir, F_OK) < 0 && errno == ENOENT)
        return true;
    set->lock_fd = state_dir_lock(set->dir, HINT, error);
    return set->lock_fd >= 0;
}

void repair_set_close(repair_set *set)
{
    if (set->lock_fd >= 0)
        close(set->lock_fd);
    g_free(set->dir);
    *set = (repair_set){.lock_fd = -1};
}

bool repair_set_make_dir(repair_set *set, GError **error)
{
    g_autofree char *dir = config_make_state_dir(set->config, error);
    if (!dir || set->lock_fd >= 0)
        return dir != NULL;
    set->lock_fd = state_dir_lock(dir, HINT, error);
    return set->lock_fd >= 0;
}

/* What a mount would say of where it was found does not matter here. */
static bool find_record(const repair_set *set, disk_options *options, GError **error)
{
    g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
    return config_find_record(options, set->dir, notes, error);
}

/* How a mount would treat it does not matter here. */
static void set_neutral(disk_options *options, bool changes)
{
    options->read_only = !changes;
    options->offline = true;
    options->min_replicas = 0;
    options->degraded_warn = false;
    options->force = false;
    options->on_divergence_repair = false;
    options->read_pattern = DISK_PATTERN_QUORUM;
    options->blkverify = false;
}

static disk *open_disk(const disk_options *options, journal *records, GError **error)
{
    GError *refused = NULL;
    disk *d = disk_open(options, records, &refused);
    if (d)
        return d;
    if (g_error_matches(refused, IMAGE_ERROR, IMAGE_ERROR_LOCKED)) {
        g_autofree char *cause = g_strdup(refused->message);
        bool hinted = g_str_has_suffix(cause, ")");
        if (hinted)
            cause[strlen(cause) - 1] = '\0';
        g_set_error(error, refused->domain, refused->code, "%s%s%s)", cause,
                    hinted ? "; " : " (", HINT);
    } else {
        g_propagate_error(error, g_steal_pointer(&refused));
    }
    g_clear_error(&refused);
    return NULL;
}

/* ---- Looking ------------------------------------------------------------------------- */

static const char *record_name(const disk_options *options)
{
    return options->state_name ? options->state_name : options->name;
}

/* Copies the record, if there is one, to `dir`, and has it used there. */
static bool copy_record(disk_options *options, const char *dir, GError **error)
{
    g_autofree char *from = state_path(options->state_dir, record_name(options));
    g_autofree char *to = state_path(dir, record_name(options));
    g_free(options->state_dir);
    options->state_dir = g_strdup(dir);
    size_t length;
    g_autofree char *bytes = cli_read_file(from, RECORD_MAX, &length);
    if (bytes)
        return g_file_set_contents_full(to, bytes, (gssize)length,
                                        G_FILE_SET_CONTENTS_NONE, 0600, error);
    if (errno == ENOENT)
        return true;
    g_set_error(error, CONFIG_ERROR, CONFIG_ERROR_FILE, "%s: %s", from,
                g_strerror(errno));
    return false;
}

static void remove_dir(const char *dir)
{
    GDir *names = g_dir_open(dir, 0, NULL);
    const char *name;
    while (names && (name = g_dir_read_name(names))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);
        unlink(path);
    }
    if (names)
        g_dir_close(names);
    rmdir(dir);
}

disk *repair_set_look(repair_set *set, disk_options *options, GError **error)
{
    g_autofree char *dir = g_dir_make_tmp("quorumfs-XXXXXX", error);
    if (!dir)
        return NULL;
    disk *d = NULL;
    if (find_record(set, options, error) && copy_record(options, dir, error)) {
        set_neutral(options, false);
        d = open_disk(options, NULL, error);
    }
    remove_dir(dir); /* what is open of it stays readable */
    return d;
}

/* ---- Changing ------------------------------------------------------------------------ */

static bool check_writable(disk *d, GError **error)
{
    if (disk_writable(d))
        return true;
    const char *why = disk_read_only_reason(d);
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED, "cannot be written to: %s",
                why ? why : "it is read-only");
    return false;
}

disk *repair_set_begin(repair_set *set, disk_options *options, journal **ret_journal,
                       GError **error)
{
    disk *d = NULL;
    *ret_journal = NULL;
    if (!repair_set_make_dir(set, error))
        return NULL;
    *ret_journal = state_dir_open_journal(set->dir, options->name, error);
    if (*ret_journal && find_record(set, options, error)) {
        set_neutral(options, true);
        d = open_disk(options, *ret_journal, error);
    }
    if (d && check_writable(d, error))
        return d;
    disk_close(d);
    journal_close(g_steal_pointer(ret_journal));
    return NULL;
}

int repair_set_end(disk *d, journal *records)
{
    int r = disk_close(d);
    journal_close(records);
    return r;
}

/* ---- Saved blocks -------------------------------------------------------------------- */

void repair_set_about(disk *d, undo_disk *ret_about)
{
    *ret_about = (undo_disk){.size = disk_size(d), .n = disk_replica_count(d)};
    for (unsigned i = 0; i < ret_about->n; i++) {
        replica_status status;
        disk_replica_status(d, i, &status);
        ret_about->names[i] = status.name;
        ret_about->sources[i] = disk_replica_file(d, i);
    }
}

char *repair_set_undo_path(const repair_set *set, const char *id, const char *name)
{
    g_autofree char *file = name ? g_strconcat(name, UNDO_SUFFIX, NULL) : NULL;
    return g_build_filename(set->dir, "undo", id, file, NULL);
}

/* The time, and something that two repairs in one second do not share. */
static char *make_id(void)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    g_autofree char *time = g_date_time_format(now, "%Y%m%dT%H%M%S");
    return g_strdup_printf("%s-%04x", time, g_random_int() & 0xffff);
}

static void set_undo_error(GError **error, const char *path, int failed)
{
    g_set_error(error, UNDO_ERROR, UNDO_ERROR_IO, "%s: %s", path, g_strerror(failed));
}

bool repair_set_make_undo(repair_set *set, char **id, GError **error)
{
    if (*id)
        return true;
    if (!repair_set_make_dir(set, error))
        return false;
    g_autofree char *fresh = make_id();
    g_autofree char *all = repair_set_undo_path(set, NULL, NULL);
    g_autofree char *dir = repair_set_undo_path(set, fresh, NULL);
    if ((mkdir(all, 0700) < 0 && errno != EEXIST) || mkdir(dir, 0700) < 0) {
        set_undo_error(error, dir, errno);
        return false;
    }
    *id = g_steal_pointer(&fresh);
    return true;
}

static bool sync_dir(const char *dir, GError **error)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = fd >= 0 && fsync(fd) == 0;
    if (!good)
        set_undo_error(error, dir, errno);
    if (fd >= 0)
        close(fd);
    return good;
}

bool repair_set_sync_undo(const repair_set *set, const char *id, GError **error)
{
    g_autofree char *all = repair_set_undo_path(set, NULL, NULL);
    g_autofree char *dir = repair_set_undo_path(set, id, NULL);
    return sync_dir(dir, error) && sync_dir(all, error) && sync_dir(set->dir, error);
}

void repair_set_remove_undo(const repair_set *set, char **id, const char *name)
{
    if (!*id)
        return;
    g_autofree char *dir = repair_set_undo_path(set, *id, NULL);
    g_autofree char *path = repair_set_undo_path(set, *id, name);
    unlink(path);
    if (rmdir(dir) == 0)
        g_clear_pointer(id, g_free);
}
