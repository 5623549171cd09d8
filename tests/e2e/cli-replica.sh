#!/bin/bash
# Replicas are taken out of a mounted disk, and others put in their place.
. "$(dirname "$0")/lib.sh"

state() { "$QUORUMFS" status --json mnt | jq -r ".disks[0].replicas[1].state"; }
replica() { "$QUORUMFS" replica "$@"; }

pattern a.raw 8M 1
cp a.raw b.raw && cp a.raw c.raw
truncate -s 8M new.raw
truncate -s 4M small.raw
qemu-img create -q -f qcow2 new.qcow2 8M
qmount mnt a.raw b.raw c.raw || { not_ok "mount"; exit 1; }

exits "a disk of that name" 2 replica remove mnt nope b
exits "a replica of that name" 2 replica remove mnt disk x
contains "is missed" "$err" "no replica 'x'"
exits "add where one is" 2 replica add mnt disk b new.raw
contains "says what to do" "$err" "remove it first"
exits "an image must be named" 1 replica replace mnt disk b
exits "a wrong word" 1 replica swap mnt disk b

exits "nothing is taken out for what is not there" 2 replica replace mnt disk b typo.raw
exits "nor for what does not fit" 2 replica replace mnt disk b small.raw
equal "it is in sync still" "$(state)" in-sync
exits "one is taken out" 0 replica remove mnt disk b
equal "it is removed" "$(state)" removed
exits "the others are in sync" 0 "$QUORUMFS" resync --wait mnt disk
contains "which says who is not" "$out" "all replicas but what was removed are in sync"
exits "another one cannot be" 2 replica remove mnt disk c
contains "in QEMU's words" "$err" "The number of children cannot be lower than the vote threshold 2"
dd if=/dev/urandom of=mnt/disk.img bs=64k count=3 conv=notrunc,fsync status=none
cmp -s a.raw b.raw; equal "it is not written to any more" $? 1

exits "another size is refused" 2 replica add mnt disk b small.raw
contains "with both sizes" "$err" "has 4194304 bytes where the disk has 8388608"
equal "and nothing has changed" "$(state)" removed
exits "the file of another replica is refused" 2 replica add mnt disk b a.raw
exits "a relative name of another format" 0 replica add mnt disk b new.qcow2
exits "it is filled" 0 "$QUORUMFS" resync --wait mnt disk

exits "one is exchanged" 0 replica replace mnt disk b raw:new.raw
exits "it is filled, too" 0 "$QUORUMFS" resync --wait mnt disk
check "it unmounts" qumount mnt
check "new.raw is as a" cmp a.raw new.raw
check "new.qcow2 was, too" qemu-img compare -q -f qcow2 -F raw new.qcow2 a.raw
exits "the new set is healthy" 0 qmount mnt a.raw new.raw c.raw
equal "at once" "$(state)" in-sync
check "it unmounts again" qumount mnt
