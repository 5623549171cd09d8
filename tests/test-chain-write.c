/*
 * Chains opened for writing: what can be written, what falls back to reading and leaves its
 * files alone, and what is written through a qcow2 top over layers of every kind.
 */
#include "tests/chain-support.h"
#include <errno.h>
#include <sys/prctl.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

static const chain_options plain = {0}, writable = {.writable = true};

/* ---- What cannot be written ------------------------------------------------------------ */

typedef struct refusal_case {
    const char *name;
    chain_options options;
    const char *parts[3]; /* of the reason */
} refusal_case;

#define AES_OPTIONS                                                                      \
    "--object secret,id=s,data=xxxx -o encrypt.format=aes,encrypt.key-secret=s"

static void make_refusals(void)
{
    support_run("echo xxxx >password; qemu-img create -q -f qcow2 plain.qcow2 1M && "
                "qemu-io -f qcow2 -c 'write -q -P 7 0 1M' plain.qcow2 && "
                "cp plain.qcow2 corrupt.qcow2 && "
                "qemu-img convert -O qcow plain.qcow2 one.qcow && "
                "qemu-img create -q -f qcow2 " AES_OPTIONS " aes.qcow2 1M 2>/dev/null");
    g_autofree char *corrupt = support_path("corrupt.qcow2");
    support_poke(corrupt, 79, "\2", 1);
}

static void expect_bytes(const char *path, const uint8_t *bytes, size_t length)
{
    size_t now;
    g_autofree uint8_t *after = support_load(path, &now);
    cr_assert(now == length && !memcmp(after, bytes, length), "%s was changed", path);
}

static void expect_read_only(chain *c)
{
    uint8_t byte = 1;
    io_list list = {0};
    image_change *change;
    image_flush_state flush = {0};
    cr_assert(!chain_writable(c));
    cr_assert(chain_begin_writing(c, NULL)); /* there is nothing to do */
    cr_assert_eq(chain_prepare_write(c, &byte, 0, 1, 0, &list, &change), -EROFS);
    cr_assert_eq(chain_write(c, &byte, 0, 1), -EROFS);
    cr_assert_eq(chain_write_zeroes(c, 0, 1), -EROFS);
    cr_assert_eq(chain_discard(c, 0, 1), -EROFS);
    cr_assert_eq(chain_resize(c, 4096), -EROFS);
    cr_assert_eq(chain_flush_step(c, &flush, 0, &list), 0);
    cr_assert_eq(chain_flush(c), 0);
    cr_assert_eq(list.count, 0);
}

static void check_refusal(const refusal_case *what)
{
    g_autofree char *path = support_path("%s", what->name);
    g_autofree char *password = support_path("password");
    chain_options options = what->options;
    options.writable = true;
    options.password_file = password;
    size_t length;
    g_autofree uint8_t *before = support_load(path, &length);
    chain *c = must_open(what->name, &options);
    const char *reason = chain_read_only_reason(c);
    cr_assert(reason && g_str_has_prefix(reason, path), "%s: %s", what->name, reason);
    cr_assert(!strchr(reason, '\n') && g_str_has_suffix(reason, ")"), "%s", reason);
    for (unsigned k = 0; k < 3 && what->parts[k]; k++)
        cr_assert_not_null(strstr(reason, what->parts[k]), "%s", reason);
    expect_read_only(c);
    /* It is locked as what it is: others may read it. */
    options.writable = false;
    chain *second = must_open(what->name, &options);
    cr_assert_null(chain_read_only_reason(second));
    uint8_t bytes[4096];
    cr_assert_eq(chain_read(c, bytes, 4096, 4096), 0);
    chain_close(second);
    chain_close(c);
    expect_bytes(path, before, length);
}

Test(chain_write, what_cannot_be_written_is_opened_for_reading_and_says_why)
{
    static const refusal_case cases[] = {
        {"one.qcow", {0}, {"version 1", "qemu-img convert"}},
        {"plain.qcow2", {.decoder = CHAIN_DECODER_LIBQCOW}, {"libqcow", "decoder=auto"}},
        {"plain.qcow2", {.decoder = CHAIN_DECODER_BOTH}, {"both", "decoder=auto"}},
        {"corrupt.qcow2", {0}, {"corrupt", "qemu-img check"}},
        {"aes.qcow2", {0}, {"encrypted", "qemu-img convert"}},
    };
    make_refusals();
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        check_refusal(&cases[i]);
}

/* The fallback is for what cannot be written, not for what cannot be opened. */
Test(chain_write, what_cannot_be_read_either_is_an_error)
{
    support_run("truncate -s 1M short.qcow2; qemu-img create -q -f qcow2 x.qcow2 1M; "
                "cp x.qcow2 x.img; qemu-img create -q -f qcow2 -o backing_fmt=raw -u "
                "-b none.raw over.qcow2 1M");
    must_refuse("none.qcow2", &writable, IMAGE_ERROR_IO, PARTS("No such file"));
    must_refuse("short.qcow2", &writable, IMAGE_ERROR_FORMAT, PARTS("short.qcow2"));
    must_refuse("x.img", &writable, IMAGE_ERROR_FORMAT, PARTS("suffix"));
    must_refuse("over.qcow2", &writable, IMAGE_ERROR_IO, PARTS("none.raw"));
}

static void make_external(const char *name)
{
    support_run("qemu-img create -q -f qcow2 -o data_file=%s.data %s.qcow2 1M", name,
                name);
}

/* As somebody who may read but not write it. Whoever changes its user cannot see what is
 * below /proc/self any more unless it says that it may be looked at. */
static chain *open_as_other(const char *name, const char *protected)
{
    support_run("chmod 755 . && chmod 444 %s", protected);
    bool root = geteuid() == 0;
    cr_assert(!root || (seteuid(65534) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0));
    chain *c = must_open(name, &writable);
    cr_assert(!root || seteuid(0) == 0);
    support_run("chmod 666 %s", protected);
    return c;
}

Test(chain_write, files_that_may_not_be_written)
{
    make_external("x");
    support_run("qemu-img create -q -f qcow2 q.qcow2 1M; truncate -s 1M r.raw; "
                "chmod 666 x.qcow2 x.data");
    static const char *const files[][2] = {{"r.raw", "r.raw"},
                                           {"q.qcow2", "q.qcow2"},
                                           {"x.qcow2", "x.data"},
                                           {"x.qcow2", "x.qcow2"}};
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        chain *c = open_as_other(files[i][0], files[i][1]);
        g_autofree char *path = support_path("%s", files[i][1]);
        const char *reason = chain_read_only_reason(c);
        cr_assert(reason && g_str_has_prefix(reason, path), "%s", reason);
        cr_assert_not_null(strstr(reason, "Permission denied"), "%s", reason);
        expect_read_only(c);
        chain *second = must_open(files[i][0], &plain);
        chain_close(second);
        chain_close(c);
    }
}

/* ---- Locks (O5) and decoders ------------------------------------------------------------ */

Test(chain_write, O5_the_image_and_its_data_file_have_a_writers_lock)
{
    make_external("x");
    chain *c = must_open("x.qcow2", &writable);
    cr_assert(chain_writable(c));
    cr_assert_null(chain_read_only_reason(c));
    must_refuse("x.qcow2", &plain, IMAGE_ERROR_LOCKED, PARTS("in use"));
    must_refuse("x.data", &(chain_options){.format = "raw"}, IMAGE_ERROR_LOCKED,
                PARTS("in use"));
    chain_close(c);
    c = must_open("x.qcow2", &plain);
    must_refuse("x.qcow2", &writable, IMAGE_ERROR_LOCKED, PARTS("in use"));
    chain_close(c);
}

Test(chain_write, O5_lower_layers_have_a_readers_lock)
{
    support_run("truncate -s 1M base.raw; qemu-img create -q -f qcow2 -F raw -b base.raw "
                "mid.qcow2; qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 top.qcow2; "
                "qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 other.qcow2");
    chain *c = must_open("top.qcow2", &writable);
    chain *other = must_open("other.qcow2", &writable);
    cr_assert(chain_writable(c) && chain_writable(other));
    must_refuse("mid.qcow2", &writable, IMAGE_ERROR_LOCKED, PARTS("in use"));
    must_refuse("base.raw", &writable, IMAGE_ERROR_LOCKED, PARTS("in use"));
    chain_close(other);
    chain_close(c);
    c = must_open("mid.qcow2", &writable);
    chain_close(c);
}

static void expect_layer(const chain *c, unsigned i, const char *decoder,
                         const char *note)
{
    const chain_layer *l = chain_get_layer(c, i);
    cr_assert_str_eq(l->decoder, decoder);
    cr_assert(note ? l->note && strstr(l->note, note) : !l->note, "%u: %s", i, l->note);
}

Test(chain_write, auto_means_native_where_the_chain_is_written)
{
    make_refusals();
    support_run("qemu-img create -q -f qcow2 -F qcow2 -u -b aes.qcow2 mid.qcow2 1M; "
                "qemu-img create -q -f qcow2 -F qcow2 -u -b mid.qcow2 top.qcow2 1M");
    g_autofree char *password = support_path("password");
    chain_options options = {.password_file = password};
    chain *c = must_open("top.qcow2", &options);
    for (unsigned i = 0; i < 3; i++)
        expect_layer(c, i, "libqcow", NULL);
    chain_close(c);
    options.writable = true;
    c = must_open("top.qcow2", &options);
    cr_assert(chain_writable(c));
    expect_layer(c, 0, "native", "is opened for writing");
    expect_layer(c, 1, "native", "a layer above is opened for writing");
    expect_layer(c, 2, "libqcow", NULL);
    chain_close(c);
}

/* ---- Writing --------------------------------------------------------------------------- */

/* A chain with what it must read as. */
typedef struct rig {
    const char *name;
    chain *chain;
    uint8_t *model;
    uint64_t size;
} rig;

static void rig_open(rig *r, const char *name)
{
    *r = (rig){.name = name, .chain = must_open(name, &writable)};
    cr_assert(chain_writable(r->chain), "%s", chain_read_only_reason(r->chain));
    r->size = chain_size(r->chain);
    r->model = g_malloc(r->size);
    cr_assert_eq(chain_read(r->chain, r->model, 0, r->size), 0);
    g_autoptr(GError) error = NULL;
    cr_assert(chain_begin_writing(r->chain, &error), "%s", error ? error->message : "");
}

static void rig_check(rig *r)
{
    g_autofree uint8_t *got = g_malloc(r->size);
    cr_assert_eq(chain_size(r->chain), r->size);
    cr_assert_eq(chain_read(r->chain, got, 0, r->size), 0);
    for (uint64_t k = 0; k < r->size; k++)
        cr_assert_eq(got[k], r->model[k], "%s: differs at %" G_GUINT64_FORMAT, r->name,
                     k);
}

/* Closes the chain; QEMU must see the same, and find nothing to complain of. */
static void rig_close(rig *r)
{
    rig_check(r);
    cr_assert_eq(chain_flush(r->chain), 0);
    chain_close(r->chain);
    g_autofree char *model = support_path("model.raw");
    support_save(model, r->model, r->size);
    support_run("qemu-img check -q -f qcow2 %s && "
                "qemu-img compare -q -f qcow2 -F raw %s model.raw",
                r->name, r->name);
    g_free(r->model);
}

static void rig_write(rig *r, uint64_t offset, size_t length, uint64_t tag)
{
    support_pattern(r->model + offset, length, offset, tag);
    cr_assert_eq(chain_write(r->chain, r->model + offset, offset, length), 0);
}

static void rig_clear(rig *r, uint64_t offset, size_t length, bool discard)
{
    memset(r->model + offset, 0, length);
    cr_assert_eq((discard ? chain_discard : chain_write_zeroes)(r->chain, offset, length),
                 0);
}

/* Parts of clusters, over what the layers below hold, and past the end of the shortest. */
static void write_everywhere(rig *r)
{
    rig_write(r, 5, 100, 1);
    rig_write(r, 64 * KIB - 7, 14, 2);
    rig_write(r, 200 * KIB, 300 * KIB + 1, 3);
    rig_write(r, MIB - 3, 512, 4);
    rig_write(r, r->size - 1, 1, 5);
    rig_check(r);
    rig_clear(r, 300 * KIB + 9, 100 * KIB, false);
    rig_clear(r, 0, 64 * KIB, true);
    rig_write(r, 1000, 1000, 6);
    rig_check(r);
}

Test(chain_write, what_a_write_does_not_cover_comes_from_below)
{
    static const char *const makes[] = {
        "qemu-img create -q -f qcow2 top.qcow2 3M",
        "qemu-img create -q -f qcow2 -F raw -b content.raw top.qcow2 3M",
        "qemu-img create -q -f qcow2 -F qcow2 -b zlib.qcow2 -o cluster_size=4k top.qcow2 "
        "3M",
        "qemu-img create -q -f qcow2 -F qcow -b one.qcow top.qcow2 3M",
        "qemu-img create -q -f qcow2 -F raw -b content.raw mid.qcow2 5M && "
        "qemu-io -f qcow2 -c 'write -q -P 9 32k 300k' -c 'write -q -z 700k 64k' "
        "mid.qcow2 "
        "&& qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 -o extended_l2=on "
        "top.qcow2 3M",
    };
    support_run("head -c 1500000 /dev/urandom >content.raw && "
                "qemu-img convert -c -O qcow2 content.raw zlib.qcow2 && "
                "qemu-img convert -O qcow content.raw one.qcow");
    for (size_t i = 0; i < G_N_ELEMENTS(makes); i++) {
        rig r;
        support_run("rm -f top.qcow2 mid.qcow2; %s", makes[i]);
        rig_open(&r, "top.qcow2");
        write_everywhere(&r);
        rig_close(&r);
    }
}

Test(chain_write, an_aes_layer_below_a_written_one)
{
    make_refusals();
    support_run("qemu-io --object secret,id=s,data=xxxx --image-opts "
                "driver=qcow2,file.filename=aes.qcow2,encrypt.format=aes,"
                "encrypt.key-secret=s -c 'write -q -P 5 0 1M' && "
                "qemu-img create -q -f qcow2 -F qcow2 -u -b aes.qcow2 top.qcow2 1M");
    g_autofree char *password = support_path("password");
    chain_options options = {.password_file = password, .writable = true};
    chain *c = must_open("top.qcow2", &options);
    g_autofree uint8_t *expected = g_malloc(MIB), *got = g_malloc(MIB);
    cr_assert(chain_begin_writing(c, NULL));
    memset(expected, 5, MIB);
    memset(expected + 1000, 6, 1000);
    cr_assert_eq(chain_write(c, expected + 1000, 1000, 1000), 0);
    cr_assert_eq(chain_read(c, got, 0, MIB), 0);
    cr_assert(!memcmp(got, expected, MIB));
    chain_close(c);
}

Test(chain_write, an_external_data_file_is_written)
{
    rig r;
    make_external("x");
    rig_open(&r, "x.qcow2");
    rig_write(&r, 12345, 200000, 1);
    rig_clear(&r, 100000, 1000, false);
    rig_close(&r);
}

Test(chain_write, nothing_is_written_before_writing_has_begun)
{
    support_run("qemu-img create -q -f qcow2 x.qcow2 1M");
    g_autofree char *path = support_path("x.qcow2");
    size_t length;
    g_autofree uint8_t *before = support_load(path, &length);
    chain *c = must_open("x.qcow2", &writable);
    cr_assert(chain_writable(c));
    cr_assert_eq(chain_write(c, "abc", 0, 3), -EROFS);
    cr_assert_eq(chain_write_zeroes(c, 0, MIB), -EROFS);
    cr_assert_eq(chain_flush(c), 0);
    chain_close(c);
    expect_bytes(path, before, length);
}

Test(chain_write, resize_is_the_virtual_size_not_the_files)
{
    rig r;
    support_run("qemu-img create -q -f qcow2 x.qcow2 1M");
    rig_open(&r, "x.qcow2");
    rig_write(&r, 0, MIB, 1);
    cr_assert_eq(chain_resize(r.chain, 5 * MIB + 512), 0);
    const chain_layer *top = chain_get_layer(r.chain, 0);
    cr_assert_eq(top->size, 5 * MIB + 512);
    cr_assert_lt(top->file_size, 5 * MIB);
    r.size = 5 * MIB + 512;
    r.model = g_realloc(r.model, r.size);
    memset(r.model + MIB, 0, r.size - MIB);
    rig_check(&r);
    rig_write(&r, 5 * MIB - 100, 612, 2);
    rig_close(&r);
}

/* ---- What is allocated ------------------------------------------------------------------ */

Test(chain_write, allocated_is_what_the_layers_hold)
{
    support_run("truncate -s 8M base.raw && dd if=/dev/urandom of=base.raw bs=1M count=1 "
                "conv=notrunc status=none && sync base.raw && "
                "qemu-img create -q -f qcow2 -F raw -b base.raw top.qcow2 && "
                "qemu-io -f qcow2 -c 'write -q 2M 2M' top.qcow2");
    chain *c = must_open("top.qcow2", &plain);
    cr_assert_eq(chain_allocated(c), 3 * MIB);
    chain_close(c);
    rig r;
    rig_open(&r, "top.qcow2");
    cr_assert_eq(chain_allocated(r.chain), 3 * MIB);
    rig_write(&r, 6 * MIB, MIB, 1);
    cr_assert_eq(chain_flush(r.chain), 0);
    cr_assert_eq(chain_allocated(r.chain), 4 * MIB);
    rig_close(&r);
    /* Never more than there is. */
    support_run("qemu-io -f qcow2 -c 'write -q 0 8M' top.qcow2");
    c = must_open("top.qcow2", &plain);
    cr_assert_eq(chain_allocated(c), 8 * MIB);
    chain_close(c);
}
