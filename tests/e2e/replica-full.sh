#!/bin/bash
# W2, W4: the file system under one of three replicas is full. The guest sees no error, the
# replica misses what it had no room for, and gets it when there is room again, without a mount.
. "$(dirname "$0")/lib.sh"
if ! { mkdir -p small && mount -t tmpfs -o size=6M none small 2>/dev/null; }; then
    skip "a replica on a full file system" "no tmpfs may be mounted here"
    exit 0
fi
trap 'umount -l small 2>/dev/null; lib_cleanup' EXIT
for kind in raw qcow2; do
    rm -rf state small/* ./*.$kind
    mount -o remount,size=6M small
    for name in a b small/c; do qemu-img create -q -f $kind $name.$kind 64M; done
    qmount mnt -o cache=none a.$kind b.$kind small/c.$kind || { not_ok "$kind: mount"; exit 1; }
    exits "$kind: the guest writes, flushes and verifies" 0 fio --name=v --filename=mnt/disk.img \
        --allow_file_create=0 --size=32M --rw=randwrite --bs=64k --fsync=32 --verify=crc32c --verify_fatal=1 \
        --do_verify=1 --verify_state_save=0 --direct=1 --ioengine=libaio --iodepth=4 --output-format=terse
    check "$kind: the full replica is not in sync" test "$(replica_state c)" != in-sync
    equal "$kind: the others are" "$(replica_state a) $(replica_state b)" "in-sync in-sync"
    contains "$kind: the journal says why" "$("$QUORUMFS" events mnt)" '"errno":28'
    mount -o remount,size=200M small
    check "$kind: with room again it catches up" wait_for is_healthy
    check "$kind: it is unmounted" qumount mnt
    exits "$kind: the replicas are equal" 0 "$QUORUMFS" verify a.$kind b.$kind small/c.$kind
    [ $kind = raw ] || check "$kind: it is clean" qemu-img check -q small/c.qcow2
done
