#!/bin/bash
# What stat shows, what chmod, chown and touch do, what the mount's files and directories
# refuse, and the options uid=, gid=, umask= and ro.
. "$(dirname "$0")/lib.sh"
truncate -s 16M a.raw
pattern part.raw 1M 8
dd if=part.raw of=a.raw bs=1M seek=3 conv=notrunc status=none
touch -d 2020-02-02T02:02:02Z a.raw
cp --sparse=always -p a.raw b.raw
qmount mnt a.raw b.raw || { not_ok "mount"; exit 1; }
d=mnt/disk.img
equal "type, mode, size, links, block size" "$(stat -c '%F %a %s %h %o' $d)" "regular file 600 16777216 1 4096"
equal "blocks are what is allocated" "$(stat -c %b $d)" "$(stat -c %b a.raw)"
equal "as new as the replicas" "$(stat -c %Y $d)" "$(stat -c %Y a.raw)"
check "chmod" chmod 640 $d
check "chown" chown 12:34 $d
equal "both are shown" "$(stat -c '%a %u %g' $d)" "640 12 34"
check "touch" touch -d 2021-01-01T00:00:00Z $d
equal "the time is shown" "$(stat -c %Y $d)" 1609459200
dd if=part.raw of=$d bs=1M conv=notrunc oflag=direct status=none
check "a write makes it newer" [ "$(stat -c %Y $d)" -gt 1609459200 ]
check "blocks grow with it" [ "$(stat -c %b $d)" -ge 4096 ]
equal "free space of the file system" "$(stat -f -c '%s %b' mnt)" "4096 4096"

equal "the names" "$(ls -A mnt mnt/.quorumfs mnt/.quorumfs/disk | tr '\n' ' ')" \
    "mnt: .quorumfs disk.img  mnt/.quorumfs: disk metrics status.json  mnt/.quorumfs/disk: divergence.jsonl divergence.map "
equal "their modes" "$(stat -c %a mnt mnt/.quorumfs mnt/.quorumfs/metrics mnt/.quorumfs/disk/divergence.map | tr '\n' ' ')" "555 550 440 440 "
equal "inode numbers" "$(stat -c %i mnt mnt/.quorumfs $d | tr '\n' ' ')" "1 2 5 "
for change in "touch mnt/new" "mkdir mnt/new" "rm -f $d" "mv $d mnt/new" "ln $d mnt/new" "ln -s x mnt/new" "rmdir mnt/.quorumfs"; do
    exits "refused: $change" 1 $change
    contains "with a reason" "$err" "not permitted"
done
exits "a status file cannot be written" 1 dd if=part.raw of=mnt/.quorumfs/status.json conv=notrunc status=none
exits "nor truncated" 1 truncate -s 0 mnt/.quorumfs/metrics
equal "the status is one snapshot per open" "$(jq -r '.disks[0].replicas | length' mnt/.quorumfs/status.json)" 2
check "whose end is known once it is open" python3 - <<'PY'
import os
fd = os.open("mnt/.quorumfs/status.json", os.O_RDONLY)
assert os.lseek(fd, 0, os.SEEK_END) == len(os.pread(fd, 1 << 20, 0)) > 100
PY
check "cp copies it" sh -c 'cp mnt/.quorumfs/status.json copy && jq . copy >/dev/null'
exits "no extended attributes" 1 python3 -c 'import os; os.setxattr("mnt/disk.img", "user.x", b"y")'
contains "as not supported" "$err" "not supported"
equal "none are listed" "$(python3 -c 'import os; print(os.listxattr("mnt/disk.img"))' 2>&1 | tail -n1 | sed 's/.*Errno 95.*/[]/')" "[]"
check "locks exclude each other" python3 - <<'PY'
import fcntl, os, struct
a, b = (os.open("mnt/disk.img", os.O_RDWR) for _ in range(2))
lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 100, 1, 0)
fcntl.fcntl(a, 37, lock)  # F_OFD_SETLK
try:
    fcntl.fcntl(b, 37, lock)
    raise SystemExit("both got it")
except BlockingIOError:
    pass
PY
check "the mount's type and source" grep -q "^a.raw $scratch/mnt fuse.quorumfs rw" /proc/mounts
qumount mnt

qmount mnt -o uid=77,gid=88,umask=077 a.raw b.raw || { not_ok "mount with uid"; exit 1; }
equal "uid, gid, umask" "$(stat -c '%u %g %a' $d mnt/.quorumfs/metrics mnt | tr '\n' ' ')" "77 88 600 77 88 400 77 88 500 "
qumount mnt
qmount mnt -o umask=007 a.raw b.raw || { not_ok "mount with umask"; exit 1; }
equal "umask= can let a group in" "$(stat -c %a $d mnt/.quorumfs/metrics mnt/.quorumfs | tr '\n' ' ')" "660 440 550 "
qumount mnt
qmount mnt -o ro a.raw b.raw || { not_ok "mount read-only"; exit 1; }
exits "ro: no open for writing" 1 dd if=part.raw of=$d conv=notrunc status=none
contains "as read-only" "$err" "Read-only"
exits "ro: no truncation" 1 truncate -s 1M $d
equal "ro: it reads" "$(digest $d)" "$(digest a.raw)"
qumount mnt
qmount mnt -o ro,rw a.raw b.raw || { not_ok "mount ro,rw"; exit 1; }
check "ro,rw: the last counts" sh -c "printf x | dd of=$d conv=notrunc status=none"
qumount mnt
