#!/bin/bash
# events: the journals of all disks as JSON lines, oldest first; --follow prints each new
# record once, whatever is counted up or moved away, and ends with the mount.
. "$(dirname "$0")/lib.sh"
for name in a b c d; do pattern $name.raw 1M 1; done
poke b.raw 4096 rotten
poke b.raw 65536 rotten
poke d.raw 8192 rotten
cat >vm.conf <<CONF
[disk one]
threshold=1
[replica one/a]
source=a.raw
[replica one/b]
source=b.raw
[disk two]
threshold=1
[replica two/c]
source=c.raw
[replica two/d]
source=d.raw
CONF
check "mount" qmount mnt -o ro vm.conf
sector() { dd if="mnt/$1.img" bs=4k skip="$2" count=1 iflag=direct of=/dev/null status=none; }
events() { "$QUORUMFS" events "$@"; }
brief() { jq -c '[.disk, .offset, .count]'; }
equal "nothing yet" "$(events mnt)" ""
sector one 1
sector two 2
sector one 16
equal "both disks, oldest first" "$(events mnt | brief | tr '\n' ' ')" '["one",4096,1] ["two",8192,1] ["one",65536,1] '
sector one 1
equal "a repeat counts" "$(events mnt | brief | tr '\n' ' ')" '["one",4096,2] ["two",8192,1] ["one",65536,1] '

"$QUORUMFS" events --follow mnt >followed &
follower=$!
pids+=($follower)
lines() { [ "$(wc -l <followed)" = "$1" ]; }
check "--follow starts with what is there" wait_for lines 3
check "in the same order" cmp -s <(brief <followed) <(events mnt | brief)
sector one 1
sector two 2
state=$("$QUORUMFS" status --json mnt | jq -r '."state-dir"')
mv "$state/one/divergence.jsonl" "$state/one/moved"
kill -HUP "$("$QUORUMFS" status --json mnt | jq .pid)"
check "SIGHUP reopens a journal that was moved away" wait_for test -e "$state/one/divergence.jsonl"
sector one 16
check "its first record is followed" wait_for lines 4
equal "repeats before were not printed again" "$(brief <followed | tail -n 1)" '["one",65536,1]'
check "the follower still runs" kill -0 $follower
qumount mnt
wait $follower
equal "it ends with the mount" $? 0
equal "every line is a record" "$(jq -s 'length == 4 and all(.[]; .event == "divergence")' followed)" true
exits "events without a mount" 2 "$QUORUMFS" events mnt

check "mount" qmount mnt -o ro vm.conf
"$QUORUMFS" events --follow mnt | head -n 1 >first
equal "a reader that goes ends it" "$(wc -l <first)" 1
"$QUORUMFS" events --follow mnt >followed &
follower=$!
pids+=($follower)
check "following again" wait_for test -s followed
kill -9 "$("$QUORUMFS" status --json mnt | jq .pid)"
wait $follower
equal "a killed daemon ends it too" $? 0
"$QUORUMFS" umount mnt
