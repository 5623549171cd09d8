/*
 * journal-format.h: one record of the journal as a line of JSON. Pure but for the
 * allocation of the text.
 */
#ifndef QUORUM_JOURNAL_FORMAT_H
#define QUORUM_JOURNAL_FORMAT_H

#include "quorum/journal.h"

/* Both fields have a fixed width, so that they can be filled in when all else stands: the
 * time when the record's place in the file is known, the count whenever it grows. */
#define JOURNAL_TIME_WIDTH 30u /* 2026-11-21T21:52:42.123456789Z */
#define JOURNAL_COUNT_WIDTH                                                              \
    20u /* the digits of UINT64_MAX; padded with blanks in front */

typedef struct journal_line {
    GString *text; /* with its newline */
    /* The identity of the record: all of it but time and count. */
    size_t body_start, body_length;
    size_t time_at, count_at;
} journal_line;

/* `event`: NULL, or the name to use instead of record->event's. Time and count (1) are
 * there, but say nothing yet. Strings that are not UTF-8 are made so. */
void journal_line_init(journal_line *line, const journal_record *record,
                       const char *event);
void journal_line_clear(journal_line *line);

/* Exactly the field's width, no terminating NUL. */
void journal_format_time(uint64_t ns, char ret_text[JOURNAL_TIME_WIDTH]);
void journal_format_count(uint64_t count, char ret_text[JOURNAL_COUNT_WIDTH]);

#endif
