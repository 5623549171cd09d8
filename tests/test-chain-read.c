/*
 * Chains of all kinds, made by qemu-img, read byte for byte as qemu-img convert reads them,
 * with every decoder.
 */
#include "formats/chain-internal.h"
#include "tests/chain-support.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

enum { AUTO = 1, LIBQCOW = 2, NATIVE = 4, BOTH = 8, ALL = 15 };

static const char *const decoder_names[] = {"auto", "libqcow", "native", "both"};

typedef struct model {
    uint8_t *bytes;
    size_t size;
} model;

/* What qemu-img reads. */
static model load_model(const char *source)
{
    model m;
    g_autofree char *path = support_path("model");
    support_run("qemu-img convert -O raw %s model", source);
    m.bytes = support_load(path, &m.size);
    return m;
}

static void check_range(chain *c, const model *m, uint64_t offset, size_t length,
                        const char *what)
{
    static io_list list;
    g_autofree uint8_t *one = g_malloc(length), *two = g_malloc(length);
    memset(one, 0xee, length);
    memset(two, 0xdd, length);
    int error = chain_read(c, one, offset, length);
    cr_assert_eq(error, 0, "%s: read of %zu at %zu: %d", what, length, (size_t)offset,
                 error);
    cr_assert(!memcmp(one, m->bytes + offset, length), "%s: %zu at %zu differ", what,
              length, (size_t)offset);
    io_list_clear(&list);
    cr_assert_eq(chain_prepare_read(c, two, offset, length, 5, &list), 0);
    io_list_run(&list);
    for (size_t i = 0; i < list.count; i++) {
        cr_assert_eq(list.ops[i].result, 0);
        cr_assert_eq(list.ops[i].owner, 5);
    }
    cr_assert(!memcmp(one, two, length), "%s: prepared %zu at %zu differ", what, length,
              (size_t)offset);
}

static void check_reads(chain *c, const model *m, const char *what)
{
    uint64_t seed = support_seed();
    cr_assert_eq(chain_size(c), m->size, "%s", what);
    for (size_t at = 0; at < m->size; at += 1 << 20)
        check_range(c, m, at, MIN(1 << 20, m->size - at), what);
    for (int i = 0; i < 120; i++) {
        uint64_t offset = support_random(&seed) % m->size;
        uint64_t length = 1 + support_random(&seed) % (i % 3 ? 5000 : 300000);
        check_range(c, m, offset, MIN(length, m->size - offset), what);
    }
    uint8_t buf[2];
    cr_assert_eq(chain_read(c, buf, m->size - 1, 2), -EINVAL);
    cr_assert_eq(chain_read(c, buf, m->size, 0), 0);
    cr_assert_eq(chain_read(c, buf, UINT64_MAX, 2), -EINVAL);
}

static bool all_zero(const uint8_t *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && !memcmp(bytes, bytes + 1, length - 1));
}

/* The map covers the disk, its zeroes are zeroes and its host bytes are the disk's. */
static void check_map(chain *c, const model *m, const char *what)
{
    chain_extent extent;
    for (uint64_t at = 0; at < m->size; at += extent.length) {
        cr_assert_eq(chain_map(c, at, m->size - at, &extent), 0, "%s", what);
        cr_assert_gt(extent.length, 0);
        cr_assert_leq(extent.length, m->size - at);
        cr_assert_lt(extent.layer, chain_depth(c));
        const chain_layer *l = chain_get_layer(c, extent.layer);
        if (extent.kind == IMAGE_EXTENT_ZERO || extent.kind == IMAGE_EXTENT_UNALLOCATED) {
            cr_assert(all_zero(m->bytes + at, extent.length), "%s: %zu is not zero", what,
                      (size_t)at);
        } else if (extent.has_host) {
            g_autofree uint8_t *host = g_malloc(extent.length);
            int fd =
                open(l->data_file ? l->data_file : l->filename, O_RDONLY | O_CLOEXEC);
            cr_assert_eq(file_read_full(fd, host, extent.length, extent.host_offset), 0);
            close(fd);
            cr_assert(l->encrypted || !memcmp(host, m->bytes + at, extent.length),
                      "%s: host bytes of %zu", what, (size_t)at);
        }
    }
}

typedef struct read_case {
    const char *name;
    const char *format;
    unsigned decoders;        /* those that take it */
    const char *refusal;      /* in the message of those that do not */
    const char *auto_decoder; /* of the top layer under auto */
    const char *note;         /* in the top's note under auto; NULL: none */
    const char *source;       /* for qemu-img convert; NULL: "-f FORMAT NAME" */
    const char *password_file;
} read_case;

static void check_layers(const chain *c, const read_case *k, const char *what)
{
    const chain_layer *top = chain_get_layer(c, 0);
    cr_assert_str_eq(top->decoder, k->auto_decoder, "%s: %s", what, top->decoder);
    cr_assert_eq(top->note != NULL, k->note != NULL, "%s: %s", what, top->note);
    if (k->note)
        cr_assert_not_null(strstr(top->note, k->note), "%s: %s", what, top->note);
    cr_assert_str_eq(top->format, k->format);
    cr_assert_gt(top->file_size, 0);
}

static void check_case(const read_case *k)
{
    g_autofree char *by_format = g_strdup_printf("-f %s %s", k->format, k->name);
    g_autofree char *password =
        k->password_file ? support_path("%s", k->password_file) : NULL;
    model m = load_model(k->source ? k->source : by_format);
    for (unsigned d = 0; d < G_N_ELEMENTS(decoder_names); d++) {
        chain_options options = {
            .format = k->format, .decoder = (chain_decoder)d, .password_file = password};
        g_autofree char *what = g_strdup_printf("%s, %s", k->name, decoder_names[d]);
        if (!(k->decoders & 1u << d)) {
            must_refuse(k->name, &options, IMAGE_ERROR_UNSUPPORTED, PARTS(k->refusal));
            continue;
        }
        chain *c = must_open(k->name, &options);
        if (d == CHAIN_DECODER_AUTO)
            check_layers(c, k, what);
        check_reads(c, &m, what);
        check_map(c, &m, what);
        chain_close(c);
    }
    g_free(m.bytes);
}

/* 3 MiB and 512 bytes, with a hole and a run of zeroes. */
static void make_content(void)
{
    g_autofree char *path = support_path("content.raw");
    g_autofree uint8_t *bytes = g_malloc((3 << 20) + 512);
    support_pattern(bytes, (3 << 20) + 512, 0, 1);
    memset(bytes + 700000, 0, 300000);
    support_save(path, bytes, (3 << 20) + 512);
}

static void convert(const char *options, const char *name)
{
    support_run("qemu-img convert -q -f raw %s content.raw %s", options, name);
}

/* An overlay with some writes: `size` may be "". */
static void overlay(const char *options, const char *backing, const char *backing_format,
                    const char *name, const char *size, const char *writes)
{
    const char *format = g_str_has_suffix(name, ".qcow") ? "qcow" : "qcow2";
    support_run("qemu-img create -q -f %s %s -b %s -F %s %s %s && qemu-io -f %s %s %s",
                format, options, backing, backing_format, name, size, format, writes,
                name);
}

Test(chain_read, single_layers)
{
    make_content();
    convert("-O qcow2", "v3.qcow2");
    convert("-O qcow2 -o compat=0.10,cluster_size=4k", "v2.qcow2");
    convert("-O qcow2 -o cluster_size=512", "small.qcow2");
    convert("-c -O qcow2", "zlib.qcow2");
    convert("-c -O qcow2 -o compression_type=zstd", "zstd.qcow2");
    convert("-O qcow2 -o extended_l2=on", "ext.qcow2");
    convert("-O qcow", "one.qcow");
    /* qemu-img 7.2 writes a good image here and says that it failed. */
    support_run("qemu-img convert -q -f raw -c -O qcow content.raw onec.qcow; "
                "qemu-img compare -q -f raw -F qcow content.raw onec.qcow");
    convert("-O qcow2 -o cluster_size=16k", "zero.qcow2");
    support_run(
        "qemu-io -f qcow2 -c 'write -q -z 64k 128k' -c 'write -q -P 3 2M 1k' zero.qcow2 "
        "&& qemu-img convert -q -f raw -O qcow2 -o data_file=d.raw content.raw d.qcow2");
    static const read_case cases[] = {
        {"content.raw", "raw", ALL, NULL, "raw", NULL, NULL, NULL},
        {"v3.qcow2", "qcow2", ALL, NULL, "libqcow", NULL, NULL, NULL},
        {"v2.qcow2", "qcow2", ALL, NULL, "libqcow", NULL, NULL, NULL},
        {"zlib.qcow2", "qcow2", ALL, NULL, "libqcow", NULL, NULL, NULL},
        {"one.qcow", "qcow", ALL, NULL, "libqcow", NULL, NULL, NULL},
        {"onec.qcow", "qcow", ALL, NULL, "libqcow", NULL, NULL, NULL},
        {"zstd.qcow2", "qcow2", ALL & ~LIBQCOW, "zstd", "native", "zstd", NULL, NULL},
        {"ext.qcow2", "qcow2", ALL & ~LIBQCOW, "extended L2", "native", "extended L2",
         NULL, NULL},
        {"zero.qcow2", "qcow2", ALL & ~LIBQCOW, "zero", "native", "zero", NULL, NULL},
        {"d.qcow2", "qcow2", ALL & ~LIBQCOW, "data file", "native", "data file", NULL,
         NULL},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_case(&cases[i]);
}

Test(chain_read, chains_that_libqcow_reads_whole)
{
    make_content();
    convert("-O qcow2", "base.qcow2");
    convert("-O qcow", "base.qcow");
    overlay("-o cluster_size=4k", "base.qcow2", "qcow2", "mid.qcow2", "",
            "-c 'write -q -P 6 100k 9k' -c 'write -q -P 7 1M 123k'");
    overlay("-o cluster_size=128k", "mid.qcow2", "qcow2", "top.qcow2", "2M",
            "-c 'write -q -P 8 103k 1k' -c 'write -q -P 9 1900k 50k'");
    overlay("-o compat=0.10", "base.qcow", "qcow", "over1.qcow2", "",
            "-c 'write -q -P 9 200k 100k'");
    static const read_case cases[] = {
        {"top.qcow2", "qcow2", ALL, NULL, "libqcow", NULL, NULL, NULL},
        {"over1.qcow2", "qcow2", ALL, NULL, "libqcow", NULL, NULL, NULL},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_case(&cases[i]);
}

Test(chain_read, chains_of_mixed_formats_and_sizes)
{
    make_content();
    convert("-O qcow2 -o cluster_size=8k", "base.qcow2");
    convert("-c -O qcow2 -o compression_type=zstd", "zstd.qcow2");
    overlay("", "content.raw", "raw", "long.qcow2", "5M",
            "-c 'write -q -P 6 3000k 200k' -c 'write -q -P 5 64k 100k'");
    overlay("-o cluster_size=1k", "content.raw", "raw", "short.qcow2", "1M",
            "-c 'write -q -P 5 64k 3k'");
    /* 3 MiB, then 1 MiB, then 4 MiB: what was cut off does not come back. */
    overlay("-o cluster_size=32k", "short.qcow2", "qcow2", "again.qcow2", "4M",
            "-c 'write -q -P 6 900k 200k' -c 'write -q -P 5 3M 100k'");
    overlay("", "base.qcow2", "qcow2", "shorter.qcow2", "6M",
            "-c 'write -q -P 4 5M 10k'");
    overlay("", "zstd.qcow2", "qcow2", "overzstd.qcow2", "", "-c 'write -q -P 4 1M 10k'");
    overlay("", "content.raw", "raw", "one.qcow", "", "-c 'write -q -P 4 1M 10k'");
    support_run(
        "qemu-img create -q -f qcow2 -o data_file=d.raw -b base.qcow2 -F qcow2 d.qcow2 "
        "&& qemu-io -f qcow2 -c 'write -q -P 9 1M 300k' -c 'write -q -z 64k 64k' "
        "d.qcow2");
    static const read_case cases[] = {
        {"long.qcow2", "qcow2", ALL, NULL, "native", "raw", NULL, NULL},
        {"short.qcow2", "qcow2", ALL, NULL, "native", "raw", NULL, NULL},
        {"again.qcow2", "qcow2", ALL, NULL, "native", "shorter", NULL, NULL},
        {"shorter.qcow2", "qcow2", ALL, NULL, "native", "shorter", NULL, NULL},
        {"overzstd.qcow2", "qcow2", ALL & ~LIBQCOW, "zstd", "native", "below", NULL,
         NULL},
        {"d.qcow2", "qcow2", ALL & ~LIBQCOW, "data file", "native", "data file", NULL,
         NULL},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_case(&cases[i]);
}

#define SECRET      "--object secret,id=s,data=secret0 "
#define AES         "encrypt.format=aes,encrypt.key-secret=s"
#define BACKING_AES "backing.encrypt.format=aes,backing.encrypt.key-secret=s"
#define WRITES      "-c 'write -q -P 5 100k 300k' -c 'write -q -P 6 2M 10k' "

static void make_aes(const char *format, const char *name, const char *options)
{
    support_run("qemu-img create -q -f %s " SECRET "-o " AES " %s %s 3M 2>/dev/null && "
                "qemu-io " SECRET WRITES "--image-opts driver=%s,file.filename=%s," AES,
                format, options, name, format, name);
}

Test(chain_read, encrypted_layers_and_what_lies_below_them)
{
    make_content();
    support_run("printf 'secret0\\nnot this' >password");
    convert("-O qcow2", "base.qcow2");
    make_aes("qcow2", "aes.qcow2", "");
    make_aes("qcow", "aes.qcow", "");
    make_aes("qcow2", "overraw.qcow2", "-b content.raw -F raw");
    make_aes("qcow2", "overq.qcow2", "-b base.qcow2 -F qcow2");
    support_run(
        "qemu-img create -q -u -f qcow2 -b overraw.qcow2 -F qcow2 top.qcow2 4M && "
        "qemu-io " SECRET "-c 'write -q -P 9 200k 9k' --image-opts driver=qcow2,"
        "file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename="
        "overraw.qcow2," BACKING_AES);
#define SOURCE(format, name)                                                             \
    SECRET "--image-opts driver=" format ",file.filename=" name "," AES
    static const read_case cases[] = {
        {"aes.qcow2", "qcow2", ALL & ~NATIVE, "AES", "libqcow", NULL,
         SOURCE("qcow2", "aes.qcow2"), "password"},
        {"aes.qcow", "qcow", ALL & ~NATIVE, "AES", "libqcow", NULL,
         SOURCE("qcow", "aes.qcow"), "password"},
        {"overraw.qcow2", "qcow2", ALL & ~NATIVE, "AES", "libqcow", NULL,
         SOURCE("qcow2", "overraw.qcow2"), "password"},
        {"overq.qcow2", "qcow2", ALL & ~NATIVE, "AES", "libqcow", NULL,
         SOURCE("qcow2", "overq.qcow2"), "password"},
        {"top.qcow2", "qcow2", ALL & ~NATIVE, "AES", "native", "shorter",
         SECRET "--image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,"
                "backing.file.filename=overraw.qcow2," BACKING_AES,
         "password"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_case(&cases[i]);
}

Test(chain_read, passwords_are_asked_for)
{
    support_run("printf 'secret0\\n' >password && printf '\\nx' >empty");
    make_aes("qcow2", "aes.qcow2", "");
    g_autofree char *good = support_path("password");
    g_autofree char *empty = support_path("empty");
    static const chain_options none = {0};
    must_refuse("aes.qcow2", &none, IMAGE_ERROR_PASSWORD,
                PARTS("aes.qcow2", "password-file="));
    must_refuse("aes.qcow2", &(chain_options){.password_file = "/nowhere"},
                IMAGE_ERROR_PASSWORD, PARTS("/nowhere: No such file"));
    must_refuse("aes.qcow2", &(chain_options){.password_file = empty},
                IMAGE_ERROR_PASSWORD, PARTS("empty"));
    must_refuse("aes.qcow2", &(chain_options){.password_file = "/"}, IMAGE_ERROR_PASSWORD,
                PARTS("Is a directory"));
    /* Zero clusters are beyond libqcow, AES is beyond the native reader. */
    support_run("qemu-io " SECRET "-c 'write -q -z 128k 64k' --image-opts driver=qcow2,"
                "file.filename=aes.qcow2," AES);
    must_refuse("aes.qcow2", &(chain_options){.password_file = good},
                IMAGE_ERROR_UNSUPPORTED, PARTS("AES", "zero"));
}

/* ---- decoder=both -------------------------------------------------------------------- */

static int lying_result;

static int lying_read(image *im, void *buf, uint64_t offset, size_t length)
{
    (void)im;
    (void)offset;
    memset(buf, 0x77, length);
    return lying_result;
}

static void no_close(image *im)
{
    (void)im;
}

Test(chain_read, both_compares_what_two_decoders_say)
{
    static const image_driver driver = {
        .name = "liar", .close = no_close, .read = lying_read};
    image liar = {.driver = &driver};
    make_content();
    convert("-O qcow2", "v3.qcow2");
    chain *c = must_open("v3.qcow2", &(chain_options){.decoder = CHAIN_DECODER_BOTH});
    cr_assert_str_eq(chain_get_layer(c, 0)->decoder, "both");
    cr_assert_eq(c->check.count, 1);
    chain_unit honest = c->check.units[0];
    liar.size = chain_size(c);
    c->check.units[0].reader = &liar;
    uint8_t buf[4096];
    io_list list = {0};
    cr_assert_eq(chain_read(c, buf, 4096, 4096), -EBADMSG);
    cr_assert_eq(chain_prepare_read(c, buf, 4096, 4096, 0, &list), -EBADMSG);
    lying_result = -EIO;
    cr_assert_eq(chain_read(c, buf, 4096, 4096), -EIO);
    c->check.units[0] = honest;
    cr_assert_eq(chain_read(c, buf, 4096, 4096), 0);
    chain_close(c);
    io_list_free(&list);
}

Test(chain_read, both_reads_alone_what_only_one_can)
{
    make_content();
    convert("-c -O qcow2 -o compression_type=zstd", "zstd.qcow2");
    convert("-O qcow2", "base.qcow2");
    overlay("", "base.qcow2", "qcow2", "zero.qcow2", "", "-c 'write -q -z 64k 64k'");
    chain_options both = {.decoder = CHAIN_DECODER_BOTH};
    chain *c = must_open("zstd.qcow2", &both);
    cr_assert_str_eq(chain_get_layer(c, 0)->decoder, "native");
    cr_assert_not_null(strstr(chain_get_layer(c, 0)->note, "zstd"));
    chain_close(c);
    c = must_open("zero.qcow2", &both);
    cr_assert_str_eq(chain_get_layer(c, 0)->decoder, "native");
    cr_assert_str_eq(chain_get_layer(c, 1)->decoder, "both");
    chain_close(c);
}

/* ---- Requests ------------------------------------------------------------------------ */

Test(chain_read, neighbours_in_a_host_file_are_one_request)
{
    make_content();
    convert("-O qcow2 -o cluster_size=512,preallocation=off", "v3.qcow2");
    chain *c = must_open("v3.qcow2", &(chain_options){.decoder = CHAIN_DECODER_NATIVE});
    g_autofree uint8_t *buf = g_malloc(16384);
    io_list list = {0};
    for (int owner = 0; owner < 2; owner++)
        cr_assert_eq(chain_prepare_read(c, buf, 65536, 16384, (unsigned)owner, &list), 0);
    /* 32 clusters lie in a row, save where a table stands between; owners do not mix. */
    cr_assert_geq(list.count, 2);
    cr_assert_leq(list.count, 6);
    io_list_free(&list);
    chain_close(c);
}

Test(chain_read, requests_of_the_caller_are_left_alone)
{
    make_content();
    chain *c = must_open("content.raw", &(chain_options){0});
    uint8_t buf[8192];
    io_list list = {0};
    cr_assert_eq(chain_prepare_read(c, buf, 0, 4096, 7, &list), 0);
    cr_assert_eq(chain_prepare_read(c, buf + 4096, 4096, 4096, 7, &list), 0);
    cr_assert_eq(list.count, 2);
    io_list_free(&list);
    chain_close(c);
}

/* Lending and reading ahead is for those who answer for the whole chain alone. */
Test(chain_read, lent_memory_is_libqcows_own)
{
    support_run("qemu-img create -q -f raw base.raw 1M && "
                "qemu-img create -q -f qcow2 a.qcow2 1M && "
                "qemu-io -c 'write -P 1 0 128k' a.qcow2 >/dev/null && "
                "qemu-img create -q -f qcow2 -b base.raw -F raw over.qcow2");
    static const struct {
        const char *name;
        chain_decoder decoder;
        bool lends;
    } cases[] = {
        {"a.qcow2", CHAIN_DECODER_AUTO, true},
        {"a.qcow2", CHAIN_DECODER_BOTH, false},
        {"a.qcow2", CHAIN_DECODER_NATIVE, false},
        {"over.qcow2", CHAIN_DECODER_AUTO, false},
        {"base.raw", CHAIN_DECODER_AUTO, false},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        chain_options options = {.decoder = cases[i].decoder};
        chain *c = must_open(cases[i].name, &options);
        uint8_t *lent = chain_lend(c, 65536), own[65536];
        cr_assert_eq(lent != NULL, cases[i].lends, "%s", cases[i].name);
        cr_assert_null(chain_lend(c, SIZE_MAX));
        uint8_t *buf = lent ? lent : own;
        chain_read_ahead(c, buf, 65536, 65536);
        cr_assert_eq(chain_read(c, buf, 65536, 65536), 0);
        cr_assert_eq(buf[0], i < 3 ? 1 : 0);
        cr_assert_eq(buf[65535], i < 3 ? 1 : 0);
        chain_close(c);
    }
}

Test(chain_read, libqcow_decodes_what_it_is_named_for)
{
    make_content();
    overlay("", "content.raw", "raw", "top.qcow2", "", "-c 'write -q -P 4 1M 128k'");
    chain *c = must_open("top.qcow2", &(chain_options){.decoder = CHAIN_DECODER_LIBQCOW});
    uint8_t buf[4096];
    io_list list = {0};
    cr_assert_str_eq(chain_get_layer(c, 0)->decoder, "libqcow");
    cr_assert_eq(chain_prepare_read(c, buf, (1 << 20) + 512, 4096, 0, &list), 0);
    cr_assert_eq(list.count, 0);
    cr_assert_eq(buf[4095], 4);
    cr_assert_eq(chain_prepare_read(c, buf, 65536, 4096, 0, &list), 0);
    cr_assert_eq(list.count, 1);
    io_list_free(&list);
    chain_close(c);
}

static chain *shared_chain;
static const model *shared_model;

static void *reading_thread(void *arg)
{
    uint64_t seed = *(uint64_t *)arg;
    uintptr_t wrong = 0;
    for (int i = 0; i < 150; i++) {
        uint8_t buf[20000];
        uint64_t offset = support_random(&seed) % shared_model->size;
        uint64_t length = 1 + support_random(&seed) % sizeof buf;
        length = MIN(length, shared_model->size - offset);
        wrong += chain_read(shared_chain, buf, offset, length) != 0 ||
                 memcmp(buf, shared_model->bytes + offset, length) != 0;
    }
    return (void *)wrong;
}

Test(chain_read, several_threads_read_at_once)
{
    make_content();
    convert("-c -O qcow2", "base.qcow2");
    overlay("", "base.qcow2", "qcow2", "top.qcow2", "", "-c 'write -q -P 4 1M 100k'");
    model m = load_model("-f qcow2 top.qcow2");
    shared_model = &m;
    for (int d = 0; d < (int)G_N_ELEMENTS(decoder_names); d++) {
        uint64_t seed = support_seed(), seeds[4];
        pthread_t threads[4];
        shared_chain =
            must_open("top.qcow2", &(chain_options){.decoder = (chain_decoder)d});
        for (int i = 0; i < 4; i++) {
            seeds[i] = support_random(&seed);
            cr_assert_eq(pthread_create(&threads[i], NULL, reading_thread, &seeds[i]), 0);
        }
        for (int i = 0; i < 4; i++) {
            void *wrong;
            pthread_join(threads[i], &wrong);
            cr_assert_eq(wrong, NULL);
        }
        chain_close(shared_chain);
    }
    g_free(m.bytes);
}

/* What lay past the end when it was opened is zeroes (qcow2 is so); what was cut off since
 * is not: the vote must see a replica that failed, as with raw. */
Test(chain_read, R3_a_truncated_image_fails_its_reads)
{
    enum { MIB = 1 << 20 };
    static const char *const names[] = {"x.qcow2", "x.qcow"};
    support_run("head -c 1M /dev/urandom >x.raw && "
                "qemu-img convert -O qcow2 x.raw x.qcow2 && "
                "qemu-img convert -O qcow x.raw x.qcow && truncate -s -1000 x.qcow*");
    for (unsigned i = 0; i < 4; i++) {
        const char *name = names[i % 2];
        chain_options how = {.decoder =
                                 i < 2 ? CHAIN_DECODER_NATIVE : CHAIN_DECODER_AUTO};
        chain *c = must_open(name, &how);
        g_autofree uint8_t *got = g_malloc(MIB);
        if (i < 2)
            support_run("qemu-img convert -O raw %s %s.raw", name, name);
        g_autofree char *plain = support_path("%s.raw", name);
        size_t length;
        g_autofree uint8_t *bytes = support_load(plain, &length);
        cr_assert_eq(chain_read(c, got, 0, MIB), 0);
        cr_assert_eq(memcmp(got, bytes, MIB), 0, "%s", name);
        support_run("cp %s whole && truncate -s 500K %s", name, name);
        cr_assert_eq(chain_read(c, got, 0, 65536), 0);
        cr_assert_eq(chain_read(c, got, 900 * 1024, 4096), -EIO, "%s %u", name, i);
        cr_assert_eq(chain_read(c, got, 0, MIB), -EIO);
        chain_close(c);
        support_run("cp whole %s", name);
    }
}
