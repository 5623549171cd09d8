/*
 * The keyfile: what it fills in, what it refuses, and that no text can hurt.
 */
#include "fuse/config-internal.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DISK    "[disk vm1]\n"
#define REPLICA "[replica vm1/a]\nsource=/a.raw\n"

static mount_config *load_bytes(const void *data, size_t length, GError **error)
{
    g_autofree char *path = support_path("test.conf");
    support_save(path, data, length);
    mount_config *config = mount_config_new();
    if (config_load_keyfile(config, path, error))
        return config;
    mount_config_free(config);
    return NULL;
}

static mount_config *load(const char *text, GError **error)
{
    return load_bytes(text, strlen(text), error);
}

static disk_options *nth_disk(const mount_config *config, unsigned i)
{
    return g_ptr_array_index(config->disks, i);
}

static replica_options *nth_replica(const disk_options *d, unsigned i)
{
    return g_ptr_array_index(d->replicas, i);
}

Test(keyfile, fills_disks_and_replicas_in_order)
{
    GError *error = NULL;
    mount_config *config = load("# a comment\r\n"
                                "[replica vm2/z]\n"
                                "source = qcow2:../z\n"
                                "timeout=2s\n"
                                "\n"
                                "[disk vm1]\n"
                                "file=one.img\n"
                                "threshold=1\n"
                                "on-divergence=log\n"
                                "min-replicas=2\n"
                                "degraded=warn\n"
                                "decoder=both\n"
                                "read-pattern=rotate\n"
                                "blkverify=true\n"
                                "read-only=true\n"
                                "replica-timeout=500ms\n"
                                "allow-dir=/x;y\n"
                                "password-file=/secret\n"
                                "[disk vm2]\n"
                                "[replica vm2/a]\n"
                                "source=/a.raw\n"
                                "[replica vm1/q]\n"
                                "format=qcow\n"
                                "source=qcow:/q\n"
                                "decoder=libqcow\n"
                                "password-file=own\n"
                                "[replica vm1/p]\n"
                                "source=/p\\sq.raw\n",
                                &error);
    cr_assert_not_null(config, "%s", error ? error->message : "");
    cr_assert_eq(config->disks->len, 2u);
    const disk_options *one = nth_disk(config, 0), *two = nth_disk(config, 1);
    cr_assert_str_eq(one->name, "vm1");
    cr_assert_str_eq(one->file, "one.img");
    cr_assert(one->read_pattern == DISK_PATTERN_ROTATE && one->blkverify);
    cr_assert_eq(one->threshold, 1u);
    cr_assert(one->min_replicas == 2 && one->degraded_warn);
    cr_assert_eq((int)one->decoder, (int)CHAIN_DECODER_BOTH);
    cr_assert(one->read_only && !two->read_only);
    cr_assert_eq(one->timeout_ms, 500u);
    g_autofree char *beside = support_path("y");
    cr_assert_str_eq(g_ptr_array_index(one->allow_dirs, 0), "/x");
    cr_assert_str_eq(g_ptr_array_index(one->allow_dirs, 1), beside);
    cr_assert_eq(one->replicas->len, 2u);
    cr_assert_str_eq(nth_replica(one, 0)->name, "q");
    cr_assert_str_eq(nth_replica(one, 0)->format, "qcow");
    cr_assert_eq(nth_replica(one, 0)->decoder, (int)CHAIN_DECODER_LIBQCOW);
    g_autofree char *own = support_path("own");
    cr_assert_str_eq(nth_replica(one, 0)->password_file, own);
    cr_assert_str_eq(nth_replica(one, 1)->path, "/p q.raw");
    cr_assert_eq(nth_replica(one, 1)->decoder, -1);
    cr_assert_str_eq(nth_replica(one, 1)->password_file, "/secret");
    cr_assert_str_eq(two->file, "vm2.img");
    cr_assert_str_eq(nth_replica(two, 0)->name, "z");
    cr_assert_eq(nth_replica(two, 0)->timeout_ms, 2000u);
    g_autofree char *up = support_path("../z");
    cr_assert_str_eq(nth_replica(two, 0)->path, up);
    cr_assert_str_eq(nth_replica(two, 1)->name, "a");
    mount_config_free(config);
}

Test(keyfile, one_disk_without_a_file_is_disk_img)
{
    mount_config *config = load(DISK REPLICA, NULL);
    cr_assert_str_eq(nth_disk(config, 0)->file, "disk.img");
    mount_config_free(config);
}

static void assert_refused(const char *text, config_error code, const char *part)
{
    GError *error = NULL;
    cr_assert_null(load(text, &error), "accepted: %s", text);
    cr_assert(error->domain == CONFIG_ERROR && error->code == (int)code,
              "%s: code %d (%s)", text, error->code, error->message);
    cr_assert(strstr(error->message, part), "%s: '%s' lacks '%s'", text, error->message,
              part);
    cr_assert(strstr(error->message, "test.conf: "), "no file name: %s", error->message);
    cr_assert(!strchr(error->message, '\n'), "more than one line: %s", error->message);
    g_error_free(error);
}

Test(keyfile, repeats_are_errors)
{
    assert_refused(DISK REPLICA DISK, CONFIG_ERROR_INVALID,
                   "line 4: group [disk vm1] is repeated");
    assert_refused(DISK REPLICA REPLICA, CONFIG_ERROR_INVALID,
                   "group [replica vm1/a] is repeated");
    assert_refused(DISK "threshold=1\nthreshold=1\n" REPLICA, CONFIG_ERROR_INVALID,
                   "line 3: [disk vm1]: key 'threshold' is repeated");
    assert_refused(DISK "threshold=1\n  threshold =2\n" REPLICA, CONFIG_ERROR_INVALID,
                   "key 'threshold' is repeated");
    assert_refused(DISK REPLICA "source=/b.raw\n", CONFIG_ERROR_INVALID,
                   "key 'source' is repeated");
}

Test(keyfile, unknown_words_name_the_nearest)
{
    assert_refused(DISK "treshold=2\n" REPLICA, CONFIG_ERROR_INVALID,
                   "[disk vm1]: unknown key 'treshold' (did you mean 'threshold'?)");
    assert_refused(DISK "fill=x\n" REPLICA, CONFIG_ERROR_INVALID,
                   "(did you mean 'file'?)");
    assert_refused(DISK REPLICA "formt=raw\n", CONFIG_ERROR_INVALID,
                   "[replica vm1/a]: unknown key 'formt' (did you mean 'format'?)");
    assert_refused(DISK REPLICA "format[de]=raw\n", CONFIG_ERROR_INVALID, "unknown key");
    assert_refused("[dsk vm1]\n" REPLICA, CONFIG_ERROR_INVALID,
                   "unknown group [dsk vm1] (did you mean 'disk'?)");
    assert_refused("[general]\n" DISK REPLICA, CONFIG_ERROR_INVALID,
                   "unknown group [general]");
    assert_refused("[disk]\n", CONFIG_ERROR_INVALID, "unknown group [disk]");
}

Test(keyfile, the_set_must_fit_together)
{
    assert_refused("", CONFIG_ERROR_INVALID, "no [disk NAME]");
    assert_refused(REPLICA, CONFIG_ERROR_INVALID, "there is no [disk vm1]");
    assert_refused(DISK, CONFIG_ERROR_INVALID, "no replicas");
    assert_refused(DISK "[replica vm1/a]\nformat=raw\n", CONFIG_ERROR_INVALID,
                   "no source=");
    assert_refused(DISK "[replica vm1]\nsource=/x\n", CONFIG_ERROR_INVALID,
                   "not [replica DISK/NAME]");
    assert_refused(DISK "file=x\n" REPLICA
                        "[disk vm2]\nfile=x\n[replica vm2/a]\nsource=/b.raw\n",
                   CONFIG_ERROR_INVALID, "[disk vm2]: another disk has the file 'x' too");
    assert_refused(DISK "file=vm2.img\n" REPLICA
                        "[disk vm2]\n[replica vm2/a]\nsource=/b.raw\n",
                   CONFIG_ERROR_INVALID, "another disk has the file 'vm2.img'");
}

Test(keyfile, names_are_checked)
{
    assert_refused("[disk .quorumfs]\n", CONFIG_ERROR_INVALID, "is taken");
    assert_refused("[disk status.json]\n", CONFIG_ERROR_INVALID, "is taken");
    assert_refused("[disk a/b]\n", CONFIG_ERROR_INVALID, "contains '/'");
    assert_refused("[disk ..]\n", CONFIG_ERROR_INVALID, "is taken");
    assert_refused(DISK "[replica vm1/a/b]\nsource=/x\n", CONFIG_ERROR_INVALID,
                   "contains '/'");
    assert_refused(DISK "[replica vm1/]\nsource=/x\n", CONFIG_ERROR_INVALID, "is empty");
    assert_refused(DISK "file=../x\n" REPLICA, CONFIG_ERROR_INVALID, "contains '/'");
    assert_refused(DISK "file=.quorumfs\n" REPLICA, CONFIG_ERROR_INVALID, "is taken");
    assert_refused(DISK "file=a\\nb\n" REPLICA, CONFIG_ERROR_INVALID,
                   "control character");
    assert_refused("[disk \001]\n", CONFIG_ERROR_INVALID, "line 1: a control character");
}

Test(keyfile, values_are_checked)
{
    assert_refused(DISK "threshold=0\n" REPLICA, CONFIG_ERROR_INVALID,
                   "[disk vm1]: threshold=0: parameter 'threshold' expects a value >= 1");
    assert_refused(DISK "threshold=2\n" REPLICA, CONFIG_ERROR_INVALID,
                   "[disk vm1]: threshold=2: may not exceed children count (1)");
    assert_refused(DISK "threshold=\n" REPLICA, CONFIG_ERROR_INVALID, "needs a value");
    assert_refused(DISK "threshold=2 # two\n" REPLICA, CONFIG_ERROR_INVALID,
                   "not a number");
    assert_refused(DISK "read-only=maybe\n" REPLICA, CONFIG_ERROR_INVALID,
                   "not true or false");
    assert_refused(DISK "min-replicas=2\n" REPLICA, CONFIG_ERROR_INVALID,
                   "only 1 replica");
    assert_refused(DISK "blkverify=yes\n" REPLICA, CONFIG_ERROR_INVALID,
                   "blkverify=yes: not true or false");
    assert_refused(DISK "read-pattern=random\n" REPLICA, CONFIG_ERROR_INVALID,
                   "unknown value");
    assert_refused(DISK "file=a\\qb\n" REPLICA, CONFIG_ERROR_INVALID, "[disk vm1]: ");
    assert_refused(DISK REPLICA "timeout=1h\n", CONFIG_ERROR_INVALID, "not a time");
    assert_refused(DISK REPLICA "decoder=x\n", CONFIG_ERROR_INVALID, "unknown decoder");
    assert_refused(DISK REPLICA "password=x\n", CONFIG_ERROR_INVALID, "password-file");
    assert_refused(DISK "[replica vm1/a]\nsource=qcow2:/a\nformat=raw\n",
                   CONFIG_ERROR_INVALID, "the other key says 'qcow2'");
    assert_refused(DISK "[replica vm1/a]\nformat=raw\nsource=qcow2:/a\n",
                   CONFIG_ERROR_INVALID, "the other key says 'raw'");
}

/* Force is for the one mount that somebody looks at. */
Test(keyfile, O5_a_file_cannot_force)
{
    assert_refused(DISK "force=true\n" REPLICA, CONFIG_ERROR_INVALID,
                   "unknown key 'force'");
}

Test(keyfile, lines_that_are_none)
{
    assert_refused("hello\n", CONFIG_ERROR_INVALID, "line 1: neither");
    assert_refused("source=x\n", CONFIG_ERROR_INVALID, "line 1: a key before");
    assert_refused("[disk vm1\n", CONFIG_ERROR_INVALID, "line 1: not a group");
    assert_refused("[[disk vm1]]\n", CONFIG_ERROR_INVALID, "line 1: not a group");
    assert_refused("[]\n", CONFIG_ERROR_INVALID, "line 1: not a group");
    assert_refused(DISK "=x\n", CONFIG_ERROR_INVALID, "line 2: neither");
    assert_refused("\n\n" DISK "x\n", CONFIG_ERROR_INVALID, "line 4: neither");
}

static void assert_refused_bytes(const void *data, size_t length, const char *part)
{
    GError *error = NULL;
    cr_assert_null(load_bytes(data, length, &error));
    cr_assert(strstr(error->message, part), "'%s' lacks '%s'", error->message, part);
    g_error_free(error);
}

Test(keyfile, O3_hostile_text_is_one_error)
{
    assert_refused_bytes("[disk a]\0\n", 10, "not UTF-8 text");
    assert_refused_bytes("\xff\xfe[\0d\0", 6, "not UTF-8 text");
    assert_refused_bytes("\x7f"
                         "ELF\x02\x01\x01\0\0",
                         9, "not UTF-8 text");

    g_autofree char *huge = g_strnfill((1u << 20) + 1, '#');
    assert_refused_bytes(huge, (1u << 20) + 1, "larger than 1 MiB");
    mount_config *none = load_bytes(huge, 1u << 20, NULL);
    cr_assert_null(none);
    memset(huge, '[', 1u << 20);
    assert_refused_bytes(huge, 1u << 20, "line 1: not a group");

    GString *many = g_string_new(NULL);
    for (unsigned i = 0; many->len < (1u << 20) - 64; i++)
        g_string_append_printf(many, "[disk %u]\n", i);
    assert_refused_bytes(many->str, many->len, "[disk 0]: no replicas");
    g_string_assign(many, DISK);
    for (unsigned i = 0; i < 65; i++)
        g_string_append_printf(many, "[replica vm1/%u]\nsource=/%u\n", i, i);
    assert_refused_bytes(many->str, many->len, "more than 64 replicas");
    g_string_free(many, TRUE);
}

Test(keyfile, what_is_no_file_is_refused_without_waiting)
{
    support_run("mkfifo fifo.conf && mkdir dir.conf");
    static const char *const names[] = {"fifo.conf", "dir.conf", "none.conf"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = support_path("%s", names[i]);
        mount_config *config = mount_config_new();
        GError *error = NULL;
        cr_assert(!config_load_keyfile(config, path, &error));
        cr_assert(g_error_matches(error, CONFIG_ERROR, CONFIG_ERROR_FILE), "%s",
                  error->message);
        g_error_free(error);
        mount_config_free(config);
    }
}

/* Whatever is changed in a good text, the answer is a configuration that fits together or
 * one error line. */
Test(keyfile, O3_any_text_is_a_configuration_or_an_error)
{
    static const char good[] =
        DISK "file=x\nthreshold=1\nallow-dir=/x;/y\n" REPLICA "format=raw\ntimeout=1s\n";
    uint64_t state = support_seed();
    for (unsigned round = 0; round < 3000; round++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        unsigned n = 1 + (unsigned)(support_random(&state) % 4);
        while (n-- > 0) {
            static const char bytes[] = "[]=/;\\#\n\r\t \001az09\xc3\xa4";
            text[support_random(&state) % (sizeof good - 1)] =
                bytes[support_random(&state) % (sizeof bytes - 1)];
        }
        GError *error = NULL;
        mount_config *config = load_bytes(text, sizeof good - 1, &error);
        cr_assert((config != NULL) == (error == NULL));
        for (guint i = 0; config && i < config->disks->len; i++) {
            cr_assert_geq(nth_disk(config, i)->replicas->len, 1u);
            cr_assert_not_null(nth_disk(config, i)->file);
            cr_assert_not_null(nth_replica(nth_disk(config, i), 0)->path);
        }
        cr_assert(!error || error->domain == CONFIG_ERROR, "%s",
                  error ? error->message : "");
        cr_assert(!error || !strchr(error->message, '\n'), "%s",
                  error ? error->message : "");
        g_clear_error(&error);
        mount_config_free(config);
    }
}
