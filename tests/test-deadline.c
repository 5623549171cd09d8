/*
 * R5: host files that do not answer, and what becomes of the calls that they owe.
 */
#include "formats/file.h"
#include "formats/uring.h"
#include "tests/hang-fs.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILE_SIZE (1u << 20)
/* For what hangs. In that time a busy machine must get to asking: what it did not begin to
 * ask is not abandoned. */
#define SHORT_MS 300
/* Longer than any machine takes that is not stopped. */
#define LONG_MS 20000

static void make_file(const char *path, uint64_t tag)
{
    g_autofree uint8_t *bytes = g_malloc(FILE_SIZE);
    support_pattern(bytes, FILE_SIZE, 0, tag);
    support_save(path, bytes, FILE_SIZE);
}

static int open_rw(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    return fd;
}

static int open_hanging(const char *name, uint64_t tag)
{
    g_autofree char *made = hang_made(name), *path = hang_path(name);
    make_file(made, tag);
    return open_rw(path);
}

static int open_local(const char *name, uint64_t tag)
{
    g_autofree char *path = support_path("%s", name);
    make_file(path, tag);
    return open_rw(path);
}

static bool is_pattern(const void *buf, size_t length, uint64_t offset, uint64_t tag)
{
    g_autofree uint8_t *expected = g_malloc(length);
    support_pattern(expected, length, offset, tag);
    return !memcmp(buf, expected, length);
}

static bool is_all(const uint8_t *buf, size_t length, uint8_t value)
{
    for (size_t i = 0; i < length; i++)
        if (buf[i] != value)
            return false;
    return true;
}

/* ---- Waiting for what was abandoned ------------------------------------------------------- */

typedef struct event {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned count;
} event;

static event returned = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
static event freed = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static void event_happen(void *data)
{
    event *e = data;
    pthread_mutex_lock(&e->lock);
    e->count++;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

static unsigned event_count(event *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned count = e->count;
    pthread_mutex_unlock(&e->lock);
    return count;
}

static void event_await(event *e, unsigned count)
{
    pthread_mutex_lock(&e->lock);
    while (e->count < count)
        pthread_cond_wait(&e->changed, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

/* All that was abandoned until now has returned. */
static void await_returns(void)
{
    unsigned before = event_count(&returned);
    io_free_later(&returned, event_happen);
    event_await(&returned, before + 1);
}

/* ---- Lists -------------------------------------------------------------------------------- */

static io_op read_op(int fd, void *buf, size_t length, uint64_t offset)
{
    return (io_op){
        .fd = fd, .buf = buf, .length = length, .offset = offset, .result = 99};
}

Test(deadline, R5_only_what_hangs_is_struck)
{
    hang_start();
    int hanging = open_hanging("h", 1), local = open_local("l", 2);
    uint8_t buf[4][4096];
    io_list list = {0};
    io_set_timeout(1000);
    cr_assert_eq(io_get_timeout(), 1000);
    hang_hold(HANG_READ, 8192, 0);
    io_list_add(&list, read_op(hanging, buf[0], 4096, 0));
    io_list_add(&list, read_op(hanging, buf[1], 4096, 8192));
    io_list_add(&list, read_op(local, buf[2], 4096, 4096));
    io_list_add(&list, read_op(local, buf[3], 4096, FILE_SIZE - 100));
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, 0);
    cr_assert(is_pattern(buf[0], 4096, 0, 1));
    cr_assert_eq(list.ops[1].result, -ETIMEDOUT);
    cr_assert_eq(list.ops[2].result, 0);
    cr_assert(is_pattern(buf[2], 4096, 4096, 2));
    cr_assert_eq(list.ops[3].result, -EIO);
    cr_assert_eq(io_list_error(&list), -ETIMEDOUT);
    cr_assert_eq(io_abandoned(hanging), 1);
    cr_assert_eq(io_abandoned(local), 0);
    cr_assert(io_thread_abandoned());
    cr_assert(!io_thread_abandoned());

    /* What would wait behind it does not, and reaches nobody. */
    unsigned seen = hang_seen(HANG_ALL);
    list.count = 1;
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, -ETIMEDOUT);
    cr_assert_eq(file_sync(hanging), -ETIMEDOUT);
    cr_assert_eq(file_read_full(local, buf[0], 10, 0), 0);
    cr_assert_eq(hang_seen(HANG_ALL), seen);
    cr_assert_eq(io_abandoned(hanging), 1);
    cr_assert(!io_thread_abandoned());

    hang_release(HANG_ANYWHERE);
    await_returns();
    cr_assert_eq(io_abandoned(hanging), 0);
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, 0);
    io_list_free(&list);
    file_close(hanging);
    close(local);
    hang_stop();
}

/* ... of which one waits for as long as it takes. */
typedef struct releaser {
    int fd;
    uint64_t offset;
} releaser;

static void *release_when_one_is_abandoned(void *data)
{
    const releaser *r = data;
    while (io_abandoned(r->fd) == 0)
        g_usleep(1000);
    hang_release(r->offset);
    return NULL;
}

Test(deadline, R5_each_op_has_its_own_time)
{
    hang_start();
    int impatient = open_hanging("a", 1), patient = open_hanging("b", 2);
    uint8_t buf[3][512];
    pthread_t thread;
    io_list list = {0};
    releaser r = {impatient, 512};
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    io_list_add(&list, read_op(impatient, buf[0], 512, 0));
    io_list_add(&list, read_op(patient, buf[1], 512, 512)); /* no time at all: for ever */
    io_list_add(&list, read_op(patient, buf[2], 512, 512));
    list.ops[0].timeout_ms = 4 * SHORT_MS;
    list.ops[2].timeout_ms = LONG_MS;
    cr_assert_eq(pthread_create(&thread, NULL, release_when_one_is_abandoned, &r), 0);
    io_list_run(&list);
    pthread_join(thread, NULL);
    cr_assert_eq(list.ops[0].result, -ETIMEDOUT);
    cr_assert_eq(list.ops[1].result, 0);
    cr_assert_eq(list.ops[2].result, 0);
    cr_assert(is_pattern(buf[1], 512, 512, 2) && is_pattern(buf[2], 512, 512, 2));
    hang_release(HANG_ANYWHERE);
    await_returns();
    io_list_free(&list);
    close(impatient);
    close(patient);
    hang_stop();
}

/* A hundred calls of one file that hangs take nothing from another one. */
Test(deadline, R5_a_file_that_hangs_holds_up_no_other)
{
    hang_start();
    enum { COUNT = 100 };
    int hanging = open_hanging("h", 1), other = open_hanging("o", 2);
    g_autofree uint8_t *bytes = g_malloc(COUNT * 512), *good = g_malloc(COUNT * 512);
    io_list list = {0};
    io_set_timeout(2000);
    hang_hold(HANG_READ, 512, 0);
    for (unsigned i = 0; i < COUNT; i++)
        io_list_add(&list, read_op(hanging, bytes + i * 512, 512, 512));
    for (unsigned i = 0; i < COUNT; i++)
        io_list_add(&list, read_op(other, good + i * 512, 512, 1024 + i * 512));
    io_list_run(&list);
    for (unsigned i = 0; i < COUNT; i++)
        cr_assert_eq(list.ops[i].result, -ETIMEDOUT);
    for (unsigned i = COUNT; i < 2 * COUNT; i++)
        cr_assert_eq(list.ops[i].result, 0);
    cr_assert(is_pattern(good, COUNT * 512, 1024, 2));
    /* What was not begun has not been abandoned either. */
    unsigned begun = io_abandoned(hanging);
    cr_assert(begun > 0 && begun < COUNT);
    hang_release(HANG_ANYWHERE);
    await_returns();
    cr_assert_eq(io_abandoned(hanging), 0);
    cr_assert_eq(hang_seen(HANG_READ), begun + COUNT);
    io_list_free(&list);
    close(hanging);
    close(other);
    hang_stop();
}

/* ---- Memory ------------------------------------------------------------------------------- */

Test(deadline, late_answers_do_not_reach_the_callers_memory)
{
    hang_start();
    int fd = open_hanging("h", 1);
    uint8_t *buf = g_malloc(8192);
    memset(buf, 0xaa, 8192);
    io_list list = {0};
    io_set_timeout(SHORT_MS);
    hang_hold(HANG_READ | HANG_WRITE, HANG_ANYWHERE, 0);
    io_list_add(&list, read_op(fd, buf, 4096, 0));
    io_list_add(
        &list,
        (io_op){
            .fd = fd, .write = true, .buf = buf + 4096, .length = 4096, .offset = 65536});
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, -ETIMEDOUT);
    cr_assert_eq(list.ops[1].result, -ETIMEDOUT);
    /* Ours again at once. */
    memset(buf + 4096, 0xbb, 4096);
    hang_await(2);
    hang_release(HANG_ANYWHERE);
    await_returns();
    cr_assert(is_all(buf, 4096, 0xaa));
    cr_assert(is_all(buf + 4096, 4096, 0xbb));
    g_free(buf);
    /* ... and what was written is what it was when it was to be written. */
    g_autofree uint8_t *written = g_malloc(4096);
    cr_assert_eq(file_read_exact(fd, written, 4096, 65536), 0);
    cr_assert(is_all(written, 4096, 0xaa));
    io_list_free(&list);
    close(fd);
    hang_stop();
}

/* The bytes of the memory that are freed are those of the file by then. */
static void free_lent(void *data)
{
    uint8_t *memory = data;
    cr_assert(is_pattern(memory, 4096, 4096, 1));
    g_free(memory);
    event_happen(&freed);
}

Test(deadline, lent_memory_is_freed_when_the_answer_has_come)
{
    hang_start();
    int fd = open_hanging("h", 1);
    uint8_t *memory = g_malloc0(4096);
    io_list list = {.lends = true};
    io_set_timeout(SHORT_MS);
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    io_list_add(&list, read_op(fd, memory, 4096, 4096));
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, -ETIMEDOUT);
    io_free_later(memory, free_lent);
    hang_await(1);
    cr_assert_eq(event_count(&freed), 0);
    hang_release(HANG_ANYWHERE);
    event_await(&freed, 1);
    cr_assert_eq(io_abandoned(fd), 0);
    io_list_free(&list);
    close(fd);
    hang_stop();
}

Test(deadline, what_is_freed_later_waits_for_all_before_it_and_none_after_it)
{
    hang_start();
    int first = open_hanging("a", 1), second = open_hanging("b", 2);
    char buf[512];
    /* Nothing is abandoned. */
    io_free_later(&freed, event_happen);
    cr_assert_eq(event_count(&freed), 1);

    io_set_timeout(SHORT_MS);
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    cr_assert_eq(file_read_exact(first, buf, 512, 1024), -ETIMEDOUT);
    io_free_later(&freed, event_happen);
    cr_assert_eq(file_read_exact(second, buf, 512, 2048), -ETIMEDOUT);
    io_free_later(&freed, event_happen);
    hang_await(2);
    cr_assert_eq(event_count(&freed), 1);
    hang_release(1024);
    event_await(&freed, 2);
    cr_assert_eq(io_abandoned(first), 0);
    cr_assert_eq(io_abandoned(second), 1);
    hang_release(HANG_ANYWHERE);
    event_await(&freed, 3);
    close(first);
    close(second);
    hang_stop();
}

/* ---- Calls of file.h ------------------------------------------------------------------------ */

static int call_number(unsigned i, int fd, void *bytes)
{
    file_stamp stamp = {0};
    struct stat st;
    uint64_t number;
    switch (i) {
    case 0:
        return file_read_full(fd, bytes, 4096, 512);
    case 1:
        return file_read_exact(fd, bytes, 4096, 512);
    case 2:
        return file_write_full(fd, bytes, 4096, 512);
    case 3:
        return file_sync(fd);
    case 4:
        return file_punch(fd, 4096, 65536);
    case 5:
        return file_zero(fd, 4096, 512);
    case 6:
        return file_zero(fd, 0, FILE_SIZE);
    case 7:
        return file_resize(fd, FILE_SIZE / 2);
    case 8:
        return file_get_size(fd, &number, NULL);
    case 9:
        return file_seek(fd, 0, SEEK_DATA, &number);
    case 10:
        return file_seek(fd, 0, SEEK_END, &number);
    case 11:
        return file_get_stat(fd, &st);
    default: /* says so of what it cannot see */
        return file_stamp_changed(&stamp, fd) ? -ETIMEDOUT : 0;
    }
}

Test(deadline, R5_every_call_has_a_deadline)
{
    hang_start();
    enum { CALLS = 13 };
    int fds[CALLS];
    char bytes[4096] = "";
    for (unsigned i = 0; i < CALLS; i++) {
        g_autofree char *name = g_strdup_printf("f%u", i);
        fds[i] = open_hanging(name, i);
        cr_assert_eq(call_number(i == 12 ? 0 : i, fds[i], bytes), 0, "call %u", i);
    }
    io_set_timeout(SHORT_MS);
    hang_hold(HANG_ALL & ~HANG_CLOSE, HANG_ANYWHERE, 0);
    for (unsigned i = 0; i < CALLS; i++) {
        cr_assert_eq(call_number(i, fds[i], bytes), -ETIMEDOUT, "call %u", i);
        cr_assert_eq(io_abandoned(fds[i]), 1, "call %u", i);
    }
    hang_release(HANG_ANYWHERE);
    await_returns();
    io_set_timeout(LONG_MS);
    for (unsigned i = 0; i < CALLS; i++) {
        cr_assert_eq(io_abandoned(fds[i]), 0, "call %u", i);
        cr_assert_eq(call_number(i == 12 ? 0 : i, fds[i], bytes), 0, "call %u", i);
        file_close(fds[i]);
    }
    hang_stop();
}

/* Without a timeout the answers are the same, on the page cache and beside it. */
Test(deadline, answers_in_time_are_the_answers)
{
    int fd = open_local("l", 1), pipes[2];
    cr_assert_eq(pipe(pipes), 0);
    for (unsigned round = 0; round < 2; round++) {
        uint8_t bytes[6000];
        uint64_t size = 0;
        io_set_timeout(round ? LONG_MS : 0);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        cr_assert_eq(file_read_exact(fd, bytes, 6000, 77), 0);
        cr_assert(is_pattern(bytes, 6000, 77, 1));
        cr_assert_eq(file_read_exact(fd, bytes, 6000, FILE_SIZE - 5999), -EIO);
        cr_assert_eq(file_read_full(fd, bytes, 6000, FILE_SIZE - 10), 0);
        cr_assert(is_pattern(bytes, 10, FILE_SIZE - 10, 1));
        cr_assert(is_all(bytes + 10, 5990, 0));
        cr_assert_eq(file_read_exact(fd, bytes, 0, 0), 0);
        cr_assert_eq(file_read_exact(-1, bytes, 1, 0), -EBADF);
        cr_assert_eq(file_read_exact(pipes[0], bytes, 1, 0), -ESPIPE);
        support_pattern(bytes, 600, 5000, 2);
        cr_assert_eq(file_write_full(fd, bytes, 600, 5000), 0);
        memset(bytes, 0, 600);
        cr_assert_eq(pread(fd, bytes, 600, 5000), 600);
        cr_assert(is_pattern(bytes, 600, 5000, 2));
        cr_assert_eq(file_sync(pipes[1]), -EINVAL);
        cr_assert_eq(file_get_size(fd, &size, NULL), 0);
        cr_assert_eq(size, FILE_SIZE);
        cr_assert_eq(file_get_size(pipes[0], &size, NULL), -EINVAL);
        cr_assert_eq(file_seek(fd, FILE_SIZE, SEEK_DATA, &size), -ENXIO);
        support_pattern(bytes, 600, 5000, 1);
        cr_assert_eq(pwrite(fd, bytes, 600, 5000), 600);
    }
    close(fd);
    close(pipes[0]);
    close(pipes[1]);
}

/* ---- Closing, threads, processes -------------------------------------------------------------- */

Test(deadline, a_descriptor_keeps_its_number_while_something_may_still_use_it)
{
    hang_start();
    int fd = open_hanging("h", 1);
    char byte;
    io_set_timeout(SHORT_MS);
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    cr_assert_eq(file_read_exact(fd, &byte, 1, 0), -ETIMEDOUT);
    file_close(fd);
    cr_assert_geq(fcntl(fd, F_GETFD), 0);
    hang_release(HANG_ANYWHERE);
    while (fcntl(fd, F_GETFD) >= 0)
        g_usleep(1000);
    cr_assert_eq(errno, EBADF);
    hang_stop();
}

Test(deadline, R5_close_waits_no_longer)
{
    hang_start();
    int fd = open_hanging("h", 1);
    io_set_timeout(SHORT_MS);
    hang_hold(HANG_CLOSE, HANG_ANYWHERE, 0);
    file_close(fd);
    hang_await(1);
    cr_assert_eq(fcntl(fd, F_GETFD), -1);
    /* Whoever gets the number has nothing to do with it. */
    int other = open_local("l", 1);
    cr_assert_eq(other, fd);
    io_set_timeout(LONG_MS);
    cr_assert_eq(file_sync(other), 0);
    cr_assert_eq(io_abandoned(other), 0);
    hang_release(HANG_ANYWHERE);
    await_returns();
    close(other);
    hang_stop();
}

static void *abandon(void *data)
{
    char byte;
    io_set_timeout(SHORT_MS);
    return file_read_exact(*(int *)data, &byte, 1, 0) == -ETIMEDOUT ? data : NULL;
}

Test(deadline, a_thread_that_abandoned_something_can_be_joined)
{
    hang_start();
    int fd = open_hanging("h", 1);
    pthread_t thread;
    void *result = NULL;
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    cr_assert_eq(pthread_create(&thread, NULL, abandon, &fd), 0);
    cr_assert_eq(pthread_join(thread, &result), 0);
    cr_assert_eq(result, (void *)&fd);
    cr_assert_eq(io_abandoned(fd), 1);
    cr_assert(!io_thread_abandoned()); /* not this one */
    hang_release(HANG_ANYWHERE);
    await_returns();
    close(fd);
    hang_stop();
}

/* A timeout is the thread's, and a thread begins without. */
static void *get_timeout(void *unused)
{
    (void)unused;
    return GUINT_TO_POINTER(io_get_timeout() + 1);
}

Test(deadline, a_thread_begins_without_a_timeout)
{
    pthread_t thread;
    void *result = NULL;
    io_set_timeout(7);
    cr_assert_eq(pthread_create(&thread, NULL, get_timeout, NULL), 0);
    pthread_join(thread, &result);
    cr_assert_eq(GPOINTER_TO_UINT(result), 1);
    cr_assert_eq(io_get_timeout(), 7);
}

typedef struct worker {
    pthread_t thread;
    uint64_t seed;
    int hanging, local;
    unsigned wrong, late;
} worker;

static void check_op(worker *w, const io_op *op)
{
    bool good = op->result == 0 &&
                is_pattern(op->buf, op->length, op->offset, op->fd == w->local ? 2 : 1);
    w->late += op->result == -ETIMEDOUT;
    w->wrong += !good && (op->fd == w->local || op->result != -ETIMEDOUT);
}

static void *work(void *data)
{
    worker *w = data;
    io_list list = {.lends = true};
    io_set_timeout(20);
    for (unsigned round = 0; round < 30; round++) {
        io_list_clear(&list);
        for (unsigned i = 0; i < 6; i++) {
            size_t length = 512 + support_random(&w->seed) % 4096;
            uint64_t offset = support_random(&w->seed) % (FILE_SIZE - length);
            io_list_add(&list, read_op(i % 2 ? w->local : w->hanging, g_malloc(length),
                                       length, offset));
            list.ops[i].timeout_ms = i % 2 ? LONG_MS : 0;
        }
        io_list_run(&list);
        for (unsigned i = 0; i < 6; i++) {
            check_op(w, &list.ops[i]);
            if (list.ops[i].result == -ETIMEDOUT)
                io_free_later(list.ops[i].buf, g_free);
            else
                g_free(list.ops[i].buf);
        }
    }
    io_list_free(&list);
    return NULL;
}

Test(deadline, R5_many_threads)
{
    hang_start();
    enum { THREADS = 8 };
    uint64_t seed = support_seed();
    worker workers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        g_autofree char *name = g_strdup_printf("h%u", i / 2);
        workers[i] = (worker){.seed = support_random(&seed),
                              .hanging = open_hanging(name, 1),
                              .local = open_local(name, 2)};
    }
    for (unsigned i = 0; i < THREADS; i++)
        cr_assert_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    for (unsigned round = 0; round < 10; round++) {
        hang_hold(HANG_READ, HANG_ANYWHERE, (unsigned)(support_random(&seed) % 20));
        g_usleep(30000);
        hang_release(HANG_ANYWHERE);
    }
    unsigned late = 0;
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        cr_assert_eq(workers[i].wrong, 0);
        late += workers[i].late;
    }
    await_returns();
    for (unsigned i = 0; i < THREADS; i++) {
        cr_assert_eq(io_abandoned(workers[i].hanging), 0);
        close(workers[i].hanging);
        close(workers[i].local);
    }
    cr_assert(late > 0);
    hang_stop();
}

#if defined __SANITIZE_THREAD__
#define THREADS_AFTER_FORK 0
#elif defined __has_feature
#define THREADS_AFTER_FORK (!__has_feature(thread_sanitizer))
#else
#define THREADS_AFTER_FORK 1
#endif

Test(deadline, a_child_has_nothing_abandoned)
{
    hang_start();
    int fd = open_hanging("h", 1), local = open_local("l", 2);
    char byte;
    io_set_timeout(SHORT_MS);
    hang_hold(HANG_READ, HANG_ANYWHERE, 0);
    cr_assert_eq(file_read_exact(fd, &byte, 1, 0), -ETIMEDOUT);
    pid_t child = fork();
    if (child == 0) {
        io_set_timeout(LONG_MS);
        bool synced = !THREADS_AFTER_FORK || file_sync(local) == 0;
        _exit(io_abandoned(fd) == 0 && synced ? 0 : 1);
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    hang_release(HANG_ANYWHERE);
    await_returns();
    close(fd);
    close(local);
    hang_stop();
}
