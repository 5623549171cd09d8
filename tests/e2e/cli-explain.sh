#!/bin/bash
# explain: offline and through the control socket the same object, with the digests, layers
# and host offsets of what is really in the files.
. "$(dirname "$0")/lib.sh"
pattern content.raw 4M 3
for r in a b c; do
    mkdir $r
    qemu-img convert -q -O qcow2 content.raw $r/base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $r/top.qcow2
    qemu-io -f qcow2 -c 'write -q -P 7 2M 64k' $r/top.qcow2
done
images=(a/top.qcow2 b/top.qcow2 c/top.qcow2)
host_offset() { # FILE GUEST_OFFSET
    qemu-img map -U --output=json -f qcow2 "$1" |
        jq "[.[] | select(.depth == 0 and .data and .start <= $2 and $2 < .start + .length)][0] | .offset + $2 - .start"
}
at=1049088 # a sector in the second MiB, not at a cluster's start
host=$(host_offset b/base.qcow2 $at)
poke b/base.qcow2 "$host" rotten
explain() { "$QUORUMFS" explain "$@"; }

explain --json "${images[@]}" $((at - 512))+2K >offline.json
equal "the range and its runs" "$(jq -c '[.disk, .offset, .length, [.runs[] | [.offset, .length, .differs, .quorum]]]' offline.json)" \
    "[\"disk\",$((at - 512)),2048,[[$((at - 512)),512,false,true],[$at,512,true,true],[$((at + 512)),1024,false,true]]]"
equal "who wins" "$(jq -c '[.runs[1].replicas[] | [.replica, .wins]]' offline.json)" \
    '[["a",true],["b",false],["c",true]]'
equal "the digests are those of the bytes" "$(jq -r '.runs[1].replicas[0, 1].sha256' offline.json | tr '\n' ' ')" \
    "$(dd if=content.raw bs=512 skip=$((at / 512)) count=1 status=none | sha256sum | cut -d' ' -f1) $(dd if=b/base.qcow2 iflag=skip_bytes,count_bytes skip="$host" count=512 status=none | sha256sum | cut -d' ' -f1) "
equal "the layer, the file, the host offset" \
    "$(jq -c '.runs[1].replicas[1] | [.kind, .layer, .file, ."host-offset"]' offline.json)" \
    "[\"data\",1,\"$(realpath b/base.qcow2)\",$host]"
equal "a cluster of the top layer" \
    "$(explain --json "${images[@]}" 2M | jq -c '.runs[0].replicas[0] | [.layer, .file, ."host-offset"]')" \
    "[0,\"$(realpath a/top.qcow2)\",$(host_offset a/top.qcow2 2097152)]"
explain "${images[@]}" $at >table
contains "people are told who differs" "$(head -n 1 table)" "$at+512  differs: b"
contains "and where" "$(grep -E '^ +b +loses' table)" "b/base.qcow2 @ $host (layer 1, data)"
equal "an offset alone is its sector" "$(explain --json "${images[@]}" $((at + 7)) | jq -c '[.offset, .length]')" "[$at,512]"
equal "sizes and hexadecimal" "$(explain --json "${images[@]}" 0x100000+1K | jq -c '[.offset, .length]')" "[1048576,1024]"
equal "the end of the disk cuts the range" "$(explain --json "${images[@]}" 4095K+1M | jq -c '[.offset, .length]')" "[4193280,1024]"
contains "a threshold that nobody reaches" "$(explain --threshold 3 "${images[@]}" $at)" "no majority"
exits "a threshold above the number of replicas" 1 "$QUORUMFS" explain --threshold 4 "${images[@]}" 0

cat >vm.conf <<CONF
[disk one]
[replica one/x]
source=a/top.qcow2
[replica one/y]
source=b/top.qcow2
[disk two]
[replica two/z]
source=c/top.qcow2
CONF
contains "a disk of a configuration" "$(explain vm.conf one $at)" "no majority"
contains "another" "$(explain vm.conf two $at)" "all agree"
name=$'two\nlines\033[31m.raw'
truncate -s 1M "$name"
qemu-img create -q -f qcow2 -b "$name" -F raw odd.qcow2
equal "a file's name stays on its line" "$(explain odd.qcow2 0 | sed -n '2s/.*  //p')" \
    "$scratch/two?lines?[31m.raw (layer 1, zero)"
exits "several disks need a name" 1 "$QUORUMFS" explain vm.conf $at
exits "an unknown one" 1 "$QUORUMFS" explain vm.conf three $at

check "mount" qmount mnt "${images[@]}"
explain --json mnt disk $((at - 512))+2K >live.json
equal "live is the same object" "$(jq -S . live.json)" "$(jq -S . offline.json)"
equal "and the same table" "$(explain mnt disk $at)" "$(cat table)"
equal "nothing is counted" "$("$QUORUMFS" status --json mnt | jq -c '[.disks[].replicas[]."divergent-bytes"]')" '[0,0,0]'
equal "nothing is journalled" "$("$QUORUMFS" events mnt)" ""
exits "an unknown disk" 2 "$QUORUMFS" explain mnt disc $at
contains "names the nearest" "$err" "(did you mean 'disk'?)"
exits "an offset past the end" 2 "$QUORUMFS" explain mnt disk 4M
equal "is one line" "$(wc -l <.err)" 1
qumount mnt

pattern p.raw 1M 1
cp p.raw q.raw
qmount mnt -o ro p.raw q.raw || { not_ok "mount"; exit 1; }
exits "raw images that are in use are read, too: nothing is opened for writing" 0 "$QUORUMFS" explain -o rw p.raw q.raw 0
qumount mnt
