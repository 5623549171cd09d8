#!/bin/bash
# The daemon is killed. What an fsync covered is in the replicas, in which qemu-img check
# finds leaks at most; images with lazy refcounts are right again after the next mount.
. "$(dirname "$0")/lib.sh"
seed=${QUORUMFS_TEST_SEED:-$(date +%s)}
echo "# QUORUMFS_TEST_SEED=$seed"
create() {
    qemu-img create -q -f qcow2 a.qcow2 6M
    qemu-img create -q -f qcow2 -o cluster_size=512 b.qcow2 6M
    truncate -s 6M base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw -o extended_l2=on,cluster_size=16k c.qcow2
    qemu-img create -q -f qcow2 -o lazy_refcounts=on d.qcow2 6M
    truncate -s 6M expected.raw
}
# leaks_at_most IMAGE: no error but clusters that nobody uses.
leaks_at_most() {
    qemu-img check -q -f qcow2 "$1" >check.out 2>&1
    case $? in 0 | 3) return 0 ;; *) head -n 5 check.out; return 1 ;; esac
}
for round in 1 2 3; do
    rm -f ./*.qcow2 ./*.raw
    create
    qmount mnt -o cache=none [a-d].qcow2 || { not_ok "mount"; exit 1; }
    check "round $round: operations, then fsync" python3 "$e2e/writer.py" mnt/disk.img \
        expected.raw "$((seed + round))" 250 direct sync
    if [ "$round" != 1 ]; then # more, to the second half, nothing of it synced
        cp expected.raw more.raw
        start python3 "$e2e/writer.py" mnt/disk.img more.raw "$((seed + 10 * round))" \
            "$((round == 2 ? 60 : 100000))" quiet=65536 2>/dev/null
        if [ "$round" = 2 ]; then
            wait "$started"
        else
            wait_for sh -c '! cmp -s more.raw expected.raw'
        fi
    fi
    daemon_kill
    wait "$started" 2>/dev/null
    for r in a b c; do
        check "round $round: leaks at most in $r" leaks_at_most $r.qcow2
        if [ "$round" = 1 ]; then
            check "round $round: $r holds what was synced" \
                qemu-img compare -q -f raw -F qcow2 expected.raw $r.qcow2
        else # beyond what was written since
            qemu-img convert -f qcow2 -O raw $r.qcow2 now.raw
            check "round $round: $r holds what was synced" cmp -i 65536 expected.raw now.raw
        fi
    done
    # One replica at a time: they need not agree on what was not synced.
    for r in a b c d; do
        qmount mnt $r.qcow2 || { not_ok "round $round: mount $r again"; continue; }
        check "round $round: $r has it after the mount" \
            cmp -i 65536 expected.raw mnt/disk.img
        check "round $round: and takes writes" dd if=/dev/urandom of=mnt/disk.img bs=64k \
            count=1 conv=notrunc,fsync status=none
        qumount mnt || not_ok "unmount"
        check "round $round: leaks at most in $r, later" leaks_at_most $r.qcow2
    done
    check "round $round: nothing at all in d" qemu-img check -q -f qcow2 d.qcow2
done
