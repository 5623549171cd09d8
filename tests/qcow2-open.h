/*
 * qcow2-open.h: opens an image of the scratch directory with the native decoder, as the
 * chain does, but for the policy about paths.
 */
#ifndef TESTS_QCOW2_OPEN_H
#define TESTS_QCOW2_OPEN_H

#include "formats/qcow2.h"
#include "tests/support.h"
#include <fcntl.h>
#include <glib/gstdio.h>
#include <unistd.h>

typedef image *qcow2_open_function(int fd, int data_fd, const qcow2_header *header,
                                   const char *filename, GError **error);

/* `flags`: O_RDONLY or O_RDWR. */
static inline image *qcow2_open_flags(qcow2_open_function *function, int flags,
                                      const char *path, GError **error)
{
    qcow2_header header;
    int data_fd = -1;
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0 || !qcow2_header_read(fd, path, &header, error)) {
        if (fd >= 0)
            g_close(fd, NULL);
        return NULL;
    }
    if (header.data_file) {
        g_autofree char *data_path =
            g_canonicalize_filename(header.data_file, support_dir());
        data_fd = open(data_path, flags | O_CLOEXEC);
    }
    image *im = NULL;
    qcow2_check check;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX;
    uint64_t data_size = data_fd >= 0 ? (uint64_t)lseek(data_fd, 0, SEEK_END) : 0;
    if (qcow2_check_tables(fd, data_size, &header, path, &budget, &check, error)) {
        im = function(fd, data_fd, &header, path, error);
    } else {
        g_close(fd, NULL);
        if (data_fd >= 0)
            g_close(data_fd, NULL);
    }
    qcow2_header_clear(&header);
    return im;
}

static inline image *qcow2_open_with(qcow2_open_function *function, const char *path,
                                     GError **error)
{
    return qcow2_open_flags(function, O_RDONLY, path, error);
}

#endif
