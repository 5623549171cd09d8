#!/bin/bash
# SEEK_DATA and SEEK_HOLE show the holes that all replicas have, so that cp --sparse and
# qemu-img skip them and nothing else.
. "$(dirname "$0")/lib.sh"
truncate -s 64M a.raw
pattern part.raw 1M 5
dd if=part.raw of=a.raw bs=1M seek=8 conv=notrunc status=none
dd if=part.raw of=a.raw bs=1M seek=40 conv=notrunc status=none
cp --sparse=always a.raw b.raw
cp --sparse=always a.raw c.raw
# In one replica the zeroes at 20 MiB are written out: data where one holds data.
dd if=/dev/zero of=c.raw bs=1M count=1 seek=20 conv=notrunc status=none
qmount mnt a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
seeks() {
    python3 - mnt/disk.img <<'PY'
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
at, size, out = 0, os.fstat(fd).st_size, []
while at < size:
    try:
        data = os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        break
    at = os.lseek(fd, data, os.SEEK_HOLE)
    out.append(f"{data >> 20}-{at >> 20}")
out.append(f"end={os.lseek(fd, size - 1, os.SEEK_HOLE) >> 20}")
for whence in (os.SEEK_DATA, os.SEEK_HOLE):
    try:
        os.lseek(fd, size, whence)
        out.append("past the end")
    except OSError as e:
        out.append(os.strerror(e.errno))
print(*out, sep=",")
PY
}
equal "data and holes" "$(seeks)" \
    "8-9,20-21,40-41,end=63,No such device or address,No such device or address"
check "cp --sparse copies" cp --sparse=auto mnt/disk.img copy.raw
check "the copy is the disk" cmp copy.raw a.raw
check "the copy is sparse" [ "$(stat -c %b copy.raw)" -le 8192 ]
# qemu-img merges what it finds; below 20 MiB the disk is as the image is.
equal "qemu-img map" "$(qemu-img map -f raw --output=json mnt/disk.img | jq -c '[.[]|select(.data)|.start/1048576]')" "[8,20,40]"
qumount mnt
