#!/bin/bash
# R3, R4, W2 with a real server: one of three NBD replicas answers with errors for a while. The
# guest sees none; the journal has each; what that replica missed is remembered across a crash,
# and copied to it when its errors end.
. "$(dirname "$0")/lib.sh"
. "$e2e/nbd-lib.sh"
replicas=("$(nbd_uri a)" "$(nbd_uri b)" "$(nbd_uri c)")
journal_of_b() { # OP: its failures there, as errno and action
    "$QUORUMFS" events mnt | jq -c "select(.event == \"replica-error\" and .op == \"$1\")
        | [.losers[0].replica, .errno, .action]" | sort -u
}
content() { dd if=mnt/disk.img bs=1M count=4 iflag=direct status=none | sha256sum | cut -d' ' -f1; }

truncate -s 32M a.raw b.raw c.raw
serve a
serve b --filter=error error-pread=EIO error-pread-rate=100% error-pread-file="$scratch/bad-reads" \
    error-pwrite=EIO error-pwrite-rate=100% error-pwrite-file="$scratch/bad-writes"
serve c
qmount mnt -o cache=none "${replicas[@]}" || { not_ok "mount"; exit 1; }
pattern content.raw 4M 1
dd if=content.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none

touch bad-reads
equal "reads that fail on one replica are served" "$(content)" "$(digest content.raw)"
equal "and journalled" "$(journal_of_b read)" '["b",5,"served"]'
equal "they put nobody out" "$(replica_state b)" in-sync
check "and are counted" test "$(disk_figure '.replicas[1]."read-errors"')" -gt 0
rm bad-reads

touch bad-writes
pattern content.raw 4M 2
check "a write that fails on one replica succeeds" \
    dd if=content.raw of=mnt/disk.img bs=64k conv=notrunc,fsync status=none
contains "and is journalled" "$(journal_of_b write)" '["b",5,"served"]'
check "the replica is not in sync" test "$(replica_state b)" != in-sync
check "it lacks what it missed" test "$(disk_figure '.replicas[1]."stale-bytes"')" -ge 4194304
daemon_kill
check "b holds something else" sh -c '! cmp -s -n 4194304 content.raw b.raw'
qmount mnt -o cache=none "${replicas[@]}" || not_ok "mount after the crash"
check "after a crash it is not asked for that" test "$(replica_state b)" != in-sync
equal "what was acknowledged is served" "$(content)" "$(digest content.raw)"
rm bad-writes
check "when its errors end it catches up" wait_for is_healthy
check "it is unmounted" qumount mnt
check "a and b are equal" cmp a.raw b.raw
check "a and c are equal" cmp a.raw c.raw
check "and hold what was written" cmp -n 4194304 content.raw b.raw
