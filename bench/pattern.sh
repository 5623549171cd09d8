#!/bin/bash
# bench/pattern.sh: read-pattern=rotate against read-pattern=quorum, three replicas, both
# mounted read-only side by side and read by fio turn by turn.
#
# rate: each replica on an NBD server that serves RATE bits a second and no more, as a disk or
#   a line does. Who asks two of three replicas can have half as much again.
# slow: the third server answers each read DELAY ms late.
# cached: raw files in the page cache: what is compared, and nothing waited for.
# Prints a table and one JSON object; medians of bytes a second, and the median of the rounds'
# ratios; above 1 rotate is faster. ROUNDS (default 5), SECONDS_EACH (default 2), SIZE in MiB
# (default 256), RATE (default 400M), DELAY (default 5) and KINDS may be set.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${QUORUMFS:=$root/quorumfs}"
: "${ROUNDS:=5}" "${SECONDS_EACH:=2}" "${SIZE:=256}" "${RATE:=400M}" "${DELAY:=5}"
: "${KINDS:=rate slow cached}"
work=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-bench.XXXXXX")
servers=()
unmount() {
    local m
    for m in quorum rotate; do
        if mountpoint -q "$work/$m"; then "$QUORUMFS" umount --wait "$work/$m" >/dev/null; fi
    done
    [ ${#servers[@]} = 0 ] || kill "${servers[@]}" 2>/dev/null || true
    servers=()
}
trap 'unmount; rm -rf "$work"' EXIT
cd "$work"
mkdir quorum rotate
head -c "${SIZE}M" /dev/urandom >a.raw
cp a.raw b.raw
cp a.raw c.raw
sync

median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
ratio() { awk "BEGIN{printf \"%.3f\", $1 / $2}"; }
serve() { # NAME [NBDKIT ARGUMENTS]
    local name=$1 i
    shift
    rm -f "$name.sock"
    nbdkit -f -r --exit-with-parent -U "$name.sock" "$@" &
    servers+=("$!")
    for ((i = 0; i < 100; i++)); do [ -S "$name.sock" ] && break || sleep 0.05; done
}
mount_both() { # SOURCE...
    local m
    for m in quorum rotate; do
        "$QUORUMFS" mount -o "ro,cache=none,read-pattern=$m,state-dir=$work/state-$m" "$@" "$m"
    done
}
sources=("nbd+unix:///?socket=$work/a.sock" "nbd+unix:///?socket=$work/b.sock" "nbd+unix:///?socket=$work/c.sock")
set_up_rate() {
    local name
    for name in a b c; do serve "$name" --filter=rate file "$name.raw" "rate=$RATE" burstiness=0.1; done
    mount_both "${sources[@]}"
}
set_up_slow() {
    serve a file a.raw
    serve b file b.raw
    serve c --filter=delay file c.raw "rdelay=${DELAY}ms"
    mount_both "${sources[@]}"
}
set_up_cached() {
    cat a.raw b.raw c.raw >/dev/null
    mount_both a.raw b.raw c.raw
}
# Sets $speed, in bytes a second.
read_some() { # PATTERN RW BS DEPTH
    speed=$(fio --name=r --filename="$1/disk.img" --rw="$2" --bs="$3" --iodepth="$4" --direct=1 \
        --ioengine=libaio --time_based --runtime="$SECONDS_EACH" --ramp_time=0.5 --randrepeat=0 \
        --output-format=json | jq '.jobs[0].read.bw_bytes')
}

rows=
printf '%-8s %-10s %-5s %5s %12s %12s %8s\n' replicas reads size depth quorum rotate ratio
for kind in $KINDS; do
    case $kind in
    rate) shapes='read:1M:4 read:128k:1 randread:64k:8' ;;
    slow) shapes='randread:4k:1 read:128k:1' ;;
    *) shapes='randread:4k:1 randread:4k:16 read:1M:1 randread:1M:16' ;;
    esac
    "set_up_$kind"
    for shape in $shapes; do
        IFS=: read -r rw bs depth <<<"$shape"
        quorum=() rotate=() each=()
        for ((round = 0; round < ROUNDS; round++)); do
            order=(quorum rotate)
            [ $((round % 2)) = 0 ] || order=(rotate quorum)
            for m in "${order[@]}"; do
                read_some "$m" "$rw" "$bs" "$depth"
                if [ "$m" = quorum ]; then quorum+=("$speed"); else rotate+=("$speed"); fi
            done
            each+=("$(ratio "${rotate[round]}" "${quorum[round]}")")
        done
        q=$(median "${quorum[@]}") r=$(median "${rotate[@]}") both=$(median "${each[@]}")
        printf '%-8s %-10s %-5s %5s %7.1f MB/s %7.1f MB/s %8s\n' "$kind" "$rw" "$bs" "$depth" \
            "$(ratio "$q" 1000000)" "$(ratio "$r" 1000000)" "$both"
        rows+="${rows:+, }\"$kind/$rw/$bs/$depth\": {\"quorum-bps\": $q, \"rotate-bps\": $r, \"ratio\": $both}"
    done
    unmount
done
printf '{"rounds": %d, "size-mib": %d, "rate": "%s", "delay-ms": %d, "read-pattern": {%s}}\n' \
    "$ROUNDS" "$SIZE" "$RATE" "$DELAY" "$rows"
