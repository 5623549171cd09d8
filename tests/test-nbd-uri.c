/*
 * What may be an NBD URI, what it names, and that TLS without a check of the server is not to
 * be had.
 */
#include "tests/nbd-server.h"

static void assert_refused(const char *uri, const char *why)
{
    g_autoptr(GError) error = NULL;
    cr_assert(nbd_is_source(uri), "%s", uri);
    cr_assert(!nbd_check_source(uri, &error), "%s", uri);
    cr_assert_not_null(strstr(error->message, why), "%s", error->message);
    cr_assert_null(strchr(error->message, '\n'));
    cr_assert_null(strstr(error->message, "hush"), "%s", error->message);
}

static void assert_identity(const char *uri, const char *identity)
{
    g_autoptr(GError) error = NULL;
    cr_assert(nbd_check_source(uri, &error), "%s", error ? error->message : "");
    g_autofree char *got = nbd_source_identity(uri);
    cr_assert_str_eq(got, identity);
}

Test(nbd_uri, what_it_names)
{
    assert_identity("nbd://host", "tcp host 10809 ");
    assert_identity("nbd://HOST:99/a%2Fb", "tcp host 99 a/b");
    assert_identity("nbd://[::1]/x", "tcp ::1 10809 x");
    assert_identity("nbd://host//x", "tcp host 10809 /x");
    assert_identity("nbd+unix:///x?socket=/no/../such", "unix /such x");
    assert_identity("nbds://alice@host/x?tls-psk-file=/k", "tcp host 10809 x");
    assert_identity("nbds://host/x?tls-certificates=/c", "tcp host 10809 x");
    assert_identity("nbds+unix://a@/?socket=/s&tls-psk-file=/k", "unix /s ");
}

Test(nbd_uri, what_is_none)
{
    static const char *const words[] = {"raw:nbd://x", "/nbd://x", "nbd", "nbdx://y",
                                        "x"};
    for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
        cr_assert(!nbd_is_source(words[i]), "%s", words[i]);
}

Test(nbd_uri, R_one_line_says_what_is_wrong)
{
    assert_refused("nbd:host:10809", "write nbd://HOST/EXPORT");
    assert_refused("nbd:///x", "no host");
    assert_refused("nbd://host:99999/", "");
    assert_refused("nbd+unix:///x", "no socket (add ?socket=PATH)");
    assert_refused("nbd+unix://host/x?socket=/s", "a host and a Unix socket");
    assert_refused("nbd://host/?socket=/s", "nbd+unix://");
    assert_refused("nbd+unix:///?socket=s", "must be an absolute path");
    assert_refused("nbd+unix:///?socket=/s&socket=/t", "given twice");
    assert_refused("nbd+vsock://1/x", "unknown scheme");
    assert_refused("nbd://host/x?tls-verify-peer=false", "unknown parameter");
    assert_refused("nbd://host/x#y", "'#'");
    assert_refused("nbd://host/%zz", "");
}

Test(nbd_uri, passwords_are_refused_and_not_shown)
{
    assert_refused("nbds://alice:hush@host/x?tls-psk-file=/k", "password");
    assert_refused("nbds://alice:hush@[::1/x", "not a URI");
}

Test(nbd_uri, tls_needs_something_to_check_the_server_by)
{
    assert_refused("nbds://host/x", "tls-certificates=DIR");
    assert_refused("nbds+unix:///?socket=/s", "add ?tls-psk-file=FILE");
    assert_refused("nbds+unix:///?socket=/s&tls-certificates=/c", "not checked");
    assert_refused("nbds://a@host/x?tls-psk-file=/k&tls-certificates=/c", "one of them");
    assert_refused("nbds://host/x?tls-psk-file=/k", "USER@");
    assert_refused("nbd://host/x?tls-psk-file=/k", "use nbds://");
    assert_refused("nbd://alice@host/x", "use nbds://");
    assert_refused("nbd+unix:///?socket=/s&tls-certificates=/c", "use nbds+unix://");
}

/* ---- Real TLS ------------------------------------------------------------------------- */

static char *try_open(const char *uri)
{
    g_autoptr(GError) error = NULL;
    uint8_t got[8];
    const nbd_options options = {.source = uri};
    image *im = nbd_open(&options, &error);
    if (im) {
        cr_assert_eq(image_read(im, got, 4096, 8), 0);
        cr_assert_eq(memcmp(got, "\0\0\0\0\0\0\x10\0", 8), 0);
    }
    image_close(im);
    return im ? NULL : g_strdup(error->message);
}

Test(nbd_uri, pre_shared_keys)
{
    support_run("echo alice:00112233445566778899aabbccddeeff >right; "
                "echo alice:00112233445566778899aabbccddee00 >wrong");
    g_autofree char *dir = support_path("right");
    nbd_server server =
        nbd_server_start("nbdkit -f -U {} --tls=require --tls-psk=%s pattern 1M", dir);
    g_autofree char *right = g_strdup_printf(
        "nbds+unix://alice@/?socket=%s&tls-psk-file=%s", server.socket, dir);
    g_autofree char *error = try_open(right);
    cr_assert_null(error, "%s", error);
    const char *const bad[][2] = {
        {"alice", "wrong"}, {"bob", "right"}, {"alice", "none"}};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *uri =
            g_strdup_printf("nbds+unix://%s@/?socket=%s&tls-psk-file=%s/%s", bad[i][0],
                            server.socket, support_dir(), bad[i][1]);
        g_autofree char *why = try_open(uri);
        cr_assert_not_null(why, "%s", uri);
        cr_assert_null(strstr(why, "0011"), "a key in: %s", why);
    }
    g_autofree char *plain = try_open(server.uri);
    cr_assert_not_null(plain);
    nbd_server_end(&server);
}

static void make_authority(const char *name)
{
    support_run(
        "mkdir %s && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=%s "
        "-keyout %s/ca-key.pem -out %s/ca-cert.pem >openssl.log 2>&1",
        name, name, name, name);
}

/* A server's certificate for a host. */
static void make_server(const char *dir, const char *authority, const char *host)
{
    support_run("mkdir %s && cp %s/ca-cert.pem %s && openssl req -newkey rsa:2048 -nodes "
                "-subj /CN=%s -keyout %s/server-key.pem -out %s/csr >openssl.log 2>&1",
                dir, authority, dir, host, dir, dir);
    support_run(
        "printf 'subjectAltName=DNS:%s\\n' >%s/ext && openssl x509 -req -days 2 -in "
        "%s/csr -CA %s/ca-cert.pem -CAkey %s/ca-key.pem -CAcreateserial -extfile "
        "%s/ext -out %s/server-cert.pem >openssl.log 2>&1",
        host, dir, dir, authority, authority, dir, dir);
}

static unsigned free_port(void)
{
    g_autofree char *text = support_output(
        "python3 -c 'import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); "
        "print(s.getsockname()[1])'");
    return (unsigned)g_ascii_strtoull(text, NULL, 10);
}

/* On a port of its own: only TCP has a host's name to check. `dir`: of the server. */
static char *open_by_certificate(const char *dir, const char *trusted)
{
    unsigned port = free_port();
    g_autofree char *certificates = support_path("%s", dir);
    g_autofree char *pid_file = support_path("pid-%u", port);
    support_run("nbdkit -i localhost -p %u -P %s --tls=require --tls-certificates=%s "
                "pattern 1M",
                port, pid_file, certificates);
    g_autofree char *uri = g_strdup_printf("nbds://localhost:%u/?tls-certificates=%s/%s",
                                           port, support_dir(), trusted);
    char *error = try_open(uri);
    support_run("kill $(cat %s)", pid_file);
    return error;
}

/* CVE-2024-7383 of libnbd: what it does not check must not be reached. */
Test(nbd_uri, certificates_are_checked)
{
    make_authority("ours");
    make_authority("theirs");
    support_run("mkdir empty");
    make_server("right", "ours", "localhost");
    make_server("name", "ours", "elsewhere.example");
    make_server("foreign", "theirs", "localhost");
    g_autofree char *right = open_by_certificate("right", "ours");
    cr_assert_null(right, "%s", right);
    g_autofree char *name = open_by_certificate("name", "ours");
    cr_assert_not_null(name, "a certificate for another host was accepted");
    g_autofree char *foreign = open_by_certificate("foreign", "ours");
    cr_assert_not_null(foreign, "a foreign authority was accepted");
    g_autofree char *without = open_by_certificate("right", "empty");
    cr_assert_not_null(without, "no authority was asked");
    cr_assert_not_null(strstr(without, "ca-cert.pem"), "%s", without);
}
