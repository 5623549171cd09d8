#!/bin/bash
# What an offline repair overwrote: saved before, put back byte by byte, and only where nobody
# has written since.
. "$(dirname "$0")/lib.sh"
repair() { "$QUORUMFS" repair -o "state-dir=$scratch/state" "$@"; }
verify() { "$QUORUMFS" verify "$@"; }
undo_id() { grep -o -e '--undo [^ ]*' <<<"$out" | cut -d' ' -f2; }
everything() { find . ! -name . ! -name .out ! -name .err -printf '%p %s %T@ %C@\n' -type f -exec sha256sum {} \; | sort; }
journal() { cat state/*/*/divergence.jsonl 2>/dev/null; }
rot() { head -c "${3:-512}" /dev/urandom | dd of="$1" bs=512 seek=$(($2 / 512)) conv=notrunc status=none; }
# same TEXT FILE FILE: the guest sees the same bytes.
same() { check "$1" qemu-img compare -q "$2" "$3"; }

mkdir a b c was
pattern content.raw 3M 1
truncate -s 5M content.raw
for r in a b c; do
    cp --sparse=always content.raw $r/x.raw
    qemu-img convert -q -O qcow2 content.raw $r/base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $r/x.qcow2
done

for kind in raw qcow2; do
    rm -rf state
    if [ $kind = raw ]; then
        rot b/x.raw 1048576 1536 && rot c/x.raw 0 && rot c/x.raw 4718592
    else
        qemu-io -f qcow2 -c 'write -q -P 1 1M 1536' b/x.qcow2
        qemu-io -f qcow2 -c 'write -q -P 2 0 512' -c 'write -q -P 3 4718592 512' c/x.qcow2
    fi
    for r in b c; do qemu-img convert -O raw $r/x.$kind was/$r.$kind.raw; done
    exits "$kind: repaired" 1 repair {a,b,c}/x.$kind
    id=$(undo_id)
    equal "$kind: saved for nobody else's eyes" \
        "$(find state/*/undo -printf '%m %y\n' | sort -u | xargs)" "600 f 700 d"
    exits "$kind: listed" 0 repair --undo list {a,b,c}/x.$kind
    equal "$kind: with what it overwrote" "$out" "$id disk: b 1536 bytes, c 1024 bytes"
    before=$(everything)
    exits "$kind: a dry run" 0 repair --undo "$id" --dry-run {a,b,c}/x.$kind
    equal "$kind: says what it would do" "$out" "disk: would be put back: 2560 bytes"
    equal "$kind: and does nothing" "$(everything)" "$before"
    exits "$kind: undone" 0 repair --undo "$id" {a,b,c}/x.$kind
    equal "$kind: which is said" "$out" "disk: put back: b 1536 bytes, c 1024 bytes"
    for r in b c; do same "$kind: $r is as it was" was/$r.$kind.raw $r/x.$kind; done
    equal "$kind: it is in the journal" \
        "$(journal | jq -r 'select(.op == "undo") | "\(.event) \(.offset)+\(.length) \(.losers[0].replica) \(.action)"' | sort)" \
        "repair 0+512 c put back
repair 1048576+1536 b put back
repair 4718592+512 c put back"
    exits "$kind: once more there is nothing to do" 0 repair --undo "$id" {a,b,c}/x.$kind
    contains "$kind: which is said, too" "$out" "nothing to put back"
    exits "$kind: they differ as before" 1 verify {a,b,c}/x.$kind
    qmount mnt -o cache=none {a,b,c}/x.$kind || not_ok "mount"
    equal "$kind: a mount trusts all of them" "$("$QUORUMFS" status --json mnt | jq -r '.disks[0].state')" healthy
    check "$kind: and serves what the majority holds" cmp -s content.raw mnt/disk.img
    qumount mnt
    exits "$kind: and it can be repaired again" 1 repair {c,b,a}/x.$kind
    again=$(undo_id)
    check "$kind: under another name" [ "$again" != "$id" ]
    exits "$kind: undone with the replicas in another order" 0 repair --undo "$again" {a,b,c}/x.$kind
    for r in b c; do same "$kind: $r is as it was again" was/$r.$kind.raw $r/x.$kind; done
done
exits "qemu-img finds nothing wrong" 0 qemu-img check -q b/x.qcow2

# Only where nobody has written since.
exits "repaired" 1 repair {a,b,c}/x.raw
id=$(undo_id)
rot c/x.raw 4718592
touch b/x.raw
before=$(everything)
exits "changed since: refused" 2 repair --undo "$id" {a,b,c}/x.raw
contains "where, and in which replica" "$err" "replica 'c' holds something else at 4718592+512"
contains "and that nothing was done" "$err" "(nothing was put back)"
equal "as is the case" "$(everything)" "$before"
cp content.raw c/x.raw

# What was stale by the record is stale again, so nobody is asked for it.
rm -rf state
for r in a b c; do cp content.raw $r/x.raw; done
qmount mnt {a,b,c}/x.raw && qumount mnt
rot c/x.raw 8192
cp c/x.raw was/c.raw
exits "a replica that was edited" 1 repair {a,b,c}/x.raw
id=$(undo_id)
exits "is put back" 0 repair --undo "$id" {a,b,c}/x.raw
check "as it was" cmp -s c/x.raw was/c.raw
exits "and is stale, where it was" 1 repair --dry-run {a,b,c}/x.raw
contains "on record" "$out" "stale by the record: c"
exits "--from: it was right after all" 1 repair --from c {a,b,c}/x.raw
check "so all hold what it held" cmp -s a/x.raw was/c.raw

# Files that are not what they should be.
exits "no such repair" 2 repair --undo 20200101T000000-abcd {a,b,c}/x.raw
contains "hints at the list" "$err" "--undo list"
exits "no path" 2 repair --undo ../../x {a,b,c}/x.raw
rot b/x.raw 0 4096 && rot b/x.raw 65536
exits "repaired" 1 repair {a,b,c}/x.raw
id=$(undo_id)
file=$(echo state/*/undo/"$id"/disk.undo)
cp "$file" good.undo
sums=$(sha256sum ./*/x.raw)
poke "$file" 1600 X
exits "a damaged file" 2 repair --undo "$id" {a,b,c}/x.raw
contains "is named" "$err" "disk.undo: is damaged at 512, nothing is put back"
head -c 300 good.undo >"$file"
exits "half a header" 2 repair --undo "$id" {a,b,c}/x.raw
contains "is no undo file" "$err" "is no undo file"
cp good.undo "$file"
mkdir "state/$(basename state/disk-*)/undo/x" && cp good.undo "state/$(basename state/disk-*)/undo/x/disk.undo"
exits "a copy is as good" 0 repair --undo x --dry-run {a,b,c}/x.raw
mkdir -p "$scratch/other" && rot was/c.raw 8192
exits "another set's state" 1 "$QUORUMFS" repair -o "state-dir=$scratch/other" {a,b}/x.raw was/c.raw
foreign=$(echo other/disk-*)/undo/foreign
mkdir -p "$foreign" && cp good.undo "$foreign/disk.undo"
exits "a file of other images" 2 "$QUORUMFS" repair -o "state-dir=$scratch/other" --undo foreign {a,b}/x.raw was/c.raw
contains "is refused" "$err" "is of another disk, which has a replica 'c'"
truncate -s 6M a/x.raw b/x.raw c/x.raw
exits "another size" 2 repair --undo "$id" {a,b,c}/x.raw
contains "is refused, too" "$err" "is of a disk of 5242880 bytes"
truncate -s 5M a/x.raw b/x.raw c/x.raw
head -c -700 good.undo >"$file"
exits "torn at its end, it has the rest" 0 repair --undo "$id" {a,b,c}/x.raw
equal "all that was whole" "$out" "disk: put back: b 4096 bytes"

# No room for what is overwritten: nothing is.
rm -rf state
for r in a b c; do cp content.raw $r/x.raw; done
dd if=/dev/urandom of=b/x.raw bs=1M count=2 conv=notrunc status=none
sums=$(sha256sum ./*/x.raw; stat -c %Y ./*/x.raw)
exits "a limit on files" 2 bash -c "ulimit -f 1024; exec '$QUORUMFS' repair -o 'state-dir=$scratch/state' a/x.raw b/x.raw c/x.raw"
contains "is met before anything is changed" "$err" "(nothing was changed)"
equal "as is the case" "$(sha256sum ./*/x.raw; stat -c %Y ./*/x.raw)" "$sums"
equal "and nothing is left of it" "$(find state -name '*.undo')" ""
if mkdir -p small && mount -t tmpfs -o size=1M none small 2>/dev/null; then
    exits "a full file system" 2 "$QUORUMFS" repair -o "state-dir=$scratch/small" {a,b,c}/x.raw
    contains "is met likewise" "$err" "No space left on device (nothing was changed)"
    equal "with the images as they were" "$(sha256sum ./*/x.raw; stat -c %Y ./*/x.raw)" "$sums"
    umount small
else
    skip "a full file system under the state directory" "no tmpfs may be mounted here"
fi

# Killed in the middle, and undone.
python3 - <<'PY'
data = bytearray(open('a/x.raw', 'rb').read())
for s in range(5000):
    data[s * 2 * 512] ^= 1
open('b/x.raw', 'wb').write(data)
PY
cp b/x.raw was/b.raw
rm -rf state
start "$QUORUMFS" repair -o "state-dir=$scratch/state" {a,b,c}/x.raw >/dev/null
wait_for sh -c '[ "$(stat -c %s state/*/disk/divergence.jsonl | tail -n 1)" -gt 9000 ]'
kill -9 "$started" 2>/dev/null
wait "$started" 2>/dev/null
id=$(basename state/*/undo/*)
echo "# $(cmp -l b/x.raw was/b.raw | wc -l) of 5000 were repaired"
exits "what a killed repair overwrote" 0 repair --undo "$id" {a,b,c}/x.raw
check "is put back" cmp -s b/x.raw was/b.raw

# Two disks under one name.
rm -rf state
cat >set.conf <<CONF
[disk one]
[replica one/a]
source=a/x.raw
[replica one/b]
source=b/x.raw
[replica one/c]
source=c/x.raw
[disk two]
[replica two/a]
source=a/x.qcow2
[replica two/b]
source=b/x.qcow2
[replica two/c]
source=c/x.qcow2
CONF
rm b/x.raw && cp a/x.raw b/x.raw && rot b/x.raw 0
cp b/x.raw was/b.raw
exits "two disks, repaired" 1 repair set.conf
id=$(undo_id | sort -u)
equal "under one name" "$(wc -l <<<"$id")" 1
rot c/x.raw 0
qemu-img convert -O raw c/x.qcow2 was/c.raw
exits "two disks, undone" 0 repair --undo "$id" set.conf
contains "the one" "$out" "one: put back: b 512 bytes"
contains "the other" "$out" "two: put back: b 1536 bytes, c 1024 bytes"
check "all is as it was" cmp -s b/x.raw was/b.raw
