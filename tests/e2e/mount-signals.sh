#!/bin/bash
# TERM and INT unmount, flush and end the daemon, also while the disk is in use; what the
# kernel still held is written first. HUP reopens the journals. Nothing is left behind.
. "$(dirname "$0")/lib.sh"
truncate -s 8M a.raw b.raw c.raw
gone() { ! kill -0 "$1" 2>/dev/null; }
unmounted() { ! grep -q " $scratch/mnt " /proc/self/mountinfo; }
daemon_pid() { jq .pid mnt/.quorumfs/status.json; }
cat >holder.py <<'PY'
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
fd = os.open("mnt/disk.img", os.O_RDWR)
os.write(fd, open("part.raw", "rb").read())
print("written", flush=True)
signal.sigwait([signal.SIGTERM])
try:
    os.pread(fd, 4096, 6 << 20)
except OSError as e:
    print(e.strerror, flush=True)
PY
for signal in TERM INT; do
    for options in "" "-s"; do
        # shellcheck disable=SC2086
        qmount mnt $options a.raw b.raw c.raw || { not_ok "mount"; continue; }
        pid=$(daemon_pid)
        kill -$signal "$pid"
        check "$signal $options: the daemon ends" wait_for gone "$pid"
        check "$signal $options: unmounted" unmounted
        equal "$signal $options: no socket is left" "$(find state -type s)" ""
    done
    qmount mnt -o cache=writeback a.raw b.raw c.raw || { not_ok "mount"; continue; }
    pid=$(daemon_pid)
    pattern part.raw 3M ${#signal}
    # Whoever closes the file has it written; so it stays open.
    rm -f seen # of the turn before
    start python3 holder.py >seen
    wait_for grep -q written seen
    kill -$signal "$pid"
    check "$signal in use: the daemon ends" wait_for gone "$pid"
    check "$signal in use: unmounted" unmounted
    kill -TERM "$started"
    wait "$started"
    contains "$signal in use: the user is told" "$(cat seen)" "not connected"
    for r in a b c; do
        check "$signal in use: $r has what the cache held" cmp -n 3145728 $r.raw part.raw
    done
done

qmount mnt a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
pid=$(daemon_pid)
journal=$(find state -name divergence.jsonl)
mv "$journal" "$journal.old"
kill -HUP "$pid"
check "HUP reopens the journal" wait_for test -e "$journal"
kill -USR1 "$pid" # not ours to act on
kill -USR2 "$pid"
equal "other signals do no harm" "$(stat -c %s mnt/disk.img)" $((8 << 20))
fusermount3 -u mnt
check "unmounted from outside the daemon ends" wait_for gone "$pid"

start "$QUORUMFS" mount -f -o "state-dir=$scratch/state" a.raw b.raw c.raw mnt >line 2>&1
mounts+=("$scratch/mnt")
check "in the foreground" wait_for test -e mnt/disk.img
kill -TERM "$started"
wait "$started"
equal "TERM is exit 0" $? 0
contains "a line says how to use it" "$(cat line)" "-drive file=$scratch/mnt/disk.img,format=raw,cache=none"
check "nothing is mounted" unmounted

# quit on the control socket; and the decoders' processes end with the daemon.
for r in a b c; do
    qemu-img create -q -f qcow2 $r.qcow2 8M
    qemu-io -f qcow2 -c "write -q -P 3 0 1M" $r.qcow2
done
quit() {
    python3 - "$(jq -r .socket mnt/.quorumfs/status.json)" <<'PY'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
while s.recv(4096):
    pass
PY
}
children() { ps -o pid= --ppid "$1" | tr -d ' '; }
for how in quit TERM INT; do
    qmount mnt -o decoder=libqcow a.qcow2 b.qcow2 c.qcow2 2>read-only || { not_ok "mount"; exit 1; }
    pid=$(daemon_pid)
    helpers=$(children "$pid")
    contains "why the disk is read-only" "$(cat read-only)" "read-only"
    equal "a helper for each replica" "$(wc -w <<<"$helpers")" 3
    if [ $how = quit ]; then
        check "quit is answered" quit
    else # as a terminal's ^C, which reaches the whole group
        # shellcheck disable=SC2086
        kill -$how $pid $helpers 2>/dev/null
    fi
    for p in $pid $helpers; do
        check "$how: process ends" wait_for gone "$p"
    done
    check "$how: unmounted" unmounted
done
