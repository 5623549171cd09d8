/*
 * explain.c: rows of disk_explain, gathered into runs.
 */
#include "fuse/explain.h"
#include <errno.h>

typedef struct explain_runs {
    json_t *runs;
    json_t *replicas; /* of the last run, borrowed */
    uint64_t offset;  /* of the last run */
    unsigned rows;
} explain_runs;

static const char *kind_name(image_extent_kind kind)
{
    switch (kind) {
    case IMAGE_EXTENT_ZERO:
        return "zero";
    case IMAGE_EXTENT_DATA:
        return "data";
    case IMAGE_EXTENT_COMPRESSED:
        return "compressed";
    case IMAGE_EXTENT_UNALLOCATED:
        break;
    }
    return "unallocated";
}

static json_t *text_value(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text ? text : "", -1);
    return json_string(valid);
}

static json_t *row_object(const disk_explain_row *row)
{
    json_t *object = json_object();
    json_object_set_new(object, "replica", text_value(row->replica));
    json_object_set_new(object, "wins", json_boolean(row->wins));
    if (row->error) {
        json_object_set_new(object, "errno", json_integer(row->error));
    } else {
        char hex[2 * JOURNAL_DIGEST_SIZE + 1];
        for (unsigned i = 0; i < JOURNAL_DIGEST_SIZE; i++)
            g_snprintf(hex + 2 * i, 3, "%02x", row->sha256[i]);
        json_object_set_new(object, "sha256", json_string(hex));
    }
    json_object_set_new(object, "kind", json_string(kind_name(row->extent.kind)));
    json_object_set_new(object, "layer", json_integer(row->extent.layer));
    if (row->layer_file)
        json_object_set_new(object, "file", text_value(row->layer_file));
    if (row->extent.has_host || row->extent.kind == IMAGE_EXTENT_COMPRESSED)
        json_object_set_new(object, "host-offset",
                            json_integer((json_int_t)row->extent.host_offset));
    return object;
}

static void take_row(void *opaque, const disk_explain_row *row)
{
    explain_runs *r = opaque;
    if (++r->rows > EXPLAIN_ROWS_MAX)
        return;
    if (!r->replicas || r->offset != row->offset) {
        json_t *run =
            json_pack("{s:I, s:I, s:b, s:b, s:[]}", "offset", (json_int_t)row->offset,
                      "length", (json_int_t)row->length, "differs", row->differs,
                      "quorum", !row->no_quorum, "replicas");
        json_array_append_new(r->runs, run);
        r->replicas = json_object_get(run, "replicas");
        r->offset = row->offset;
    }
    json_array_append_new(r->replicas, row_object(row));
}

int explain_json(disk *d, uint64_t offset, uint64_t length, json_t **ret_object)
{
    uint64_t size = disk_size(d);
    if (offset >= size || length > DISK_EXPLAIN_MAX)
        return -EINVAL;
    uint64_t start = offset - offset % VOTE_SECTOR;
    uint64_t end = offset + MAX(length, 1);
    end = MIN(size, end + (VOTE_SECTOR - end % VOTE_SECTOR) % VOTE_SECTOR);
    /* The widening may go past the limit by up to a sector at either end. */
    end = MIN(end, start + DISK_EXPLAIN_MAX);
    explain_runs r = {.runs = json_array()};
    int result = disk_explain(d, start, end - start, take_row, &r);
    if (result == 0 && r.rows > EXPLAIN_ROWS_MAX)
        result = -E2BIG;
    if (result < 0) {
        json_decref(r.runs);
        return result;
    }
    *ret_object =
        json_pack("{s:o, s:I, s:I, s:o}", "disk", text_value(disk_name(d)), "offset",
                  (json_int_t)start, "length", (json_int_t)(end - start), "runs", r.runs);
    return 0;
}
