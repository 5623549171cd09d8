#!/bin/bash
# Every kind of image that qemu-img makes reads through a voted mount exactly as qemu-img
# convert reads it, with each decoder that takes it.
. "$(dirname "$0")/lib.sh"

size=6M
pattern content.raw $size 1
# Holes and runs of zeroes between the data.
dd if=/dev/zero of=content.raw bs=64k seek=20 count=9 conv=notrunc status=none
truncate -s 7M content.raw

# compare NAME FORMAT DECODERS: mounts {a,b,c}/NAME with each decoder and compares.
compare() {
    local name=$1 format=$2 decoder got expected size
    expected=$(qemu-img convert -f "$format" -O raw "a/$name" expected.raw && digest expected.raw)
    for decoder in $3; do
        if ! qmount mnt --format "$format" -o "ro,decoder=$decoder" "a/$name" "b/$name" "c/$name"; then
            not_ok "$name decoder=$decoder mounts"
            continue
        fi
        got=$(digest mnt/disk.img iflag=direct)
        equal "$name decoder=$decoder reads as qemu-img convert" "$got" "$expected"
        # Reads of odd sizes at odd places, through the page cache.
        check "$name decoder=$decoder compares in small pieces" \
            cmp -s -i 12345 mnt/disk.img expected.raw
        qumount mnt || not_ok "$name decoder=$decoder unmounts"
    done
}
# each COMMAND: runs it for a, b and c in place of {}.
each() {
    local r
    for r in a b c; do
        mkdir -p $r
        eval "${1//\{\}/$r}" || not_ok "cannot make: $1"
    done
}

each 'cp content.raw {}/raw.raw'
compare raw.raw raw auto

for bits in 512 4k 64k 2M; do
    each "qemu-img convert -q -O qcow2 -o cluster_size=$bits content.raw {}/cs$bits.qcow2"
    compare cs$bits.qcow2 qcow2 "auto native"
done
each 'qemu-img convert -q -O qcow2 -o compat=0.10 content.raw {}/v2.qcow2'
compare v2.qcow2 qcow2 "auto libqcow native both"
for bits in 1 2 8 64; do
    each "qemu-img convert -q -O qcow2 -o refcount_bits=$bits content.raw {}/rb$bits.qcow2"
    compare rb$bits.qcow2 qcow2 "auto libqcow native"
done
each 'qemu-img convert -q -c -O qcow2 content.raw {}/zlib.qcow2'
compare zlib.qcow2 qcow2 "auto libqcow native both"
each 'qemu-img convert -q -c -O qcow2 -o compression_type=zstd content.raw {}/zstd.qcow2'
compare zstd.qcow2 qcow2 "auto native"
each 'qemu-img convert -q -O qcow2 -o extended_l2=on content.raw {}/extl2.qcow2 &&
    qemu-io -f qcow2 -c "write -q -P 7 70k 3k" -c "write -q -z 200k 5k" {}/extl2.qcow2'
compare extl2.qcow2 qcow2 "auto native"
each "qemu-img convert -q -O qcow2 -o data_file=$scratch/{}/data.raw content.raw {}/data.qcow2"
compare data.qcow2 qcow2 "auto native"
each 'qemu-img convert -q -O qcow2 -o lazy_refcounts=on content.raw {}/lazy.qcow2'
compare lazy.qcow2 qcow2 "auto libqcow native"
each 'qemu-img create -q -f qcow2 -o preallocation=metadata {}/prealloc.qcow2 7M &&
    qemu-io -f qcow2 -c "write -q -P 9 1M 100k" {}/prealloc.qcow2'
compare prealloc.qcow2 qcow2 "auto native"
each 'qemu-img convert -q -O qcow2 content.raw {}/snap.qcow2 && qemu-img snapshot -c one {}/snap.qcow2 &&
    qemu-io -f qcow2 -c "write -q -P 3 0 300k" {}/snap.qcow2 && qemu-img snapshot -c two {}/snap.qcow2 &&
    qemu-io -f qcow2 -c "write -q -P 4 90k 30k" {}/snap.qcow2'
compare snap.qcow2 qcow2 "auto libqcow native"
each 'qemu-img convert -q -O qcow2 content.raw {}/zero.qcow2 &&
    qemu-io -f qcow2 -c "write -q -z 128k 256k" -c "discard -q 1M 512k" -c "write -q -z -u 2M 64k" {}/zero.qcow2'
compare zero.qcow2 qcow2 "auto native"
each 'qemu-img create -q -f qcow2 {}/odd.qcow2 3333120 && qemu-io -f qcow2 -c "write -q -P 5 3200k 56320" {}/odd.qcow2'
compare odd.qcow2 qcow2 "auto native"
each 'qemu-img convert -q -O qcow content.raw {}/one.qcow'
compare one.qcow qcow "auto libqcow"
# With -c qemu-img 7.2 writes a good image and then exits with 1.
each '! qemu-img convert -q -c -O qcow content.raw {}/onec.qcow'
compare onec.qcow qcow "auto libqcow"

# Chains: mixed formats, bases shorter and longer than what lies over them.
each 'qemu-img convert -q -O qcow2 content.raw {}/base.qcow2 &&
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=4k {}/mid.qcow2 9M &&
    qemu-io -f qcow2 -c "write -q -P 6 100k 10k" -c "write -q -P 7 7500k 20k" {}/mid.qcow2 &&
    qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=128k {}/top.qcow2 &&
    qemu-io -f qcow2 -c "write -q -P 8 105k 1k" -c "write -q -P 9 8M 1M" {}/top.qcow2'
compare top.qcow2 qcow2 "auto native"
each 'qemu-img create -q -f qcow2 -b raw.raw -F raw {}/overraw.qcow2 8M &&
    qemu-io -f qcow2 -c "write -q -P 6 6900k 200k" -c "write -q -z 64k 64k" {}/overraw.qcow2'
compare overraw.qcow2 qcow2 "auto native"
each 'qemu-img create -q -f qcow2 -b one.qcow -F qcow {}/overqcow.qcow2 5M &&
    qemu-io -f qcow2 -c "write -q -P 6 100k 200k" {}/overqcow.qcow2'
compare overqcow.qcow2 qcow2 "auto"
each 'qemu-img create -q -f qcow -b raw.raw -F raw {}/qcowoverraw.qcow 7M &&
    qemu-io -f qcow -c "write -q -P 6 100k 200k" {}/qcowoverraw.qcow'
compare qcowoverraw.qcow qcow "auto"

# AES, with the password from a file.
printf 'secret0\n' >password
for format in qcow qcow2; do
    each "qemu-img create -q -f $format --object secret,id=s,data=secret0 -o encrypt.format=aes,encrypt.key-secret=s {}/aes.$format 4M 2>/dev/null &&
        qemu-io --object secret,id=s,data=secret0 -c 'write -q -P 0x42 100k 300k' --image-opts driver=$format,file.filename={}/aes.$format,encrypt.format=aes,encrypt.key-secret=s"
    qemu-img convert --object secret,id=s,data=secret0 -O raw --image-opts \
        driver=$format,file.filename=a/aes.$format,encrypt.format=aes,encrypt.key-secret=s expected.raw
    if qmount mnt --format $format -o ro,password-file=password a/aes.$format b/aes.$format c/aes.$format; then
        equal "aes.$format reads as qemu-img convert" "$(digest mnt/disk.img iflag=direct)" "$(digest expected.raw)"
        qumount mnt
    else
        not_ok "aes.$format mounts"
    fi
    exits "aes.$format without a password is refused" 32 "$QUORUMFS" mount -o "state-dir=$scratch/state" \
        --format $format a/aes.$format b/aes.$format c/aes.$format mnt
done

# Replicas of three kinds in one vote.
qemu-img convert -q -f qcow2 -O raw a/zlib.qcow2 b/mixed.raw
qemu-img convert -q -O qcow b/mixed.raw c/mixed.qcow
if qmount mnt a/zlib.qcow2 b/mixed.raw c/mixed.qcow; then
    equal "a qcow2, a raw and a qcow replica vote together" "$(digest mnt/disk.img iflag=direct)" "$(digest b/mixed.raw)"
    qumount mnt
else
    not_ok "a qcow2, a raw and a qcow replica mount together"
fi
