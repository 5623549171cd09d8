#!/bin/bash
# What is written through the mount, direct or buffered, by dd or QEMU, at any offset, is
# read back, and is the same in every replica afterwards.
. "$(dirname "$0")/lib.sh"
pattern content.raw 16M 3
for r in a b c; do truncate -s 16M $r.raw; done
agree() { cmp -s a.raw b.raw && cmp -s a.raw c.raw; }
for options in "" "-s" "-o cache=none" "-o cache=writeback"; do
    rm -f [abc].raw && truncate -s 16M a.raw b.raw c.raw
    # shellcheck disable=SC2086
    qmount mnt $options a.raw b.raw c.raw || { not_ok "mount $options"; continue; }
    check "$options: direct write" \
        dd if=content.raw of=mnt/disk.img bs=1M oflag=direct conv=notrunc,fsync status=none
    equal "$options: read back direct" "$(digest mnt/disk.img iflag=direct)" "$(digest content.raw)"
    equal "$options: read back buffered" "$(digest mnt/disk.img)" "$(digest content.raw)"
    cp content.raw expected.raw
    pattern part.raw 300001 4
    for out in mnt/disk.img expected.raw; do # an odd length at an odd offset, buffered
        dd if=part.raw of=$out bs=7777 seek=100 conv=notrunc status=none
    done
    check "$options: an odd buffered write reads back" cmp mnt/disk.img expected.raw
    exits "$options: QEMU writes and verifies" 0 qemu-io -f raw -t none \
        -c "write -P 0x11 0 1M" -c "write -P 0x22 1M 64k" -c "write -z 1088k 64k" \
        -c "aio_write -P 0x33 4M 2M" -c "aio_write -P 0x44 8M 512" -c aio_flush -c flush \
        -c "read -P 0x11 0 1M" -c "read -P 0x22 1M 64k" -c "read -P 0 1088k 64k" \
        -c "read -P 0x33 4M 2M" -c "read -P 0x44 8M 512" mnt/disk.img
    contains "$options: and finds its own bytes" "$out" "read 1048576/1048576"
    case $out in *"Pattern verification failed"*) not_ok "$options: $out" ;; esac
    before=$(digest mnt/disk.img)
    qumount mnt || not_ok "$options: unmount"
    check "$options: the replicas are equal" agree
    equal "$options: and hold what was read" "$(digest b.raw)" "$before"
done
