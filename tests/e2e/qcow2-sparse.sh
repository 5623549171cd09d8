#!/bin/bash
# SEEK_DATA, SEEK_HOLE and st_blocks of the disk follow the maps of its qcow2 replicas; a
# discard frees space in all of them, and leaves them equal.
. "$(dirname "$0")/lib.sh"
qemu-img create -q -f qcow2 a.qcow2 64M
qemu-img create -q -f qcow2 -o cluster_size=4k b.qcow2 64M
qemu-img create -q -f qcow2 -o extended_l2=on c.qcow2 64M
pattern part.raw 4M 5
qmount mnt a.qcow2 b.qcow2 c.qcow2 || { not_ok "mount"; exit 1; }
blocks() { stat -c %b mnt/disk.img; }
data() {
    python3 - mnt/disk.img <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
at, out = 0, []
while True:
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        break
    at = os.lseek(fd, data, os.SEEK_HOLE)
    out.append(f"{data >> 20}-{at >> 20}")
print(*out, sep=",")
PY
}
equal "an empty disk holds no data" "$(data)" ""
check "and takes no blocks" [ "$(blocks)" -le 16 ]
for at in 8 40; do
    dd if=part.raw of=mnt/disk.img bs=1M seek=$at conv=notrunc,fsync status=none
done
equal "what was written is data" "$(data)" "8-12,40-44"
written=$(blocks)
check "blocks are counted" [ "$written" -ge 16384 ]
check "but not many more than were written" [ "$written" -le 20000 ]
truncate -s 64M expected.raw
for at in 8 40; do dd if=part.raw of=expected.raw bs=1M seek=$at conv=notrunc status=none; done
check "cp --sparse=auto copies" cp --sparse=auto mnt/disk.img copy.raw
check "the copy is the disk" cmp copy.raw expected.raw
check "the copy is sparse" [ "$(stat -c %b copy.raw)" -le 20000 ]
used=$(stat -c %b a.qcow2 b.qcow2 c.qcow2)
check "punch a hole" fallocate --punch-hole --offset 8M --length 4M mnt/disk.img
check "fsync" sync mnt/disk.img
equal "it is a hole" "$(data)" "40-44"
check "blocks fall" [ "$(blocks)" -le $((written - 8000)) ]
set -- $used
for r in a b c; do
    check "$r: space is freed" [ "$(stat -c %b $r.qcow2)" -le $(($1 - 7000)) ]
    shift
done
check "zero a range" fallocate --zero-range --offset 40M --length 1M mnt/disk.img
check "odd holes" fallocate --punch-hole --offset 43000001 --length 300001 mnt/disk.img
dd if=/dev/zero of=expected.raw bs=1M seek=8 count=4 conv=notrunc status=none
dd if=/dev/zero of=expected.raw bs=1M seek=40 count=1 conv=notrunc status=none
dd if=/dev/zero of=expected.raw bs=1 seek=43000001 count=300001 conv=notrunc status=none
check "all reads as it must" cmp mnt/disk.img expected.raw
qumount mnt || not_ok "unmount"
for r in a b c; do
    check "qemu-img check finds nothing in $r" qemu-img check -q -f qcow2 $r.qcow2
    check "QEMU reads $r" qemu-img compare -q -f raw -F qcow2 expected.raw $r.qcow2
done
exits "verify: the replicas are equal" 0 "$QUORUMFS" verify a.qcow2 b.qcow2 c.qcow2
