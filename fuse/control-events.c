/*
 * control-events.c: the journal as events (R4). Each record is an event of ours, named after
 * its own with "quorumfs-" in front, with the record as its data; what QEMU's quorum tells is
 * told in QEMU's words too, of exactly the sectors that the record is about, and as often.
 */
#include "fuse/control-events.h"
#include <string.h>

#define SECTOR 512

/* "vm1.a" */
static char *node_name(const json_t *record, const char *replica)
{
    const char *disk = json_string_value(json_object_get(record, "disk"));
    return g_strdup_printf("%s.%s", disk ? disk : "", replica);
}

static json_int_t sectors(const json_t *record, const char *member)
{
    json_int_t bytes = json_integer_value(json_object_get(record, member));
    return bytes / SECTOR + (bytes % SECTOR != 0);
}

/* QEMU knows three. */
static const char *type_of(const char *op)
{
    static const char *const changes[] = {"write", "write-zeroes", "discard", "resize"};
    if (g_strcmp0(op, "flush") == 0)
        return "flush";
    for (size_t i = 0; i < G_N_ELEMENTS(changes); i++)
        if (g_strcmp0(op, changes[i]) == 0)
            return "write";
    return "read";
}

static json_t *bad_replica(const json_t *record, const json_t *loser)
{
    const char *op = json_string_value(json_object_get(record, "op"));
    const char *name = json_string_value(json_object_get(loser, "replica"));
    json_int_t code = json_integer_value(json_object_get(loser, "errno"));
    g_autofree char *node = node_name(record, name ? name : "");
    json_t *data = json_pack("{s:s, s:s, s:I, s:I}", "type", type_of(op), "node-name",
                             node, "sector-num", sectors(record, "offset"),
                             "sectors-count", sectors(record, "length"));
    if (code)
        json_object_set_new(data, "error", json_string(g_strerror((int)code)));
    return data;
}

static void tell_bad(qmp_server *server, const json_t *record)
{
    size_t i;
    json_t *loser;
    json_array_foreach(json_object_get(record, "losers"), i, loser)
        qmp_server_emit(server, "QUORUM_REPORT_BAD", bad_replica(record, loser));
}

static void tell_failure(qmp_server *server, const json_t *record)
{
    json_t *data = json_pack(
        "{s:O, s:I, s:I}", "reference", json_object_get(record, "disk"), "sector-num",
        sectors(record, "offset"), "sectors-count", sectors(record, "length"));
    qmp_server_emit(server, "QUORUM_FAILURE", data);
}

void control_events_tell(qmp_server *server, const char *line)
{
    json_t *record = json_loads(line, 0, NULL);
    const char *event = json_string_value(json_object_get(record, "event"));
    if (!event) {
        json_decref(record);
        return;
    }
    if (strcmp(event, "divergence") == 0 || strcmp(event, "replica-error") == 0)
        tell_bad(server, record);
    if (strcmp(event, "quorum-failure") == 0)
        tell_failure(server, record);
    g_autofree char *name = g_strconcat("quorumfs-", event, NULL);
    qmp_server_emit(server, name, record);
}
