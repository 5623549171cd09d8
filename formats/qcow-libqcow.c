/*
 * qcow-libqcow.c: the image driver on top of a decoder process (libqcow-client.h).
 *
 * The shared buffer and the files belong to the image; the client works with them. After
 * the slots' memory the buffer has a part that is lent to one user, who reads without a
 * copy.
 *
 * Locks: libqcow_image.lock covers everything in the client that changes. Nothing else is
 * taken while it is held.
 */
#include "formats/qcow-libqcow.h"
#include "formats/libqcow-client.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TIMEOUT_DEFAULT_MS 5000
/* Bounds of a helper's memory: the heap at which it is replaced, and the hard limit. Two
 * copies of an L1 table of 32 MiB and a few clusters must fit for each layer, and of many
 * layers two copies of what a chain may have of such tables (CHAIN_TABLE_BYTES_MAX). */
#define HEAP_BYTES          (128u << 20)
#define HEAP_LAYER_BYTES    (64u << 20)
#define HEAP_LAYERS_BYTES   (896u << 20)
#define ADDRESS_SPACE_BYTES (320u << 20)

typedef struct libqcow_image {
    image base; /* first */
    GMutex lock;
    atomic_uint timeouts; /* how often there was no answer in time */
    libqcow_client client;
} libqcow_image;

/* ---- the driver ------------------------------------------------------------------- */

/* The first of the pieces in which a range is read. */
static libqcow_piece first_piece(const libqcow_image *lq, void *buf, uint64_t offset,
                                 size_t length)
{
    uintptr_t place = (uintptr_t)buf - (uintptr_t)lq->client.buffer;
    return (libqcow_piece){.offset = offset,
                           .length = (uint32_t)MIN(length, LIBQCOW_SLOT_BYTES),
                           .lent = place < LIBQCOW_BUFFER_BYTES ? buf : NULL};
}

/* Who waited while another one waited in vain has waited long enough (R5). */
static int libqcow_read(image *im, void *buf, uint64_t offset, size_t length)
{
    libqcow_image *lq = (libqcow_image *)im;
    uint8_t *bytes = buf;
    unsigned before = atomic_load(&lq->timeouts);
    g_mutex_lock(&lq->lock);
    int error = atomic_load(&lq->timeouts) == before ? 0 : -ETIMEDOUT;
    for (size_t done = 0; done < length && !error;) {
        libqcow_piece p = first_piece(lq, bytes + done, offset + done, length - done);
        error = libqcow_client_read(&lq->client, bytes + done, &p);
        if (error == -ETIMEDOUT)
            atomic_fetch_add(&lq->timeouts, 1);
        done += p.length;
    }
    g_mutex_unlock(&lq->lock);
    return error;
}

/* While somebody reads there is enough to do: this must not wait for the lock. */
static void libqcow_read_ahead(image *im, void *buf, uint64_t offset, size_t length)
{
    libqcow_image *lq = (libqcow_image *)im;
    if (!g_mutex_trylock(&lq->lock))
        return;
    libqcow_piece p = first_piece(lq, buf, offset, length);
    libqcow_client_read_ahead(&lq->client, &p);
    g_mutex_unlock(&lq->lock);
}

static uint8_t *libqcow_lend(image *im, size_t length)
{
    libqcow_image *lq = (libqcow_image *)im;
    return length <= LIBQCOW_LENT_BYTES
               ? lq->client.buffer + LIBQCOW_SLOTS * LIBQCOW_SLOT_BYTES
               : NULL;
}

static unsigned libqcow_abandoned(const image *im)
{
    const libqcow_image *lq = (const libqcow_image *)im;
    unsigned count = 0;
    for (unsigned i = 0; i < lq->client.n_files; i++)
        count += io_abandoned(lq->client.fds[i]);
    return count;
}

static void libqcow_close(image *im)
{
    libqcow_image *lq = (libqcow_image *)im;
    libqcow_client_stop(&lq->client);
    for (unsigned i = 0; i < lq->client.n_files; i++)
        file_close(lq->client.fds[i]);
    if (lq->client.buffer != MAP_FAILED)
        munmap(lq->client.buffer, LIBQCOW_BUFFER_BYTES);
    if (lq->client.memory_fd >= 0)
        close(lq->client.memory_fd);
    explicit_bzero(&lq->client.opening, sizeof lq->client.opening);
    g_mutex_clear(&lq->lock);
    g_free(lq->base.filename);
    g_free(lq);
}

static const image_driver libqcow_driver = {
    .name = "libqcow",
    .close = libqcow_close,
    .read = libqcow_read,
    .read_ahead = libqcow_read_ahead,
    .lend = libqcow_lend,
    .abandoned = libqcow_abandoned,
};

int libqcow_helper_pid(const image *im)
{
    const libqcow_image *lq = (const libqcow_image *)im;
    return im->driver == &libqcow_driver ? atomic_load(&lq->client.pid) : 0;
}

/* ---- opening ---------------------------------------------------------------------- */

/* A qcow2 image of `size` bytes without any cluster, in memory: header, and an L1 table
 * of zeroes, which at 2 MiB clusters is 8 bytes for each 512 GiB. */
static int stand_in_create(uint64_t size)
{
    enum { CLUSTER_BITS = 21, HEADER_BYTES = 72 };
    const uint64_t l1_offset = (uint64_t)1 << CLUSTER_BITS;
    const uint64_t l1_entries = (size >> (2 * CLUSTER_BITS - 3)) + 1;
    uint8_t header[HEADER_BYTES] = {0};
    const uint32_t words[] = {GUINT32_TO_BE(QCOW2_MAGIC), GUINT32_TO_BE(2)};
    const uint32_t cluster_bits = GUINT32_TO_BE(CLUSTER_BITS);
    const uint64_t size_be = GUINT64_TO_BE(size);
    const uint32_t l1_entries_be = GUINT32_TO_BE((uint32_t)l1_entries);
    const uint64_t l1_offset_be = GUINT64_TO_BE(l1_offset);
    memcpy(header, words, sizeof words);
    memcpy(header + 20, &cluster_bits, sizeof cluster_bits);
    memcpy(header + 24, &size_be, sizeof size_be);
    memcpy(header + 36, &l1_entries_be, sizeof l1_entries_be);
    memcpy(header + 40, &l1_offset_be, sizeof l1_offset_be);
    int fd = memfd_create("quorumfs-empty-parent", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)(l1_offset + 8 * l1_entries)) < 0 ||
        file_write_full(fd, header, sizeof header, 0) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

static bool buffer_create(libqcow_image *lq)
{
    lq->client.memory_fd =
        memfd_create("quorumfs-decoder", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (lq->client.memory_fd < 0 ||
        ftruncate(lq->client.memory_fd, LIBQCOW_BUFFER_BYTES) < 0 ||
        fcntl(lq->client.memory_fd, F_ADD_SEALS,
              F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return false;
    lq->client.buffer = mmap(NULL, LIBQCOW_BUFFER_BYTES, PROT_READ | PROT_WRITE,
                             MAP_SHARED, lq->client.memory_fd, 0);
    return lq->client.buffer != MAP_FAILED;
}

static void opening_describe(libqcow_image *lq, const libqcow_layer *layers,
                             const char *password)
{
    wire_open *opening = &lq->client.opening;
    opening->n_layers = lq->client.n_files;
    opening->memory = HEAP_BYTES + MIN((uint64_t)lq->client.n_files * HEAP_LAYER_BYTES,
                                       HEAP_LAYERS_BYTES);
    opening->address_space = opening->memory + ADDRESS_SPACE_BYTES;
    opening->has_key = password && *password;
    if (opening->has_key)
        memcpy(opening->key, password, MIN(strlen(password), LIBQCOW_KEY_BYTES));
    uint32_t smallest = layers[0].cluster_size;
    for (unsigned i = 0; i < lq->client.n_layers; i++) {
        opening->sizes[i] = layers[i].size;
        smallest = MIN(smallest, layers[i].cluster_size);
    }
    if (lq->client.n_files > lq->client.n_layers)
        opening->sizes[lq->client.n_layers] = layers[lq->client.n_layers - 1].size;
    opening->cut = lq->client.n_files > 1 ? smallest : 0;
}

static bool layers_check(const libqcow_layer *layers, unsigned n_layers, GError **error)
{
    for (unsigned i = 0; i < n_layers; i++) {
        const libqcow_layer *layer = &layers[i];
        if (layer->size > IMAGE_SIZE_MAX || layer->cluster_size < IMAGE_SECTOR ||
            (layer->cluster_size & (layer->cluster_size - 1))) {
            g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_INVALID,
                        "%s: size %" G_GUINT64_FORMAT
                        " or cluster size %" G_GUINT32_FORMAT " is out of range",
                        layer->filename, layer->size, layer->cluster_size);
            return false;
        }
        if (i > 0 && layer->size < layers[i - 1].size) {
            g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_UNSUPPORTED,
                        "%s: shorter than the overlay %s, which libqcow does not read",
                        layer->filename, layers[i - 1].filename);
            return false;
        }
    }
    return true;
}

/* Says why a first helper did not come to serve. */
static void start_explain(const libqcow_image *lq, const libqcow_layer *layers,
                          int failure, const wire_reply *reply, GError **error)
{
    static const struct {
        image_error code;
        const char *text;
    } reasons[WIRE_STATUS_COUNT] = {
        [WIRE_OPEN_FAILED] = {IMAGE_ERROR_UNSUPPORTED, "libqcow cannot open it"},
        [WIRE_SIZE_DIFFERS] = {IMAGE_ERROR_INVALID,
                               "libqcow reports another size than the header"},
        [WIRE_KEY_MISSING] = {IMAGE_ERROR_PASSWORD,
                              "encrypted, and there is no password"},
        [WIRE_CIPHER_UNKNOWN] = {IMAGE_ERROR_UNSUPPORTED,
                                 "encrypted in a way that libqcow does not read"},
        [WIRE_PARENT_REFUSED] = {IMAGE_ERROR_UNSUPPORTED,
                                 "libqcow refuses the layer below as its parent"},
        [WIRE_SANDBOX_FAILED] = {IMAGE_ERROR_IO,
                                 "the decoder process could not be locked in"},
    };
    if (failure) {
        g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: the decoder process %s: %s",
                    lq->base.filename,
                    failure == -ETIMEDOUT ? "did not answer in time" : "failed to start",
                    g_strerror(-failure));
        return;
    }
    unsigned layer = MIN(reply->value, lq->client.n_layers - 1);
    g_set_error(error, IMAGE_ERROR, reasons[reply->status].code, "%s: %s",
                layers[layer].filename, reasons[reply->status].text);
}

static bool first_start(libqcow_image *lq, const libqcow_layer *layers, GError **error)
{
    wire_reply reply = {.status = WIRE_OK};
    int failure = libqcow_client_start(&lq->client, &reply);
    if (failure)
        failure = libqcow_client_start(&lq->client, &reply);
    if (!failure && reply.status == WIRE_OK)
        return true;
    start_explain(lq, layers, failure, &reply, error);
    return false;
}

/* Takes over the descriptors, also of layers that are one too many. */
static libqcow_image *image_new(const libqcow_layer *layers, unsigned n_layers)
{
    libqcow_image *lq = g_new0(libqcow_image, 1);
    lq->base.driver = &libqcow_driver;
    lq->base.filename = g_strdup(layers[0].filename);
    lq->base.size = layers[0].size;
    lq->base.read_only = true;
    lq->client.memory_fd = -1;
    lq->client.buffer = MAP_FAILED;
    g_mutex_init(&lq->lock);
    for (unsigned i = 0; i < n_layers; i++) {
        lq->client.fds[lq->client.n_files++] = layers[i].fd;
        file_stamp_changed(&lq->client.stamps[lq->client.n_layers++], layers[i].fd);
    }
    return lq;
}

image *libqcow_open(const libqcow_layer *layers, unsigned n_layers,
                    const libqcow_options *options, GError **error)
{
    g_assert(n_layers > 0 && n_layers < LIBQCOW_LAYERS_MAX);
    libqcow_image *lq = image_new(layers, n_layers);
    lq->client.timeout_ms = options && options->timeout_ms
                                ? (int)MIN(options->timeout_ms, (unsigned)G_MAXINT)
                                : TIMEOUT_DEFAULT_MS;
    if (!layers_check(layers, n_layers, error))
        goto fail;
    if (layers[n_layers - 1].has_backing) {
        int fd = stand_in_create(layers[n_layers - 1].size);
        if (fd < 0) {
            errno = -fd;
            goto fail_errno;
        }
        lq->client.fds[lq->client.n_files++] = fd;
    }
    if (!buffer_create(lq))
        goto fail_errno;
    opening_describe(lq, layers, options ? options->password : NULL);
    if (!first_start(lq, layers, error))
        goto fail;
    return &lq->base;

fail_errno:
    g_set_error(error, IMAGE_ERROR, IMAGE_ERROR_IO, "%s: memory for the decoder: %s",
                lq->base.filename, g_strerror(errno));
fail:
    libqcow_close(&lq->base);
    return NULL;
}
