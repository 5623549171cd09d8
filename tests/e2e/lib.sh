# lib.sh: what the end-to-end scripts share; sourced by each of them.
#
# A script checks one behaviour on real images and real mounts. It prints TAP lines
# ("ok 1 - text", "not ok 2 - text", "ok 3 - text # SKIP why"), which tests/run-tests
# counts, runs in a scratch directory of its own, and leaves nothing behind: mounts made
# with `qmount` are undone and background processes started with `start` are ended when
# the script ends, however it ends.
set -uo pipefail
: "${QUORUMFS:=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/quorumfs}"
export LC_ALL=C
# Where the scripts are, whatever "$0" was relative to.
e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

scratch=$(mktemp -d "${TMPDIR:-/tmp}/quorumfs-e2e.XXXXXX")
cd "$scratch" || exit 1
checks=0
failures=0
mounts=()
pids=()

lib_cleanup() {
    local status=$? m p
    # Only those that still are this script's: a number may be somebody else's by now.
    for p in $(jobs -p); do
        # One that is stopped ends when it goes on.
        case " ${pids[*]:-} " in *" $p "*) kill "$p" 2>/dev/null && kill -CONT "$p" 2>/dev/null ;; esac
    done
    for m in "${mounts[@]:-}"; do
        [ -z "$m" ] || fusermount3 -q -u -z "$m" 2>/dev/null
    done
    cd / && rm -rf "$scratch"
    [ "$failures" = 0 ] && [ "$status" = 0 ] && [ "$checks" -gt 0 ]
    exit $?
}
trap lib_cleanup EXIT
trap 'exit 1' INT TERM

ok() {
    checks=$((checks + 1))
    printf 'ok %d - %s\n' "$checks" "$*"
}
not_ok() {
    checks=$((checks + 1))
    failures=$((failures + 1))
    printf 'not ok %d - %s\n' "$checks" "$*"
}
skip() { # TEXT WHY
    checks=$((checks + 1))
    printf 'ok %d - %s # SKIP %s\n' "$checks" "$1" "$2"
}
# check TEXT COMMAND...: ok if the command succeeds.
check() {
    local text=$1
    shift
    if "$@"; then ok "$text"; else not_ok "$text: $*"; fi
}
# equal TEXT GOT EXPECTED
equal() {
    if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1: got '$2', expected '$3'"; fi
}
# contains TEXT HAYSTACK NEEDLE
contains() {
    case $2 in
    *"$3"*) ok "$1" ;;
    *) not_ok "$1: '$3' is not in '$2'" ;;
    esac
}
# exits TEXT STATUS COMMAND...: the command's exit status; its output is in $out, $err.
out= err=
exits() {
    local text=$1 expected=$2 got
    shift 2
    "$@" >"$scratch/.out" 2>"$scratch/.err" </dev/null
    got=$?
    out=$(cat "$scratch/.out") err=$(cat "$scratch/.err")
    if [ "$got" = "$expected" ]; then
        ok "$text"
    else
        not_ok "$text: exit $got instead of $expected: $* ($err)"
    fi
}

# qmount MOUNTPOINT ARGUMENTS...: makes the mount point and mounts there with a state
# directory in the scratch directory; "quorumfs mount -o state-dir=... ARGUMENTS MOUNTPOINT".
qmount() {
    local mountpoint=$1
    shift
    mkdir -p "$mountpoint" "$scratch/state"
    mounts+=("$scratch/$mountpoint")
    "$QUORUMFS" mount -o "state-dir=$scratch/state" "$@" "$mountpoint"
}
qumount() { "$QUORUMFS" umount "$1"; }
# Ends the daemon of the mount at mnt by force, and takes away the dead mount.
daemon_kill() {
    kill -9 "$("$QUORUMFS" status --json mnt | jq -r .pid)"
    wait_for sh -c '! stat mnt/disk.img'
    fusermount3 -q -u -z mnt
}
# start COMMAND...: in the background, ended with the script; its pid is in $started.
started=
start() {
    "$@" &
    started=$!
    pids+=("$started")
}
# wait_for COMMAND...: until it succeeds, at most 20 s; polls, because what it waits for is
# another process.
wait_for() {
    local i
    for ((i = 0; i < 400; i++)); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    return 1
}

# What status says of the disk on mnt, of a replica of it, and whether that is so.
disk_figure() { "$QUORUMFS" status --json mnt | jq -r ".disks[0] | $1"; }
replica_state() { disk_figure ".replicas[] | select(.name == \"$1\") | .state"; }
is_state() { [ "$(replica_state "$1")" = "$2" ]; }
is_healthy() { [ "$(disk_figure .state)" = healthy ]; }
# writes_reach N: the guest has written so often.
writes_reach() { [ "$(metric quorumfs_disk_writes_total)" -ge "$1" ]; }
metric() { sed -n "s/^$1{.*} //p" mnt/.quorumfs/metrics; }

# pattern FILE SIZE SEED: a raw file of SIZE (as truncate takes it), data that differs from
# sector to sector and repeats for the same SEED.
pattern() {
    python3 - "$1" "$2" "$3" <<'PY'
import random, sys
units = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}
name, size, seed = sys.argv[1:]
size = int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
source = random.Random(int(seed))
with open(name, 'wb') as f:
    while size:
        n = min(size, 1 << 20)
        f.write(source.randbytes(n))
        size -= n
PY
}
# poke FILE OFFSET TEXT: overwrites bytes in place.
poke() { printf '%s' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
# digest FILE [DD OPTIONS]: SHA-256 of the whole file, read with O_DIRECT through a mount if
# iflag=direct is given; empty if it cannot be read.
digest() {
    local file=$1
    shift
    dd if="$file" bs=1M status=none "$@" 2>/dev/null | sha256sum | cut -d' ' -f1
}
