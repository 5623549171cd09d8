#include "fuse/status.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (1u << 20)

/* A daemon's context with one disk of three raw replicas, without journals. */
typedef struct fixture {
    daemon_context context;
    mount_config config;
    disk_options *options;
} fixture;

static void add_replica(disk_options *options, const char *name)
{
    static uint8_t content[SIZE];
    support_pattern(content, SIZE, 0, 1);
    replica_options *replica = replica_options_new();
    replica->name = g_strdup(name);
    replica->path = support_path("%s.raw", name);
    replica->source = g_strdup(replica->path);
    replica->format = g_strdup("raw");
    support_save(replica->path, content, SIZE);
    g_ptr_array_add(options->replicas, replica);
}

static replica_options *replica_at(fixture *f, unsigned index)
{
    return f->options->replicas->pdata[index];
}

static void prepare(fixture *f)
{
    *f = (fixture){.options = disk_options_new()};
    f->options->name = g_strdup("vm1");
    f->options->file = g_strdup("disk.img");
    add_replica(f->options, "a");
    add_replica(f->options, "b");
    add_replica(f->options, "c");
}

static void open_disk(fixture *f)
{
    GError *error = NULL;
    disk *d = disk_open(f->options, NULL, &error);
    cr_assert(d != NULL, "%s", error ? error->message : "no error");
    f->config.mountpoint = (char *)"/mnt/quorum";
    f->context.config = &f->config;
    f->context.disks = g_ptr_array_new();
    f->context.journals = g_ptr_array_new();
    f->context.state_dir = (char *)"/state";
    f->context.socket_path = (char *)"/state/qmp.sock";
    f->context.started_us = g_get_monotonic_time() - 5 * G_USEC_PER_SEC;
    g_ptr_array_add(f->context.disks, d);
    g_ptr_array_add(f->context.journals, NULL);
}

static void close_disk(fixture *f)
{
    disk_close(f->context.disks->pdata[0]);
    g_ptr_array_unref(f->context.disks);
    g_ptr_array_unref(f->context.journals);
    disk_options_free(f->options);
}

static int read_at(fixture *f, uint64_t offset, size_t length)
{
    const void *data;
    return disk_read(f->context.disks->pdata[0], offset, length, &data);
}

static void rot(fixture *f, unsigned replica, uint64_t offset)
{
    support_poke(replica_at(f, replica)->path, offset, "rot", 3);
}

static json_t *status(fixture *f)
{
    g_autofree char *text = status_json(&f->context);
    cr_assert(g_str_has_suffix(text, "}\n"));
    json_error_t error;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    cr_assert(root != NULL, "%s", error.text);
    return root;
}

static json_t *row(json_t *root, const char *member, unsigned index)
{
    json_t *found = json_array_get(json_object_get(root, member), index);
    cr_assert_not_null(found);
    return found;
}

static void assert_text(json_t *object, const char *key, const char *expected)
{
    const char *got = json_string_value(json_object_get(object, key));
    cr_assert_not_null(got);
    cr_assert_str_eq(got, expected);
}

static void assert_integer(json_t *object, const char *key, json_int_t expected)
{
    json_t *value = json_object_get(object, key);
    cr_assert(json_is_integer(value), "%s", key);
    cr_assert_eq(json_integer_value(value), expected, "%s", key);
}

Test(status, json_has_the_shape_of_the_surface)
{
    fixture f;
    prepare(&f);
    open_disk(&f);
    json_t *root = status(&f);
    assert_text(root, "version", QUORUMFS_VERSION);
    assert_text(root, "mountpoint", "/mnt/quorum");
    assert_text(root, "socket", "/state/qmp.sock");
    assert_text(root, "state-dir", "/state");
    assert_integer(root, "pid", getpid());
    cr_assert(json_integer_value(json_object_get(root, "uptime")) >= 5);
    cr_assert_eq(json_array_size(json_object_get(root, "disks")), 1u);
    json_t *disk_row = row(root, "disks", 0);
    assert_text(disk_row, "name", "vm1");
    assert_text(disk_row, "file", "disk.img");
    assert_text(disk_row, "state", "healthy");
    assert_integer(disk_row, "size", SIZE);
    assert_integer(disk_row, "threshold", 2);
    assert_text(disk_row, "read-pattern", "quorum");
    cr_assert(json_is_false(json_object_get(disk_row, "blkverify")));
    assert_integer(disk_row, "journal-lost-records", 0);
    assert_integer(disk_row, "unreconciled-bytes", 0);
    cr_assert(json_is_false(json_object_get(disk_row, "read-only")));
    cr_assert(json_is_null(json_object_get(disk_row, "read-only-reason")));
    assert_integer(disk_row, "quorum-failures", 0);
    cr_assert_eq(json_array_size(json_object_get(disk_row, "jobs")), 0u);
    cr_assert_eq(json_array_size(json_object_get(disk_row, "replicas")), 3u);
    json_t *replica = row(disk_row, "replicas", 1);
    assert_text(replica, "name", "b");
    assert_text(replica, "source", replica_at(&f, 1)->source);
    assert_text(replica, "format", "raw");
    assert_text(replica, "decoder", "raw");
    assert_text(replica, "state", "in-sync");
    const char *const counts[] = {"stale-bytes", "read-errors", "write-errors",
                                  "divergent-bytes"};
    for (unsigned i = 0; i < G_N_ELEMENTS(counts); i++)
        assert_integer(replica, counts[i], 0);
    cr_assert(json_is_integer(json_object_get(replica, "latency-us")));
    json_decref(root);
    close_disk(&f);
}

/* A session that ends without a close; then a reader, who leaves things as they are. */
static void crash_after_write(fixture *f)
{
    f->options->state_dir = support_path("state");
    g_mkdir_with_parents(f->options->state_dir, 0700);
    pid_t child = fork();
    if (child == 0) {
        disk *d = disk_open(f->options, NULL, NULL);
        _exit(!d || disk_write(d, 0, 5, "bytes") != 0);
    }
    int ended = 0;
    cr_assert_eq(waitpid(child, &ended, 0), child);
    cr_assert(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    f->options->read_only = true;
}

Test(status, W6_what_a_crash_left_is_told)
{
    fixture f;
    prepare(&f);
    crash_after_write(&f);
    open_disk(&f);
    json_t *root = status(&f);
    json_t *disk_row = row(root, "disks", 0);
    assert_integer(disk_row, "unreconciled-bytes", SIZE);
    cr_assert(json_is_true(json_object_get(disk_row, "read-only")));
    cr_assert(json_is_null(json_object_get(disk_row, "read-only-reason")));
    assert_text(disk_row, "state", "healthy");
    json_decref(root);
    g_autofree char *text = status_metrics(&f.context);
    cr_assert_not_null(
        strstr(text, "\nquorumfs_disk_unreconciled_bytes{disk=\"vm1\"} 1048576\n"));
    close_disk(&f);
}

/* An image of version 1 can only be read. */
Test(status, json_says_why_a_disk_is_read_only)
{
    fixture f;
    prepare(&f);
    g_free(replica_at(&f, 1)->path);
    replica_at(&f, 1)->path = support_path("b.qcow");
    g_free(replica_at(&f, 1)->format);
    replica_at(&f, 1)->format = g_strdup("qcow");
    support_run("qemu-img create -q -f qcow b.qcow %u", SIZE);
    open_disk(&f);
    json_t *root = status(&f);
    json_t *disk_row = row(root, "disks", 0);
    cr_assert(json_is_true(json_object_get(disk_row, "read-only")));
    const char *why = json_string_value(json_object_get(disk_row, "read-only-reason"));
    cr_assert_not_null(why);
    cr_assert(g_str_has_prefix(why, "replica 'b': "), "%s", why);
    json_decref(root);
    close_disk(&f);
}

Test(status, json_is_valid_whatever_bytes_a_path_has)
{
    fixture f;
    prepare(&f);
    g_free(replica_at(&f, 0)->source);
    replica_at(&f, 0)->source = g_strdup("/x\xff\"\\\n.raw");
    open_disk(&f);
    json_t *root = status(&f);
    json_t *replica = row(row(root, "disks", 0), "replicas", 0);
    assert_text(replica, "source", "/x\xef\xbf\xbd\"\\\n.raw");
    json_decref(root);
    close_disk(&f);
}

Test(status, R4_divergent_bytes_are_counted_for_the_loser)
{
    fixture f;
    prepare(&f);
    open_disk(&f);
    rot(&f, 2, 8192);
    cr_assert_eq(read_at(&f, 0, 65536), 0);
    json_t *root = status(&f);
    json_t *disk_row = row(root, "disks", 0);
    assert_integer(row(disk_row, "replicas", 0), "divergent-bytes", 0);
    assert_integer(row(disk_row, "replicas", 2), "divergent-bytes", 512);
    json_decref(root);
    close_disk(&f);
}

/* ---- Prometheus -------------------------------------------------------------------- */

static void assert_sample(fixture *f, const char *line)
{
    g_autofree char *text = status_metrics(&f->context);
    g_autofree char *whole = g_strdup_printf("\n%s\n", line);
    cr_assert(strstr(text, whole) != NULL, "no line '%s' in:\n%s", line, text);
}

Test(status, metrics_follow_the_text_format)
{
    fixture f;
    prepare(&f);
    open_disk(&f);
    g_autofree char *text = status_metrics(&f.context);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autofree char *name = g_strdup("");
    unsigned samples = 0;
    for (unsigned i = 0; lines[i] && *lines[i]; i++) {
        if (g_str_has_prefix(lines[i], "# HELP ")) {
            /* The next line is its TYPE; its samples follow without a gap. */
            g_auto(GStrv) words = g_strsplit(lines[i], " ", 4);
            g_autofree char *type = g_strdup_printf("# TYPE %s ", words[2]);
            cr_assert(g_str_has_prefix(lines[i + 1], type), "%s", lines[i]);
            g_free(name);
            name = g_strdup(words[2]);
            i++;
            continue;
        }
        samples++;
        cr_assert(g_str_has_prefix(lines[i], name), "%s", lines[i]);
        cr_assert(g_regex_match_simple("^quorumfs_[a-z_]+(\\{[a-z]+=\"[^\"]*\"(,[a-z]+=\""
                                       "[^\"]*\")*\\})? [0-9]+$",
                                       lines[i], 0, 0),
                  "%s", lines[i]);
    }
    cr_assert_gt(samples, 30u);
    close_disk(&f);
}

Test(status, metrics_count_reads_writes_and_divergences)
{
    fixture f;
    prepare(&f);
    open_disk(&f);
    uint8_t sector[512] = {1};
    cr_assert_eq(read_at(&f, 0, 4096), 0);
    cr_assert_eq(disk_write(f.context.disks->pdata[0], 512, 512, sector), 0);
    cr_assert_eq(disk_flush(f.context.disks->pdata[0]), 0);
    rot(&f, 1, 65536);
    cr_assert_eq(read_at(&f, 65536, 4096), 0);
    assert_sample(&f, "quorumfs_disk_reads_total{disk=\"vm1\"} 2");
    assert_sample(&f, "quorumfs_disk_read_bytes_total{disk=\"vm1\"} 8192");
    assert_sample(&f, "quorumfs_disk_writes_total{disk=\"vm1\"} 1");
    assert_sample(&f, "quorumfs_disk_write_bytes_total{disk=\"vm1\"} 512");
    assert_sample(&f, "quorumfs_disk_flushes_total{disk=\"vm1\"} 1");
    assert_sample(&f, "quorumfs_disk_divergences_total{disk=\"vm1\"} 1");
    assert_sample(&f, "quorumfs_disk_size_bytes{disk=\"vm1\"} 1048576");
    assert_sample(&f, "quorumfs_disk_state{disk=\"vm1\",state=\"healthy\"} 1");
    assert_sample(&f, "quorumfs_disk_state{disk=\"vm1\",state=\"failed\"} 0");
    assert_sample(&f, "quorumfs_replica_divergent_bytes_total{disk=\"vm1\",replica=\"b\"}"
                      " 512");
    assert_sample(&f, "quorumfs_replica_state{disk=\"vm1\",replica=\"b\",state="
                      "\"in-sync\"} 1");
    close_disk(&f);
}

Test(status, metrics_escape_labels)
{
    fixture f;
    prepare(&f);
    g_free(f.options->name);
    f.options->name = g_strdup("a\"b\\c\nd");
    open_disk(&f);
    assert_sample(&f, "quorumfs_disk_threshold{disk=\"a\\\"b\\\\c\\nd\"} 2");
    close_disk(&f);
}

/* ---- Map --------------------------------------------------------------------------- */

Test(status, divergence_map_tells_majority_from_none)
{
    fixture f;
    prepare(&f);
    open_disk(&f);
    rot(&f, 0, 4096);
    rot(&f, 0, 65536);
    support_poke(replica_at(&f, 1)->path, 65536, "ROT", 3);
    cr_assert_eq(read_at(&f, 0, 32768), 0);
    cr_assert_neq(read_at(&f, 65536, 512), 0);
    g_autofree char *map = status_divergence_map(f.context.disks->pdata[0]);
    g_autofree char *path = support_path("map");
    support_save(path, map, strlen(map));
    cr_assert_not_null(strstr(map, "\n0x00001000  0x00000200  /\n"));
    cr_assert_not_null(strstr(map, "\n0x00010000  0x00000200  -\n"));
    cr_assert_not_null(strstr(map, "\n0x00010200  0x000EFE00  ?\n"));
    close_disk(&f);
}
