#!/bin/bash
# Punching holes frees space and reads as zeroes, zeroing reads as zeroes, in all replicas;
# what cannot be done says so, and nothing claims to have been done that was not.
. "$(dirname "$0")/lib.sh"
pattern a.raw 16M 6
cp a.raw b.raw
cp a.raw c.raw
cp a.raw expected.raw
qmount mnt a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
blocks=$(stat -c %b a.raw)
# Cached first, so that a stale page cache would show.
cat mnt/disk.img >/dev/null
exec 5<mnt/disk.img
cat <&5 >/dev/null
check "punch a hole" fallocate --punch-hole --offset 4M --length 4M mnt/disk.img
dd if=/dev/zero of=expected.raw bs=1M seek=4 count=4 conv=notrunc status=none
check "it reads as zeroes" cmp mnt/disk.img expected.raw
check "also through a descriptor that was open" cmp /dev/fd/5 expected.raw
exec 5<&-
check "an odd range" fallocate --punch-hole --offset 9437201 --length 100001 mnt/disk.img
dd if=/dev/zero of=expected.raw bs=1 seek=9437201 count=100001 conv=notrunc status=none
check "zero a range" fallocate --zero-range --offset 12M --length 1M mnt/disk.img
dd if=/dev/zero of=expected.raw bs=1M seek=12 count=1 conv=notrunc status=none
check "both read as zeroes" cmp mnt/disk.img expected.raw
for r in a b c; do
    check "$r: space is freed" [ "$(stat -c %b $r.raw)" -lt $((blocks - 8000)) ]
done
check "a hole beyond the end is nothing to do" fallocate --punch-hole --offset 16M --length 1M mnt/disk.img
exits "plain allocation is refused" 1 fallocate --offset 4M --length 1M mnt/disk.img
contains "as not supported" "$err" "not supported"
exits "growing by allocation is refused" 1 fallocate --offset 16M --length 1M mnt/disk.img
exits "zeroes beyond the end are refused" 1 fallocate --zero-range --offset 15M --length 2M mnt/disk.img
equal "the size stayed" "$(stat -c %s mnt/disk.img)" $((16 << 20))
# glibc writes where the file system cannot allocate.
check "posix_fallocate works by writing" fallocate --posix --offset 4M --length 64k mnt/disk.img
exits "QEMU discards and zeroes" 0 qemu-io -f raw -t none -d unmap -c "discard 0 1M" \
    -c "write -z -u 1M 1M" -c "read -P 0 0 2M" mnt/disk.img
qumount mnt
check "a and b are equal" cmp a.raw b.raw
check "a and c are equal" cmp a.raw c.raw
