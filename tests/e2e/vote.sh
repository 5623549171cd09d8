#!/bin/bash
# R1, R2, R4 on a real mount: rot in any one replica is outvoted and named exactly; rot in
# different sectors of all three still reads; two equal rots of three win; without a
# majority the read is EIO; repeats are counted.
. "$(dirname "$0")/lib.sh"
pattern content.raw 4M 2
for r in a b c; do
    mkdir $r
    qemu-img convert -q -f raw -O qcow2 content.raw $r/base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $r/top.qcow2
    cp $r/base.qcow2 $r/base.good
done
expected=$(digest content.raw)
# Where the base image holds guest offset $1.
host_offset() {
    qemu-img map -U --output=json -f qcow2 a/base.qcow2 |
        jq "[.[] | select(.start <= $1 and $1 < .start + .length)][0] | .offset + $1 - .start"
}
journal() { cat state/*/divergence.jsonl state/*/*/divergence.jsonl 2>/dev/null; }
fresh() {
    local r
    rm -rf state
    for r in a b c; do cp $r/base.good $r/base.qcow2; done
}
read_sector() { dd if=mnt/disk.img bs=4k skip="$(($1 / 4096))" count=1 iflag=direct status=none 2>/dev/null; }
mount_all() { qmount mnt "$@" a/top.qcow2 b/top.qcow2 c/top.qcow2 || not_ok "mount"; }

for r in a b c; do
    fresh
    poke $r/base.qcow2 "$(host_offset 1050624)" rotten
    mount_all
    equal "rot in $r is outvoted" "$(digest mnt/disk.img iflag=direct)" "$expected"
    journal >records
    equal "one record" "$(wc -l <records)" 1
    equal "the record names exactly the sector in $r" \
        "$(jq -c '[.event, .disk, .op, .offset, .length, .losers[0].replica, (.losers | length), .count]' records)" \
        "[\"divergence\",\"disk\",\"read\",1050624,512,\"$r\",1,1]"
    equal "the digests are those of the bytes" \
        "$(jq -r '.winner.sha256, .losers[0].sha256' records | tr '\n' ' ')" \
        "$(dd if=content.raw bs=512 skip=2052 count=1 status=none | sha256sum | cut -d' ' -f1) $(dd if=$r/base.qcow2 bs=1 skip="$(host_offset 1050624)" count=512 status=none | sha256sum | cut -d' ' -f1) "
    equal "the winners are the others" "$(jq -c '.winner.replicas' records)" \
        "$(jq -nc "[\"a\",\"b\",\"c\"] - [\"$r\"]")"
    check "the time is RFC 3339 with nanoseconds" \
        grep -qE '"time": ?"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{9}Z"' records
    for i in 1 2 3 4; do read_sector 1050624 >/dev/null; done
    equal "the same 4 times more is one record with a count" \
        "$(journal | jq -c '[.event, .offset, .length, .count]' | sort -u | tail -n 1)" \
        '["divergence",1050624,512,5]'
    equal "the same journal is in the mount" \
        "$(cat mnt/.quorumfs/disk/divergence.jsonl)" "$(journal)"
    equal "and comes out of events" "$("$QUORUMFS" events mnt)" "$(journal)"
    exits "ddrescuelog takes the divergence map" 0 ddrescuelog -t mnt/.quorumfs/disk/divergence.map
    equal "status counts the bytes" \
        "$("$QUORUMFS" status mnt --json | jq ".disks[0].replicas[] | select(.name == \"$r\") | .\"divergent-bytes\" > 0")" true
    qumount mnt
done

fresh
poke a/base.qcow2 "$(host_offset 65536)" rot-a
poke b/base.qcow2 "$(host_offset 66048)" rot-b
poke c/base.qcow2 "$(host_offset 67072)" rot-c
mount_all
equal "three replicas with three bad sectors in one request still serve it (R2)" \
    "$(digest mnt/disk.img iflag=direct)" "$expected"
equal "three records" "$(journal | jq -c '[.offset, .length, .losers[0].replica]' | sort | tr '\n' ' ')" \
    '[65536,512,"a"] [66048,512,"b"] [67072,512,"c"] '
qumount mnt

fresh
poke a/base.qcow2 "$(host_offset 65536)" one
poke b/base.qcow2 "$(host_offset 65536)" two
mount_all
check "without a majority the read fails" sh -c '! dd if=mnt/disk.img bs=4k skip=16 count=1 iflag=direct of=/dev/null status=none 2>dd.err'
contains "with EIO" "$(cat dd.err)" "Input/output error"
equal "its neighbour reads" "$(read_sector 69632 | sha256sum)" \
    "$(dd if=content.raw bs=4k skip=17 count=1 status=none | sha256sum)"
equal "the journal has the quorum failure, exactly" \
    "$(journal | jq -c 'select(.event == "quorum-failure") | [.offset, .length, (.losers | length), .winner]')" \
    '[65536,512,3,null]'
qumount mnt
mount_all --threshold 1
equal "a threshold of 1 serves the replica listed first of a tie (R2)" \
    "$(read_sector 65536 | head -c 3)" one
qumount mnt

fresh
poke a/base.qcow2 "$(host_offset 65536)" same
poke b/base.qcow2 "$(host_offset 65536)" same
mount_all
equal "two equal rots win" "$(read_sector 65536 | head -c 4)" same
equal "and the good one is the loser" "$(journal | jq -c '.losers[].replica')" '"c"'
qumount mnt
mount_all --threshold 3
check "not if all three must agree" sh -c '! dd if=mnt/disk.img bs=4k skip=16 count=1 iflag=direct of=/dev/null status=none 2>/dev/null'
qumount mnt
