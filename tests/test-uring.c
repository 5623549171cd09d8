/*
 * Lists of reads and writes: exact results for each op, on a ring and without one.
 */
#include "formats/uring.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILE_SIZE (1u << 20)

static int open_pattern(const char *name, uint64_t tag)
{
    g_autofree char *path = support_path("%s", name);
    g_autofree uint8_t *bytes = g_malloc(FILE_SIZE);
    support_pattern(bytes, FILE_SIZE, 0, tag);
    support_save(path, bytes, FILE_SIZE);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    return fd;
}

static bool is_pattern(const void *buf, size_t length, uint64_t offset, uint64_t tag)
{
    g_autofree uint8_t *expected = g_malloc(length);
    support_pattern(expected, length, offset, tag);
    return !memcmp(buf, expected, length);
}

/* `count` reads of random places, a few of them past the end; returns how many are wrong. */
static unsigned read_at_random(int fd, unsigned count, uint64_t *seed, uint64_t tag)
{
    enum { LENGTH_MAX = 9000 };
    unsigned wrong = 0;
    io_list list = {0};
    g_autofree uint8_t *bytes = g_malloc((size_t)count * LENGTH_MAX);
    for (unsigned i = 0; i < count; i++)
        io_list_add(&list, (io_op){.fd = fd,
                                   .owner = i,
                                   .buf = bytes + (size_t)i * LENGTH_MAX,
                                   .length = 1 + support_random(seed) % LENGTH_MAX,
                                   .offset = support_random(seed) % FILE_SIZE,
                                   .result = 99});
    io_list_run(&list);
    for (size_t i = 0; i < list.count; i++) {
        const io_op *op = &list.ops[i];
        bool inside = op->length <= FILE_SIZE - op->offset;
        wrong += op->owner != i || op->result != (inside ? 0 : -EIO) ||
                 (inside && !is_pattern(op->buf, op->length, op->offset, tag));
    }
    io_list_free(&list);
    return wrong;
}

Test(uring, an_empty_list_is_no_work)
{
    io_list list = {0};
    io_list_run(&list);
    io_list_clear(&list);
    io_list_free(&list);
}

Test(uring, lists_of_any_length_read_what_is_there)
{
    uint64_t seed = support_seed();
    int fd = open_pattern("file", 5);
    static const unsigned counts[] = {1, 2, 63, 64, 65, 300};
    for (size_t i = 0; i < G_N_ELEMENTS(counts); i++)
        cr_assert_eq(read_at_random(fd, counts[i], &seed, 5), 0, "%u ops", counts[i]);
    close(fd);
}

Test(uring, each_op_has_its_own_result)
{
    int fd = open_pattern("file", 1);
    int read_only = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    char buf[6][512];
    memset(buf, 'x', sizeof buf);
    io_list list = {0};
    io_list_add(&list, (io_op){.fd = fd, .buf = buf[0], .length = 512, .offset = 3});
    io_list_add(&list, (io_op){.fd = -1, .buf = buf[1], .length = 512});
    io_list_add(&list,
                (io_op){.fd = fd, .buf = buf[2], .length = 512, .offset = FILE_SIZE});
    io_list_add(
        &list,
        (io_op){.fd = fd, .buf = buf[3], .length = 512, .offset = FILE_SIZE - 511});
    io_list_add(&list,
                (io_op){.fd = read_only, .write = true, .buf = buf[4], .length = 5});
    io_list_add(&list, (io_op){.fd = full, .write = true, .buf = buf[5], .length = 5});
    static const int expected[] = {0, -EBADF, -EIO, -EIO, -EBADF, -ENOSPC};
    for (int round = 0; round < 2; round++) {
        io_list_run(&list);
        for (size_t i = 0; i < G_N_ELEMENTS(expected); i++)
            cr_assert_eq(list.ops[i].result, expected[i], "op %zu: %d", i,
                         list.ops[i].result);
        cr_assert(is_pattern(buf[0], 512, 3, 1));
    }
    /* One by one they go without the ring: the same results. */
    for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
        io_list one = {.ops = &list.ops[i], .count = 1, .capacity = 1};
        io_list_run(&one);
        cr_assert_eq(list.ops[i].result, expected[i]);
    }
    io_list_free(&list);
    close(fd);
    close(read_only);
    close(full);
}

Test(uring, writes_arrive)
{
    int fd = open_pattern("file", 1);
    uint8_t bytes[100][700];
    io_list list = {0};
    for (unsigned i = 0; i < 100; i++) {
        support_pattern(bytes[i], 700, i * 5000, 2);
        io_list_add(&list, (io_op){.fd = fd,
                                   .write = true,
                                   .buf = bytes[i],
                                   .length = 700,
                                   .offset = i * 5000});
    }
    io_list_run(&list);
    for (unsigned i = 0; i < 100; i++) {
        uint8_t got[701];
        cr_assert_eq(list.ops[i].result, 0);
        cr_assert_eq(pread(fd, got, 701, i * 5000), 701);
        cr_assert(is_pattern(got, 700, i * 5000, 2));
        cr_assert(is_pattern(got + 700, 1, i * 5000 + 700, 1));
    }
    io_list_free(&list);
    close(fd);
}

Test(uring, a_cleared_list_keeps_its_memory)
{
    io_list list = {0};
    for (int i = 0; i < 40; i++)
        io_list_add(&list, (io_op){.fd = i});
    const io_op *ops = list.ops;
    size_t capacity = list.capacity;
    io_list_clear(&list);
    cr_assert_eq(list.count, 0);
    for (int i = 0; i < 40; i++)
        io_list_add(&list, (io_op){.fd = i});
    cr_assert_eq(list.ops, ops);
    cr_assert_eq(list.capacity, capacity);
    io_list_free(&list);
}

static int shared_fd;

static void *reader(void *arg)
{
    uint64_t seed = *(uint64_t *)arg;
    uintptr_t wrong = 0;
    for (int i = 0; i < 20; i++)
        wrong += read_at_random(shared_fd, 70, &seed, 9);
    return (void *)wrong;
}

Test(uring, every_thread_has_its_own_ring)
{
    uint64_t seed = support_seed(), seeds[6];
    pthread_t threads[6];
    shared_fd = open_pattern("file", 9);
    for (int i = 0; i < 6; i++) {
        seeds[i] = support_random(&seed);
        cr_assert_eq(pthread_create(&threads[i], NULL, reader, &seeds[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        cr_assert_eq(wrong, NULL);
    }
    close(shared_fd);
}

Test(uring, a_child_does_not_use_its_parents_ring)
{
    uint64_t seed = support_seed();
    int fd = open_pattern("file", 4);
    cr_assert_eq(read_at_random(fd, 70, &seed, 4), 0);
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        cr_assert_geq(child, 0);
        if (child == 0)
            _exit(read_at_random(fd, 70, &seed, 4) ? 1 : 0);
        cr_assert_eq(read_at_random(fd, 70, &seed, 4), 0);
        int status;
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_assert_eq(status, 0);
        cr_assert_eq(read_at_random(fd, 70, &seed, 4), 0);
    }
    close(fd);
}

/* One op is done by the thread itself, several by the ring. */
Test(uring, flushes_say_whether_they_worked)
{
    int fd = open_pattern("flush", 1), pipes[2];
    cr_assert_eq(pipe(pipes), 0);
    for (unsigned count = 1; count <= 3; count++) {
        io_list list = {0};
        for (unsigned i = 0; i < count; i++)
            io_list_add(&list, (io_op){.fd = i == 1 ? pipes[1] : fd, .flush = true});
        io_list_run(&list);
        for (unsigned i = 0; i < count; i++)
            cr_assert_eq(list.ops[i].result, i == 1 ? -EINVAL : 0);
        io_list_free(&list);
    }
    io_list bad = {0};
    io_list_add(&bad, (io_op){.fd = pipes[1], .flush = true});
    io_list_run(&bad);
    cr_assert_eq(bad.ops[0].result, -EINVAL);
    io_list_free(&bad);
    close(fd);
    close(pipes[0]);
    close(pipes[1]);
}
