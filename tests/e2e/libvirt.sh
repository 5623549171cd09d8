#!/bin/bash
# libvirt XML: a domain with two quorum disks mounts, its thresholds hold, it becomes a keyfile
# and comes back, and what is wrong with one is told with its line.
. "$(dirname "$0")/lib.sh"
mkdir mnt
pattern one.raw 1M 1
pattern two.raw 2M 2
cp one.raw one-b.raw && cp one.raw one-c.raw && cp two.raw two-b.raw
qemu-img convert -q -O qcow2 two.raw two-base.qcow2
qemu-img create -q -f qcow2 -b two-base.qcow2 -F qcow2 two-c.qcow2
poke one-b.raw 4096 rot
cat >vm.xml <<XML
<domain type='kvm'>
  <name>vm</name>
  <devices>
    <disk type='file' device='cdrom'><source file='/nowhere.iso'/><target dev='sda'/></disk>
    <disk type='quorum' device='disk'>
      <driver name='qemu' type='quorum'/>
      <threshold value='2'/>
      <backingStore type='file'>
        <format type='raw'/>
        <source file='$PWD/one.raw'/>
      </backingStore>
      <backingStore type='file'>
        <format type='raw'/>
        <source file='$PWD/one-b.raw'/>
      </backingStore>
      <backingStore type='file'>
        <format type='raw'/>
        <source file='$PWD/one-c.raw'/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='quorum' device='disk' threshold='1'>
      <backingStore type='file'>
        <format type='raw'/>
        <source file='two-b.raw'/>
      </backingStore>
      <backingStore type='file'>
        <driver name='qemu' type='qcow2'/>
        <source file='two-c.qcow2'/>
        <backingStore type='file'>
          <format type='qcow2'/>
          <source file='/not/what/the/image/says'/>
        </backingStore>
      </backingStore>
      <target dev='vdb' bus='virtio'/>
      <readonly/>
    </disk>
  </devices>
</domain>
XML

check "a domain mounts" qmount mnt vm.xml
equal "each quorum is a file, other disks are left alone" "$(ls mnt | tr '\n' ' ')" "vda.img vdb.img "
equal "with its threshold" "$("$QUORUMFS" status --json mnt | jq -c '[.disks[] | [.name, .threshold]]')" '[["vda",2],["vdb",1]]'
check "the first is voted" cmp -s mnt/vda.img one-c.raw
check "the second reads, by the chain that its image names" cmp -s mnt/vdb.img two.raw
check "the first takes a write" dd if=two.raw of=mnt/vda.img bs=4k count=1 conv=notrunc,fsync status=none
check "the read-only one does not" sh -c '! dd if=one.raw of=mnt/vdb.img bs=4k count=1 conv=notrunc status=none 2>/dev/null'
qumount mnt

exits "import-libvirt" 0 "$QUORUMFS" import-libvirt vm.xml
printf '%s\n' "$out" >vm.conf
contains "gives a keyfile" "$out" "[replica vdb/b]
source=$PWD/two-c.qcow2
format=qcow2"
check "which mounts" qmount mnt vm.conf
check "and reads the same" cmp -s mnt/vdb.img two.raw
qumount mnt
exits "export-libvirt" 0 "$QUORUMFS" export-libvirt vm.conf
printf '%s\n' "$out" >again.xml
check "gives well-formed XML" python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse("again.xml")'
contains "with libvirt's elements" "$out" "<threshold value='2'/>"
exits "which comes back" 0 "$QUORUMFS" import-libvirt again.xml
equal "as the same" "$out" "$(cat vm.conf)"
check "and mounts" qmount mnt again.xml
check "the same disk" cmp -s mnt/vdb.img two.raw
qumount mnt

cat >alone.xml <<'XML'
<disk type='quorum' device='disk'>
  <threshold value='2'/>
  <backingStore type='file'>
    <source file='one.raw'/>
  </backingStore>
  <backingStore type='file'>
    <source file='one-c.raw'/>
  </backingStore>
  <target dev='vda' bus='virtio'/>
</disk>
XML
exits "one disk alone can be verified" 0 "$QUORUMFS" verify alone.xml
check "and mounted" qmount mnt alone.xml
check "as disk.img" cmp -s mnt/disk.img one.raw
qumount mnt
poke one-c.raw 65536 rot
exits "verify finds what differs" 5 "$QUORUMFS" verify alone.xml

wrong() { # TEXT SED-SCRIPT MESSAGE
    sed "$2" alone.xml >bad.xml
    exits "$1" 32 "$QUORUMFS" mount bad.xml mnt
    equal "one line" "$err" "quorumfs: bad.xml: $3"
}
wrong "a threshold that is too high" "s/'2'/'3'/" "line 1: <disk>: threshold=3: may not exceed children count (2)"
wrong "a misspelt element" 's/threshold/treshold/' "line 2: <treshold>: unknown element (did you mean 'threshold'?)"
wrong "a quorum in a quorum" "3s/file/quorum/" "line 3: <backingStore>: a quorum in a quorum"
wrong "a replica without a source" 7d "line 6: <backingStore>: no <source file='PATH'/>"
wrong "a reference to nobody" "7s/.*/<reference name='x'\\/>/" "line 7: <reference>: no disk has the alias 'x'"
wrong "a document type" '1s/^/<!DOCTYPE d [<!ENTITY a "b">]>/' "line 1: a document type (libvirt's XML has none)"
sed "2s/'2'/2/" alone.xml >bad.xml
exits "what is not XML" 32 "$QUORUMFS" mount bad.xml mnt
contains "has its line" "$err" "bad.xml: line 2: Odd character"
exits "the same from import" 2 "$QUORUMFS" import-libvirt bad.xml
printf '<disk\0/>' >bad.xml
exits "a NUL" 32 "$QUORUMFS" mount bad.xml mnt
contains "is not text" "$err" "not UTF-8 text"

. "$e2e/nbd-lib.sh"
serve_qemu one
sed -e "3s/file/network/" -e "4s|.*|<source protocol='nbd'><host transport='unix' socket='$PWD/one.sock'/></source>|" \
    -e 's/one-c/copy/' alone.xml >nbd.xml
cp one.raw copy.raw
check "a replica on an NBD server mounts" qmount mnt nbd.xml
check "and reads" cmp -s mnt/disk.img copy.raw
qumount mnt
exits "it is exported" 0 "$QUORUMFS" export-libvirt nbd.xml
contains "as what it was" "$out" "<host transport='unix' socket='$PWD/one.sock'/>"
