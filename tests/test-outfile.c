/* Reports appear whole or not at all. */
#include "fuse/outfile.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

static void assert_content(const char *path, const char *expected)
{
    g_autofree char *text = NULL;
    cr_assert(g_file_get_contents(path, &text, NULL, NULL));
    cr_assert_str_eq(text, expected);
}

static bool report_write(const char *path, const char *text, GError **error)
{
    outfile *out = outfile_open(path, error);
    if (!out)
        return false;
    fputs(text, outfile_stream(out));
    return outfile_commit(out, error);
}

Test(outfile, what_was_there_stays_until_the_commit)
{
    g_autofree char *path = support_path("report");
    support_save(path, "old", 3);
    outfile *out = outfile_open(path, NULL);
    cr_assert_not_null(out);
    fputs("new", outfile_stream(out));
    fflush(outfile_stream(out));
    assert_content(path, "old");
    cr_assert(outfile_commit(out, NULL));
    assert_content(path, "new");
    cr_assert_eq(support_try("test \"$(ls)\" = report"), 0, "something was left behind");
}

Test(outfile, discard_leaves_nothing)
{
    g_autofree char *path = support_path("report");
    outfile *out = outfile_open(path, NULL);
    cr_assert_not_null(out);
    fputs("new", outfile_stream(out));
    outfile_discard(out);
    cr_assert_eq(support_try("test -z \"$(ls)\""), 0);
}

Test(outfile, a_symbolic_link_stays_one)
{
    support_run("mkdir d; ln -s d/target link; echo old >d/target");
    g_autofree char *path = support_path("link");
    cr_assert(report_write(path, "new", NULL));
    cr_assert_eq(support_try("test -L link && test \"$(cat d/target)\" = new"), 0);
}

Test(outfile, the_umask_decides_the_mode)
{
    g_autofree char *path = support_path("report");
    cr_assert(report_write(path, "", NULL));
    support_run("test $(stat -c %%a report) = $(printf %%o $((0666 & ~$(umask))))");
}

Test(outfile, devices_are_written_to_and_not_replaced)
{
    cr_assert(report_write("/dev/null", "new", NULL));
    support_run("test -c /dev/null");
}

Test(outfile, a_file_below_dev_is_one_like_others)
{
    if (support_try("test -w /dev/shm") != 0)
        cr_skip_test("no /dev/shm");
    g_autofree char *path = g_strdup_printf("/dev/shm/quorumfs-test-%d", (int)getpid());
    cr_assert(report_write(path, "old", NULL));
    bool good = report_write(path, "new", NULL);
    g_autofree char *text = NULL;
    bool there = g_file_get_contents(path, &text, NULL, NULL);
    unlink(path);
    cr_assert(good && there);
    cr_assert_str_eq(text, "new");
}

Test(outfile, errors_are_one_line)
{
    g_autofree char *path = support_path("no/such/directory/report");
    g_autoptr(GError) error = NULL;
    cr_assert(!report_write(path, "new", &error));
    cr_assert_not_null(strstr(error->message, "No such file or directory"));
    g_clear_error(&error);
    cr_assert(!report_write("/dev/full", "new", &error));
    cr_assert_not_null(strstr(error->message, "/dev/full: cannot be written"));
}
