/*
 * What the command line and the keyfile accept, refuse and fill in.
 */
#include "fuse/config-internal.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static disk_options *first_disk(const mount_config *config)
{
    return g_ptr_array_index(config->disks, 0);
}

static replica_options *nth_replica(const disk_options *d, unsigned i)
{
    return g_ptr_array_index(d->replicas, i);
}

static mount_config *three_images(void)
{
    char *words[] = {(char *)"/a.raw", (char *)"/b.raw", (char *)"/c.raw"};
    mount_config *config = mount_config_new();
    cr_assert(config_from_words(config, words, 3, NULL, NULL, NULL));
    return config;
}

static void assert_error(GError *error, config_error code, const char *part,
                         const char *input)
{
    cr_assert_not_null(error, "accepted: %s", input);
    cr_assert(error->domain == CONFIG_ERROR && error->code == (int)code,
              "%s: code %d instead of %d (%s)", input, error->code, (int)code,
              error->message);
    cr_assert(strstr(error->message, part), "%s: '%s' lacks '%s'", input, error->message,
              part);
    cr_assert(!strchr(error->message, '\n'), "more than one line: %s", error->message);
    g_error_free(error);
}

Test(config, sizes)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"512", 512},
        {"4K", 4096},
        {"4k", 4096},
        {"1M", 1048576},
        {"0x200", 512},
        {"0x10K", 16384},
        {"3G", 3221225472u},
        {"2T", (uint64_t)2 << 40},
        {"18446744073709551615", UINT64_MAX},
        {"16777215T", (uint64_t)16777215 << 40},
    };
    static const char *const bad[] = {
        "",    "-1", "+1",  " 1",   "1 ",  "1KB",
        "K",   "0x", "1.5", "1e3",  "1P",  "16777216T",
        "1KK", "ab", "1-",  "0xgg", "1\n", "18446744073709551616"};
    uint64_t bytes;
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        cr_assert(config_parse_size(good[i].text, &bytes), "%s", good[i].text);
        cr_assert_eq(bytes, good[i].bytes, "%s", good[i].text);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        cr_assert(!config_parse_size(bad[i], &bytes), "accepted '%s'", bad[i]);
}

Test(config, times)
{
    unsigned ms;
    cr_assert(config_parse_time_ms("5s", &ms));
    cr_assert_eq(ms, 5000u);
    cr_assert(config_parse_time_ms("250ms", &ms));
    cr_assert_eq(ms, 250u);
    cr_assert(config_parse_time_ms("2", &ms));
    cr_assert_eq(ms, 2000u);
    static const char *const bad[] = {"",    "s",  "-1s",  "5m",
                                      "5 s", "5S", "1.5s", "2147484s"};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        cr_assert(!config_parse_time_ms(bad[i], &ms), "accepted '%s'", bad[i]);
}

Test(config, nearest_word)
{
    static const char *const known[] = {"mount", "umount", "status", "threshold",
                                        "qmp=",  "ro",     NULL};
    cr_assert_str_eq(config_nearest("mout", known), "mount");
    cr_assert_str_eq(config_nearest("unmount", known), "umount");
    cr_assert_str_eq(config_nearest("treshold", known), "threshold");
    cr_assert_str_eq(config_nearest("thrseholt", known), "threshold");
    cr_assert_str_eq(config_nearest("qpm=", known), "qmp=");
    cr_assert_null(config_nearest("tohldsrhe", known));
    cr_assert_null(config_nearest("xy", known));
    cr_assert_null(config_nearest("rw", known));
    cr_assert_null(config_nearest("", known));
    g_autofree char *endless = g_strnfill(100000, 'm');
    cr_assert_null(config_nearest(endless, known));
}

Test(words, O1_format_comes_from_the_word)
{
    static const struct {
        const char *word, *format, *expected_format, *expected_path;
    } rows[] = {
        {"/x/a.qcow2", NULL, NULL, "/x/a.qcow2"},
        {"/x/a.qcow2", "raw", "raw", "/x/a.qcow2"},
        {"qcow2:/x/a", NULL, "qcow2", "/x/a"},
        {"qcow:/x/a", "raw", "qcow", "/x/a"},
        {"raw:/x/a:b", NULL, "raw", "/x/a:b"},
        {"/x/raw:b", NULL, NULL, "/x/raw:b"},
        {"raw:/x/a.conf", NULL, "raw", "/x/a.conf"},
        {"nbd://h/a:b.conf", NULL, NULL, "nbd://h/a:b.conf"},
        {"nbds://u@h/x?tls-psk-file=/k", NULL, NULL, "nbds://u@h/x?tls-psk-file=/k"},
        {"raw:nbd+unix:///?socket=/s", NULL, "raw", "nbd+unix:///?socket=/s"},
        {"exec:nbdkit -U {socket} x", NULL, NULL, "exec:nbdkit -U {socket} x"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        GError *error = NULL;
        replica_options *r = config_parse_image(rows[i].word, rows[i].format, &error);
        cr_assert_not_null(r, "%s: %s", rows[i].word, error ? error->message : "");
        cr_assert_eq(g_strcmp0(r->format, rows[i].expected_format), 0, "%s",
                     rows[i].word);
        cr_assert_str_eq(r->path, rows[i].expected_path);
        cr_assert_str_eq(r->source, rows[i].word);
        cr_assert_eq(r->decoder, -1);
        replica_options_free(r);
    }
}

Test(words, a_relative_path_becomes_absolute)
{
    cr_assert_eq(chdir(support_dir()), 0);
    g_autofree char *here = g_get_current_dir();
    replica_options *r = config_parse_image("./a:b", NULL, NULL);
    g_autofree char *expected = g_strdup_printf("%s/./a:b", here);
    cr_assert_str_eq(r->path, expected);
    replica_options_free(r);
}

Test(words, image_words_refused)
{
    static const struct {
        const char *word, *format;
        config_error code;
        const char *part;
    } rows[] = {
        {"", NULL, CONFIG_ERROR_USAGE, "no path"},
        {"raw:", NULL, CONFIG_ERROR_USAGE, "no path"},
        {"vmdk:/x", NULL, CONFIG_ERROR_USAGE, "unknown format 'vmdk'"},
        {"a:b", NULL, CONFIG_ERROR_USAGE, "'./a:b'"},
        {"json:{}", NULL, CONFIG_ERROR_USAGE, "unknown format 'json'"},
        {":x", NULL, CONFIG_ERROR_USAGE, "unknown format ''"},
        {"/x", "vdi", CONFIG_ERROR_USAGE, "unknown format 'vdi'"},
        {"nbd:h:1", NULL, CONFIG_ERROR_USAGE, "write nbd://HOST/EXPORT"},
        {"nbds://h/x", NULL, CONFIG_ERROR_USAGE, "tls-certificates=DIR"},
        {"raw:nbd+unix:///x", NULL, CONFIG_ERROR_USAGE, "?socket=PATH"},
        {"exec:qemu-nbd x", NULL, CONFIG_ERROR_USAGE, "{socket}"},
        {"exec:'", NULL, CONFIG_ERROR_USAGE, "exec:'"},
        {"exec:", NULL, CONFIG_ERROR_USAGE, "exec:"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        GError *error = NULL;
        cr_assert_null(config_parse_image(rows[i].word, rows[i].format, &error));
        assert_error(error, rows[i].code, rows[i].part, rows[i].word);
    }
}

Test(words, replicas_are_named_in_order)
{
    char *words[VOTE_REPLICAS_MAX + 1];
    for (unsigned i = 0; i <= VOTE_REPLICAS_MAX; i++)
        words[i] = (char *)"/x.raw";
    mount_config *config = mount_config_new();
    cr_assert(config_from_words(config, words, VOTE_REPLICAS_MAX, NULL, NULL, NULL));
    const disk_options *d = first_disk(config);
    cr_assert_str_eq(d->name, "disk");
    cr_assert_str_eq(d->file, "disk.img");
    cr_assert_eq(d->threshold, 0u);
    cr_assert_str_eq(nth_replica(d, 0)->name, "a");
    cr_assert_str_eq(nth_replica(d, 25)->name, "z");
    cr_assert_str_eq(nth_replica(d, 26)->name, "aa");
    cr_assert_str_eq(nth_replica(d, 52)->name, "ba");
    mount_config_free(config);

    config = mount_config_new();
    GError *error = NULL;
    cr_assert(
        !config_from_words(config, words, VOTE_REPLICAS_MAX + 1, NULL, NULL, &error));
    assert_error(error, CONFIG_ERROR_USAGE, "65 images", "65 images");
    mount_config_free(config);
}

Test(words, sets_of_words_refused)
{
    static const struct {
        const char *words[3];
        const char *format, *name;
        config_error code;
        const char *part;
    } rows[] = {
        {{NULL}, NULL, NULL, CONFIG_ERROR_USAGE, "no image"},
        {{"a.conf", "b.raw"}, NULL, NULL, CONFIG_ERROR_USAGE, "not both"},
        {{"b.raw", "a.xml"}, NULL, NULL, CONFIG_ERROR_USAGE, "not both"},
        {{"a.conf"}, "raw", NULL, CONFIG_ERROR_USAGE, "--format"},
        {{"a.conf"}, NULL, "x", CONFIG_ERROR_USAGE, "--name"},
        {{"/nowhere/a.xml"}, NULL, NULL, CONFIG_ERROR_FILE, "No such file"},
        {{"/nowhere/a.conf"}, NULL, NULL, CONFIG_ERROR_FILE, "No such file"},
        {{"a.raw"}, NULL, "", CONFIG_ERROR_USAGE, "is empty"},
        {{"a.raw"}, NULL, "x/y", CONFIG_ERROR_USAGE, "contains '/'"},
        {{"a.raw"}, NULL, "..", CONFIG_ERROR_USAGE, "is taken"},
        {{"a.raw"}, NULL, ".quorumfs", CONFIG_ERROR_USAGE, "is taken"},
        {{"a.raw"}, NULL, "a\nb", CONFIG_ERROR_USAGE, "control character"},
        {{"a.raw"}, NULL, "\xff", CONFIG_ERROR_USAGE, "not UTF-8"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        mount_config *config = mount_config_new();
        GError *error = NULL;
        unsigned n = 0;
        while (rows[i].words[n])
            n++;
        cr_assert(!config_from_words(config, (char *const *)rows[i].words, n,
                                     rows[i].format, rows[i].name, &error));
        if (error && strchr(error->message, '\n'))
            *strchr(error->message, '\n') = '?'; /* cli_error does that */
        assert_error(error, rows[i].code, rows[i].part, rows[i].part);
        mount_config_free(config);
    }
}

Test(options, fill_the_disks_and_the_mount)
{
    mount_config *config = three_images();
    GError *error = NULL;
    cr_assert(config_apply_options(
                  config,
                  "threshold=3,decoder=native,replica-timeout=250ms,allow-dir=/x,"
                  "allow-dir=/y,cache=none,uid=7,gid=8,umask=027,allow_other,ro,"
                  "state-dir=/s,qmp=/q,password-file=/p",
                  &error),
              "%s", error ? error->message : "");
    const disk_options *d = first_disk(config);
    cr_assert_eq(d->threshold, 3u);
    cr_assert_eq((int)d->decoder, (int)CHAIN_DECODER_NATIVE);
    cr_assert_eq(d->timeout_ms, 250u);
    cr_assert_eq(d->allow_dirs->len, 2u);
    cr_assert_str_eq(g_ptr_array_index(d->allow_dirs, 1), "/y");
    cr_assert(config->read_only && config->allow_other);
    cr_assert(config->has_uid && config->uid == 7);
    cr_assert(config->has_gid && config->gid == 8);
    cr_assert_eq(config->umask, (mode_t)027);
    cr_assert_eq((int)config->cache, (int)CONFIG_CACHE_NONE);
    cr_assert_str_eq(config->state_dir, "/s");
    cr_assert_str_eq(config->socket_path, "/q");
    cr_assert_str_eq(nth_replica(d, 2)->password_file, "/p");
    cr_assert_eq(config->fuse_options->len, 0u);
    mount_config_free(config);
}

Test(options, what_others_put_there_is_accepted)
{
    static const char *const words[] = {
        "",
        ",,",
        "rw",
        "rw,nofail,_netdev,noauto,user,users,x-systemd.automount,x-initrd.mount",
        "defaults",
        "comment=a thing",
        "user=alice",
        "suid,dev,exec,async,relatime,strictatime,lazytime,nodiratime",
        "subtype=quorumfs",
        "on-divergence=repair,on-divergence=log,read-pattern=quorum",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        mount_config *config = three_images();
        GError *error = NULL;
        cr_assert(config_apply_options(config, words[i], &error), "%s: %s", words[i],
                  error ? error->message : "");
        cr_assert_eq(config->fuse_options->len, 0u, "%s was passed on", words[i]);
        cr_assert(!config->read_only);
        mount_config_free(config);
    }
}

Test(options, what_reads_find_is_repaired_if_that_is_said)
{
    mount_config *config = three_images();
    const disk_options *d = g_ptr_array_index(config->disks, 0);
    cr_assert(config_apply_options(config, "on-divergence=repair", NULL));
    cr_assert(d->on_divergence_repair && !d->read_only);
    config_make_offline(config);
    cr_assert(!d->on_divergence_repair && d->read_only);
    mount_config_free(config);
}

Test(options, a_degraded_disk_is_refused_unless_it_is_said_otherwise)
{
    mount_config *config = three_images();
    const disk_options *d = g_ptr_array_index(config->disks, 0);
    cr_assert(!d->degraded_warn && !d->force && d->min_replicas == 0);
    cr_assert(config_apply_options(config, "min-replicas=2,degraded=warn,force", NULL));
    cr_assert(d->degraded_warn && d->min_replicas == 2);
    cr_assert(config->force && !d->force);
    config_make_forced(config);
    cr_assert(d->force);
    cr_assert(config_apply_options(config, "degraded=refuse", NULL));
    cr_assert(!d->degraded_warn); /* the last one counts */
    mount_config_free(config);
}

Test(options, libfuse_gets_its_own_as_written)
{
    mount_config *config = three_images();
    cr_assert(config_apply_options(
        config,
        "fsname=a\\,b,nosuid,nodev,noexec,noatime,default_permissions,auto_unmount",
        NULL));
    cr_assert_eq(config->fuse_options->len, 7u);
    cr_assert_str_eq(g_ptr_array_index(config->fuse_options, 0), "fsname=a\\,b");
    cr_assert_str_eq(g_ptr_array_index(config->fuse_options, 6), "auto_unmount");
    mount_config_free(config);
}

Test(options, the_last_of_ro_and_rw_counts)
{
    mount_config *config = three_images();
    cr_assert(config_apply_options(config, "ro,rw", NULL));
    cr_assert(!config->read_only);
    cr_assert(config_apply_options(config, "ro", NULL));
    cr_assert(config->read_only);
    cr_assert(!first_disk(config)->read_only);
    config_make_read_only(config);
    cr_assert(first_disk(config)->read_only);
    mount_config_free(config);
}

Test(options, a_comma_can_be_escaped)
{
    mount_config *config = three_images();
    cr_assert(config_apply_options(config, "allow-dir=/a\\,b\\\\c,ro", NULL));
    cr_assert_str_eq(g_ptr_array_index(first_disk(config)->allow_dirs, 0), "/a,b\\c");
    cr_assert(config->read_only);
    mount_config_free(config);
}

Test(options, refused)
{
    static const struct {
        const char *options;
        config_error code;
        const char *part;
    } rows[] = {
        {"treshold=2", CONFIG_ERROR_USAGE,
         "unknown option 'treshold=2' (did you mean 'threshold='?)"},
        {"ro,alow_other", CONFIG_ERROR_USAGE, "(did you mean 'allow_other'?)"},
        {"cashe=none", CONFIG_ERROR_USAGE, "(did you mean 'cache='?)"},
        {"max_read=4096", CONFIG_ERROR_USAGE, "unknown option 'max_read=4096'"},
        {"frobnicate", CONFIG_ERROR_USAGE, "unknown option 'frobnicate'"},
        {"=", CONFIG_ERROR_USAGE, "unknown option"},
        {"threshold", CONFIG_ERROR_USAGE, "'threshold' needs a value"},
        {"threshold=", CONFIG_ERROR_USAGE, "'threshold' needs a value"},
        {"threshold=0", CONFIG_ERROR_USAGE, "expects a value >= 1"},
        {"threshold=-1", CONFIG_ERROR_USAGE, "not a number"},
        {"threshold=two", CONFIG_ERROR_USAGE, "not a number"},
        {"threshold=4294967296", CONFIG_ERROR_USAGE, "not a number"},
        {"ro=1", CONFIG_ERROR_USAGE, "'ro' takes no value"},
        {"uid=root", CONFIG_ERROR_USAGE, "not a number"},
        {"uid=4294967295", CONFIG_ERROR_USAGE, "not a number"},
        {"gid=-1", CONFIG_ERROR_USAGE, "not a number"},
        {"umask=9", CONFIG_ERROR_USAGE, "octal"},
        {"umask=1000", CONFIG_ERROR_USAGE, "octal"},
        {"cache=sometimes", CONFIG_ERROR_USAGE, "auto, none or writeback"},
        {"decoder=qemu", CONFIG_ERROR_USAGE, "auto, libqcow, native or both"},
        {"replica-timeout=0", CONFIG_ERROR_USAGE, "not a time"},
        {"replica-timeout=soon", CONFIG_ERROR_USAGE, "not a time"},
        {"subtype=other", CONFIG_ERROR_USAGE, "quorumfs"},
        {"min-replicas=4", CONFIG_ERROR_USAGE, "only 3 replicas"},
        {"min-replicas=0", CONFIG_ERROR_USAGE, "expects a value >= 1"},
        {"degraded=maybe", CONFIG_ERROR_USAGE, "refuse or warn"},
        {"force=1", CONFIG_ERROR_USAGE, "'force' takes no value"},
        {"forse", CONFIG_ERROR_USAGE, "(did you mean 'force'?)"},
        {"on-divergence=maybe", CONFIG_ERROR_USAGE, "unknown value"},
        {"blkverify=true", CONFIG_ERROR_USAGE, "'blkverify' takes no value"},
        {"read-pattern=lifo", CONFIG_ERROR_USAGE, "(quorum, rotate or fifo)"},
        {"read-pattern", CONFIG_ERROR_USAGE, "'read-pattern' needs a value"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        mount_config *config = three_images();
        GError *error = NULL;
        cr_assert(!config_apply_options(config, rows[i].options, &error), "accepted: %s",
                  rows[i].options);
        assert_error(error, rows[i].code, rows[i].part, rows[i].options);
        mount_config_free(config);
    }
}

Test(options, a_read_pattern_is_for_every_disk)
{
    static const disk_pattern all[] = {DISK_PATTERN_QUORUM, DISK_PATTERN_ROTATE,
                                       DISK_PATTERN_FIFO};
    mount_config *config = three_images();
    const disk_options *d = g_ptr_array_index(config->disks, 0);
    cr_assert(d->read_pattern == DISK_PATTERN_QUORUM && !d->blkverify);
    for (unsigned i = 0; i < G_N_ELEMENTS(all); i++) {
        g_autofree char *word =
            g_strdup_printf("read-pattern=%s", disk_pattern_name(all[i]));
        cr_assert(config_apply_options(config, word, NULL));
        cr_assert_eq(d->read_pattern, all[i]);
    }
    cr_assert(config_apply_options(config, "blkverify", NULL));
    cr_assert(d->blkverify);
    mount_config_free(config);
}

Test(options, a_secret_is_refused_and_not_repeated)
{
    static const char *const words[] = {"password=hunter2", "ro,password=hunter2",
                                        "pasword=hunter2", "passphrase=hunter2"};
    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        mount_config *config = three_images();
        GError *error = NULL;
        cr_assert(!config_apply_options(config, words[i], &error));
        cr_assert(!strstr(error->message, "hunter2"));
        assert_error(error, CONFIG_ERROR_USAGE, "password-file", words[i]);
        mount_config_free(config);
    }
}

Test(state_dir, same_set_same_directory)
{
    support_run(
        "mkdir -p one state && touch a.raw b.raw c.raw && ln -s ../a.raw one/link");
    cr_assert_eq(chdir(support_dir()), 0);
    static const char *const sets[][3] = {
        {"a.raw", "b.raw", NULL},
        {"raw:b.raw", "./one/../a.raw", NULL},
        {"one/link", "b.raw", NULL},
        {"a.raw", "c.raw", NULL},
    };
    char *dirs[G_N_ELEMENTS(sets)];
    for (size_t i = 0; i < G_N_ELEMENTS(sets); i++) {
        mount_config *config = mount_config_new();
        cr_assert(config_from_words(config, (char *const *)sets[i], 2, NULL, NULL, NULL));
        cr_assert(config_apply_options(config, "state-dir=state", NULL));
        GError *error = NULL;
        dirs[i] = config_make_state_dir(config, &error);
        cr_assert_not_null(dirs[i], "%s", error ? error->message : "");
        mount_config_free(config);
    }
    struct stat st;
    cr_assert_eq(stat(dirs[0], &st), 0);
    cr_assert_eq(st.st_mode & 07777, (mode_t)0700);
    cr_assert_str_eq(dirs[0], dirs[1]);
    cr_assert_str_eq(dirs[0], dirs[2]);
    cr_assert_neq(strcmp(dirs[0], dirs[3]), 0);
    for (size_t i = 0; i < G_N_ELEMENTS(sets); i++)
        g_free(dirs[i]);
}

static char *state_dir_of(const char *state_dir, GError **error)
{
    mount_config *config = three_images();
    g_autofree char *option = g_strdup_printf("state-dir=%s", state_dir);
    cr_assert(config_apply_options(config, option, NULL));
    char *dir = config_make_state_dir(config, error);
    mount_config_free(config);
    return dir;
}

Test(state_dir, must_be_ours_alone)
{
    g_autofree char *state = support_path("state");
    g_autofree char *dir = state_dir_of(state, NULL);
    cr_assert_eq(chmod(dir, 0777), 0);
    g_autofree char *again = state_dir_of(state, NULL);
    struct stat st;
    cr_assert_eq(stat(again, &st), 0);
    cr_assert_eq(st.st_mode & 07777, (mode_t)0700);

    support_run("rmdir '%s' && mkdir elsewhere && ln -s ../elsewhere '%s'", dir, dir);
    GError *error = NULL;
    cr_assert_null(state_dir_of(state, &error));
    assert_error(error, CONFIG_ERROR_FILE, "state-dir=", "a symbolic link");

    support_run("rm '%s' && touch '%s'", dir, dir);
    error = NULL;
    cr_assert_null(state_dir_of(state, &error));
    assert_error(error, CONFIG_ERROR_FILE, "state directory", "a file");
}
