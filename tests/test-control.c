/*
 * test-control.c: the verbs on a daemon's context with one disk of three raw replicas, and
 * the client that the sub-commands use.
 */
#include "fuse/control.h"
#include "fuse/explain.h"
#include "fuse/qmp.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE     (1u << 20)
#define FOR_EVER (3600 * (gint64)G_USEC_PER_SEC)

typedef struct rig {
    daemon_context context;
    mount_config config;
    disk_options *options;
    control *control;
    atomic_uint quits;
} rig;

static void add_replica(rig *r, const char *name, size_t size)
{
    g_autofree uint8_t *content = g_malloc(size);
    support_pattern(content, size, 0, 1);
    replica_options *replica = replica_options_new();
    replica->name = g_strdup(name);
    replica->path = support_path("%s.raw", name);
    replica->source = g_strdup(replica->path);
    replica->format = g_strdup("raw");
    support_save(replica->path, content, size);
    g_ptr_array_add(r->options->replicas, replica);
}

static void count_quit(void *opaque)
{
    rig *r = opaque;
    atomic_fetch_add(&r->quits, 1);
}

static rig *rig_sized(size_t size)
{
    GError *error = NULL;
    rig *r = g_new0(rig, 1);
    r->options = disk_options_new();
    r->options->name = g_strdup("vm1");
    r->options->file = g_strdup("disk.img");
    add_replica(r, "a", size);
    add_replica(r, "b", size);
    add_replica(r, "c", size);
    disk *d = disk_open(r->options, NULL, &error);
    cr_assert_not_null(d, "%s", error ? error->message : "");
    r->config.mountpoint = (char *)"/mnt/quorum";
    r->context.config = &r->config;
    r->context.disks = g_ptr_array_new();
    r->context.journals = g_ptr_array_new();
    r->context.state_dir = g_strdup(support_dir());
    r->context.socket_path = support_path("qmp.sock");
    r->context.started_us = g_get_monotonic_time();
    g_ptr_array_add(r->context.disks, d);
    g_ptr_array_add(r->context.journals, NULL);
    r->control = control_start(&r->context, count_quit, r, &error);
    cr_assert_not_null(r->control, "%s", error ? error->message : "");
    return r;
}

static rig *rig_new(void)
{
    return rig_sized(SIZE);
}

static void rig_free(rig *r)
{
    cr_assert(control_stop(r->control, FOR_EVER));
    disk_close(r->context.disks->pdata[0]);
    g_ptr_array_unref(r->context.disks);
    g_ptr_array_unref(r->context.journals);
    g_free(r->context.state_dir);
    g_free(r->context.socket_path);
    disk_options_free(r->options);
    g_free(r);
}

/* A command that succeeds; `arguments` is taken over. */
static json_t *call(rig *r, const char *command, json_t *arguments)
{
    GError *error = NULL;
    json_t *value = NULL;
    cr_assert(control_call(r->context.socket_path, command, arguments, &value, &error),
              "%s: %s", command, error ? error->message : "");
    cr_assert_not_null(value);
    json_decref(arguments);
    return value;
}

/* One that fails; `expected` is the error's text. */
static void call_fails(rig *r, const char *command, json_t *arguments, int code,
                       const char *expected)
{
    GError *error = NULL;
    json_t *value = NULL;
    cr_assert(!control_call(r->context.socket_path, command, arguments, &value, &error));
    cr_assert_null(value);
    cr_assert_str_eq(error->message, expected);
    cr_assert(error->domain == QMP_ERROR && error->code == code);
    g_clear_error(&error);
    json_decref(arguments);
}

static json_t *range(const char *name, uint64_t offset, uint64_t length)
{
    return json_pack("{s:s, s:I, s:I}", "disk", name, "offset", (json_int_t)offset,
                     "length", (json_int_t)length);
}

Test(control, version_and_commands)
{
    rig *r = rig_new();
    json_t *version = call(r, "query-version", NULL);
    int major, minor, micro;
    const char *package;
    cr_assert_eq(json_unpack_ex(version, NULL, JSON_STRICT, "{s:{s:i,s:i,s:i},s:s}",
                                "qemu", "major", &major, "minor", &minor, "micro", &micro,
                                "package", &package),
                 0);
    g_autofree char *text = g_strdup_printf("quorumfs-%d.%d.%d", major, minor, micro);
    cr_assert_str_eq(package, text);
    json_decref(version);
    json_t *commands = call(r, "query-commands", json_object());
    g_autofree char *names = json_dumps(commands, JSON_COMPACT);
    cr_assert_str_eq(names,
                     "[{\"name\":\"qmp_capabilities\"},{\"name\":\"query-version\"},"
                     "{\"name\":\"query-commands\"},{\"name\":\"quit\"},"
                     "{\"name\":\"quorumfs-status\"},"
                     "{\"name\":\"quorumfs-explain\"},{\"name\":\"quorumfs-scrub\"},"
                     "{\"name\":\"quorumfs-scrub-cancel\"},"
                     "{\"name\":\"quorumfs-resync\"},"
                     "{\"name\":\"quorumfs-replica-remove\"},"
                     "{\"name\":\"quorumfs-replica-put\"},"
                     "{\"name\":\"quorumfs-replica-replace\"}]");
    json_decref(commands);
    rig_free(r);
}

Test(control, status_is_the_status_file)
{
    rig *r = rig_new();
    json_t *status = call(r, "quorumfs-status", NULL);
    json_t *d = json_array_get(json_object_get(status, "disks"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(d, "name")), "vm1");
    cr_assert_str_eq(json_string_value(json_object_get(d, "state")), "healthy");
    cr_assert_eq(json_array_size(json_object_get(d, "replicas")), 3);
    json_decref(status);
    rig_free(r);
}

Test(control, explain_tells_who_holds_what)
{
    rig *r = rig_new();
    g_autofree char *c = support_path("c.raw");
    support_poke(c, 4096 + 600, "rot", 3);
    json_t *object = call(r, "quorumfs-explain", range("vm1", 4096, 2048));
    json_t *runs = json_object_get(object, "runs");
    cr_assert_eq(json_array_size(runs), 3);
    json_t *run = json_array_get(runs, 1);
    cr_assert_eq(json_integer_value(json_object_get(run, "offset")), 4608);
    cr_assert_eq(json_integer_value(json_object_get(run, "length")), 512);
    cr_assert(json_is_true(json_object_get(run, "differs")));
    cr_assert(json_is_true(json_object_get(run, "quorum")));
    const char *digests[3];
    for (unsigned i = 0; i < 3; i++) {
        json_t *row = json_array_get(json_object_get(run, "replicas"), i);
        digests[i] = json_string_value(json_object_get(row, "sha256"));
        cr_assert_not_null(digests[i]);
        cr_assert_eq(json_is_true(json_object_get(row, "wins")), i < 2);
        cr_assert_eq(json_integer_value(json_object_get(row, "host-offset")), 4608);
    }
    cr_assert_str_eq(digests[0], digests[1]);
    cr_assert_neq(strcmp(digests[0], digests[2]), 0);
    cr_assert(json_is_false(json_object_get(json_array_get(runs, 0), "differs")));
    cr_assert(json_is_false(json_object_get(json_array_get(runs, 2), "differs")));
    json_decref(object);
    rig_free(r);
}

Test(control, explain_without_a_length_is_one_sector)
{
    rig *r = rig_new();
    json_t *object = call(r, "quorumfs-explain",
                          json_pack("{s:s, s:i}", "disk", "vm1", "offset", 1000));
    cr_assert_eq(json_integer_value(json_object_get(object, "offset")), 512);
    cr_assert_eq(json_integer_value(json_object_get(object, "length")), 512);
    json_decref(object);
    rig_free(r);
}

Test(control, explain_refuses_what_it_cannot_do)
{
    rig *r = rig_new();
    const char *bad_range =
        "The range must start below the disk's end, 1048576, and be no "
        "longer than 67108864 bytes";
    call_fails(r, "quorumfs-explain", range("vm2", 0, 512), QMP_ERROR_GENERIC,
               "Disk 'vm2' not found");
    call_fails(r, "quorumfs-explain", range("vm1", SIZE, 512), QMP_ERROR_GENERIC,
               bad_range);
    call_fails(r, "quorumfs-explain", range("vm1", INT64_MAX, 1), QMP_ERROR_GENERIC,
               bad_range);
    call_fails(r, "quorumfs-explain", range("vm1", 0, DISK_EXPLAIN_MAX + 1),
               QMP_ERROR_GENERIC, bad_range);
    call_fails(r, "quorumfs-explain", json_pack("{s:s}", "disk", "vm1"),
               QMP_ERROR_GENERIC, "Parameter 'offset' is missing");
    call_fails(r, "quorumfs-explain",
               json_pack("{s:s, s:i, s:i}", "disk", "vm1", "offset", 0, "foo", 1),
               QMP_ERROR_GENERIC, "Parameter 'foo' is unexpected");
    call_fails(r, "quorumfs-explain",
               json_pack("{s:s, s:i}", "disk", "vm1", "offset", -1), QMP_ERROR_GENERIC,
               "Invalid parameter type for 'offset', expected: uint64");
    rig_free(r);
}

static json_t *named(const char *name)
{
    return json_pack("{s:s}", "disk", name);
}

/* The first row of the disk's jobs; a new reference. */
static json_t *first_job(rig *r)
{
    json_t *status = call(r, "quorumfs-status", NULL), *job = NULL;
    json_unpack(status, "{s:[{s:[O]}]}", "disks", "jobs", &job);
    cr_assert_not_null(job);
    json_decref(status);
    return job;
}

static int64_t job_int(const json_t *job, const char *key)
{
    cr_assert(json_is_integer(json_object_get(job, key)), "%s", key);
    return json_integer_value(json_object_get(job, key));
}

static void expect_job(const json_t *job, const char *key, const char *expected)
{
    const char *text = json_string_value(json_object_get(job, key));
    cr_assert_not_null(text, "%s", key);
    cr_assert_str_eq(text, expected);
}

static json_t *await_job(rig *r)
{
    json_t *job = first_job(r);
    while (g_strcmp0(json_string_value(json_object_get(job, "status")), "concluded")) {
        json_decref(job);
        job = first_job(r);
    }
    return job;
}

Test(control, scrub_is_a_job_that_ends)
{
    rig *r = rig_new();
    g_autofree char *c = support_path("c.raw");
    support_poke(c, 1024, "rot", 3);
    json_decref(call(r, "quorumfs-scrub", named("vm1")));
    json_t *job = await_job(r);
    expect_job(job, "type", "scrub");
    expect_job(job, "device", "scrub-vm1");
    expect_job(job, "result", "completed");
    expect_job(job, "io-status", "ok");
    cr_assert(json_is_false(json_object_get(job, "repair")));
    cr_assert(json_is_false(json_object_get(job, "busy")));
    cr_assert_eq(job_int(job, "len"), SIZE);
    cr_assert_eq(job_int(job, "offset"), SIZE);
    cr_assert_eq(job_int(job, "checked-bytes"), SIZE);
    cr_assert_eq(job_int(job, "differing-bytes"), 512);
    cr_assert_eq(job_int(job, "repaired-bytes"), 0);
    cr_assert_eq(job_int(job, "ranges"), 1);
    json_decref(job);
    json_decref(
        call(r, "quorumfs-scrub", json_pack("{s:s, s:b}", "disk", "vm1", "repair", 1)));
    job = await_job(r);
    cr_assert(json_is_true(json_object_get(job, "repair")));
    cr_assert_eq(job_int(job, "repaired-bytes"), 512);
    json_decref(job);
    rig_free(r);
}

Test(control, scrub_says_what_it_cannot_do)
{
    rig *r = rig_sized(3 * SIZE);
    call_fails(r, "quorumfs-scrub", named("vm2"), QMP_ERROR_GENERIC,
               "Disk 'vm2' not found");
    call_fails(r, "quorumfs-scrub-cancel", named("vm1"), QMP_ERROR_DEVICE_NOT_ACTIVE,
               "Disk 'vm1' is not being scrubbed");
    json_decref(
        call(r, "quorumfs-scrub", json_pack("{s:s, s:i}", "disk", "vm1", "speed", 1)));
    call_fails(r, "quorumfs-scrub", named("vm1"), QMP_ERROR_GENERIC,
               "Disk 'vm1' is being scrubbed already");
    json_t *job = first_job(r);
    expect_job(job, "status", "running");
    cr_assert_eq(job_int(job, "speed"), 1);
    json_decref(job);
    json_decref(call(r, "quorumfs-scrub-cancel", named("vm1")));
    job = await_job(r);
    expect_job(job, "result", "cancelled");
    json_decref(job);
    call_fails(r, "quorumfs-resync", named("vm1"), QMP_ERROR_GENERIC,
               "Disk 'vm1': a resync needs a disk that can be written to");
    rig_free(r);
}

/* A replica that was overwritten in every other sector: the worst that a range can be. */
Test(control, explain_is_bounded)
{
    enum { LARGE = 6u << 20 };
    rig *r = rig_sized(LARGE);
    g_autofree char *c = support_path("c.raw");
    for (unsigned i = 0; i < LARGE; i += 1024)
        support_poke(c, i, "rot", 3);
    json_t *object = call(r, "quorumfs-explain", range("vm1", 0, SIZE));
    cr_assert_eq(json_array_size(json_object_get(object, "runs")), SIZE / 512);
    json_decref(object);
    call_fails(r, "quorumfs-explain", range("vm1", 0, LARGE), QMP_ERROR_GENERIC,
               "The range has too many pieces that differ (ask for less)");
    rig_free(r);
}

Test(control, quit_asks_for_the_end_after_its_answer)
{
    rig *r = rig_new();
    call_fails(r, "quit", json_pack("{s:i}", "now", 1), QMP_ERROR_GENERIC,
               "Parameter 'now' is unexpected");
    cr_assert_eq(atomic_load(&r->quits), 0);
    json_t *nothing = call(r, "quit", NULL);
    cr_assert_eq(json_object_size(nothing), 0);
    json_decref(nothing);
    while (atomic_load(&r->quits) == 0)
        g_thread_yield();
    cr_assert_eq(atomic_load(&r->quits), 1);
    rig_free(r);
}

Test(control, errors_keep_their_class)
{
    rig *r = rig_new();
    call_fails(r, "nope", NULL, QMP_ERROR_COMMAND_NOT_FOUND,
               "The command nope has not been found");
    call_fails(r, "qmp_capabilities", NULL, QMP_ERROR_COMMAND_NOT_FOUND,
               "Capabilities negotiation is already complete, command ignored");
    rig_free(r);
}

Test(control, a_second_daemon_on_the_socket_is_refused)
{
    rig *r = rig_new();
    GError *error = NULL;
    cr_assert_null(control_start(&r->context, count_quit, r, &error));
    cr_assert(g_str_has_prefix(error->message, "control socket: "), "%s", error->message);
    cr_assert(g_str_has_suffix(error->message, "in use by another process"));
    g_clear_error(&error);
    json_decref(call(r, "query-version", NULL)); /* the first one is unharmed */
    rig_free(r);
    cr_assert(control_stop(NULL, 0));
}

/* ---- The client against servers that misbehave ------------------------------------- */

typedef struct impostor {
    int listener;
    const char *text;
} impostor;

static gpointer impostor_run(gpointer data)
{
    impostor *i = data;
    int fd = -1;
    while (fd < 0) {
        fd = accept(i->listener, NULL, NULL);
        g_thread_yield();
    }
    (void)!send(fd, i->text, strlen(i->text), MSG_NOSIGNAL);
    shutdown(fd, SHUT_WR);
    char sink[256];
    while (recv(fd, sink, sizeof sink, 0) > 0)
        ;
    close(fd);
    return NULL;
}

Test(control, the_client_survives_any_server)
{
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"", ": the daemon closed the connection"},
        {"{\"QMP\": {}}\r\n{\"return\"", ": the daemon closed the connection"},
        {"hello\n", ": the answer cannot be read"},
        {"{\"QMP\": {}}{]}", ": the answer cannot be read"},
        {"[1]", ": the answer cannot be read"},
        {"{\"error\": {\"class\": \"GenericError\", \"desc\": \"Too many\"}}",
         "Too many"},
        {"{\"error\": 1}", "unknown error"},
        /* Events may come at any time. */
        {"{\"QMP\": {}}{\"event\": \"A\"}{\"return\": {}}{\"event\": \"B\"}"
         "{\"return\": [5]}",
         NULL},
    };
    g_autofree char *path = support_path("s");
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        impostor server = {qmp_socket_listen(path, NULL), cases[i].text};
        GThread *thread = g_thread_new("impostor", impostor_run, &server);
        GError *error = NULL;
        json_t *value = NULL;
        bool good = control_call(path, "x", NULL, &value, &error);
        g_thread_join(thread);
        close(server.listener);
        cr_assert_eq(good, cases[i].expected == NULL, "case %u", i);
        if (good)
            cr_assert_eq(json_integer_value(json_array_get(value, 0)), 5);
        else
            cr_assert(g_str_has_suffix(error->message, cases[i].expected), "%s",
                      error->message);
        g_clear_error(&error);
        json_decref(value);
    }
}
