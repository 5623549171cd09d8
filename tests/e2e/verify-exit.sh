#!/bin/bash
# verify's exit codes and exact ranges, on every kind of image, and nothing changes on disk.
. "$(dirname "$0")/lib.sh"
verify() { "$QUORUMFS" verify "$@"; }
# everything: digests of all images and what the directories hold.
everything() { find . ! -name . ! -name .out ! -name .err -printf '%p %s %T@ %C@\n' -type f -exec sha256sum {} \; | sort; }

mkdir a b c
pattern content.raw 3M 1
truncate -s 5M content.raw
for r in a b c; do
    cp --sparse=always content.raw $r/x.raw
    qemu-img convert -q -O qcow2 content.raw $r/x.qcow2
    qemu-img convert -q -c -O qcow2 content.raw $r/zlib.qcow2
    qemu-img convert -q -c -O qcow2 -o compression_type=zstd content.raw $r/zstd.qcow2
    qemu-img convert -q -O qcow2 -o extended_l2=on content.raw $r/extl2.qcow2
    qemu-img convert -q -O qcow content.raw $r/one.qcow
    qemu-img create -q -f qcow2 -b x.qcow2 -F qcow2 $r/top.qcow2 6M
    qemu-io -f qcow2 -c 'write -q -P 6 100k 10k' -c 'write -q -P 7 5600k 20k' $r/top.qcow2
    qemu-img create -q -f qcow2 -b x.raw -F raw $r/overraw.qcow2
    qemu-io -f qcow2 -c 'write -q -P 8 1M 300k' -c 'write -q -z 2M 128k' $r/overraw.qcow2
done
before=$(everything)

for image in x.raw x.qcow2 zlib.qcow2 zstd.qcow2 extl2.qcow2 one.qcow top.qcow2 overraw.qcow2; do
    exits "$image: three equal replicas" 0 verify {a,b,c}/$image
    contains "$image: the summary says so" "$out" "all agree"
    equal "$image: and nothing else" "$(wc -l <<<"$out")" 1
done
exits "qcow2, raw and qcow replicas of one disk agree" 0 verify a/zlib.qcow2 b/x.raw c/one.qcow
exits "one replica alone is read" 0 verify a/zlib.qcow2
exits "two replicas" 0 verify a/x.raw b/x.qcow2
exits "with decoder=native" 0 verify -o decoder=native {a,b,c}/top.qcow2
exits "with decoder=both" 0 verify -o decoder=both {a,b,c}/x.qcow2
equal "verifying changed nothing" "$(everything)" "$before"

# 1: they differ, every sector has a majority.
poke b/x.raw 1048577 rotten
poke c/x.raw 2097152 rotten
poke a/x.raw 0 rotten
poke c/x.raw 4718592 rotten # where the others have a hole
exits "three replicas with different bad sectors" 1 verify {a,b,c}/x.raw
equal "each range is exact, with loser and winners" "$(head -n -1 <<<"$out")" \
    "0 512 differs: a wins: b,c
1048576 512 differs: b wins: a,c
2097152 512 differs: c wins: a,b
4718592 512 differs: c wins: a,b"
contains "the summary counts them" "$out" "differing: 4 ranges, 2048 bytes"
exits "as JSON" 1 verify --json {a,b,c}/x.raw
equal "with the same ranges" \
    "$(jq -c '.disks[0].ranges[] | [.offset, .length, .winners, .losers]' <<<"$out")" \
    '[0,512,["b","c"],["a"]]
[1048576,512,["a","c"],["b"]]
[2097152,512,["a","b"],["c"]]
[4718592,512,["a","b"],["c"]]'
equal "the exit code" "$(jq .exit <<<"$out")" 1
equal "and what each replica lost" "$(jq -c '[.disks[0].replicas[]["differing-bytes"]]' <<<"$out")" '[512,512,1024]'

# 5: no majority.
exits "two replicas that differ have no majority" 5 verify {a,b}/x.raw
contains "both versions are named" "$out" "0 512 differs: a|b wins: none"
exits "with a threshold of one the first wins" 1 verify --threshold 1 {a,b}/x.raw
contains "and the other loses" "$out" "0 512 differs: b wins: a"
exits "-o threshold= is the same" 1 verify -o threshold=1 {a,b}/x.raw
exits "unanimity as the threshold" 5 verify --threshold 3 {a,b,c}/x.raw

# 4: read errors. A compressed cluster that cannot be unpacked is unreadable, exactly.
yes "text that can be compressed" | head -c 2M >text.raw
for r in a b c; do qemu-img convert -q -c -O qcow2 text.raw $r/text.qcow2; done
# spoil FILE CLUSTER: overwrites the start of a compressed cluster's data.
spoil() {
    python3 - "$@" <<'PY'
import struct, sys
with open(sys.argv[1], 'r+b') as f:
    d = f.read()
    l1 = struct.unpack('>Q', d[40:48])[0]
    l2 = struct.unpack('>Q', d[l1:l1 + 8])[0] & 0x00fffffffffffe00
    entry = struct.unpack('>Q', d[l2 + 8 * int(sys.argv[2]):][:8])[0]
    assert entry >> 62 == 1, 'not compressed'
    f.seek(entry & ((1 << 54) - 1))
    f.write(b'\xff' * 64)
PY
}
spoil b/text.qcow2 5
spoil c/text.qcow2 31
for decoder in auto libqcow native; do
    exits "replicas that cannot be read in places (decoder=$decoder)" 4 \
        verify -o decoder=$decoder {a,b,c}/text.qcow2
    equal "the ranges are the clusters" "$(head -n -1 <<<"$out")" \
        "327680 65536 wins: a,c unreadable: b
2031616 65536 wins: a,b unreadable: c"
    contains "and are counted" "$out" "unreadable: 2 ranges, 131072 bytes"
done
exits "as JSON" 4 verify --json {a,b,c}/text.qcow2
equal "it names who failed" "$(jq -c '[.disks[0].ranges[].failed]' <<<"$out")" '[["b"],["c"]]'
exits "without enough others there is no majority" 5 verify {a,b}/text.qcow2
cp text.raw a/text.raw && poke a/text.raw 1000000 rotten
exits "an unreadable replica and one that differs" 5 verify a/text.raw b/text.qcow2 text.raw c/text.qcow2 --threshold 4
contains "each range for itself: failed" "$out" "327680 65536 wins: none unreadable: b"
contains "each range for itself: differing" "$out" "999936 512 differs: a|b,c,d wins: none"

# 2 and 64.
exits "an image that is not there" 2 verify a/x.raw b/x.raw nowhere.raw
contains "is named" "$err" "nowhere.raw: No such file or directory"
exits "sizes that differ" 2 verify a/x.raw b/x.raw a/top.qcow2
exits "one file twice" 2 verify a/x.raw a/x.raw b/x.raw
exits "no image" 64 verify
exits "an unknown option" 64 verify --mapfle x a/x.raw
contains "names the nearest" "$err" "--mapfile"
exits "an unknown -o option" 64 verify -o treshold=2 a/x.raw
exits "a threshold that is too large" 64 verify --threshold 4 {a,b,c}/x.raw
exits "--manifest and --check" 64 verify --manifest m --check m a/x.raw
exits "--manifest-range without --manifest" 64 verify --manifest-range 1M a/x.raw
exits "help" 0 verify --help

# Several disks: all are verified, the worst exit code counts.
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
exits "a configuration with two disks" 1 verify set.conf
contains "the lines name the disk and the replicas" "$out" "bad: 1048576 512 differs: two wins: one,three"
contains "the other disk has its summary" "$out" "good: 2 replicas"
exits "as JSON" 1 verify --json set.conf
equal "both are in it" "$(jq -c '[.disks[] | [.name, .exit]]' <<<"$out")" '[["good",0],["bad",1]]'
sed -i 's|source=b/x.qcow2|source=b/none.qcow2|' set.conf
exits "a disk that cannot be opened is the worst, and the other is still verified" 2 verify set.conf
contains "with its ranges" "$out" "bad: 2097152 512"
exits "JSON says which" 2 verify --json set.conf
contains "and why" "$(jq -r '.disks[0].error' <<<"$out")" "none.qcow2: No such file or directory"
