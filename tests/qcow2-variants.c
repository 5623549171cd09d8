#include "tests/qcow2-variants.h"
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)

/* What the commands of the table are made of. */
static const char shell[] =
    "set -e\n"
    "create() { qemu-img create -q -f qcow2 \"$@\" $i $s; }\n"
    "io() { image=$1; shift; for c; do set -- \"$@\" -c \"$c\"; shift; done\n"
    "       qemu-io -t unsafe -f qcow2 \"$@\" $image >$i.log 2>&1; ! grep -v "
    "'^wrote\\|^discard\\|ops' "
    "$i.log; }\n"
    "overlay() { format=$1; file=$2; shift 2; create -b $file -F $format \"$@\"; }\n"
    /* A raw file and a qcow2 image to stand on: size, then options. */
    "raw() { head -c $1 content >$i.base; }\n"
    "qcow2() { n=$1; shift; qemu-img create -q -f qcow2 \"$@\" $i.base $n\n"
    "          io $i.base \"write -s content 64k 300k\" \"write -P 5 500k 70000\"; }\n"
    /* Some of everything, up to 700 KiB. */
    "fill() { io $i 'write -s content 3k 200k' 'write -P 9 300k 100k' 'write -z 64k 70k' "
    "'write -s content 450k 111111' 'discard 320k 32k' 'write -z -u 352k 16k' "
    "'write -P 3 690001 777'; }\n"
    "litter() { tr '\\0' x </dev/zero | head -c 5M >>$i; }\n"
    "snapshot() { qemu-img snapshot -c $1 $i; }\n"
    "compress() { head -c $s content >$i.in; qemu-img convert -c -f raw -O qcow2 \"$@\" "
    "$i.in "
    "$i; rm $i.in; }\n";

#define BACKED VARIANT_BACKING
#define DATA   (VARIANT_DATA_FILE | VARIANT_NO_SNAPSHOT)
#define RAW    (DATA | VARIANT_RAW_FILE)
#define SNAP   VARIANT_SNAPSHOTS
#define FEW    VARIANT_FEW

const qcow2_variant qcow2_variants[] = {
    /* cluster sizes, versions, refcount widths */
    {"plain", 4 * MIB, 0, 65536, FEW, "create"},
    {"v2", 4 * MIB, 0, 65536, 0, "create -o compat=0.10; fill"},
    {"v2-512", MIB, 0, 512, FEW, "create -o compat=0.10,cluster_size=512; fill"},
    {"c512", 2 * MIB, 0, 512, FEW, "create -o cluster_size=512"},
    {"c512-r1", 2 * MIB, 0, 512, VARIANT_NO_SNAPSHOT,
     "create -o cluster_size=512,refcount_bits=1"},
    /* 64 * 64 clusters to a refcount table of one cluster: it has to grow */
    {"c512-r64", 4 * MIB, 0, 512, FEW, "create -o cluster_size=512,refcount_bits=64"},
    {"c1k-r1", 2 * MIB, 0, 1024, VARIANT_NO_SNAPSHOT,
     "create -o cluster_size=1k,refcount_bits=1; fill"},
    {"c2k-r2", 2 * MIB, 0, 2048, 0, "create -o cluster_size=2k,refcount_bits=2; fill"},
    {"c4k", 4 * MIB, 0, 4096, 0, "create -o cluster_size=4k; fill"},
    {"c4k-r4", 4 * MIB, 0, 4096, 0, "create -o cluster_size=4k,refcount_bits=4"},
    {"c4k-r8", 4 * MIB, 0, 4096, 0, "create -o cluster_size=4k,refcount_bits=8; fill"},
    {"r32", 6 * MIB, 0, 65536, 0, "create -o refcount_bits=32; fill"},
    {"r64", 6 * MIB, 0, 65536, 0, "create -o refcount_bits=64"},
    {"c2M", 16 * MIB, 0, 2 << 20, FEW, "create -o cluster_size=2M; fill"},
    {"c2M-r1", 16 * MIB, 0, 2 << 20, VARIANT_NO_SNAPSHOT,
     "create -o cluster_size=2M,refcount_bits=1"},
    /* subclusters */
    {"ext", 4 * MIB, 0, 65536, FEW, "create -o extended_l2=on; fill"},
    {"ext-16k", 3 * MIB, 0, 16384, FEW, "create -o extended_l2=on,cluster_size=16k"},
    {"ext-2M", 16 * MIB, 0, 2 << 20, 0, "create -o extended_l2=on,cluster_size=2M; fill"},
    {"ext-raw", 3 * MIB, 0, 16384, BACKED | FEW,
     "raw 3M; overlay raw $i.base -o extended_l2=on,cluster_size=16k"},
    {"ext-qcow2", 4 * MIB, 0, 65536, BACKED,
     "qcow2 4M -o cluster_size=4k; overlay qcow2 $i.base -o extended_l2=on; fill"},
    {"ext-2M-raw", 16 * MIB, 0, 2 << 20, BACKED,
     "raw 16M; overlay raw $i.base -o extended_l2=on,cluster_size=2M"},
    {"ext-metadata", 3 * MIB, 0, 16384, 0,
     "create -o extended_l2=on,cluster_size=16k,preallocation=metadata; fill"},
    {"ext-snap", 3 * MIB, 0, 16384, SNAP | FEW,
     "create -o extended_l2=on,cluster_size=16k; fill; snapshot one; fill"},
    {"ext-snap-raw", 4 * MIB, 0, 65536, SNAP | BACKED,
     "raw 4M; overlay raw $i.base -o extended_l2=on; fill; snapshot one"},
    /* external data files */
    {"data", 4 * MIB, 0, 65536, DATA | FEW, "create -o data_file=$i.data; fill"},
    {"data-raw", 4 * MIB, 0, 65536, RAW | FEW,
     "create -o data_file=$i.data,data_file_raw=on; fill"},
    {"data-4k", 3 * MIB, 0, 4096, DATA, "create -o data_file=$i.data,cluster_size=4k"},
    {"data-raw-512", MIB, 0, 512, RAW,
     "create -o data_file=$i.data,data_file_raw=on,cluster_size=512; fill"},
    {"data-ext", 3 * MIB, 0, 16384, DATA,
     "create -o data_file=$i.data,extended_l2=on,cluster_size=16k; fill"},
    {"data-raw-ext", 3 * MIB, 0, 16384, RAW,
     "create -o data_file=$i.data,data_file_raw=on,extended_l2=on,cluster_size=16k; "
     "fill"},
    {"data-metadata", 2 * MIB, 0, 4096, DATA,
     "create -o data_file=$i.data,preallocation=metadata,cluster_size=4k; fill"},
    {"data-backed", 4 * MIB, 0, 65536, DATA | BACKED,
     "raw 4M; overlay raw $i.base -o data_file=$i.data; fill"},
    /* lazy refcounts */
    {"lazy", 4 * MIB, 0, 65536, FEW, "create -o lazy_refcounts=on; fill"},
    {"lazy-512", MIB, 0, 512, 0, "create -o lazy_refcounts=on,cluster_size=512"},
    {"lazy-snap", 4 * MIB, 0, 65536, SNAP,
     "create -o lazy_refcounts=on; fill; snapshot one; fill"},
    /* backing files */
    {"on-raw", 4 * MIB, 0, 65536, BACKED | FEW, "raw 4M; overlay raw $i.base"},
    {"on-qcow2", 4 * MIB, 0, 65536, BACKED,
     "qcow2 4M -o compression_type=zstd; overlay qcow2 $i.base; fill"},
    {"on-short", 4 * MIB, 0, 65536, BACKED | FEW,
     "raw 1111552; overlay raw $i.base -o cluster_size=64k"},
    {"on-short-odd", 2 * MIB, 0, 65536, BACKED, "raw 900001; overlay raw $i.base; fill"},
    {"on-short-qcow2", 4 * MIB, 0, 4096, BACKED,
     "qcow2 1000448; overlay qcow2 $i.base -o cluster_size=4k"},
    {"on-long", MIB, 0, 65536, BACKED, "raw 4M; overlay raw $i.base"},
    {"on-long-qcow2", MIB + 512, 0, 512, BACKED,
     "qcow2 3M; overlay qcow2 $i.base -o cluster_size=512"},
    {"v2-on-raw", 2 * MIB, 0, 65536, BACKED,
     "raw 2M; overlay raw $i.base -o compat=0.10; io $i 'write -P 1 64k 64k'"},
    {"v2-4k-on-short", 2 * MIB, 0, 4096, BACKED,
     "raw 1000448; overlay raw $i.base -o compat=0.10,cluster_size=4k"},
    {"deep", 4 * MIB, 0, 65536, BACKED | FEW,
     "head -c 2M content >$i.raw; qemu-img create -q -f qcow2 -b $i.raw -F raw "
     "-o cluster_size=4k $i.low 3M; io $i.low 'write -P 7 100k 99k' 'write -z 512k 64k'; "
     "qemu-img create -q -f qcow2 -b $i.low -F qcow2 -o cluster_size=512 $i.base 2500k; "
     "io $i.base 'write -P 8 1000k 99k'; overlay qcow2 $i.base; fill"},
    /* compressed clusters */
    {"zlib", 3 * MIB, 0, 65536, FEW, "compress"},
    {"zlib-512", 512 * KIB, 0, 512, 0, "compress -o cluster_size=512"},
    {"zlib-4k-r1", MIB, 0, 4096, VARIANT_NO_SNAPSHOT,
     "compress -o cluster_size=4k,refcount_bits=1"},
    {"zlib-v2", 3 * MIB, 0, 65536, 0, "compress -o compat=0.10"},
    {"zstd", 3 * MIB, 0, 65536, 0, "compress -o compression_type=zstd"},
    {"zstd-4k", 2 * MIB, 0, 4096, FEW,
     "compress -o compression_type=zstd,cluster_size=4k"},
    {"zstd-2M", 12 * MIB, 0, 2 << 20, 0,
     "compress -o compression_type=zstd,cluster_size=2M"},
    {"zstd-ext", 3 * MIB, 0, 16384, 0,
     "compress -o compression_type=zstd,extended_l2=on,cluster_size=16k"},
    {"zlib-snap", 2 * MIB, 0, 4096, SNAP | FEW,
     "compress -o cluster_size=4k; snapshot one; fill; snapshot two"},
    /* snapshots */
    {"snap", 4 * MIB, 0, 65536, SNAP | FEW, "create; fill; snapshot one"},
    {"snap-v2", 3 * MIB, 0, 4096, SNAP,
     "create -o compat=0.10,cluster_size=4k; fill; snapshot one; fill; snapshot two"},
    {"snap-512", MIB, 0, 512, SNAP,
     "create -o cluster_size=512; fill; snapshot one; io $i 'write -P 4 0 400k'; "
     "snapshot two"},
    {"snap-r2", 2 * MIB, 0, 4096, SNAP | VARIANT_NO_SNAPSHOT,
     "create -o cluster_size=4k,refcount_bits=2; fill; snapshot one; snapshot two"},
    {"snap-raw", 4 * MIB, 0, 65536, SNAP | BACKED,
     "raw 4M; overlay raw $i.base; fill; snapshot one; fill"},
    {"snap-sizes", 3 * MIB, 0, 4096, SNAP,
     "create -o cluster_size=4k; fill; snapshot one; qemu-img resize -q $i 4M; "
     "io $i 'write -P 4 3500k 99k'; snapshot two; qemu-img resize -q --shrink $i $s"},
    /* space that was allocated before it was written */
    {"metadata", 4 * MIB, 0, 65536, FEW, "create -o preallocation=metadata"},
    {"metadata-512", MIB, 0, 512, 0,
     "create -o preallocation=metadata,cluster_size=512; fill"},
    {"falloc", 4 * MIB, 0, 65536, 0, "create -o preallocation=falloc; fill"},
    {"full-v2", 2 * MIB, 0, 4096, 0,
     "create -o preallocation=full,compat=0.10,cluster_size=4k; fill"},
    /* free space that holds what is left of something else */
    {"litter", 4 * MIB, 0, 65536, 0, "create; litter"},
    {"litter-512", 2 * MIB, 0, 512, FEW,
     "create -o cluster_size=512,refcount_bits=64; litter"},
    {"litter-on-raw", 4 * MIB, 0, 65536, BACKED, "raw 3M; overlay raw $i.base; litter"},
    {"litter-ext-raw", 3 * MIB, 0, 16384, BACKED,
     "raw 2M; overlay raw $i.base -o extended_l2=on,cluster_size=16k; litter"},
    /* bitmaps */
    {"bitmap", 4 * MIB, 0, 65536, FEW,
     "create; qemu-img bitmap --add $i one; qemu-img bitmap --add -g 512 $i two; fill"},
    {"bitmap-512", MIB, 0, 512, 0,
     "create -o cluster_size=512; qemu-img bitmap --add -g 512 $i one; fill"},
    {"bitmap-snap", 4 * MIB, 0, 4096, SNAP,
     "create -o cluster_size=4k; qemu-img bitmap --add $i one; fill; snapshot one"},
    /* sizes */
    {"odd", 3 * MIB + 512 * 77, 0, 65536, 0, "create; fill"},
    {"odd-512", 512 * 2001, 0, 512, 0, "create -o cluster_size=512; fill"},
    {"odd-bytes", 2 * MIB, 333, 65536, FEW, "create; fill"},
    {"odd-bytes-4k", MIB, 1, 4096, 0, "create -o cluster_size=4k; fill"},
    {"odd-bytes-ext", 2 * MIB, 511, 16384, 0,
     "create -o extended_l2=on,cluster_size=16k; fill"},
    {"odd-bytes-raw", 2 * MIB, 77, 65536, BACKED, "raw 2M; overlay raw $i.base"},
    {"odd-data-raw", 2 * MIB + 512 * 5, 0, 65536, RAW,
     "create -o data_file=$i.data,data_file_raw=on; fill"},
    {"small", 1536, 0, 65536, 0, "create"},
    {"smallest", 512, 511, 512, 0, "create -o cluster_size=512"},
};
const size_t qcow2_variants_count = G_N_ELEMENTS(qcow2_variants);

const qcow2_variant *qcow2_variant_find(const char *name)
{
    for (size_t i = 0; i < qcow2_variants_count; i++)
        if (strcmp(qcow2_variants[i].name, name) == 0)
            return &qcow2_variants[i];
    return NULL;
}

void qcow2_random_content(uint8_t *buf, size_t length, uint64_t *seed)
{
    for (size_t at = 0; at < length;) {
        size_t part = 1 + support_random(seed) % 40000;
        uint64_t word = support_random(seed);
        part = MIN(part, length - at);
        switch (support_random(seed) % 4) {
        case 0:
            memset(buf + at, 0, part);
            break;
        case 1: /* a few letters in the place of others: compresses */
            for (size_t i = 0; i < part; i++)
                buf[at + i] = (uint8_t)('a' + (word >> (i * i / 7 % 60)) % 8);
            break;
        default:
            support_pattern(buf + at, part, at, word);
        }
        at += part;
    }
}

/* Once for a scratch directory. */
static void make_content(void)
{
    size_t length = 16 * MIB;
    uint64_t seed = 4711;
    g_autofree char *path = support_path("content");
    if (g_file_test(path, G_FILE_TEST_EXISTS))
        return;
    g_autofree uint8_t *content = g_malloc(length);
    qcow2_random_content(content, length, &seed);
    support_save(path, content, length);
}

void qcow2_variant_create(const qcow2_variant *v, const char *image)
{
    make_content();
    g_autofree char *path = support_path("%s.sh", image);
    g_autofree char *script = g_strdup_printf(
        "i=%s s=%llu\n%s%s\n", image, (unsigned long long)v->size, shell, v->commands);
    support_save(path, script, strlen(script));
    support_run("sh %s.sh", image);
    if (v->trim > 0) {
        g_autofree char *file = support_path("%s", image);
        uint64_t size = GUINT64_TO_BE(v->size - v->trim);
        support_poke(file, 24, &size, sizeof size);
    }
}

void qcow2_variant_remove(const char *image)
{
    support_run("rm -f %s %s.*", image, image);
}

uint8_t *qcow2_qemu_content(const char *image, const char *snapshot, size_t *ret_length)
{
    g_autofree char *path = support_path("%s.convert", image);
    if (snapshot)
        support_run("qemu-img convert -f qcow2 -l %s -O raw %s %s.convert", snapshot,
                    image, image);
    else
        support_run("qemu-img convert -f qcow2 -O raw %s %s.convert", image, image);
    uint8_t *bytes = support_load(path, ret_length);
    support_run("rm %s.convert", image);
    return bytes;
}

void qcow2_assert_clean(const char *image, const char *what)
{
    int status = support_try("qemu-img check -f qcow2 %s >%s.check 2>&1", image, image);
    if (status != 0)
        support_try("head -n 30 %s.check >&2", image);
    cr_assert_eq(status, 0, "%s: qemu-img check: status %d", what, status);
}
