#include "tests/qcow2-rig.h"
#include "formats/qcow2-internal.h"
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define WRITE_MAX (192u << 10)

/* ---- Opening ------------------------------------------------------------------------- */

static int below_read(void *opaque, void *buf, uint64_t offset, size_t length)
{
    const qcow2_rig *r = opaque;
    size_t part = 0;
    if (offset < r->below_size)
        part = MIN(length, r->below_size - (size_t)offset);
    if (part > 0)
        memcpy(buf, r->below + offset, part);
    memset((uint8_t *)buf + part, 0, length - part);
    return 0;
}

static void close_both(int fd, int data_fd)
{
    if (fd >= 0)
        close(fd);
    if (data_fd >= 0)
        close(data_fd);
}

static bool check_tables(int fd, int data_fd, const qcow2_header *header,
                         const char *path, GError **error)
{
    qcow2_check check;
    uint64_t budget = QCOW2_CHECK_BYTES_MAX, data_size = 0;
    if (data_fd >= 0)
        data_size = (uint64_t)lseek(data_fd, 0, SEEK_END);
    return qcow2_check_tables(fd, data_size, header, path, &budget, &check, error);
}

/* The active disk, or that of the snapshot whose entry of the table is given. */
static image *open_image(const char *name, int flags, const uint8_t *snapshot,
                         GError **error)
{
    g_autofree char *path = support_path("%s", name);
    g_autofree char *data_path = support_path("%s.data", name);
    qcow2_header header;
    int fd = open(path, flags | O_CLOEXEC), data_fd = -1;
    cr_assert_geq(fd, 0, "%s", path);
    if (!qcow2_header_read(fd, path, &header, error)) {
        close(fd);
        return NULL;
    }
    if (header.data_file)
        data_fd = open(data_path, flags | O_CLOEXEC);
    image *im = NULL;
    bool valid = check_tables(fd, data_fd, &header, path, error);
    if (valid && snapshot) {
        header.l1_offset = qcow2_be64(snapshot);
        header.l1_entries = qcow2_be32(snapshot + 8);
        header.size = qcow2_be64(snapshot + 48);
        header.snapshot_count = 0;
    }
    if (!valid)
        close_both(fd, data_fd);
    else
        im = (flags == O_RDWR ? qcow2_open_writable : qcow2_open)(fd, data_fd, &header,
                                                                  path, error);
    qcow2_header_clear(&header);
    return im;
}

char *qcow2_rig_open(qcow2_rig *r)
{
    g_autoptr(GError) error = NULL;
    r->im = open_image(r->name, O_RDWR, NULL, &error);
    if (r->im && r->below)
        qcow2_set_backing(r->im, below_read, r, r->below_size);
    if (r->im && image_begin_writing(r->im, &error))
        return disk_model_see_size(r->model, r->im->size);
    image_close(r->im);
    r->im = NULL;
    return g_strdup(error->message);
}

void qcow2_rig_close(qcow2_rig *r)
{
    image_close(r->im);
    r->im = NULL;
}

/* ---- Reading ------------------------------------------------------------------------- */

static int read_all(const qcow2_rig *r, image *im, uint8_t *content)
{
    image_extent extent;
    for (uint64_t at = 0; at < im->size; at += extent.length) {
        int error = image_map(im, at, im->size - at, &extent);
        if (error)
            return error;
        if (extent.kind == IMAGE_EXTENT_UNALLOCATED)
            error = below_read((void *)(uintptr_t)r, content + at, at, extent.length);
        else
            error = image_read(im, content + at, at, extent.length);
        if (error)
            return error;
    }
    return 0;
}

static char *read_image(const qcow2_rig *r, image *im, uint8_t **ret_content,
                        uint64_t *ret_size)
{
    uint8_t *content = g_malloc(im->size + 1);
    int error = read_all(r, im, content);
    *ret_size = im->size;
    *ret_content = content;
    if (!error)
        return NULL;
    g_clear_pointer(ret_content, g_free);
    return g_strdup_printf("reading: %s", g_strerror(-error));
}

char *qcow2_rig_read(const qcow2_rig *r, const char *name, uint8_t **ret_content,
                     uint64_t *ret_size)
{
    g_autoptr(GError) error = NULL;
    image *im = open_image(name, O_RDONLY, NULL, &error);
    *ret_content = NULL;
    if (!im)
        return g_strdup(error->message);
    char *wrong = read_image(r, im, ret_content, ret_size);
    image_close(im);
    return wrong;
}

char *qcow2_rig_see(qcow2_rig *r)
{
    g_autofree uint8_t *content = NULL;
    uint64_t size;
    char *wrong = read_image(r, r->im, &content, &size);
    return wrong ? wrong : disk_model_see(r->model, content, 0, size);
}

static GPtrArray *read_snapshots(const qcow2_rig *r, const char *name)
{
    size_t length;
    g_autofree char *path = support_path("%s", name);
    g_autofree uint8_t *file = support_load(path, &length);
    GPtrArray *all = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    const uint8_t *at = file + qcow2_be64(file + 64);
    for (uint32_t left = qcow2_be32(file + 60); left > 0; left--) {
        uint64_t size;
        uint8_t *content = NULL;
        cr_assert_geq(qcow2_be32(at + 36), 16, "a snapshot without its size");
        image *im = open_image(name, O_RDONLY, at, NULL);
        char *wrong = im ? read_image(r, im, &content, &size) : g_strdup("");
        image_close(im);
        g_free(wrong);
        g_ptr_array_add(all, g_bytes_new_take(content, content ? size : 0));
        at += qcow2_round_up(40 + qcow2_be32(at + 36) + (uint64_t)at[12] * 256 + at[13] +
                                 (uint64_t)at[14] * 256 + at[15],
                             8);
    }
    return all;
}

char *qcow2_rig_check_snapshots(const qcow2_rig *r, const char *name)
{
    char *wrong = NULL;
    if (r->snapshots->len == 0)
        return NULL;
    GPtrArray *now = read_snapshots(r, name);
    if (now->len != r->snapshots->len)
        wrong =
            g_strdup_printf("%u snapshots instead of %u", now->len, r->snapshots->len);
    for (unsigned i = 0; !wrong && i < now->len; i++)
        if (!g_bytes_equal(now->pdata[i], r->snapshots->pdata[i]))
            wrong = g_strdup_printf("snapshot %u does not hold what it held", i + 1);
    g_ptr_array_free(now, TRUE);
    return wrong;
}

int qcow2_rig_qemu_check(const qcow2_rig *r, const char *name, const char *options)
{
    g_autofree char *data = NULL;
    if (r->variant->traits & VARIANT_DATA_FILE)
        data = g_strdup_printf(",data-file.driver=file,data-file.filename=%s.data", name);
    return support_try("qemu-img check %s --image-opts "
                       "driver=qcow2,file.driver=file,file.filename=%s%s >%s.check 2>&1",
                       options, name, data ? data : "", name);
}

/* ---- Requests ------------------------------------------------------------------------ */

static uint64_t below_number(qcow2_rig *r, uint64_t limit)
{
    return limit == 0 ? 0 : (support_random(&r->seed) >> 16) % limit;
}

static bool one_in(qcow2_rig *r, unsigned n)
{
    return below_number(r, n) == 0;
}

static void trace(const qcow2_rig *r, const char *what, uint64_t offset, uint64_t length)
{
    if (g_getenv("QUORUMFS_TEST_TRACE"))
        fprintf(stderr, "%s: %s %" PRIu64 " +%" PRIu64 "\n", r->name, what, offset,
                length);
}

/* Bytes, sectors or clusters; often near the last ones, so that much is written twice. */
static void pick_range(qcow2_rig *r, uint64_t length_max, uint64_t *ret_offset,
                       uint64_t *ret_length)
{
    uint64_t size = r->im->size, cluster = r->variant->cluster_size;
    uint64_t offset = below_number(r, size), length = 1 + below_number(r, 700), unit = 1;
    if (one_in(r, 8))
        r->hot = offset;
    else if (!one_in(r, 3))
        offset = r->hot + below_number(r, 4 * cluster);
    offset = MIN(offset, size - 1);
    switch (below_number(r, 4)) {
    case 0:
        break;
    case 1:
        unit = 512;
        length = unit * (1 + below_number(r, cluster / 512));
        break;
    case 2:
        unit = cluster;
        length = unit * (1 + below_number(r, 3));
        break;
    default:
        length = 1 + below_number(r, MAX(3 * cluster, 40000));
    }
    *ret_offset = offset / unit * unit;
    *ret_length = MIN(MIN(length, length_max), size - *ret_offset);
}

static int write_zeroes(qcow2_rig *r,
                        int (*zero)(image *im, uint64_t offset, uint64_t length))
{
    uint64_t offset, length;
    pick_range(r, UINT64_MAX, &offset, &length);
    disk_model_begin(r->model, NULL, offset, length);
    trace(r, zero == image_discard ? "discard" : "zeroes", offset, length);
    return zero(r->im, offset, length);
}

static int write_bytes(qcow2_rig *r)
{
    uint64_t offset, length;
    pick_range(r, WRITE_MAX, &offset, &length);
    support_pattern(r->buf, (size_t)length, offset, ++r->tag);
    disk_model_begin(r->model, r->buf, offset, length);
    trace(r, "write", offset, length);
    return image_write(r->im, r->buf, offset, (size_t)length);
}

int qcow2_rig_write(qcow2_rig *r, uint64_t offset, size_t length)
{
    support_pattern(r->buf, length, offset, ++r->tag);
    disk_model_begin(r->model, r->buf, offset, length);
    int result = image_write(r->im, r->buf, offset, length);
    if (r->before_end)
        r->before_end(r->user);
    disk_model_end(r->model, result == 0);
    return result;
}

static int resize(qcow2_rig *r)
{
    uint64_t unit = one_in(r, 2) ? 512 : 1;
    uint64_t size = one_in(r, 2) ? r->size_max - below_number(r, r->size_max / 8)
                                 : 1 + below_number(r, r->size_max);
    size = MAX(size / unit, 1) * unit;
    disk_model_begin_resize(r->model, size, r->below, r->below_size);
    trace(r, "resize", size, 0);
    return image_resize(r->im, size);
}

/* A failure to open again is a failure of the test. */
static int reopen(qcow2_rig *r)
{
    trace(r, "close and open", 0, 0);
    qcow2_rig_close(r);
    g_autofree char *wrong = qcow2_rig_open(r);
    cr_assert_null(wrong, "%s: reopening: %s", r->variant->name, wrong);
    return 0;
}

static int carry_out(qcow2_rig *r, rig_request request)
{
    if (r->im->size == 0 && request < RIG_FLUSH)
        return 0;
    switch (request) {
    case RIG_WRITE:
        return write_bytes(r);
    case RIG_ZEROES:
        return write_zeroes(r, image_write_zeroes);
    case RIG_DISCARD:
        return write_zeroes(r, image_discard);
    case RIG_FLUSH:
        trace(r, "flush", 0, 0);
        return image_flush(r->im);
    case RIG_RESIZE:
        return resize(r);
    default:
        return reopen(r);
    }
}

int qcow2_rig_do(qcow2_rig *r, rig_request request)
{
    int result = carry_out(r, request);
    if (result)
        trace(r, g_strerror(-result), 0, 0);
    if (r->before_end)
        r->before_end(r->user);
    disk_model_end(r->model, result == 0);
    if (result == 0 && request == RIG_FLUSH)
        disk_model_flushed(r->model);
    if (request == RIG_RESIZE) {
        g_autofree char *wrong = disk_model_see_size(r->model, r->im->size);
        cr_assert_null(wrong, "%s: %s", r->variant->name, wrong);
    }
    return result;
}

int qcow2_rig_step(qcow2_rig *r, rig_request *ret_request)
{
    static const uint8_t shares[RIG_REQUESTS] = {48, 12, 12, 18, 6, 4};
    unsigned pick = (unsigned)below_number(r, 100), request = 0;
    while (pick >= shares[request])
        pick -= shares[request++];
    if (ret_request)
        *ret_request = request;
    return qcow2_rig_do(r, request);
}

/* ---- Rigs ---------------------------------------------------------------------------- */

static qcow2_rig *rig_new(const qcow2_variant *v, const char *name, uint64_t seed)
{
    qcow2_rig *r = g_new0(qcow2_rig, 1);
    r->variant = v;
    r->name = g_strdup(name);
    r->seed = seed;
    r->buf = g_malloc(WRITE_MAX);
    r->size_max = v->size + MIN(v->size, 3u << 20) + 12345;
    r->snapshots = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    return r;
}

/* QEMU reads whole sectors of raw files only, so they are not converted. */
static void load_below(qcow2_rig *r)
{
    if (!(r->variant->traits & VARIANT_BACKING))
        return;
    g_autofree char *path = support_path(QCOW2_RIG_IMAGE ".base");
    r->below = support_load(path, &r->below_size);
    if (r->below_size < 4 || qcow2_be32(r->below) != QCOW2_MAGIC)
        return;
    g_free(r->below);
    r->below = qcow2_qemu_content(QCOW2_RIG_IMAGE ".base", NULL, &r->below_size);
}

/* Up to a refcount table that is nearly full, say. */
static void fill(qcow2_rig *r, uint64_t length)
{
    g_autoptr(GError) error = NULL;
    r->im = open_image(r->name, O_RDWR, NULL, &error);
    cr_assert(r->im && image_begin_writing(r->im, &error), "%s", error->message);
    for (uint64_t at = 0; at < length; at += WRITE_MAX) {
        size_t part = (size_t)MIN(WRITE_MAX, length - at);
        support_pattern(r->buf, part, at, 99);
        cr_assert_eq(image_write(r->im, r->buf, at, part), 0);
    }
    qcow2_rig_close(r);
}

qcow2_rig *qcow2_rig_new(const qcow2_variant *v, uint64_t prefill, uint64_t seed)
{
    qcow2_rig *r = rig_new(v, QCOW2_RIG_IMAGE, seed);
    g_autofree uint8_t *content = NULL;
    uint64_t size;
    qcow2_variant_create(v, r->name);
    load_below(r);
    if (prefill > 0)
        fill(r, prefill);
    g_autofree char *wrong = qcow2_rig_read(r, r->name, &content, &size);
    cr_assert_null(wrong, "%s: %s", v->name, wrong);
    g_ptr_array_unref(r->snapshots);
    r->snapshots = read_snapshots(r, r->name);
    r->model = disk_model_new(content, size, r->size_max);
    return r;
}

qcow2_rig *qcow2_rig_new_copy(const qcow2_rig *r, const char *name,
                              const uint8_t *content, uint64_t size, uint64_t seed)
{
    qcow2_rig *copy = rig_new(r->variant, name, seed);
    copy->below = r->below;
    copy->below_size = r->below_size;
    g_ptr_array_unref(copy->snapshots);
    copy->snapshots = g_ptr_array_ref(r->snapshots);
    copy->tag = r->tag + 100000;
    copy->model = disk_model_new(content, size, copy->size_max);
    return copy;
}

void qcow2_rig_free(qcow2_rig *r)
{
    image_close(r->im);
    if (strcmp(r->name, QCOW2_RIG_IMAGE) == 0) {
        g_free(r->below);
        qcow2_variant_remove(r->name);
    }
    g_ptr_array_unref(r->snapshots);
    disk_model_free(r->model);
    g_free(r->buf);
    g_free(r->name);
    g_free(r);
}
