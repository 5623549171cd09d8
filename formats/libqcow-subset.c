/*
 * libqcow-subset.c: which qcow2 images libqcow (20201213) is known to read rightly.
 *
 * Every line of the table stands for something that was measured: an image on which
 * libqcow gave other bytes than QEMU, read outside of its buffers, or refused. Whatever
 * it refuses by itself is listed too, so that the choice of a decoder is made once, at
 * open, and not by trial.
 */
#include "formats/qcow-libqcow.h"

/* The incompatible features by bit; those that libqcow knows (dirty) are missing. */
static const char *incompatible_reason(uint64_t features)
{
    if (features & QCOW2_INCOMPAT_CORRUPT)
        return "marked corrupt";
    if (features & QCOW2_INCOMPAT_DATA_FILE)
        return "external data file";
    if (features & QCOW2_INCOMPAT_COMPRESSION)
        return "zstd compression";
    if (features & QCOW2_INCOMPAT_EXTL2)
        return "extended L2 entries";
    if (features & ~(uint64_t)QCOW2_INCOMPAT_DIRTY)
        return "unknown incompatible features";
    return NULL;
}

static const char *header_reason(const qcow2_header *header)
{
    if (header->crypt_method > 1)
        return "LUKS encryption";
    if (header->data_file)
        return "external data file";
    if (header->compression != QCOW2_COMPRESSION_ZLIB)
        return "zstd compression";
    /* Lazy refcounts (bit 0) is the only one that libqcow accepts. */
    if (header->version >= 3 && (header->compatible & ~(uint64_t)1))
        return "unknown compatible features";
    if (header->version >= 3 && header->header_length != 104 &&
        header->header_length != 112)
        return "header length";
    if (header->size == 0 || header->l1_entries == 0)
        return "empty disk";
    return NULL;
}

static const char *tables_reason(const qcow2_header *header, const qcow2_check *check)
{
    /* The old data is returned, with nothing allocated the file's first cluster. */
    if (check->has_zero_clusters)
        return "zero clusters";
    /* Copied out of a heap block that is as short as the cluster. */
    if (check->has_short_clusters)
        return "cluster past the end of the file";
    if (header->crypt_method != 0 && check->has_compressed)
        return "compressed clusters in an encrypted image";
    if (!check->complete)
        return "tables too large to check beforehand";
    return NULL;
}

const char *libqcow_refuses_qcow2(const qcow2_header *header, const qcow2_check *check)
{
    const char *reason = incompatible_reason(header->incompatible);
    if (!reason)
        reason = header_reason(header);
    return reason ? reason : tables_reason(header, check);
}
