/*
 * verify-digest.c: the digests of a manifest.
 *
 * Zeroes are only counted until other data follows; a range of nothing but zeroes, by far
 * the most frequent one in a sparse disk, takes its digest from the one computed first.
 */
#include "quorum/verify-digest.h"
#include <openssl/evp.h>

static const uint8_t zeroes[64 << 10];

struct verify_digest {
    const verify_options *options;
    EVP_MD_CTX *context;
    uint64_t offset;         /* of the range being filled */
    uint64_t filled;         /* bytes of it so far */
    uint64_t pending_zeroes; /* the last of those bytes, not hashed yet */
    bool unknown;            /* some sector of it has no majority */
    uint64_t zero_length;    /* zero_sha256 is that of so many zeroes; 0: not computed */
    uint8_t zero_sha256[JOURNAL_DIGEST_SIZE];
};

static void hash_begin(verify_digest *d)
{
    if (!EVP_DigestInit_ex2(d->context, NULL, NULL))
        g_error("cannot restart SHA-256");
}

static void hash(verify_digest *d, const void *data, size_t length)
{
    if (!EVP_DigestUpdate(d->context, data, length))
        g_error("cannot compute SHA-256");
}

static void hash_zeroes(verify_digest *d, uint64_t length)
{
    for (; length > 0; length -= MIN(length, sizeof zeroes))
        hash(d, zeroes, MIN(length, sizeof zeroes));
}

static void hash_end(verify_digest *d, uint8_t ret_sha256[JOURNAL_DIGEST_SIZE])
{
    unsigned length = 0;
    if (!EVP_DigestFinal_ex(d->context, ret_sha256, &length) ||
        length != JOURNAL_DIGEST_SIZE)
        g_error("cannot finish SHA-256");
    hash_begin(d);
}

verify_digest *verify_digest_new(const verify_options *options)
{
    if (!options->on_digest)
        return NULL;
    verify_digest *d = g_new0(verify_digest, 1);
    d->options = options;
    d->context = EVP_MD_CTX_new();
    if (!d->context || !EVP_DigestInit_ex(d->context, EVP_sha256(), NULL))
        g_error("cannot start SHA-256");
    return d;
}

void verify_digest_free(verify_digest *d)
{
    if (!d)
        return;
    EVP_MD_CTX_free(d->context);
    g_free(d);
}

static void range_zero_sha256(verify_digest *d, uint8_t ret_sha256[JOURNAL_DIGEST_SIZE])
{
    if (d->zero_length != d->filled) {
        hash_zeroes(d, d->filled);
        hash_end(d, d->zero_sha256);
        d->zero_length = d->filled;
    }
    memcpy(ret_sha256, d->zero_sha256, JOURNAL_DIGEST_SIZE);
}

static void range_report(verify_digest *d)
{
    uint8_t sha256[JOURNAL_DIGEST_SIZE] = {0};
    if (d->unknown) {
        hash_begin(d); /* forget what was hashed */
    } else if (d->pending_zeroes == d->filled) {
        range_zero_sha256(d, sha256);
    } else {
        hash_zeroes(d, d->pending_zeroes);
        hash_end(d, sha256);
    }
    d->options->on_digest(d->options->opaque, d->offset, d->filled, sha256, !d->unknown);
    d->offset += d->filled;
    d->filled = 0;
    d->pending_zeroes = 0;
    d->unknown = false;
}

/* Adds no more than what the present range has room for; returns how much that was. */
static uint64_t range_add(verify_digest *d, const uint8_t *data, uint64_t length,
                          bool unknown)
{
    uint64_t n = MIN(length, d->options->manifest_range - d->filled);
    if (unknown || d->unknown) {
        d->unknown = true;
    } else if (!data) {
        d->pending_zeroes += n;
    } else {
        hash_zeroes(d, d->pending_zeroes);
        d->pending_zeroes = 0;
        hash(d, data, n);
    }
    d->filled += n;
    if (d->filled == d->options->manifest_range)
        range_report(d);
    return n;
}

void verify_digest_add(verify_digest *d, const uint8_t *data, uint64_t length)
{
    while (d && length > 0) {
        uint64_t n = range_add(d, data, length, false);
        data = data ? data + n : NULL;
        length -= n;
    }
}

void verify_digest_add_unknown(verify_digest *d, uint64_t length)
{
    while (d && length > 0)
        length -= range_add(d, NULL, length, true);
}

void verify_digest_end(verify_digest *d)
{
    if (d && d->filled > 0)
        range_report(d);
}
