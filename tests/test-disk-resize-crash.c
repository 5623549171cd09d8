/*
 * test-disk-resize-crash.c: a process that ends in the middle of a resize, at each change of a
 * host file (the record, raw and qcow2 replicas) in turn. The next open finishes or undoes it.
 */
#include "formats/file.h"
#include "tests/disk-set.h"
#include <stdlib.h>
#include <sys/stat.h>

/* ---- Ending at a change of a file ------------------------------------------------------ */

static unsigned changes_left; /* 0: it does not end */

static void count_change(void)
{
    if (changes_left > 0 && --changes_left == 0)
        _exit(7);
}

int __real_file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
int __wrap_file_write_full(int fd, const void *buf, size_t length, uint64_t offset);
int __wrap_file_write_full(int fd, const void *buf, size_t length, uint64_t offset)
{
    count_change();
    return __real_file_write_full(fd, buf, length, offset);
}

int __real_file_sync(int fd);
int __wrap_file_sync(int fd);
int __wrap_file_sync(int fd)
{
    count_change();
    return __real_file_sync(fd);
}

int __real_file_resize(int fd, uint64_t size);
int __wrap_file_resize(int fd, uint64_t size);
int __wrap_file_resize(int fd, uint64_t size)
{
    count_change();
    return __real_file_resize(fd, size);
}

int __real_file_punch(int fd, uint64_t offset, uint64_t length);
int __wrap_file_punch(int fd, uint64_t offset, uint64_t length);
int __wrap_file_punch(int fd, uint64_t offset, uint64_t length)
{
    count_change();
    return __real_file_punch(fd, offset, length);
}

int __real_file_zero(int fd, uint64_t offset, uint64_t length);
int __wrap_file_zero(int fd, uint64_t offset, uint64_t length);
int __wrap_file_zero(int fd, uint64_t offset, uint64_t length)
{
    count_change();
    return __real_file_zero(fd, offset, length);
}

/* ---- Three replicas that hold a pattern ------------------------------------------------- */

static struct {
    char *dir, *paths[3], *state_dir;
    const char *format;
    uint8_t *pattern; /* of SIZE bytes */
} rig;

static disk *rig_open(bool read_only, GError **error)
{
    disk_options *options = disk_rig_options(rig.paths, 3, rig.format);
    options->state_dir = g_strdup(rig.state_dir);
    options->read_only = read_only;
    disk *d = disk_open(options, NULL, error);
    disk_options_free(options);
    return d;
}

static disk *rig_must_open(void)
{
    g_autoptr(GError) error = NULL;
    disk *d = rig_open(false, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "no error");
    return d;
}

/* Replicas that were written to and closed, kept to be copied. */
static void rig_make(void)
{
    g_mkdir_with_parents(rig.state_dir, 0700);
    support_run("qemu-img create -q -f %s %s %u && cp %s %s && cp %s %s", rig.format,
                rig.paths[0], SIZE, rig.paths[0], rig.paths[1], rig.paths[0],
                rig.paths[2]);
    disk *d = rig_must_open();
    for (unsigned at = 0; at < SIZE; at += MIB)
        cr_assert_eq(disk_write(d, at, MIB, rig.pattern + at), 0);
    cr_assert_eq(disk_close(d), 0);
    for (unsigned i = 0; i < 3; i++)
        support_run("cp --sparse=always %s %s.made", rig.paths[i], rig.paths[i]);
}

/* That, and no record. */
static void rig_fill(void)
{
    support_run("rm -rf %s && mkdir %s; for f in %s %s %s; do cp $f.made $f; done",
                rig.state_dir, rig.state_dir, rig.paths[0], rig.paths[1], rig.paths[2]);
}

/* In memory where there is such a directory: hundreds of files are made and synced there. */
static void rig_init(const char *format)
{
    char shm[] = "/dev/shm/quorumfs-test-XXXXXX";
    rig.dir = mkdtemp(shm) ? g_strdup(shm) : support_path("rig");
    rig.format = format;
    rig.pattern = g_malloc(SIZE);
    rig.state_dir = g_strdup_printf("%s/state", rig.dir);
    support_pattern(rig.pattern, SIZE, 0, 1);
    for (unsigned i = 0; i < 3; i++)
        rig.paths[i] = g_strdup_printf("%s/%u.%s", rig.dir, i, format);
    rig_make();
}

static void rig_clear(void)
{
    for (unsigned i = 0; i < 3; i++)
        g_free(rig.paths[i]);
    support_run("rm -rf %s", rig.dir);
    g_free(rig.dir);
    g_free(rig.state_dir);
    g_free(rig.pattern);
}

/* The pattern, then zeroes. */
static void check_content(disk *d)
{
    uint64_t size = disk_size(d);
    for (uint64_t at = 0; at < size; at += MIB) {
        const void *data;
        size_t length = MIN(MIB, size - at);
        cr_assert_eq(disk_read(d, at, length, &data), 0);
        if (at < SIZE)
            cr_assert_eq(memcmp(data, rig.pattern + at, length), 0);
        for (size_t k = 0; at >= SIZE && k < length; k++)
            cr_assert_eq(((const uint8_t *)data)[k], 0);
    }
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(chain_size(disk_chain(d, i)), size);
    cr_assert_str_eq(disk_state_name(d), "healthy");
}

/* Of raw replicas. */
static unsigned count_of_size(uint64_t size)
{
    unsigned n = 0;
    for (unsigned i = 0; i < 3; i++) {
        struct stat st;
        cr_assert_eq(stat(rig.paths[i], &st), 0);
        n += (uint64_t)st.st_size == size;
    }
    return n;
}

/* Ends at the n-th change. Returns whether it did. */
static bool resize_and_die(uint64_t size, unsigned n)
{
    pid_t child = fork();
    if (child == 0) {
        disk *d = rig_must_open();
        disk_worker_stop(d);
        changes_left = n;
        _exit(disk_resize(d, size) == 0 ? 3 : 4);
    }
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status));
    cr_assert(WEXITSTATUS(status) == 7 || WEXITSTATUS(status) == 3);
    return WEXITSTATUS(status) == 7;
}

static void check_every_point(uint64_t size)
{
    unsigned n = 1, old = 0, new = 0;
    for (bool died = true; died; n++) {
        rig_fill();
        died = resize_and_die(size, n);
        bool untouched = count_of_size(SIZE) == 3;
        disk *d = rig_must_open();
        check_content(d);
        cr_assert(!untouched || disk_size(d) == SIZE);
        cr_assert(disk_size(d) == size || (died && disk_size(d) == SIZE));
        old += disk_size(d) == SIZE;
        new += disk_size(d) == size;
        cr_assert_eq(disk_close(d), 0);
        if (strcmp(rig.format, "qcow2") == 0) /* a crash may leave leaks, and no more */
            support_run("qemu-img check -q %s >/dev/null 2>&1 || [ $? = 3 ]",
                        rig.paths[n % 3]);
        d = rig_must_open(); /* and nothing is left of it */
        uint64_t from, to;
        cr_assert(!state_get_resize(d->store, &from, &to));
        cr_assert_eq(disk_close(d), 0);
    }
    cr_assert_gt(old, 3);
    cr_assert_gt(new, 3);
}

Test(disk_resize_crash, W2_raw_replicas_grow_or_do_not)
{
    rig_init("raw");
    check_every_point(SIZE + 2 * MIB);
    rig_clear();
}

Test(disk_resize_crash, W2_raw_replicas_shrink_or_do_not)
{
    rig_init("raw");
    check_every_point(MIB + 512);
    rig_clear();
}

Test(disk_resize_crash, W2_qcow2_replicas_grow_or_do_not)
{
    rig_init("qcow2");
    check_every_point(SIZE + 2 * MIB);
    rig_clear();
}

Test(disk_resize_crash, W2_qcow2_replicas_shrink_or_do_not)
{
    rig_init("qcow2");
    check_every_point(MIB + 512);
    rig_clear();
}

/* ---- What cannot be finished ----------------------------------------------------------- */

/* Ends with one replica resized: raw replicas, the second one's file_resize. */
static void cut_off(uint64_t size)
{
    unsigned n = 0;
    do {
        rig_fill();
        cr_assert(resize_and_die(size, ++n));
    } while (count_of_size(size) == 0);
    cr_assert_eq(count_of_size(SIZE), 2);
}

static void expect_refused(bool read_only)
{
    g_autoptr(GError) error = NULL;
    cr_assert_null(rig_open(read_only, &error));
    cr_assert(g_error_matches(error, DISK_ERROR, DISK_ERROR_SIZES));
}

Test(disk_resize_crash, W3_what_cannot_be_finished_is_undone)
{
    rig_init("raw");
    cut_off(SIZE + MIB);
    for (unsigned k = 0; k < 2; k++) /* of b and c: a has the new size */
        fault_add((fault){.kind = FAULT_RESIZE, .error = ENOSPC, .after = 0, .times = 1});
    disk *d = rig_must_open();
    fault_clear();
    cr_assert_eq(disk_size(d), SIZE);
    check_content(d);
    cr_assert_eq(disk_close(d), 0);
    rig_clear();
}

Test(disk_resize_crash, O5_a_reader_does_not_finish_it_and_is_refused)
{
    rig_init("raw");
    cut_off(MIB);
    expect_refused(true);
    disk *d = rig_must_open();
    cr_assert_eq(disk_size(d), MIB);
    cr_assert_eq(disk_close(d), 0);
    rig_clear();
}

/* Other files, every one of them: what is recorded says nothing of them. */
Test(disk_resize_crash, O5_a_record_of_other_files_does_not_explain_sizes)
{
    rig_init("raw");
    cut_off(SIZE + MIB);
    for (unsigned i = 0; i < 3; i++)
        support_run("cp %s %s.other && mv %s.other %s", rig.paths[i], rig.paths[i],
                    rig.paths[i], rig.paths[i]);
    g_autoptr(GError) error = NULL;
    cr_assert_null(rig_open(false, &error));
    cr_assert_eq(count_of_size(SIZE), 2);
    g_autofree char *aside = g_strdup_printf("%s/disk.state.void", rig.state_dir);
    cr_assert_neq(access(aside, F_OK), 0);
    rig_clear();
}

Test(disk_resize_crash, W2_a_resize_is_on_record_until_it_is_flushed)
{
    uint64_t from, to;
    rig_init("raw");
    disk *d = rig_must_open();
    disk_worker_stop(d);
    fault_add((fault){.kind = FAULT_FLUSH, .error = ENOSPC, .times = 3});
    cr_assert_eq(disk_resize(d, SIZE + MIB), -ENOSPC);
    cr_assert_eq(disk_size(d), SIZE + MIB);
    cr_assert(state_get_resize(d->store, &from, &to));
    cr_assert_eq(from, SIZE);
    cr_assert_eq(to, SIZE + MIB);
    cr_assert_eq(disk_close(d), 0);
    d = rig_must_open();
    cr_assert_eq(disk_size(d), SIZE + MIB);
    cr_assert(!state_get_resize(d->store, &from, &to));
    cr_assert_eq(disk_close(d), 0);
    rig_clear();
}

/* Sizes that no resize explains are refused, and the record stays as it is. */
Test(disk_resize_crash, O5_other_sizes_are_refused_all_the_same)
{
    rig_init("raw");
    g_autofree char *path = state_path(rig.state_dir, "disk");
    size_t before, after;
    g_autofree uint8_t *bytes = support_load(path, &before);
    support_run("truncate -s %u %s", SIZE + 512, rig.paths[1]);
    expect_refused(false);
    g_autofree uint8_t *again = support_load(path, &after);
    cr_assert_eq(before, after);
    cr_assert_eq(memcmp(bytes, again, before), 0);
    support_run("rm %s", path);
    expect_refused(false);
    cr_assert_neq(access(path, F_OK), 0);
    cut_off(SIZE + MIB);
    support_run("truncate -s %u %s", SIZE + 512, rig.paths[1]); /* three sizes */
    expect_refused(false);
    support_run("truncate -s %u %s %s", SIZE + 512, rig.paths[1], rig.paths[2]);
    expect_refused(false); /* two, but others */
    rig_clear();
}
