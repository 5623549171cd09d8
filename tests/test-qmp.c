/*
 * test-qmp.c: the wire: cutting the stream, messages, and the server with verbs of its own
 * (one that echoes, one that waits at a gate, one that answers at length).
 */
#include "fuse/qmp-stream.h"
#include "fuse/qmp.h"
#include "tests/support.h"
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- The stream -------------------------------------------------------------------- */

/* All items of a text fed in pieces of `step` bytes: values one per line, "!" for a bad one. */
static char *items_of(const char *text, size_t length, size_t step, size_t max)
{
    GString *items = g_string_new(NULL);
    qmp_stream stream;
    qmp_stream_init(&stream, max);
    for (size_t at = 0; at < length; at += step) {
        size_t part = MIN(step, length - at);
        for (size_t done = 0; done < part;) {
            size_t used;
            qmp_item item =
                qmp_stream_feed(&stream, text + at + done, part - done, &used);
            done += used;
            if (item == QMP_ITEM_VALUE)
                g_string_append_printf(items, "%s\n", stream.value->str);
            else if (item == QMP_ITEM_BAD)
                g_string_append(items, "!\n");
        }
    }
    qmp_stream_clear(&stream);
    return g_string_free(items, FALSE);
}

static void assert_items(const char *text, const char *expected)
{
    for (size_t step = 1; step < 40; step += 3) {
        g_autofree char *items = items_of(text, strlen(text), step, 1000);
        cr_assert_str_eq(items, expected, "%s in steps of %zu gives %s", text, step,
                         items);
    }
}

Test(qmp_stream, values_without_newlines)
{
    assert_items("{}{}", "{}\n{}\n");
    assert_items(" {\"a\": [1, {}]}\r\n\t[2]{\"b\":2}",
                 "{\"a\": [1, {}]}\n[2]\n{\"b\":2}\n");
    assert_items("", "");
    assert_items("{\"a\":", "");
    assert_items("{\n\"a\":\n1\n}\n", "{\n\"a\":\n1\n}\n");
}

Test(qmp_stream, brackets_in_strings_do_not_count)
{
    assert_items("{\"a\":\"}{][\"}{}", "{\"a\":\"}{][\"}\n{}\n");
    assert_items("{\"a\":\"\\\"}\"}{}", "{\"a\":\"\\\"}\"}\n{}\n");
    assert_items("{\"a\":\"\\\\\"}{}", "{\"a\":\"\\\\\"}\n{}\n");
}

Test(qmp_stream, single_quotes_become_double)
{
    assert_items("{'a':'b'}", "{\"a\":\"b\"}\n");
    assert_items("{'a':'say \"x\"'}", "{\"a\":\"say \\\"x\\\"\"}\n");
    assert_items("{'it\\'s':\"it's \\' so\"}", "{\"it's\":\"it's ' so\"}\n");
    assert_items("{'\\\\':'\\\"'}", "{\"\\\\\":\"\\\"\"}\n");
    assert_items("{'}':'{'}{}", "{\"}\":\"{\"}\n{}\n");
}

Test(qmp_stream, garbage_is_reported_once_and_left)
{
    assert_items("hello world\n{}", "!\n{}\n");
    assert_items("42 {}", "!\n{}\n");
    assert_items("}}}\n{}", "!\n{}\n");
    assert_items("\"x\"\n\"y\"\n{}", "!\n!\n{}\n");
    assert_items("{\"a\":\"b\nc\"}\n{}", "!\n!\n{}\n"); /* c"} is garbage, too */
    assert_items("{\"a\":\"\tb\"}{}\n{}", "!\n{}\n");
}

Test(qmp_stream, size_and_depth_are_bounded)
{
    g_autofree char *fits = g_strnfill(990, ' ');
    g_autofree char *longer = g_strnfill(5000, ' ');
    g_autofree char *good = g_strconcat("{", fits, "}{}", NULL);
    g_autofree char *expected = g_strconcat("{", fits, "}\n{}\n", NULL);
    g_autofree char *bad = g_strconcat("{", longer, "}\n{}", NULL);
    assert_items(good, expected);
    assert_items(bad, "!\n{}\n");
    g_autofree char *deep = g_strnfill(200000, '[');
    g_autofree char *text = g_strconcat(deep, "\n{}", NULL);
    g_autofree char *items = items_of(text, strlen(text), 4096, 1u << 20);
    cr_assert_str_eq(items, "!\n{}\n");
    g_autofree char *open = g_strnfill(QMP_STREAM_DEPTH_MAX, '[');
    g_autofree char *close = g_strnfill(QMP_STREAM_DEPTH_MAX, ']');
    g_autofree char *nested = g_strconcat(open, close, "\n", NULL);
    g_autofree char *all = items_of(nested, strlen(nested), 100, 1u << 20);
    cr_assert_str_eq(all, nested);
}

Test(qmp_stream, random_bytes_do_no_harm)
{
    static const char alphabet[] = "{}[]\"'\\\n\t 1a\xff";
    uint64_t seed = support_seed();
    for (unsigned round = 0; round < 2000; round++) {
        char text[256];
        for (size_t i = 0; i < sizeof text; i++)
            text[i] =
                alphabet[support_random(&seed) % sizeof alphabet]; /* with the NUL */
        g_autofree char *whole = items_of(text, sizeof text, sizeof text, 100);
        g_autofree char *bytes = items_of(text, sizeof text, 1, 100);
        cr_assert_str_eq(whole, bytes);
    }
}

/* ---- The server -------------------------------------------------------------------- */

#define FOR_EVER (3600 * (gint64)G_USEC_PER_SEC)

typedef struct gate {
    GMutex mutex;
    GCond changed;
    unsigned inside;
    bool open;
} gate;

typedef struct rig {
    qmp_server *server;
    char *path;
    gate gate;
    atomic_uint after;
} rig;

static json_t *run_echo(void *opaque, json_t *arguments, GError **error)
{
    (void)opaque, (void)error;
    return json_incref(json_object_get(arguments, "text"));
}

static json_t *run_wait(void *opaque, json_t *arguments, GError **error)
{
    (void)arguments, (void)error;
    rig *r = opaque;
    g_mutex_lock(&r->gate.mutex);
    r->gate.inside++;
    g_cond_broadcast(&r->gate.changed);
    while (!r->gate.open)
        g_cond_wait(&r->gate.changed, &r->gate.mutex);
    g_mutex_unlock(&r->gate.mutex);
    return json_object();
}

static json_t *run_fail(void *opaque, json_t *arguments, GError **error)
{
    (void)opaque, (void)arguments;
    g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE, "not \xff active");
    return NULL;
}

static json_t *run_long(void *opaque, json_t *arguments, GError **error)
{
    (void)opaque, (void)error;
    size_t length = (size_t)json_integer_value(json_object_get(arguments, "length"));
    g_autofree char *text = g_strnfill(length, 'x');
    return json_string(text);
}

static void count_after(void *opaque)
{
    rig *r = opaque;
    atomic_fetch_add(&r->after, 1);
}

static const qmp_parameter enable[] = {{"enable", QMP_ARRAY, true}, {0}};
static const qmp_parameter echo_parameters[] = {
    {"text", QMP_STRING, false},
    {"flag", QMP_BOOL, true},
    {"count", QMP_UINT, true},
    {0},
};
static const qmp_parameter long_parameters[] = {{"length", QMP_UINT, false}, {0}};
static const qmp_command verbs[] = {
    {.name = "qmp_capabilities", .parameters = enable},
    {.name = "query-commands"},
    {.name = "echo",
     .parameters = echo_parameters,
     .run = run_echo,
     .after = count_after},
    {.name = "wait", .slow = true, .run = run_wait},
    {.name = "fail", .slow = true, .run = run_fail, .after = count_after},
    {.name = "long", .parameters = long_parameters, .run = run_long},
};

static rig *rig_new(void)
{
    GError *error = NULL;
    rig *r = g_new0(rig, 1);
    g_mutex_init(&r->gate.mutex);
    g_cond_init(&r->gate.changed);
    r->path = support_path("qmp.sock");
    r->server = qmp_server_start(r->path, verbs, G_N_ELEMENTS(verbs), r, &error);
    cr_assert_not_null(r->server, "%s", error ? error->message : "");
    return r;
}

static void gate_open(rig *r)
{
    g_mutex_lock(&r->gate.mutex);
    r->gate.open = true;
    g_cond_broadcast(&r->gate.changed);
    g_mutex_unlock(&r->gate.mutex);
}

static void gate_await(rig *r, unsigned inside)
{
    g_mutex_lock(&r->gate.mutex);
    while (r->gate.inside < inside)
        g_cond_wait(&r->gate.changed, &r->gate.mutex);
    g_mutex_unlock(&r->gate.mutex);
}

static void rig_free(rig *r)
{
    gate_open(r);
    cr_assert(qmp_server_stop(r->server, FOR_EVER));
    g_free(r->path);
    g_free(r);
}

static int dial(const rig *r)
{
    GError *error = NULL;
    int fd = qmp_socket_connect(r->path, &error);
    cr_assert_geq(fd, 0, "%s", error ? error->message : "");
    return fd;
}

static void say(int fd, const char *text)
{
    for (size_t left = strlen(text); left > 0;) {
        ssize_t sent = send(fd, text, left, MSG_NOSIGNAL);
        cr_assert_gt(sent, 0);
        text += sent;
        left -= (size_t)sent;
    }
}

/* One line with its CRLF cut off; "" at the end of the connection. */
static char *hear(int fd)
{
    GString *line = g_string_new(NULL);
    char c;
    while (recv(fd, &c, 1, 0) == 1 && c != '\n')
        g_string_append_c(line, c);
    if (line->len > 0) {
        cr_assert_eq(line->str[line->len - 1], '\r');
        g_string_truncate(line, line->len - 1);
    }
    return g_string_free(line, FALSE);
}

static void expect(int fd, const char *expected)
{
    g_autofree char *line = hear(fd);
    cr_assert_str_eq(line, expected, "%s, not %s", line, expected);
}

/* A client past the negotiation. */
static int join(const rig *r)
{
    int fd = dial(r);
    say(fd, "{\"execute\":\"qmp_capabilities\"}");
    g_free(hear(fd));
    expect(fd, "{\"return\": {}}");
    return fd;
}

Test(qmp, greeting_and_negotiation)
{
    rig *r = rig_new();
    int fd = dial(r);
    g_autofree char *greeting = hear(fd);
    json_t *object = json_loads(greeting, JSON_REJECT_DUPLICATES, NULL);
    const char *package;
    int major, minor, micro;
    json_t *capabilities;
    cr_assert_eq(json_unpack_ex(object, NULL, JSON_STRICT,
                                "{s:{s:{s:{s:i,s:i,s:i},s:s},s:o}}", "QMP", "version",
                                "qemu", "major", &major, "minor", &minor, "micro", &micro,
                                "package", &package, "capabilities", &capabilities),
                 0);
    cr_assert(json_is_array(capabilities));
    json_decref(object);
    const char *refused = "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": "
                          "\"Expecting capabilities negotiation with "
                          "'qmp_capabilities'\"}}";
    say(fd, "{'execute':'echo','arguments':{'text':'x'}}\r\n{'execute':'nope'}");
    expect(fd, refused);
    expect(fd, refused);
    say(fd, "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}");
    expect(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": "
               "\"Capability 'oob' not available\"}}");
    say(fd, "{'execute':'qmp_capabilities','arguments':{'enable':[]},'id':'q'}");
    expect(fd, "{\"return\": {}, \"id\": \"q\"}");
    say(fd, "{'execute':'qmp_capabilities'}");
    expect(fd, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": "
               "\"Capabilities negotiation is already complete, command ignored\"}}");
    close(fd);
    rig_free(r);
}

Test(qmp, pipelined_before_the_greeting_is_read)
{
    rig *r = rig_new();
    int fd = dial(r);
    say(fd, "{'execute':'qmp_capabilities'}{'execute':'echo','arguments':{'text':'1'},"
            "'id':1}{'execute':'wait','id':2}{'execute':'echo','arguments':{'text':'3'},"
            "'id':3}\n\n{'execute':'echo','argu");
    g_free(hear(fd));
    expect(fd, "{\"return\": {}}");
    expect(fd, "{\"return\": \"1\", \"id\": 1}");
    gate_await(r, 1);
    say(fd, "ments':{'text':'4'},'id':4}");
    gate_open(r);
    expect(fd, "{\"return\": {}, \"id\": 2}"); /* in order, although it took its time */
    expect(fd, "{\"return\": \"3\", \"id\": 3}");
    expect(fd, "{\"return\": \"4\", \"id\": 4}");
    shutdown(fd, SHUT_WR);
    expect(fd, "");
    close(fd);
    rig_free(r);
}

Test(qmp, what_is_wrong_with_a_request_is_said_by_name)
{
    static const struct {
        const char *request, *class, *desc;
    } cases[] = {
        {"{'id':7}", "GenericError", "QMP input lacks member 'execute'"},
        {"{'execute':1}", "GenericError", "QMP input member 'execute' must be a string"},
        {"{'execute':'echo','arguments':[]}", "GenericError",
         "QMP input member 'arguments' must be an object"},
        {"{'execute':'echo','foo':1}", "GenericError",
         "QMP input member 'foo' is unexpected"},
        {"{'exec-oob':'echo'}", "GenericError",
         "QMP input member 'exec-oob' is unexpected"},
        {"[]", "GenericError", "QMP input must be a JSON object"},
        {"12\n", "GenericError", "QMP input must be a JSON object"},
        {"{'execute':'nope'}", "CommandNotFound", "The command nope has not been found"},
        {"{'execute':'echo'}", "GenericError", "Parameter 'text' is missing"},
        {"{'execute':'echo','arguments':{'text':1}}", "GenericError",
         "Invalid parameter type for 'text', expected: string"},
        {"{'execute':'echo','arguments':{'text':'','flag':0}}", "GenericError",
         "Invalid parameter type for 'flag', expected: boolean"},
        {"{'execute':'echo','arguments':{'text':'','count':-1}}", "GenericError",
         "Invalid parameter type for 'count', expected: uint64"},
        {"{'execute':'echo','arguments':{'text':'','count':1.5}}", "GenericError",
         "Invalid parameter type for 'count', expected: uint64"},
        {"{'execute':'echo','arguments':{'text':'','foo':1}}", "GenericError",
         "Parameter 'foo' is unexpected"},
        {"{'execute':'query-commands','arguments':{'foo':1}}", "GenericError",
         "Parameter 'foo' is unexpected"},
        {"{'execute':'fail'}", "DeviceNotActive", "not \xef\xbf\xbd active"},
    };
    rig *r = rig_new();
    int fd = join(r);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        say(fd, cases[i].request);
        g_autofree char *line = hear(fd);
        json_t *object = json_loads(line, 0, NULL);
        const char *class, *desc;
        cr_assert_eq(
            json_unpack(object, "{s:{s:s,s:s}}", "error", "class", &class, "desc", &desc),
            0, "%s: %s", cases[i].request, line);
        cr_assert_str_eq(class, cases[i].class, "%s: %s", cases[i].request, line);
        cr_assert_str_eq(desc, cases[i].desc, "%s: %s", cases[i].request, line);
        json_decref(object);
    }
    cr_assert_eq(atomic_load(&r->after), 0); /* none of them succeeded */
    say(fd, "{'execute':'echo','execute':'echo'}{\"a\":}");
    for (unsigned i = 0; i < 2; i++) {
        g_autofree char *line = hear(fd);
        cr_assert_not_null(
            strstr(line, "\"GenericError\", \"desc\": \"JSON parse error, "), "%s", line);
    }
    close(fd);
    rig_free(r);
}

Test(qmp, id_is_echoed_whatever_it_is)
{
    static const char *const ids[] = {
        "1", "\"x\"", "null", "true", "1.5", "[1, {\"a\": 2}]", "{\"k\": \"\\u00FC\"}"};
    rig *r = rig_new();
    int fd = join(r);
    for (size_t i = 0; i < G_N_ELEMENTS(ids); i++) {
        g_autofree char *request = g_strdup_printf(
            "{\"id\":%s,\"execute\":\"echo\",\"arguments\":{\"text\":\"\"}}"
            "{\"id\":%s,\"execute\":\"nope\"}{\"id\":%s}",
            ids[i], ids[i], ids[i]);
        g_autofree char *tail = g_strdup_printf("\"id\": %s}", ids[i]);
        say(fd, request);
        for (unsigned answer = 0; answer < 3; answer++) {
            g_autofree char *line = hear(fd);
            cr_assert(g_str_has_suffix(line, tail), "%s", line);
        }
    }
    close(fd);
    rig_free(r);
}

Test(qmp, query_commands_lists_the_table)
{
    rig *r = rig_new();
    int fd = join(r);
    say(fd, "{'execute':'query-commands'}");
    expect(fd, "{\"return\": [{\"name\": \"qmp_capabilities\"}, "
               "{\"name\": \"query-commands\"}, {\"name\": \"echo\"}, "
               "{\"name\": \"wait\"}, {\"name\": \"fail\"}, {\"name\": \"long\"}]}");
    close(fd);
    rig_free(r);
}

Test(qmp, R5_slow_commands_do_not_hold_up_others)
{
    enum { SLOW = QMP_WORKERS + 3 };
    rig *r = rig_new();
    int slow[SLOW], quick = join(r);
    for (unsigned i = 0; i < SLOW; i++) {
        slow[i] = join(r);
        say(slow[i], "{'execute':'wait'}");
    }
    gate_await(r, QMP_WORKERS); /* every worker is stuck, and more are waiting */
    int late = join(r);
    say(quick, "{'execute':'echo','arguments':{'text':'a'}}");
    say(late, "{'execute':'echo','arguments':{'text':'b'}}");
    expect(quick, "{\"return\": \"a\"}");
    expect(late, "{\"return\": \"b\"}");
    close(slow[0]); /* while its command runs */
    gate_open(r);
    for (unsigned i = 1; i < SLOW; i++) {
        expect(slow[i], "{\"return\": {}}");
        close(slow[i]);
    }
    close(quick);
    close(late);
    rig_free(r);
}

Test(qmp, messages_are_bounded)
{
    rig *r = rig_new();
    int fd = join(r);
    g_autofree char *most = g_strnfill(QMP_MESSAGE_MAX - 100, 'x');
    g_autofree char *fits =
        g_strdup_printf("{'execute':'echo','arguments':{'text':'%s'}}", most);
    say(fd, fits);
    g_autofree char *echoed = hear(fd);
    cr_assert_eq(strlen(echoed), QMP_MESSAGE_MAX - 100 + strlen("{\"return\": \"\"}"));
    g_autofree char *more = g_strnfill(2 * QMP_MESSAGE_MAX, 'x');
    g_autofree char *large =
        g_strdup_printf("{'execute':'echo','arguments':{'text':'%s'}}\n", more);
    say(fd, large);
    expect(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": "
               "\"JSON parse error, message size limit exceeded\"}}");
    g_autofree char *deep = g_strnfill(200000, '[');
    say(fd, deep);
    say(fd, "\n");
    expect(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": "
               "\"JSON parse error, nesting depth limit exceeded\"}}");
    say(fd, "{'execute':'echo','arguments':{'text':'still here'}}");
    expect(fd, "{\"return\": \"still here\"}");
    close(fd);
    rig_free(r);
}

Test(qmp, an_answer_that_is_too_long_is_an_error)
{
    rig *r = rig_new();
    int fd = join(r);
    say(fd, "{'execute':'long','arguments':{'length':40000000}}");
    expect(fd, "{\"error\": {\"class\": \"GenericError\", \"desc\": "
               "\"The answer is larger than 32 MiB (ask for less)\"}}");
    say(fd, "{'execute':'long','arguments':{'length':1000000}}");
    char *line = hear(fd);
    cr_assert_eq(strlen(line), 1000000 + strlen("{\"return\": \"\"}"));
    g_free(line);
    close(fd);
    rig_free(r);
}

Test(qmp, a_client_that_does_not_read_is_disconnected)
{
    rig *r = rig_new();
    int lazy = join(r), other = join(r);
    const char *request = "{'execute':'long','arguments':{'length':10000000}}";
    bool refused = false;
    for (unsigned i = 0; i < 100000 && !refused; i++) {
        refused = send(lazy, request, strlen(request), MSG_NOSIGNAL) < 0;
        if (i % 8 == 0) { /* also, nobody else notices */
            say(other, "{'execute':'echo','arguments':{'text':'x'}}");
            expect(other, "{\"return\": \"x\"}");
        }
    }
    cr_assert(refused);
    close(lazy);
    close(other);
    rig_free(r);
}

Test(qmp, commands_of_a_client_that_left_still_run)
{
    rig *r = rig_new();
    int fd = join(r);
    say(fd, "{'execute':'echo','arguments':{'text':'1'}}"
            "{'execute':'echo','arguments':{'text':'2'}}");
    close(fd);
    while (atomic_load(&r->after) < 2)
        g_thread_yield();
    rig_free(r);
}

Test(qmp, clients_are_bounded)
{
    rig *r = rig_new();
    int fds[QMP_CLIENTS_MAX];
    for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
        fds[i] = join(r);
    int extra = dial(r);
    expect(extra, "{\"error\": {\"class\": \"GenericError\", \"desc\": "
                  "\"Too many clients (try again)\"}}");
    expect(extra, "");
    close(extra);
    shutdown(fds[0], SHUT_WR);
    expect(fds[0], ""); /* its place is free when it is told so */
    close(fds[0]);
    fds[0] = join(r);
    for (unsigned i = 0; i < QMP_CLIENTS_MAX; i++)
        close(fds[i]);
    rig_free(r);
}

Test(qmp, stop_disconnects_and_removes_the_socket)
{
    rig *r = rig_new();
    int fd = join(r), stuck = join(r);
    say(stuck, "{'execute':'wait'}");
    gate_await(r, 1);
    gate_open(r);
    cr_assert(qmp_server_stop(r->server, FOR_EVER));
    g_autofree char *last = hear(fd);
    cr_assert_str_eq(last, "");
    struct stat st;
    cr_assert_eq(lstat(r->path, &st), -1);
    close(fd);
    close(stuck);
    g_free(r->path);
    g_free(r);
    cr_assert(qmp_server_stop(NULL, 0));
}

Test(qmp, R5_stop_does_not_wait_for_a_stuck_command)
{
    rig *r = rig_new();
    int fd = join(r), stuck = join(r);
    say(stuck, "{'execute':'wait'}");
    gate_await(r, 1);
    cr_assert(!qmp_server_stop(r->server, 2 * G_USEC_PER_SEC));
    g_autofree char *last = hear(fd);
    cr_assert_str_eq(last, "");
    struct stat st;
    cr_assert_eq(lstat(r->path, &st), -1);
    close(fd);
    close(stuck);
    rig_free(r);
}

/* ---- Sockets ----------------------------------------------------------------------- */

Test(qmp_socket, mode_is_0600_whatever_the_umask)
{
    umask(0);
    g_autofree char *path = support_path("s");
    int fd = qmp_socket_listen(path, NULL);
    cr_assert_geq(fd, 0);
    struct stat st;
    cr_assert_eq(lstat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0600);
    close(fd);
}

Test(qmp_socket, a_dead_one_is_replaced_and_nothing_else)
{
    g_autofree char *path = support_path("s");
    int dead = qmp_socket_listen(path, NULL);
    GError *error = NULL;
    cr_assert_eq(qmp_socket_listen(path, &error), -1);
    cr_assert(g_str_has_suffix(error->message, "/s: in use by another process"), "%s",
              error->message);
    g_clear_error(&error);
    close(dead); /* as a killed daemon leaves it */
    int fd = qmp_socket_listen(path, NULL);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(path);
    support_save(path, "precious", 8);
    cr_assert_eq(qmp_socket_listen(path, &error), -1);
    cr_assert(
        g_str_has_suffix(error->message, "exists and is not a socket of this user"));
    g_clear_error(&error);
    size_t length;
    g_free(support_load(path, &length));
    cr_assert_eq(length, 8);
}

Test(qmp_socket, a_path_longer_than_an_address_works)
{
    g_autofree char *name = g_strnfill(150, 'd');
    support_run("mkdir -p %s/%s", name, name);
    g_autofree char *path = support_path("%s/%s/qmp.sock", name, name);
    int listener = qmp_socket_listen(path, NULL);
    cr_assert_geq(listener, 0);
    int fd = qmp_socket_connect(path, NULL);
    cr_assert_geq(fd, 0);
    close(fd);
    close(listener);
    GError *error = NULL;
    g_autofree char *file = support_path("%s/%s", name, name);
    g_autofree char *endless = g_strconcat(file, "/", name, NULL);
    cr_assert_eq(qmp_socket_listen(endless, &error), -1);
    cr_assert(g_str_has_suffix(error->message, ": File name too long"));
    g_clear_error(&error);
    cr_assert_eq(qmp_socket_connect("/nonexistent/s", &error), -1);
    cr_assert_str_eq(error->message, "/nonexistent/s: No such file or directory");
    g_clear_error(&error);
}
