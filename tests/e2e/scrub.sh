#!/bin/bash
# A disk that is in use is compared as a whole: every flip that was planted behind its back is
# found exactly and nothing is written; with --repair all replicas are equal afterwards; with
# on-divergence=repair a read is enough. A stale replica is filled when it is asked for.
. "$(dirname "$0")/lib.sh"
pattern content.raw 8M 5
expected=$(digest content.raw)
fresh() {
    rm -rf state
    for r in a b c; do cp content.raw $r.raw; done
}
mount_all() { qmount mnt -o cache=none "$@" a.raw b.raw c.raw || not_ok "mount"; }
journal() { "$QUORUMFS" events mnt; }
job() { "$QUORUMFS" status mnt --json | jq -c ".disks[0].jobs[] | select(.type == \"$1\") | $2"; }
scrub_is() { [ "$(job scrub .status)" = "\"$1\"" ]; }
digests() { for r in a b c; do digest $r.raw; done | sort -u; }

# ---- What is planted is found ----
fresh
mount_all
exits "a scrub of what is equal" 0 "$QUORUMFS" scrub --wait mnt disk
contains "says so" "$out" "disk: 8388608 bytes compared, 0 zero in every map; all agree;"
exits "one that is not waited for" 0 "$QUORUMFS" scrub mnt disk
contains "says where to look" "$out" "quorumfs status"
check "ends" wait_for scrub_is concluded
: >planted
i=0
for offset in 0 1000 4096 1048575 1048576 3000000 5242880 8388600; do
    replica=$(echo a b c | cut -d' ' -f$((i % 3 + 1)))
    poke $replica.raw $offset X
    printf '%d %s\n' $((offset / 512 * 512)) $replica >>planted
    i=$((i + 1))
done
sha256sum a.raw b.raw c.raw >before
exits "the flips make it exit 1" 1 "$QUORUMFS" scrub --wait mnt disk
contains "the summary counts them" "$out" "; differing: 4096 bytes;"
equal "each flip is one record, to the sector" \
    "$(journal | jq -r 'select(.event == "divergence" and .op == "scrub" and .length == 512) | "\(.offset) \(.losers[0].replica)"' | sort -n)" \
    "$(sort -n planted)"
check "without --repair nothing was written" sha256sum --quiet -c before
equal "and no repair is told of" "$(journal | jq -c 'select(.event == "repair")')" ""
equal "the job is in the status" \
    "$(job scrub '[.device, .status, .result, .len, .offset, ."differing-bytes", .ranges, .repair]')" \
    '["scrub-disk","concluded","completed",8388608,8388608,4096,8,false]'
contains "people see it too" "$("$QUORUMFS" status mnt)" "scrub: completed"

# ---- And repaired ----
exits "with --repair, too" 1 "$QUORUMFS" scrub --repair --wait mnt disk
contains "the summary tells" "$out" "; differing: 4096 bytes; repaired: 4096 bytes;"
equal "all replicas are equal, and as they were" "$(digests)" "$expected"
equal "each repair is one record" \
    "$(journal | jq -r 'select(.event == "repair" and .op == "scrub" and .action == "repaired") | "\(.offset) \(.losers[0].replica)"' | sort -n)" \
    "$(sort -n planted)"
exits "then all agree" 0 "$QUORUMFS" scrub --wait mnt disk

# ---- By its other name ----
poke b.raw 7000000 X
exits "repair of a mounted disk" 1 "$QUORUMFS" repair --wait mnt disk
contains "is a scrub that repairs" "$out" "repaired: 512 bytes"
equal "all replicas are equal" "$(digests)" "$expected"

# ---- No majority ----
poke a.raw 2000000 X
poke b.raw 2000000 Y
sha256sum a.raw b.raw c.raw >before
exits "no majority somewhere" 5 "$QUORUMFS" scrub --repair --wait mnt disk
contains "is counted" "$out" "without a majority: 512 bytes"
check "and left alone" sha256sum --quiet -c before
cp content.raw x.raw
for r in a b; do dd if=x.raw of=$r.raw bs=4k skip=488 seek=488 count=2 conv=notrunc status=none; done
exits "again all agree" 0 "$QUORUMFS" scrub --wait mnt disk

# ---- One at a time; guests write meanwhile ----
exits "a slow one" 0 "$QUORUMFS" scrub --speed 512 mnt disk
exits "and a second one" 2 "$QUORUMFS" scrub mnt disk
contains "is refused" "$err" "Disk 'disk' is being scrubbed already"
equal "it runs" "$(job scrub '[.status, .busy, .speed]')" '["running",true,512]'
contains "people see that" "$("$QUORUMFS" status mnt)" "scrub: running"
"$QUORUMFS" scrub --cancel --wait mnt disk >/dev/null
start "$QUORUMFS" scrub --speed 512 --wait mnt disk 2>said
waiter=$started
check "one that is waited for" wait_for scrub_is running
told() { grep -q "^disk: .* ranges differ or unreadable" said || { kill -USR1 "$waiter"; false; }; }
check "SIGUSR1 asks who waits for a line" wait_for told
kill -INT "$waiter"
wait "$waiter"
equal "who is interrupted ends" "$?" 130
contains "and says that the scrub does not" "$(cat said)" "the scrub of disk 'disk' goes on"
check "as is true" scrub_is running
exits "it is cancelled" 130 "$QUORUMFS" scrub --cancel --wait mnt disk
contains "and says so" "$out" "disk: cancelled: "
exits "no other runs" 2 "$QUORUMFS" scrub --cancel mnt disk
contains "says the second cancel" "$err" "Disk 'disk' is not being scrubbed"
exits "an unknown disk" 2 "$QUORUMFS" scrub mnt dusk
contains "is named with the nearest" "$err" "did you mean 'disk'?"
for r in a b c; do poke $r.raw $((4096 * (10 + $(printf '%d' "'$r") % 3))) Z; done
start dd if=content.raw of=mnt/disk.img bs=64k conv=notrunc oflag=direct status=none
writer=$started
"$QUORUMFS" scrub --repair --wait mnt disk >/dev/null
wait "$writer"
equal "a guest that writes the while" "$?" 0
equal "and everything is equal" "$(digests)" "$expected"
exits "unmounting in the middle of a scrub" 0 "$QUORUMFS" scrub --speed 512 mnt disk
check "ends it" qumount mnt

# ---- on-divergence=repair ----
fresh
mount_all -o on-divergence=repair
poke b.raw 1000 X
poke c.raw 6000000 X
equal "what is read is voted" "$(digest mnt/disk.img iflag=direct)" "$expected"
repaired() { [ "$(journal | jq -c 'select(.event == "repair" and .op == "read")' | wc -l)" = 2 ]; }
check "a read is enough" wait_for repaired
equal "for a repair" "$(digests)" "$expected"
qumount mnt
exits "not without a majority" 1 "$QUORUMFS" mount -o on-divergence=repair,threshold=1,state-dir=state a.raw b.raw mnt
contains "that is said" "$err" "on-divergence=repair needs a majority, and 1 of 2 is none (give a threshold of 2 or more)"
exits "not read-only" 1 "$QUORUMFS" mount -o on-divergence=repair,ro,state-dir=state a.raw b.raw c.raw mnt
contains "that too" "$err" "needs a disk that can be written to"
printf '[disk vm1]\non-divergence=repair\n' >vm.conf
for r in a b c; do printf '[replica vm1/%s]\nsource=%s.raw\n' $r $r >>vm.conf; done
exits "verify does not mind" 0 "$QUORUMFS" verify vm.conf

# ---- O4 ----
qmount mnt -o threshold=1 a.raw b.raw || not_ok "mount"
exits "a repair of half" 2 "$QUORUMFS" scrub --repair mnt disk
contains "is refused" "$err" "Disk 'disk': a repair needs a majority, and a threshold of 1 of 2 is none"
exits "looking is not" 0 "$QUORUMFS" scrub --wait mnt disk
exits "a resync of half" 2 "$QUORUMFS" resync mnt disk
contains "is refused, too" "$err" "a resync needs a majority"
qumount mnt
qmount mnt -o ro a.raw b.raw c.raw || not_ok "mount"
exits "a repair of what is read-only" 2 "$QUORUMFS" scrub --repair mnt disk
contains "is refused, as well" "$err" "a repair needs a disk that can be written to"
exits "looking is not, here neither" 0 "$QUORUMFS" scrub --wait mnt disk
qumount mnt

# ---- Resync ----
fresh
mount_all
check "a write" dd if=content.raw of=mnt/disk.img bs=64k count=1 conv=notrunc oflag=direct status=none
qumount mnt
poke c.raw 100 changed
mount_all
exits "a replica that was changed is filled" 0 "$QUORUMFS" resync --wait mnt disk
equal "which is said" "$out" "disk: all replicas are in sync"
equal "it is in sync" "$("$QUORUMFS" status mnt --json | jq -r '.disks[0].replicas[2].state')" in-sync
equal "and equal" "$(digests)" "$expected"
equal "there is no job any more" "$(job resync .)" ""
qumount mnt

# ---- qcow2 ----
for r in a b c; do qemu-img convert -q -f raw -O qcow2 content.raw $r.qcow2; done
rm -rf state
qmount mnt -o cache=none a.qcow2 b.qcow2 c.qcow2 || not_ok "mount"
poke b.qcow2 $((1 << 20)) rotten
exits "rot in a cluster of a qcow2" 1 "$QUORUMFS" scrub --repair --wait mnt disk
contains "is repaired" "$out" "repaired: 512 bytes"
exits "for good" 0 "$QUORUMFS" scrub --wait mnt disk
qumount mnt
exits "the image is sound" 0 qemu-img check -q b.qcow2
exits "the images agree" 0 "$QUORUMFS" verify a.qcow2 b.qcow2 c.qcow2
