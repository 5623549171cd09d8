#!/bin/bash
# Two disks of one configuration lie beside each other and have nothing to do with each
# other: contents, journals, status.
. "$(dirname "$0")/lib.sh"
pattern one.raw 2M 21
pattern two.raw 3M 22
for r in a b c; do
    cp one.raw one-$r.raw
    cp two.raw two-$r.raw
done
for d in one two; do
    printf '[disk %s]\nfile=%s.img\n' $d $d
    for r in a b c; do printf '[replica %s/%s]\nsource=%s-%s.raw\n' $d $r $d $r; done
done >two.conf
qmount mnt two.conf || { not_ok "mount"; exit 1; }
equal "the files" "$(ls -A mnt | tr '\n' ' ')" ".quorumfs one.img two.img "
equal "their sizes" "$(stat -c %s mnt/one.img mnt/two.img | tr '\n' ' ')" "2097152 3145728 "
check "the first reads" cmp mnt/one.img one.raw
check "the second reads" cmp mnt/two.img two.raw
poke two-b.raw 4096 rotten
check "rot in the second is outvoted" cmp mnt/two.img two.raw
equal "it stands in its journal" "$(jq -c '[.disk, .offset, .losers[0].replica]' mnt/.quorumfs/two/divergence.jsonl)" '["two",4096,"b"]'
equal "and not in the other" "$(cat mnt/.quorumfs/one/divergence.jsonl)" ""
equal "the status has both" "$(jq -c '[.disks[] | [.name, .file, .size]]' mnt/.quorumfs/status.json)" \
    '[["one","one.img",2097152],["two","two.img",3145728]]'
check "the map of the second shows it" grep -q '^0x00001000  0x00000200  /$' mnt/.quorumfs/two/divergence.map
dd if=/dev/zero of=mnt/one.img bs=1M count=1 conv=notrunc status=none
qumount mnt
check "a write to the first is in its replicas" cmp -n 1048576 one-c.raw /dev/zero
check "and in no other" cmp two-a.raw two.raw
