/*
 * verdict.c: see verdict.h. The file appears as a whole or not at all; but on a file system that
 * is full by then it is written over the blanks that verdict_reserve left.
 */
#include "fuse/verdict.h"
#include "formats/file.h"
#include "fuse/cli.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERDICT_NAME      "last-end.json"
#define VERDICT_BYTES_MAX (16u << 20)

struct verdict {
    json_t *disks;
    int error;
    bool hangs;
};

verdict *verdict_new(void)
{
    verdict *v = g_new0(verdict, 1);
    v->disks = json_array();
    return v;
}

void verdict_free(verdict *v)
{
    json_decref(v->disks);
    g_free(v);
}

static json_t *replica_row(verdict *v, disk *d, unsigned i)
{
    replica_status status;
    disk_replica_status(d, i, &status);
    const char *state = replica_state_name(status.state);
    v->hangs |= strcmp(state, "hung") == 0;
    g_autofree char *name = g_utf8_make_valid(status.name, -1);
    json_t *row = json_object();
    json_object_set_new(row, "name", json_string(name));
    json_object_set_new(row, "state", json_string(state));
    json_object_set_new(row, "stale-bytes",
                        json_integer((json_int_t)MIN(status.stale_bytes, INT64_MAX)));
    return row;
}

static void set_error(verdict *v, json_t *row, int result)
{
    if (v->error == 0)
        v->error = result;
    json_object_set_new(row, "error",
                        result < 0 ? json_string(g_strerror(-result)) : json_null());
}

void verdict_add_disk(verdict *v, disk *d, int flushed)
{
    g_autofree char *name = g_utf8_make_valid(disk_name(d), -1);
    json_t *row = json_object(), *replicas = json_array();
    json_object_set_new(row, "name", json_string(name));
    for (unsigned i = 0; i < disk_replica_count(d); i++)
        json_array_append_new(replicas, replica_row(v, d, i));
    json_object_set_new(row, "replicas", replicas);
    set_error(v, row, flushed);
    json_array_append_new(v->disks, row);
}

void verdict_set_closed(verdict *v, int closed)
{
    json_t *last = json_array_get(v->disks, json_array_size(v->disks) - 1);
    if (closed < 0)
        set_error(v, last, closed);
}

int verdict_error(const verdict *v)
{
    return v->error;
}

bool verdict_hangs(const verdict *v)
{
    return v->hangs;
}

static char *file_name(const char *state_dir)
{
    return g_build_filename(state_dir, VERDICT_NAME, NULL);
}

static bool write_over(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    off_t reserved = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    size_t length = strlen(text);
    bool written = (off_t)length <= reserved &&
                   file_write_full(fd, text, length, 0) == 0 &&
                   ftruncate(fd, (off_t)length) == 0;
    if (fd >= 0)
        close(fd);
    return written;
}

void verdict_write(const verdict *v, const char *state_dir, bool stuck)
{
    json_t *root = json_object();
    json_object_set_new(root, "pid", json_integer(getpid()));
    json_object_set_new(root, "stuck", json_boolean(stuck));
    json_object_set(root, "disks", v->disks);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    g_autofree char *path = file_name(state_dir);
    if (!g_file_set_contents_full(path, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0600,
                                  NULL))
        write_over(path, text);
    free(text);
}

void verdict_reserve(const char *state_dir, unsigned n_replicas)
{
    enum { BASE = 1024, EACH = 512 };
    g_autofree char *path = file_name(state_dir);
    size_t length = BASE + (size_t)EACH * n_replicas;
    g_autofree char *blanks = g_malloc(length);
    memset(blanks, ' ', length);
    unlink(path);
    g_file_set_contents_full(path, blanks, (gssize)length, G_FILE_SET_CONTENTS_NONE, 0600,
                             NULL);
}

json_t *verdict_read(const char *state_dir, json_int_t pid)
{
    size_t length = 0;
    g_autofree char *path = file_name(state_dir);
    g_autofree char *text = cli_read_file(path, VERDICT_BYTES_MAX, &length);
    json_error_t why;
    json_t *root = text ? json_loadb(text, length, JSON_REJECT_DUPLICATES, &why) : NULL;
    json_t *whose = json_object_get(root, "pid");
    if (json_is_integer(whose) && json_integer_value(whose) == pid)
        return root;
    json_decref(root);
    return NULL;
}
