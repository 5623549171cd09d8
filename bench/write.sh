#!/bin/bash
# bench/write.sh: writes into one qcow2, by our driver (bench/qcow2-write.c) and by `qemu-img
# bench -w`: the same requests on copies of the same image, turn by turn, round after round.
#
# Rows are KINDS x SYNCS x DEPTHS.
#   KINDS   4k-new 4k-new-scattered 64k-new 1M-new 4k-over 4k-over-scattered
#           new: the clusters are allocated by it; scattered: each in another place
#   SYNCS   none: until the last write is done, as qemu-img bench counts. QEMU and we still
#           hold tables in memory then
#           end: the whole process, to which closing, and so a flush, belongs
#           64: the same, with a flush every 64 writes. QEMU waits for all that is under way first:
#           with --no-drain most of its flushes would never be made (4 of 128)
#   DEPTHS  1: one request at a time, ours on 1 thread; 64: QEMU's 64 at a time, ours on 2
# QEMU runs at the setting of QEMU_SETTINGS (cache/aio) that is best for the row, found by a
# run of each. Prints a table and one JSON object; ratio is qemu-img's median by ours: above
# 1, ours is faster. ROUNDS (default 5) may be set too. All is done in TMPDIR, in 1 GiB.
set -euo pipefail
: "${QCOW2_WRITE:=$(cd "$(dirname "$0")/.." && pwd)/build/bench/qcow2-write}"
: "${ROUNDS:=5}" "${SYNCS:=none end 64}" "${DEPTHS:=1 64}"
: "${KINDS:=4k-new 4k-new-scattered 64k-new 1M-new 4k-over 4k-over-scattered}"
: "${QEMU_SETTINGS:=writeback/threads writeback/io_uring none/native none/io_uring}"
work=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

# Sets what a kind means: requests, their size and step, size of the image, full or empty.
kind() {
    full=
    case $1 in
    4k-new) count=32768 size=4096 step=4096 disk=128M ;;
    4k-new-scattered) count=4096 size=4096 step=$((65536 * 2731 + 4096)) disk=256M ;;
    64k-new) count=4096 size=65536 step=65536 disk=256M ;;
    1M-new) count=512 size=1048576 step=1048576 disk=512M ;;
    4k-over) count=65536 size=4096 step=4096 disk=256M full=1 ;;
    4k-over-scattered) count=65536 size=4096 step=$((4096 * 40503)) disk=256M full=1 ;;
    esac
}
make_base() {
    rm -f base
    qemu-img create -q -f qcow2 base "$disk"
    [ -z "$full" ] || qemu-img bench -q -w -c $((count * size >> 20)) -s 1M -d 4 --pattern=1 \
        -f qcow2 base >/dev/null
}
now() { date +%s%N; }
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

# Run a row once on a fresh copy and set $took, in microseconds.
fresh() {
    rm -f x
    cp --sparse=auto base x
    sync x
}
timed() { # SYNC COMMAND...: the command prints its own time on its last line
    local sync=$1 start said
    shift
    fresh
    start=$(now)
    said=$("$@" | tail -n 1)
    took=$((($(now) - start) / 1000))
    [ "$sync" != none ] || took=$said
}
bench() {
    qemu-img bench -w -f qcow2 --pattern=90 "$@" x |
        awk '/^Run completed/ { printf "%d\n", $4 * 1000000 }'
}
theirs() { # SETTING SYNC DEPTH
    local flags=(-t "${1%/*}" -i "${1#*/}" -c "$count" -s "$size" -S "$step" -d "$3")
    [ "$2" != 64 ] || flags+=(--flush-interval=64)
    timed "$2" bench "${flags[@]}"
}
ours() { # SYNC DEPTH
    local every=0 threads=1
    [ "$1" != 64 ] || every=64
    [ "$2" = 1 ] || threads=2
    timed "$1" "$QCOW2_WRITE" x "$count" "$size" "$step" "$every" "$threads"
}
find_setting() { # SYNC DEPTH
    local setting best=
    for setting in $QEMU_SETTINGS; do
        theirs "$setting" "$1" "$2"
        if [ -z "$best" ] || [ "$took" -lt "$best" ]; then
            best=$took found=$setting
        fi
    done
}
row() { # KIND SYNC DEPTH
    kind "$1"
    [ "$2" != 64 ] || count=$((count / 8))
    local them=() us=() found t o ratio
    find_setting "$2" "$3"
    for ((round = 0; round < ROUNDS; round++)); do
        theirs "$found" "$2" "$3" && them+=("$took")
        ours "$2" "$3" && us+=("$took")
    done
    t=$(median "${them[@]}") o=$(median "${us[@]}")
    ratio=$(awk "BEGIN{printf \"%.2f\", $t / $o}")
    printf '%-18s %-5s %5s %9d ms %9d ms %8s  %s\n' "$1" "$2" "$3" $((t / 1000)) $((o / 1000)) \
        "$ratio" "$found"
    json+="${json:+, }\"$1/$2/$3\": {\"qemu-img-us\": $t, \"qemu-setting\": \"$found\","
    json+=" \"quorumfs-us\": $o, \"ratio\": $ratio}"
}

json=
printf '%-18s %-5s %5s %12s %12s %8s  %s\n' writes sync depth qemu-img quorumfs ratio 'QEMU best at'
for k in $KINDS; do
    kind "$k"
    make_base
    for s in $SYNCS; do
        for d in $DEPTHS; do
            row "$k" "$s" "$d"
        done
    done
done
printf '{"rounds": %d, "rows": {%s}}\n' "$ROUNDS" "$json"
