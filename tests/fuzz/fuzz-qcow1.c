/*
 * fuzz-qcow1.c: the same for images of version 1, as far as they are ours to read.
 */
#include "formats/qcow-libqcow.h"
#include "tests/fuzz/reading.h"
#include <unistd.h>

#define NAME   "image"
#define BUDGET ((uint64_t)QCOW2_CHECK_BYTES_MAX)

const packed_format packed_this_format = {
    .fields = {{4, 4, false},
               {8, 8, false},
               {16, 4, false},
               {24, 8, false},
               {32, 1, false},
               {33, 1, false},
               {36, 4, false},
               {40, 8, true},
               {40, 8, true}},
    .cluster_bits_at = 32,
    .flags = {(uint64_t)1 << 63, (uint64_t)1 << 51, 1, (uint64_t)3 << 62},
};

static void read_image(const packed *p, const qcow1_header *header)
{
    g_autoptr(GError) error = NULL;
    uint64_t budget = BUDGET;
    (void)libqcow_refuses_qcow1(p->fd, header, &budget);
    must(budget <= BUDGET, "the budget grew to %" G_GUINT64_FORMAT, budget);
    image *im = header->crypt_method ? qcow1_open_mapper(dup(p->fd), header, NAME, &error)
                                     : qcow1_open(dup(p->fd), header, NAME, &error);
    if (!im) {
        reading_error(error);
        return;
    }
    reading_whole(im, header->crypt_method == 0);
    image_close(im);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    qcow1_header header;
    packed p = packed_open(data, size);
    if (qcow1_header_read(p.fd, NAME, &header, &error)) {
        read_image(&p, &header);
        qcow1_header_clear(&header);
    } else {
        reading_error(error);
    }
    packed_close(&p);
    return 0;
}
