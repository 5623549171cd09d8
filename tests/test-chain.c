/*
 * Opening and writing chains: O1, O2, O5.
 */
#include "tests/chain-support.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static const chain_options plain = {0};

static chain_options as(const char *format)
{
    return (chain_options){.format = format};
}

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

/* ---- O1 ----------------------------------------------------------------------------- */

/* q2, q1, v and r are qcow2, qcow, vmdk and raw content under all suffixes. */
static void make_contents(void)
{
    support_run(
        "truncate -s 1M r.raw && qemu-img create -q -f qcow2 q2.qcow2 1M && "
        "qemu-img create -q -f qcow q1.qcow 1M && "
        "qemu-img create -q -f vmdk v.vmdk 1M && "
        "for s in raw img qcow qcow2 none vhd; do for f in r.raw q2.qcow2 q1.qcow "
        "v.vmdk; do cp -n $f ${f%%%%.*}.$s; done; done; cp r.raw r; cp q2.qcow2 q2");
}

typedef struct o1_case {
    const char *name, *format;
    const char *opens_as;    /* NULL: refused */
    const char *message_has; /* of a refusal */
} o1_case;

Test(chain, O1_formats_are_named_or_the_suffixs_if_the_content_agrees)
{
    static const o1_case cases[] = {
        {"q2.qcow2", NULL, "qcow2", NULL},
        {"q1.qcow", NULL, "qcow", NULL},
        {"r.raw", NULL, "raw", NULL},
        {"r.img", NULL, "raw", NULL},
        {"q2.img", "raw", "raw", NULL},
        {"q2.img", "qcow2", "qcow2", NULL},
        {"q2.raw", "raw", "raw", NULL},
        {"q2.none", "qcow2", "qcow2", NULL},
        {"q2", "qcow2", "qcow2", NULL},
        {"q2.qcow", "qcow2", "qcow2", NULL},
        {"r.qcow2", "raw", "raw", NULL},
        {"q2.qcow2", "raw", "raw", NULL},
        {"v.vmdk", "raw", "raw", NULL},
        {"v.img", "raw", "raw", NULL},
        {"q1.img", "qcow", "qcow", NULL},
        {"q2.img", NULL, NULL, "reads it as raw, qcow2:"},
        {"q2.raw", NULL, NULL, "reads it as raw, qcow2:"},
        {"q1.img", NULL, NULL, "reads it as raw, qcow:"},
        {"v.img", NULL, NULL, "VMDK"},
        {"r.qcow2", NULL, NULL, "raw:"},
        {"q1.qcow2", NULL, NULL, "qcow:"},
        {"q2.qcow", NULL, NULL, "qcow2:"},
        {"v.qcow2", NULL, NULL, "VMDK"},
        {"r", NULL, NULL, "raw:"},
        {"r.none", NULL, NULL, "raw:"},
        {"q2.none", NULL, NULL, "qcow2:"},
        {"v.vmdk", NULL, NULL, "suffix does not tell"},
        {"r.vhd", NULL, NULL, "suffix does not tell"},
        {"r.raw", "qcow2", NULL, "r.raw"},
        {"r.raw", "qcow", NULL, "r.raw"},
        {"q1.qcow", "qcow2", NULL, "q1.qcow"},
        {"q2.qcow2", "qcow", NULL, "q2.qcow2"},
        {"v.vmdk", "vmdk", NULL, "unknown format 'vmdk'"},
        {"r.raw", "", NULL, "unknown format"},
    };
    make_contents();
    unsigned before = open_descriptors();
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        chain_options options = as(cases[i].format);
        if (!cases[i].opens_as) {
            must_refuse(cases[i].name, &options, IMAGE_ERROR_FORMAT,
                        PARTS(cases[i].message_has));
            continue;
        }
        chain *c = must_open(cases[i].name, &options);
        cr_assert_str_eq(chain_get_layer(c, 0)->format, cases[i].opens_as);
        cr_assert_eq(chain_depth(c), 1);
        chain_close(c);
    }
    cr_assert_eq(open_descriptors(), before);
}

Test(chain, O1_a_guest_that_writes_a_header_into_its_raw_disk_changes_nothing)
{
    make_contents();
    chain *c = must_open("q2.img", &(chain_options){.format = "raw"});
    char magic[4];
    cr_assert_eq(chain_read(c, magic, 0, 4), 0);
    cr_assert_eq(memcmp(magic, "QFI\xfb", 4), 0);
    chain_close(c);
}

/* Overwrites the type of the backing-format extension by one that nobody knows. */
static void forget_backing_format(const char *name)
{
    replace_bytes(name, "\xe2\x79\x2a\xca", "\x12\x34\x56\x78", 4);
}

static void make_overlay(const char *name, const char *backing, const char *format)
{
    support_run("qemu-img create -q -f qcow2 -u -b '%s' -F %s %s 1M", backing, format,
                name);
}

Test(chain, O1_a_backing_format_header_is_believed_without_a_look)
{
    make_contents();
    make_overlay("top.qcow2", "q2.img", "raw");
    chain *c = must_open("top.qcow2", &plain);
    cr_assert_eq(chain_depth(c), 2);
    cr_assert_str_eq(chain_get_layer(c, 1)->format, "raw");
    cr_assert_str_eq(chain_get_layer(c, 0)->backing_file, "q2.img");
    cr_assert_str_eq(chain_get_layer(c, 0)->backing_format, "raw");
    chain_close(c);
    make_overlay("top.qcow2", "r.raw", "qcow2");
    must_refuse("top.qcow2", &plain, IMAGE_ERROR_FORMAT, PARTS("top.qcow2", "r.raw"));
    make_overlay("top.qcow2", "v.vmdk", "vmdk");
    must_refuse("top.qcow2", &plain, IMAGE_ERROR_UNSUPPORTED, PARTS("'vmdk'"));
    replace_bytes("top.qcow2", "vmdk", "v\n\033k", 4);
    must_refuse("top.qcow2", &plain, IMAGE_ERROR_UNSUPPORTED, PARTS("'v??k'"));
}

Test(chain, O1_without_that_header_the_suffix_and_the_content_must_agree)
{
    static const struct {
        const char *backing, *opens_as, *message_has;
    } cases[] = {
        {"r.raw", "raw", NULL},
        {"r.img", "raw", NULL},
        {"q2.qcow2", "qcow2", NULL},
        {"q1.qcow", "qcow", NULL},
        {"q2.img", NULL, "rebase -u -F qcow2"},
        {"r.qcow2", NULL, "rebase -u -F"},
        {"r", NULL, "rebase -u -F"},
        {"q2.none", NULL, "rebase -u -F qcow2"},
    };
    make_contents();
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        make_overlay("top.qcow2", cases[i].backing, "raw");
        forget_backing_format("top.qcow2");
        if (!cases[i].opens_as) {
            must_refuse("top.qcow2", &plain, IMAGE_ERROR_FORMAT,
                        PARTS("top.qcow2: backing file ", cases[i].message_has));
            continue;
        }
        chain *c = must_open("top.qcow2", &plain);
        cr_assert_str_eq(chain_get_layer(c, 1)->format, cases[i].opens_as);
        cr_assert_null(chain_get_layer(c, 0)->backing_format);
        chain_close(c);
    }
}

Test(chain, O1_qcow_1_has_no_such_header)
{
    make_contents();
    support_run("qemu-img create -q -f qcow -u -b r.raw -F raw a.qcow 1M && "
                "qemu-img create -q -f qcow -u -b q2.img -F qcow2 b.qcow 1M");
    chain *c = must_open("a.qcow", &plain);
    cr_assert_str_eq(chain_get_layer(c, 1)->format, "raw");
    chain_close(c);
    must_refuse("b.qcow", &plain, IMAGE_ERROR_FORMAT,
                PARTS("b.qcow", "q2.img", "rename"));
}

/* ---- O2 ----------------------------------------------------------------------------- */

Test(chain, O2_backing_files_that_are_not_opened)
{
    static const struct {
        const char *backing;
        int code;
        const char *message_has;
    } cases[] = {
        {"nowhere.raw", IMAGE_ERROR_IO, "nowhere.raw (raw): No such file or directory"},
        {"../secret.raw", IMAGE_ERROR_REFUSED, "outside"},
        {"/etc/passwd", IMAGE_ERROR_REFUSED, "/etc/passwd"},
        {"link.raw", IMAGE_ERROR_REFUSED, "symbolic link"},
        {"fifo.raw", IMAGE_ERROR_REFUSED, "FIFO"},
        {"dir.raw", IMAGE_ERROR_REFUSED, "directory"},
        {"/dev/zero", IMAGE_ERROR_REFUSED, "/dev/zero"},
        {"json:{\"driver\":\"null-co\"}", IMAGE_ERROR_REFUSED, "json:"},
        {"nbd:localhost:1", IMAGE_ERROR_REFUSED, "nbd:"},
        {"top.qcow2", IMAGE_ERROR_REFUSED, "twice"},
        {"hard.raw", IMAGE_ERROR_REFUSED, "twice"},
    };
    support_run(
        "mkdir in && cd in && echo x >../secret.raw && ln -s ../secret.raw link.raw "
        "&& mkfifo fifo.raw && mkdir dir.raw");
    unsigned before = open_descriptors();
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        make_overlay("in/top.qcow2", cases[i].backing, "raw");
        support_run("ln -f in/top.qcow2 in/hard.raw");
        must_refuse("in/top.qcow2", &plain, cases[i].code,
                    PARTS("/in/top.qcow2", cases[i].message_has));
    }
    cr_assert_eq(open_descriptors(), before);
}

Test(chain, O2_data_files_that_are_not_opened)
{
    static const struct {
        const char *data;
        int code;
        const char *message_has;
    } cases[] = {
        {"none.raw", IMAGE_ERROR_IO, "data file "},
        {"../s.raw", IMAGE_ERROR_REFUSED, "outside"},
        {"/etc/fst", IMAGE_ERROR_REFUSED, "outside"},
        {"link.raw", IMAGE_ERROR_REFUSED, "symbolic link"},
        {"fifo.raw", IMAGE_ERROR_REFUSED, "FIFO"},
        {"json:{ }", IMAGE_ERROR_REFUSED, "json:{ }"},
        {"http://x", IMAGE_ERROR_REFUSED, "http:"},
        {"self.raw", IMAGE_ERROR_REFUSED, "twice"},
    };
    support_run(
        "mkdir in && cd in && truncate -s 1M ../s.raw && ln -s ../s.raw link.raw && "
        "mkfifo fifo.raw");
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        support_run(
            "cd in && qemu-img create -q -f qcow2 -o data_file=data.raw top.qcow2 1M");
        replace_bytes("in/top.qcow2", "data.raw", cases[i].data, 8);
        support_run("ln -f in/top.qcow2 in/self.raw");
        must_refuse("in/top.qcow2", &plain, cases[i].code,
                    PARTS("/in/top.qcow2", cases[i].message_has));
    }
}

Test(chain, O2_a_data_file_that_is_also_the_backing_file)
{
    support_run(
        "truncate -s 1M both.raw && "
        "qemu-img create -q -f qcow2 -o data_file=d.raw -b both.raw -F raw top.qcow2 "
        "1M && rm d.raw && ln both.raw d.raw");
    must_refuse("top.qcow2", &plain, IMAGE_ERROR_REFUSED, PARTS("twice"));
}

Test(chain, O2_cycles_are_found)
{
    make_overlay("a.qcow2", "b.qcow2", "qcow2");
    make_overlay("b.qcow2", "c.qcow2", "qcow2");
    make_overlay("c.qcow2", "./a.qcow2", "qcow2");
    must_refuse("a.qcow2", &plain, IMAGE_ERROR_REFUSED, PARTS("a.qcow2", "cycle"));
}

/* d00 is the bottom, the top is d<layers - 1>. */
static void make_deep(unsigned layers)
{
    support_run("qemu-img create -q -f qcow2 d00.qcow2 1M");
    make_overlay("template", "d--.qcow2", "qcow2");
    g_autofree char *template = support_path("template");
    size_t size;
    g_autofree uint8_t *bytes = support_load(template, &size);
    char *name = memmem(bytes, size, "d--.qcow2", 9);
    for (unsigned i = 1; i < layers; i++) {
        g_autofree char *path = support_path("d%02u.qcow2", i);
        g_autofree char *below = g_strdup_printf("%02u", i - 1);
        memcpy(name + 1, below, 2);
        support_save(path, bytes, size);
    }
}

Test(chain, O2_the_depth_has_a_limit)
{
    make_deep(66);
    chain_options native = {.decoder = CHAIN_DECODER_NATIVE};
    chain *c = must_open("d63.qcow2", &native);
    uint8_t buf[512] = {1};
    cr_assert_eq(chain_depth(c), CHAIN_DEPTH_MAX);
    cr_assert_eq(chain_read(c, buf, 1000, 512), 0);
    cr_assert_eq(buf[0], 0);
    chain_close(c);
    must_refuse("d64.qcow2", &native, IMAGE_ERROR_REFUSED, PARTS("d64.qcow2", "layers"));
}

Test(chain, O2_what_the_operator_names_may_be_a_symlink)
{
    make_contents();
    make_overlay("top.qcow2", "r.raw", "raw");
    support_run("mkdir links && ln -s ../top.qcow2 links/x.qcow2");
    chain *c = must_open("links/x.qcow2", &plain);
    g_autofree char *real = support_path("top.qcow2");
    cr_assert_str_eq(chain_get_layer(c, 0)->filename, real);
    chain_close(c);
    support_run("mkfifo f.raw");
    must_refuse("f.raw", &plain, IMAGE_ERROR_REFUSED, PARTS("FIFO"));
    must_refuse("none.raw", &plain, IMAGE_ERROR_IO, PARTS("No such file or directory"));
}

Test(chain, O2_two_chains_may_not_share_a_file)
{
    support_run(
        "truncate -s 1M base.raw one.raw && ln one.raw hard.raw && cp one.raw two.raw "
        "&& qemu-img create -q -f qcow2 -o data_file=one.raw,data_file_raw=on d.qcow2 "
        "1M");
    make_overlay("a.qcow2", "base.raw", "raw");
    make_overlay("b.qcow2", "base.raw", "raw");
    static const struct {
        const char *first, *second;
        bool distinct;
    } cases[] = {
        {"one.raw", "two.raw", true},  {"one.raw", "hard.raw", false},
        {"one.raw", "one.raw", false}, {"a.qcow2", "b.qcow2", false},
        {"a.qcow2", "one.raw", true},  {"base.raw", "b.qcow2", false},
        {"d.qcow2", "one.raw", false}, {"hard.raw", "d.qcow2", false},
        {"d.qcow2", "two.raw", true},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        chain *chains[] = {must_open("base.raw", &plain), NULL, NULL};
        chain_close(chains[0]);
        chains[0] = must_open(cases[i].first, &plain);
        chains[1] = must_open(cases[i].second, &plain);
        GError *error = NULL;
        cr_assert_eq(chain_check_distinct(chains, 2, &error), cases[i].distinct, "%s, %s",
                     cases[i].first, cases[i].second);
        cr_assert_eq(error == NULL, cases[i].distinct);
        cr_assert(!error || g_error_matches(error, IMAGE_ERROR, IMAGE_ERROR_REFUSED));
        g_clear_error(&error);
        chain_close(chains[0]);
        chain_close(chains[1]);
    }
}

/* ---- O5 ----------------------------------------------------------------------------- */

static bool qemu_can_write(const char *format, const char *name)
{
    return support_try("qemu-io -f %s -c 'write -q 0 512' %s >/dev/null 2>&1", format,
                       name) == 0;
}

Test(chain, O5_every_file_of_the_chain_is_locked_while_it_is_open)
{
    support_run(
        "truncate -s 1M base.raw && qemu-img create -q -f qcow2 -o data_file=d.raw -b "
        "base.raw -F raw mid.qcow2 1M");
    make_overlay("top.qcow2", "mid.qcow2", "qcow2");
    chain *c = must_open("top.qcow2", &plain);
    cr_assert(!qemu_can_write("raw", "base.raw"));
    cr_assert(!qemu_can_write("raw", "d.raw"));
    cr_assert(!qemu_can_write("qcow2", "mid.qcow2"));
    cr_assert(!qemu_can_write("qcow2", "top.qcow2"));
    support_run("qemu-io -r -f qcow2 -c 'read -q 0 1M' top.qcow2");
    chain *second = must_open("top.qcow2", &plain);
    chain_close(c);
    cr_assert(!qemu_can_write("raw", "base.raw"));
    chain_close(second);
    cr_assert(qemu_can_write("raw", "base.raw"));
    cr_assert(qemu_can_write("raw", "d.raw"));
    cr_assert(qemu_can_write("qcow2", "mid.qcow2"));
    cr_assert(qemu_can_write("qcow2", "top.qcow2"));
}

Test(chain, O5_a_writable_chain_is_alone)
{
    support_run("truncate -s 1M x.raw");
    chain *c = must_open("x.raw", &(chain_options){.writable = true});
    must_refuse("x.raw", &plain, IMAGE_ERROR_LOCKED,
                PARTS("x.raw: in use by another process"));
    must_refuse("x.raw", &(chain_options){.writable = true}, IMAGE_ERROR_LOCKED,
                PARTS("x.raw"));
    cr_assert(!qemu_can_write("raw", "x.raw"));
    chain_close(c);
    c = must_open("x.raw", &plain);
    must_refuse("x.raw", &(chain_options){.writable = true}, IMAGE_ERROR_LOCKED,
                PARTS("x.raw"));
    chain_close(c);
}

/* As io_uring does: a reference to the open file that outlives us must not keep the lock. */
Test(chain, O5_a_closed_chain_holds_no_lock_whoever_still_has_the_file)
{
    support_run("truncate -s 1M a.raw");
    g_autofree char *path = support_path("a.raw");
    chain *c = must_open("a.raw", &(chain_options){.writable = true});
    int kept[64];
    unsigned n = 0;
    for (int fd = 3; fd < 64; fd++) {
        g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
        g_autofree char *target = g_file_read_link(link, NULL);
        if (g_strcmp0(target, path) == 0)
            kept[n++] = dup(fd);
    }
    cr_assert_gt(n, 0);
    chain_close(c);
    c = must_open("a.raw", &(chain_options){.writable = true});
    chain_close(c);
    while (n > 0)
        close(kept[--n]);
}

/* ---- Writing ------------------------------------------------------------------------ */

static bool holds_pattern(chain *c, uint64_t offset, size_t length, uint64_t tag)
{
    g_autofree uint8_t *got = g_malloc(length);
    g_autofree uint8_t *expected = g_malloc0(length);
    cr_assert_eq(chain_read(c, got, offset, length), 0);
    if (tag)
        support_pattern(expected, length, offset, tag);
    return !memcmp(got, expected, length);
}

Test(chain, raw_is_written_in_place)
{
    support_run("truncate -s 100001 x.raw");
    chain *c = must_open("x.raw", &(chain_options){.writable = true});
    cr_assert(chain_writable(c));
    cr_assert_null(chain_read_only_reason(c));
    uint8_t bytes[60000];
    io_list list = {0};
    support_pattern(bytes, sizeof bytes, 40001, 7);
    image_change *change;
    cr_assert_eq(chain_prepare_write(c, bytes, 40001, 60000, 3, &list, &change), 0);
    cr_assert_eq(list.count, 1);
    cr_assert_null(change);
    cr_assert_eq(list.ops[0].owner, 3);
    io_list_run(&list);
    cr_assert_eq(list.ops[0].result, 0);
    cr_assert(holds_pattern(c, 40001, 60000, 7));
    cr_assert(holds_pattern(c, 0, 40001, 0));
    cr_assert_eq(chain_prepare_write(c, bytes, 40002, 60000, 3, &list, &change), -EINVAL);
    cr_assert_eq(list.count, 1);
    support_pattern(bytes, 100, 5, 8);
    cr_assert_eq(chain_write(c, bytes, 5, 100), 0);
    cr_assert_eq(chain_write_zeroes(c, 50000, 10001), 0);
    cr_assert_eq(chain_discard(c, 70001, 9999), 0);
    cr_assert_eq(chain_flush(c), 0);
    cr_assert(holds_pattern(c, 5, 100, 8));
    cr_assert(holds_pattern(c, 50000, 10001, 0));
    cr_assert(holds_pattern(c, 70001, 9999, 0));
    cr_assert(holds_pattern(c, 60001, 10000, 7));
    io_list_free(&list);
    chain_close(c);
}

Test(chain, resize_is_seen_by_size_reads_and_layers)
{
    support_run("truncate -s 1M x.raw");
    chain *c = must_open("x.raw", &(chain_options){.writable = true});
    uint8_t bytes[512];
    support_pattern(bytes, 512, 2000000, 1);
    cr_assert_eq(chain_write(c, bytes, 2000000, 512), -EINVAL);
    cr_assert_eq(chain_resize(c, 2000512), 0);
    cr_assert_eq(chain_size(c), 2000512);
    cr_assert_eq(chain_get_layer(c, 0)->size, 2000512);
    cr_assert_eq(chain_write(c, bytes, 2000000, 512), 0);
    cr_assert(holds_pattern(c, 2000000, 512, 1));
    cr_assert(holds_pattern(c, 1 << 20, 100000, 0));
    cr_assert_eq(chain_resize(c, 512), 0);
    cr_assert_eq(chain_read(c, bytes, 1, 512), -EINVAL);
    chain_close(c);
}

Test(chain, a_read_only_chain_refuses_writes)
{
    make_contents();
    chain *c = must_open("r.raw", &plain);
    uint8_t byte = 1;
    io_list list = {0};
    cr_assert(!chain_writable(c));
    cr_assert_null(chain_read_only_reason(c));
    cr_assert_eq(chain_write(c, &byte, 0, 1), -EROFS);
    image_change *change;
    cr_assert_eq(chain_prepare_write(c, &byte, 0, 1, 0, &list, &change), -EROFS);
    cr_assert_null(change);
    cr_assert_eq(chain_write_zeroes(c, 0, 1), -EROFS);
    cr_assert_eq(chain_discard(c, 0, 1), -EROFS);
    cr_assert_eq(chain_resize(c, 0), -EROFS);
    cr_assert_eq(chain_flush(c), 0);
    cr_assert_eq(list.count, 0);
    chain_close(c);
}

Test(chain, a_truncated_raw_image_fails_its_reads)
{
    support_run("head -c 1M /dev/urandom >x.raw && truncate -s 1M y.raw");
    make_overlay("top.qcow2", "x.raw", "raw");
    chain *raw = must_open("x.raw", &plain);
    chain *overlay = must_open("top.qcow2", &plain);
    support_run("truncate -s 500K x.raw");
    uint8_t buf[1024];
    cr_assert_eq(chain_read(raw, buf, 0, 512), 0);
    cr_assert_eq(chain_read(raw, buf, 511 * 1024, 1024), -EIO);
    cr_assert_eq(chain_read(overlay, buf, 511 * 1024, 1024), -EIO);
    chain_close(raw);
    chain_close(overlay);
}
