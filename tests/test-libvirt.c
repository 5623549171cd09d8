/*
 * libvirt XML: what it fills in, what it refuses and where it says that is, that it goes to
 * a keyfile and back, and that no text can hurt.
 */
#include "fuse/config-internal.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>
#include <unistd.h>

#define REPLICA(name)                                                                    \
    "<backingStore type='file'><source file='/" name "'/></backingStore>\n"
#define DISK(inside) "<disk type='quorum'>" inside "</disk>"

typedef bool parse_function(mount_config *config, const char *file, const char *text,
                            GError **error);

static mount_config *parse_with(parse_function *parse, const char *text, GError **error)
{
    mount_config *config = mount_config_new();
    if (parse(config, "/etc/q/vm.xml", text, error))
        return config;
    mount_config_free(config);
    return NULL;
}

static mount_config *parse(const char *text)
{
    GError *error = NULL;
    mount_config *config = parse_with(config_parse_libvirt, text, &error);
    cr_assert_not_null(config, "%s", error ? error->message : "");
    return config;
}

static disk_options *nth_disk(const mount_config *config, unsigned i)
{
    return g_ptr_array_index(config->disks, i);
}

static replica_options *nth_replica(const disk_options *d, unsigned i)
{
    return g_ptr_array_index(d->replicas, i);
}

static void assert_one_line(const GError *error)
{
    cr_assert_eq(error->domain, CONFIG_ERROR);
    cr_assert(g_utf8_validate(error->message, -1, NULL));
    cr_assert_leq(strlen(error->message), 512u);
    for (const char *p = error->message; *p; p++)
        cr_assert(!g_ascii_iscntrl(*p), "%s", error->message);
}

static void assert_refused(const char *text, const char *part)
{
    GError *error = NULL;
    mount_config *config = parse_with(config_parse_libvirt, text, &error);
    cr_assert_null(config, "taken: %.200s", text);
    assert_one_line(error);
    cr_assert(strstr(error->message, part), "'%s' is not in '%s'", part, error->message);
    g_error_free(error);
}

/* ---- What it fills in ------------------------------------------------------------- */

Test(libvirt, a_domain_with_two_quorums_and_other_disks)
{
    mount_config *config = parse(
        "\xef\xbb\xbf<?xml version='1.0'?>\n<!-- <disk type='quorum'/> -->\n"
        "<domain type='kvm' xmlns:qemu='x'><name>v</name>\n"
        "<metadata><disk type='quorum'/></metadata><devices><emulator>q</emulator>\n"
        "<disk type='file'><driver type='qcow2'/><source file='/o'/><threshold/></disk>\n"
        "<disk type='quorum' device='disk' model='x'>\n"
        "  <driver name='qemu' type='quorum' format='raw' cache='none'/>\n"
        "  <threshold value='2'/>\n"
        "  <backingStore type='file' index='1'><format type='qcow2'/>\n"
        "    <source file='rel/a'><seclabel "
        "model='dac'><label>x</label></seclabel></source>\n"
        "    <backingStore type='file'><format type='raw'/><source file='/base'/>\n"
        "      <backingStore/></backingStore></backingStore>\n"
        "  <backingStore type='block'><driver name='qemu' format='raw'/>\n"
        "    <source dev='/dev/b'/></backingStore>\n"
        "  <backingStore type='file'><driver type='qcow'/><source file='/c:d'/>\n"
        "    <quorumfs:options xmlns:quorumfs='u' name='third' "
        "timeout='2s'/></backingStore>\n"
        "  <target dev='vda' bus='virtio'/><readonly/><serial>77</serial>\n"
        "  <alias name='ua-1'/><boot order='1'/></disk>\n"
        "<disk type='quorum' threshold='1'>" REPLICA("x") REPLICA(
            "y") "<target dev='vdb'/><quorumfs:options file='f.img' min-replicas='2'"
                 " password-file='pw'/><quorumfs:allow-dir path='/bases'/></disk>\n"
                 "</devices></domain>\n");
    cr_assert_eq(config->disks->len, 2u);
    const disk_options *one = nth_disk(config, 0), *two = nth_disk(config, 1);
    cr_assert_str_eq(one->name, "vda");
    cr_assert_str_eq(one->file, "vda.img");
    cr_assert_str_eq(one->alias, "ua-1");
    cr_assert(one->threshold == 2 && one->read_only);
    cr_assert_eq(one->replicas->len, 3u);
    cr_assert_str_eq(nth_replica(one, 0)->name, "a");
    cr_assert_str_eq(nth_replica(one, 0)->path, "/etc/q/rel/a");
    cr_assert_str_eq(nth_replica(one, 0)->format, "qcow2");
    cr_assert_str_eq(nth_replica(one, 1)->path, "/dev/b");
    cr_assert_str_eq(nth_replica(one, 1)->format, "raw");
    cr_assert_str_eq(nth_replica(one, 2)->name, "third");
    cr_assert_str_eq(nth_replica(one, 2)->path, "/c:d");
    cr_assert_str_eq(nth_replica(one, 2)->format, "qcow");
    cr_assert_eq(nth_replica(one, 2)->timeout_ms, 2000u);
    cr_assert(two->threshold == 1 && !two->read_only && two->min_replicas == 2);
    cr_assert_str_eq(two->file, "f.img");
    cr_assert_str_eq(g_ptr_array_index(two->allow_dirs, 0), "/bases");
    cr_assert_str_eq(nth_replica(two, 1)->password_file, "/etc/q/pw");
    cr_assert_null(nth_replica(two, 0)->format);
    mount_config_free(config);
}

Test(libvirt, one_disk_alone)
{
    mount_config *config = parse(DISK(REPLICA("a")));
    cr_assert_str_eq(nth_disk(config, 0)->name, "disk");
    cr_assert_str_eq(nth_disk(config, 0)->file, "disk.img");
    cr_assert_eq(nth_disk(config, 0)->threshold, 0u);
    mount_config_free(config);
    config = parse("<devices>" DISK(REPLICA("a") "<alias name='colo1'/>") "</devices>");
    cr_assert_str_eq(nth_disk(config, 0)->name, "colo1");
    mount_config_free(config);
    config = parse("<disk type='quorum' device='cdrom'>" REPLICA("a") "</disk>");
    cr_assert(nth_disk(config, 0)->read_only);
    mount_config_free(config);
}

Test(libvirt, network_sources_are_uris)
{
#define HOST "<host name='h' port='10809'/>"
    static const struct {
        const char *source, *tls, *uri;
    } rows[] = {
        {"name='x'>" HOST, "", "nbd://h/x"},
        {">" HOST, "", "nbd://h/"},
        {"name='/a b?#%'><host name='::1' port='7' transport='tcp'/>", "",
         "nbd://[::1]:7//a%20b%3F%23%25"},
        {"name='x'><host socket='/run/a&amp;b=c'/>", "",
         "nbd+unix:///x?socket=/run/a%26b%3Dc"},
        {"name='x' tls='no'><host transport='unix' socket='/s'/>", "",
         "nbd+unix:///x?socket=/s"},
        {"name='x' tls='yes'>" HOST, "<quorumfs:tls certificates='/pki'/>",
         "nbds://h/x?tls-certificates=/pki"},
        {"name='x' tls='yes'>" HOST, "<quorumfs:tls user='al:@' psk-file='/psk'/>",
         "nbds://al%3A%40@h/x?tls-psk-file=/psk"},
        {"name='x' tls='yes'><host transport='unix' socket='/s'/>",
         "<quorumfs:tls user='u' psk-file='/psk'/>",
         "nbds+unix://u@/x?socket=/s&tls-psk-file=/psk"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *text = g_strdup_printf(
            DISK("<backingStore type='network'><source protocol='nbd' %s</source>%s"
                 "</backingStore>"),
            rows[i].source, rows[i].tls);
        mount_config *config = parse(text);
        cr_assert_str_eq(nth_replica(nth_disk(config, 0), 0)->path, rows[i].uri);
        mount_config_free(config);
    }
}

/* ---- What it refuses -------------------------------------------------------------- */

Test(libvirt, errors_name_line_and_element)
{
    static const struct {
        const char *text, *part;
    } rows[] = {
        {"<disk type='quorum'>\n<threshold value=2/>\n", "vm.xml: line 2: Odd character"},
        {"<disk type='quorum'>\n\n", "line 3: Document ended"},
        {DISK("\n<threshold value='0'/>"), "line 2: <threshold>: threshold=0: "},
        {DISK("\n<threshold vale='2'/>"),
         "line 2: <threshold>: unknown attribute 'vale' (did you mean 'value'?)"},
        {DISK("<threshold/>"), "<threshold>: no value="},
        {DISK("<threshold>2</threshold>"), "<threshold>: no value="},
        {DISK("\n\n2"), "line 3: text among"},
        {DISK("<threshold value='1'/><threshold value='1'/>"), "is repeated"},
        {DISK("<threshold value='1' value='1'/>"), "value= is given twice"},
        {"<disk type='quorum' threshold='1'><threshold value='2'/></disk>",
         "given twice"},
        {"<disk type='quorum' treshold='1'/>", "(did you mean 'threshold'?)"},
        {"\n<disk type='quorum'>\n<threshold value='2'/>" REPLICA("a") "\n</disk>",
         "line 2: <disk>: threshold=2: may not exceed children count (1)"},
        {DISK("\n<treshold value='2'/>"),
         "line 2: <treshold>: unknown element (did you mean 'threshold'?)"},
        {DISK(), "<disk>: no replicas"},
        {DISK(REPLICA("a") "\n<quorumfs:options min-replicas='2'/>\n"),
         "line 3: <quorumfs:options>: min-replicas=2"},
        {DISK(REPLICA("a") "<quorumfs:options degarded='warn'/>"), "'degraded'"},
        {DISK(REPLICA("a") "<quorumfs:options threshold='1'/>"), "element of its own"},
        {DISK(REPLICA("a") "<quorumfs:options password='pw'/>"), "password cannot be"},
        {DISK("<backingStore/>"), "no type= (file, block or network)"},
        {DISK("<backingStore type='dir'/>"), "type='dir': not a replica's"},
        {DISK("\n<backingStore type='file'>\n</backingStore>"),
         "line 2: <backingStore>: no <source file='PATH'/>"},
        {DISK("<backingStore type='block'><source file='/a'/></backingStore>"),
         "<source>: unknown attribute 'file'"},
        {DISK("<backingStore type='file'><source file='&#10;'/></backingStore>"),
         "file=: a control character"},
        {DISK("<backingStore type='file'><format type='vmdk'/></backingStore>"),
         "<format>: unknown format 'vmdk'"},
        {DISK("<backingStore type='file'><format type='raw'/><driver type='qcow2'/>"
              "</backingStore>"),
         "<driver>: format=qcow2: the other key says 'raw'"},
        {DISK("<backingStore type='file'><source file='/a'/><quorumfs:options "
              "source='exec:x'/></backingStore>"),
         "source= has an element of its own"},
        {DISK("<backingStore type='file'><source file='/a'/><quorumfs:options "
              "name='b'/></backingStore>" REPLICA("b")),
         "two replicas have the name 'b'"},
        {DISK(REPLICA("a") "<target dev='../x'/>"), "contains '/'"},
        {DISK(REPLICA("a") "<target dev='a]'/>"), "contains a bracket"},
        {DISK(REPLICA("a") "<source file='/x'/>"), "source of the quorum itself"},
        {DISK(REPLICA("a") "<transient/>"), "<transient>: a disk that forgets"},
        {DISK("<driver type='qcow2'/>"), "driver of this disk is quorum"},
        {DISK("<driver type='quorum' format='qcow2'/>"), "a quorum is raw"},
        {"<domain><devices>" DISK(REPLICA("a")) "</devices></domain>", "no <target"},
        {"<devices>" DISK(REPLICA("a") "<target dev='x'/>")
             DISK(REPLICA("b") "<target dev='x'/>") "</devices>",
         "two quorums have the name 'x'"},
        {"<devices>" DISK(REPLICA("a") "<target dev='x'/>") "\n" DISK(REPLICA(
             "b") "<target dev='y'/><quorumfs:options file='x.img'/>") "</devices>",
         "line 3: <disk>: another disk has the file 'x.img' too"},
        {DISK(REPLICA("a")) DISK(REPLICA("b")), "a second document"},
        {"<disk type='file'/>", "not of type='quorum'"},
        {"<pool/>", "neither <domain> nor <disk>"},
        {"<domain><devices/></domain>", "no <disk type='quorum'>"},
        {"", "empty"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
        assert_refused(rows[i].text, rows[i].part);
}

Test(libvirt, network_sources_refused)
{
    static const struct {
        const char *source, *part;
    } rows[] = {
        {"protocol='rbd' name='p/x'>", "protocol='rbd' is not available"},
        {"name='x'>", "protocol='' is not available"},
        {"protocol='nbd'>", "no <host name='HOST'/>"},
        {"protocol='nbd'>" HOST HOST, "one replica, one host"},
        {"protocol='nbd' tls='maybe'>" HOST, "tls='maybe'"},
        {"protocol='nbd' tls='yes'>" HOST, "nothing to check the server by"},
        {"protocol='nbd'><host name='h' port='0'/>", "port='0': not a port"},
        {"protocol='nbd'><host name='h' transport='rdma'/>", "transport='rdma'"},
        {"protocol='nbd'><host transport='unix'/>", "socket="},
        {"protocol='nbd'><host name='h' socket='/s' transport='tcp'/>", "not both"},
        {"protocol='nbd'><host socket='rel'/>", "must be an absolute path"},
        {"protocol='nbd'>" HOST "<auth username='u'/>", "authentication"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *text = g_strdup_printf(
            DISK("<backingStore type='network'><source %s</source></backingStore>"),
            rows[i].source);
        assert_refused(text, rows[i].part);
    }
}

Test(libvirt, a_quorum_in_anything_is_refused)
{
    assert_refused(DISK("<backingStore type='quorum'>" REPLICA("a") "</backingStore>"),
                   "a quorum in a quorum");
    assert_refused(
        DISK("<backingStore type='file'><format type='quorum'/></backingStore>"),
        "a quorum in a quorum");
    assert_refused(DISK("<backingStore type='file'><source file='/a'/>"
                        "<backingStore type='quorum'/></backingStore>"),
                   "not a layer");
    assert_refused(
        "<domain><devices><disk type='file'><backingStore type='file'>\n"
        "<backingStore type='quorum'/></backingStore></disk></devices></domain>",
        "line 2: <backingStore>: a quorum is a whole disk");
}

Test(libvirt, references_are_resolved_and_replication_refused_by_name)
{
#define SECONDARY                                                                        \
    DISK("<backingStore type='file'><source file='/a'/>\n<reference "                    \
         "name='colo1'/></backingStore><target dev='vda'/>")
    assert_refused("<devices>" SECONDARY "</devices>",
                   "line 2: <reference>: no disk has the alias 'colo1'");
    assert_refused("<devices>" SECONDARY
                   "<disk type='file'><alias name='colo1'/></disk></devices>",
                   "line 2: <reference>: replication is not available in this version");
    assert_refused(DISK("<backingStore type='file'><reference name='q'/></backingStore>"),
                   "no disk has the alias 'q'");
    assert_refused(DISK("<backingStore type='file'><driver type='replication' "
                        "format='qcow2' mode='secondary'/></backingStore>"),
                   "replication is not available");
}

/* ---- Hostile text ----------------------------------------------------------------- */

static void assert_repeated_refused(const char *before, const char *part, unsigned times,
                                    const char *after, const char *why)
{
    g_autoptr(GString) text = g_string_new(before);
    for (unsigned i = 0; i < times; i++)
        g_string_append(text, part);
    g_string_append(text, after);
    assert_refused(text->str, why);
}

Test(libvirt, O3_hostile_documents_are_an_error)
{
    assert_refused("<!DOCTYPE d [<!ENTITY a 'x'><!ENTITY b '&a;&a;&a;'>]>" DISK("&b;"),
                   "a document type");
    assert_refused("<!DOCTYPE d SYSTEM '/etc/passwd'>" DISK(), "a document type");
    assert_refused(DISK("&xxe;"), "line 1: Entity name");
    assert_repeated_refused("<domain>", "<a>", 100000, "", "nested too deeply");
    assert_repeated_refused("<disk type='quorum'><backingStore type='file'>",
                            "<backingStore type='file'>", 1000, "", "nested too deeply");
    assert_repeated_refused(
        "<disk type='quorum'><backingStore type='file'><source file='", "a/", 300000,
        "'/></backingStore></disk>", "too long");
    assert_repeated_refused("<disk type='quorum' ", "b='' ", 100000, "/>", "attribute");
    assert_repeated_refused("<disk type='quorum'><quorumfs:options ", "b='' ", 60, "/>",
                            "given twice");
    assert_repeated_refused("<", "\xc3\xa4", 300000, ">", "neither <domain>");
    assert_repeated_refused("<disk type='quorum'>", "text", 200000, "</disk>",
                            "text among");
    assert_repeated_refused("<disk type='quorum'>", REPLICA("a"), 65, "</disk>",
                            "more than 64 replicas");
    g_autoptr(GString) many = g_string_new("<devices>");
    for (unsigned i = 0; i < 3000; i++)
        g_string_append_printf(many, DISK(REPLICA("a") "<target dev='v%u'/>"), i);
    assert_refused(many->str, "more than 1000 disks");
}

Test(libvirt, O3_files_that_are_no_text_are_refused)
{
    static const struct {
        const char *bytes;
        size_t length;
    } rows[] = {{"<disk\0>", 7}, {"<disk \xff/>", 9}, {"\xff\xfe<\0", 4}};
    g_autofree char *path = support_path("x.xml");
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        mount_config *config = mount_config_new();
        GError *error = NULL;
        support_save(path, rows[i].bytes, rows[i].length);
        cr_assert(!config_load_libvirt(config, path, &error));
        cr_assert(strstr(error->message, "not UTF-8 text"), "%s", error->message);
        g_error_free(error);
        mount_config_free(config);
    }
}

/* ---- There and back --------------------------------------------------------------- */

static const char *one_of(uint64_t *state, const char *const *words, size_t n)
{
    return words[support_random(state) % n];
}

#define ONE_OF(state, ...)                                                               \
    one_of(state, (const char *[]){__VA_ARGS__},                                         \
           G_N_ELEMENTS(((const char *[]){__VA_ARGS__})))

static bool toss(uint64_t *state)
{
    return support_random(state) % 2 == 0;
}

static char *random_source(uint64_t *state)
{
    static const char *const odd[] = {"a",  "b c", "\xc3\xa4", "&<>'\"", "%41",
                                      ";=", "[x]", "\\",       "a:b",    "#"};
    g_autofree char *escaped = NULL;
    g_autofree char *name = g_strdup_printf(
        "%s%u%s", one_of(state, odd, G_N_ELEMENTS(odd)),
        (unsigned)(support_random(state) % 100), one_of(state, odd, G_N_ELEMENTS(odd)));
    escaped = g_uri_escape_string(name, NULL, TRUE);
    switch (support_random(state) % 5) {
    case 0:
        return g_strdup_printf("nbd://host%s/x%u", ONE_OF(state, "", ":7", ".example"),
                               (unsigned)(support_random(state) % 100));
    case 1:
        return g_strdup_printf("nbd+unix:///x?socket=/run/%s", escaped);
    case 2:
        return g_strdup_printf("nbds://al@[fe80::1]/x?tls-psk-file=/%s", escaped);
    case 3:
        return g_strdup_printf("nbds://h/?tls-certificates=/%s", escaped);
    default:
        return g_strdup_printf("/srv/%s", name);
    }
}

static void set(GKeyFile *keys, const char *group, bool wanted, const char *key,
                const char *value)
{
    if (wanted)
        g_key_file_set_string(keys, group, key, value);
}

static void random_replica(GKeyFile *keys, uint64_t *state, unsigned number, unsigned i)
{
    g_autofree char *name =
        toss(state) ? g_strdup_printf("%c", 'a' + (int)i) : g_strdup_printf("r<%u>'", i);
    g_autofree char *group = g_strdup_printf("replica vm %u/%s", number, name);
    g_autofree char *source = random_source(state);
    set(keys, group, true, "source", source);
    set(keys, group, toss(state), "format", ONE_OF(state, "raw", "qcow", "qcow2"));
    set(keys, group, toss(state), "decoder", ONE_OF(state, "auto", "native", "both"));
    set(keys, group, toss(state), "timeout", ONE_OF(state, "1s", "77ms"));
    set(keys, group, toss(state), "password-file", "/p'w");
}

static char *random_keyfile(uint64_t *state)
{
    g_autoptr(GKeyFile) keys = g_key_file_new();
    unsigned n = 1 + (unsigned)(support_random(state) % 3);
    for (unsigned number = 0; number < n; number++) {
        g_autofree char *group = g_strdup_printf("disk vm %u", number);
        g_autofree char *file = g_strdup_printf("f&%u.img", number);
        g_autofree char *alias = g_strdup_printf("ua-%u", number);
        g_key_file_set_string(keys, group, "decoder", ONE_OF(state, "auto", "libqcow"));
        set(keys, group, toss(state), "file", file);
        set(keys, group, toss(state), "alias", alias);
        set(keys, group, toss(state), "threshold", "1");
        set(keys, group, toss(state), "min-replicas", "1");
        set(keys, group, toss(state), "read-only", ONE_OF(state, "true", "false"));
        set(keys, group, toss(state), "on-divergence", ONE_OF(state, "log", "repair"));
        set(keys, group, toss(state), "degraded", ONE_OF(state, "warn", "refuse"));
        set(keys, group, toss(state), "read-pattern", ONE_OF(state, "rotate", "fifo"));
        set(keys, group, toss(state), "replica-timeout", "3s");
        set(keys, group, toss(state), "blkverify", "true");
        set(keys, group, toss(state), "allow-dir", ONE_OF(state, "/x", "/x;/y z&"));
        unsigned replicas = 1 + (unsigned)(support_random(state) % 4);
        for (unsigned i = 0; i < replicas; i++)
            random_replica(keys, state, number, i);
    }
    return g_key_file_to_data(keys, NULL, NULL);
}

static void assert_same_text(const char *a, const char *b)
{
    cr_assert(g_strcmp0(a, b) == 0, "'%s' became '%s'", a ? a : "(none)",
              b ? b : "(none)");
}

static void assert_same_replica(const replica_options *a, const replica_options *b)
{
    assert_same_text(a->name, b->name);
    assert_same_text(a->source, b->source);
    assert_same_text(a->path, b->path);
    assert_same_text(a->format, b->format);
    assert_same_text(a->password_file, b->password_file);
    cr_assert(a->decoder == b->decoder && a->timeout_ms == b->timeout_ms);
}

static void assert_same_disk(const disk_options *a, const disk_options *b)
{
    assert_same_text(a->name, b->name);
    assert_same_text(a->file, b->file);
    assert_same_text(a->alias, b->alias);
    cr_assert(a->threshold == b->threshold && a->decoder == b->decoder &&
              a->read_only == b->read_only && a->timeout_ms == b->timeout_ms &&
              a->min_replicas == b->min_replicas &&
              a->degraded_warn == b->degraded_warn &&
              a->on_divergence_repair == b->on_divergence_repair &&
              a->read_pattern == b->read_pattern && a->blkverify == b->blkverify);
    cr_assert_eq(a->allow_dirs->len, b->allow_dirs->len);
    for (guint i = 0; i < a->allow_dirs->len; i++)
        assert_same_text(g_ptr_array_index(a->allow_dirs, i),
                         g_ptr_array_index(b->allow_dirs, i));
    cr_assert_eq(a->replicas->len, b->replicas->len);
    for (guint i = 0; i < a->replicas->len; i++)
        assert_same_replica(nth_replica(a, i), nth_replica(b, i));
}

typedef char *write_function(const mount_config *config, GError **error);

/* `config` written and read again is the same; frees it, and returns the text. */
static char *assert_comes_back(mount_config *config, write_function *write,
                               parse_function *read)
{
    GError *error = NULL;
    char *text = write(config, &error);
    cr_assert_not_null(text, "%s", error ? error->message : "");
    mount_config *again = parse_with(read, text, &error);
    cr_assert_not_null(again, "%s\n%s", error ? error->message : "", text);
    cr_assert_eq(again->disks->len, config->disks->len);
    for (guint i = 0; i < config->disks->len; i++)
        assert_same_disk(nth_disk(config, i), nth_disk(again, i));
    mount_config_free(config);
    mount_config_free(again);
    return text;
}

Test(libvirt, keyfile_to_xml_and_back_is_the_same)
{
    uint64_t state = support_seed();
    for (unsigned round = 0; round < 400; round++) {
        g_autofree char *keyfile = random_keyfile(&state);
        GError *error = NULL;
        mount_config *config = parse_with(config_parse_keyfile, keyfile, &error);
        cr_assert_not_null(config, "%s\n%s", error ? error->message : "", keyfile);
        g_autofree char *xml =
            assert_comes_back(config, config_write_libvirt, config_parse_libvirt);
        g_autofree char *back =
            assert_comes_back(parse(xml), config_write_keyfile, config_parse_keyfile);
        config = parse_with(config_parse_keyfile, back, &error);
        cr_assert_not_null(config);
        g_autofree char *second = config_write_libvirt(config, &error);
        assert_same_text(xml, second);
        mount_config_free(config);
    }
}

Test(libvirt, what_has_no_words_in_the_other_form_is_refused)
{
    static const struct {
        const char *keyfile, *part;
    } rows[] = {
        {"[disk v]\n[replica v/a]\nsource=exec:nbdkit {socket}\n",
         "[replica v/a]: exec: cannot be written in libvirt XML"},
        {"[disk v]\n[replica v/a]\nsource=/a\\tb\n",
         "[replica v/a]: '/a?b' cannot be written in XML"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
        GError *error = NULL;
        mount_config *config = parse_with(config_parse_keyfile, rows[i].keyfile, &error);
        cr_assert_not_null(config, "%s", error ? error->message : "");
        cr_assert_null(config_write_libvirt(config, &error));
        assert_one_line(error);
        cr_assert(strstr(error->message, rows[i].part), "%s", error->message);
        g_error_free(error);
        mount_config_free(config);
    }
    mount_config *config = parse(DISK(REPLICA("a") "<quorumfs:allow-dir path='/a;b'/>"));
    GError *error = NULL;
    cr_assert_null(config_write_keyfile(config, &error));
    cr_assert(strstr(error->message, "allow-dir=/a;b"), "%s", error->message);
    g_error_free(error);
    mount_config_free(config);
}

/* Whatever is changed in a good text, the answer is a configuration that fits together or
 * one error line. */
Test(libvirt, O3_any_text_is_a_configuration_or_an_error)
{
    static const char good[] =
        "<domain><devices><disk type='quorum'><threshold value='1'/>" REPLICA(
            "a") "<backingStore type='network'><source protocol='nbd' name='x'><host "
                 "name='h'/>"
                 "</source><quorumfs:options name='r'/></backingStore><target dev='vda'/>"
                 "<quorumfs:options min-replicas='1' "
                 "file='f'/></disk></devices></domain>";
    uint64_t state = support_seed();
    for (unsigned round = 0; round < 5000; round++) {
        static const char bytes[] = "<>/='&;\"! \n\t\001a0?-[]\xc3\xa4";
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (uint64_t n = 1 + support_random(&state) % 3; n > 0; n--)
            text[support_random(&state) % (sizeof good - 1)] =
                bytes[support_random(&state) % (sizeof bytes - 1)];
        if (!g_utf8_validate(text, -1, NULL))
            continue;
        GError *error = NULL;
        mount_config *config = parse_with(config_parse_libvirt, text, &error);
        cr_assert((config != NULL) == (error == NULL));
        if (error)
            assert_one_line(error);
        for (guint i = 0; config && i < config->disks->len; i++) {
            cr_assert_not_null(nth_disk(config, i)->name);
            cr_assert_not_null(nth_disk(config, i)->file);
            cr_assert_not_null(nth_replica(nth_disk(config, i), 0)->path);
        }
        g_clear_error(&error);
        mount_config_free(config);
    }
}
