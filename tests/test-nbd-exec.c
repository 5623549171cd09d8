/*
 * exec: servers that we start: what they need to be told, what becomes of them, and what is
 * told of those that do not serve.
 */
#include "tests/nbd-server.h"

static image *open_source(const char *source, unsigned timeout_ms, char **ret_error)
{
    g_autoptr(GError) error = NULL;
    const nbd_options options = {source, true, timeout_ms};
    image *im = nbd_open(&options, &error);
    *ret_error = im ? NULL : g_strdup(error->message);
    return im;
}

static image *open_good(const char *format, ...) G_GNUC_PRINTF(1, 2);
static image *open_good(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *source = g_strdup_vprintf(format, args);
    va_end(args);
    char *error;
    image *im = open_source(source, 20000, &error);
    cr_assert_not_null(im, "%s", error);
    cr_assert_str_eq(im->filename, source);
    return im;
}

static void assert_refused(const char *source, unsigned timeout_ms, const char *why)
{
    char *error;
    cr_assert_null(open_source(source, timeout_ms, &error), "%s", source);
    cr_assert(g_str_has_prefix(error, source), "%s", error);
    cr_assert_not_null(strstr(error, why), "%s", error);
    cr_assert_null(strchr(error, '\n'));
    g_free(error);
}

/* Everything that this process has below it, and every directory for a socket, is gone. */
static void assert_nothing_left(void)
{
    int status;
    cr_assert_eq(waitpid(-1, &status, WNOHANG), -1);
    g_autoptr(GDir) dir = g_dir_open(g_get_tmp_dir(), 0, NULL);
    g_autofree char *ours = g_strdup_printf("quorumfs-nbd-%d-", getpid());
    for (const char *name; (name = g_dir_read_name(dir));)
        cr_assert(!g_str_has_prefix(name, ours), "%s", name);
}

Test(nbd_exec, what_is_written_is_in_the_file)
{
    support_run("truncate -s 1M 'a file.raw'");
    image *im =
        open_good("exec:qemu-nbd -t -f raw -k {socket} '%s/a file.raw'", support_dir());
    cr_assert_eq(image_write(im, "written", 4096, 7), 0);
    cr_assert_eq(image_flush(im), 0);
    image_close(im);
    g_autofree char *path = support_path("a file.raw");
    size_t length;
    g_autofree uint8_t *bytes = support_load(path, &length);
    cr_assert_eq(memcmp(bytes + 4096, "written", 7), 0);
    assert_nothing_left();
}

/* qemu-nbd without -t serves one client: a look whether it is there would be that one. */
Test(nbd_exec, a_server_of_one_client)
{
    support_run("truncate -s 1M one.raw");
    for (unsigned i = 0; i < 5; i++) {
        uint8_t got;
        image *im =
            open_good("exec:qemu-nbd -f raw -k {socket} %s/one.raw", support_dir());
        cr_assert_eq(image_read(im, &got, 0, 1), 0);
        image_close(im);
    }
    assert_nothing_left();
}

Test(nbd_exec, what_does_not_serve_is_an_error_with_its_own_words)
{
    assert_refused("exec:nosuchprogram {socket}", 0, "nosuchprogram: no such program");
    assert_refused("exec:qemu-nbd -f raw x", 0, "no {socket}");
    assert_refused("exec:qemu-nbd 'x", 0, "");
    assert_refused("exec:", 0, "");
    assert_refused("exec:false {socket}", 0, "the server ended with status 1");
    assert_refused("exec:sh -c 'echo my words >&2; kill -9 $$' {socket}", 0,
                   "ended by signal 9 (Killed) (my words)");
    assert_refused("exec:qemu-nbd -f raw -k {socket} /nonexistent", 0, "No such file");
    assert_refused("exec:sleep 1000 -- {socket}x", 100, "");
    assert_refused("exec:sh -c 'sleep 1000' {socket}", 100, "did not listen");
    assert_nothing_left();
}

/* One that ignores SIGTERM, and has children. */
Test(nbd_exec, all_of_it_ends_at_close)
{
    g_autofree char *pid_file = support_path("pid");
    image *im =
        open_good("exec:sh -c \"trap '' TERM; sleep 1000 & echo $! >%s; nbdkit -f -U $0 "
                  "memory 1M; sleep 1000\" {socket}",
                  pid_file);
    size_t length;
    g_autofree uint8_t *text = support_load(pid_file, &length);
    pid_t child = (pid_t)g_ascii_strtoll((char *)text, NULL, 10);
    cr_assert_eq(kill(child, 0), 0);
    image_close(im);
    while (kill(child, 0) == 0) { /* its parent is gone: somebody else reaps it */
        g_autofree char *stat =
            support_output("cut -d' ' -f3 /proc/%d/stat || echo Z", child);
        if (stat[0] == 'Z')
            break;
        g_usleep(1000);
    }
    assert_nothing_left();
}

Test(nbd_exec, a_server_that_dies_is_an_error)
{
    g_autofree char *pid_file = support_path("pid");
    image *im = open_good("exec:nbdkit -f -P %s -U {socket} memory 1M", pid_file);
    uint8_t got;
    cr_assert_eq(image_read(im, &got, 0, 1), 0);
    support_run("kill -9 $(cat %s)", pid_file);
    int error;
    while ((error = image_read(im, &got, 0, 1)) == 0)
        ;
    cr_assert(error == -EIO || error == -ENOTCONN, "%d", error);
    cr_assert_neq(image_read(im, &got, 0, 1), 0);
    image_close(im);
    assert_nothing_left();
}
