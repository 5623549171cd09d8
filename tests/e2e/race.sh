#!/bin/bash
# W1: writers and readers that race on the same range of raw replicas leave all replicas
# equal, no read fails, and the journal stays empty. QEMU's quorum driver fails this.
. "$(dirname "$0")/lib.sh"
for r in a b c; do truncate -s 4M $r.raw; done
qmount mnt a.raw b.raw c.raw || not_ok "mount"
exits "two writers and a reader on one range" 0 fio --output-format=terse --direct=1 --bs=4k \
    --size=4M --filename=mnt/disk.img --allow_file_create=0 --ioengine=libaio --iodepth=8 --number_ios=4000 \
    --norandommap --name=w1 --rw=randwrite --randseed=1 --name=w2 --rw=randwrite --randseed=2 \
    --buffer_pattern=0x5a --name=r --rw=randread --randseed=3
equal "nothing was journalled" "$(cat mnt/.quorumfs/disk/divergence.jsonl)" ""
qumount mnt
check "a and b are equal" cmp a.raw b.raw
check "a and c are equal" cmp a.raw c.raw
check "something was written" sh -c "! cmp -s a.raw /dev/zero -n 65536"
