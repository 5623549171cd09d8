/*
 * qmp-stream.c: a state machine, one byte at a time.
 *
 *   OUTSIDE  between values          '{' or '[': INSIDE; other than blanks: bad, GARBAGE
 *   INSIDE   in a value              its last bracket: OUTSIDE; over a limit: bad, LINE
 *   GARBAGE  after what is no value  '{' or a newline: OUTSIDE
 *   LINE     in what is left of a value that was given up     a newline: OUTSIDE
 *
 * Which bracket closes which is left to the parser; here they are only counted.
 */
#include "fuse/qmp-stream.h"
#include <string.h>

enum { OUTSIDE, INSIDE, GARBAGE, LINE };

void qmp_stream_init(qmp_stream *stream, size_t max_value)
{
    memset(stream, 0, sizeof *stream);
    stream->max = max_value;
    stream->value = g_string_new(NULL);
}

void qmp_stream_clear(qmp_stream *stream)
{
    g_string_free(stream->value, TRUE);
    memset(stream, 0, sizeof *stream);
}

static qmp_item bad(qmp_stream *s, int state, const char *error)
{
    s->state = state;
    s->error = error;
    g_string_truncate(s->value, 0);
    return QMP_ITEM_BAD;
}

static qmp_item string_byte(qmp_stream *s, char c)
{
    if ((unsigned char)c < 0x20)
        return bad(s, c == '\n' ? OUTSIDE : LINE,
                   "JSON parse error, control character in a string");
    if (s->escaped) {
        s->escaped = false;
        if (c != '\'')
            g_string_append_c(s->value, '\\');
        g_string_append_c(s->value, c);
    } else if (c == '\\') {
        s->escaped = true;
    } else if (c == s->quote) {
        s->quote = 0;
        g_string_append_c(s->value, '"');
    } else if (c == '"') {
        g_string_append(s->value, "\\\"");
    } else {
        g_string_append_c(s->value, c);
    }
    return QMP_ITEM_NONE;
}

static qmp_item inside_byte(qmp_stream *s, char c)
{
    if (s->value->len + 2 > s->max)
        return bad(s, c == '\n' ? OUTSIDE : LINE,
                   "JSON parse error, message size limit exceeded");
    if (s->quote)
        return string_byte(s, c);
    if (c == '"' || c == '\'') {
        s->quote = c;
        c = '"';
    }
    if ((c == '{' || c == '[') && ++s->depth > QMP_STREAM_DEPTH_MAX)
        return bad(s, LINE, "JSON parse error, nesting depth limit exceeded");
    g_string_append_c(s->value, c);
    if ((c == '}' || c == ']') && --s->depth == 0) {
        s->state = OUTSIDE;
        return QMP_ITEM_VALUE;
    }
    return QMP_ITEM_NONE;
}

static qmp_item outside_byte(qmp_stream *s, char c)
{
    if (strchr(" \t\r\n", c) && c)
        return QMP_ITEM_NONE;
    if (c != '{' && c != '[')
        return bad(s, GARBAGE, "QMP input must be a JSON object");
    s->state = INSIDE;
    s->depth = 0;
    s->quote = 0;
    s->escaped = false;
    g_string_truncate(s->value, 0);
    return inside_byte(s, c);
}

static qmp_item stream_byte(qmp_stream *s, char c)
{
    switch (s->state) {
    case INSIDE:
        return inside_byte(s, c);
    case GARBAGE:
        if (c != '{' && c != '\n')
            return QMP_ITEM_NONE;
        s->state = OUTSIDE;
        return outside_byte(s, c);
    case LINE:
        if (c == '\n')
            s->state = OUTSIDE;
        return QMP_ITEM_NONE;
    default:
        return outside_byte(s, c);
    }
}

qmp_item qmp_stream_feed(qmp_stream *stream, const char *data, size_t length,
                         size_t *ret_used)
{
    qmp_item item = QMP_ITEM_NONE;
    size_t used = 0;
    while (used < length && item == QMP_ITEM_NONE)
        item = stream_byte(stream, data[used++]);
    *ret_used = used;
    return item;
}
