/*
 * disk-write.c: random writes into one disk of several raw or qcow2 replicas, done in this
 * process, without FUSE: COUNT writes of 4 KiB, each at a multiple of 4 KiB within the first
 * SPAN bytes, the same for the same SEED, taken in turn by THREADS threads; after every EVERY
 * writes (0: never) the thread that did the last of them flushes.
 *
 * STATE is the directory for what is remembered across crashes, or "-": nothing is. That, and
 * nothing else, is what a mount has and this program can leave out.
 *
 * Prints the microseconds until the last write has returned. Opening and closing are not in
 * it; what the disk's thread does meanwhile is.
 */
#include "quorum/disk.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 16u
#define SIZE        4096u

typedef struct work {
    disk *disk;
    uint64_t count, span, every, seed;
    atomic_uint_fast64_t next;
    atomic_int result; /* the first error */
    uint8_t buf[SIZE];
} work;

/* splitmix64's output function: the i-th place does not depend on who takes it. */
static uint64_t scatter(uint64_t x)
{
    x = (x + 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static void *write_in_turn(void *user)
{
    work *w = user;
    for (uint64_t i; (i = atomic_fetch_add(&w->next, 1)) < w->count;) {
        uint64_t offset = scatter(w->seed + i) % (w->span / SIZE) * SIZE;
        int result = disk_write(w->disk, offset, SIZE, w->buf);
        if (result == 0 && w->every && (i + 1) % w->every == 0)
            result = disk_flush(w->disk);
        if (result < 0) {
            atomic_store(&w->result, result);
            break;
        }
    }
    return NULL;
}

static int write_all(work *w, unsigned n_threads)
{
    pthread_t threads[THREADS_MAX];
    for (unsigned i = 1; i < n_threads; i++) {
        if (pthread_create(&threads[i], NULL, write_in_turn, w) != 0)
            abort();
    }
    write_in_turn(w);
    for (unsigned i = 1; i < n_threads; i++)
        pthread_join(threads[i], NULL);
    return atomic_load(&w->result);
}

static disk *open_disk(const char *state, char *const *images, unsigned n, GError **error)
{
    disk_options *options = disk_options_new();
    options->name = g_strdup("disk");
    options->file = g_strdup("disk.img");
    options->state_dir = strcmp(state, "-") == 0 ? NULL : g_strdup(state);
    for (unsigned i = 0; i < n; i++) {
        replica_options *replica = replica_options_new();
        replica->name = g_strdup_printf("%u", i);
        replica->source = g_strdup(images[i]);
        replica->path = g_canonicalize_filename(images[i], NULL);
        g_ptr_array_add(options->replicas, replica);
    }
    disk *d = disk_open(options, NULL, error);
    disk_options_free(options);
    return d;
}

int main(int argc, char **argv)
{
    if (argc < 8) {
        fprintf(stderr,
                "usage: disk-write STATE|- COUNT SPAN EVERY THREADS SEED IMAGE...\n");
        return 64;
    }
    g_autoptr(GError) error = NULL;
    work w = {.count = strtoull(argv[2], NULL, 10),
              .span = strtoull(argv[3], NULL, 10),
              .every = strtoull(argv[4], NULL, 10),
              .seed = strtoull(argv[6], NULL, 10)};
    unsigned n_threads = (unsigned)CLAMP(strtoul(argv[5], NULL, 10), 1, THREADS_MAX);
    w.disk = open_disk(argv[1], argv + 7, (unsigned)argc - 7, &error);
    if (!w.disk || !disk_writable(w.disk) || w.span < SIZE ||
        w.span > disk_size(w.disk)) {
        fprintf(stderr, "disk-write: %s\n",
                error ? error->message : "not a writable disk of SPAN bytes");
        disk_close(w.disk);
        return 1;
    }
    memset(w.buf, 0x5a, sizeof w.buf);
    int64_t start = g_get_monotonic_time();
    int result = write_all(&w, n_threads);
    printf("%" PRId64 "\n", g_get_monotonic_time() - start);
    int closed = disk_close(w.disk);
    result = result ? result : closed;
    if (result < 0)
        fprintf(stderr, "disk-write: %s\n", g_strerror(-result));
    return result < 0;
}
