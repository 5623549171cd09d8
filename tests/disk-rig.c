/* disk-rig.c: see disk-rig.h. */
#include "tests/disk-rig.h"
#include <criterion/criterion.h>
#include <string.h>

disk_options *disk_rig_options(char *const *paths, unsigned n, const char *format)
{
    disk_options *options = disk_options_new();
    options->name = g_strdup("disk");
    options->file = g_strdup("disk.img");
    for (unsigned i = 0; i < n; i++) {
        replica_options *replica = replica_options_new();
        replica->name =
            i < 26 ? g_strdup_printf("%c", 'a' + i) : g_strdup_printf("r%u", i);
        replica->source = g_strdup(paths[i]);
        replica->path = g_strdup(paths[i]);
        replica->format = g_strdup(format);
        g_ptr_array_add(options->replicas, replica);
    }
    return options;
}

static void rig_open(disk_rig *rig, unsigned threshold)
{
    g_autoptr(GError) error = NULL;
    disk_options *options = disk_rig_options(rig->paths, rig->n, "raw");
    options->threshold = threshold;
    options->read_pattern = rig->read_pattern;
    options->blkverify = rig->blkverify;
    rig->disk = disk_open(options, rig->journal, &error);
    cr_assert_not_null(rig->disk, "%s", error ? error->message : "no error");
    disk_options_free(options);
}

disk_rig *disk_rig_new(unsigned n, unsigned threshold, uint64_t size)
{
    static unsigned serial;
    disk_rig *rig = g_new0(disk_rig, 1);
    unsigned number = serial++;
    fault_clear(); /* a chain of an earlier test may have had this address */
    rig->n = n;
    rig->size = size;
    rig->model = g_malloc(size);
    support_pattern(rig->model, size, 0, number);
    for (unsigned i = 0; i < n; i++) {
        rig->paths[i] = support_path("rig%u-%u.raw", number, i);
        support_save(rig->paths[i], rig->model, size);
    }
    g_autofree char *path = support_path("rig%u.jsonl", number);
    g_autoptr(GError) error = NULL;
    rig->journal = journal_open(path, 0, NULL, &error);
    cr_assert_not_null(rig->journal, "%s", error ? error->message : "no error");
    rig_open(rig, threshold);
    return rig;
}

void disk_rig_reopen(disk_rig *rig, unsigned threshold)
{
    disk_close(rig->disk);
    rig_open(rig, threshold);
}

void disk_rig_free(disk_rig *rig)
{
    disk_close(rig->disk);
    journal_close(rig->journal);
    for (unsigned i = 0; i < rig->n; i++)
        g_free(rig->paths[i]);
    g_free(rig->model);
    g_free(rig);
}

void disk_rig_corrupt(disk_rig *rig, unsigned replica, uint64_t offset, size_t length,
                      uint8_t mask)
{
    g_autofree uint8_t *bytes = g_memdup2(rig->model + offset, length);
    for (size_t k = 0; k < length; k++)
        bytes[k] ^= mask;
    support_poke(rig->paths[replica], offset, bytes, length);
}

int disk_rig_read(disk_rig *rig, uint64_t offset, size_t length)
{
    const void *data = NULL;
    return disk_read(rig->disk, offset, length, &data);
}

void disk_rig_check_read(disk_rig *rig, uint64_t offset, size_t length)
{
    const void *data = NULL;
    int r = disk_read(rig->disk, offset, length, &data);
    cr_assert_eq(r, 0, "read %zu at %llu: %s", length, (unsigned long long)offset,
                 g_strerror(-r));
    cr_assert(memcmp(data, rig->model + offset, length) == 0,
              "read %zu at %llu: wrong bytes", length, (unsigned long long)offset);
}

void disk_rig_check_replicas(disk_rig *rig, uint64_t set)
{
    for (unsigned i = 0; i < rig->n; i++) {
        size_t length;
        if (!(set >> i & 1))
            continue;
        g_autofree uint8_t *bytes = support_load(rig->paths[i], &length);
        cr_assert_eq(length, rig->size, "replica %u has %zu bytes", i, length);
        for (size_t k = 0; k < length; k++)
            cr_assert_eq(bytes[k], rig->model[k], "replica %u differs at %zu", i, k);
    }
}

static bool has_value(const json_t *record, const char *name, const char *value)
{
    const char *text = json_string_value(json_object_get(record, name));
    return *value == '\0' || g_strcmp0(text, value) == 0;
}

json_t *disk_rig_records(disk_rig *rig, const char *event, const char *op)
{
    gsize length;
    g_autofree char *text = journal_snapshot(rig->journal, &length, NULL);
    cr_assert_not_null(text);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    json_t *found = json_array();
    for (char **line = lines; *line; line++) {
        if (**line == '\0')
            continue;
        json_t *record = json_loads(*line, JSON_REJECT_DUPLICATES, NULL);
        cr_assert_not_null(record, "not JSON: %s", *line);
        if (has_value(record, "event", event) && has_value(record, "op", op))
            json_array_append(found, record);
        json_decref(record);
    }
    return found;
}

unsigned disk_rig_count(disk_rig *rig, const char *event, const char *op)
{
    json_t *records = disk_rig_records(rig, event, op);
    unsigned n = (unsigned)json_array_size(records);
    json_decref(records);
    return n;
}

int64_t record_int(const json_t *record, const char *name)
{
    const json_t *value = json_object_get(record, name);
    cr_assert(json_is_integer(value), "no integer '%s'", name);
    return json_integer_value(value);
}

const char *record_str(const json_t *record, const char *name)
{
    const json_t *value = json_object_get(record, name);
    cr_assert(json_is_string(value), "no string '%s'", name);
    return json_string_value(value);
}

static void append_digest(GString *text, const json_t *party)
{
    const char *digest = json_string_value(json_object_get(party, "sha256"));
    if (digest)
        g_string_append_printf(text, "=%.8s", digest);
}

char *record_parties(const json_t *record)
{
    GString *text = g_string_new(NULL);
    const json_t *winner = json_object_get(record, "winner"), *value;
    size_t k;
    json_array_foreach(json_object_get(winner, "replicas"), k, value)
        g_string_append_printf(text, "%s%s", k ? "," : "", json_string_value(value));
    append_digest(text, winner);
    g_string_append_c(text, '|');
    json_array_foreach(json_object_get(record, "losers"), k, value)
    {
        const json_t *number = json_object_get(value, "errno");
        g_string_append_printf(text, "%s%s", k ? "," : "", record_str(value, "replica"));
        append_digest(text, value);
        if (number)
            g_string_append_printf(text, "!%d", (int)json_integer_value(number));
    }
    return g_string_free(text, FALSE);
}

char *disk_rig_digest(disk_rig *rig, uint64_t offset, size_t length, uint8_t mask)
{
    g_autofree uint8_t *bytes = g_memdup2(rig->model + offset, length);
    for (size_t k = 0; k < length; k++)
        bytes[k] ^= mask;
    uint8_t digest[JOURNAL_DIGEST_SIZE];
    journal_digest(bytes, length, digest);
    return g_strdup_printf("%02x%02x%02x%02x", digest[0], digest[1], digest[2],
                           digest[3]);
}

void disk_rig_model_resize(disk_rig *rig, uint64_t size)
{
    rig->model = g_realloc(rig->model, size);
    if (size > rig->size)
        memset(rig->model + rig->size, 0, size - rig->size);
    rig->size = size;
}

void disk_rig_fail(disk_rig *rig, unsigned i, fault_kind kind, int error, uint64_t torn)
{
    fault_add((fault){.chain = disk_chain(rig->disk, i),
                      .kind = kind,
                      .error = error,
                      .torn = torn,
                      .times = 1});
}

void disk_rig_expect_state(disk_rig *rig, unsigned i, replica_state state)
{
    replica_status status;
    disk_replica_status(rig->disk, i, &status);
    cr_assert_eq(status.state, state, "replica %u is %s", i,
                 replica_state_name(status.state));
}

char *disk_rig_only_record(disk_rig *rig, const char *event, const char *op)
{
    json_t *records = disk_rig_records(rig, event, op);
    cr_assert_eq(json_array_size(records), 1, "%zu records of %s %s",
                 json_array_size(records), event, op);
    const json_t *record = json_array_get(records, 0);
    g_autofree char *parties = record_parties(record);
    char *text = g_strdup_printf(
        "%lld+%lld %s errno %lld, %s", (long long)record_int(record, "offset"),
        (long long)record_int(record, "length"), parties,
        (long long)record_int(record, "errno"), record_str(record, "action"));
    json_decref(records);
    return text;
}
