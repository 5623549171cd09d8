#!/bin/bash
# Replicas on NBD servers: mounted, written and read through the mount; one that dies or stops
# is outvoted and journalled; the same sources serve info, verify and a configuration.
. "$(dirname "$0")/lib.sh"
export TMPDIR=$scratch # a daemon that is killed leaves the socket of its command there
command -v nbdkit >/dev/null || { skip "NBD replicas" "no nbdkit"; exit 0; }

listens() { python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"; }
# serve NAME [NBDKIT ARGUMENTS]: NAME.raw on NAME.sock; its pid is in pid_NAME.
serve() {
    local name=$1
    shift
    rm -f "$name.sock"
    start nbdkit -f --exit-with-parent -U "$name.sock" "$@" file "$name.raw" 2>nbdkit.log
    printf -v "pid_$name" %s "$started"
    wait_for listens "$name.sock"
}
uri() { printf 'nbd+unix:///?socket=%s/%s.sock' "$scratch" "$1"; }
uris=("$(uri a)" "$(uri b)" "$(uri c)")
state() { "$QUORUMFS" status --json mnt | jq -r ".disks[0].replicas[] | select(.name == \"$1\") | .state"; }
fresh() { # nobody remembers anything of the ones before
    rm -rf [abc].raw state
    truncate -s 8M a.raw b.raw c.raw
    for name in a b c; do serve "$name" "$@"; done
}
stop_servers() {
    local name pid
    for name in a b c; do
        pid=pid_$name
        kill -9 "${!pid}" 2>/dev/null && wait "${!pid}" 2>/dev/null
    done
}

pattern content.raw 8M 5
fresh
qmount mnt -o cache=none "${uris[@]}" || { not_ok "three NBD replicas are mounted"; exit; }
check "three NBD replicas are written" dd if=content.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
equal "and read back" "$(digest mnt/disk.img iflag=direct)" "$(digest content.raw)"
check "a hole is punched" fallocate -p -o 1M -l 1M mnt/disk.img
dd if=/dev/zero of=content.raw bs=1M seek=1 count=1 conv=notrunc status=none
equal "and reads as zeroes" "$(digest mnt/disk.img iflag=direct)" "$(digest content.raw)"
status=$("$QUORUMFS" status --json mnt)
equal "status says how they are read" "$(jq -r '.disks[0].replicas[0] | .decoder + " " + .format' <<<"$status")" "nbd raw"
equal "and from where" "$(jq -r '.disks[0].replicas[1].source' <<<"$status")" "${uris[1]}"

kill -9 "$pid_b"; wait "$pid_b" 2>/dev/null
equal "with one server killed, reads go on by vote" "$(digest mnt/disk.img iflag=direct)" "$(digest content.raw)"
contains "and the journal tells" "$("$QUORUMFS" events mnt)" '"replica":"b"'
check "a write goes on, too" dd if=content.raw of=mnt/disk.img bs=64K count=1 conv=notrunc,fsync status=none
equal "and leaves the replica that missed it out" "$(state b)" hung
check "it is unmounted" qumount mnt
check "the others are equal" cmp a.raw c.raw
check "and hold what was written" cmp a.raw content.raw
stop_servers

# ---- A server that stops ---------------------------------------------------------------
fresh
qmount mnt -o cache=none,replica-timeout=500ms "${uris[@]}" || not_ok "mount again"
dd if=content.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
kill -STOP "$pid_c"
equal "a server that stops costs a time-out, not the read" "$(digest mnt/disk.img iflag=direct)" "$(digest content.raw)"
contains "the journal has the time-out" "$("$QUORUMFS" events mnt)" '"losers":[{"replica":"c","errno":110}]'
kill -CONT "$pid_c"
check "it is unmounted" qumount mnt
stop_servers

# ---- Other commands ----------------------------------------------------------------------
cp content.raw a.raw; cp content.raw b.raw; cp content.raw c.raw
serve a; serve b -r; serve c
exits "verify reads NBD replicas and files" 0 "$QUORUMFS" verify "${uris[0]}" "${uris[1]}" c.raw
poke c.raw 4096 rot
exits "and finds what differs" 1 "$QUORUMFS" verify "${uris[@]}"
contains "where it is" "$out" "4096"
exits "info tells what it is" 0 "$QUORUMFS" info --json "${uris[0]}"
equal "raw, read by nbd" "$(jq -r '.layers[0] | .format + " " + .decoder' <<<"$out")" "raw nbd"
exits "one export twice is no vote" 32 "$QUORUMFS" mount -o state-dir="$scratch/state" "${uris[0]}" "raw:${uris[0]}" mnt
contains "says why" "$err" "belongs to two replicas"
exits "qcow2 over NBD is refused" 32 "$QUORUMFS" mount -o state-dir="$scratch/state" "qcow2:${uris[0]}" "${uris[2]}" mnt
contains "with a hint" "$err" "qemu-nbd -f qcow2"
exits "a password is refused" 1 "$QUORUMFS" mount "nbds://alice:hush@host/x" mnt
case $err in *hush*) not_ok "and is shown: $err" ;; *) ok "and not shown" ;; esac
exits "a server that is not there" 32 "$QUORUMFS" mount -o state-dir="$scratch/state" "nbd+unix:///?socket=$scratch/none" mnt
contains "is named" "$err" "replica 'a': nbd+unix:///?socket=$scratch/none: "

cat >vm.conf <<CONF
[disk vm]
[replica vm/near]
source=a.raw
[replica vm/far]
source=$(uri b)
timeout=5s
[replica vm/made]
source=exec:qemu-nbd -t -f raw -k {socket} '$scratch/c.raw'
CONF
kill -9 "$pid_a"; wait "$pid_a" 2>/dev/null
"$QUORUMFS" mount -o "state-dir=$scratch/state" vm.conf mnt 2>err && mounts+=("$scratch/mnt")
contains "a read-only export makes the disk read-only" "$(cat err)" "replica 'far': $(uri b): the server exports it read-only"
equal "a file, a server and a command are voted on" "$(digest mnt/disk.img iflag=direct)" "$(digest content.raw)"
contains "the rotten one is outvoted" "$("$QUORUMFS" events mnt)" '"replica":"made"'
server=$(pgrep -f "qemu-nbd .*-k /.*/nbd $scratch/c.raw")
check "the command runs" test -n "$server"
check "it is unmounted" qumount mnt
check "and the command has ended" test ! -e "/proc/$server"

# ---- The daemon dies ---------------------------------------------------------------------
qmount mnt "exec:qemu-nbd -t -f raw -k {socket} $scratch/c.raw" || not_ok "mount of a command"
server=$(pgrep -f "qemu-nbd .*-k /.*/nbd $scratch/c.raw")
daemon=$("$QUORUMFS" status --json mnt | jq .pid)
kill -9 "$daemon"
check "the command ends with the daemon" wait_for test ! -e "/proc/$server"
fusermount3 -q -u -z mnt
