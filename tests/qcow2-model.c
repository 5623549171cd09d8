#include "tests/qcow2-model.h"
#include "tests/chain-support.h"
#include <inttypes.h>

bool qcow2_model_is_chosen(const qcow2_variant *v)
{
    const char *name = g_getenv("QUORUMFS_TEST_VARIANT");
    return !name || strcmp(name, v->name) == 0;
}

uint64_t qcow2_model_seed(const qcow2_variant *v, uint64_t seed)
{
    return (seed ^ g_str_hash(v->name)) | 1;
}

unsigned qcow2_model_many(unsigned count)
{
    return g_getenv("QUORUMFS_TEST_THOROUGH") ? 10 * count : count;
}

static void G_GNUC_PRINTF(2, 3) describe(qcow2_model *m, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_free(m->what);
    m->what = g_strdup_printf("%s, step %u: %s", m->variant, m->steps, text);
    if (g_getenv("QUORUMFS_TEST_TRACE"))
        g_printerr("%s\n", m->what);
}

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t length)
{
    size_t at = 0;
    while (at < length && a[at] == b[at])
        at++;
    return at;
}

/* Nothing to compare is alike, too: the whole message only where it is needed. */
static void assert_alike(const qcow2_model *m, const uint8_t *got, uint64_t offset,
                         size_t length, const char *how)
{
    if (memcmp(got, m->bytes + offset, length) == 0)
        return;
    size_t at = first_difference(got, m->bytes + offset, length);
    cr_assert(false, "%s: %s: byte %" PRIu64 " is %02x instead of %02x", m->what, how,
              offset + at, got[at], m->bytes[offset + at]);
}

static void read_back(qcow2_model *m, uint64_t offset, uint64_t length)
{
    int result = chain_read(m->disk, m->buffer, offset, length);
    cr_assert_eq(result, 0, "%s: read of %" PRIu64 " at %" PRIu64 ": %s", m->what, length,
                 offset, g_strerror(-result));
    assert_alike(m, m->buffer, offset, length, "read");
}

/* With what lies around it, where copies and neighbours go wrong. */
static void read_around(qcow2_model *m, uint64_t offset, uint64_t length)
{
    uint64_t more = m->cluster_size + 700;
    uint64_t start = offset > more ? offset - more : 0;
    read_back(m, start, MIN(m->size, offset + length + more) - start);
}

void qcow2_model_verify(qcow2_model *m)
{
    read_back(m, 0, m->size);
    uint64_t allocated = 0;
    for (uint64_t at = 0; at < m->size;) {
        chain_extent extent;
        cr_assert_eq(chain_map(m->disk, at, m->size - at, &extent), 0, "%s", m->what);
        cr_assert(extent.length > 0 && extent.length <= m->size - at, "%s", m->what);
        memset(m->buffer, 0, extent.length);
        if (extent.kind == IMAGE_EXTENT_ZERO || extent.kind == IMAGE_EXTENT_UNALLOCATED)
            assert_alike(m, m->buffer, at, extent.length, "map says zeroes");
        else
            allocated += extent.length;
        at += extent.length;
    }
    cr_assert_leq(allocated, m->size);
}

/* QEMU counts whole sectors. */
static void compare_with_qemu(qcow2_model *m)
{
    size_t length = 0;
    g_autofree uint8_t *bytes = qcow2_qemu_content(m->image, NULL, &length);
    cr_assert_eq(length, m->size / 512 * 512, "%s: QEMU sees %zu bytes of %" PRIu64,
                 m->what, length, m->size);
    assert_alike(m, bytes, 0, length, "QEMU's read");
}

static void open_disk(qcow2_model *m, bool writable)
{
    chain_options options = {
        .format = "qcow2", .decoder = CHAIN_DECODER_NATIVE, .writable = writable};
    g_autoptr(GError) error = NULL;
    m->disk = must_open(m->image, &options);
    cr_assert_eq(chain_size(m->disk), m->size, "%s: size", m->what);
    if (!writable)
        return;
    cr_assert(chain_writable(m->disk), "%s: %s", m->what,
              chain_read_only_reason(m->disk));
    cr_assert(chain_begin_writing(m->disk, &error), "%s: %s", m->what,
              error ? error->message : "");
}

void qcow2_model_open(qcow2_model *m)
{
    describe(m, "opened");
    open_disk(m, true);
}

void qcow2_model_close(qcow2_model *m)
{
    chain_close(m->disk);
    m->disk = NULL;
}

void qcow2_model_load(qcow2_model *m)
{
    size_t length = 0;
    g_autofree uint8_t *bytes = qcow2_qemu_content(m->image, NULL, &length);
    describe(m, "loaded");
    cr_assert_eq(length, m->size / 512 * 512, "%s: size", m->what);
    memcpy(m->bytes, bytes, length);
}

void qcow2_model_start(qcow2_model *m, const qcow2_variant *v, const char *name,
                       uint64_t seed)
{
    *m = (qcow2_model){.image = g_strdup(name),
                       .variant = v->name,
                       .seed = seed,
                       .cluster_size = v->cluster_size,
                       .size = v->size - v->trim,
                       .room = v->size + v->size / 2 + 3 * v->cluster_size};
    m->bytes = g_malloc0(m->room);
    m->buffer = g_malloc0(m->room);
    qcow2_model_load(m);
    qcow2_model_open(m);
    /* What QEMU does not see of an odd size is as we read it first. */
    uint64_t seen = m->size / 512 * 512;
    cr_assert_eq(chain_read(m->disk, m->bytes + seen, seen, m->size - seen), 0);
    qcow2_model_verify(m);
}

void qcow2_model_stop(qcow2_model *m)
{
    qcow2_model_close(m);
    g_free(m->image);
    g_free(m->what);
    g_free(m->bytes);
    g_free(m->buffer);
}

void qcow2_model_check(qcow2_model *m)
{
    describe(m, "closed");
    qcow2_assert_clean(m->image, m->what);
    compare_with_qemu(m);
    open_disk(m, false);
    qcow2_model_verify(m);
    qcow2_model_close(m);
}

static void assert_done(const qcow2_model *m, int result)
{
    cr_assert_eq(result, 0, "%s: %s", m->what, g_strerror(-result));
}

/* Every other one as the disk does it: prepared, run, finished. */
static int write_in_steps(chain *c, const void *buf, uint64_t offset, size_t length)
{
    io_list list = {0};
    image_change *change = NULL;
    int result = chain_prepare_write(c, buf, offset, length, 3, &list, &change);
    if (result == 0) {
        io_list_run(&list);
        for (size_t i = 0; i < list.count && result == 0; i++)
            result = list.ops[i].result;
        result = chain_finish_write(c, change, result);
    }
    io_list_free(&list);
    return result;
}

void qcow2_model_write(qcow2_model *m, uint64_t offset, uint64_t length)
{
    uint8_t *bytes = m->bytes + offset;
    describe(m, "write of %" PRIu64 " at %" PRIu64, length, offset);
    if (support_random(&m->seed) % 4 == 0)
        qcow2_random_content(bytes, length, &m->seed);
    else
        support_pattern(bytes, length, offset, support_random(&m->seed));
    bool in_steps = support_random(&m->seed) % 2;
    assert_done(m, in_steps ? write_in_steps(m->disk, bytes, offset, length)
                            : chain_write(m->disk, bytes, offset, length));
    read_around(m, offset, length);
}

void qcow2_model_zero(qcow2_model *m, uint64_t offset, uint64_t length)
{
    describe(m, "zeroes, %" PRIu64 " at %" PRIu64, length, offset);
    memset(m->bytes + offset, 0, length);
    assert_done(m, chain_write_zeroes(m->disk, offset, length));
    read_around(m, offset, length);
}

void qcow2_model_discard(qcow2_model *m, uint64_t offset, uint64_t length)
{
    describe(m, "discard of %" PRIu64 " at %" PRIu64, length, offset);
    memset(m->bytes + offset, 0, length);
    assert_done(m, chain_discard(m->disk, offset, length));
    read_around(m, offset, length);
}

void qcow2_model_flush(qcow2_model *m)
{
    describe(m, "flush");
    assert_done(m, chain_flush(m->disk));
}

void qcow2_model_resize(qcow2_model *m, uint64_t size)
{
    describe(m, "resize from %" PRIu64 " to %" PRIu64, m->size, size);
    cr_assert_leq(size, m->room);
    assert_done(m, chain_resize(m->disk, size));
    if (size < m->size)
        memset(m->bytes + size, 0, m->size - size);
    m->size = size;
    cr_assert_eq(chain_size(m->disk), size, "%s", m->what);
    qcow2_model_verify(m);
}

/* Mostly a few sectors or clusters, at places that are used again and again; some aligned,
 * some at any byte. */
static void random_range(qcow2_model *m, uint64_t *ret_offset, uint64_t *ret_length)
{
    uint64_t cluster = m->cluster_size, longest = MIN(3 * cluster + 5000, 300000);
    uint64_t offset = support_random(&m->seed) % m->size, length;
    if (support_random(&m->seed) % 3 == 0)
        offset %= 20 * cluster;
    switch (support_random(&m->seed) % 8) {
    case 0: /* whole clusters */
        offset -= offset % cluster;
        length = cluster * (1 + support_random(&m->seed) % 4);
        break;
    case 1: /* about a cluster's border */
        length = offset % cluster + support_random(&m->seed) % 600;
        offset -= MIN(offset, length);
        length = 1 + support_random(&m->seed) % 1500;
        break;
    case 2: /* any bytes */
        length = 1 + support_random(&m->seed) % longest;
        break;
    case 3: /* to a cluster's end */
        length = cluster - offset % cluster;
        break;
    default: /* sectors */
        offset -= offset % 512;
        length = 512 * (1 + support_random(&m->seed) % (1 + longest / 512));
        if (support_random(&m->seed) % 2)
            length = MIN(length, 8192);
    }
    *ret_offset = offset;
    *ret_length = MIN(length, m->size - offset);
}

static uint64_t random_size(qcow2_model *m)
{
    uint64_t size = m->room / 4 + support_random(&m->seed) % (m->room / 4 * 3);
    if (support_random(&m->seed) % 3 == 0)
        return size;
    return size - size % 512 ? size - size % 512 : 512;
}

static void random_step(qcow2_model *m)
{
    uint64_t offset, length;
    random_range(m, &offset, &length);
    m->steps++;
    unsigned kind = support_random(&m->seed) % 200;
    if (kind < 110) {
        qcow2_model_write(m, offset, length);
    } else if (kind < 140) {
        qcow2_model_zero(m, offset, length);
    } else if (kind < 170) {
        qcow2_model_discard(m, offset, length);
    } else if (kind < 194) {
        describe(m, "read");
        read_back(m, offset, length);
    } else if (kind == 199 && m->resizes) {
        qcow2_model_resize(m, random_size(m));
    } else if (kind == 198) {
        describe(m, "discard of a lot");
        length = MIN(m->size - offset, m->size / 3);
        qcow2_model_discard(m, offset, length);
    } else {
        qcow2_model_flush(m);
    }
}

void qcow2_model_steps(qcow2_model *m, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        random_step(m);
    qcow2_model_verify(m);
}
