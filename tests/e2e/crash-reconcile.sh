#!/bin/bash
# W2, W5, W6, O5 with real processes: a daemon that is killed under load, a host's page cache
# that one replica lost, a replica on a full file system, one that was edited by hand. After
# each, the next mount serves everything that was synced, without an error, and leaves
# replicas that are equal.
. "$(dirname "$0")/lib.sh"
seed=${QUORUMFS_TEST_SEED:-$(date +%s)}
echo "# QUORUMFS_TEST_SEED=$seed"

journal() { cat state/*/*/divergence.jsonl 2>/dev/null; }
# equal_replicas TEXT FILE...: mounts, waits until nothing is left to do, unmounts, verifies.
equal_replicas() {
    local text=$1
    shift
    check "$text: all in sync in the end" wait_for is_healthy
    check "$text: everything is read" cmp -n 4194304 expected.raw mnt/disk.img
    check "$text: unmounts" qumount mnt
    exits "$text: the replicas are equal" 0 "$QUORUMFS" verify "$@"
}

# name_replicas KIND: sets `replicas`; made, and served where they are.
name_replicas() {
    local r
    replicas=()
    for r in a b c; do
        case $1 in
        nbd) truncate -s 64M $r.raw && serve $r && replicas+=("$(nbd_uri $r)") ;;
        *) qemu-img create -q -f "$1" "$r.$1" 64M && replicas+=("$r.$1") ;;
        esac
    done
}
kinds='qcow2 raw'
if command -v nbdkit >/dev/null; then . "$e2e/nbd-lib.sh" && kinds="nbd $kinds"; fi
for kind in $kinds; do
    rm -rf state ./*.raw ./*.qcow2
    name_replicas $kind
    qmount mnt -o cache=none "${replicas[@]}" || { not_ok "mount"; exit 1; }
    pattern expected.raw 4M "$seed"
    dd if=expected.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
    start fio --name=load --filename=mnt/disk.img --offset=16M --size=32M --rw=randwrite \
        --bs=4k --direct=1 --ioengine=psync --numjobs=2 --time_based --runtime=600 \
        --fallocate=none --output=fio.out
    check "$kind: the guest writes" wait_for writes_reach 400
    daemon_kill
    kill "$started" 2>/dev/null
    wait "$started" 2>/dev/null
    qmount mnt -o cache=none "${replicas[@]}" || not_ok "$kind: mount after the crash"
    check "$kind: no sector without an answer after the crash" \
        dd if=mnt/disk.img of=/dev/null bs=1M iflag=direct status=none
    equal_replicas "$kind: killed under load" "${replicas[@]}"
    equal "$kind: no read was refused" "$(journal | jq -c 'select(.event == "quorum-failure")')" ""
    [ $kind != nbd ] || { server_kill a; server_kill b; server_kill c; }
done

# What one replica lost of the range that was dirty (as if its page cache was gone) is made
# equal; what was lost elsewhere is an ordinary divergence.
qmount mnt -o cache=none a.raw b.raw c.raw || not_ok "mount"
dd if=/dev/zero of=mnt/disk.img bs=1M seek=20 count=4 conv=notrunc,fsync status=none
daemon_kill
dd if=/dev/urandom of=b.raw bs=1M seek=21 count=1 conv=notrunc status=none
qmount mnt -o cache=none a.raw b.raw c.raw || not_ok "mount after the loss"
check "the worker reconciles what nobody reads" \
    wait_for sh -c 'cat state/*/*/divergence.jsonl | grep -q "\"event\": *\"reconcile\""'
equal_replicas "one lost what it took" a.raw b.raw c.raw

# Edited while it was not mounted: stale as a whole, and filled again.
poke c.raw 1048576 "edited by hand"
qmount mnt a.raw b.raw c.raw || not_ok "mount after the edit"
contains "the journal tells" "$(journal)" "changed behind our back"
equal_replicas "edited by hand" a.raw b.raw c.raw

# A new disk in place of a broken one.
rm b.raw && truncate -s 64M b.raw
qmount mnt a.raw b.raw c.raw || not_ok "mount with an empty replica"
equal_replicas "replaced by an empty one" a.raw b.raw c.raw

# Two of three changed: nobody knows which is right.
poke b.raw 0 "x" && poke c.raw 0 "x"
exits "two changed replicas of three are refused" 32 qmount mnt a.raw b.raw c.raw
contains "and it is said which" "$err" "'b', 'c'"
check "nothing is mounted" sh -c '! mountpoint -q mnt'
# The way out that is named, with the one that was not changed as the good one.
cp a.raw b.raw && cp a.raw c.raw
exits "copies alone are changed replicas still" 32 qmount mnt a.raw b.raw c.raw
contains "the way out is named" "$err" "repair --from REPLICA"
touch a.raw b.raw c.raw
qmount mnt a.raw b.raw c.raw || not_ok "mount after the way out"
equal_replicas "the way out" a.raw b.raw c.raw

# A file system that is full: what the replica missed is remembered, and copied when there is
# space again.
if mkdir -p small && mount -t tmpfs -o size=3M none small 2>/dev/null; then
    rm -rf state
    truncate -s 64M a.raw b.raw small/c.raw
    truncate -s 0 a.raw b.raw && truncate -s 64M a.raw b.raw
    qmount mnt -o cache=none a.raw b.raw small/c.raw || not_ok "mount"
    pattern expected.raw 4M "$((seed + 1))"
    check "a full replica does not stop the guest" \
        dd if=expected.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
    state=$("$QUORUMFS" status --json mnt | jq -r '.disks[0].replicas[2].state')
    check "it is not in sync: $state" [ "$state" != in-sync ]
    daemon_kill
    mount -o remount,size=80M small
    qmount mnt -o cache=none a.raw b.raw small/c.raw || not_ok "mount with space again"
    equal_replicas "space again" a.raw b.raw small/c.raw
    umount small
else
    skip "a replica on a full file system" "no tmpfs may be mounted here"
fi
