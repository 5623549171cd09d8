#!/bin/bash
# Wrong words: every command answers with one line on standard error, nothing on standard
# output and its usage exit code; what this version does not have says so by name.
. "$(dirname "$0")/lib.sh"
pattern a.raw 1M 1
cp a.raw b.raw
mkdir mnt

# wrong STATUS PART COMMAND...
wrong() {
    local expected=$1 part=$2 text
    shift 2
    text="quorumfs ${*//$'\n'/?}"
    exits "$text exits $expected" "$expected" "$QUORUMFS" "$@"
    if [ -n "$out" ] || [ "$(wc -l <"$scratch/.err")" != 1 ] || [[ $err != "quorumfs: "* ]]; then
        not_ok "$text says one line: $out$err"
    else
        contains "$text says why" "$err" "$part"
    fi
}

wrong 1 "unknown command 'mout' (did you mean 'mount'?)" mout
wrong 1 "(did you mean 'umount'?)" unmount mnt
wrong 1 "unknown command 'xyzzy'" xyzzy
wrong 1 "(did you mean '--version'?)" --verison
wrong 1 "no image given" mount
wrong 1 "no mount point given" mount a.raw
wrong 1 "unknown option '--treshold' (did you mean '--threshold'?)" mount --treshold 2 a.raw mnt
wrong 1 "unknown option '-x'" mount -x a.raw mnt
wrong 1 "'--threshold' needs a value" mount a.raw mnt --threshold
wrong 1 "option '--foreground' takes no value" mount --foreground=2 a.raw mnt
wrong 1 "unknown option 'treshold=2' (did you mean 'threshold='?)" mount -o ro,treshold=2 a.raw mnt
wrong 1 "threshold=0" mount --threshold 0 a.raw mnt
wrong 1 "not a number" mount --threshold 1,ro a.raw mnt
wrong 1 "unknown format 'vdi'" mount --format vdi a.raw mnt
wrong 1 "contains '/'" mount --name x/y a.raw mnt
wrong 1 "not both" mount vm.conf a.raw mnt
wrong 1 "password-file" mount -o password=hunter2 a.raw mnt
check "the password is not repeated" test "${err/hunter2/}" = "$err"
wrong 1 "one mount point" umount
wrong 1 "one mount point" umount mnt mnt
wrong 1 "unknown option '--wiat' (did you mean '--wait'?)" umount --wiat mnt
wrong 1 "no mount point" status
wrong 1 "too many words" status mnt disk more
wrong 1 "not both" status mnt --json --prometheus
wrong 1 "one mount point" events
wrong 1 "one image" info
wrong 1 "one image" info a.raw b.raw
wrong 1 "is a configuration" info vm.conf
wrong 1 "unknown format 'vmdk'" info vmdk:a.raw
wrong 1 "an offset" explain a.raw
wrong 1 "is not OFFSET[+LENGTH]" explain a.raw b.raw
wrong 1 "is not OFFSET[+LENGTH]" explain a.raw b.raw 0+0
wrong 1 "is more than 64 MiB" explain a.raw b.raw 0+65M
wrong 1 "DISK OFFSET" explain mnt 0
wrong 1 "are for images" explain --threshold 1 mnt disk 0
wrong 1 "past the end" explain a.raw b.raw 1M
wrong 64 "image" verify
wrong 64 "a mount point and a disk are needed" scrub mnt
wrong 64 "too many words" scrub mnt disk more
wrong 64 "--speed 'fast' is not a size" scrub --speed fast mnt disk
wrong 64 "--cancel begins nothing" scrub --cancel --repair mnt disk
wrong 2 "not a mount point" scrub mnt disk
wrong 64 "a mount point and a disk are needed" resync mnt
wrong 2 "not a mount point" resync mnt disk
wrong 64 "unknown option" verify --frob a.raw

for word in job doctor; do
    wrong 1 "$word is not available in this version" $word mnt disk
done
wrong 64 "no image given" repair
wrong 64 "unknown option '--frm' (did you mean '--from'?)" repair --frm a a.raw b.raw
wrong 64 "has no replica 'c'" repair --from c a.raw b.raw
wrong 64 "needs a majority" repair --threshold 1 a.raw b.raw
wrong 64 "--wait is for a mounted disk" repair --wait a.raw b.raw
wrong 64 "neither --json nor --from" repair --undo x --json a.raw b.raw
wrong 2 "no saved blocks '../x'" repair -o state-dir=state --undo ../x a.raw b.raw
wrong 2 "not a quorumfs mount" repair mnt disk
wrong 2 "No such file" repair a.raw nowhere.raw
wrong 2 "No such file" repair nowhere.conf
wrong 2 "No such file" repair nowhere.xml
wrong 1 "unknown value (quorum, rotate or fifo)" mount -o read-pattern=random a.raw b.raw mnt
wrong 1 "'blkverify' takes no value" mount -o blkverify=1 a.raw b.raw mnt
wrong 1 "exactly two replicas and a threshold of 2" mount -o blkverify a.raw b.raw c.raw mnt
wrong 1 "exactly two replicas and a threshold of 2" mount -o blkverify,threshold=1 a.raw b.raw mnt
wrong 1 "on-divergence=repair cannot be used" mount -o blkverify,on-divergence=repair a.raw b.raw mnt
wrong 1 "needs read-pattern=quorum" mount -o blkverify,read-pattern=rotate a.raw b.raw mnt
wrong 32 "No such file" mount nowhere.xml mnt
wrong 1 "no XML file given" import-libvirt
wrong 2 "nowhere.xml: No such file" import-libvirt nowhere.xml
wrong 1 "too many words" export-libvirt a.conf b.conf
wrong 1 "is not a configuration" export-libvirt a.raw
wrong 1 "nothing to check the server by" mount nbds://host/x mnt
wrong 1 "no {socket} in it" mount "exec:qemu-nbd x" mnt
wrong 64 "no socket (add ?socket=PATH)" verify nbd+unix:///x a.raw

wrong 1 "remount is not available in this version" mount -o remount,ro a.raw mnt
wrong 32 "No such file" mount a.raw nowhere
wrong 32 "No such file" mount nowhere.conf mnt
printf '[disk vm1]\ntreshold=2\n[replica vm1/a]\nsource=a.raw\n' >bad.conf
wrong 32 "bad.conf: [disk vm1]: unknown key 'treshold' (did you mean 'threshold'?)" mount bad.conf mnt
wrong 2 "bad.conf: [disk vm1]: unknown key" verify bad.conf
wrong 2 "bad.conf: [disk vm1]: unknown key" explain bad.conf 0
wrong 32 "not a mount point" umount mnt
wrong 32 "No such file" umount nowhere
wrong 2 "not a mount point" status mnt
wrong 2 "not a mount point" events mnt
wrong 2 "not a mount point" explain mnt disk 0
wrong 2 "not a quorumfs mount" status /proc
wrong 32 "not a quorumfs mount" umount /proc
wrong 2 "No such file" info nowhere.raw
wrong 2 "No such file" explain nowhere.raw a.raw 0
for words in --version --help "help mount" "info a.raw" "explain a.raw 0" "verify a.raw"; do
    exits "$words, nowhere to write" 2 sh -c "'$QUORUMFS' $words >/dev/full"
    exits "$words, standard output closed" 2 sh -c "'$QUORUMFS' $words >&-"
done
equal "says so" "$err" "quorumfs: standard output cannot be written"
newline=$'one\ntwo'
wrong 1 "unknown command 'one?two'" "$newline"
check "nothing is mounted" sh -c "! grep -q '$scratch' /proc/self/mountinfo"

exits "--version" 0 "$QUORUMFS" --version
check "names the program" sh -c "printf '%s' '$out' | grep -qE '^quorumfs [0-9]+\.[0-9]+'"
exits "--help" 0 "$QUORUMFS" --help
contains "lists the commands" "$out" "explain IMAGE"
exits "no words at all" 1 "$QUORUMFS"
contains "shows the commands" "$err" "umount"
for command in mount umount status events explain info verify repair scrub resync; do
    exits "help $command" 0 "$QUORUMFS" help $command
    contains "help $command shows it" "$out" "usage: quorumfs $command"
    text=$out
    exits "$command --help" 0 "$QUORUMFS" $command --help
    equal "$command --help is the same" "$out" "$text"
    exits "$command -h" 0 "$QUORUMFS" $command -h
    equal "$command -h, too" "$out" "$text"
done
wrong 1 "unknown command 'satus' (did you mean 'status'?)" help satus
