/*
 * O2: one trick per test. O5: against a QEMU tool that holds the image in another process.
 */
#include "formats/path.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* in/: the image's directory, with good.raw. out/: another one, with secret.raw. */
static path_policy *make_policy(void)
{
    support_run(
        "mkdir -p in/sub out && echo good >in/good.raw && echo good >in/sub/deep.raw "
        "&& echo secret >out/secret.raw && echo top >in/top.qcow2");
    path_policy *policy = path_policy_new();
    g_autofree char *top = support_path("in/top.qcow2");
    GError *error = NULL;
    cr_assert(path_policy_add_image(policy, top, &error));
    return policy;
}

/* The error's message (the caller frees), or NULL if the file was opened. */
static char *open_referred(const path_policy *policy, const char *name, int code)
{
    g_autofree char *referrer = support_path("in/top.qcow2");
    g_autofree char *real = NULL;
    struct stat st;
    GError *error = NULL;
    int fd = path_open_referred(policy, name, referrer, "backing file", "raw", &real, &st,
                                &error);
    if (fd >= 0) {
        cr_assert_null(error);
        cr_assert(S_ISREG(st.st_mode));
        cr_assert_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
        cr_assert_eq(fcntl(fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_RDONLY);
        cr_assert(g_path_is_absolute(real));
        close(fd);
        return NULL;
    }
    g_autofree char *start = g_strdup_printf("%s: backing file ", referrer);
    cr_assert_not_null(error);
    cr_assert(g_error_matches(error, IMAGE_ERROR, code), "%s: code %d: %s", name,
              error->code, error->message);
    cr_assert(g_str_has_prefix(error->message, start), "%s", error->message);
    cr_assert_null(strchr(error->message, '\n'));
    char *message = g_strdup(error->message);
    g_error_free(error);
    return message;
}

static void accepts(const char *name)
{
    path_policy *policy = make_policy();
    g_autofree char *message = open_referred(policy, name, 0);
    cr_assert_null(message, "%s: %s", name, message);
    path_policy_free(policy);
}

static void refuses(const char *name, int code, const char *part)
{
    path_policy *policy = make_policy();
    g_autofree char *message = open_referred(policy, name, code);
    cr_assert_not_null(message, "%s was opened", name);
    cr_assert_not_null(strstr(message, part), "'%s' is not in: %s", part, message);
    path_policy_free(policy);
}

Test(path, O2_a_name_is_relative_to_its_image)
{
    accepts("good.raw");
    accepts("./good.raw");
    accepts("sub//deep.raw");
    accepts("sub/../good.raw");
    accepts("../in/sub/./deep.raw");
}

Test(path, O2_an_absolute_name_beneath_the_images_directory)
{
    g_autofree char *good = support_path("in/good.raw");
    accepts(good);
    g_autofree char *dots = support_path("out/../in/good.raw");
    accepts(dots);
}

Test(path, O2_a_name_with_a_colon_after_a_slash_is_a_file)
{
    support_run("mkdir -p in && echo x >in/a:b.raw");
    accepts("./a:b.raw");
}

Test(path, O2_json_and_protocols_are_refused)
{
    static const char *const names[] = {
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "json:{}",
        "nbd:localhost:10809",
        "nbd://localhost/x",
        "http://localhost/x",
        "ssh://host/x",
        "file:good.raw",
        "host_device:/dev/sda",
        "fat:rw:/tmp",
        "a:b.raw",
        "",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        refuses(names[i], IMAGE_ERROR_REFUSED, names[i]);
}

Test(path, O2_what_lies_outside_is_refused_whether_it_is_there_or_not)
{
    g_autofree char *secret = support_path("out/secret.raw");
    refuses("../out/secret.raw", IMAGE_ERROR_REFUSED, "out/secret.raw");
    refuses("sub/../../out/secret.raw", IMAGE_ERROR_REFUSED, "allow-dir=");
    refuses(secret, IMAGE_ERROR_REFUSED, "outside");
    refuses("../out/nothing.raw", IMAGE_ERROR_REFUSED, "outside");
    refuses("/etc/passwd", IMAGE_ERROR_REFUSED, "/etc/passwd");
    refuses("/proc/self/fd/0", IMAGE_ERROR_REFUSED, "outside");
    refuses("../../../../../../../../../../../../../etc/passwd", IMAGE_ERROR_REFUSED,
            "/etc/passwd");
    /* A directory whose name only begins like the allowed one. */
    support_run("mkdir -p in-other && echo x >in-other/x.raw");
    refuses("../in-other/x.raw", IMAGE_ERROR_REFUSED, "outside");
}

Test(path, O2_an_allow_dir_allows)
{
    path_policy *policy = make_policy();
    g_autofree char *out = support_path("out");
    cr_assert(path_policy_add_dir(policy, out, NULL));
    cr_assert(path_policy_add_dir(policy, out, NULL));
    g_autofree char *message = open_referred(policy, "../out/secret.raw", 0);
    cr_assert_null(message, "%s", message);
    path_policy_free(policy);
}

Test(path, O2_the_root_as_allow_dir_allows_regular_files_only)
{
    path_policy *policy = make_policy();
    cr_assert(path_policy_add_dir(policy, "/", NULL));
    g_autofree char *passwd = open_referred(policy, "/etc/passwd", 0);
    cr_assert_null(passwd);
    g_autofree char *zero = open_referred(policy, "/dev/zero", IMAGE_ERROR_REFUSED);
    cr_assert_not_null(strstr(zero, "character device"), "%s", zero);
    g_autofree char *magic = open_referred(policy, "/proc/self/exe", IMAGE_ERROR_REFUSED);
    cr_assert_not_null(strstr(magic, "symbolic link"), "%s", magic);
    path_policy_free(policy);
}

Test(path, O2_symlinks_are_refused_wherever_they_lead)
{
    support_run("mkdir -p in && ln -sfn ../out in/dir && ln -sfn ../out/secret.raw "
                "in/file.raw && ln -sfn good.raw in/near.raw && ln -sfn . in/self && "
                "ln -sfn nowhere in/dangling.raw");
    refuses("file.raw", IMAGE_ERROR_REFUSED, "symbolic link");
    refuses("near.raw", IMAGE_ERROR_REFUSED, "symbolic link");
    refuses("dangling.raw", IMAGE_ERROR_REFUSED, "symbolic link");
    refuses("dir/secret.raw", IMAGE_ERROR_REFUSED, "symbolic link");
    refuses("self/good.raw", IMAGE_ERROR_REFUSED, "symbolic link");
    /* For the kernel this is out/../good.raw, by its text in/good.raw. */
    refuses("dir/../good.raw", IMAGE_ERROR_REFUSED, "'..' after a symbolic link");
}

Test(path, O2_a_fifo_does_not_hang)
{
    support_run("mkdir -p in && mkfifo in/fifo.raw");
    refuses("fifo.raw", IMAGE_ERROR_REFUSED, "FIFO");
}

Test(path, O2_a_directory_and_a_socket_are_refused)
{
    refuses("sub", IMAGE_ERROR_REFUSED, "directory");
    refuses(".", IMAGE_ERROR_REFUSED, "outside");
    support_run(
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"in/s\")'");
    refuses("s", IMAGE_ERROR_REFUSED, "socket");
}

Test(path, O2_a_missing_file_says_so_with_its_format)
{
    refuses("nowhere.raw", IMAGE_ERROR_IO,
            "in/nowhere.raw (raw): No such file or directory");
    refuses("good.raw/x", IMAGE_ERROR_IO, "Not a directory");
}

Test(path, O2_control_characters_do_not_reach_the_message)
{
    refuses("a\nb\033[2J\xff", IMAGE_ERROR_IO, "a?b?[2J");
    /* The same commands to a terminal in one character, and text that runs backwards. */
    refuses("a\xc2\x9b"
            "2J\xe2\x80\xae"
            "b",
            IMAGE_ERROR_IO, "a?2J?b (raw)");
    refuses("/x\ny\033[2J/z", IMAGE_ERROR_REFUSED, "(allow it with allow-dir=/x?y?[2J)");
}

Test(path, O2_a_very_long_name_is_an_error)
{
    g_autofree char *name = g_strnfill(100000, 'x');
    refuses(name, IMAGE_ERROR_IO, "xxx");
}

Test(path, O2_the_operators_spelling_of_a_directory_is_allowed_too)
{
    path_policy *policy = path_policy_new();
    path_policy_free(make_policy());
    support_run("ln -sfn in alias");
    g_autofree char *top = support_path("alias/top.qcow2");
    g_autofree char *good = support_path("alias/good.raw");
    g_autofree char *link = support_path("link.qcow2");
    cr_assert(path_policy_add_image(policy, top, NULL));
    g_autofree char *message = open_referred(policy, good, 0);
    cr_assert_null(message, "%s", message);
    path_policy_free(policy);

    /* A symlink to the image allows where the image is, not where the symlink is. */
    policy = path_policy_new();
    support_run("ln -sfn in/top.qcow2 link.qcow2 && echo x >beside.raw");
    cr_assert(path_policy_add_image(policy, link, NULL));
    g_autofree char *near = open_referred(policy, "good.raw", 0);
    cr_assert_null(near);
    g_autofree char *beside = open_referred(policy, "../beside.raw", IMAGE_ERROR_REFUSED);
    cr_assert_not_null(beside);
    path_policy_free(policy);
}

Test(path, policies_report_what_is_missing)
{
    path_policy *policy = path_policy_new();
    GError *error = NULL;
    cr_assert(!path_policy_add_image(policy, "/nowhere/x.raw", &error));
    cr_assert_str_eq(error->message, "/nowhere/x.raw: No such file or directory");
    g_clear_error(&error);
    cr_assert(!path_policy_add_dir(policy, "/nowhere", &error));
    g_clear_error(&error);
    cr_assert(!path_policy_add_dir(policy, "/etc/passwd", &error));
    g_clear_error(&error);
    path_policy_free(policy);
    path_policy_free(NULL);
}

static int open_named(const char *name, bool writable, GError **error)
{
    g_autofree char *path = support_path("%s", name);
    g_autofree char *real = NULL;
    struct stat st;
    int fd = path_open_named(path, writable, &real, &st, error);
    cr_assert_eq(fd >= 0, real != NULL);
    return fd;
}

static void named_refused(const char *name, int code, const char *part)
{
    GError *error = NULL;
    cr_assert_eq(open_named(name, false, &error), -1);
    cr_assert(g_error_matches(error, IMAGE_ERROR, code), "%s", error->message);
    cr_assert_not_null(strstr(error->message, part), "%s", error->message);
    g_clear_error(&error);
    cr_assert_eq(open_named(name, true, &error), -1);
    g_clear_error(&error);
}

Test(path, O2_the_operator_may_name_files_and_symlinks_but_no_fifo)
{
    support_run(
        "echo x >file && ln -s file link && mkfifo fifo && mkdir dir && ln -s fifo l2");
    for (int writable = 0; writable < 2; writable++) {
        int file = open_named("file", writable, NULL);
        int link = open_named("link", writable, NULL);
        cr_assert_geq(file, 0);
        cr_assert_geq(link, 0);
        cr_assert_eq(fcntl(file, F_GETFL) & (O_ACCMODE | O_NONBLOCK),
                     writable ? O_RDWR : O_RDONLY);
        close(file);
        close(link);
    }
    named_refused("fifo", IMAGE_ERROR_REFUSED, "fifo: is a FIFO");
    named_refused("l2", IMAGE_ERROR_REFUSED, "FIFO");
    named_refused("dir", IMAGE_ERROR_REFUSED, "directory");
    named_refused("nowhere", IMAGE_ERROR_IO, "nowhere: No such file or directory");
    GError *error = NULL;
    struct stat st;
    char *real;
    cr_assert_eq(path_open_named("/dev/zero", false, &real, &st, &error), -1);
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED));
    g_clear_error(&error);
}

/* ---- O5 ----------------------------------------------------------------------------- */

static int lock_file(const char *name, bool writable, GError **error)
{
    int fd = open_named(name, writable, NULL);
    cr_assert_geq(fd, 0);
    if (path_lock(fd, writable, name, error))
        return fd;
    close(fd);
    return -1;
}

/* Whether a second open can lock while the first holds. */
static bool coexist(bool first_writes, bool second_writes)
{
    support_run("truncate -s 1M file");
    int first = lock_file("file", first_writes, NULL);
    cr_assert_geq(first, 0);
    GError *error = NULL;
    int second = lock_file("file", second_writes, &error);
    if (second < 0) {
        cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_LOCKED));
        cr_assert(g_str_has_prefix(error->message, "file: in use by another process ("));
        g_clear_error(&error);
    } else {
        close(second);
    }
    close(first);
    /* Nothing is left behind, not even by the one that failed. */
    int again = lock_file("file", true, NULL);
    cr_assert_geq(again, 0);
    close(again);
    return second >= 0;
}

Test(lock, O5_readers_share_and_writers_do_not)
{
    cr_assert(coexist(false, false));
    cr_assert(!coexist(false, true));
    cr_assert(!coexist(true, false));
    cr_assert(!coexist(true, true));
}

Test(lock, O5_the_lock_lasts_until_the_last_descriptor)
{
    support_run("truncate -s 1M file");
    int first = lock_file("file", true, NULL);
    int copy = dup(first);
    close(first);
    GError *error = NULL;
    cr_assert_eq(lock_file("file", false, &error), -1);
    g_clear_error(&error);
    close(copy);
    int now = lock_file("file", false, NULL);
    cr_assert_geq(now, 0);
    close(now);
}

/* qemu-io with the image open, waiting for commands on `in`. */
typedef struct holder {
    GPid pid;
    int in, out;
} holder;

static holder hold(const char *options, const char *name)
{
    holder h;
    g_autofree char *path = support_path("%s", name);
    g_autofree char *command = g_strdup_printf("exec qemu-io %s %s", options, path);
    const char *argv[] = {"/bin/sh", "-c", command, NULL};
    cr_assert(g_spawn_async_with_pipes(NULL, (char **)argv, NULL,
                                       G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &h.pid,
                                       &h.in, &h.out, NULL, NULL));
    /* The prompt comes when the image is open. */
    char c;
    cr_assert_eq(write(h.in, "length\n", 7), 7);
    do
        cr_assert_eq(read(h.out, &c, 1), 1, "qemu-io %s cannot open", options);
    while (c != 'M');
    return h;
}

static void let_go(holder *h)
{
    close(h->in);
    close(h->out);
    kill(h->pid, SIGTERM);
    waitpid(h->pid, NULL, 0);
}

static bool lock_while_held(const char *options, const char *name, bool writable)
{
    holder h = hold(options, name);
    GError *error = NULL;
    int fd = lock_file(name, writable, &error);
    if (fd >= 0)
        close(fd);
    else
        cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_LOCKED), "%s",
                  error->message);
    g_clear_error(&error);
    let_go(&h);
    return fd >= 0;
}

static void make_images(void)
{
    support_run("truncate -s 1M x.raw && qemu-img create -q -f qcow2 x.qcow2 1M");
}

Test(lock, O5_we_refuse_what_qemu_writes)
{
    make_images();
    cr_assert(!lock_while_held("-f raw", "x.raw", false));
    cr_assert(!lock_while_held("-f raw", "x.raw", true));
    cr_assert(!lock_while_held("-f qcow2", "x.qcow2", false));
    cr_assert(!lock_while_held("-f qcow2", "x.qcow2", true));
}

Test(lock, O5_we_read_what_qemu_reads_and_do_not_write_it)
{
    make_images();
    cr_assert(lock_while_held("-r -f raw", "x.raw", false));
    cr_assert(lock_while_held("-r -f qcow2", "x.qcow2", false));
    cr_assert(!lock_while_held("-r -f qcow2", "x.qcow2", true));
}

static bool qemu_while_locked(const char *options, const char *name, bool writable)
{
    int fd = lock_file(name, writable, NULL);
    cr_assert_geq(fd, 0);
    int status = support_try("qemu-io %s -c 'read -q 0 512' %s >out 2>&1", options, name);
    if (status != 0)
        support_run("grep -q lock out");
    close(fd);
    support_run("qemu-io %s -c 'read -q 0 512' %s", options, name);
    return status == 0;
}

Test(lock, O5_qemu_refuses_what_we_hold)
{
    make_images();
    cr_assert(!qemu_while_locked("-f raw", "x.raw", false));
    cr_assert(!qemu_while_locked("-f raw", "x.raw", true));
    cr_assert(!qemu_while_locked("-f qcow2", "x.qcow2", false));
    cr_assert(!qemu_while_locked("-f qcow2", "x.qcow2", true));
    cr_assert(!qemu_while_locked("-r -f qcow2", "x.qcow2", true));
}

Test(lock, O5_qemu_reads_what_we_read)
{
    make_images();
    cr_assert(qemu_while_locked("-r -f raw", "x.raw", false));
    cr_assert(qemu_while_locked("-r -f qcow2", "x.qcow2", false));
}

Test(lock, a_descriptor_that_cannot_be_locked_is_an_error)
{
    GError *error = NULL;
    cr_assert(!path_lock(-1, false, "x.raw", &error));
    cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_IO));
    g_clear_error(&error);
}
