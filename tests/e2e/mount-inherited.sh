#!/bin/bash
# What the caller left behind does no harm: descriptors are not kept by the daemon, closed
# standard ones are not taken by images, and an ignored SIGCHLD hides no exit status.
. "$(dirname "$0")/lib.sh"
pattern a.raw 1M 1
cp a.raw b.raw
mkdir -p state mnt

exec 7>lock
flock 7
check "a mount" qmount mnt a.raw b.raw
exec 7>&-
check "the caller's lock does not live as long as the daemon" flock -n lock true
qumount mnt
check "a descriptor of the caller may be an image" qmount mnt raw:/dev/fd/6 b.raw 6<a.raw
check "which reads" cmp mnt/disk.img a.raw
qumount mnt

digests=$(sha256sum a.raw b.raw)
"$QUORUMFS" mount -o state-dir=state a.raw b.raw mnt <&- >&- 2>&-
equal "mount with closed standard descriptors" $? 0
check "it reads" cmp mnt/disk.img a.raw
qumount mnt
exits "verify with a closed standard output" 2 sh -c '"$0" verify a.raw b.raw >&-' "$QUORUMFS"
exits "info with all closed" 2 sh -c '"$0" info nowhere.raw <&- >&- 2>&-' "$QUORUMFS"
equal "no image was written to" "$(sha256sum a.raw b.raw)" "$digests"

cat >ignoring.py <<'PY'
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
PY
exits "with SIGCHLD ignored a usage error is one" 1 python3 ignoring.py "$QUORUMFS" \
    mount -o state-dir=state --threshold 3 a.raw b.raw mnt
exits "with SIGCHLD ignored it mounts" 0 python3 ignoring.py "$QUORUMFS" \
    mount -o state-dir=state a.raw b.raw mnt
mounts+=("$scratch/mnt")
check "and reads" cmp mnt/disk.img a.raw
qumount mnt
