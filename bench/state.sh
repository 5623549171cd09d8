#!/bin/bash
# bench/state.sh: what it costs that a disk remembers what it is doing (W5), and how fast a
# replica is filled (W7).
#
# intent: the same random writes of 4 KiB into three replicas (bench/disk-write.c, no FUSE,
#   which would only hide some of it) without and with a state directory, turn by turn. The
#   images are full. SYNCS: none, or a flush every 64 writes.
# resync: one of three replicas is replaced by an empty one; from the mount until it is in
#   sync, all of it copied, read back, compared and flushed; against cp of the same file
#   followed by sync, turn by turn. Without guest load.
# Prints tables and one JSON object: medians of the times, and the median of the rounds' ratios,
# because the machine's speed drifts. intent: with by without, above 1 is the cost. resync: cp
# by ours, above 1 we are faster. ROUNDS (default 7), WRITES (default 40000, with flushes a
# quarter), SIZE of the disk in MiB (default 256), KINDS and SYNCS may be set. All is done in
# TMPDIR, in 4 x SIZE.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${QUORUMFS:=$root/quorumfs}" "${DISK_WRITE:=$root/build/bench/disk-write}"
: "${ROUNDS:=7}" "${WRITES:=40000}" "${SIZE:=256}" "${KINDS:=raw qcow2}" "${SYNCS:=none 64}"
work=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-bench.XXXXXX")
cleanup() {
    if mountpoint -q "$work/mnt"; then "$QUORUMFS" umount --wait "$work/mnt" >/dev/null; fi
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
mkdir mnt

now() { date +%s%N; }
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
ratio() { awk "BEGIN{printf \"%.3f\", $1 / $2}"; }
# Sets $a, $b and $both: the medians of the arrays $one and $other, and of one's by other's.
sum_up() {
    local i each=()
    for i in "${!one[@]}"; do each+=("$(ratio "${one[i]}" "${other[i]}")"); done
    a=$(median "${one[@]}") b=$(median "${other[@]}") both=$(median "${each[@]}")
}

# images KIND: a, b and c, full of the same random data.
images() {
    rm -rf state x a.* b.* c.*
    head -c "${SIZE}M" /dev/urandom >x
    qemu-img convert -q -f raw -O "$1" x "a.$1"
    rm x
    cp "a.$1" "b.$1"
    cp "a.$1" "c.$1"
    sync
}
# Run once and set $took, in microseconds.
writes() { # STATE KIND SYNC ROUND
    local every=0
    [ "$3" = none ] || every=$3
    rm -rf state
    mkdir state
    sync "a.$2" "b.$2" "c.$2"
    took=$("$DISK_WRITE" "$1" "$count" $((SIZE << 20)) "$every" 2 "$4" "a.$2" "b.$2" "c.$2")
}
copy() { # KIND
    local start
    rm -f copy
    sync
    start=$(now)
    cp "a.$1" copy
    sync copy
    took=$((($(now) - start) / 1000))
    rm copy
}
resync() { # KIND
    local start
    "$QUORUMFS" mount -o state-dir="$work/state" "a.$1" "b.$1" "c.$1" mnt
    "$QUORUMFS" umount --wait mnt >/dev/null
    rm "c.$1"
    qemu-img create -q -f "$1" "c.$1" "${SIZE}M"
    sync
    start=$(now)
    "$QUORUMFS" mount -o state-dir="$work/state" "a.$1" "b.$1" "c.$1" mnt
    until grep -q '"healthy"' mnt/.quorumfs/status.json; do sleep 0.01; done
    took=$((($(now) - start) / 1000))
    "$QUORUMFS" umount --wait mnt >/dev/null
}

intent=
printf '%-8s %-6s %12s %12s %8s\n' intent sync with without ratio
for kind in $KINDS; do
    images "$kind"
    for sync in $SYNCS; do
        count=$WRITES
        [ "$sync" = none ] || count=$((WRITES / 4))
        writes - "$kind" "$sync" 0 # everything in the page cache
        one=() other=()
        for ((round = 1; round <= ROUNDS; round++)); do
            order=(state -)
            [ $((round % 2)) = 0 ] || order=(- state)
            for state in "${order[@]}"; do
                writes "$state" "$kind" "$sync" "$round"
                if [ "$state" = - ]; then other+=("$took"); else one+=("$took"); fi
            done
        done
        sum_up
        printf '%-8s %-6s %9d ms %9d ms %8s\n' "$kind" "$sync" $((a / 1000)) $((b / 1000)) "$both"
        intent+="${intent:+, }\"$kind/$sync\": {\"with-us\": $a, \"without-us\": $b, \"ratio\": $both}"
    done
done
filled=
printf '%-8s %-6s %12s %12s %8s\n' resync '' cp quorumfs ratio
for kind in $KINDS; do
    images "$kind"
    one=() other=()
    for ((round = 0; round < ROUNDS; round++)); do
        copy "$kind" && one+=("$took")
        resync "$kind" && other+=("$took")
    done
    sum_up
    printf '%-8s %-6s %9d ms %9d ms %8s\n' "$kind" '' $((a / 1000)) $((b / 1000)) "$both"
    filled+="${filled:+, }\"$kind\": {\"cp-us\": $a, \"quorumfs-us\": $b, \"ratio\": $both}"
done
printf '{"rounds": %d, "size-mib": %d, "writes": %d, "intent": {%s}, "resync": {%s}}\n' \
    "$ROUNDS" "$SIZE" "$WRITES" "$intent" "$filled"
