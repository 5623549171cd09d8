/*
 * test-control-events.c: records of the journal as events on the control socket (R4).
 */
#include "fuse/control-events.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FOR_EVER (3600 * (gint64)G_USEC_PER_SEC)

typedef struct rig {
    qmp_server *server;
    char *path;
} rig;

static const qmp_command commands[] = {{.name = "qmp_capabilities"}};

static rig rig_new(void)
{
    GError *error = NULL;
    rig r = {.path = support_path("events.sock")};
    r.server = qmp_server_start(r.path, commands, 1, NULL, &error);
    cr_assert_not_null(r.server, "%s", error ? error->message : "");
    return r;
}

static void rig_free(rig *r)
{
    cr_assert(qmp_server_stop(r->server, FOR_EVER));
    g_free(r->path);
}

static int dial(const rig *r)
{
    int fd = qmp_socket_connect(r->path, NULL);
    cr_assert_geq(fd, 0);
    return fd;
}

static json_t *hear(int fd)
{
    GString *line = g_string_new(NULL);
    char part[65536];
    ssize_t there;
    const char *end = NULL;
    while (!end && (there = recv(fd, part, sizeof part, MSG_PEEK)) > 0) {
        end = memchr(part, '\n', (size_t)there);
        size_t used = end ? (size_t)(end - part) + 1 : (size_t)there;
        g_string_append_len(line, part, (gssize)used);
        cr_assert_eq(recv(fd, part, used, 0), (ssize_t)used);
    }
    json_t *object = json_loads(line->str, 0, NULL);
    cr_assert_not_null(object, "'%s'", line->str);
    g_string_free(line, TRUE);
    return object;
}

static int join(const rig *r)
{
    const char *text = "{\"execute\":\"qmp_capabilities\"}";
    int fd = dial(r);
    cr_assert_eq(send(fd, text, strlen(text), 0), (ssize_t)strlen(text));
    json_decref(hear(fd));
    json_decref(hear(fd));
    return fd;
}

/* The data of the next event, which has this name and a time. */
static json_t *expect(int fd, const char *name)
{
    json_t *event = hear(fd);
    cr_assert_str_eq(json_string_value(json_object_get(event, "event")), name);
    json_t *stamp = json_object_get(event, "timestamp");
    cr_assert_gt(json_integer_value(json_object_get(stamp, "seconds")), 1600000000);
    cr_assert(json_is_integer(json_object_get(stamp, "microseconds")));
    json_t *data = json_incref(json_object_get(event, "data"));
    json_decref(event);
    return data;
}

static void expect_data(int fd, const char *name, const char *expected)
{
    json_t *data = expect(fd, name), *wanted = json_loads(expected, 0, NULL);
    char *text = json_dumps(data, 0);
    cr_assert(json_equal(data, wanted), "%s: %s", name, text);
    free(text);
    json_decref(data);
    json_decref(wanted);
}

#define DIVERGENCE                                                                       \
    "{\"event\":\"divergence\",\"disk\":\"vm1\",\"op\":\"scrub\",\"offset\":1024,"       \
    "\"length\":1536,\"winner\":{\"replicas\":[\"a\"]},\"losers\":[{\"replica\":\"b\"}," \
    "{\"replica\":\"c\",\"errno\":5}],\"count\":7}"

Test(control_events, R4_a_divergence_is_told_in_QEMUs_words_and_in_ours)
{
    rig r = rig_new();
    int fd = join(&r);
    control_events_tell(r.server, DIVERGENCE);
    expect_data(fd, "QUORUM_REPORT_BAD",
                "{\"type\":\"read\",\"node-name\":\"vm1.b\",\"sector-num\":2,"
                "\"sectors-count\":3}");
    expect_data(fd, "QUORUM_REPORT_BAD",
                "{\"type\":\"read\",\"node-name\":\"vm1.c\",\"sector-num\":2,"
                "\"sectors-count\":3,\"error\":\"Input/output error\"}");
    expect_data(fd, "quorumfs-divergence", DIVERGENCE);
    close(fd);
    rig_free(&r);
}

Test(control_events, R4_a_failed_write_and_flush_have_QEMUs_types)
{
    rig r = rig_new();
    int fd = join(&r);
    control_events_tell(r.server, "{\"event\":\"replica-error\",\"disk\":\"d\",\"op\":"
                                  "\"discard\",\"offset\":512,\"length\":1,\"losers\":"
                                  "[{\"replica\":\"a\",\"errno\":28}]}");
    expect_data(fd, "QUORUM_REPORT_BAD",
                "{\"type\":\"write\",\"node-name\":\"d.a\",\"sector-num\":1,"
                "\"sectors-count\":1,\"error\":\"No space left on device\"}");
    json_decref(expect(fd, "quorumfs-replica-error"));
    control_events_tell(r.server, "{\"event\":\"replica-error\",\"disk\":\"d\",\"op\":"
                                  "\"flush\",\"offset\":0,\"length\":0,\"losers\":"
                                  "[{\"replica\":\"a\",\"errno\":5}]}");
    expect_data(fd, "QUORUM_REPORT_BAD",
                "{\"type\":\"flush\",\"node-name\":\"d.a\",\"sector-num\":0,"
                "\"sectors-count\":0,\"error\":\"Input/output error\"}");
    json_decref(expect(fd, "quorumfs-replica-error"));
    close(fd);
    rig_free(&r);
}

Test(control_events, R1_a_quorum_failure)
{
    rig r = rig_new();
    int fd = join(&r);
    control_events_tell(r.server,
                        "{\"event\":\"quorum-failure\",\"disk\":\"d\",\"offset\":"
                        "4096,\"length\":512,\"losers\":[]}");
    expect_data(fd, "QUORUM_FAILURE",
                "{\"reference\":\"d\",\"sector-num\":8,\"sectors-count\":1}");
    json_decref(expect(fd, "quorumfs-quorum-failure"));
    close(fd);
    rig_free(&r);
}

Test(control_events, a_transition_is_an_event_for_all_that_have_negotiated)
{
    const char *record = "{\"event\":\"replica-state\",\"disk\":\"d\",\"action\":"
                         "\"in-sync -> hung\",\"losers\":[{\"replica\":\"b\"}]}";
    rig r = rig_new();
    int one = join(&r), two = join(&r), stranger = dial(&r);
    json_decref(hear(stranger)); /* the greeting */
    cr_assert(qmp_server_is_heard(r.server));
    control_events_tell(r.server, record);
    expect_data(one, "quorumfs-replica-state", record);
    expect_data(two, "quorumfs-replica-state", record);
    char c;
    cr_assert_lt(recv(stranger, &c, 1, MSG_DONTWAIT), 0);
    close(one);
    close(two);
    close(stranger);
    while (qmp_server_is_heard(r.server))
        g_thread_yield();
    rig_free(&r);
}

Test(control_events, what_is_no_record_is_no_event)
{
    rig r = rig_new();
    int fd = join(&r);
    const char *lines[] = {"", "{", "[]", "{\"event\":7}", "{\"disk\":\"d\"}"};
    for (size_t i = 0; i < G_N_ELEMENTS(lines); i++)
        control_events_tell(r.server, lines[i]);
    control_events_tell(r.server, "{\"event\":\"job\"}");
    json_decref(expect(fd, "quorumfs-job"));
    close(fd);
    rig_free(&r);
}

/* A listener that does not read costs the one who tells nothing. */
Test(control_events, R5_nobody_waits_for_a_listener)
{
    rig r = rig_new();
    int lazy = join(&r), fd = join(&r);
    g_autofree char *big = g_strnfill(1u << 20, 'x');
    g_autofree char *record =
        g_strdup_printf("{\"event\":\"divergence\",\"disk\":\"%s\"}", big);
    for (unsigned i = 0; i < 70; i++) { /* more than QMP_OUTPUT_MAX */
        control_events_tell(r.server, record);
        json_decref(expect(fd, "quorumfs-divergence"));
    }
    close(lazy);
    close(fd);
    rig_free(&r);
}
