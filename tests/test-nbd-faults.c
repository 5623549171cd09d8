/*
 * NBD servers that die, stall, come back or lie: an error of that image, within its time, and
 * nothing more.
 */
#include "tests/nbd-server.h"

/* Long where nothing is to time out, short where something must. */
#define LONG_MS  20000
#define SHORT_MS 300

/* ---- Servers that lie ----------------------------------------------------------------- */

static int read_from_liar(const char *mode, unsigned timeout_ms)
{
    nbd_server server = nbd_server_liar(mode);
    image *im = nbd_server_open(&server, timeout_ms);
    g_autofree uint8_t *got = g_malloc(65536);
    int error = image_read(im, got, 4096, 65536);
    for (size_t i = 0; !error && i < 65536; i++)
        cr_assert_eq(got[i], 0x11);
    image_close(im);
    nbd_server_end(&server);
    return error;
}

Test(nbd_faults, honest_liar)
{
    cr_assert_eq(read_from_liar("honest", LONG_MS), 0);
    cr_assert_eq(read_from_liar("simple", LONG_MS), 0);
}

Test(nbd_faults, R3_wrong_answers_are_errors)
{
    static const char *const modes[] = {"short",      "cookie",  "garbage",
                                        "cut",        "outside", "nothing",
                                        "chunk-huge", "error",   "simple-short"};
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        int error = read_from_liar(modes[i], LONG_MS);
        cr_assert_eq(error, -EIO, "%s: %d", modes[i], error);
    }
}

/* What a server leaves out of the buffer must not be what was there before: that may be
 * another guest's. */
Test(nbd_faults, a_hole_in_the_answer_is_no_old_data)
{
    nbd_server server = nbd_server_liar("overlap");
    image *im = nbd_server_open(&server, LONG_MS);
    uint8_t got[8192];
    memset(got, 0x77, sizeof got);
    if (image_read(im, got, 0, sizeof got) == 0)
        for (size_t i = 0; i < sizeof got; i++)
            cr_assert_neq(got[i], 0x77);
    image_close(im);
    nbd_server_end(&server);
}

Test(nbd_faults, O3_absurd_block_status)
{
    static const char *const modes[] = {"status-huge", "status-zero", "status-none",
                                        "status-short", "error"};
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        nbd_server server = nbd_server_liar(modes[i]);
        image *im = nbd_server_open(&server, LONG_MS);
        image_extent extent;
        int error = image_map(im, 4096, im->size - 4096, &extent);
        cr_assert(error == 0 || error == -EIO, "%s: %d", modes[i], error);
        if (!error) {
            cr_assert_gt(extent.length, 0, "%s", modes[i]);
            cr_assert_leq(extent.length, im->size - 4096, "%s", modes[i]);
            cr_assert_eq(extent.fd, -1);
        }
        image_close(im);
        nbd_server_end(&server);
    }
}

static char *open_error(const char *mode, unsigned timeout_ms)
{
    g_autoptr(GError) error = NULL;
    nbd_server server = nbd_server_liar(mode);
    const nbd_options options = {server.uri, true, timeout_ms};
    cr_assert_null(nbd_open(&options, &error), "%s", mode);
    cr_assert_eq(error->domain, IMAGE_ERROR);
    cr_assert(g_str_has_prefix(error->message, server.uri), "%s", error->message);
    cr_assert_null(strchr(error->message, '\n'));
    cr_assert_null(strchr(error->message, '\x1b'));
    nbd_server_end(&server);
    return g_strdup(error->message);
}

Test(nbd_faults, O3_handshakes_that_go_wrong)
{
    static const char *const modes[] = {
        "greeting-garbage", "greeting-cut", "options-cut", "words",
        "size-huge",        "size-large",   "block-max"};
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++)
        g_free(open_error(modes[i], LONG_MS));
    g_autofree char *late = open_error("greeting-stall", SHORT_MS);
    cr_assert(g_str_has_suffix(late, "the server did not answer in time"), "%s", late);
}

Test(nbd_faults, no_server)
{
    g_autoptr(GError) error = NULL;
    const nbd_options options = {"nbd+unix:///x?socket=/nonexistent", true, 0};
    cr_assert_null(nbd_open(&options, &error));
    cr_assert(g_str_has_suffix(error->message, "No such file or directory"), "%s",
              error->message);
}

Test(nbd_faults, W2_a_full_server_says_so)
{
    nbd_server server = nbd_server_liar("full");
    image *im = nbd_server_open(&server, LONG_MS);
    cr_assert_eq(image_write(im, "x", 0, 1), -ENOSPC);
    cr_assert_eq(image_write_zeroes(im, 0, 4096), -ENOSPC);
    image_close(im);
    nbd_server_end(&server);
}

/* ---- What cannot be flushed ------------------------------------------------------------ */

Test(nbd_faults, W4_without_flush_there_is_no_writing)
{
    nbd_server server = nbd_server_liar("no-flush");
    image *im = nbd_server_open(&server, LONG_MS);
    cr_assert(im->read_only);
    cr_assert_not_null(strstr(nbd_read_only_reason(im), "flush"));
    image_close(im);
    nbd_server_end(&server);
}

/* The server refuses writes that are not FUA. */
Test(nbd_faults, W4_forced_unit_access_stands_in_for_flush)
{
    nbd_server server = nbd_server_liar("fua-only");
    image *im = nbd_server_open(&server, LONG_MS);
    cr_assert(!im->read_only);
    cr_assert_eq(image_write(im, "x", 0, 1), 0);
    cr_assert_eq(image_flush(im), 0);
    image_close(im);
    nbd_server_end(&server);
}

/* ---- Servers that stall ---------------------------------------------------------------- */

static int write_one(image *im)
{
    return image_write(im, "x", 0, 1);
}

static int read_one(image *im)
{
    uint8_t byte;
    return image_read(im, &byte, 0, 1);
}

static int zero_one(image *im)
{
    return image_write_zeroes(im, 0, 4096);
}

static int map_one(image *im)
{
    image_extent extent;
    return image_map(im, 0, 4096, &extent);
}

Test(nbd_faults, R5_what_stalls_times_out)
{
    static int (*const requests[])(image * im) = {read_one, write_one, zero_one, map_one,
                                                  image_flush};
    for (size_t i = 0; i < G_N_ELEMENTS(requests); i++) {
        nbd_server server = nbd_server_liar("stall");
        image *im = nbd_server_open(&server, SHORT_MS);
        gint64 before = g_get_monotonic_time();
        cr_assert_eq(requests[i](im), -ETIMEDOUT, "request %zu", i);
        cr_assert_geq(g_get_monotonic_time() - before, SHORT_MS * 1000);
        cr_assert_eq(requests[i](im), -ENOTCONN, "request %zu in the pause", i);
        image_close(im);
        nbd_server_end(&server);
    }
}

/* Always something to read, never an end. */
Test(nbd_faults, R5_what_keeps_talking_times_out)
{
    static const char *const modes[] = {"flood", "dribble"};
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        nbd_server server = nbd_server_liar(modes[i]);
        image *im = nbd_server_open(&server, SHORT_MS);
        g_autofree uint8_t *got = g_malloc(1u << 20);
        int error = image_read(im, got, 0, 1u << 20);
        cr_assert_eq(error, -ETIMEDOUT, "%s: %d", modes[i], error);
        image_close(im);
        nbd_server_end(&server);
    }
}

/* The caller's memory is the caller's again, although the server answers later. */
Test(nbd_faults, R5_nothing_is_written_after_the_deadline)
{
    nbd_server server =
        nbd_server_start("nbdkit -f -U {} --filter=delay pattern 1M rdelay=1");
    image *im = nbd_server_open(&server, SHORT_MS);
    g_autofree uint8_t *got = g_malloc(65536);
    image_read_ahead(im, got, 0, 65536);
    cr_assert_eq(image_read(im, got, 0, 65536), -ETIMEDOUT);
    memset(got, 0x77, 65536);
    nbd_server_kill(&server);
    for (size_t i = 0; i < 65536; i++)
        cr_assert_eq(got[i], 0x77);
    image_close(im);
    nbd_server_end(&server);
}

Test(nbd_faults, R5_a_stopped_server_costs_one_deadline)
{
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory 1M");
    image *im = nbd_server_open(&server, SHORT_MS);
    cr_assert_eq(write_one(im), 0);
    kill(server.pid, SIGSTOP);
    waitpid(server.pid, NULL, WUNTRACED); /* until it has */
    cr_assert_eq(read_one(im), -ETIMEDOUT);
    cr_assert_eq(read_one(im), -ENOTCONN);
    kill(server.pid, SIGCONT);
    int error;
    while ((error = read_one(im)) == -ENOTCONN || error == -ETIMEDOUT)
        g_usleep(10000);
    cr_assert_eq(error, 0);
    image_close(im);
    nbd_server_end(&server);
}

/* What it was told before it stalled it still does; until it has, that is under way. */
Test(nbd_faults, R5_a_late_write_is_done_when_nothing_is_under_way)
{
    support_run("truncate -s 1M late.raw");
    g_autofree char *path = support_path("late.raw");
    nbd_server server = nbd_server_start("nbdkit -f -U {} file %s", path);
    image *im = nbd_server_open(&server, SHORT_MS);
    kill(server.pid, SIGSTOP);
    waitpid(server.pid, NULL, WUNTRACED);
    cr_assert_eq(write_one(im), -ETIMEDOUT);
    cr_assert_eq(image_abandoned(im), 1);
    size_t length;
    g_autofree char *before = (char *)support_load(path, &length);
    cr_assert_eq(before[0], 0);
    kill(server.pid, SIGCONT);
    while (image_abandoned(im) > 0)
        g_usleep(1000);
    g_autofree char *after = (char *)support_load(path, &length);
    cr_assert_eq(after[0], 'x');
    image_close(im);
    nbd_server_end(&server);
}

Test(nbd_faults, R5_what_talks_for_ever_is_under_way_until_it_dies)
{
    nbd_server server = nbd_server_liar("flood");
    image *im = nbd_server_open(&server, SHORT_MS);
    cr_assert_eq(read_one(im), -ETIMEDOUT);
    cr_assert_eq(image_abandoned(im), 1);
    nbd_server_kill(&server);
    while (image_abandoned(im) > 0)
        g_usleep(1000);
    image_close(im);
    nbd_server_end(&server);
}

/* ---- Servers that die and come back ---------------------------------------------------- */

static int read_until_there(image *im)
{
    int error;
    while ((error = read_one(im)) == -ENOTCONN)
        g_usleep(10000);
    return error;
}

Test(nbd_faults, a_server_that_came_back_is_used_again)
{
    support_run("truncate -s 1M back.raw");
    g_autofree char *path = support_path("back.raw");
    nbd_server server = nbd_server_start("nbdkit -f -U {} file %s", path);
    image *im = nbd_server_open(&server, LONG_MS);
    cr_assert_eq(write_one(im), 0);
    cr_assert_eq(image_flush(im), 0);
    nbd_server_kill(&server);
    int error = read_one(im);
    cr_assert(error == -EIO || error == -ENOTCONN, "%d", error);
    nbd_server_restart(&server, "nbdkit -f -U {} file %s", path);
    cr_assert_eq(read_until_there(im), 0);
    cr_assert_eq(write_one(im), 0);
    cr_assert_eq(image_flush(im), 0);
    image_close(im);
    nbd_server_end(&server);
}

Test(nbd_faults, W4_what_was_not_flushed_may_be_lost)
{
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory 1M");
    image *im = nbd_server_open(&server, LONG_MS);
    cr_assert_eq(write_one(im), 0);
    nbd_server_kill(&server);
    nbd_server_restart(&server, "nbdkit -f -U {} memory 1M");
    int error;
    while ((error = read_one(im)) == -ENOTCONN || error == -EIO)
        g_usleep(10000);
    cr_assert_eq(error, 0);
    cr_assert_eq(image_flush(im), -ENOTCONN);
    cr_assert_eq(image_flush(im), 0);
    image_close(im);
    nbd_server_end(&server);
}

Test(nbd_faults, O5_an_export_that_changed_is_refused)
{
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory 1M");
    image *im = nbd_server_open(&server, LONG_MS);
    cr_assert_eq(read_one(im), 0);
    nbd_server_kill(&server);
    nbd_server_restart(&server, "nbdkit -f -U {} memory 2M");
    cr_assert_eq(read_until_there(im), -EIO);
    cr_assert_eq(read_one(im), -EIO);
    nbd_server_kill(&server);
    nbd_server_restart(&server, "nbdkit -f -U {} memory 1M");
    cr_assert_eq(read_one(im), -EIO);
    image_close(im);
    nbd_server_end(&server);
}

/* ---- Threads on a server that dies ----------------------------------------------------- */

static void *read_on(void *opaque)
{
    image *im = opaque;
    g_autofree uint8_t *got = g_malloc(300000);
    for (unsigned i = 0; i < 300; i++) {
        int error =
            i % 3 ? image_read(im, got, 0, 300000) : image_write(im, got, 0, 100000 + i);
        cr_assert(error == 0 || error == -EIO || error == -ENOTCONN, "%d", error);
        if (i % 5 == 0)
            image_flush(im);
    }
    return NULL;
}

Test(nbd_faults, threads_on_a_server_that_dies_again_and_again)
{
    GThread *threads[4];
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory 1M");
    image *im = nbd_server_open(&server, LONG_MS);
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", read_on, im);
    for (unsigned i = 0; i < 5; i++) {
        g_usleep(20000);
        nbd_server_kill(&server);
        nbd_server_restart(&server, "nbdkit -f -U {} memory 1M");
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++)
        g_thread_join(threads[i]);
    image_close(im);
    nbd_server_end(&server);
}

/* ---- Several images at once ------------------------------------------------------------ */

/* The servers answer when all three have been asked. */
Test(nbd_faults, requests_of_several_images_run_side_by_side)
{
    enum { N = 3 };
    nbd_server servers[N];
    image *ims[N];
    uint8_t got[N][512] = {0};
    for (unsigned i = 0; i < N; i++) {
        servers[i] = nbd_server_liar("together");
        ims[i] = nbd_server_open(&servers[i], LONG_MS);
    }
    for (unsigned i = 0; i < N; i++)
        image_read_ahead(ims[i], got[i], 0, 512);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(image_read(ims[i], got[i], 0, 512), 0);
    image_change *changes[N];
    image_flush_state flushes[N] = {0};
    io_list list = {0};
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(image_prepare_write(ims[i], got[i], 0, 512, i, &list, &changes[i]),
                     0);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(image_finish_write(ims[i], changes[i], 0), 0);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(image_flush_step(ims[i], &flushes[i], i, &list), 1);
    for (unsigned i = 0; i < N; i++)
        cr_assert_eq(image_flush_step(ims[i], &flushes[i], i, &list), 0);
    cr_assert_eq(list.count, 0);
    for (unsigned i = 0; i < N; i++) {
        image_close(ims[i]);
        nbd_server_end(&servers[i]);
    }
}
