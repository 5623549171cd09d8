/*
 * manifest.c: manifests are written and checked as a stream, so that the size of a disk
 * does not decide how much memory is needed.
 */
#include "fuse/manifest.h"
#include "formats/image.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Offset, length and digest in decimal and hex, with blanks and newline: 107 at most. */
#define LINE_MAX_BYTES 128

G_DEFINE_QUARK(quorumfs - manifest - error, manifest_error)

void manifest_write_header(FILE *stream, uint64_t size, uint64_t range)
{
    fprintf(stream,
            "quorumfs-manifest 1\nsize %" PRIu64 "\nrange %" PRIu64 "\ndigest sha256\n",
            size, range);
}

void manifest_write_range(FILE *stream, uint64_t offset, uint64_t length,
                          const uint8_t *sha256)
{
    fprintf(stream, "%" PRIu64 " %" PRIu64 " ", offset, length);
    for (unsigned i = 0; sha256 && i < JOURNAL_DIGEST_SIZE; i++)
        fprintf(stream, "%02x", sha256[i]);
    fputs(sha256 ? "\n" : "-\n", stream);
}

struct manifest_reader {
    char *path;
    FILE *stream;
    uint64_t size, range;
    unsigned long long line; /* the one read last */
    uint64_t next;           /* offset of the range that comes next */
    char text[LINE_MAX_BYTES];
};

static void set_invalid(const manifest_reader *r, GError **error, const char *what)
{
    g_set_error(error, MANIFEST_ERROR, MANIFEST_ERROR_INVALID, "%s: line %llu: %s",
                r->path, r->line, what);
}

/* Reads one line, without its newline; false: the end, an error, or no text line. */
static bool next_line(manifest_reader *r)
{
    if (!fgets(r->text, sizeof r->text, r->stream))
        return false;
    r->line++;
    char *newline = strchr(r->text, '\n');
    if (!newline)
        return false;
    *newline = '\0';
    return true;
}

/* A decimal number without sign or leading blanks at *text, which is moved behind it. */
static bool take_number(const char **text, uint64_t *ret_number)
{
    if (!g_ascii_isdigit(**text))
        return false;
    char *end;
    errno = 0;
    *ret_number = g_ascii_strtoull(*text, &end, 10);
    *text = end;
    return errno == 0;
}

static bool take_blank(const char **text)
{
    return *(*text)++ == ' ';
}

static bool header_number(manifest_reader *r, const char *name, uint64_t min,
                          uint64_t max, uint64_t *ret_number)
{
    if (!next_line(r) || !g_str_has_prefix(r->text, name))
        return false;
    const char *text = r->text + strlen(name);
    return take_blank(&text) && take_number(&text, ret_number) && *text == '\0' &&
           *ret_number >= min && *ret_number <= max;
}

static bool header_read(manifest_reader *r, GError **error)
{
    if (!next_line(r) || !g_str_has_prefix(r->text, "quorumfs-manifest ")) {
        r->line = 1;
        set_invalid(r, error, "not a manifest of quorumfs");
        return false;
    }
    if (strcmp(r->text, "quorumfs-manifest 1") != 0) {
        set_invalid(r, error, "a version of the format that this quorumfs does not know");
        return false;
    }
    if (!header_number(r, "size", 0, IMAGE_SIZE_MAX, &r->size) ||
        !header_number(r, "range", MANIFEST_RANGE_MIN, MANIFEST_RANGE_MAX, &r->range) ||
        !next_line(r) || strcmp(r->text, "digest sha256") != 0) {
        set_invalid(r, error, "broken header (expected size, range, digest sha256)");
        return false;
    }
    return true;
}

static bool take_digest(const char *text, uint8_t ret_sha256[JOURNAL_DIGEST_SIZE])
{
    if (strlen(text) != 2 * JOURNAL_DIGEST_SIZE)
        return false;
    for (unsigned i = 0; i < JOURNAL_DIGEST_SIZE; i++) {
        int high = g_ascii_xdigit_value(text[2 * i]);
        int low = g_ascii_xdigit_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        ret_sha256[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

/* Reads the line of the range at r->next. *ret_known: it has a digest. */
static bool range_read(manifest_reader *r, bool *ret_known,
                       uint8_t ret_sha256[JOURNAL_DIGEST_SIZE])
{
    uint64_t offset, length;
    if (!next_line(r))
        return false;
    const char *text = r->text;
    if (!take_number(&text, &offset) || !take_blank(&text) ||
        !take_number(&text, &length) || !take_blank(&text))
        return false;
    if (offset != r->next || length != MIN(r->range, r->size - r->next))
        return false;
    *ret_known = strcmp(text, "-") != 0;
    if (*ret_known && !take_digest(text, ret_sha256))
        return false;
    r->next += length;
    return true;
}

static bool ranges_check(manifest_reader *r, GError **error)
{
    while (r->next < r->size) {
        bool known;
        uint8_t sha256[JOURNAL_DIGEST_SIZE];
        if (!range_read(r, &known, sha256)) {
            set_invalid(r, error,
                        feof(r->stream) ? "the manifest ends too early" : "broken range");
            return false;
        }
    }
    if (fgetc(r->stream) != EOF) {
        set_invalid(r, error, "text after the last range");
        return false;
    }
    return true;
}

manifest_reader *manifest_reader_open(const char *path, GError **error)
{
    FILE *stream = fopen(path, "re");
    if (!stream) {
        g_set_error(error, MANIFEST_ERROR, MANIFEST_ERROR_IO, "%s: %s", path,
                    g_strerror(errno));
        return NULL;
    }
    manifest_reader *r = g_new0(manifest_reader, 1);
    r->path = g_strdup(path);
    r->stream = stream;
    if (!header_read(r, error)) {
        manifest_reader_free(r);
        return NULL;
    }
    long ranges_at = ftell(stream);
    if (!ranges_check(r, error)) {
        manifest_reader_free(r);
        return NULL;
    }
    if (ranges_at < 0 || fseek(stream, ranges_at, SEEK_SET) < 0) {
        g_set_error(error, MANIFEST_ERROR, MANIFEST_ERROR_IO, "%s: %s", path,
                    g_strerror(errno));
        manifest_reader_free(r);
        return NULL;
    }
    r->next = 0;
    return r;
}

void manifest_reader_free(manifest_reader *r)
{
    if (!r)
        return;
    fclose(r->stream);
    g_free(r->path);
    g_free(r);
}

uint64_t manifest_reader_size(const manifest_reader *r)
{
    return r->size;
}

uint64_t manifest_reader_range(const manifest_reader *r)
{
    return r->range;
}

manifest_verdict manifest_reader_compare(manifest_reader *r, uint64_t offset,
                                         uint64_t length,
                                         const uint8_t sha256[JOURNAL_DIGEST_SIZE])
{
    bool known;
    uint8_t expected[JOURNAL_DIGEST_SIZE];
    if (r->next != offset || MIN(r->range, r->size - r->next) != length ||
        !range_read(r, &known, expected))
        return MANIFEST_CHANGED;
    if (!known)
        return MANIFEST_UNKNOWN;
    return memcmp(expected, sha256, sizeof expected) == 0 ? MANIFEST_EQUAL
                                                          : MANIFEST_DIFFERENT;
}
