#!/bin/bash
# Configurations: two disks of one keyfile in one mount, options over it, and the forms in
# which fstab and mount(8) ask for it.
. "$(dirname "$0")/lib.sh"
mkdir images mnt
pattern images/one.raw 1M 1
pattern images/two.raw 2M 2
for r in b c; do
    cp images/one.raw images/one-$r.raw
    cp images/two.raw images/two-$r.raw
done
qemu-img convert -q -O qcow2 images/two.raw images/two.qcow2
cat >vm.conf <<'CONF'
# two disks
[disk system]
file=system.img
threshold=2
on-divergence=log
min-replicas=3

[disk data]
read-only=true

[replica system/left]
source=images/one.raw

[replica data/x]
source=qcow2:images/two.qcow2
decoder=native
timeout=2s

[replica system/middle]
source=images/one-b.raw
format=raw

[replica system/right]
source=images/one-c.raw

[replica data/y]
source=images/two-b.raw
CONF
mounted() { findmnt -n -o FSTYPE "$1"; }

check "a configuration mounts" qmount mnt vm.conf
equal "as fuse.quorumfs" "$(mounted mnt)" fuse.quorumfs
equal "from the configuration, where fstab finds it" "$(findmnt -n -o SOURCE mnt)" "$scratch/vm.conf"
equal "each disk is a file" "$(ls mnt | tr '\n' ' ')" "data.img system.img "
check "the first reads" cmp -s mnt/system.img images/one.raw
check "the second reads" cmp -s mnt/data.img images/two.raw
equal "disks, thresholds and replicas in the file's order" \
    "$("$QUORUMFS" status --json mnt | jq -c '[.disks[] | [.name, .threshold, [.replicas[].name]]]')" \
    '[["system",2,["left","middle","right"]],["data",2,["x","y"]]]'
check "the writable one takes a write" dd if=images/two.raw of=mnt/system.img bs=4k count=1 conv=notrunc,fsync status=none
check "the read-only one does not" sh -c '! dd if=images/one.raw of=mnt/data.img bs=4k count=1 conv=notrunc status=none 2>/dev/null'
check "umount" "$QUORUMFS" umount mnt
check "all replicas have the write" cmp -s images/one.raw images/one-c.raw

cd / && check "paths are the file's, not the working directory's" \
    "$QUORUMFS" mount -o "state-dir=$scratch/state" "$scratch/vm.conf" "$scratch/mnt"
cd "$scratch" || exit 1
qumount mnt
check "-o goes over the configuration" qmount mnt -o threshold=1,ro vm.conf
equal "for every disk" "$("$QUORUMFS" status --json mnt | jq -c '[.disks[].threshold]')" '[1,1]'
qumount mnt
exits "a threshold above the number of replicas" 1 "$QUORUMFS" mount -o "threshold=4,state-dir=$scratch/state" vm.conf mnt
contains "is refused" "$err" "threshold may not exceed"

fstab_options=rw,nofail,noatime,_netdev,x-systemd.automount,user,dev,suid
exits "the fstab form: CONFIG MOUNTPOINT -o OPTIONS" 0 \
    "$QUORUMFS" vm.conf mnt -o "$fstab_options,state-dir=$scratch/state"
equal "mounts" "$(mounted mnt)" fuse.quorumfs
qumount mnt
exits "options may stand first" 0 "$QUORUMFS" -o "ro,state-dir=$scratch/state" vm.conf mnt
qumount mnt

check "options of the kernel and libfuse" qmount mnt -o 'nosuid,nodev,noexec,noatime,nodiratime,relatime,default_permissions,sync,dirsync,fsname=a\,b' vm.conf
equal "reach them" "$(grep " $(realpath mnt) " /proc/self/mountinfo | grep noexec,noatime | grep sync,dirsync | grep -c ' a,b ')" 1
qumount mnt

ln -s "$QUORUMFS" mount.fuse.quorumfs
exits "the mount helper: SPEC DIR -sfnv, nothing mounted with -f" 0 \
    ./mount.fuse.quorumfs vm.conf mnt -sfnv -o "$fstab_options"
equal "indeed" "$(mounted mnt)" ""
exits "the mount helper mounts" 0 \
    ./mount.fuse.quorumfs vm.conf mnt -s -n -t fuse.quorumfs -o "rw,state-dir=$scratch/state"
equal "the same" "$(mounted mnt)" fuse.quorumfs
qumount mnt
exits "the mount helper takes an image too" 0 \
    ./mount.fuse.quorumfs images/one.raw mnt -o "ro,state-dir=$scratch/state"
check "which reads" cmp -s mnt/disk.img images/one.raw
qumount mnt
exits "the mount helper's usage error" 1 ./mount.fuse.quorumfs vm.conf -o ro
contains "says the form" "$err" "SPEC DIR"
exits "the mount helper's unknown option" 1 ./mount.fuse.quorumfs vm.conf mnt -o treshold=2

if command -v mount.fuse3 >/dev/null && [ "$(id -u)" = 0 ]; then
    mkdir bin && ln -s "$QUORUMFS" bin/quorumfs
    exits "mount.fuse3 -t fuse.quorumfs" 0 env PATH="$scratch/bin:$PATH" \
        mount.fuse3 "$scratch/vm.conf" "$scratch/mnt" -t fuse.quorumfs -o "rw,nofail,state-dir=$scratch/state"
    equal "mounts" "$(mounted mnt)" fuse.quorumfs
    qumount mnt
else
    skip "mount.fuse3 -t fuse.quorumfs" "no mount.fuse3, or not root"
fi

cat >one.conf <<'CONF'
[disk vm1]
[replica vm1/a]
source=images/one.raw
CONF
check "one disk without a file= is disk.img" qmount mnt one.conf
check "there" test -f mnt/disk.img
qumount mnt
sed -i 's/\[disk vm1\]/[disk vm1]\n[disk vm1]/' one.conf
exits "a repeated group is an error" 32 "$QUORUMFS" mount one.conf mnt
contains "with its line" "$err" "one.conf: line 2: group [disk vm1] is repeated"
head -c 2M /dev/zero >huge.conf
exits "a huge file is an error" 32 "$QUORUMFS" mount huge.conf mnt
mkfifo fifo.conf
exits "a FIFO does not hang" 32 timeout 10 "$QUORUMFS" mount fifo.conf mnt
