/*
 * qmp-stream.h: cuts a stream of bytes into JSON values. Pure but for the allocation of the
 * value.
 *
 * Newlines between values are optional, any number of values may arrive at once, and one
 * may arrive in any number of pieces. What JSON forbids and QMP has (strings in single
 * quotes, \' in a string) is rewritten on the way, so that a strict parser can read it.
 */
#ifndef FUSE_QMP_STREAM_H
#define FUSE_QMP_STREAM_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#define QMP_STREAM_DEPTH_MAX 1024u /* of nested objects and arrays */

typedef enum qmp_item {
    QMP_ITEM_NONE,  /* all bytes used, nothing complete yet */
    QMP_ITEM_VALUE, /* `value` holds one object or array, brackets balanced, unparsed */
    QMP_ITEM_BAD,   /* `error` says why; goes on at the next line, or before that at the
                       next value if the trouble was between values */
} qmp_item;

typedef struct qmp_stream {
    GString *value;
    const char *error; /* static */
    /* The rest belongs to qmp-stream.c. */
    size_t max;
    int state;
    unsigned depth;
    char quote;
    bool escaped;
} qmp_stream;

void qmp_stream_init(qmp_stream *stream, size_t max_value);
void qmp_stream_clear(qmp_stream *stream);

/* Uses bytes up to the end of the first item; *ret_used says how many. `value` is valid
 * until the next call. */
qmp_item qmp_stream_feed(qmp_stream *stream, const char *data, size_t length,
                         size_t *ret_used);

#endif
