#!/bin/bash
# bench/degraded.sh: what a guest notices of a replica that hangs (R5): three replicas, one of
# which stops answering, under random reads and writes of 4 KiB, direct, DEPTH at a time.
#
# nbd: replicas on three NBD servers, the third is sent SIGSTOP.
# file: raw files; the third lies on a FUSE mount whose server is sent SIGSTOP.
# Columns: the longest read and the longest write
#   before: nothing is wrong;
#   first: while the replica stops, so this is about replica-timeout (TIMEOUT ms);
#   after: it is out, and nobody waits for it any more;
# then requests a second before and after, and how long it takes from SIGCONT until the replica
# is in sync again.
# Prints a table and one JSON object; medians of ROUNDS (default 5), but of `after` the worst of
# all rounds is printed too. SECONDS_EACH (default 3), SIZE in MiB (default 64), TIMEOUT
# (default 1000), DEPTH (default 4) and KINDS may be set.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${QUORUMFS:=$root/quorumfs}"
: "${ROUNDS:=5}" "${SECONDS_EACH:=3}" "${SIZE:=64}" "${TIMEOUT:=1000}" "${DEPTH:=4}" "${KINDS:=nbd file}"
work=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-bench.XXXXXX")
servers=() stopped=
unmount() {
    local m
    [ -z "$stopped" ] || kill -CONT "$stopped" 2>/dev/null || true
    stopped=
    for m in mnt inner; do
        if mountpoint -q "$work/$m"; then "$QUORUMFS" umount --wait "$work/$m" >/dev/null; fi
    done
    [ ${#servers[@]} = 0 ] || kill "${servers[@]}" 2>/dev/null || true
    servers=()
}
trap 'unmount; rm -rf "$work"' EXIT
cd "$work"
mkdir mnt inner

now() { date +%s%N; }
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
most() { printf '%s\n' "$@" | sort -n | tail -1; }
ms() { awk "BEGIN{printf \"%.1f\", $1 / 1000000}"; }
state_of() { "$QUORUMFS" status --json mnt | jq -r ".disks[0].replicas[2].state"; }
await_state() { # STATE: at most 60 s
    local i
    for ((i = 0; i < 3000; i++)); do
        [ "$(state_of)" != "$1" ] || return 0
        sleep 0.02
    done
    echo "the replica is $(state_of) and not $1" >&2
    return 1
}
# Each sets `victim`, the pid of the third replica's server, and mounts.
mount_disk() { "$QUORUMFS" mount -o "cache=none,replica-timeout=${TIMEOUT}ms,state-dir=$work/state" "$@" mnt; }
set_up_nbd() {
    local name i sources=()
    for name in a b c; do
        rm -f "$name.sock"
        nbdkit -f --exit-with-parent -U "$name.sock" file "$name.raw" &
        victim=$!
        servers+=("$victim")
        for ((i = 0; i < 100; i++)); do [ -S "$name.sock" ] && break || sleep 0.05; done
        sources+=("nbd+unix:///?socket=$work/$name.sock")
    done
    mount_disk "${sources[@]}"
}
set_up_file() {
    "$QUORUMFS" mount -o "state-dir=$work/inner-state" --name c.raw c.raw inner
    victim=$("$QUORUMFS" status --json inner | jq .pid)
    mount_disk a.raw b.raw inner/c.raw
}
# Sets $read and $write, the longest in ns, and $iops.
load() {
    local result
    result=$(fio --name=d --filename=mnt/disk.img --allow_file_create=0 --rw=randrw --bs=4k --iodepth="$DEPTH" \
        --direct=1 --ioengine=libaio --time_based --runtime="$SECONDS_EACH" --randrepeat=0 --output-format=json)
    read -r read write iops < <(jq -r '.jobs[0] | [.read.clat_ns.max, .write.clat_ns.max,
        (.read.iops + .write.iops | floor)] | join(" ")' <<<"$result")
}

rows=
printf '%-5s %-6s %10s %10s %10s %10s   %s\n' kind longest before first after worst "req/s before, after; back in sync"
for kind in $KINDS; do
    rm -rf state inner-state
    head -c "${SIZE}M" /dev/urandom >a.raw
    cp a.raw b.raw
    cp a.raw c.raw
    sync
    "set_up_$kind"
    r1=() w1=() r2=() w2=() r3=() w3=() before=() after=() back=()
    for ((round = 0; round < ROUNDS; round++)); do
        load && r1+=("$read") w1+=("$write") before+=("$iops")
        stopped=$victim
        kill -STOP "$victim"
        load && r2+=("$read") w2+=("$write")
        await_state hung
        load && r3+=("$read") w3+=("$write") after+=("$iops")
        start=$(now)
        kill -CONT "$victim"
        stopped=
        await_state in-sync
        back+=("$(($(now) - start))")
    done
    for what in read write; do
        if [ $what = read ]; then one=("${r1[@]}") two=("${r2[@]}") three=("${r3[@]}"); else one=("${w1[@]}") two=("${w2[@]}") three=("${w3[@]}"); fi
        a=$(median "${one[@]}") b=$(median "${two[@]}") c=$(median "${three[@]}") d=$(most "${three[@]}")
        note=
        [ $what = write ] || note="$(median "${before[@]}"), $(median "${after[@]}"); $(ms "$(median "${back[@]}")") ms"
        printf '%-5s %-6s %7s ms %7s ms %7s ms %7s ms   %s\n' "$kind" $what "$(ms "$a")" "$(ms "$b")" "$(ms "$c")" "$(ms "$d")" "$note"
        rows+="${rows:+, }\"$kind/$what\": {\"before-ns\": $a, \"first-ns\": $b, \"after-ns\": $c, \"after-worst-ns\": $d}"
    done
    rows+=", \"$kind\": {\"before-iops\": $(median "${before[@]}"), \"after-iops\": $(median "${after[@]}"), \"in-sync-after-ns\": $(median "${back[@]}")}"
    unmount
done
printf '{"rounds": %d, "size-mib": %d, "timeout-ms": %d, "depth": %d, "degraded": {%s}}\n' \
    "$ROUNDS" "$SIZE" "$TIMEOUT" "$DEPTH" "$rows"
