#!/bin/bash
# A mount that cannot be made says why in one line, exits with 32 and leaves nothing behind;
# a dead mount of ours is taken away, a live one is not.
. "$(dirname "$0")/lib.sh"
truncate -s 1M a.raw b.raw
state=(-o "state-dir=$scratch/state")
mkdir -p mnt state
touch file
mounted() { grep -c " $scratch/mnt " /proc/self/mountinfo; }
refused() { # TEXT PART ARGUMENTS...
    local text=$1 part=$2
    shift 2
    exits "$text" 32 "$QUORUMFS" mount "${state[@]}" "$@"
    contains "$text: the cause" "$err" "$part"
    equal "$text: one line" "$(grep -c '^quorumfs: ' <<<"$err")/$(wc -l <<<"$err")" 1/1
    equal "$text: nothing on standard output" "$out" ""
}
refused "no mount point" "No such file or directory" a.raw b.raw nowhere
refused "a file as mount point" "Not a directory" a.raw b.raw file
refused "a missing replica" "No such file or directory" a.raw c.raw mnt
equal "nothing is mounted" "$(mounted)" 0
equal "no journal is left" "$(find state -name '*.jsonl')" ""
equal "no socket is left" "$(find state -type s)" ""
equal "nothing at all is left of the state" "$(find state -mindepth 1)" ""
qemu-img create -q -f qcow2 r.qcow2 1M
refused "a notice is no second line" "control socket" -o qmp=/nowhere/socket r.qcow2 mnt
refused "state in the mount itself" "beneath the mount point" -o "state-dir=$scratch/mnt" a.raw b.raw mnt
equal "is not left there" "$(ls -A mnt)" ""
refused "the socket in the mount itself" "beneath the mount point" -o "qmp=$scratch/mnt/s" a.raw b.raw mnt
cat >two.conf <<CONF
[disk one]
file=disk.img
[replica one/a]
source=a.raw
[disk two]
file=disk.img
[replica two/a]
source=b.raw
CONF
refused "two disks with one file" "disk.img" two.conf mnt

qmount mnt a.raw b.raw || { not_ok "mount"; exit 1; }
pid=$(jq .pid mnt/.quorumfs/status.json)
truncate -s 1M c.raw d.raw
refused "a live mount of ours" "already" c.raw d.raw mnt
equal "still mounted once" "$(mounted)" 1
equal "and alive" "$(stat -c %s mnt/disk.img)" 1048576
kill -9 "$pid"
wait_for sh -c "! stat mnt/disk.img"
equal "killed, the dead mount is there" "$(mounted)" 1
check "the next start takes it away" "$QUORUMFS" mount "${state[@]}" a.raw b.raw mnt
equal "one mount" "$(mounted)" 1
equal "that answers" "$(stat -c %s mnt/disk.img)" 1048576
ln -s mnt link
refused "through a symbolic link too" "already" c.raw d.raw link
qumount mnt
check "mounts through a symbolic link" "$QUORUMFS" mount "${state[@]}" a.raw b.raw link
equal "and is found at the real place" "$(mounted)" 1
qumount mnt
mkdir "a b"
mounts+=("$scratch/a b")
check "a blank in the name" "$QUORUMFS" mount "${state[@]}" a.raw b.raw "a b"
kill -9 "$(jq .pid "a b/.quorumfs/status.json")"
wait_for sh -c "! stat 'a b/disk.img'"
check "is found dead too, by a name that ends in a slash" "$QUORUMFS" mount "${state[@]}" a.raw b.raw "a b/"
qumount "a b"
mkdir -p real/sub
ln -s real/sub sub
check "a state directory beside where a link leads" "$QUORUMFS" mount -o state-dir=sub/../st a.raw b.raw mnt
check "its socket is there" test -S real/st/disk-*/qmp.sock
qumount mnt
