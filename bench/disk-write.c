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
#include "bench/turns.h"
#include "quorum/disk.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE 4096u

typedef struct work {
    disk *disk;
    uint64_t span, seed;
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

static int write_once(void *user, uint64_t i)
{
    work *w = user;
    uint64_t offset = scatter(w->seed + i) % (w->span / SIZE) * SIZE;
    return disk_write(w->disk, offset, SIZE, w->buf);
}

static int flush_once(void *user)
{
    return disk_flush(((work *)user)->disk);
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
    work w = {.span = strtoull(argv[3], NULL, 10), .seed = strtoull(argv[6], NULL, 10)};
    turns t = {.step = write_once,
               .flush = flush_once,
               .user = &w,
               .count = strtoull(argv[2], NULL, 10),
               .every = strtoull(argv[4], NULL, 10)};
    unsigned n_threads =
        (unsigned)CLAMP(strtoul(argv[5], NULL, 10), 1, TURNS_THREADS_MAX);
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
    int result = turns_run(&t, n_threads);
    printf("%" PRId64 "\n", g_get_monotonic_time() - start);
    int closed = disk_close(w.disk);
    result = result ? result : closed;
    if (result < 0)
        fprintf(stderr, "disk-write: %s\n", g_strerror(-result));
    return result < 0;
}
