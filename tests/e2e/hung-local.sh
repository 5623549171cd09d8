#!/bin/bash
# A local replica that hangs: a file on a FUSE mount whose server is stopped (R5). Requests go
# on after replica-timeout, the status answers, the mount goes away; when the server goes on,
# the replica comes back and is filled.
. "$(dirname "$0")/lib.sh"
command -v qemu-storage-daemon >/dev/null || { skip "a local file that hangs" "no qemu-storage-daemon"; exit 0; }
truncate -s 64M a.raw b.raw image.raw
server=
hung_cleanup() { # a stopped server keeps whoever waits for it, and itself
    local status=$?
    [ -z "$server" ] || kill -CONT "$server" 2>/dev/null
    for m in "${mounts[@]:-}"; do
        [ -z "$m" ] || fusermount3 -q -u -z "$m" 2>/dev/null
    done
    (exit $status)
    lib_cleanup
}
trap hung_cleanup EXIT

# serve: image.raw as c.raw
serve() {
    : >c.raw
    start qemu-storage-daemon --blockdev driver=file,node-name=f,filename=image.raw \
        --export type=fuse,id=e,node-name=f,mountpoint="$scratch/c.raw",writable=on 2>server.log
    server=$started
    wait_for eval '[ "$(stat -c %s c.raw)" = 67108864 ]'
}
end_server() {
    kill -CONT "$server"
    kill "$server"
    wait "$server" 2>/dev/null
    server=
}
status() { timeout 10 "$QUORUMFS" status --json mnt; }
state() { status | jq -r '.disks[0].replicas[2].state'; }
is() { [ "$(state)" = "$1" ]; }
daemon_pid() { status | jq .pid; }
gone() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.[ZX]' "/proc/$1/status"; }
# within SECONDS COMMAND...: succeeds. What waits for a mount may not be there to be killed.
within() {
    local until=$((SECONDS + $1))
    shift
    start "$@" >/dev/null 2>&1
    while ! gone "$started"; do
        [ $SECONDS -le $until ] || return 1
        sleep 0.05
    done
    wait "$started"
}
mount_it() { qmount mnt -o cache=none,replica-timeout=1s "$@" a.raw b.raw c.raw; }

serve
check "a replica on a FUSE file is served" wait_for test -s c.raw
mount_it || { not_ok "mount"; exit 1; }
pattern part.raw 8M 1
dd if=part.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
equal "it is in sync" "$(state)" in-sync

# ---- It hangs while four write and two read, all with data that can be told apart ---------
start fio --name=w --filename=mnt/disk.img --rw=randwrite --bs=16k --direct=1 --offset=16M --size=16M \
    --ioengine=psync --numjobs=4 --time_based --runtime=6 --verify=crc32c --do_verify=0 --output=w.log
load=$started
start fio --name=r --filename=mnt/disk.img --rw=randread --bs=64k --direct=1 --size=16M \
    --ioengine=psync --numjobs=2 --time_based --runtime=6 --output=r.log
reads=$started

kill -STOP "$server"
check "the status answers" eval "status >status.out"
check "a write goes on" within 10 dd if=part.raw of=mnt/disk.img bs=4k count=1 oflag=direct conv=notrunc
equal "the replica is hung" "$(state)" hung
check "a flush goes on" within 10 sync -d mnt/disk.img
check "attributes are had" within 5 stat mnt/disk.img
check "the events, too" within 5 "$QUORUMFS" events mnt
wait "$load"
equal "no write failed" $? 0
wait "$reads"
equal "no read failed" $? 0
equal "and what was written is served" "$(digest mnt/disk.img iflag=direct,fullblock count=8)" "$(digest part.raw)"
kill -CONT "$server"
check "when it answers it comes back" wait_for is in-sync
check "it is unmounted" qumount mnt
check "b is as a" cmp a.raw b.raw
check "c is as a" cmp a.raw c.raw

# ---- Nothing that people look at waits for it, however long requests may ------------------
qmount mnt -o cache=none,replica-timeout=600s a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
kill -STOP "$server"
start dd if=part.raw of=mnt/disk.img bs=4k count=1 oflag=direct conv=notrunc status=none
waits=$started
sleep 1.5 # what the kernel remembers of c.raw is not good any more
check "attributes are had at once" within 20 stat --cached=never mnt/disk.img
check "and the list of files" within 20 ls -l mnt
check "and the space" within 20 df mnt
for option in "" --json --prometheus; do
    # shellcheck disable=SC2086
    check "and the status $option" within 20 "$QUORUMFS" status mnt $option
done
check "and the events" within 20 "$QUORUMFS" events mnt
check "while a write waits" kill -0 "$waits"
kill -CONT "$server"
wait "$waits"
equal "which then succeeds" $? 0
check "and is in sync" wait_for is in-sync
check "it is unmounted" qumount mnt

# ---- It hangs, and is unmounted ----------------------------------------------------------
for how in umount TERM; do
    mount_it || { not_ok "mount"; exit 1; }
    pid=$(daemon_pid)
    dd if=/dev/urandom of=mnt/disk.img bs=1M count=4 conv=notrunc,fsync status=none
    kill -STOP "$server"
    within 10 dd if=/dev/urandom of=mnt/disk.img bs=1M count=4 oflag=direct conv=notrunc
    if [ $how = umount ]; then
        exits "umount of a disk with a hung replica" 0 timeout 15 "$QUORUMFS" umount --wait mnt
        contains "says that it hangs" "$out" "disk/c: hung"
        contains "and that the others do not" "$out" "disk/a: in sync"
    else
        kill -TERM "$pid"
        check "TERM unmounts, too" wait_for eval '! grep -q " $scratch/mnt " /proc/self/mountinfo'
    fi
    check "$how: the others are equal" cmp a.raw b.raw
    kill -CONT "$server"
    check "$how: when it answers the process is gone" wait_for gone "$pid"
    mount_it || { not_ok "mount"; exit 1; }
    check "$how: and the next mount fills it" wait_for is in-sync
    check "$how: it is unmounted" qumount mnt
    check "$how: c is as a" cmp a.raw c.raw
done
end_server
