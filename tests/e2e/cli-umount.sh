#!/bin/bash
# umount returns when the daemon has ended, and tells how; a busy mount is refused or waited
# for; a dead mount can be undone and mounted again.
. "$(dirname "$0")/lib.sh"
pattern a.raw 2M 1
cp a.raw b.raw
ln -s mnt link
mount_it() { qmount mnt a.raw b.raw || not_ok mount; }
daemon_pid() { "$QUORUMFS" status --json mnt | jq .pid; }
alive() { kill -0 "$1" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$1/status"; }

mount_it
pid=$(daemon_pid)
dd if=/dev/urandom of=mnt/disk.img bs=64k count=8 conv=notrunc status=none
exits "umount" 0 "$QUORUMFS" umount mnt
check "the daemon has ended when it returns" eval "! alive $pid"
check "everything is written" cmp -s a.raw b.raw
check "nothing is mounted" eval "! mountpoint -q mnt"
exits "once more" 32 "$QUORUMFS" umount mnt
contains "is an error" "$err" "not a mount point"

mount_it
exits "by way of a symbolic link and a slash" 0 "$QUORUMFS" umount link/
mkdir -p 'odd name\040 ü'
mounts+=("$scratch/odd name\\040 ü")
exits "a mount point with blanks and a backslash" 0 "$QUORUMFS" mount -o "state-dir=$scratch/state" a.raw b.raw 'odd name\040 ü'
exits "is found again" 0 "$QUORUMFS" umount 'odd name\040 ü'

mount_it
pid=$(daemon_pid)
exec 9<mnt/disk.img
exits "a busy mount" 32 "$QUORUMFS" umount mnt
contains "is refused with a hint" "$err" "umount --wait"
check "and stays" cmp -s mnt/disk.img a.raw
"$QUORUMFS" umount --wait mnt 9<&- >verdict &
waiter=$!
pids+=($waiter)
# (Its own copy of the descriptor would keep the mount busy.)
check "--wait waits" kill -0 $waiter
exec 9<&-
wait $waiter
equal "and unmounts when it is not busy any more" $? 0
check "with the daemon ended" eval "! alive $pid"
equal "and says how each replica ended" "$(cat verdict)" $'disk/a: in sync\ndisk/b: in sync'

mount_it
pid=$(daemon_pid)
kill -9 "$pid"
wait_for eval "! alive $pid"
exits "status of a dead mount" 2 "$QUORUMFS" status mnt
contains "says what to do" "$err" "the daemon is gone (quorumfs umount mnt"
exits "events of a dead mount" 2 "$QUORUMFS" events mnt
exits "explain of a dead mount" 2 "$QUORUMFS" explain mnt disk 0
exits "umount of a dead mount" 0 "$QUORUMFS" umount mnt
mount_it
check "it mounts again" cmp -s mnt/disk.img a.raw
qumount mnt

# Whoever unmounts has to know of a flush that failed.
mount_it
# Nothing can be written in its place.
verdict=$("$QUORUMFS" status --json mnt | jq -r '."state-dir"')/last-end.json
rm -f "$verdict" && mkdir "$verdict"
exits "umount of a daemon that cannot say how it ended" 32 "$QUORUMFS" umount mnt
contains "says so" "$err" "is not known"
check "nothing is mounted" eval "! mountpoint -q mnt"
rmdir "$verdict"
if command -v nbdkit >/dev/null; then
    listens() { python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"; }
    cp a.raw c.raw
    for r in b c; do
        f=$scratch/$r.raw
        start nbdkit -f --exit-with-parent -U $r.sock eval get_size="echo 2097152" \
            pread="dd if='$f' bs=64k skip=\$4 count=\$3 iflag=skip_bytes,count_bytes status=none" \
            pwrite="dd of='$f' bs=64k seek=\$4 oflag=seek_bytes conv=notrunc status=none" \
            can_write="exit 0" can_flush="exit 0" flush="echo EIO no >&2; exit 1" 2>nbdkit.log
        wait_for listens $r.sock
    done
    qmount mnt -o "state-dir=$scratch/nbd-state" a.raw "nbd+unix:///?socket=$scratch/b.sock" "nbd+unix:///?socket=$scratch/c.sock" || not_ok mount
    dd if=/dev/urandom of=mnt/disk.img bs=64k count=1 conv=notrunc status=none
    exits "umount where two of three cannot be flushed" 32 "$QUORUMFS" umount --wait mnt
    contains "says why" "$err" "disk 'disk': the last flush failed: Input/output error"
    equal "and what became of each" "$out" $'disk/a: in sync\ndisk/b: failed\ndisk/c: failed'
    check "nothing is mounted" eval "! mountpoint -q mnt"
else
    skip "a flush that fails" "no nbdkit"
fi

"$QUORUMFS" mount -f -o "state-dir=$scratch/state" a.raw b.raw mnt >foreground.out &
pid=$!
pids+=($pid)
wait_for mountpoint -q mnt
wait_for test -s foreground.out
contains "in the foreground one line says how to use it" "$(cat foreground.out)" "format=raw"
exits "umount of a mount in the foreground" 0 "$QUORUMFS" umount mnt
wait $pid
equal "which exits with 0" $? 0

if [ "$(id -u)" = 0 ] && [ -u "$(command -v fusermount3)" ]; then
    chmod 711 "$scratch"
    mkdir user && cp a.raw b.raw user && mkdir user/mnt && chown -R nobody user
    mounts+=("$scratch/user/mnt")
    if setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$scratch/user" \
        "$QUORUMFS" mount -o "state-dir=$scratch/user/state" user/a.raw user/b.raw user/mnt 2>user.err; then
        exits "a user's own mount" 0 setpriv --reuid=65534 --regid=65534 --clear-groups "$QUORUMFS" umount user/mnt
        exits "once more" 32 setpriv --reuid=65534 --regid=65534 --clear-groups "$QUORUMFS" umount user/mnt
    else
        skip "a user's own mount" "$(cat user.err)"
    fi
fi
