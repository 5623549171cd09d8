#!/bin/bash
# Offline repair: what differs is repaired by the majority or by the replica that is said to be
# right, on every kind of image; a dry run changes nothing; the next mount has nothing to do.
. "$(dirname "$0")/lib.sh"
repair() { "$QUORUMFS" repair -o "state-dir=$scratch/state" "$@"; }
verify() { "$QUORUMFS" verify "$@"; }
# everything: digests and times of all files, and what the directories hold.
everything() { find . ! -name . ! -name .out ! -name .err -printf '%p %s %T@ %C@\n' -type f -exec sha256sum {} \; | sort; }
journal() { cat state/*/*/divergence.jsonl 2>/dev/null; }
# healthy TEXT IMAGE...: a mount has nothing to do, and did nothing.
healthy() {
    local text=$1 before
    shift
    before=$(journal | wc -l)
    qmount mnt "$@" || not_ok "$text: mount"
    equal "$text: the next mount is healthy at once" \
        "$("$QUORUMFS" status --json mnt | jq -r '.disks[0] | .state, .replicas[].state' | sort -u | xargs)" \
        "healthy in-sync"
    check "$text: and unmounts" qumount mnt
    equal "$text: and had nothing to tell" "$(journal | wc -l)" "$before"
    exits "$text: the replicas agree" 0 verify "$@"
}

mkdir a b c
pattern content.raw 3M 1
truncate -s 5M content.raw
for r in a b c; do
    cp --sparse=always content.raw $r/x.raw
    qemu-img convert -q -O qcow2 content.raw $r/x.qcow2
    qemu-img convert -q -c -O qcow2 content.raw $r/zlib.qcow2
    cp $r/x.qcow2 $r/base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $r/top.qcow2 6M
    qemu-io -f qcow2 -c 'write -q -P 6 100k 10k' -c 'write -q -P 7 5600k 20k' $r/top.qcow2
done

# rot FILE OFFSET [LENGTH]: the guest's bytes there, by whatever writes them.
rot() {
    case $1 in
    *.raw) head -c "${3:-512}" /dev/urandom | dd of="$1" bs=512 seek=$(($2 / 512)) conv=notrunc status=none ;;
    *) qemu-io -f qcow2 -c "write -q -P $((RANDOM % 255 + 1)) $2 ${3:-512}" "$1" ;;
    esac
}

# A minority is wrong: in every kind of image, found by a dry run, and repaired.
for image in x.raw x.qcow2 zlib.qcow2 top.qcow2; do
    rm -rf state
    rot b/$image 1048576
    rot c/$image 2097152 1024
    rot a/$image 4718592 512 # where the others have a hole
    before=$(everything) bases=$(sha256sum ./*/base.qcow2; stat -c %Y ./*/base.qcow2)
    exits "$image: a dry run finds it" 1 repair --dry-run {a,b,c}/$image
    equal "$image: each range, with loser and winners" "$(head -n -2 <<<"$out")" \
        "1048576 512 differs: b wins: a,c
2097152 1024 differs: c wins: a,b
4718592 512 differs: a wins: b,c"
    equal "$image: and says what would be done" "$(tail -n 1 <<<"$out")" \
        "would be overwritten: a 512 bytes, b 512 bytes, c 1024 bytes"
    equal "$image: and changes nothing" "$(everything)" "$before"
    exits "$image: it is repaired" 1 repair {a,b,c}/$image
    contains "$image: which is said" "$out" "overwritten: a 512 bytes, b 512 bytes, c 1024 bytes; to undo it: "
    equal "$image: one record for each range" \
        "$(journal | jq -r 'select(.event == "repair") | "\(.op) \(.offset)+\(.length) \(.losers[0].replica) \(.action)"')" \
        "repair 1048576+512 b repaired
repair 2097152+1024 c repaired
repair 4718592+512 a repaired"
    exits "$image: then all agree" 0 repair {a,b,c}/$image
    before=$(everything)
    exits "$image: and nothing is touched any more" 0 repair {a,b,c}/$image
    equal "$image: not even the record" "$(everything)" "$before"
    equal "$image: backing files are as they were" \
        "$(sha256sum ./*/base.qcow2; stat -c %Y ./*/base.qcow2)" "$bases"
    case $image in *.qcow2)
        for r in a b c; do
            exits "$image: qemu-img finds nothing wrong with $r" 0 qemu-img check -q $r/$image
        done ;;
    esac
    healthy "$image" {a,b,c}/$image
done
exits "raw and qcow2 replicas of one disk" 0 repair a/x.raw b/x.qcow2 c/zlib.qcow2
rot a/x.raw 0
exits "one is repaired from the others" 1 repair a/x.raw b/x.qcow2 c/zlib.qcow2
check "byte by byte" qemu-img compare -q -f raw -F qcow2 a/x.raw b/x.qcow2

# As JSON. The record of the mixed set would speak for a.
rm -rf state
rot b/x.raw 512
exits "as JSON, a dry run" 1 repair --dry-run --json {a,b,c}/x.raw
equal "with what would be done" "$(jq -c '.disks[0].repair | [."dry-run", .undo, .replicas[1]."overwritten-bytes"]' <<<"$out")" '[true,null,512]'
exits "as JSON" 1 repair --json {a,b,c}/x.raw
equal "with what was done" "$(jq -c '.disks[0].repair | [."dry-run", (.undo | length > 10), .replicas[1]."overwritten-bytes", ."left-bytes", .failed]' <<<"$out")" '[false,true,512,0,false]'
equal "and the exit codes" "$(jq -c '[.exit, .disks[0].exit]' <<<"$out")" '[1,1]'

# No majority: left alone, unless somebody is right.
rm -rf state
rot a/x.raw 8192 && rot b/x.raw 8192 && rot b/x.raw 65536
sums=$(sha256sum a/x.raw c/x.raw) && cp b/x.raw b.before
exits "a sector without a majority" 5 repair {a,b,c}/x.raw
contains "the versions are named" "$out" "8192 512 differs: a|b|c wins: none"
contains "and who may decide" "$out" "left as it is, without a majority: 512 bytes (--from REPLICA decides)"
equal "the others are not touched" "$(sha256sum a/x.raw c/x.raw)" "$sums"
equal "the rest is repaired" "$(cmp -l b/x.raw b.before | awk '{print int(($1 - 1) / 512)}' | sort -u)" 128
exits "--from, a dry run" 5 repair --from b -n {a,b,c}/x.raw
contains "it wins" "$out" "8192 512 differs: a,c wins: b"
exits "--from tells what was found" 5 repair --from b {a,b,c}/x.raw
exits "all are as it was" 0 verify {a,b,c}/x.raw
exits "against the majority, too" 0 repair --from b {a,b,c}/x.raw
rot c/x.raw 4096
cp c/x.raw c.before
exits "the one that was outvoted" 1 repair --from c {a,b,c}/x.raw
check "is right" cmp -s a/x.raw c.before
rm -rf state
rot a/x.qcow2 0
exits "two replicas have no majority where they differ" 5 repair a/x.qcow2 b/x.qcow2
exits "one of them is right" 5 repair --from b a/x.qcow2 b/x.qcow2
exits "and they are equal" 0 verify {a,b,c}/x.qcow2
healthy "two replicas" a/x.qcow2 b/x.qcow2

# A replica that cannot be read somewhere gets new bytes there.
rm -rf state
yes "text that can be compressed" | head -c 2M >text.raw
for r in a b c; do qemu-img convert -q -c -O qcow2 text.raw $r/text.qcow2; done
python3 - b/text.qcow2 <<'PY'
import struct, sys
with open(sys.argv[1], 'r+b') as f:
    d = f.read()
    l1 = struct.unpack('>Q', d[40:48])[0]
    l2 = struct.unpack('>Q', d[l1:l1 + 8])[0] & 0x00fffffffffffe00
    entry = struct.unpack('>Q', d[l2 + 8 * 5:][:8])[0]
    f.seek(entry & ((1 << 54) - 1))
    f.write(b'\xff' * 64)
PY
exits "a cluster that cannot be unpacked" 4 repair {a,b,c}/text.qcow2
contains "the range is the cluster" "$out" "327680 65536 wins: a,c unreadable: b"
exits "is written anew" 0 verify {a,b,c}/text.qcow2

# What may not be written to, what is not there, what makes no sense.
qemu-img convert -q -O qcow content.raw a/one.qcow
cp content.raw b/one.raw && cp content.raw c/one.raw && rot b/one.raw 0
exits "a replica that cannot be written" 2 repair a/one.qcow b/one.raw c/one.raw
contains "is named" "$err" "cannot be written to: replica 'a'"
exits "an image that is not there" 2 repair a/x.raw b/x.raw nowhere.raw
exits "a directory" 2 repair a b
exits "no image" 64 repair
exits "no such replica" 64 repair --from d {a,b,c}/x.raw
contains "is named, too" "$err" "has no replica 'd'"
exits "half is no majority" 64 repair --threshold 1 a/x.raw b/x.raw
exits "but one may be right" 0 repair --threshold 1 --from a b/x.raw a/x.raw
exits "read-only" 64 repair -o ro --from a {a,b,c}/x.raw
contains "is kept" "$err" "disk 'disk' is to be read only: --dry-run looks at it"
exits "and can be looked at" 0 repair -o ro --dry-run {a,b,c}/x.raw
exits "--wait" 64 repair --wait {a,b,c}/x.raw
exits "help" 0 repair --help

# Mounted: refused, by its state directory or by its locks, and there is the other form.
rm -rf state
qmount mnt {a,b,c}/x.raw || not_ok "mount"
exits "not while it is mounted" 2 repair {a,b,c}/x.raw
contains "the state directory is in use" "$err" "repair MOUNTPOINT DISK"
exits "nor with another state directory" 2 "$QUORUMFS" repair -o "state-dir=$scratch/other" {a,b,c}/x.raw
contains "the images are in use" "$err" "repair MOUNTPOINT DISK"
rot b/x.raw 1024
exits "the other form" 1 "$QUORUMFS" repair --wait mnt disk
exits "has repaired it" 0 "$QUORUMFS" repair --wait mnt disk
exits "which takes no --from" 64 "$QUORUMFS" repair --from a mnt disk
check "unmounts" qumount mnt
exits "all agree" 0 verify {a,b,c}/x.raw

# A replica that was edited while nothing was mounted is stale as a whole: it has no vote, and is
# written only where it differs.
rot c/x.raw 512
rot a/x.raw 2048
exits "two replicas changed of three" 2 repair {a,b,c}/x.raw
contains "there is a way out" "$err" "(--from REPLICA makes all like one)"
exits "one of them is right" 1 repair --from b {a,b,c}/x.raw
healthy "one was right" {a,b,c}/x.raw
rot c/x.raw 512
exits "one changed, dry run" 1 repair -n {a,b,c}/x.raw
contains "it is stale" "$out" "stale by the record: c 5242880 bytes; would be overwritten: c 512 bytes"
exits "it is filled" 1 repair {a,b,c}/x.raw
contains "where it differed" "$out" "overwritten: c 512 bytes"
healthy "one was stale" {a,b,c}/x.raw
touch b/x.raw
exits "one was touched" 0 repair {a,b,c}/x.raw
equal "and differs nowhere" "$(tail -n 1 <<<"$out")" "stale by the record: b 5242880 bytes"
healthy "one was touched" {a,b,c}/x.raw

# The last session was killed: what it left is made equal first.
qmount mnt -o cache=none {a,b,c}/x.raw || not_ok "mount"
dd if=/dev/urandom of=mnt/disk.img bs=4k seek=16 count=16 conv=notrunc,fsync status=none
kill -9 "$("$QUORUMFS" status --json mnt | jq -r .pid)"
wait_for sh -c '! stat mnt/disk.img'
fusermount3 -q -u -z mnt
rot b/x.raw 65536 8192
exits "after a crash" 1 repair {a,b,c}/x.raw
contains "what one lost is given back" "$out" "overwritten: b 8192 bytes"
healthy "after a crash" {a,b,c}/x.raw

# An odd size, and a server.
for r in a b c; do head -c 1000100 content.raw >$r/odd.raw; done
poke b/odd.raw 1000099 X
exits "an odd tail" 1 repair {a,b,c}/odd.raw
contains "is a part of a sector" "$out" "999936 164 differs: b wins: a,c"
check "and is repaired" cmp -s a/odd.raw b/odd.raw
rot c/x.raw 2048
server="exec:qemu-nbd -t -f raw -k {socket} $scratch/c/x.raw"
exits "a server" 1 repair a/x.raw b/x.raw "$server"
contains "is repaired" "$out" "overwritten: c 512 bytes"
exits "like a file" 0 verify {a,b,c}/x.raw
id=$("$QUORUMFS" repair -o "state-dir=$scratch/state" --undo list a/x.raw b/x.raw "$server" | cut -d' ' -f1)
exits "and undone" 0 repair --undo "$id" a/x.raw b/x.raw "$server"
exits "likewise" 1 repair {a,b,c}/x.raw

# Killed in the middle: run again, it comes to its end; nothing was decided in between.
rm -rf state && mkdir many
python3 - <<'PY'
data = open('a/x.raw', 'rb').read()
for name in 'ab':
    new = bytearray(data)
    for s in range(5000 if name == 'b' else 0):
        new[s * 2 * 512] ^= 1
    open(f'many/{name}.raw', 'wb').write(new)
PY
start "$QUORUMFS" repair -o "state-dir=$scratch/state" --from b many/a.raw many/b.raw >/dev/null
wait_for sh -c '[ "$(stat -c %s state/*/disk/divergence.jsonl | tail -n 1)" -gt 9000 ]'
kill -9 "$started" 2>/dev/null
wait "$started" 2>/dev/null
left=$(verify many/a.raw many/b.raw | grep -c differs:)
echo "# $left of 5000 were left"
qmount mnt many/a.raw many/b.raw || not_ok "mount after the kill"
check "unmounts" qumount mnt
equal "a mount decides nothing that was not decided" \
    "$(verify many/a.raw many/b.raw | grep -c differs:)" "$left"
"$QUORUMFS" repair -o "state-dir=$scratch/state" --from b many/a.raw many/b.raw >/dev/null
exits "run again, it comes to its end" 0 verify many/a.raw many/b.raw
healthy "killed in the middle" many/a.raw many/b.raw

# All disks of a configuration.
cat >set.conf <<CONF
[disk good]
[replica good/a]
source=a/x.qcow2
[replica good/b]
source=b/x.qcow2
[disk bad]
[replica bad/one]
source=a/x.raw
[replica bad/two]
source=b/x.raw
[replica bad/three]
source=c/x.raw
CONF
rot b/x.raw 1024
exits "a configuration with two disks" 1 repair set.conf
contains "the lines name the disk and the replicas" "$out" "bad: 1024 512 differs: two wins: one,three"
contains "and what was done" "$out" "bad: overwritten: two 512 bytes; to undo it: "
exits "once" 0 repair set.conf
