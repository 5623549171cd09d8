/*
 * test-disk-resize.c: new sizes for all replicas or none, and disks that cannot be written.
 */
#include "tests/disk-rig.h"
#include "tests/fault.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#define MIB (1024u * 1024u)

Test(disk_resize, W2_resize_grows_with_zeroes_and_shrinks)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    cr_assert_eq(disk_resize(rig->disk, 3 * MIB + 1), 0);
    disk_rig_model_resize(rig, 3 * MIB + 1);
    disk_rig_check_read(rig, 2 * MIB + 1, MIB);
    cr_assert_eq(disk_resize(rig->disk, 1000), 0);
    disk_rig_model_resize(rig, 1000);
    cr_assert_eq(disk_rig_read(rig, 999, 2), -EINVAL);
    disk_rig_check_read(rig, 0, 1000);
    cr_assert_eq(disk_resize(rig->disk, 2000), 0);
    disk_rig_model_resize(rig, 2000);
    disk_rig_check_replicas(rig, 7);
}

Test(disk_resize, W2_replica_that_cannot_resize_is_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_fail(rig, 1, FAULT_RESIZE, ENOSPC, 0);
    cr_assert_eq(disk_resize(rig->disk, 2 * MIB), 0);
    disk_rig_model_resize(rig, 2 * MIB);
    disk_rig_expect_state(rig, 1, REPLICA_FAILED);
    disk_rig_check_replicas(rig, 5);
    disk_rig_check_read(rig, MIB, MIB);
    g_autofree char *error = disk_rig_only_record(rig, "replica-error", "resize");
    cr_assert_str_eq(error, "1048576+1048576 a,c|b!28 errno 28, served");
}

Test(disk_resize, W3_resize_by_too_few_is_put_back)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_fail(rig, 1, FAULT_RESIZE, ENOSPC, 0);
    disk_rig_fail(rig, 2, FAULT_RESIZE, ENOSPC, 0);
    cr_assert_eq(disk_resize(rig->disk, 2 * MIB), -ENOSPC);
    cr_assert_eq(disk_size(rig->disk), MIB);
    cr_assert_str_eq(disk_state_name(rig->disk), "healthy");
    disk_rig_check_replicas(rig, 7);
    fault_clear();
    disk_rig_fail(rig, 0, FAULT_RESIZE, EIO, 0);
    disk_rig_fail(rig, 1, FAULT_RESIZE, EIO, 0);
    cr_assert_eq(disk_resize(rig->disk, 4096), -EIO);
    cr_assert_eq(disk_size(rig->disk), MIB);
    disk_rig_check_read(rig, 0, MIB); /* c lost its tail, the others hold it */
    disk_rig_check_replicas(rig, 3);
}

Test(disk_resize, W3_replica_that_cannot_be_put_back_is_out)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    fault_add((fault){.chain = disk_chain(rig->disk, 0),
                      .kind = FAULT_RESIZE,
                      .error = EIO,
                      .after = 1});
    disk_rig_fail(rig, 1, FAULT_RESIZE, ENOSPC, 0);
    disk_rig_fail(rig, 2, FAULT_RESIZE, ENOSPC, 0);
    cr_assert_eq(disk_resize(rig->disk, 2 * MIB), -ENOSPC);
    cr_assert_eq(disk_size(rig->disk), MIB);
    disk_rig_expect_state(rig, 0, REPLICA_FAILED); /* it has another size now */
    disk_rig_expect_state(rig, 1, REPLICA_IN_SYNC);
    disk_rig_check_replicas(rig, 6);
    disk_rig_check_read(rig, 0, MIB);
}

Test(disk_resize, resize_needs_all_replicas_to_be_able)
{
    g_autoptr(disk_rig) rig = disk_rig_new(3, 0, MIB);
    disk_rig_fail(rig, 2, FAULT_PROBE, ENOTSUP, 0);
    cr_assert_eq(disk_resize(rig->disk, 4096), -ENOTSUP);
    cr_assert_eq(disk_size(rig->disk), MIB);
    cr_assert_eq(disk_rig_count(rig, "", ""), 0);
    disk_rig_check_replicas(rig, 7); /* nobody was shrunk first */
}

/* ---- Read-only ---- */

static disk *open_mixed(const char *second, bool read_only)
{
    support_run("qemu-img create -q -f raw a.img 1M && "
                "qemu-img create -q -f %s b.img 1M",
                second);
    char *paths[] = {support_path("a.img"), support_path("b.img")};
    disk_options *options = disk_rig_options(paths, 2, NULL);
    g_autoptr(GError) error = NULL;
    for (unsigned i = 0; i < 2; i++) {
        replica_options *replica = g_ptr_array_index(options->replicas, i);
        replica->format = g_strdup(i ? second : "raw");
        g_free(paths[i]);
    }
    options->read_only = read_only;
    disk *d = disk_open(options, NULL, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "no error");
    disk_options_free(options);
    return d;
}

static void expect_read_only(disk *d)
{
    cr_assert(!disk_writable(d));
    cr_assert_eq(disk_write(d, 0, 1, "x"), -EROFS);
    cr_assert_eq(disk_write_zeroes(d, 0, 512), -EROFS);
    cr_assert_eq(disk_discard(d, 0, 512), -EROFS);
    cr_assert_eq(disk_resize(d, 512), -EROFS);
    cr_assert_eq(disk_flush(d), 0);
    cr_assert_eq(disk_close(d), 0);
}

Test(disk_resize, read_only_was_asked_for)
{
    disk *d = open_mixed("raw", true);
    cr_assert_null(disk_read_only_reason(d));
    expect_read_only(d);
}

Test(disk_resize, read_only_because_of_one_replica)
{
    disk *d = open_mixed("qcow", false);
    const char *reason = disk_read_only_reason(d);
    cr_assert(reason && g_str_has_prefix(reason, "replica 'b': "), "%s", reason);
    cr_assert(!chain_writable(disk_chain(d, 0))); /* nor a writer's lock on the other */
    expect_read_only(d);
}
