#!/bin/bash
# fio writes with checksums and verifies them, direct, many requests at once. (QEMU 7.2's
# own FUSE export fails this: a buffer is used twice.)
. "$(dirname "$0")/lib.sh"
truncate -s 16M a.raw b.raw c.raw
qmount mnt a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
verify() {
    fio --name=v --filename=mnt/disk.img --allow_file_create=0 --size=16M --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --verify_state_save=0 --output-format=terse "$@"
}
exits "random 4k, libaio, depth 16" 0 verify --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16
exits "random 4k, io_uring, depth 16" 0 verify --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring --iodepth=16
exits "odd sizes at odd places, buffered" 0 verify --rw=randwrite --bsrange=512-256k --bs_unaligned=1 --direct=0 --ioengine=psync
exits "1M, depth 4" 0 verify --rw=write --bs=1M --direct=1 --ioengine=libaio --iodepth=4
exits "two writers, each on its half" 0 verify --rw=randrw --bs=4k --size=8M --offset_increment=8M --numjobs=2 \
    --direct=1 --ioengine=libaio --iodepth=8
qumount mnt
check "a and b are equal" cmp a.raw b.raw
check "a and c are equal" cmp a.raw c.raw
