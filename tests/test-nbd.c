/*
 * NBD images on real servers: what is written, zeroed, mapped and read there is what a file
 * would hold.
 */
#include "tests/nbd-server.h"

#define SIZE (4u << 20)

static void assert_read(image *im, const uint8_t *want, uint64_t offset, size_t length)
{
    g_autofree uint8_t *got = g_malloc(length);
    memset(got, 0xee, length);
    int error = image_read(im, got, offset, length);
    cr_assert_eq(error, 0, "%zu+%zu: %s", (size_t)offset, length, g_strerror(-error));
    cr_assert_eq(memcmp(got, want + offset, length), 0, "%zu+%zu", (size_t)offset,
                 length);
}

/* One random change, done to the image and to the model. */
static void change(image *im, uint8_t *model, uint64_t *seed)
{
    uint64_t offset = support_random(seed) % SIZE;
    size_t length = 1 + support_random(seed) % (support_random(seed) % 4 ? 9000 : 600000);
    length = MIN(length, SIZE - offset);
    switch (support_random(seed) % 4) {
    case 0:
        memset(model + offset, 0, length);
        cr_assert_eq(image_write_zeroes(im, offset, length), 0);
        break;
    case 1:
        memset(model + offset, 0, length);
        cr_assert_eq(image_discard(im, offset, length), 0);
        break;
    default:
        support_pattern(model + offset, length, offset, support_random(seed));
        cr_assert_eq(image_write(im, model + offset, offset, length), 0);
        break;
    }
}

static void assert_map(image *im, const uint8_t *model)
{
    for (uint64_t at = 0; at < SIZE;) {
        image_extent extent;
        cr_assert_eq(image_map(im, at, SIZE - at, &extent), 0);
        cr_assert_eq(extent.fd, -1);
        for (uint64_t i = at; extent.kind == IMAGE_EXTENT_ZERO && i < at + extent.length;
             i++)
            cr_assert_eq(model[i], 0, "byte %zu is mapped as zero", (size_t)i);
        at += extent.length;
    }
}

/* Random changes and reads against a model in memory. */
static void compare_with_model(nbd_server *server, unsigned rounds)
{
    uint64_t seed = support_seed();
    g_autofree uint8_t *model = g_malloc0(SIZE);
    image *im = nbd_server_open(server, 0);
    cr_assert(!im->read_only, "%s", nbd_read_only_reason(im));
    cr_assert_eq(im->size, SIZE);
    for (unsigned i = 0; i < rounds; i++) {
        change(im, model, &seed);
        uint64_t offset = support_random(&seed) % SIZE;
        size_t length = 1 + support_random(&seed) % 70000;
        assert_read(im, model, offset, MIN(SIZE - offset, length));
        if (i % 16 == 0)
            cr_assert_eq(image_flush(im), 0);
    }
    assert_read(im, model, 0, SIZE);
    assert_map(im, model);
    image_close(im);
    im = nbd_server_open(server, 0);
    assert_read(im, model, 0, SIZE);
    image_close(im);
    nbd_server_end(server);
}

Test(nbd, memory_is_what_was_written)
{
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory %u", SIZE);
    compare_with_model(&server, 200);
}

Test(nbd, blocks_of_a_sector_and_small_commands)
{
    nbd_server server = nbd_server_start(
        "nbdkit -f -U {} --filter=blocksize-policy memory %u blocksize-minimum=512 "
        "blocksize-preferred=4096 blocksize-maximum=65536 blocksize-error-policy=error",
        SIZE);
    compare_with_model(&server, 200);
}

Test(nbd, without_zeroes_and_extents)
{
    nbd_server server = nbd_server_start(
        "nbdkit -f -U {} --filter=nozero --filter=noextents memory %u", SIZE);
    compare_with_model(&server, 50);
}

Test(nbd, file_by_qemu_nbd)
{
    support_run("truncate -s %u f.raw", SIZE);
    g_autofree char *path = support_path("f.raw");
    nbd_server server = nbd_server_start(
        "qemu-nbd -t -f raw --discard=unmap --detect-zeroes=off -k {} %s", path);
    compare_with_model(&server, 150);
}

/* The space is given back, and what was there reads as zeroes. */
Test(nbd, discard_frees_space)
{
    support_run("head -c %u /dev/urandom >d.raw", SIZE);
    g_autofree char *path = support_path("d.raw");
    g_autofree uint8_t *zeroes = g_malloc0(SIZE);
    nbd_server server = nbd_server_start("nbdkit -f -U {} file %s", path);
    image *im = nbd_server_open(&server, 0);
    cr_assert_eq(image_discard(im, 65536, SIZE / 2), 0);
    memset(zeroes, 0, SIZE);
    g_autofree uint8_t *got = g_malloc(SIZE / 2);
    cr_assert_eq(image_read(im, got, 65536, SIZE / 2), 0);
    cr_assert_eq(memcmp(got, zeroes, SIZE / 2), 0);
    g_autofree char *blocks = support_output("stat -c %%b d.raw");
    cr_assert_leq(g_ascii_strtoull(blocks, NULL, 10) * 512, SIZE * 3 / 4);
    image_extent extent;
    cr_assert_eq(image_map(im, 65536, SIZE / 2, &extent), 0);
    cr_assert_eq(extent.kind, IMAGE_EXTENT_ZERO);
    cr_assert_eq(image_resize(im, 2 * SIZE), -ENOTSUP);
    image_close(im);
    nbd_server_end(&server);
}

/* A command has 32 bits for its length. */
Test(nbd, large_exports_and_long_ranges)
{
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory 4611686018427387904");
    image *im = nbd_server_open(&server, 0);
    uint8_t byte = 0x5a, got = 0;
    uint64_t last = IMAGE_SIZE_MAX - 1;
    cr_assert_eq(im->size, IMAGE_SIZE_MAX);
    cr_assert_eq(image_write(im, &byte, last, 1), 0);
    cr_assert_eq(image_read(im, &got, last, 1), 0);
    cr_assert_eq(got, 0x5a);
    cr_assert_eq(image_discard(im, last - (UINT64_C(9) << 30), UINT64_C(9) << 30), 0);
    cr_assert_eq(image_write_zeroes(im, last, 1), 0);
    cr_assert_eq(image_read(im, &got, last, 1), 0);
    cr_assert_eq(got, 0);
    image_extent extent;
    cr_assert_eq(image_map(im, 1, last, &extent), 0);
    cr_assert_gt(extent.length, 0);
    image_close(im);
    nbd_server_end(&server);
}

Test(nbd, read_only_with_a_reason)
{
    nbd_server server = nbd_server_start("nbdkit -f -r -U {} pattern 1M");
    image *im = nbd_server_open(&server, 0);
    cr_assert(im->read_only);
    cr_assert_str_eq(nbd_read_only_reason(im), "the server exports it read-only");
    uint8_t got[8];
    cr_assert_eq(image_read(im, got, 4096, 8), 0);
    cr_assert_eq(memcmp(got, "\0\0\0\0\0\0\x10\0", 8), 0);
    cr_assert_eq(image_write(im, got, 0, 8), -EROFS);
    image_close(im);
    nbd_server_end(&server);
}

/* Reads are widened; writes would have to be, over what others may be writing. */
Test(nbd, blocks_larger_than_a_sector_are_read_only)
{
    static const char blocks[] = "blocksize-minimum=4096 blocksize-preferred=4096 "
                                 "blocksize-maximum=1M blocksize-error-policy=error";
    nbd_server server = nbd_server_start(
        "nbdkit -f -U {} --filter=blocksize-policy memory 1M %s", blocks);
    image *im = nbd_server_open(&server, 0);
    cr_assert(im->read_only);
    cr_assert_not_null(strstr(nbd_read_only_reason(im), "larger than a sector"));
    image_close(im);
    nbd_server_end(&server);
    server = nbd_server_start("nbdkit -f -U {} --filter=blocksize-policy pattern 1M %s",
                              blocks);
    im = nbd_server_open(&server, 0);
    uint8_t got[16];
    cr_assert_eq(image_read(im, got, 1048576 - 8, 8), 0);
    cr_assert_eq(memcmp(got, "\0\0\0\0\0\x0f\xff\xf8", 8), 0);
    image_read_ahead(im, got, 4088, 16);
    cr_assert_eq(image_read(im, got, 4088, 16), 0);
    cr_assert_eq(memcmp(got, "\0\0\0\0\0\0\x0f\xf8\0\0\0\0\0\0\x10\0", 16), 0);
    image_close(im);
    nbd_server_end(&server);
}

/* ---- Reading ahead ------------------------------------------------------------------- */

Test(nbd, read_ahead_is_what_a_read_is)
{
    uint64_t seed = support_seed();
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory %u", SIZE);
    image *im = nbd_server_open(&server, 0);
    g_autofree uint8_t *model = g_malloc0(SIZE), *got = g_malloc(SIZE);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t offset = support_random(&seed) % (SIZE - 70000);
        size_t length = 1 + support_random(&seed) % 70000;
        image_read_ahead(im, got + offset, offset, length);
        if (support_random(&seed) % 4 == 0) /* nobody comes for it */
            continue;
        if (support_random(&seed) % 2)
            change(im, model, &seed);
        memset(got + offset, 0xee, length);
        cr_assert_eq(image_read(im, got + offset, offset, length), 0);
        cr_assert_eq(memcmp(got + offset, model + offset, length), 0, "in round %u", i);
    }
    image_close(im);
    nbd_server_end(&server);
}

/* ---- Several threads ------------------------------------------------------------------ */

typedef struct stripe {
    image *im;
    unsigned number;
    uint64_t seed;
} stripe;

#define STRIPES 8u

/* Writes and reads a part of the image that no other thread touches. */
static void *work(void *opaque)
{
    stripe *s = opaque;
    enum { PART = SIZE / STRIPES };
    uint64_t base = (uint64_t)s->number * PART;
    g_autofree uint8_t *model = g_malloc0(PART), *got = g_malloc(PART);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t offset = support_random(&s->seed) % PART;
        size_t length = 1 + support_random(&s->seed) % (PART - offset);
        support_pattern(model + offset, length, offset, s->seed);
        cr_assert_eq(image_write(s->im, model + offset, base + offset, length), 0);
        if (i % 8 == 0)
            cr_assert_eq(image_flush(s->im), 0);
        image_read_ahead(s->im, got, base, PART);
        cr_assert_eq(image_read(s->im, got, base, PART), 0);
        cr_assert_eq(memcmp(got, model, PART), 0);
    }
    return NULL;
}

static void work_in_threads(nbd_server *server)
{
    stripe stripes[STRIPES];
    GThread *threads[STRIPES];
    uint64_t seed = support_seed();
    image *im = nbd_server_open(server, 0);
    for (unsigned i = 0; i < STRIPES; i++) {
        stripes[i] = (stripe){im, i, support_random(&seed)};
        threads[i] = g_thread_new("stripe", work, &stripes[i]);
    }
    for (unsigned i = 0; i < STRIPES; i++)
        g_thread_join(threads[i]);
    image_close(im);
    nbd_server_end(server);
}

Test(nbd, threads_share_several_connections)
{
    nbd_server server = nbd_server_start("nbdkit -f -U {} memory %u", SIZE);
    work_in_threads(&server);
}

Test(nbd, threads_share_one_connection)
{
    nbd_server server = nbd_server_start(
        "nbdkit -f -U {} --filter=multi-conn memory %u multi-conn-mode=disable", SIZE);
    work_in_threads(&server);
}
