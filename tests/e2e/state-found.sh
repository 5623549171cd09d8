#!/bin/bash
# O5, W6 on real mounts: what is known of a set goes with its replicas, wherever they are and
# however they are named, and one that is not what it was is found out.
. "$(dirname "$0")/lib.sh"

size=8M
new() { for r in "$@"; do qemu-img create -q -f qcow2 "$r" $size; done; }
# session TEXT IMAGES...: mounts, writes TEXT to the start of the disk, unmounts.
session() {
    local text=$1
    shift
    qmount mnt "$@" && poke mnt/disk.img 0 "$text" && sync mnt/disk.img && qumount mnt
}
holds() { [ "$(head -c "${#1}" mnt/disk.img)" = "$1" ]; }
journal() { cat state/*/disk/divergence.jsonl 2>/dev/null; }
forget_journal() { rm -f state/*/disk/divergence.jsonl; }
records() { find state -name '*.state' | wc -l; }
# reopen TEXT SAYS HOLDS IMAGES...: mounts; the journal says SAYS ("" for nothing) of the
# opening, all replicas are filled, and the disk holds HOLDS.
reopen() {
    local text=$1 says=$2 bytes=$3
    shift 3
    forget_journal
    exits "$text: mounts" 0 qmount mnt "$@"
    local said
    said=$(journal | jq -r 'select(.op == "open") | .action')
    if [ -n "$says" ]; then contains "$text: the journal tells" "$said" "$says"; else
        equal "$text: nothing to tell" "$said" ""; fi
    check "$text: it has what was written" holds "$bytes"
    check "$text: all catch up" wait_for is_healthy
    check "$text: unmounts" qumount mnt
    local r
    for r in "$@"; do
        check "$text: $r is sound" qemu-img check -q -f qcow2 "$r"
        check "$text: $r equals the first" qemu-img compare -q -f qcow2 -F qcow2 "$1" "$r"
    done
}

new a.qcow2 b.qcow2 c.qcow2
check "a first session" session one a.qcow2 b.qcow2 c.qcow2

# What the mark looks like from outside.
contains "info tells of the set" "$("$QUORUMFS" info a.qcow2)" "replica of: set "
contains "closed cleanly" "$("$QUORUMFS" info a.qcow2)" "closed cleanly"
equal "all of one set" "$(for r in a b c; do "$QUORUMFS" info --json $r.qcow2 | jq -r '."replica-of".set'; done | sort -u | wc -l)" 1
for r in a b c; do
    check "qemu-img info reads $r" qemu-img info -f qcow2 $r.qcow2 >/dev/null
    check "qemu-img check finds nothing in $r" qemu-img check -q -f qcow2 $r.qcow2
done
exits "libqcow reads them" 0 "$QUORUMFS" verify -o decoder=libqcow a.qcow2 b.qcow2 c.qcow2
sums=$(sha256sum ./*.qcow2)
exits "a mount that writes nothing" 0 qmount mnt a.qcow2 b.qcow2 c.qcow2
check "reads" holds one
check "unmounts" qumount mnt
equal "leaves the images as they are" "$(sha256sum ./*.qcow2)" "$sums"

# Put back, made anew.
cp -a b.qcow2 old
check "a second session" session two a.qcow2 b.qcow2 c.qcow2
cat old >b.qcow2
reopen "an old copy in place" "older copy of itself: in-sync -> stale" two a.qcow2 b.qcow2 c.qcow2
check "a third session" session three a.qcow2 b.qcow2 c.qcow2
mv old b.qcow2
reopen "an old copy" "older copy of itself: in-sync -> stale" three a.qcow2 b.qcow2 c.qcow2
new c.qcow2
reopen "an empty image" "was made anew: in-sync -> stale" three a.qcow2 b.qcow2 c.qcow2

# After a crash, when times tell nothing.
cp -a c.qcow2 old
exits "a session that crashes" 0 qmount mnt a.qcow2 b.qcow2 c.qcow2
poke mnt/disk.img 0 "four" && sync mnt/disk.img
daemon_kill
reopen "after a crash" "" four a.qcow2 b.qcow2 c.qcow2
cp -a c.qcow2 old
exits "another one" 0 qmount mnt a.qcow2 b.qcow2 c.qcow2
poke mnt/disk.img 0 "five" && sync mnt/disk.img
daemon_kill
cat old >c.qcow2
reopen "an old copy after a crash" "older copy of itself: in-sync -> stale" five a.qcow2 b.qcow2 c.qcow2
rm old

# Somewhere else, called otherwise, in another order.
reopen "another order" "" five c.qcow2 a.qcow2 b.qcow2
mkdir moved && mv ./*.qcow2 moved
reopen "another directory" "" five moved/a.qcow2 moved/b.qcow2 moved/c.qcow2
mv moved/a.qcow2 x.qcow2
reopen "one renamed" "" five x.qcow2 moved/b.qcow2 moved/c.qcow2
cp -a x.qcow2 a.qcow2 && cp -a moved/b.qcow2 moved/c.qcow2 . && rm -r moved x.qcow2
reopen "true copies" "true copy of the file that is recorded: as recorded" five b.qcow2 c.qcow2 a.qcow2
equal "all that is one record" "$(records)" 1

# One exchanged; and back, when it is the old one.
new d.qcow2
reopen "one exchanged" "is new in the set: in-sync -> stale" five a.qcow2 b.qcow2 d.qcow2
check "a session of these" session six a.qcow2 b.qcow2 d.qcow2
reopen "and back" "is new in the set: in-sync -> stale" six a.qcow2 b.qcow2 c.qcow2
equal "still one record" "$(records)" 1

# Who missed a write is remembered, whatever the set is called: a and b are gone, and c, which
# was put back, must not be alone in knowing better.
cp -a c.qcow2 old
check "a session" session seven a.qcow2 b.qcow2 c.qcow2
mv old c.qcow2
exits "two that were written to, one that was not" 0 qmount mnt -o threshold=2 c.qcow2 b.qcow2 a.qcow2
check "the newer ones win" holds seven
check "all catch up" wait_for is_healthy
check "unmounts" qumount mnt

# Changed behind our back by QEMU, which keeps the mark.
for change in "rebase -u -f qcow2 -b ''" "amend -f qcow2 -o lazy_refcounts=on" "snapshot -c s"; do
    eval "qemu-img $change b.qcow2"
    reopen "qemu-img $change" "changed behind our back: in-sync -> stale" seven a.qcow2 b.qcow2 c.qcow2
done
qemu-img resize -q -f qcow2 b.qcow2 +1M && qemu-img resize -q -f qcow2 --shrink b.qcow2 $size
reopen "qemu-img resize" "changed behind our back: in-sync -> stale" seven a.qcow2 b.qcow2 c.qcow2
qemu-io -f qcow2 -c 'write -P 9 0 4k' b.qcow2 >/dev/null
reopen "qemu-io write" "changed behind our back: in-sync -> stale" seven a.qcow2 b.qcow2 c.qcow2

# All replaced: void, and said so.
new a.qcow2 b.qcow2 c.qcow2
reopen "all made anew" "recorded state is void" "" a.qcow2 b.qcow2 c.qcow2
check "a session" session eight a.qcow2 b.qcow2 c.qcow2

# One that is known is not mounted among strangers, who might outvote it.
new x.qcow2 y.qcow2
sum=$(sha256sum a.qcow2)
exits "one among blank ones: refused" 32 qmount mnt a.qcow2 x.qcow2 y.qcow2
contains "it says why" "$err" "the others might outvote it"
contains "and what to do" "$err" "or with -o ro"
equal "in one line" "$(wc -l <<<"$err")" 1
exits "to look at" 0 qmount mnt -o ro a.qcow2 x.qcow2 y.qcow2
check "unmounts" qumount mnt
exits "nor are they repaired from blank ones" 2 "$QUORUMFS" repair -o "state-dir=$PWD/state" a.qcow2 x.qcow2 y.qcow2
equal "nothing was changed" "$(sha256sum a.qcow2)" "$sum"
# A part of a set is another disk; the set does not lose it for that.
exits "one alone" 0 qmount mnt a.qcow2
contains "it says whose it is" "$err" "replica 'a' is also part of the set recorded in "
check "it has its bytes" holds eight
check "unmounts" qumount mnt
reopen "the set again" "" eight a.qcow2 b.qcow2 c.qcow2
check "one alone, written to" session nine a.qcow2
exits "the set again" 0 qmount mnt a.qcow2 b.qcow2 c.qcow2
contains "it says that this is overwritten" "$err" "replica 'a' is new, was changed while it was not mounted"
check "it has what the others have" holds eight
check "all catch up" wait_for is_healthy
check "unmounts" qumount mnt

# Two sets joined: neither record is the right one.
new e.qcow2 f.qcow2
check "a set of two" session ten e.qcow2 f.qcow2
check "and another" session eight a.qcow2 b.qcow2
exits "both together: refused" 32 qmount mnt a.qcow2 b.qcow2 e.qcow2 f.qcow2
contains "it says why" "$err" "recorded as parts of two sets"
contains "and what to do" "$err" "state-dir="
equal "in one line" "$(wc -l <<<"$err")" 1

# A look at two of three, and a slip of the pen, cost the third nothing.
rm -rf state && new a.qcow2 b.qcow2 c.qcow2 wrong.qcow2
check "a session" session eleven a.qcow2 b.qcow2 c.qcow2
exits "two of three, read-only" 0 qmount mnt -o ro a.qcow2 b.qcow2
check "have what was written" holds eleven
check "unmounts" qumount mnt
exits "a wrong one, and all are wanted" 32 qmount mnt -o min-replicas=3 a.qcow2 b.qcow2 wrong.qcow2
reopen "the set again" "" eleven a.qcow2 b.qcow2 c.qcow2

# A replica that is known to be stale is so in other company.
cp -a c.qcow2 old
check "a session" session twelve a.qcow2 b.qcow2 c.qcow2
mv old c.qcow2
exits "with the quorum of all" 0 qmount mnt -o threshold=2 a.qcow2 b.qcow2 c.qcow2
check "unmounts" qumount mnt

# Ten thousand directories of others, FIFOs and rubbish keep nobody.
mkdir state/fifo && mkfifo state/fifo/disk.state && mkdir state/rubbish &&
    head -c 300000 /dev/urandom >state/rubbish/disk.state && ln -s /dev/zero state/rubbish/x.state
python3 -c 'import os
for i in range(3000): os.makedirs("state/other-%d" % i)'
mkdir away && mv a.qcow2 b.qcow2 c.qcow2 away
before=$(date +%s)
exits "among all that" 0 qmount mnt away/a.qcow2 away/b.qcow2 away/c.qcow2
check "in no time" [ $(($(date +%s) - before)) -lt 10 ]
check "it is found" holds twelve
check "unmounts" qumount mnt
