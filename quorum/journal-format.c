/*
 * journal-format.c: records as JSON lines.
 *
 *   {"time":"...","event":...,...,"count":                   1}
 *
 * The line is put together by hand because two of its fields must have a known place and
 * a fixed width. Time comes first and count last, so that what lies between them is the
 * same text for the same thing happening again: it is the record's identity.
 */
#include "quorum/journal-format.h"
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LINE_START "{\"time\":\""

const char *journal_event_name(journal_event event)
{
    static const char *const names[] = {
        [JOURNAL_DIVERGENCE] = "divergence",
        [JOURNAL_QUORUM_FAILURE] = "quorum-failure",
        [JOURNAL_REPLICA_ERROR] = "replica-error",
        [JOURNAL_REPLICA_STATE] = "replica-state",
        [JOURNAL_RECONCILE] = "reconcile",
        [JOURNAL_REPAIR] = "repair",
        [JOURNAL_JOB] = "job",
    };
    return names[event];
}

void journal_digest(const void *data, size_t length,
                    uint8_t ret_digest[JOURNAL_DIGEST_SIZE])
{
    G_STATIC_ASSERT(JOURNAL_DIGEST_SIZE == SHA256_DIGEST_LENGTH);
    SHA256(data, length, ret_digest);
}

void journal_format_time(uint64_t ns, char ret_text[JOURNAL_TIME_WIDTH])
{
    time_t seconds = (time_t)(ns / 1000000000u);
    struct tm utc;
    char text[64];
    gmtime_r(&seconds, &utc); /* cannot fail: 2^64 ns end in the year 2554 */
    size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + n, sizeof text - n, ".%09uZ", (unsigned)(ns % 1000000000u));
    memcpy(ret_text, text, JOURNAL_TIME_WIDTH);
}

void journal_format_count(uint64_t count, char ret_text[JOURNAL_COUNT_WIDTH])
{
    char text[JOURNAL_COUNT_WIDTH + 1];
    snprintf(text, sizeof text, "%*" G_GUINT64_FORMAT, (int)JOURNAL_COUNT_WIDTH, count);
    memcpy(ret_text, text, JOURNAL_COUNT_WIDTH);
}

static void append_string(GString *text, const char *string)
{
    g_autofree char *valid = g_utf8_make_valid(string, -1);
    g_string_append_c(text, '"');
    for (const char *c = valid; *c; c++) {
        if (*c == '"' || *c == '\\')
            g_string_append_c(text, '\\');
        if ((unsigned char)*c < 0x20)
            g_string_append_printf(text, "\\u%04x", (unsigned)*c);
        else
            g_string_append_c(text, *c);
    }
    g_string_append_c(text, '"');
}

/* A member that is left out if there is nothing to say. */
static void append_text_member(GString *text, const char *name, const char *value)
{
    if (!value)
        return;
    g_string_append_printf(text, ",\"%s\":", name);
    append_string(text, value);
}

static void append_sha256(GString *text, const uint8_t digest[JOURNAL_DIGEST_SIZE])
{
    g_string_append(text, ",\"sha256\":\"");
    for (unsigned i = 0; i < JOURNAL_DIGEST_SIZE; i++)
        g_string_append_printf(text, "%02x", digest[i]);
    g_string_append_c(text, '"');
}

static void append_winner(GString *text, const journal_record *record)
{
    if (record->n_winner_replicas == 0)
        return;
    g_string_append(text, ",\"winner\":{\"replicas\":[");
    for (unsigned i = 0; i < record->n_winner_replicas; i++) {
        if (i > 0)
            g_string_append_c(text, ',');
        append_string(text, record->winner_replicas[i]);
    }
    g_string_append_c(text, ']');
    if (record->winner_has_sha256)
        append_sha256(text, record->winner_sha256);
    g_string_append_c(text, '}');
}

static void append_losers(GString *text, const journal_record *record)
{
    if (record->n_losers == 0)
        return;
    g_string_append(text, ",\"losers\":[");
    for (unsigned i = 0; i < record->n_losers; i++) {
        const journal_loser *loser = &record->losers[i];
        g_string_append(text, i > 0 ? ",{\"replica\":" : "{\"replica\":");
        append_string(text, loser->replica);
        if (loser->has_sha256)
            append_sha256(text, loser->sha256);
        if (loser->error != 0)
            g_string_append_printf(text, ",\"errno\":%d", loser->error);
        g_string_append_c(text, '}');
    }
    g_string_append_c(text, ']');
}

void journal_line_init(journal_line *line, const journal_record *record,
                       const char *event)
{
    GString *text = line->text = g_string_sized_new(512);
    g_string_append(text, LINE_START);
    line->time_at = text->len;
    g_string_append_printf(text, "%*s\"", (int)JOURNAL_TIME_WIDTH, "");
    line->body_start = text->len;
    append_text_member(text, "event", event ? event : journal_event_name(record->event));
    append_text_member(text, "disk", record->disk);
    append_text_member(text, "op", record->op);
    g_string_append_printf(
        text, ",\"offset\":%" G_GUINT64_FORMAT ",\"length\":%" G_GUINT64_FORMAT,
        record->offset, record->length);
    append_winner(text, record);
    append_losers(text, record);
    if (record->error != 0)
        g_string_append_printf(text, ",\"errno\":%d", record->error);
    append_text_member(text, "action", record->action);
    line->body_length = text->len - line->body_start;
    g_string_append(text, ",\"count\":");
    line->count_at = text->len;
    g_string_append_printf(text, "%*u}\n", (int)JOURNAL_COUNT_WIDTH, 1u);
}

void journal_line_clear(journal_line *line)
{
    g_string_free(line->text, TRUE);
    line->text = NULL;
}
