#!/bin/bash
# What people do with a disk of qcow2 replicas: a file system through a loop device, QEMU's
# tools on the mounted file, fio, and nothing at all.
. "$(dirname "$0")/lib.sh"
create() {
    qemu-img create -q -f qcow2 a.qcow2 "$1"
    qemu-img create -q -f qcow2 -o cluster_size=4k,lazy_refcounts=on b.qcow2 "$1"
    qemu-img create -q -f qcow2 -o extended_l2=on c.qcow2 "$1"
}
examine() { # TEXT
    local r
    for r in a b c; do
        check "$1: qemu-img check finds nothing in $r" qemu-img check -q -f qcow2 $r.qcow2
    done
    check "$1: a and b are equal" qemu-img compare -q a.qcow2 b.qcow2
    check "$1: a and c are equal" qemu-img compare -q a.qcow2 c.qcow2
}
digests() { sha256sum a.qcow2 b.qcow2 c.qcow2; }

create 32M
before=$(digests)
for options in "" "-o ro"; do
    # shellcheck disable=SC2086
    qmount mnt $options a.qcow2 b.qcow2 c.qcow2 || not_ok "mount $options"
    cat mnt/disk.img >/dev/null
    [ -n "$options" ] || sync mnt/disk.img
    check "$options: unmount" qumount mnt
    equal "$options: a mount that writes nothing changes no file" "$(digests)" "$before"
done

qmount mnt a.qcow2 b.qcow2 c.qcow2 || { not_ok "mount"; exit 1; }
exits "QEMU writes, discards and verifies" 0 qemu-io -f raw -t none -d unmap \
    -c "write -P 0x11 0 1M" -c "write -P 0x22 1M 64k" -c "write -z 1088k 64k" \
    -c "aio_write -P 0x33 4M 2M" -c "aio_write -P 0x44 8M 512" -c aio_flush -c "discard 0 512k" \
    -c "write -z -u 4M 64k" -c flush -c "read -P 0 0 512k" -c "read -P 0x11 512k 512k" \
    -c "read -P 0x22 1M 64k" -c "read -P 0 1088k 64k" -c "read -P 0 4M 64k" \
    -c "read -P 0x33 4160k 1984k" -c "read -P 0x44 8M 512" mnt/disk.img
case $out in *"Pattern verification failed"*) not_ok "QEMU: $out" ;; esac
pattern content.raw 32M 5
check "qemu-img convert onto the disk" \
    qemu-img convert -n -f raw -O raw -t none content.raw mnt/disk.img
check "qemu-img compare" qemu-img compare -q -f raw -F raw content.raw mnt/disk.img
qumount mnt || not_ok "unmount"
examine "QEMU's tools"
check "QEMU reads it from a replica" qemu-img compare -q -f raw -F qcow2 content.raw c.qcow2

create 16M
qmount mnt a.qcow2 b.qcow2 c.qcow2 || { not_ok "mount"; exit 1; }
verify() {
    fio --name=v --filename=mnt/disk.img --allow_file_create=0 --size=16M --verify=crc32c \
        --verify_fatal=1 --do_verify=1 --verify_state_save=0 --output-format=terse "$@"
}
exits "fio: random 4k, libaio, depth 16" 0 verify --rw=randwrite --bs=4k --direct=1 \
    --ioengine=libaio --iodepth=16
exits "fio: odd sizes at odd places, buffered" 0 verify --rw=randwrite --bsrange=512-256k \
    --bs_unaligned=1 --direct=0 --ioengine=psync
exits "fio: two writers that meet in clusters" 0 verify --rw=randwrite --bs=512 --size=1M \
    --offset_increment=1M --numjobs=2 --direct=1 --ioengine=libaio --iodepth=8
exits "fio: depth 8, many fsyncs" 0 fio --name=t --filename=mnt/disk.img --allow_file_create=0 \
    --size=16M --rw=randwrite --bs=64k --direct=1 --ioengine=libaio --iodepth=8 --fsync=16 \
    --output-format=terse
qumount mnt || not_ok "unmount"
examine "fio"

create 32M
qmount mnt a.qcow2 b.qcow2 c.qcow2 || { not_ok "mount"; exit 1; }
loop=$(losetup --find --show mnt/disk.img 2>/dev/null)
end_loop() {
    mountpoint -q fs && umount fs
    [ -z "$loop" ] || losetup -d "$loop"
    loop=
}
trap 'end_loop; lib_cleanup' EXIT
mkdir -p fs
if [ -n "$loop" ]; then
    check "mkfs" mkfs.ext4 -q -F "$loop"
    if mount -o discard "$loop" fs 2>/dev/null; then
        check "a file" sh -c "head -c 12M content.raw >fs/file && sync fs/file"
        check "it is removed" rm fs/file
        check "another" sh -c "head -c 5M content.raw >fs/file"
        umount fs
        check "mount again" mount "$loop" fs
        check "the file is there" sh -c "head -c 5M content.raw | cmp - fs/file"
        fstrim fs 2>/dev/null
        umount fs
    else
        skip "a file" "cannot mount ext4 here"
    fi
    check "fsck" sh -c "e2fsck -fn $loop >/dev/null 2>&1"
    end_loop
else
    skip "a file system" "no loop devices here"
fi
wait_for qumount mnt
examine "file system"
