#!/bin/bash
# O5 on real mounts: what is said of replicas that are not in sync, and what min-replicas=,
# degraded= and --force do about it.
. "$(dirname "$0")/lib.sh"

one_line() { [ "$(wc -l <<<"$err")" = 1 ]; }
disk_state() { "$QUORUMFS" status --json mnt | jq -r '.disks[0].state'; }
healthy() { [ "$(disk_state)" = healthy ]; }

pattern a.raw 4M 1
cp a.raw b.raw && cp a.raw c.raw
qmount mnt a.raw b.raw c.raw && qumount mnt || { not_ok "mount"; exit 1; }

# One replica was changed.
poke b.raw 0 "changed"
exits "fewer than min-replicas: refused" 32 qmount mnt -o min-replicas=3 a.raw b.raw c.raw
contains "it says how many, and who" "$err" "2 of 3 replicas are in sync, min-replicas is 3: 'b'"
contains "and what to do" "$err" "degraded=warn"
check "in one line" one_line
check "nothing is mounted" sh -c '! mountpoint -q mnt'
printf '[disk disk]\nmin-replicas=3\ndegraded=warn\n' >vm.conf
for r in a b c; do printf '[replica disk/%s]\nsource=%s.raw\n' $r $r >>vm.conf; done
exits "a configuration that warns: mounted" 0 qmount mnt vm.conf
contains "with a line that says so" "$err" "disk 'disk' is degraded: 2 of 3 replicas are in sync"
check "it catches up" wait_for healthy
check "unmounts" qumount mnt
exits "in sync again, it is mounted" 0 qmount mnt -o min-replicas=3 a.raw b.raw c.raw
equal "without a word" "$(grep degraded <<<"$err")" ""
check "unmounts" qumount mnt

# Two of three were, in the same way: they would win.
poke b.raw 0 "changed" && poke c.raw 0 "changed"
exits "no quorum: refused" 32 qmount mnt a.raw b.raw c.raw
contains "it says who" "$err" "'b', 'c'"
contains "and what to do" "$err" "--force"
check "in one line" one_line
exits "degraded=warn does not help" 32 qmount mnt -o degraded=warn a.raw b.raw c.raw
sum=$(sha256sum ./*.raw)
for force in --force "-o force"; do
    # shellcheck disable=SC2086
    exits "$force mounts" 0 qmount mnt $force -o cache=none a.raw b.raw c.raw
    contains "$force: it says what is missing" "$err" "disk 'disk' is degraded: too few replicas"
    contains "$force: it says read-only" "$err" "disk 'disk' is read-only: "
    equal "$force: status" "$(disk_state)" failed
    exits "$force: nothing is served that has no quorum" 1 dd if=mnt/disk.img of=/dev/null bs=4k count=1
    contains "$force: EIO" "$err" "Input/output error"
    exits "$force: not writable" 1 dd if=/dev/zero of=mnt/disk.img bs=4k count=1 conv=notrunc
    check "$force: unmounts" qumount mnt
done
equal "no image was changed" "$(sha256sum ./*.raw)" "$sum"
exits "and it is refused as before" 32 qmount mnt a.raw b.raw c.raw
sed 's/^degraded=.*/force=true/' vm.conf >force.conf
exits "a configuration cannot force" 32 qmount mnt force.conf
contains "it says so" "$err" "unknown key 'force'"

# The way out.
cp a.raw b.raw && cp a.raw c.raw
exits "copies of the good one, and a new record: mounted" 0 \
    qmount mnt -o "state-dir=$PWD/fresh" a.raw b.raw c.raw
check "it has the good one's bytes" cmp a.raw mnt/disk.img
check "unmounts" qumount mnt
