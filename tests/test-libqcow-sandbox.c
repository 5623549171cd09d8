/*
 * What the decoder process has given up when libqcow gets to see an image, and when it
 * serves. A sanitized build has no filter.
 */
#include "formats/libqcow-sandbox.h"
#include "tests/libqcow-open.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define GIB (1u << 30)

static void image_make(void)
{
    source_make("source.raw");
    support_run("qemu-img convert -f raw -O qcow2 source.raw a.qcow2");
}

/* ---- serving ---------------------------------------------------------------------- */

static void assert_status(const char *status, const char *line)
{
    cr_assert_not_null(strstr(status, line), "no '%s' in:\n%s", line, status);
}

Test(libqcow_sandbox, status_says_locked_in)
{
    image_make();
    image *im = run_open("a.qcow2");
    g_autofree char *status =
        support_output("cat /proc/%d/status", libqcow_helper_pid(im));
    assert_status(status, "NoNewPrivs:\t1");
    assert_status(status, "CapPrm:\t0000000000000000");
    assert_status(status, "CapEff:\t0000000000000000");
    assert_status(status, LIBQCOW_SANITIZED ? "Seccomp:\t0" : "Seccomp:\t2");
    if (geteuid() == 0) {
        assert_status(status, "Uid:\t65534\t65534\t65534\t65534");
        assert_status(status, "Gid:\t65534\t65534\t65534\t65534");
    }
    image_close(im);
}

Test(libqcow_sandbox, has_no_descriptor_but_its_own)
{
    image_make();
    support_run("qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
    int leak = dup(STDERR_FILENO); /* without O_CLOEXEC */
    cr_assert_gt(leak, STDERR_FILENO);
    image *im = run_open("b.qcow2 a.qcow2");
    close(leak);
    if (geteuid() != 0)
        cr_skip_test("only root may look into a process that is not dumpable");
    g_autofree char *list = support_output("for f in /proc/%d/fd/*; do readlink $f; done",
                                           libqcow_helper_pid(im));
    g_auto(GStrv) lines = g_strsplit(g_strchomp(list), "\n", -1);
    unsigned images = 0, others = 0;
    for (unsigned i = 0; lines[i]; i++) {
        bool known =
            g_str_has_prefix(lines[i], "socket:") || strcmp(lines[i], "/dev/null") == 0;
        images += g_str_has_suffix(lines[i], ".qcow2");
        others += !known && !g_str_has_suffix(lines[i], ".qcow2");
    }
    cr_assert_eq(images, 2);
    cr_assert_eq(others, 0);
    image_close(im);
}

Test(libqcow_sandbox, memory_is_bounded)
{
    if (LIBQCOW_SANITIZED)
        cr_skip_test("no limit under a sanitizer");
    image_make();
    image *im = run_open("a.qcow2");
    g_autofree char *limits = support_output(
        "awk '/address space/ { print $4 } /open files/ { print $4 } "
        "/core file/ { print $5 } /Max file size/ { print $4 }' /proc/%d/limits",
        libqcow_helper_pid(im));
    g_auto(GStrv) values = g_strsplit(limits, "\n", -1);
    cr_assert_str_eq(values[0], "0");
    cr_assert_str_eq(values[1], "0");
    cr_assert_str_eq(values[2], "3");
    cr_assert_leq(g_ascii_strtoull(values[3], NULL, 10), GIB);
    image_close(im);
}

/* ---- opening ---------------------------------------------------------------------- */

static int (*real_spawn)(int socket, pid_t *ret_pid);
static atomic_int spawned_pid;

static int spawn_and_tell(int socket, pid_t *ret_pid)
{
    int error = real_spawn(socket, ret_pid);
    if (!error)
        atomic_store(&spawned_pid, *ret_pid);
    return error;
}

static uint64_t status_hex(const char *status, const char *name)
{
    const char *at = strstr(status, name);
    cr_assert_not_null(at);
    return g_ascii_strtoull(at + strlen(name), NULL, 16);
}

/* All of stage one. What lets root open a file of somebody else may stay. */
static bool status_prepared(const char *status)
{
    const uint64_t to_open = 1u << 1 | 1u << 2 | 1u << 6 | 1u << 7;
    const char *seccomp = LIBQCOW_SANITIZED ? "Seccomp:\t0" : "Seccomp:\t2";
    return strstr(status, "NoNewPrivs:\t1") && strstr(status, seccomp) &&
           (status_hex(status, "CapPrm:") & ~to_open) == 0 &&
           (status_hex(status, "CapEff:") & ~to_open) == 0 &&
           status_hex(status, "CapInh:") == 0;
}

static void *pipe_open(void *data)
{
    libqcow_layer layer = {.fd = *(int *)data,
                           .filename = "pipe",
                           .version = 3,
                           .size = 1 << 20,
                           .cluster_size = 65536};
    libqcow_options options = {.timeout_ms = 20000};
    GError *error = NULL;
    image *im = libqcow_open(&layer, 1, &options, &error);
    g_clear_error(&error);
    return im;
}

/* As an image, a named pipe that nobody writes to: libqcow's first call, the opening, does
 * not return. What the process may do by then is what libqcow starts with. */
Test(libqcow_sandbox, is_up_before_libqcow_opens_the_image)
{
    support_run("mkfifo pipe");
    g_autofree char *path = support_path("pipe");
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    real_spawn = libqcow_spawn;
    libqcow_spawn = spawn_and_tell;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, pipe_open, &fd), 0);
    g_autofree char *status = NULL;
    gint64 deadline = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;
    do {
        sched_yield();
        g_free(status);
        pid_t pid = atomic_load(&spawned_pid);
        status = pid ? support_output("cat /proc/%d/status", (int)pid) : NULL;
    } while (!(status && status_prepared(status)) && g_get_monotonic_time() < deadline);
    cr_assert(status && status_prepared(status), "not locked in:\n%s", status);
    int writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    cr_assert_geq(writer, 0);
    void *im = NULL;
    pthread_join(thread, &im);
    cr_assert_null(im, "a pipe is no image");
    close(writer);
    libqcow_spawn = real_spawn;
}

/* ---- what the filters let through ------------------------------------------------- */

static char *scratch_file;
static pid_t parent;

static int try_read(void)
{
    char byte;
    int fd = open(scratch_file, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0 && read(fd, &byte, 1) == 1 && lseek(fd, 0, SEEK_SET) == 0;
    struct stat st;
    return same && fstat(fd, &st) == 0 && close(fd) == 0;
}

static int try_allocate(void)
{
    void *space = malloc(64 << 20), *more = malloc(100);
    bool got = space && more;
    free(space);
    free(more);
    return got;
}

static int try_allocate_too_much(void)
{
    void *space = malloc((size_t)2 * GIB);
    bool refused = !space;
    free(space);
    return refused;
}

static int try_open_for_writing(void)
{
    return open(scratch_file, O_WRONLY);
}

static int try_open_for_both(void)
{
    return open(scratch_file, O_RDWR);
}

static int try_create(void)
{
    return open(scratch_file, O_RDONLY | O_CREAT, 0600);
}

static int try_truncate(void)
{
    return open(scratch_file, O_RDONLY | O_TRUNC);
}

static int try_write(void)
{
    return (int)write(STDOUT_FILENO, "", 0);
}

static int try_unlink(void)
{
    return unlink(scratch_file);
}

static int try_chmod(void)
{
    return chmod(scratch_file, 0600);
}

static int try_exec(void)
{
    char *argv[] = {(char[]){"true"}, NULL};
    return execv("/bin/true", argv);
}

static int try_fork(void)
{
    return fork();
}

static int try_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM, 0);
}

static int try_kill(void)
{
    return kill(parent, 0);
}

static int try_ptrace(void)
{
    return (int)ptrace(PTRACE_ATTACH, parent, NULL, NULL);
}

static int try_limit_parent(void)
{
    struct rlimit now;
    return prlimit(parent, RLIMIT_NOFILE, NULL, &now);
}

static int try_other_user(void)
{
    return setresuid((uid_t)-1, 1, (uid_t)-1);
}

static int try_other_group(void)
{
    return setresgid((gid_t)-1, 1, (gid_t)-1);
}

static int try_prctl(void)
{
    return prctl(PR_SET_NAME, "other", 0, 0, 0);
}

static int try_ioctl(void)
{
    int n;
    return ioctl(STDIN_FILENO, FIONREAD, &n);
}

static int try_map_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
           MAP_FAILED;
}

typedef struct attempt {
    const char *name;
    int (*call)(void);
} attempt;

static const attempt forbidden[] = {
    {"open for writing", try_open_for_writing},
    {"open for reading and writing", try_open_for_both},
    {"create", try_create},
    {"truncate", try_truncate},
    {"write", try_write},
    {"unlink", try_unlink},
    {"chmod", try_chmod},
    {"exec", try_exec},
    {"fork", try_fork},
    {"socket", try_socket},
    {"kill", try_kill},
    {"ptrace", try_ptrace},
    {"limit of another process", try_limit_parent},
    {"another user", try_other_user},
    {"another group", try_other_group},
    {"prctl", try_prctl},
    {"ioctl", try_ioctl},
    {"map code", try_map_code},
};

/* How a process ends that makes the call in the first stage or in the second. */
static int sandboxed(int (*call)(void), bool entered)
{
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        if (!sandbox_prepare(GIB) || (entered && !sandbox_enter()))
            _exit(99);
        _exit(call() == 1 ? 1 : 0);
    }
    int status = 0;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static void assert_killed(const attempt *a, bool entered)
{
    int status = sandboxed(a->call, entered);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS,
              "%s in stage %d: status %#x", a->name, entered ? 2 : 1, (unsigned)status);
}

static void assert_succeeds(const attempt *a, bool entered)
{
    int status = sandboxed(a->call, entered);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1, "%s in stage %d: status %#x",
              a->name, entered ? 2 : 1, (unsigned)status);
}

static void attempts_begin(void)
{
    if (LIBQCOW_SANITIZED)
        cr_skip_test("no filter under a sanitizer");
    scratch_file = support_path("file");
    support_save(scratch_file, "x", 1);
    parent = getpid();
}

Test(libqcow_sandbox, first_stage_opens_to_read)
{
    attempts_begin();
    assert_succeeds(&(attempt){"read", try_read}, false);
    assert_succeeds(&(attempt){"allocate", try_allocate}, false);
    assert_succeeds(&(attempt){"memory limit", try_allocate_too_much}, false);
    g_free(scratch_file);
}

Test(libqcow_sandbox, first_stage_kills_at_all_else)
{
    attempts_begin();
    for (unsigned i = 0; i < G_N_ELEMENTS(forbidden); i++)
        assert_killed(&forbidden[i], false);
    g_free(scratch_file);
}

Test(libqcow_sandbox, second_stage_opens_nothing)
{
    attempts_begin();
    assert_succeeds(&(attempt){"allocate", try_allocate}, true);
    assert_killed(&(attempt){"read", try_read}, true);
    for (unsigned i = 0; i < G_N_ELEMENTS(forbidden); i++)
        assert_killed(&forbidden[i], true);
    g_free(scratch_file);
}
