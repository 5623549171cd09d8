#!/bin/bash
# The file system under all replicas is full: writes and flushes say so, nobody is out, and
# when there is room again everything that was written can be flushed.
. "$(dirname "$0")/lib.sh"
if ! { mkdir -p small && mount -t tmpfs -o size=16M none small 2>/dev/null; }; then
    skip "replicas on a full file system" "no tmpfs may be mounted here"
    exit 0
fi
trap 'umount -l small 2>/dev/null; lib_cleanup' EXIT
for r in a b c; do qemu-img create -q -f qcow2 small/$r.qcow2 64M; done
qmount mnt -o cache=none small/[abc].qcow2 || { not_ok "mount"; exit 1; }
pattern expected.raw 16M 3
written=$(dd if=expected.raw of=mnt/disk.img bs=64K conv=notrunc oflag=direct 2>&1 | sed -n 's/^\([0-9]*\)+.*out/\1/p')
check "a write says that there is no room (after $written of 256)" [ "$written" -lt 256 ]
sync -d mnt/disk.img 2>/dev/null
equal "nobody is out" "$("$QUORUMFS" status --json mnt | jq -r '.disks[0].state')" healthy
check "what was written is read" cmp -n $((written * 65536)) expected.raw mnt/disk.img
mount -o remount,size=200M small
check "with room again, the rest is written" dd if=expected.raw of=mnt/disk.img bs=64K conv=notrunc,fsync status=none
check "unmounts" qumount mnt
for r in a b c; do check "$r is clean" qemu-img check -q small/$r.qcow2; done
check "and holds it" qemu-img compare -q -f raw -F qcow2 expected.raw small/a.qcow2
exits "replicas are equal" 0 "$QUORUMFS" verify small/[abc].qcow2
