/*
 * reading.c: an extent is what its bytes are: data is what the host file holds there,
 * zeroes and what is not allocated read as zeroes, and only what cannot be mapped, or does
 * not decompress, is an error.
 */
#include "tests/fuzz/reading.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define EXTENTS_MAX    256u
#define COMPRESSED_MAX 16u
#define PIECE          (128u << 10)
#define NEXT           512u /* where to go on after an error */

typedef struct reader {
    image *im;
    bool readable;
    unsigned compressed; /* clusters that were decoded */
    uint8_t *got, *expected;
} reader;

void reading_error(const GError *error)
{
    must(error && error->domain == IMAGE_ERROR, "no error was set");
    for (const char *at = error->message; *at; at++)
        must(g_ascii_isprint(*at), "in the message: %s", error->message);
}

static void check_extent(const image_extent *extent, uint64_t offset, uint64_t length)
{
    must(extent->length > 0 && extent->length <= length, "%" PRIu64 " at %" PRIu64,
         extent->length, offset);
    must(extent->fd < 0 || extent->kind == IMAGE_EXTENT_DATA, "at %" PRIu64, offset);
}

static void check_piece(reader *r, const image_extent *extent, uint64_t skip,
                        uint64_t offset, size_t length)
{
    memset(r->got, 0xa5, length);
    int result = image_read(r->im, r->got, offset, length);
    if (extent->kind == IMAGE_EXTENT_COMPRESSED) {
        must(result == 0 || result == -EIO, "%d at %" PRIu64, result, offset);
        return;
    }
    must(result == 0, "%d at %" PRIu64, result, offset);
    memset(r->expected, 0, length);
    if (extent->fd >= 0)
        must(file_read_exact(extent->fd, r->expected, length,
                             extent->host_offset + skip) == 0,
             "data at %" PRIu64 " is not in its file", offset);
    must(memcmp(r->got, r->expected, length) == 0, "at %" PRIu64, offset);
}

static void read_extent(reader *r, const image_extent *extent, uint64_t offset)
{
    if (!r->readable ||
        (extent->kind == IMAGE_EXTENT_COMPRESSED && r->compressed++ >= COMPRESSED_MAX))
        return;
    size_t length = (size_t)MIN(extent->length, PIECE);
    uint64_t last = extent->length - length;
    check_piece(r, extent, 0, offset, length);
    if (last)
        check_piece(r, extent, last, offset + last, length);
}

static void read_from(reader *r, uint64_t offset)
{
    uint64_t size = r->im->size;
    for (unsigned i = 0; i < EXTENTS_MAX && offset < size; i++) {
        image_extent extent;
        int result = image_map(r->im, offset, size - offset, &extent);
        must(result == 0 || result == -EIO, "%d at %" PRIu64, result, offset);
        if (result == 0) {
            check_extent(&extent, offset, size - offset);
            read_extent(r, &extent, offset);
            offset += extent.length;
        } else {
            must(!r->readable || image_read(r->im, r->got, offset, 1) == -EIO,
                 "what cannot be mapped was read at %" PRIu64, offset);
            offset += MIN(NEXT, size - offset);
        }
    }
}

void reading_whole(image *im, bool readable)
{
    reader r = {.im = im, .readable = readable};
    r.got = g_malloc(2 * (size_t)PIECE);
    r.expected = r.got + PIECE;
    read_from(&r, 0);
    if (im->size > PIECE)
        read_from(&r, im->size - PIECE + im->size % 7);
    must(image_read(im, r.got, im->size, 1) == -EINVAL, "read past the end");
    if (readable && im->size) /* over all kinds of extents in one call */
        (void)image_read(im, r.got, 0, (size_t)MIN(im->size, 2 * PIECE));
    g_free(r.got);
}
