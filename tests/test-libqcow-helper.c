/*
 * The helper process as such: what happens when it dies, hangs, lies or grows, and that
 * nothing of it is left behind.
 */
#include "tests/libqcow-open.h"
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* Until the image is older than a clock tick: before that each read gets a new helper. */
static void image_make(void)
{
    source_make("source.raw");
    support_run("qemu-img convert -f raw -O qcow2 source.raw a.qcow2");
    int fd = scratch_open("a.qcow2");
    file_stamp stamp = {0};
    while (file_stamp_changed(&stamp, fd))
        g_usleep(1000);
    close(fd);
}

/* Gone and waited for: neither running nor a zombie. */
static void assert_gone(pid_t pid)
{
    cr_assert_lt(kill(pid, 0), 0, "process %d is still there", (int)pid);
    cr_assert_eq(errno, ESRCH);
}

static unsigned descriptors(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* ---- death ------------------------------------------------------------------------ */

Test(libqcow_helper, killed_between_reads)
{
    uint64_t seed = support_seed();
    image_make();
    image *im = run_open("a.qcow2");
    for (unsigned i = 0; i < 3; i++) {
        pid_t pid = libqcow_helper_pid(im);
        cr_assert_eq(kill(pid, SIGKILL), 0);
        assert_reads(im, "source.raw", &seed);
        cr_assert_neq(libqcow_helper_pid(im), pid);
        assert_gone(pid);
    }
    image_close(im);
}

typedef struct killer {
    image *im;
    atomic_uint reads; /* that have succeeded */
    atomic_bool stop;
    unsigned kills;
} killer;

/* Kills at any moment, but no two helpers for one request. */
static void *kill_again_and_again(void *data)
{
    killer *k = data;
    unsigned seen = 0;
    while (!atomic_load(&k->stop)) {
        unsigned reads = atomic_load(&k->reads);
        pid_t pid = libqcow_helper_pid(k->im);
        if (reads >= seen + 2 && pid > 0 && kill(pid, SIGKILL) == 0) {
            seen = reads;
            k->kills++;
        }
        usleep(300);
    }
    return NULL;
}

Test(libqcow_helper, killed_in_the_middle_of_reads)
{
    image_make();
    killer k = {.im = run_open("a.qcow2")};
    g_autofree char *path = support_path("source.raw");
    size_t length = 0;
    g_autofree uint8_t *want = support_load(path, &length);
    g_autofree uint8_t *got = g_malloc(length);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, kill_again_and_again, &k), 0);
    for (unsigned i = 0; i < 200; i++) {
        memset(got, 0, length);
        cr_assert_eq(image_read(k.im, got, i * 512, length - i * 512), 0);
        cr_assert_eq(memcmp(got, want + i * 512, length - i * 512), 0);
        atomic_fetch_add(&k.reads, 1);
    }
    atomic_store(&k.stop, true);
    pthread_join(thread, NULL);
    cr_assert_gt(k.kills, 0);
    image_close(k.im);
    cr_assert_lt(waitpid(-1, NULL, WNOHANG), 0);
}

Test(libqcow_helper, stopped_is_replaced_after_the_timeout)
{
    uint64_t seed = support_seed();
    image_make();
    libqcow_options options = {.timeout_ms = 300};
    image *im = run_open_with("a.qcow2", &options);
    pid_t pid = libqcow_helper_pid(im);
    cr_assert_eq(kill(pid, SIGSTOP), 0);
    assert_reads(im, "source.raw", &seed);
    cr_assert_neq(libqcow_helper_pid(im), pid);
    assert_gone(pid);
    image_close(im);
}

Test(libqcow_helper, goes_when_the_daemon_goes)
{
    image_make();
    int ends[2];
    cr_assert_eq(pipe(ends), 0);
    pid_t daemon = fork();
    if (daemon == 0) {
        image *im = run_try("a.qcow2", NULL, NULL);
        pid_t pid = im ? libqcow_helper_pid(im) : 0;
        _exit(write(ends[1], &pid, sizeof pid) != (ssize_t)sizeof pid);
    }
    close(ends[1]);
    pid_t pid = 0;
    cr_assert_eq(read(ends[0], &pid, sizeof pid), (ssize_t)sizeof pid);
    cr_assert_gt(pid, 0);
    int pidfd = pidfd_open(pid, 0);
    struct pollfd entry = {.fd = pidfd, .events = POLLIN};
    if (pidfd >= 0) /* else it has gone already */
        cr_assert_eq(poll(&entry, 1, 10000), 1, "the helper outlives its daemon");
    waitpid(daemon, NULL, 0);
}

/* ---- memory ------------------------------------------------------------------------ */

/* 300 clusters of 2 MiB do not fit: the helper asks to be replaced in time. */
Test(libqcow_helper, replaced_before_its_memory_ends)
{
    enum { MIB = 1 << 20, CLUSTERS = 300 };
    if (LIBQCOW_SANITIZED)
        cr_skip_test("a sanitizer's allocator does not tell its size");
    support_run("qemu-img create -q -f qcow2 -o cluster_size=2M,preallocation=metadata "
                "a.qcow2 600M && qemu-io -c 'write -P 1 300M 1M' -c 'write -P 2 599M 1M' "
                "a.qcow2 >/dev/null");
    image *im = run_open("a.qcow2");
    pid_t pid = libqcow_helper_pid(im);
    g_autofree uint8_t *got = g_malloc(MIB), *want = g_malloc(MIB);
    for (unsigned i = 0; i < 2 * CLUSTERS; i++) {
        memset(want, i == 300 ? 1 : i == 599 ? 2 : 0, MIB);
        cr_assert_eq(image_read(im, got, (uint64_t)i * MIB, MIB), 0);
        cr_assert_eq(memcmp(got, want, MIB), 0);
    }
    cr_assert_neq(libqcow_helper_pid(im), pid);
    assert_gone(pid);
    image_close(im);
}

/* ---- lies ------------------------------------------------------------------------- */

typedef enum lie {
    LIE_NOT_ONE_WORD,
    LIE_HANG,
    LIE_SHORT_REPLY,
    LIE_LONG_REPLY,
    LIE_SEQUENCE,
    LIE_STATUS,
    LIE_OPEN_STATUS,
    LIE_LENGTH,
    LIE_REPLACE,
    LIE_TWICE, /* a second reply: the next request must not take it for its own */
    LIE_DIE,   /* without an answer, in the middle of the read */
    LIE_COUNT,
} lie;

static lie told;
static bool lies_at_open;
static atomic_uint spawned;
static int (*real_spawn)(int socket, pid_t *ret_pid);

static void reply_with_lie(int socket, uint32_t sequence, uint32_t value)
{
    struct {
        wire_reply reply;
        uint32_t more;
    } out = {.reply = {.sequence = sequence, .value = value}};
    size_t length = sizeof out.reply;
    if (told == LIE_HANG)
        pause();
    if (told == LIE_NOT_ONE_WORD || told == LIE_DIE)
        _exit(0);
    if (told == LIE_SHORT_REPLY)
        length -= 4;
    if (told == LIE_LONG_REPLY)
        length += 4;
    if (told == LIE_SEQUENCE)
        out.reply.sequence++;
    if (told == LIE_STATUS)
        out.reply.status = WIRE_STATUS_COUNT;
    if (told == LIE_OPEN_STATUS)
        out.reply.status = lies_at_open ? WIRE_READ_FAILED : WIRE_KEY_MISSING;
    if (told == LIE_LENGTH)
        out.reply.value = value + 1;
    if (told == LIE_REPLACE)
        out.reply.replace = 2;
    send(socket, &out, length, MSG_NOSIGNAL);
    if (told == LIE_TWICE)
        send(socket, &out, length, MSG_NOSIGNAL);
}

static _Noreturn void liar_run(int socket)
{
    wire_open opening;
    if (recv(socket, &opening, sizeof opening, 0) != (ssize_t)sizeof opening)
        _exit(1);
    wire_reply welcome = {.sequence = opening.sequence};
    if (lies_at_open)
        reply_with_lie(socket, opening.sequence, 0);
    else
        send(socket, &welcome, sizeof welcome, MSG_NOSIGNAL);
    wire_read request;
    while (recv(socket, &request, sizeof request, 0) == (ssize_t)sizeof request)
        reply_with_lie(socket, request.sequence, request.length);
    _exit(0);
}

static int liar_spawn(int socket, pid_t *ret_pid)
{
    atomic_fetch_add(&spawned, 1);
    pid_t pid = fork();
    if (pid == 0) {
        int own = dup2(socket, 3);
        closefrom(own + 1); /* as exec would: the other end must close */
        liar_run(own);
    }
    *ret_pid = pid;
    return pid < 0 ? -errno : 0;
}

static void liars_in(void)
{
    if (!real_spawn)
        real_spawn = libqcow_spawn;
    libqcow_spawn = liar_spawn;
    atomic_store(&spawned, 0);
}

static void liars_out(void)
{
    libqcow_spawn = real_spawn;
}

/* A request that every helper answers with the lie: it fails, and nothing else. */
Test(libqcow_liar, read_fails_and_the_next_one_is_right)
{
    image_make();
    uint64_t seed = support_seed();
    libqcow_options options = {.timeout_ms = 2000};
    uint8_t got[4096];
    for (unsigned i = 0; i < 2 * LIE_COUNT; i++) {
        told = i / 2;
        if (told == LIE_HANG || told == LIE_TWICE)
            continue;
        liars_in();
        image *im = run_open_with("a.qcow2", &options);
        if (i % 2)
            image_read_ahead(im, got, 0, sizeof got);
        cr_assert_eq(image_read(im, got, 0, sizeof got), -EIO, "lie %d", (int)told);
        cr_assert_eq(atomic_load(&spawned), 2, "lie %d", (int)told);
        cr_assert_eq(libqcow_helper_pid(im), 0);
        cr_assert_lt(waitpid(-1, NULL, WNOHANG), 0, "a zombie");
        liars_out();
        assert_reads(im, "source.raw", &seed);
        image_close(im);
    }
}

Test(libqcow_liar, second_helper_may_save_the_request)
{
    image_make();
    uint64_t seed = support_seed();
    told = LIE_DIE;
    liars_in();
    image *im = run_open("a.qcow2");
    liars_out();
    assert_reads(im, "source.raw", &seed);
    image_close(im);
}

Test(libqcow_liar, late_reply_is_not_taken_for_the_next)
{
    image_make();
    uint8_t got[512];
    told = LIE_TWICE;
    liars_in();
    image *im = run_open("a.qcow2");
    cr_assert_eq(image_read(im, got, 0, sizeof got), 0);
    cr_assert_eq(atomic_load(&spawned), 1);
    cr_assert_eq(image_read(im, got, 512, sizeof got), 0);
    cr_assert_eq(atomic_load(&spawned), 2, "the second reply of the first was believed");
    liars_out();
    image_close(im);
}

Test(libqcow_liar, silence_is_a_timeout)
{
    image_make();
    uint8_t got[512];
    libqcow_options options = {.timeout_ms = 100};
    told = LIE_HANG;
    liars_in();
    image *im = run_open_with("a.qcow2", &options);
    image_read_ahead(im, got, 1024, sizeof got);
    cr_assert_eq(image_read(im, got, 0, sizeof got), -ETIMEDOUT);
    cr_assert_eq(atomic_load(&spawned), 2);
    cr_assert_lt(waitpid(-1, NULL, WNOHANG), 0, "a zombie");
    liars_out();
    image_close(im);
}

/* Whoever traces a process must wait for it first: until then it is to us as one that does
 * not die. */
static pid_t tracer_start(pid_t traced)
{
    int ends[2];
    char attached = 0;
    cr_assert_eq(pipe(ends), 0);
    pid_t tracer = fork();
    if (tracer == 0) {
        attached = ptrace(PTRACE_SEIZE, traced, NULL, NULL) == 0;
        if (write(ends[1], &attached, 1) == 1 && attached)
            pause();
        _exit(0);
    }
    close(ends[1]);
    cr_assert_eq(read(ends[0], &attached, 1), 1);
    close(ends[0]);
    if (!attached)
        cr_skip_test("no process may be traced here");
    return tracer;
}

Test(libqcow_liar, one_that_does_not_die_holds_up_nobody)
{
    image_make();
    uint64_t seed = support_seed();
    uint8_t got[512];
    libqcow_options options = {.timeout_ms = 100};
    told = LIE_HANG;
    liars_in();
    image *im = run_open_with("a.qcow2", &options);
    pid_t pid = libqcow_helper_pid(im), tracer = tracer_start(pid);
    cr_assert_eq(image_read(im, got, 0, sizeof got), -ETIMEDOUT);
    cr_assert_eq(kill(pid, 0), 0, "it was reaped: this test tests nothing");
    liars_out();
    assert_reads(im, "source.raw", &seed);
    image_close(im);
    kill(tracer, SIGKILL);
    waitpid(tracer, NULL, 0);
    gint64 deadline = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;
    while (kill(pid, 0) == 0 && g_get_monotonic_time() < deadline)
        sched_yield();
    assert_gone(pid);
}

Test(libqcow_liar, open_fails_in_one_line)
{
    image_make();
    libqcow_options options = {.timeout_ms = 100};
    lies_at_open = true;
    unsigned before = descriptors();
    liars_in();
    for (told = LIE_NOT_ONE_WORD; told <= LIE_STATUS; told++) {
        GError *error = NULL;
        cr_assert_null(run_try("a.qcow2", &options, &error));
        cr_assert(g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_IO));
        cr_assert(g_str_has_prefix(error->message, "a.qcow2: the decoder process "));
        cr_assert_lt(waitpid(-1, NULL, WNOHANG), 0, "a zombie");
        g_clear_error(&error);
    }
    liars_out();
    cr_assert_eq(descriptors(), before);
}

/* ---- hostile images, leaks, threads ----------------------------------------------- */

/* Past our own check on purpose: whatever libqcow does with it, the daemon goes on. */
Test(libqcow_helper, hostile_images_hurt_nobody)
{
    uint64_t seed = support_seed();
    source_make("source.raw");
    support_run(
        "head -c 500k source.raw > part.raw && qemu-img convert -f raw -O qcow2 -c "
        "-o cluster_size=4k part.raw good.qcow2 && "
        "qemu-img convert -f raw -O qcow part.raw good.qcow");
    libqcow_options options = {.timeout_ms = 300};
    g_autofree uint8_t *got = g_malloc(1 << 20);
    for (unsigned i = 0; i < 60; i++) {
        const char *good = i % 2 ? "good.qcow" : "good.qcow2";
        g_autofree char *path = support_path("%s", good), *bad = support_path("bad");
        size_t length = 0;
        g_autofree uint8_t *bytes = support_load(path, &length);
        for (unsigned n = 0; n < 40; n++) {
            size_t at = support_random(&seed) % (n % 4 ? length : 8192);
            bytes[at < 32 ? 32 : at] = (uint8_t)support_random(&seed);
        }
        support_save(bad, bytes, length);
        libqcow_layer layer = {.fd = scratch_open("bad"),
                               .filename = "bad",
                               .version = i % 2 ? 1 : 3,
                               .size = 500 << 10,
                               .cluster_size = 4096};
        GError *error = NULL;
        image *im = libqcow_open(&layer, 1, &options, &error);
        g_clear_error(&error);
        if (im)
            for (uint64_t at = 0; at < im->size; at += 64 << 10)
                image_read(im, got, at, MIN(im->size - at, 64u << 10));
        image_close(im);
    }
    cr_assert_lt(waitpid(-1, NULL, WNOHANG), 0, "a zombie");
}

Test(libqcow_helper, nothing_is_left_after_fifty_opens)
{
    image_make();
    uint8_t got[512];
    unsigned before = descriptors();
    for (unsigned i = 0; i < 50; i++) {
        image *im = run_open("a.qcow2");
        pid_t pid = libqcow_helper_pid(im);
        cr_assert_eq(image_read(im, got, 0, sizeof got), 0);
        image_close(im);
        assert_gone(pid);
    }
    cr_assert_eq(descriptors(), before);
}

typedef struct reader {
    image *im;
    const uint8_t *want;
    size_t length;
    uint64_t seed;
    bool right;
} reader;

static void *read_at_random(void *data)
{
    reader *r = data;
    g_autofree uint8_t *got = g_malloc(70000);
    r->right = true;
    for (unsigned i = 0; i < 300 && r->right; i++) {
        size_t part = support_random(&r->seed) % 70000;
        uint64_t offset = support_random(&r->seed) % (r->length - part);
        r->right = image_read(r->im, got, offset, part) == 0 &&
                   memcmp(got, r->want + offset, part) == 0;
    }
    return NULL;
}

Test(libqcow_helper, threads_take_turns)
{
    image_make();
    g_autofree char *path = support_path("source.raw");
    size_t length = 0;
    g_autofree uint8_t *want = support_load(path, &length);
    image *im = run_open("a.qcow2");
    pthread_t threads[4];
    reader readers[4];
    uint64_t seed = support_seed();
    for (unsigned i = 0; i < 4; i++) {
        readers[i] = (reader){im, want, length, seed + i, false};
        cr_assert_eq(pthread_create(&threads[i], NULL, read_at_random, &readers[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        cr_assert(readers[i].right);
    }
    image_close(im);
}
