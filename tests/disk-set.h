/*
 * disk-set.h: a disk on raw replicas that remembers (state.h), and is opened again.
 */
#ifndef TESTS_DISK_SET_H
#define TESTS_DISK_SET_H

#include "quorum/disk-internal.h"
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB    (1u << 20)
#define SECTOR 512u
#define SIZE   (4u * MIB)

typedef struct set {
    disk_rig *rig; /* its disk is closed; files, model and journal are used */
    disk *disk;
    unsigned threshold;
    bool read_only;
    disk_pattern pattern;
} set;

static inline disk *open_disk(set *s, GError **error)
{
    disk_options *options = disk_rig_options(s->rig->paths, s->rig->n, "raw");
    options->threshold = s->threshold;
    options->read_only = s->read_only;
    options->read_pattern = s->pattern;
    options->state_dir = support_path("state");
    g_mkdir_with_parents(options->state_dir, 0700);
    disk *d = disk_open(options, s->rig->journal, error);
    if (d)
        disk_rejoin_stop(d); /* nobody who failed comes back here */
    disk_options_free(options);
    return d;
}

static inline void must_open(set *s)
{
    GError *error = NULL;
    s->disk = open_disk(s, &error);
    cr_assert_not_null(s->disk, "%s", error ? error->message : "no error");
    s->rig->disk = s->disk;
}

static inline void set_init_size(set *s, unsigned n, unsigned threshold, uint64_t size)
{
    *s = (set){.rig = disk_rig_new(n, threshold, size), .threshold = threshold};
    disk_close(g_steal_pointer(&s->rig->disk));
    must_open(s);
}

static inline void set_init(set *s, unsigned n, unsigned threshold)
{
    set_init_size(s, n, threshold, SIZE);
}

static inline void set_close(set *s)
{
    cr_assert_eq(disk_close(g_steal_pointer(&s->disk)), 0);
    s->rig->disk = NULL;
    fault_clear();
}

static inline void set_clear(set *s)
{
    disk_close(s->disk);
    s->rig->disk = NULL;
    disk_rig_free(s->rig);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(set, set_clear)

static inline void write_model(set *s, uint64_t offset, size_t length, uint8_t byte)
{
    g_autofree uint8_t *data = g_malloc(length);
    memset(data, byte, length);
    cr_assert_eq(disk_write(s->disk, offset, length, data), 0);
    memcpy(s->rig->model + offset, data, length);
}

static inline replica_status status_of(set *s, unsigned i)
{
    replica_status status;
    disk_replica_status(s->disk, i, &status);
    return status;
}

/* The worker needs no help, just time: the test fails if it does not get there at all. */
static inline void await_in_sync(set *s)
{
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    while (strcmp(disk_state_name(s->disk), "healthy") != 0) {
        cr_assert_lt(g_get_monotonic_time(), deadline);
        g_usleep(1000);
    }
}

/* A process that opens the disk, writes, and ends without closing anything. */
static inline void crash_after_write(set *s, uint64_t offset, size_t length)
{
    set_close(s);
    pid_t child = fork();
    if (child == 0) {
        g_autofree uint8_t *data = g_malloc0(length);
        disk *d = open_disk(s, NULL);
        _exit(!d || disk_write(d, offset, length, data) != 0);
    }
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    memset(s->rig->model + offset, 0, length);
}

static inline void await_child(pid_t child)
{
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* One replica misses the write of a sector. */
static inline void miss(set *s, unsigned i, uint64_t offset)
{
    disk_rig_fail(s->rig, i, FAULT_WRITE, EIO, 0);
    write_model(s, offset, SECTOR, (uint8_t)(offset / SECTOR));
}

#endif
