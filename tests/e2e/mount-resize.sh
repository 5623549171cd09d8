#!/bin/bash
# ftruncate resizes every replica; O_TRUNC leaves the disk alone, as a block device does; a
# write cannot make the disk grow. Replicas that cannot be resized, or are out.
. "$(dirname "$0")/lib.sh"
pattern a.raw 4M 7
cp a.raw b.raw
cp a.raw c.raw
content=$(digest a.raw)
sizes() { stat -c %s a.raw b.raw c.raw mnt/disk.img | sort -u | tr '\n' ' '; }
for options in "" "-o cache=none" "-o cache=writeback"; do
    # shellcheck disable=SC2086
    qmount mnt $options a.raw b.raw c.raw || { not_ok "mount $options"; continue; }
    exec 5<mnt/disk.img
    : >mnt/disk.img
    equal "$options: O_TRUNC leaves the size" "$(sizes)" "$((4 << 20)) "
    equal "$options: and the content" "$(digest mnt/disk.img)" "$content"
    check "$options: grow" truncate -s 8M mnt/disk.img
    equal "$options: all grew" "$(sizes)" "$((8 << 20)) "
    check "$options: the new half is zero, for an open descriptor too" \
        sh -c 'tail -c 4M <&5 | cmp - /dev/zero -n 4194304'
    exec 5<&-
    echo data | dd of=mnt/disk.img bs=1M seek=7 conv=notrunc status=none
    check "$options: shrink" truncate -s 4M mnt/disk.img
    equal "$options: all shrank" "$(sizes)" "$((4 << 20)) "
    equal "$options: the content is as before" "$(digest mnt/disk.img)" "$content"
    check "$options: to an odd size" truncate -s 4194401 mnt/disk.img
    equal "$options: all have it" "$(sizes)" "4194401 "
    equal "$options: read up to it" "$(wc -c <mnt/disk.img)" 4194401
    check "$options: and back" truncate -s 4M mnt/disk.img
    pattern long.raw 5M 7
    exits "$options: a write beyond the end fails" 1 \
        dd if=long.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
    [ "$options" = "-o cache=writeback" ] || contains "$options: as no space" "$err" "No space left"
    qumount mnt || not_ok "$options: unmount"
    equal "$options: no replica grew" "$(stat -c %s a.raw b.raw c.raw | sort -u)" $((4 << 20))
    check "$options: a and b are equal" cmp a.raw b.raw
    check "$options: a and c are equal" cmp a.raw c.raw
    pattern a.raw 4M 7 && cp a.raw b.raw && cp a.raw c.raw
done

# One that can never be resized: no other is resized first.
qemu-img create -q -f qcow2 -o compat=0.10 a.qcow2 8M
qemu-img snapshot -c before a.qcow2
qemu-img create -q -f qcow2 b.qcow2 8M
qemu-img create -q -f qcow2 c.qcow2 8M
qmount mnt a.qcow2 b.qcow2 c.qcow2 || not_ok "mount with version 2 and a snapshot"
for size in 16M 4M; do
    exits "no resize to $size" 1 truncate -s $size mnt/disk.img
    contains "which is said" "$err" "not supported"
done
equal "all are in sync" "$("$QUORUMFS" status --json mnt |
    jq -r '[.disks[0].replicas[].state] | unique | join(" ")')" in-sync
check "unmount" qumount mnt
for r in a b c; do
    equal "$r has its size" "$(qemu-img info --output json $r.qcow2 | jq '."virtual-size"')" $((8 << 20))
done

# One that is out: the others are resized, and what lies in the new part can be written.
if mkdir -p small && mount -t tmpfs -o size=3M none small 2>/dev/null; then
    rm -f ./*.qcow2
    for r in a b small/c; do qemu-img create -q -f qcow2 $r.qcow2 64M; done
    qmount mnt a.qcow2 b.qcow2 small/c.qcow2 || not_ok "mount"
    pattern long.raw 5M 8
    dd if=long.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
    equal "one is out" "$("$QUORUMFS" status --json mnt | jq -r '.disks[0].replicas[2].state')" failed
    contains "and what to do is said" "$("$QUORUMFS" status mnt)" "comes back by itself"
    check "grow" truncate -s 96M mnt/disk.img
    check "write behind the old end" dd if=long.raw of=mnt/disk.img bs=1M seek=80 conv=notrunc,fsync status=none
    check "it is read" cmp -n 5242880 -i 83886080:0 mnt/disk.img long.raw
    check "shrink" truncate -s 32M mnt/disk.img
    check "unmount" qumount mnt
    mount -o remount,size=80M small
    # If it came back before the last resize, it followed.
    if [ "$(qemu-img info --output json small/c.qcow2 | jq '."virtual-size"')" != $((32 << 20)) ]; then
        exits "sizes differ now" 32 qmount mnt a.qcow2 b.qcow2 small/c.qcow2
        qemu-img resize -q --shrink small/c.qcow2 32M
    fi
    qmount mnt a.qcow2 b.qcow2 small/c.qcow2 || not_ok "mount with equal sizes"
    check "it is filled" wait_for sh -c \
        '[ "$("$1" status --json mnt | jq -r ".disks[0].state")" = healthy ]' sh "$QUORUMFS"
    check "unmount" qumount mnt
    exits "the replicas are equal" 0 "$QUORUMFS" verify a.qcow2 b.qcow2 small/c.qcow2
    umount small
else
    skip "a replica that is out" "no tmpfs may be mounted here"
fi
