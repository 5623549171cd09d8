/*
 * state-open.c: opening, making and resetting a state file, and giving it another shape.
 *
 * A new file is made whole under the name DISK.state.new, synced, and then renamed: under
 * DISK.state there never is half a file, so one without a valid slot was damaged. Both
 * names are locked while in use. Whoever gets the lock of a file that no longer has the
 * name looks again.
 *
 * What is read may be in the page cache only, put there by a daemon that was killed before
 * its sync: the file is synced before anything in it counts.
 */
#include "quorum/state-internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

/* How long an earlier owner of the file, on its way out, is waited for. */
#define LOCK_TRIES    20
#define LOCK_PAUSE_US 20000

GQuark state_error_quark(void)
{
    return g_quark_from_static_string("quorumfs-state-error");
}

static void set_error(GError **error, state_error code, const char *path,
                      const char *text)
{
    g_set_error(error, STATE_ERROR, code, "%s: %s", path, text);
}

static void set_io_error(GError **error, const char *path, int failed)
{
    g_set_error(error, STATE_ERROR, STATE_ERROR_IO, "%s: %s", path, g_strerror(-failed));
}

char *state_path(const char *dir, const char *disk)
{
    return g_strdup_printf("%s/%s.state", dir, disk);
}

/* ---- The file ------------------------------------------------------------------------ */

static int lock_file(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    for (int i = 0; fcntl(fd, F_OFD_SETLK, &lock) < 0; i++) {
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EACCES)
            return -errno;
        if (i >= LOCK_TRIES)
            return -EAGAIN;
        g_usleep(LOCK_PAUSE_US);
    }
    return 0;
}

static int check_file(int fd, const char *path)
{
    struct stat st, named;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
        return -EPERM;
    int failed = lock_file(fd);
    if (failed)
        return failed;
    if (lstat(path, &named) < 0 || named.st_dev != st.st_dev || named.st_ino != st.st_ino)
        return -ESTALE;
    return 0;
}

/* The descriptor of a locked file that has this name, or -errno. */
static int open_locked(const char *path, int flags)
{
    flags |= O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    for (;;) {
        int fd = open(path, flags, 0600);
        if (fd < 0)
            return -errno;
        int failed = check_file(fd, path);
        if (!failed)
            return fd;
        close(fd);
        if (failed != -ESTALE)
            return failed;
    }
}

static void set_open_error(GError **error, const char *path, int failed)
{
    if (failed == -EAGAIN)
        set_error(error, STATE_ERROR_LOCKED, path, "in use by another quorumfs");
    else if (failed == -EPERM)
        set_error(error, STATE_ERROR_IO, path, "is not a regular file of this user's");
    else
        set_io_error(error, path, failed);
}

static int sync_directory(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int failed = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return failed;
}

/* ---- The object ---------------------------------------------------------------------- */

void state_init_bitmaps(state *s)
{
    for (unsigned k = 0; k <= s->facts.n; k++)
        state_bitmap_init(&s->bitmaps[k], k, &s->facts);
    s->regions =
        g_new0(atomic_uint_fast64_t, (size_t)s->bitmaps[0].sectors * STATE_SECTOR_BITS);
}

state *state_new(int fd, char *path)
{
    state *s = g_new0(state, 1);
    s->fd = fd;
    s->path = path;
    s->queue = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_mutex_init(&s->lock);
    g_cond_init(&s->changed);
    return s;
}

void state_free(state *s)
{
    for (unsigned k = 0; k < STATE_BITMAPS_MAX; k++)
        state_bitmap_clear(&s->bitmaps[k]);
    g_free(s->regions);
    g_array_unref(s->queue);
    g_mutex_clear(&s->lock);
    g_cond_clear(&s->changed);
    if (s->fd >= 0)
        close(s->fd);
    g_free(s->path);
    g_free(s);
}

int state_close(state *s)
{
    if (!s)
        return 0;
    int result = file_sync(s->fd);
    state_free(s);
    return result;
}

/* ---- Making one ---------------------------------------------------------------------- */

static state *make(const char *dir, const char *disk, const state_shape *shape,
                   GError **error)
{
    g_autofree char *path = state_path(dir, disk);
    g_autofree char *fresh = g_strconcat(path, ".new", NULL);
    int fd = open_locked(fresh, O_CREAT);
    if (fd < 0) {
        set_open_error(error, fresh, fd);
        return NULL;
    }
    state *s = state_new(fd, g_steal_pointer(&path));
    s->is_new = true;
    s->facts.clean = true;
    s->facts.area = STATE_AREA_MIN;
    const char *why = state_set_shape(&s->facts, shape);
    if (why) {
        set_error(error, STATE_ERROR_SHAPE, s->path, why);
        goto fail;
    }
    int failed = getentropy(s->facts.set_id, sizeof s->facts.set_id) < 0 ? -errno : 0;
    for (unsigned i = 0; i < s->facts.n; i++)
        s->facts.replicas[i].record.number = state_random_number();
    state_init_bitmaps(s);
    failed = failed ? failed : file_resize(fd, 0);
    failed = failed ? failed : state_write_all(s);
    /* Who made a file meanwhile had the lock of this one before. */
    if (!failed && access(s->path, F_OK) == 0)
        failed = -EAGAIN;
    if (!failed && rename(fresh, s->path) < 0)
        failed = -errno;
    failed = failed ? failed : sync_directory(dir);
    if (!failed)
        return s;
    set_open_error(error, s->path, failed);
fail:
    unlink(fresh);
    state_free(s);
    return NULL;
}

/* ---- Reading one --------------------------------------------------------------------- */

static int load_slots(state *s, state_error *ret_code)
{
    g_autofree uint8_t *slot = g_malloc(STATE_SLOT_MAX);
    g_autofree state_facts *facts = g_new(state_facts, 1);
    bool found = false;
    *ret_code = STATE_ERROR_IO;
    for (unsigned k = 0; k < 2; k++) {
        int failed = file_read_full(s->fd, slot, STATE_SLOT_MAX, k * STATE_SLOT_MAX);
        if (failed)
            return failed;
        switch (state_decode_slot(slot, facts)) {
        case STATE_SLOT_NEWER:
            *ret_code = STATE_ERROR_NEWER;
            return -EPROTO;
        case STATE_SLOT_VALID:
            if (!found || facts->sequence > s->facts.sequence) {
                s->facts = *facts;
                s->durable_slot = k;
            }
            found = true;
            break;
        case STATE_SLOT_INVALID:
            break;
        }
    }
    *ret_code = STATE_ERROR_VOID_BROKEN;
    return found ? 0 : -EPROTO;
}

static void load_sector(state *s, state_bitmap *bitmap, uint32_t sector,
                        const uint8_t *bytes)
{
    bool sealed = state_sector_is_sealed(&s->facts, bitmap->index, sector, bytes);
    bool differs = !s->facts.clean || s->facts.reconcile;
    uint32_t first = sector * STATE_SECTOR_BITS;
    for (uint32_t k = 0; k < STATE_SECTOR_BITS && first + k < bitmap->bits; k++) {
        if (sealed && !(bytes[k / 8] >> k % 8 & 1))
            continue;
        uint32_t bit = first + k;
        atomic_fetch_or(&bitmap->wanted[bit / 64], UINT64_C(1) << bit % 64);
        bitmap->stable[bit / 64] |= UINT64_C(1) << bit % 64;
        if (bitmap->index == 0)
            atomic_store(&s->regions[bit],
                         STATE_STABLE | (differs ? STATE_UNRECONCILED : 0));
    }
    if (!sealed)
        state_queue_sector(s, bitmap, sector);
}

static int load_bitmap(state *s, state_bitmap *bitmap)
{
    g_autofree uint8_t *bytes = g_malloc((size_t)bitmap->sectors * STATE_SECTOR);
    int failed = file_read_full(s->fd, bytes, (size_t)bitmap->sectors * STATE_SECTOR,
                                state_sector_at(&s->facts, bitmap->index, 0));
    for (uint32_t sector = 0; sector < bitmap->sectors && !failed; sector++)
        load_sector(s, bitmap, sector, bytes + (size_t)sector * STATE_SECTOR);
    return failed;
}

static bool load(state *s, GError **error)
{
    state_error code;
    int failed = load_slots(s, &code);
    if (failed == -EPROTO) {
        set_error(error, code, s->path,
                  code == STATE_ERROR_NEWER
                      ? "was written by a newer quorumfs"
                      : "recorded state is void: it is damaged beyond use");
        return false;
    }
    for (unsigned i = 0; i < s->facts.n && !failed; i++)
        if (s->facts.replicas[i].record.number == 0) /* by an earlier quorumfs */
            s->facts.replicas[i].record.number = state_random_number();
    if (!failed)
        state_init_bitmaps(s);
    for (unsigned k = 0; k <= s->facts.n && !failed; k++)
        failed = load_bitmap(s, &s->bitmaps[k]);
    /* If the power failed while both were written, there may be an entry without its bit,
     * and then it was not promised yet, or no longer. */
    if (!failed && state_exact_filter(&s->facts, state_has_exact_bit, s))
        s->facts_dirty = true;
    failed = failed ? failed : file_sync(s->fd);
    if (failed)
        set_io_error(error, s->path, failed);
    return !failed;
}

/* ---- Opening -------------------------------------------------------------------------- */

static void set_no_resize(GError **error, const char *path)
{
    set_error(error, STATE_ERROR_SIZE, path, "no resize between these sizes is recorded");
}

static state *load_file(int fd, const char *path, const state_shape *shape,
                        GError **error)
{
    state *s = state_new(fd, g_strdup(path));
    if (!load(s, error))
        goto fail;
    const char *why = NULL;
    int failed = state_adopt(s, shape, &why);
    if (failed == -EINVAL)
        set_error(error, STATE_ERROR_SHAPE, path, why);
    else if (failed == -ENOENT)
        set_error(error, STATE_ERROR_VOID_OTHER, path,
                  "recorded state is void: it is that of other replicas");
    else if (failed == -ERANGE)
        set_no_resize(error, path);
    if (failed)
        goto fail;
    s->was_clean = s->facts.clean;
    s->is_new = s->facts.generation == 0;
    state_recount(s);
    return s;
fail:
    state_free(s);
    return NULL;
}

static bool check_name(const char *disk, GError **error)
{
    if (*disk != '\0' && !strchr(disk, '/'))
        return true;
    set_error(error, STATE_ERROR_SHAPE, disk, "is no name for a disk's state");
    return false;
}

state *state_open(const char *dir, const char *disk, const state_shape *shape,
                  GError **error)
{
    g_autofree char *path = state_path(dir, disk);
    if (!check_name(disk, error))
        return NULL;
    int fd = open_locked(path, 0);
    if (fd == -ENOENT && shape->resize_from != shape->resize_to) {
        set_no_resize(error, path);
        return NULL;
    }
    if (fd == -ENOENT)
        return make(dir, disk, shape, error);
    if (fd >= 0)
        return load_file(fd, path, shape, error);
    set_open_error(error, path, fd);
    return NULL;
}

state *state_reset(const char *dir, const char *disk, const state_shape *shape,
                   GError **error)
{
    g_autofree char *path = state_path(dir, disk);
    g_autofree char *aside = g_strconcat(path, ".void", NULL);
    if (!check_name(disk, error))
        return NULL;
    int fd = open_locked(path, 0);
    int failed = fd < 0 && fd != -ENOENT ? fd : 0;
    if (fd >= 0 && rename(path, aside) < 0)
        failed = -errno;
    state *s = failed ? NULL : make(dir, disk, shape, error);
    if (failed)
        set_open_error(error, path, failed);
    if (fd >= 0)
        close(fd);
    return s;
}
