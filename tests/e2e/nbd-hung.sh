#!/bin/bash
# R5, W2, W6 with real servers: one of three replicas on NBD stops, or dies, while a guest
# writes and verifies: the guest sees no error and goes on after the time-out; when the server
# is there again the replica catches up, and all are equal. Two of three: EIO and not a hang,
# and status and umount work.
. "$(dirname "$0")/lib.sh"
. "$e2e/nbd-lib.sh"
replicas=("$(nbd_uri a)" "$(nbd_uri b)" "$(nbd_uri c)")
mount_disk() { qmount mnt -o "cache=none,replica-timeout=1s${1:+,$1}" "${replicas[@]}"; }

# guest: writes 8,192 blocks and reads all of them back, in the background.
guest() {
    start fio --name=v --filename=mnt/disk.img --allow_file_create=0 --size=32M --rw=randwrite --bs=4k \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --direct=1 --ioengine=libaio \
        --iodepth=8 --output-format=json --output=fio.json
    guest=$started
}
guest_ends() { # TEXT
    wait "$guest"
    equal "$1: the guest sees no error, and what it wrote" $? 0
    # A request meets the replica once, so it waits for a time-out and not for many.
    equal "$1: no request takes for ever" "$(jq \
        '.jobs[0] | [.read.clat_ns.max, .write.clat_ns.max] | max < 10e9' fio.json)" true
}
equal_replicas() { # TEXT
    check "$1: everybody is in sync" wait_for is_healthy
    check "$1: unmounts" qumount mnt
    check "$1: a and b are equal" cmp a.raw b.raw
    check "$1: a and c are equal" cmp a.raw c.raw
}

truncate -s 64M a.raw b.raw c.raw
serve a
serve b --filter=delay wdelay=1ms
serve_qemu c

# ---- One stops ---------------------------------------------------------------------------
mount_disk || { not_ok "mount"; exit 1; }
for victim in c a; do
    before=$(metric quorumfs_disk_writes_total)
    guest
    wait_for writes_reach $((before + 500))
    kill -STOP "$(server_pid $victim)"
    check "$victim stops: it is hung" wait_for is_state $victim hung
    at=$(metric quorumfs_disk_writes_total)
    check "$victim stops: requests go on" wait_for writes_reach $((at + 500))
    equal "$victim stops: the disk is degraded" "$(disk_figure .state)" degraded
    guest_ends "$victim stops"
    kill -CONT "$(server_pid $victim)"
    check "$victim goes on: it is in sync again" wait_for is_healthy
done
contains "the journal has who hung, and when" "$("$QUORUMFS" events mnt)" 'in-sync -> hung'
equal_replicas "after two that stopped"

# ---- One dies, while reads take turns ------------------------------------------------------
mount_disk read-pattern=rotate || not_ok "mount again"
for victim in c b; do
    before=$(metric quorumfs_disk_writes_total)
    guest
    wait_for writes_reach $((before + 500))
    server_kill $victim
    check "$victim dies: it is hung" wait_for is_state $victim hung
    at=$(metric quorumfs_disk_writes_total)
    check "$victim dies: requests go on" wait_for writes_reach $((at + 500))
    serve $victim
    guest_ends "$victim dies"
    check "$victim is there again: it is in sync" wait_for is_healthy
done
equal_replicas "after two that died"

# ---- Two of three ------------------------------------------------------------------------
mount_disk || not_ok "mount a third time"
pattern content.raw 4M 3
dd if=content.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
kill -STOP "$pid_b" "$pid_c"
started_at=$SECONDS
exits "two stop: a write fails" 1 dd if=content.raw of=mnt/disk.img bs=1M count=1 seek=8 conv=notrunc oflag=direct
contains "two stop: with EIO" "$err" "Input/output error"
exits "two stop: a read fails" 1 dd if=mnt/disk.img of=/dev/null bs=1M count=1 iflag=direct
contains "two stop: with EIO, too" "$err" "Input/output error"
check "two stop: neither hangs" test $((SECONDS - started_at)) -lt 20
check "two stop: the disk has failed" wait_for eval '[ "$(disk_figure .state)" = failed ]'
check "two stop: status.json can be read" timeout 20 grep -q '"hung"' mnt/.quorumfs/status.json
kill -CONT "$pid_b" "$pid_c"
check "they go on: all in sync" wait_for is_healthy
check "they go on: what was synced is there" cmp -n 4194304 content.raw mnt/disk.img
kill -STOP "$pid_b" "$pid_c"
dd if=mnt/disk.img of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null
exits "two stop again: unmounting says that not everything is flushed" 32 timeout 60 "$QUORUMFS" umount mnt
contains "two stop again: by name" "$err" "disk 'disk'"
check "two stop again: and unmounts all the same" sh -c '! mountpoint -q mnt'
kill -CONT "$pid_b" "$pid_c"
mount_disk || not_ok "mount after that"
equal_replicas "and mounted again"
check "with what was synced" cmp -n 4194304 content.raw a.raw
