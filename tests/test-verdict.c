/*
 * test-verdict.c: what the daemon says at its end, and who believes it.
 */
#include "fuse/verdict.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

static disk *open_disk(void)
{
    g_autoptr(GError) error = NULL;
    disk_options *options = disk_options_new();
    options->name = g_strdup("vm1");
    options->file = g_strdup("disk.img");
    for (unsigned i = 0; i < 3; i++) {
        replica_options *replica = replica_options_new();
        replica->name = g_strdup_printf("%c", 'a' + (int)i);
        replica->path = support_path("%s.raw", replica->name);
        replica->source = g_strdup(replica->path);
        replica->format = g_strdup("raw");
        g_autofree uint8_t *content = g_malloc0(65536);
        support_save(replica->path, content, 65536);
        g_ptr_array_add(options->replicas, replica);
    }
    disk *d = disk_open(options, NULL, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "");
    disk_options_free(options);
    return d;
}

static const char *row_text(const json_t *how, const char *key)
{
    const json_t *row = json_array_get(json_object_get(how, "disks"), 0);
    return json_string_value(json_object_get(row, key));
}

Test(verdict, is_read_as_it_was_written)
{
    disk *d = open_disk();
    verdict *v = verdict_new();
    verdict_add_disk(v, d, disk_flush(d));
    verdict_set_closed(v, disk_close(d));
    cr_assert_eq(verdict_error(v), 0);
    cr_assert(!verdict_hangs(v));
    verdict_write(v, support_dir(), false);
    verdict_free(v);

    json_t *how = verdict_read(support_dir(), getpid());
    cr_assert_not_null(how);
    cr_assert(json_is_false(json_object_get(how, "stuck")));
    cr_assert_str_eq(row_text(how, "name"), "vm1");
    const json_t *row = json_array_get(json_object_get(how, "disks"), 0);
    cr_assert(json_is_null(json_object_get(row, "error")));
    const json_t *replicas = json_object_get(row, "replicas");
    cr_assert_eq(json_array_size(replicas), 3);
    const json_t *last = json_array_get(replicas, 2);
    cr_assert_str_eq(json_string_value(json_object_get(last, "name")), "c");
    cr_assert_str_eq(json_string_value(json_object_get(last, "state")), "in-sync");
    cr_assert_eq(json_integer_value(json_object_get(last, "stale-bytes")), 0);
    json_decref(how);
}

Test(verdict, W4_a_flush_that_failed_stays_in_it)
{
    disk *d = open_disk();
    verdict *v = verdict_new();
    verdict_add_disk(v, d, -ENOSPC);
    verdict_set_closed(v, disk_close(d));
    verdict_write(v, support_dir(), true);
    cr_assert_eq(verdict_error(v), -ENOSPC);
    verdict_free(v);
    json_t *how = verdict_read(support_dir(), getpid());
    cr_assert_str_eq(row_text(how, "error"), strerror(ENOSPC));
    cr_assert(json_is_true(json_object_get(how, "stuck")));
    json_decref(how);
}

Test(verdict, of_another_daemon_or_none_is_none)
{
    verdict *v = verdict_new();
    cr_assert_null(verdict_read(support_dir(), getpid()));
    verdict_write(v, support_dir(), false);
    verdict_free(v);
    cr_assert_null(verdict_read(support_dir(), getpid() + 1));
    json_t *how = verdict_read(support_dir(), getpid());
    cr_assert_not_null(how);
    json_decref(how);
    verdict_reserve(support_dir(), 3);
    cr_assert_null(verdict_read(support_dir(), getpid()));
    g_autofree char *path = support_path("last-end.json");
    support_save(path, "{\"pid\"", 6);
    cr_assert_null(verdict_read(support_dir(), getpid()));
}
