#!/bin/bash
# A loop device on the mounted disk carries a file system, buffered and direct.
. "$(dirname "$0")/lib.sh"
truncate -s 32M a.raw b.raw c.raw
qmount mnt a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
loop=
end_loop() {
    mountpoint -q fs && umount fs
    [ -z "$loop" ] || losetup -d "$loop"
    loop=
}
trap 'end_loop; lib_cleanup' EXIT
mkdir fs
pattern content.raw 4M 12
for direct in off on; do
    loop=$(losetup --find --show --direct-io=$direct mnt/disk.img 2>/dev/null)
    if [ -z "$loop" ]; then
        skip "loop device, direct-io=$direct" "no loop devices here"
        continue
    fi
    check "direct-io=$direct: mkfs" mkfs.ext4 -q -F "$loop"
    if mount "$loop" fs 2>/dev/null; then
        check "direct-io=$direct: a file" cp content.raw fs/file
        check "direct-io=$direct: unmount" umount fs
        check "direct-io=$direct: mount again" mount "$loop" fs
        check "direct-io=$direct: the file is there" cmp content.raw fs/file
        umount fs
    else
        skip "direct-io=$direct: a file" "cannot mount ext4 here"
    fi
    check "direct-io=$direct: fsck" e2fsck -fn "$loop" >/dev/null 2>&1
    end_loop
done
wait_for qumount mnt
check "a and b are equal" cmp a.raw b.raw
check "a and c are equal" cmp a.raw c.raw
check "the file system is in the replica" e2fsck -fn b.raw >/dev/null 2>&1
