/*
 * qcow2-compress.c: compressed clusters. zlib is a raw deflate stream with a window of
 * 2^12 bytes, zstd one or more frames; both give exactly one cluster.
 *
 * Invariants
 * - Output goes to a buffer of one cluster and nowhere else, so that a decompression bomb
 *   is a cluster at most; input is what the L2 entry counts, two clusters at most. zstd
 *   decodes frame by frame into that buffer, without the window that the frame asks for:
 *   whatever a frame's header claims, the context stays at its fixed size.
 * - The stream may end before the input does (its length is counted in sectors), never
 *   the output before the cluster: a short one is -EIO, not zeroes.
 * - The formats that libzstd still reads from before its first release are not accepted.
 *
 * Recently used clusters stay decompressed in a cache, keyed by their host offset: what
 * starts at one byte is one stream, however many entries name it. The cache is dropped
 * when the file changes, so that rot is not hidden by it; while we write to the file ourselves,
 * LOOK_US later at most. Our own writes need no such care: they make no compressed clusters,
 * so nothing else ever is one at an offset where one was. Contexts are kept on a list and
 * reused, as many as there were ever threads at work at once.
 */
#include "formats/qcow2-internal.h"
#include <errno.h>
#include <pthread.h>
#include <zlib.h>
#include <zstd.h>

#define CACHE_BYTES      (4u << 20)
#define CACHE_BLOCKS_MIN 4u
#define CACHE_BLOCKS_MAX 64u
#define LOOK_US          100000
#define WINDOW_BITS      (-12)

typedef struct context {
    struct context *next;
    qcow2_compression compression;
    union {
        z_stream zlib;
        ZSTD_DCtx *zstd;
    };
} context;

struct qcow2_decoder {
    int fd;
    qcow2_compression compression;
    size_t cluster_size;
    qcow2_cache *clusters;
    pthread_mutex_t lock; /* guards what follows */
    context *idle;
    file_stamp stamp;
    bool written;      /* by us: the file changes all the time */
    int64_t looked_us; /* at the stamp */
};

typedef struct request {
    qcow2_decoder *decoder;
    uint32_t compressed_size;
} request;

qcow2_decoder *qcow2_decoder_new(int fd, qcow2_compression compression,
                                 uint32_t cluster_bits)
{
    qcow2_decoder *decoder = g_new0(qcow2_decoder, 1);
    decoder->fd = fd;
    decoder->compression = compression;
    decoder->cluster_size = (size_t)1 << cluster_bits;
    decoder->clusters =
        qcow2_cache_new(decoder->cluster_size, CLAMP(CACHE_BYTES >> cluster_bits,
                                                     CACHE_BLOCKS_MIN, CACHE_BLOCKS_MAX));
    pthread_mutex_init(&decoder->lock, NULL);
    return decoder;
}

static void context_free(context *ctx)
{
    if (ctx->compression == QCOW2_COMPRESSION_ZLIB)
        inflateEnd(&ctx->zlib);
    else
        ZSTD_freeDCtx(ctx->zstd);
    g_free(ctx);
}

void qcow2_decoder_free(qcow2_decoder *decoder)
{
    if (!decoder)
        return;
    while (decoder->idle) {
        context *ctx = decoder->idle;
        decoder->idle = ctx->next;
        context_free(ctx);
    }
    qcow2_cache_free(decoder->clusters);
    pthread_mutex_destroy(&decoder->lock);
    g_free(decoder);
}

static context *context_new(qcow2_compression compression)
{
    context *ctx = g_new0(context, 1);
    ctx->compression = compression;
    bool ok;
    if (compression == QCOW2_COMPRESSION_ZLIB)
        ok = inflateInit2(&ctx->zlib, WINDOW_BITS) == Z_OK;
    else
        ok = (ctx->zstd = ZSTD_createDCtx()) != NULL;
    if (!ok)
        g_clear_pointer(&ctx, g_free);
    return ctx;
}

static context *context_get(qcow2_decoder *decoder)
{
    pthread_mutex_lock(&decoder->lock);
    context *ctx = decoder->idle;
    if (ctx)
        decoder->idle = ctx->next;
    pthread_mutex_unlock(&decoder->lock);
    return ctx ? ctx : context_new(decoder->compression);
}

static void context_put(qcow2_decoder *decoder, context *ctx)
{
    pthread_mutex_lock(&decoder->lock);
    ctx->next = decoder->idle;
    decoder->idle = ctx;
    pthread_mutex_unlock(&decoder->lock);
}

static int decode_zlib(z_stream *stream, uint8_t *out, size_t out_size, uint8_t *in,
                       size_t in_size)
{
    inflateReset(stream);
    stream->next_in = in;
    stream->avail_in = (uInt)in_size;
    stream->next_out = out;
    stream->avail_out = (uInt)out_size;
    int result = inflate(stream, Z_FINISH);
    bool ended = result == Z_STREAM_END || result == Z_BUF_ERROR;
    return ended && stream->avail_out == 0 ? 0 : -EIO;
}

static bool is_zstd_frame(const uint8_t *in, size_t in_size)
{
    uint32_t magic;
    if (in_size < sizeof magic)
        return false;
    memcpy(&magic, in, sizeof magic);
    magic = le32toh(magic);
    return magic == ZSTD_MAGICNUMBER ||
           (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
}

static int decode_zstd(ZSTD_DCtx *zstd, uint8_t *out, size_t out_size, const uint8_t *in,
                       size_t in_size)
{
    while (out_size > 0) {
        if (!is_zstd_frame(in, in_size))
            return -EIO;
        size_t frame = ZSTD_findFrameCompressedSize(in, in_size);
        if (ZSTD_isError(frame) || frame == 0 || frame > in_size)
            return -EIO;
        size_t got = ZSTD_decompressDCtx(zstd, out, out_size, in, frame);
        if (ZSTD_isError(got))
            return -EIO;
        in += frame;
        in_size -= frame;
        out += got;
        out_size -= got;
    }
    return 0;
}

static int load_cluster(const void *user, uint64_t key, void *block)
{
    const request *r = user;
    qcow2_decoder *decoder = r->decoder;
    g_autofree uint8_t *in = g_malloc(r->compressed_size);
    int result = file_read_full(decoder->fd, in, r->compressed_size, key);
    if (result < 0)
        return result;
    context *ctx = context_get(decoder);
    if (!ctx)
        return -ENOMEM;
    if (ctx->compression == QCOW2_COMPRESSION_ZLIB)
        result =
            decode_zlib(&ctx->zlib, block, decoder->cluster_size, in, r->compressed_size);
    else
        result =
            decode_zstd(ctx->zstd, block, decoder->cluster_size, in, r->compressed_size);
    context_put(decoder, ctx);
    return result;
}

void qcow2_decoder_set_written(qcow2_decoder *decoder)
{
    decoder->written = true;
}

/* Under the lock. */
static bool has_changed(qcow2_decoder *decoder)
{
    if (decoder->written) {
        int64_t now = g_get_monotonic_time();
        if (decoder->looked_us && now - decoder->looked_us < LOOK_US)
            return false;
        decoder->looked_us = now;
    }
    return file_stamp_changed(&decoder->stamp, decoder->fd);
}

int qcow2_decoder_read(qcow2_decoder *decoder, uint64_t host_offset,
                       uint32_t compressed_size, void *buf, uint64_t skip, size_t length)
{
    const request r = {decoder, compressed_size};
    qcow2_block block = {0};
    pthread_mutex_lock(&decoder->lock);
    bool changed = has_changed(decoder);
    pthread_mutex_unlock(&decoder->lock);
    if (changed)
        qcow2_cache_clear(decoder->clusters);
    int result =
        qcow2_cache_get(decoder->clusters, host_offset, load_cluster, &r, &block);
    if (result < 0)
        return result;
    memcpy(buf, (const uint8_t *)block.data + skip, length);
    qcow2_cache_put(decoder->clusters, &block);
    return 0;
}
