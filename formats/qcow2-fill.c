/*
 * qcow2-fill.c: what the disk holds around a write, where a new cluster (or subcluster) must
 * hold it too.
 *
 * Who calls has claimed the clusters, so nobody changes what is read here; and as nobody
 * writes to what lies below, none of it changes between the reading and the linking.
 */
#include "formats/qcow2-writer.h"
#include <errno.h>

static bool is_zero(const uint8_t *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* An extent that does not reach past the virtual size. */
static int read_extent(qcow2_writer *w, const qcow2_extent *extent, uint8_t *buf,
                       uint64_t offset, bool *ret_zero)
{
    uint64_t in_cluster = offset & (w->map->layout.cluster_size - 1);
    size_t length = (size_t)extent->length;
    int error = 0;
    switch (extent->kind) {
    case IMAGE_EXTENT_DATA:
        error = file_read_exact(w->data_fd, buf, length, extent->host_offset);
        break;
    case IMAGE_EXTENT_COMPRESSED:
        error = qcow2_decoder_read(w->decoder, extent->host_offset,
                                   extent->compressed_size, buf, in_cluster, length);
        break;
    case IMAGE_EXTENT_ZERO:
        memset(buf, 0, length);
        return 0;
    case IMAGE_EXTENT_UNALLOCATED:
        if (!w->read_below || offset >= w->below_size) {
            memset(buf, 0, length);
            return 0;
        }
        error = w->read_below(w->below, buf, offset, length);
        break;
    }
    *ret_zero &= !error && is_zero(buf, length);
    return error;
}

int qcow2_fill_read(qcow2_writer *w, void *buf, uint64_t offset, size_t length,
                    bool *ret_zero)
{
    uint8_t *at = buf;
    uint64_t size = w->map->layout.size;
    *ret_zero = true;
    while (length > 0) {
        qcow2_extent extent = {.kind = IMAGE_EXTENT_ZERO, .length = length};
        int error = 0;
        if (offset < size)
            error = qcow2_map_lookup(w->map, offset, MIN(length, size - offset), &extent);
        if (!error)
            error = read_extent(w, &extent, at, offset, ret_zero);
        if (error)
            return error;
        at += extent.length;
        offset += extent.length;
        length -= (size_t)extent.length;
    }
    return 0;
}
