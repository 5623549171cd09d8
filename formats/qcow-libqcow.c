/*
 * qcow-libqcow.c: the client's side of the decoder process (ask it, doubt it, replace it)
 * and the image driver on top.
 *
 * A helper is in one of two states: `pid` is 0 (none; the next request starts one) or it
 * is running, idle, and has answered everything that it was asked. Whatever else happens
 * (no answer in time, end of file, an answer that does not fit the question) ends in
 * helper_stop(), which leads back to the first state; nothing that a helper did wrong
 * outlives it. One request is tried on at most two helpers.
 *
 * libqcow keeps 128 clusters of each layer and cannot be told to forget them. A helper is
 * therefore replaced when a file of its run has changed, else a sector that rots under a
 * mounted disk would be served from memory for ever.
 *
 * What a helper writes into the shared buffer is only ever copied out, once, so that it
 * does not matter when it changes. The buffer is sealed: it cannot be cut short beneath us.
 *
 * Locks: libqcow_image.lock covers everything in the struct that changes. Nothing else is
 * taken while it is held.
 */
#include "formats/qcow-libqcow.h"
#include "formats/libqcow-wire.h"
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
    unsigned n_layers;
    int fds[LIBQCOW_LAYERS_MAX]; /* n_files of them, the stand-in's is the last */
    file_stamp stamps[LIBQCOW_LAYERS_MAX];
    unsigned n_files;
    int timeout_ms;
    int memory_fd;
    uint8_t *buffer; /* shared with the helper */
    GMutex lock;
    wire_open opening; /* what each new helper is told; holds the key */
    uint32_t sequence;
    int socket;     /* valid if pid is not 0 */
    atomic_int pid; /* 0: no helper */
    bool replace;   /* the helper asked for it */
} libqcow_image;

/* ---- helpers ---------------------------------------------------------------------- */

static void helper_stop(libqcow_image *lq)
{
    pid_t pid = atomic_exchange(&lq->pid, 0);
    if (pid == 0)
        return;
    lq->replace = false;
    libqcow_process_end(pid, lq->socket);
}

/* Sends the opening message and takes the answer. */
static int helper_greet(libqcow_image *lq, gint64 deadline, wire_reply *ret_reply)
{
    int fds[LIBQCOW_LAYERS_MAX + 1] = {lq->memory_fd};
    memcpy(fds + 1, lq->fds, lq->n_files * sizeof(int));
    lq->opening.sequence = ++lq->sequence;
    int error =
        wire_send(lq->socket, &lq->opening, sizeof lq->opening, fds, lq->n_files + 1);
    if (!error)
        error = wire_receive(lq->socket, lq->opening.sequence, deadline, ret_reply);
    if (!error && (ret_reply->status == WIRE_READ_FAILED ||
                   (ret_reply->status != WIRE_OK && ret_reply->value >= lq->n_files)))
        error = -EIO;
    return error;
}

/* Starts a helper. 0: there is an answer in *ret_reply, and a helper if it is WIRE_OK. */
static int helper_start(libqcow_image *lq, wire_reply *ret_reply)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)lq->timeout_ms * 1000;
    pid_t pid = 0;
    int error = libqcow_process_start(&pid, &lq->socket);
    if (error)
        return error;
    atomic_store(&lq->pid, pid);
    error = helper_greet(lq, deadline, ret_reply);
    if (error || ret_reply->status != WIRE_OK)
        helper_stop(lq);
    return error;
}

/* Has one piece decoded into the buffer, by the helper that runs or a new one. */
static int piece_request(libqcow_image *lq, uint64_t offset, uint32_t length,
                         wire_reply *ret_reply)
{
    if (atomic_load(&lq->pid) == 0) {
        int error = helper_start(lq, ret_reply);
        if (error || ret_reply->status != WIRE_OK)
            return error ? error : -EIO;
    }
    gint64 deadline = g_get_monotonic_time() + (gint64)lq->timeout_ms * 1000;
    wire_read request = {.sequence = ++lq->sequence, .length = length, .offset = offset};
    int error = wire_send(lq->socket, &request, sizeof request, NULL, 0);
    if (!error)
        error = wire_receive(lq->socket, request.sequence, deadline, ret_reply);
    if (!error && ret_reply->status > WIRE_READ_FAILED)
        error = -EIO;
    if (!error && ret_reply->status == WIRE_OK && ret_reply->value != length)
        error = -EIO;
    if (error)
        helper_stop(lq);
    return error;
}

static bool files_changed(libqcow_image *lq)
{
    bool changed = false;
    for (unsigned i = 0; i < lq->n_layers; i++)
        changed |= file_stamp_changed(&lq->stamps[i], lq->fds[i]);
    return changed;
}

/* An honest "cannot read" is an answer and not tried again, but by a helper that has run
 * out of memory. */
static int piece_read(libqcow_image *lq, void *buf, uint64_t offset, uint32_t length)
{
    wire_reply reply = {.status = WIRE_READ_FAILED};
    if (files_changed(lq) || lq->replace)
        helper_stop(lq);
    int error = piece_request(lq, offset, length, &reply);
    if (!error && reply.status != WIRE_OK && reply.replace) {
        helper_stop(lq);
        error = -ENOMEM;
    }
    if (error)
        error = piece_request(lq, offset, length, &reply);
    if (error)
        return error;
    lq->replace = reply.replace;
    if (reply.status != WIRE_OK)
        return -EIO;
    memcpy(buf, lq->buffer, length);
    return 0;
}

/* ---- the driver ------------------------------------------------------------------- */

static int libqcow_read(image *im, void *buf, uint64_t offset, size_t length)
{
    libqcow_image *lq = (libqcow_image *)im;
    uint8_t *bytes = buf;
    int error = 0;
    g_mutex_lock(&lq->lock);
    for (size_t done = 0; done < length && !error;) {
        size_t part = MIN(length - done, LIBQCOW_BUFFER_BYTES);
        error = piece_read(lq, bytes + done, offset + done, (uint32_t)part);
        done += part;
    }
    g_mutex_unlock(&lq->lock);
    return error;
}

static void libqcow_close(image *im)
{
    libqcow_image *lq = (libqcow_image *)im;
    helper_stop(lq);
    for (unsigned i = 0; i < lq->n_files; i++)
        close(lq->fds[i]);
    if (lq->buffer != MAP_FAILED)
        munmap(lq->buffer, LIBQCOW_BUFFER_BYTES);
    if (lq->memory_fd >= 0)
        close(lq->memory_fd);
    explicit_bzero(&lq->opening, sizeof lq->opening);
    g_mutex_clear(&lq->lock);
    g_free(lq->base.filename);
    g_free(lq);
}

static const image_driver libqcow_driver = {
    .name = "libqcow",
    .close = libqcow_close,
    .read = libqcow_read,
};

int libqcow_helper_pid(const image *im)
{
    const libqcow_image *lq = (const libqcow_image *)im;
    return im->driver == &libqcow_driver ? atomic_load(&lq->pid) : 0;
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
    lq->memory_fd = memfd_create("quorumfs-decoder", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (lq->memory_fd < 0 || ftruncate(lq->memory_fd, LIBQCOW_BUFFER_BYTES) < 0 ||
        fcntl(lq->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return false;
    lq->buffer = mmap(NULL, LIBQCOW_BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                      lq->memory_fd, 0);
    return lq->buffer != MAP_FAILED;
}

static void opening_describe(libqcow_image *lq, const libqcow_layer *layers,
                             const char *password)
{
    wire_open *opening = &lq->opening;
    opening->n_layers = lq->n_files;
    opening->memory =
        HEAP_BYTES + MIN((uint64_t)lq->n_files * HEAP_LAYER_BYTES, HEAP_LAYERS_BYTES);
    opening->address_space = opening->memory + ADDRESS_SPACE_BYTES;
    opening->has_key = password && *password;
    if (opening->has_key)
        memcpy(opening->key, password, MIN(strlen(password), LIBQCOW_KEY_BYTES));
    uint32_t smallest = layers[0].cluster_size;
    for (unsigned i = 0; i < lq->n_layers; i++) {
        opening->sizes[i] = layers[i].size;
        smallest = MIN(smallest, layers[i].cluster_size);
    }
    if (lq->n_files > lq->n_layers)
        opening->sizes[lq->n_layers] = layers[lq->n_layers - 1].size;
    opening->cut = lq->n_files > 1 ? smallest : 0;
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
    unsigned layer = MIN(reply->value, lq->n_layers - 1);
    g_set_error(error, IMAGE_ERROR, reasons[reply->status].code, "%s: %s",
                layers[layer].filename, reasons[reply->status].text);
}

static bool first_start(libqcow_image *lq, const libqcow_layer *layers, GError **error)
{
    wire_reply reply = {.status = WIRE_OK};
    int failure = helper_start(lq, &reply);
    if (failure)
        failure = helper_start(lq, &reply);
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
    lq->memory_fd = -1;
    lq->buffer = MAP_FAILED;
    g_mutex_init(&lq->lock);
    for (unsigned i = 0; i < n_layers; i++) {
        lq->fds[lq->n_files++] = layers[i].fd;
        file_stamp_changed(&lq->stamps[lq->n_layers++], layers[i].fd);
    }
    return lq;
}

image *libqcow_open(const libqcow_layer *layers, unsigned n_layers,
                    const libqcow_options *options, GError **error)
{
    g_assert(n_layers > 0 && n_layers < LIBQCOW_LAYERS_MAX);
    libqcow_image *lq = image_new(layers, n_layers);
    lq->timeout_ms = options && options->timeout_ms
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
        lq->fds[lq->n_files++] = fd;
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
