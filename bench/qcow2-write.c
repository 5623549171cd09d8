/*
 * qcow2-write.c: what `qemu-img bench -w` does, done by our driver in this process: COUNT
 * writes of SIZE bytes into an image, STEP bytes after one another and on from the start at
 * its end, taken in turn by THREADS threads; after every EVERY writes (0: never) the thread
 * that did the last of them flushes.
 *
 * Prints the microseconds that the writes took. Closing the image, which puts all of it on
 * stable storage, follows: whoever wants that time too measures the process.
 */
#include "bench/turns.h"
#include "formats/qcow2.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct work {
    image *im;
    uint64_t size, step;
    uint8_t *buf;
} work;

static image *open_image(const char *path, GError **error)
{
    qcow2_header header;
    qcow2_check check;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (!qcow2_header_read(fd, path, &header, error))
        return NULL;
    image *im = NULL;
    if (qcow2_check_tables(fd, 0, &header, path, &budget, &check, error))
        im = qcow2_open_writable(fd, -1, &header, path, error);
    qcow2_header_clear(&header);
    if (im && image_begin_writing(im, error))
        return im;
    image_close(im);
    return NULL;
}

static int write_once(void *user, uint64_t i)
{
    work *w = user;
    return image_write(w->im, w->buf, i * w->step % w->im->size, w->size);
}

static int flush_once(void *user)
{
    return image_flush(((work *)user)->im);
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: qcow2-write IMAGE COUNT SIZE STEP EVERY THREADS\n");
        return 64;
    }
    g_autoptr(GError) error = NULL;
    work w = {.size = strtoull(argv[3], NULL, 10), .step = strtoull(argv[4], NULL, 10)};
    turns t = {.step = write_once,
               .flush = flush_once,
               .user = &w,
               .count = strtoull(argv[2], NULL, 10),
               .every = strtoull(argv[5], NULL, 10)};
    unsigned n_threads =
        (unsigned)CLAMP(strtoul(argv[6], NULL, 10), 1, TURNS_THREADS_MAX);
    w.im = open_image(argv[1], &error);
    if (!w.im) {
        fprintf(stderr, "qcow2-write: %s\n", error->message);
        return 1;
    }
    w.buf = g_malloc(w.size);
    memset(w.buf, 0x5a, w.size);
    int64_t start = g_get_monotonic_time();
    int result = turns_run(&t, n_threads);
    printf("%" PRId64 "\n", g_get_monotonic_time() - start);
    image_close(w.im);
    g_free(w.buf);
    if (result < 0)
        fprintf(stderr, "qcow2-write: %s\n", g_strerror(-result));
    return result < 0;
}
