#!/bin/bash
# bench/verify.sh: one `quorumfs verify a b c` against `qemu-img compare` run pairwise (a-b,
# then a-c) on the same images, from page cache, side by side, round after round.
#
# Prints a table and one JSON object; ratio is qemu-img's median by quorumfs's: above 1,
# quorumfs is faster. ROUNDS (default 5), SIZE in MiB of the full images (default 512) and
# KINDS (default all) may be set. Needs about 3 GiB in TMPDIR, one kind of images at a time.
set -euo pipefail
: "${QUORUMFS:=$(cd "$(dirname "$0")/.." && pwd)/quorumfs}"
: "${ROUNDS:=5}" "${SIZE:=512}"
: "${KINDS:=raw raw-sparse qcow2 qcow2-native qcow2-sparse zlib zstd chain chain-over-raw}"
work=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir a b c

# content FILE MIB EVERY [half]: MIB mebibytes; only every EVERY-th holds data; with `half`
# every second 4 KiB of the data repeats one text, so that it can be compressed.
content() {
    python3 - "$@" <<'PY'
import os, sys
name, mib, every = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
half = len(sys.argv) > 4
text = (b'quorumfs keeps disks alive. ' * 200)[:4096]
with open(name, 'wb') as f:
    for i in range(0, mib, every):
        f.seek(i << 20)
        data = os.urandom(1 << 20)
        if half:
            data = b''.join(data[k:k + 4096] + text for k in range(0, 1 << 20, 8192))
        f.write(data)
    f.truncate(mib << 20)
PY
}
each() { for r in a b c; do eval "${1//\{\}/$r}"; done; }
over() { # TOP BASE FORMAT: an overlay with a quarter of its own, in runs of 256 KiB
    qemu-img create -q -f qcow2 -b "$2" -F "$3" "$1"
    local at commands=()
    for ((at = 0; at < SIZE; at++)); do
        commands+=(-c "write -q -P $((at % 251 + 1)) ${at}M 256k")
    done
    qemu-io -f qcow2 "${commands[@]}" "$1"
}

# Each makes a/x b/x c/x of the format in $format; $options are passed to verify.
make_raw() {
    format=raw
    content a/x "$SIZE" 1
    cp a/x b/x && cp a/x c/x
}
make_raw_sparse() {
    format=raw
    content a/x $((SIZE * 2)) 4
    cp --sparse=always a/x b/x && cp --sparse=always a/x c/x
}
make_qcow2() {
    format=qcow2
    content t "$SIZE" 1
    each 'qemu-img convert -q -f raw -O qcow2 t {}/x'
}
make_qcow2_native() {
    make_qcow2
    options=(-o decoder=native)
}
make_qcow2_sparse() {
    format=qcow2
    content t $((SIZE * 2)) 4
    each 'qemu-img convert -q -f raw -O qcow2 t {}/x'
}
make_zlib() {
    format=qcow2
    content t $((SIZE / 2)) 1 half
    each 'qemu-img convert -q -c -f raw -O qcow2 t {}/x'
}
make_zstd() {
    format=qcow2
    content t $((SIZE / 2)) 1 half
    each 'qemu-img convert -q -c -f raw -O qcow2 -o compression_type=zstd t {}/x'
}
make_chain() {
    format=qcow2
    content t "$SIZE" 1
    each 'qemu-img convert -q -f raw -O qcow2 t {}/base && over {}/x base qcow2'
}
make_chain_over_raw() {
    format=qcow2
    content t "$SIZE" 1
    each 'cp t {}/base && over {}/x base raw'
}

now() { date +%s%N; }
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
# Runs a command and sets $took, in microseconds.
timed() {
    local start
    start=$(now)
    "$@" >/dev/null
    took=$((($(now) - start) / 1000))
}
pairwise() {
    qemu-img compare -f $format -F $format a/x b/x && qemu-img compare -f $format -F $format a/x c/x
}
voted() { "$QUORUMFS" verify --format $format "${options[@]}" a/x b/x c/x; }

printf '%-16s %12s %12s %8s\n' images qemu-img quorumfs ratio
json=
for kind in $KINDS; do
    rm -rf t a b c && mkdir a b c
    options=()
    "make_${kind//-/_}"
    pairwise >/dev/null && voted >/dev/null # everything in the page cache
    theirs=() ours=()
    for ((round = 0; round < ROUNDS; round++)); do
        timed pairwise && theirs+=("$took")
        timed voted && ours+=("$took")
    done
    t=$(median "${theirs[@]}") o=$(median "${ours[@]}")
    ratio=$(awk "BEGIN{printf \"%.2f\", $t / $o}")
    printf '%-16s %9d ms %9d ms %8s\n' "$kind" $((t / 1000)) $((o / 1000)) "$ratio"
    json+="${json:+, }\"$kind\": {\"qemu-img-us\": $t, \"quorumfs-us\": $o, \"ratio\": $ratio}"
done
printf '{"rounds": %d, "size-mib": %d, "kinds": {%s}}\n' "$ROUNDS" "$SIZE" "$json"
