#!/bin/bash
# status: the JSON has the documented shape, the table fits 80 columns, one disk can be
# picked, and all three forms tell of a divergence.
. "$(dirname "$0")/lib.sh"
pattern a.raw 2M 1
cp a.raw b.raw
cp a.raw c.raw
long=$(printf 'd%.0s' {1..120})
mkdir -p "$long" && cp a.raw "$long/d.raw"
cat >vm.conf <<CONF
[disk one]
[replica one/a]
source=a.raw
[replica one/b]
source=b.raw
[replica one/a-rather-long-name-of-a-replica]
source=$long/d.raw
[disk other"disk]
[replica other"disk/c]
source=c.raw
CONF
check "mount" qmount mnt -o ro vm.conf
status() { "$QUORUMFS" status mnt "$@"; }
status --json >status.json
check "the JSON has the documented members and types" jq -e '
    def integer: type == "number" and . == floor and . >= 0;
    def text: type == "string" and length > 0;
    (.version | text) and (.pid | integer) and (.mountpoint | text) and (.uptime | integer)
    and (.socket | text) and (."state-dir" | text) and (.disks | length == 2)
    and all(.disks[]; (.name | text) and (.file | text) and (.size | integer)
        and (.threshold | integer) and (.jobs == [])
        and (."read-only" == true) and (."read-only-reason" == null)
        and (."unreconciled-bytes" == 0)
        and (.state | IN("healthy", "degraded", "failed"))
        and all(.replicas[]; (.name | text) and (.source | text)
            and (.format | IN("raw", "qcow", "qcow2"))
            and (.decoder | IN("raw", "native", "libqcow", "both"))
            and (.state | IN("in-sync", "stale", "hung", "failed", "resyncing", "removed"))
            and (."stale-bytes" | integer) and (."read-errors" | integer)
            and (."write-errors" | integer) and (."divergent-bytes" | integer)
            and (."latency-us" | integer)))' status.json >jq.out
equal "it is the mount's own" "$(jq -r .mountpoint status.json)" "$(realpath mnt)"
equal "of the running process" "$(tr '\0' ' ' <"/proc/$(jq .pid status.json)/cmdline" | grep -c quorumfs)" 1
equal "and what .quorumfs/status.json says" \
    "$(jq -S 'del(.uptime)' mnt/.quorumfs/status.json)" "$(jq -S 'del(.uptime)' status.json)"
equal "one disk of it" "$(status one --json | jq -c '[.disks[].name]')" '["one"]'
check "the table fits 80 columns" sh -c "! '$QUORUMFS' status mnt | grep -qE '^.{81}'"
equal "the table has every disk" "$(status | grep -c ' disk: ')" 2
equal "or the one" "$(status 'other"disk' | grep -c ' disk: ')" 1
on_terminal() { TERM=xterm script -qc "'$QUORUMFS' status mnt" /dev/null; }
coloured() { case $("$@") in *$'\033'*) return 0 ;; *) return 1 ;; esac; }
check "no colours in a pipe" eval '! coloured status'
check "a terminal gets colours" coloured on_terminal
check "unless NO_COLOR" eval '! NO_COLOR=1 coloured on_terminal'
contains "it says that it is read-only" "$(status)" "read-only: as asked for"
contains "what is counted are errors" "$(status)" "-- errors --"
check "nothing to do" sh -c "! '$QUORUMFS' status mnt | grep -q action:"
exits "an unknown disk" 2 "$QUORUMFS" status mnt onne
contains "names the nearest" "$err" "no disk 'onne' (did you mean 'one'?)"
equal "--prometheus is .quorumfs/metrics" "$(status --prometheus | grep -v uptime)" \
    "$(grep -v uptime mnt/.quorumfs/metrics)"
status 'other"disk' --prometheus >metrics
check "one disk of it" grep -qF '{disk="other\"disk",replica="c"}' metrics
check "and no other" sh -c '! grep -qF "disk=\"one\"" metrics'

qumount mnt
poke b.raw 8192 rotten
check "mount" qmount mnt -o ro vm.conf
check "a rotten sector is outvoted" cmp -s mnt/one.img a.raw
equal "the JSON counts its bytes" "$(status --json | jq '.disks[0].replicas[1]."divergent-bytes"')" 512
contains "the table says what to do" "$(status)" "action: replicas differed"
check "so do the metrics" grep -qE '^quorumfs_replica_divergent_bytes_total\{disk="one",replica="b"\} 512$' <(status --prometheus)
qumount mnt

poke c.raw 8192 spoilt
check "mount" qmount mnt -o ro a.raw b.raw c.raw
check "a sector without a majority is not served" sh -c '! cat mnt/disk.img >copy.raw 2>cat.err'
equal "the JSON counts the requests" "$(jq '.disks[0]."quorum-failures" >= 1' mnt/.quorumfs/status.json)" true
contains "the table does not say that it was" "$(status)" "action: requests failed"
qumount mnt
cp a.raw b.raw
cp a.raw c.raw

# Why a disk is read-only, and what a crash left there: a reader serves it, and touches nothing.
qemu-img convert -q -f raw -O qcow c.raw old.qcow
check "mount with an image that can only be read" qmount mnt a.raw b.raw old.qcow
check "says why" grep -q "read-only: replica 'c':" <(status)
check "in 80 columns" sh -c "! '$QUORUMFS' status mnt | grep -qE '^.{81}'"
qumount mnt
check "mount to write" qmount mnt -o state-dir="$PWD/crash" a.raw b.raw c.raw
check "says nothing of it" sh -c "! '$QUORUMFS' status mnt | grep -q read-only"
printf guest | dd of=mnt/disk.img conv=notrunc,fsync status=none
daemon_kill
before=$(cat a.raw b.raw c.raw crash/*.state crash/*/*.state 2>/dev/null | sha256sum)
check "mount read-only after a crash" qmount mnt -o ro,state-dir="$PWD/crash" a.raw b.raw c.raw
contains "says what is not reconciled" "$(status)" "state: not reconciled, 2 MiB"
contains "and what to do" "$(status)" "action: after a crash"
check "it is served" cmp -n 5 mnt/disk.img <(printf guest)
qumount mnt
equal "nothing was written" "$(cat a.raw b.raw c.raw crash/*.state crash/*/*.state 2>/dev/null | sha256sum)" "$before"
check "mount to write" qmount mnt -o state-dir="$PWD/crash" a.raw b.raw c.raw
check "it is healthy in the end" wait_for sh -c "'$QUORUMFS' status mnt | grep -q 'state: healthy'"
qumount mnt

# A journal that cannot be written: the disk serves, status and metrics say so. In a mount
# namespace of its own, so that the full file system goes with it.
full() {
    unshare -m sh -euc '
        mount -t tmpfs -o size=8k none full
        "$0" mount -o ro,cache=none,state-dir=full a.raw b.raw c.raw mnt 2>&1
        for at in $(seq 0 8192 1000000); do printf rot | dd of=c.raw bs=1 seek=$at conv=notrunc status=none; done
        cmp mnt/disk.img a.raw
        "$0" status mnt
        "$0" status mnt --prometheus | grep ^quorumfs_disk_journal_lost
        "$0" umount mnt' "$QUORUMFS"
}
if mkdir full && unshare -m sh -c 'mount -t tmpfs none full' 2>/dev/null; then
    exits "a full journal does not stop the disk" 0 full
    contains "status says so" "$out" "records could not be written"
    check "the metrics count" grep -qE '^quorumfs_disk_journal_lost_records_total\{disk="disk"\} [1-9]' <<<"$out"
    check "in 80 columns" sh -c '! grep -qE "^.{81}"' <<<"$out"
else
    skip "a full journal" "no mount namespaces"
fi
