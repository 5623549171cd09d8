/*
 * The native qcow2 decoder against qemu-img: images of many variants with random content
 * are read byte for byte like `qemu-img convert -O raw` reads them; images with damaged
 * metadata are refused or fail, and nothing worse.
 */
#include "tests/qcow2-open.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * KIB)

/* What an image of a variant allows beyond plain writes. */
enum {
    COMPRESS = 1,
    SNAPSHOT = 2,
    RESIZE = 4, /* not of version 2 with snapshots */
    ALL = COMPRESS | SNAPSHOT | RESIZE,
};

typedef struct variant {
    const char *options;
    uint64_t size; /* about; a random number of sectors is added */
    uint32_t cluster_size;
    unsigned allows;
} variant;

static const variant variants[] = {
    {"cluster_size=512", 500 * KIB, 512, ALL},
    {"cluster_size=512,compat=0.10", 300 * KIB, 512, COMPRESS | SNAPSHOT},
    {"cluster_size=1k,refcount_bits=1", 600 * KIB, KIB, COMPRESS | RESIZE},
    {"cluster_size=2k,refcount_bits=2", 700 * KIB, 2 * KIB, COMPRESS | RESIZE},
    {"cluster_size=4k,refcount_bits=4", 2 * MIB, 4 * KIB, COMPRESS | RESIZE},
    {"cluster_size=4k,compression_type=zstd", 2 * MIB, 4 * KIB, ALL},
    {"cluster_size=8k,preallocation=metadata", 2 * MIB, 8 * KIB, SNAPSHOT | RESIZE},
    {"cluster_size=16k,extended_l2=on", 3 * MIB, 16 * KIB, ALL},
    {"cluster_size=16k,extended_l2=on,preallocation=metadata", 2 * MIB, 16 * KIB,
     SNAPSHOT | RESIZE},
    {"cluster_size=32k,refcount_bits=64,preallocation=falloc", 3 * MIB, 32 * KIB,
     SNAPSHOT | RESIZE},
    {"compat=0.10", 5 * MIB, 64 * KIB, COMPRESS | SNAPSHOT},
    {"lazy_refcounts=on", 5 * MIB, 64 * KIB, ALL},
    {"compression_type=zstd,extended_l2=on,refcount_bits=8", 4 * MIB, 64 * KIB, ALL},
    {"preallocation=full,refcount_bits=32", 2 * MIB, 64 * KIB, SNAPSHOT | RESIZE},
    {"data_file=%s.data", 3 * MIB, 64 * KIB, RESIZE},
    {"data_file=%s.data,data_file_raw=on", 3 * MIB, 64 * KIB, RESIZE},
    {"data_file=%s.data,extended_l2=on,cluster_size=16k", 2 * MIB, 16 * KIB, RESIZE},
    {"data_file=%s.data,preallocation=metadata,cluster_size=4k", MIB, 4 * KIB, RESIZE},
    {"cluster_size=256k,preallocation=metadata", 4 * MIB, 256 * KIB, SNAPSHOT | RESIZE},
    {"cluster_size=1M,extended_l2=on,compression_type=zstd", 6 * MIB, MIB, ALL},
    {"cluster_size=2M", 9 * MIB, 2 * MIB, ALL},
};

/* Appends one random write, zeroing or discard. */
static void random_command(GString *commands, uint64_t *seed, const variant *v,
                           uint64_t size)
{
    static const char *const verbs[] = {"write -s text", "write -s text", "write -P 17",
                                        "write -z",      "write -zu",     "discard"};
    uint64_t offset = support_random(seed) % size;
    uint64_t length = 1 + support_random(seed) % (2 * v->cluster_size + 5000);
    g_string_append_printf(commands, " -c '%s %" PRIu64 " %" PRIu64 "'",
                           verbs[support_random(seed) % G_N_ELEMENTS(verbs)], offset,
                           MIN(length, size - offset));
}

/* Compressed writes to some clusters. Only for a new image: QEMU refuses them where a
 * cluster is there already, and 7.2 damages images by some that it does not refuse. */
static void compressed_commands(GString *commands, uint64_t *seed, const variant *v,
                                uint64_t size)
{
    static const char *const verbs[] = {"write -c -P 3", "write -c -s text"};
    uint64_t offset = 0;
    for (unsigned i = 0; i < 10 && offset < size; i++) {
        uint64_t length = MIN(v->cluster_size, size - offset);
        g_string_append_printf(commands, " -c '%s %" PRIu64 " %" PRIu64 "'",
                               verbs[support_random(seed) % 2], offset, length);
        offset += v->cluster_size * (1 + support_random(seed) % 3);
    }
}

static void run_qemu_io(const char *name, const char *commands)
{
    support_run("qemu-io -f qcow2 %s %s >%s.log 2>&1 || { cat %s.log >&2; false; }",
                commands, name, name, name);
}

static void random_writes(const char *name, uint64_t *seed, const variant *v,
                          uint64_t size, unsigned count)
{
    g_autoptr(GString) commands = g_string_new(NULL);
    for (unsigned i = 0; i < count; i++)
        random_command(commands, seed, v, size);
    run_qemu_io(name, commands->str);
}

/* A file that compresses, but not to nothing, for `write -s`. */
static void make_text(uint64_t *seed)
{
    g_autoptr(GString) text = g_string_new(NULL);
    while (text->len < 3 * MIB) {
        uint64_t word = support_random(seed);
        g_string_append_printf(text, "%016" G_GINT64_MODIFIER "x ", word & 0xffffff);
    }
    g_autofree char *path = support_path("text");
    support_save(path, text->str, text->len);
}

static void assert_reads(image *im, const uint8_t *expected, uint64_t *seed,
                         const char *what)
{
    g_autofree uint8_t *buf = g_malloc(im->size + 1);
    memset(buf, 0xa5, im->size + 1);
    cr_assert_eq(image_read(im, buf, 0, im->size), 0, "%s", what);
    cr_assert_eq(memcmp(buf, expected, im->size), 0, "%s: the whole differs", what);
    for (unsigned i = 0; i < 200; i++) {
        uint64_t offset = support_random(seed) % im->size;
        size_t length = 1 + support_random(seed) % MIN(im->size - offset, 200000);
        buf[length] = 0xa5;
        cr_assert_eq(image_read(im, buf, offset, length), 0);
        cr_assert_eq(memcmp(buf, expected + offset, length), 0,
                     "%s: %zu bytes at %" PRIu64 " differ", what, length, offset);
        cr_assert_eq(buf[length], 0xa5);
    }
}

/* Reads by the map alone, as the callers do that have their own way to read files. */
static void assert_map(image *im, const uint8_t *expected, const char *what)
{
    g_autofree uint8_t *buf = g_malloc(im->size);
    for (uint64_t at = 0; at < im->size;) {
        image_extent extent;
        cr_assert_eq(image_map(im, at, im->size - at, &extent), 0);
        cr_assert_gt(extent.length, 0);
        cr_assert_leq(extent.length, im->size - at);
        if (extent.kind == IMAGE_EXTENT_DATA)
            file_read_full(extent.fd, buf, extent.length, extent.host_offset);
        else if (extent.kind == IMAGE_EXTENT_COMPRESSED)
            image_read(im, buf, at, extent.length);
        else
            memset(buf, 0, extent.length);
        cr_assert_eq(memcmp(buf, expected + at, extent.length), 0,
                     "%s: extent at %" PRIu64, what, at);
        at += extent.length;
    }
}

static void compare_with_qemu(const char *name, const char *what, uint64_t *seed)
{
    g_autoptr(GError) error = NULL;
    size_t length = 0;
    g_autofree char *path = support_path("%s", name);
    g_autofree char *raw = support_path("%s.raw", name);
    support_run("qemu-img convert -f qcow2 -O raw %s %s.raw", name, name);
    g_autofree uint8_t *expected = support_load(raw, &length);
    image *im = qcow2_open_with(qcow2_open, path, &error);
    cr_assert_not_null(im, "%s: %s", what, error ? error->message : "");
    cr_assert_eq(im->size, length, "%s: size", what);
    assert_reads(im, expected, seed, what);
    assert_map(im, expected, what);
    image_close(im);
    /* A size of an odd number of bytes: the same bytes, fewer of them. */
    uint64_t odd = length - 1 - support_random(seed) % 400;
    uint64_t field = GUINT64_TO_BE(odd);
    support_poke(path, 24, &field, sizeof field);
    im = qcow2_open_with(qcow2_open, path, &error);
    cr_assert_not_null(im, "%s: %s", what, error ? error->message : "");
    cr_assert_eq(im->size, odd);
    assert_reads(im, expected, seed, what);
    image_close(im);
}

static uint64_t create(const variant *v, const char *name, uint64_t *seed)
{
    uint64_t size = v->size + support_random(seed) % 300 * 512;
    g_autoptr(GString) options = g_string_new(v->options);
    g_string_replace(options, "%s", name, 0);
    support_run("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options->str, name,
                size);
    return size;
}

Test(qcow2_read, reads_as_qemu_img_does)
{
    uint64_t seed = support_seed();
    make_text(&seed);
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++) {
        const variant *v = &variants[i];
        g_autofree char *name = g_strdup_printf("v%zu.qcow2", i);
        uint64_t size = create(v, name, &seed);
        if (v->allows & COMPRESS) {
            g_autoptr(GString) commands = g_string_new(NULL);
            compressed_commands(commands, &seed, v, size);
            run_qemu_io(name, commands->str);
        }
        random_writes(name, &seed, v, size, 15);
        if (v->allows & SNAPSHOT) {
            support_run("qemu-img snapshot -c one %s", name);
            random_writes(name, &seed, v, size, 10);
        }
        if ((v->allows & RESIZE) && support_random(&seed) % 2) {
            size += support_random(&seed) % 1000 * 512;
            support_run("qemu-img resize -q -f qcow2 %s %" PRIu64, name, size);
            random_writes(name, &seed, v, size, 6);
        }
        compare_with_qemu(name, v->options, &seed);
    }
}

Test(qcow2_read, reads_what_convert_compressed)
{
    static const char *const options[] = {"cluster_size=512",
                                          "cluster_size=4k,compression_type=zstd",
                                          "compat=0.10",
                                          "compression_type=zstd",
                                          "extended_l2=on",
                                          "cluster_size=2M",
                                          "cluster_size=2M,compression_type=zstd"};
    uint64_t seed = support_seed();
    make_text(&seed);
    support_run("qemu-img create -q -f raw source 2900k");
    support_run("dd if=text of=source bs=64k seek=3 count=20 conv=notrunc status=none");
    support_run("dd if=/dev/urandom of=source bs=50000 seek=40 count=4 conv=notrunc "
                "status=none");
    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        support_run("qemu-img convert -c -f raw -O qcow2 -o %s source c%zu.qcow2",
                    options[i], i);
        g_autofree char *name = g_strdup_printf("c%zu.qcow2", i);
        compare_with_qemu(name, options[i], &seed);
    }
}

typedef struct reader {
    image *im;
    const uint8_t *expected;
    uint64_t seed;
    unsigned failures;
} reader;

static void *read_randomly(void *data)
{
    reader *r = data;
    g_autofree uint8_t *buf = g_malloc(70000);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t offset = support_random(&r->seed) % r->im->size;
        size_t length = 1 + support_random(&r->seed) % MIN(r->im->size - offset, 70000);
        if (image_read(r->im, buf, offset, length) != 0 ||
            memcmp(buf, r->expected + offset, length) != 0)
            r->failures++;
    }
    return NULL;
}

/* More compressed clusters than their cache holds. */
Test(qcow2_read, many_threads_read_alike)
{
    uint64_t seed = support_seed();
    size_t length = 0;
    reader readers[4];
    pthread_t threads[4];
    make_text(&seed);
    support_run(
        "dd if=/dev/zero of=text bs=100k seek=5 count=3 conv=notrunc status=none");
    support_run("qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k text t.qcow2");
    support_run("qemu-io -f qcow2 -c 'write -P 7 100k 900k' -c 'write -z 300k 100k' "
                "t.qcow2 >/dev/null");
    support_run("qemu-img convert -f qcow2 -O raw t.qcow2 t.raw");
    g_autofree char *path = support_path("t.qcow2");
    g_autofree char *raw = support_path("t.raw");
    g_autofree uint8_t *expected = support_load(raw, &length);
    image *im = qcow2_open_with(qcow2_open, path, NULL);
    cr_assert_not_null(im);
    for (unsigned i = 0; i < 4; i++) {
        readers[i] = (reader){im, expected, support_random(&seed), 0};
        pthread_create(&threads[i], NULL, read_randomly, &readers[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        cr_assert_eq(readers[i].failures, 0);
    }
    image_close(im);
}

/* Opens a damaged image and, if that works, maps and reads all of it (or 8 MiB). */
static void try_image(const char *path)
{
    g_autoptr(GError) error = NULL;
    image *im = qcow2_open_with(qcow2_open, path, &error);
    if (!im) {
        cr_assert_not_null(error);
        cr_assert_null(strchr(error->message, '\n'));
        return;
    }
    g_autofree uint8_t *buf = g_malloc(64 * KIB);
    uint64_t end = MIN(im->size, 8 * MIB);
    for (uint64_t at = 0; at < end; at += 64 * KIB)
        image_read(im, buf, at, MIN(64 * KIB, end - at));
    for (uint64_t at = 0; at < end;) {
        image_extent extent;
        if (image_map(im, at, im->size - at, &extent) == 0)
            at += extent.length;
        else
            at += 512;
    }
    image_close(im);
}

/* Where the metadata of these small images is: everywhere in 512-byte clusters; in
 * larger ones in the header, the tables' clusters and at the starts of clusters. */
static size_t damaged_offset(uint64_t *seed, size_t length, uint32_t cluster_size)
{
    switch (support_random(seed) % 3) {
    case 0:
        return support_random(seed) % MIN(length, 160);
    case 1:
        return support_random(seed) % length;
    default: {
        size_t cluster =
            support_random(seed) % (length / cluster_size + 1) * cluster_size;
        return MIN(cluster + support_random(seed) % 64, length - 1);
    }
    }
}

static void mutate(const char *name, uint32_t cluster_size, unsigned rounds,
                   uint64_t *seed)
{
    size_t length = 0;
    g_autofree char *path = support_path("%s", name);
    g_autofree uint8_t *original = support_load(path, &length);
    for (unsigned round = 0; round < rounds; round++) {
        size_t at[4];
        unsigned count = 1 + support_random(seed) % 4;
        for (unsigned i = 0; i < count; i++) {
            uint8_t byte =
                (uint8_t)(support_random(seed) % 4 ? support_random(seed) : 0xff);
            at[i] = damaged_offset(seed, length, cluster_size);
            if (support_random(seed) % 2)
                byte = original[at[i]] ^ (uint8_t)(1u << byte % 8);
            support_poke(path, at[i], &byte, 1);
        }
        try_image(path);
        for (unsigned i = 0; i < count; i++)
            support_poke(path, at[i], original + at[i], 1);
    }
}

Test(qcow2_read, O3_damaged_metadata_never_harms)
{
    static const struct {
        const char *options;
        uint32_t cluster_size;
    } rows[] = {{"cluster_size=512", 512},
                {"cluster_size=4k,compression_type=zstd", 4 * KIB},
                {"cluster_size=16k,extended_l2=on", 16 * KIB},
                {"cluster_size=4k,compat=0.10", 4 * KIB}};
    uint64_t seed = support_seed();
    make_text(&seed);
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *name = g_strdup_printf("m%zu.qcow2", i);
        support_run("qemu-img create -q -f qcow2 -o %s %s 300k", rows[i].options, name);
        support_run(
            "qemu-io -f qcow2 -c 'write -P 1 0 50k' -c 'write -c -s text 64k 48k' "
            "-c 'write -z 128k 16k' -c 'write -P 2 200k 3k' %s >/dev/null",
            name);
        support_run("qemu-img snapshot -c one %s", name);
        support_run("qemu-io -f qcow2 -c 'write -P 3 4k 5k' %s >/dev/null", name);
        mutate(name, rows[i].cluster_size, 400, &seed);
    }
}
