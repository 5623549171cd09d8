#!/bin/bash
# umount returns when the daemon has ended; a busy mount is refused or waited for; a dead
# mount can be undone and mounted again.
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
"$QUORUMFS" umount --wait mnt 9<&- &
waiter=$!
pids+=($waiter)
# (Its own copy of the descriptor would keep the mount busy.)
check "--wait waits" kill -0 $waiter
exec 9<&-
wait $waiter
equal "and unmounts when it is not busy any more" $? 0
check "with the daemon ended" eval "! alive $pid"

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
