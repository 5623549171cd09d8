#!/bin/bash
# The page cache never hides a write made past it, and each open votes anew.
. "$(dirname "$0")/lib.sh"
pattern content.raw 4M 9
for r in a b c; do cp content.raw $r.raw; done
reads() { jq -n "$(sed -n 's/^quorumfs_disk_read_bytes_total.* //p' mnt/.quorumfs/metrics)"; }
for cache in auto writeback none; do
    qmount mnt -o cache=$cache a.raw b.raw c.raw || { not_ok "mount cache=$cache"; continue; }
    check "$cache: writes are seen across descriptors, direct and cached" python3 - mnt/disk.img <<'PY'
import mmap, os, sys
name = sys.argv[1]
cached = os.open(name, os.O_RDWR)
direct = os.open(name, os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 65536)
bad = []
def get(fd, at):
    os.preadv(fd, [page], at)
    return bytes(page[:65536])
def put(fd, at, byte):
    page[:] = byte * 65536
    os.pwritev(fd, [page], at)
for turn in range(50):
    for at in (0, 65536, 1 << 20):
        byte = bytes([turn + 1])
        get(cached, at)                      # now in the page cache
        put(direct, at, byte)
        if get(cached, at) != byte * 65536:
            bad.append(f"turn {turn}: cached read of a direct write at {at}")
        put(cached, at, b"\xff")
        if get(direct, at) != b"\xff" * 65536:
            bad.append(f"turn {turn}: direct read of a cached write at {at}")
sys.exit("\n".join(bad[:3]) or 0)
PY
    before=$(reads)
    cat mnt/disk.img >/dev/null
    one=$(reads)
    cat mnt/disk.img >/dev/null
    check "$cache: each open reads and votes anew" \
        [ $((one - before)) -ge 4194304 -a $(($(reads) - one)) -ge 4194304 ]
    before=$(reads)
    python3 -c 'import os
fd = os.open("mnt/disk.img", os.O_RDONLY)
for _ in range(8): os.pread(fd, 1 << 20, 0)'
    again=$(($(reads) - before))
    if [ $cache = none ]; then
        equal "none: every read goes through" $again $((8 << 20))
    else
        check "$cache: one open reads a range once" [ $again -le $((4 << 20)) ]
    fi
    before=$(reads)
    dd if=mnt/disk.img of=/dev/null bs=1M iflag=direct status=none
    equal "$cache: O_DIRECT always goes through" $(($(reads) - before)) 4194304
    # Read-modify-write of part of a page, on a descriptor that cannot read.
    printf x | dd of=mnt/disk.img bs=1 seek=123457 conv=notrunc status=none
    printf x | dd of=content.raw bs=1 seek=123457 conv=notrunc status=none
    sync mnt/disk.img
    equal "$cache: one byte" "$(dd if=mnt/disk.img bs=1 skip=123456 count=3 status=none | od -An -tx1)" \
        "$(dd if=a.raw bs=1 skip=123456 count=3 status=none | od -An -tx1)"
    before=$(digest mnt/disk.img)
    qumount mnt || not_ok "$cache: unmount"
    equal "$cache: nothing was left in the cache" "$(digest a.raw)" "$before"
    check "$cache: a and b are equal" cmp a.raw b.raw
    check "$cache: a and c are equal" cmp a.raw c.raw
    for r in a b c; do cp content.raw $r.raw; done
done
