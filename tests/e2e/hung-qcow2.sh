#!/bin/bash
# R5 with a local qcow2 image that hangs: one of three replicas lies on a FUSE mount whose server
# stops. The guest goes on after the time-out; when the server does, the replica catches up.
# A disk is unmounted while one hangs; what it missed is remembered.
. "$(dirname "$0")/lib.sh"
pid=
trap '[ -z "$pid" ] || kill -CONT "$pid" 2>/dev/null; lib_cleanup' EXIT
inner_pid() { "$QUORUMFS" status --json inner | jq .pid; }
guest() { # TEXT
    exits "$1" 0 timeout -k 5 60 fio --name=v --filename=mnt/disk.img --allow_file_create=0 --size=16M --rw=randwrite \
        --bs=4k --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --direct=1 --ioengine=libaio \
        --iodepth=8 --output-format=json
}
for name in a b c; do qemu-img create -q -f qcow2 $name.qcow2 64M; done
# What hangs is the file, whatever is in it.
truncate -s 128M outer.raw
dd if=c.qcow2 of=outer.raw conv=notrunc status=none
mkdir -p inner inner-state
mounts+=("$scratch/inner")
"$QUORUMFS" mount -o "state-dir=$scratch/inner-state" --name c.qcow2 raw:outer.raw inner || { not_ok "inner mount"; exit 1; }
pid=$(inner_pid)
replicas=("a.qcow2" "b.qcow2" "inner/c.qcow2")
qmount mnt -o cache=none,replica-timeout=1s "${replicas[@]}" || { not_ok "mount"; exit 1; }
guest "a guest"
kill -STOP "$pid"
guest "the same guest, when the file hangs"
equal "the replica is hung" "$(replica_state c)" hung
kill -CONT "$pid"
check "it answers and catches up" wait_for is_healthy
guest "and takes part"
kill -STOP "$pid"
guest "it hangs again"
check "the disk is unmounted" timeout 60 "$QUORUMFS" umount mnt
kill -CONT "$pid"
wait_for qmount mnt -o cache=none "${replicas[@]}" # its lock goes when its requests are through
check "mounted again, it catches up" wait_for is_healthy
check "it is unmounted" qumount mnt
exits "the replicas are equal" 0 "$QUORUMFS" verify "${replicas[@]}"
check "the inner one too" qumount inner
pid=
