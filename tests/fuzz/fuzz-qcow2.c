/*
 * fuzz-qcow2.c: whatever bytes a qcow2 image holds, it is refused with an error or read,
 * within the bounds of O3; what map() says and what read() gives agree. Then it is written
 * to (writing.h).
 */
#include "tests/fuzz/reading.h"
#include "tests/fuzz/writing.h"
#include <unistd.h>

#define NAME "image"

const packed_format packed_this_format = {
    .fields = {{4, 4, false},   {8, 8, false},   {16, 4, false},  {20, 4, false},
               {24, 8, false},  {32, 4, false},  {36, 4, false},  {40, 8, true},
               {40, 8, true},   {40, 8, true},   {48, 8, true},   {48, 8, true},
               {56, 4, false},  {60, 4, false},  {64, 8, true},   {72, 8, false},
               {79, 1, false},  {88, 8, false},  {96, 4, false},  {100, 4, false},
               {104, 1, false}, {112, 4, false}, {120, 4, false}, {136, 8, true}},
    .cluster_bits_at = 23,
    .flags = {(uint64_t)1 << 63, (uint64_t)1 << 62, 1, (uint64_t)3 << 62},
};

static int data_fd_of(const packed *p, const qcow2_header *header)
{
    return header->incompatible & QCOW2_INCOMPAT_DATA_FILE ? dup(p->data_fd) : -1;
}

static bool check_tables(const packed *p, const qcow2_header *header, GError **error)
{
    qcow2_check check;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    bool ok =
        qcow2_check_tables(p->fd, p->data_size, header, NAME, &budget, &check, error);
    must(budget <= QCOW2_CHECK_BYTES_MAX, "the budget grew to %" G_GUINT64_FORMAT,
         budget);
    return ok;
}

static void read_image(const packed *p, const qcow2_header *header)
{
    g_autoptr(GError) error = NULL;
    image *im = NULL;
    if (!check_tables(p, header, &error)) {
        reading_error(error);
        return;
    }
    if (header->crypt_method)
        im = qcow2_open_mapper(dup(p->fd), data_fd_of(p, header), header, NAME, &error);
    else
        im = qcow2_open(dup(p->fd), data_fd_of(p, header), header, NAME, &error);
    if (!im) {
        reading_error(error);
        return;
    }
    reading_whole(im, header->crypt_method == 0);
    image_close(im);
    writing_run(p, header);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    qcow2_header header;
    packed p = packed_open(data, size);
    if (qcow2_header_read(p.fd, NAME, &header, &error)) {
        read_image(&p, &header);
        qcow2_header_clear(&header);
    } else {
        reading_error(error);
    }
    packed_close(&p);
    return 0;
}
