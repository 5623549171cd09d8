#!/bin/bash
# ftruncate resizes every replica; O_TRUNC leaves the disk alone, as a block device does; a
# write cannot make the disk grow.
. "$(dirname "$0")/lib.sh"
pattern a.raw 4M 7
cp a.raw b.raw
cp a.raw c.raw
content=$(digest a.raw)
sizes() { stat -c %s a.raw b.raw c.raw mnt/disk.img | sort -u | tr '\n' ' '; }
for options in "" "-o cache=none" "-o cache=writeback"; do
    # shellcheck disable=SC2086
    qmount mnt $options a.raw b.raw c.raw || { not_ok "mount $options"; continue; }
    exec 5<mnt/disk.img
    : >mnt/disk.img
    equal "$options: O_TRUNC leaves the size" "$(sizes)" "$((4 << 20)) "
    equal "$options: and the content" "$(digest mnt/disk.img)" "$content"
    check "$options: grow" truncate -s 8M mnt/disk.img
    equal "$options: all grew" "$(sizes)" "$((8 << 20)) "
    check "$options: the new half is zero, for an open descriptor too" \
        sh -c 'tail -c 4M <&5 | cmp - /dev/zero -n 4194304'
    exec 5<&-
    echo data | dd of=mnt/disk.img bs=1M seek=7 conv=notrunc status=none
    check "$options: shrink" truncate -s 4M mnt/disk.img
    equal "$options: all shrank" "$(sizes)" "$((4 << 20)) "
    equal "$options: the content is as before" "$(digest mnt/disk.img)" "$content"
    check "$options: to an odd size" truncate -s 4194401 mnt/disk.img
    equal "$options: all have it" "$(sizes)" "4194401 "
    equal "$options: read up to it" "$(wc -c <mnt/disk.img)" 4194401
    check "$options: and back" truncate -s 4M mnt/disk.img
    pattern long.raw 5M 7
    exits "$options: a write beyond the end fails" 1 \
        dd if=long.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
    [ "$options" = "-o cache=writeback" ] || contains "$options: as no space" "$err" "No space left"
    qumount mnt || not_ok "$options: unmount"
    equal "$options: no replica grew" "$(stat -c %s a.raw b.raw c.raw | sort -u)" $((4 << 20))
    check "$options: a and b are equal" cmp a.raw b.raw
    check "$options: a and c are equal" cmp a.raw c.raw
    pattern a.raw 4M 7 && cp a.raw b.raw && cp a.raw c.raw
done
