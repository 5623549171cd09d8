#!/bin/bash
# The main job of quorumfs in a minute: three qcow2 replicas with backing chains are shown
# as one disk, a rotten sector of one of them is outvoted, named and explained.
# `make demo` runs it. It leaves nothing behind.
set -euo pipefail
quorumfs=${QUORUMFS:-quorumfs}
work=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-demo.XXXXXX")
mounted=
cleanup() {
    [ -z "$mounted" ] || "$quorumfs" umount "$work/mnt" 2>/dev/null ||
        fusermount3 -q -u -z "$work/mnt" || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

bold= plain=
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
# Shows a command as a reader would type it, then runs it.
run() {
    printf '%s$ %s%s\n' "$bold" "$*" "$plain"
    "$@"
}
quorumfs() { command "$quorumfs" "$@"; }
digest() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1; }

step "Three replicas of one 64 MiB disk, each an overlay on a base image of its own"
mkdir a b c mnt state
# A disk with a recognisable content: 48 MiB of data, then nothing.
head -c 48M < <(yes 'quorumfs keeps disks alive') >content.raw
truncate -s 64M content.raw
for r in a b c; do
    qemu-img convert -q -f raw -O qcow2 content.raw $r/base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $r/top.qcow2
    qemu-io -f qcow2 -c 'write -q -P 0x51 1M 256k' $r/top.qcow2
done
qemu-img convert -f qcow2 -O raw a/top.qcow2 expected.raw
run quorumfs info --chain a/top.qcow2

step "Mounted: one voted raw disk"
run quorumfs mount -o state-dir="$work/state" a/top.qcow2 b/top.qcow2 c/top.qcow2 mnt
mounted=yes
run ls -l mnt
expected=$(digest expected.raw)
got=$(digest mnt/disk.img)
printf 'sha256 by qemu-img: %s\nsha256 by quorumfs: %s\n' "$expected" "$got"
[ "$expected" = "$got" ] || { echo "the mounted disk reads wrong"; exit 1; }

step "One sector of replica b rots (at 1 MiB of the disk, in its top layer)"
at=$(qemu-img map -U --output=json -f qcow2 b/top.qcow2 |
    tr -d '\n' | sed 's/}/}\n/g' | sed -n 's/.*"start": 1048576,.*"depth": 0,.*"offset": \([0-9]*\).*/\1/p')
printf 'rotten' | dd of=b/top.qcow2 bs=1 seek="$at" conv=notrunc status=none
got=$(digest mnt/disk.img)
printf 'sha256 by quorumfs: %s\n' "$got"
[ "$expected" = "$got" ] || { echo "the rotten sector was not outvoted"; exit 1; }
echo "Two of three replicas agree: the disk still reads right."

step "The journal names it"
run quorumfs events mnt
run quorumfs explain mnt disk 1M+4096
run quorumfs status mnt

step "Unmounted, then verified offline"
run quorumfs umount mnt
mounted=
status=0
run quorumfs verify a/top.qcow2 b/top.qcow2 c/top.qcow2 || status=$?
echo "exit status $status: they differ, and every sector has a majority"
[ "$status" = 1 ]
