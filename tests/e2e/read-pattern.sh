#!/bin/bash
# Whom reads ask: with rotate replicas share the reads, counted by their servers, and a wrong
# or missing one is outvoted all the same; fifo reads one; blkverify names the byte.
. "$(dirname "$0")/lib.sh"
command -v nbdkit >/dev/null || { skip "read patterns" "no nbdkit"; exit 0; }

listens() { python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"; }
serve() { # NAME: NAME.raw on NAME.sock, its requests in NAME.log; its pid is in pid_NAME
    rm -f "$1.sock"
    start nbdkit -f --exit-with-parent -U "$1.sock" --filter=log file "$1.raw" logfile="$1.log" 2>nbdkit.log
    printf -v "pid_$1" %s "$started"
    wait_for listens "$1.sock"
}
reads() { grep -c 'Read id=.*offset=' "$1.log"; } # so many since forget
forget() { local name; for name in a b c; do : >"$name.log"; done; }
uris=()
for name in a b c; do uris+=("nbd+unix:///?socket=$scratch/$name.sock"); done
events() { "$QUORUMFS" events mnt | grep -c "$1"; }
read_all() { digest mnt/disk.img iflag=direct; } # 12 requests of a MiB

pattern content.raw 12M 7
for name in a b c; do cp content.raw "$name.raw"; serve "$name"; done
good=$(digest content.raw)

# ---- quorum ----------------------------------------------------------------------------
qmount mnt -o cache=none "${uris[@]}" || { not_ok "mount"; exit; }
equal "quorum is the default" "$("$QUORUMFS" status --json mnt | jq -r '.disks[0]."read-pattern"')" quorum
forget
equal "quorum reads" "$(read_all)" "$good"
quorum=$(reads a)
check "and asks" test "$quorum" -gt 0
equal "everybody for everything" "$(reads a) $(reads b) $(reads c)" "$quorum $quorum $quorum"
qumount mnt

# ---- rotate ----------------------------------------------------------------------------
qmount mnt -o cache=none,read-pattern=rotate "${uris[@]}" || not_ok "mount rotate"
equal "status says rotate" "$("$QUORUMFS" status --json mnt | jq -r '.disks[0]."read-pattern"')" rotate
forget
equal "rotate reads" "$(read_all)" "$good"
equal "and asks two of three" "$(($(reads a) + $(reads b) + $(reads c)))" "$((2 * quorum))"
for name in a b c; do check "$name does a part of it" test "$(reads "$name")" -gt 0; done
equal "nothing is journalled" "$("$QUORUMFS" events mnt | grep -c -v state)" 0
exits "writes are read back by fio" 0 fio --name=v --filename=mnt/disk.img --allow_file_create=0 --size=12M \
    --rw=randrw --bs=4k --io_size=6M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --direct=1 \
    --ioengine=libaio --iodepth=8 --output-format=terse
dd if=content.raw of=mnt/disk.img bs=1M conv=notrunc,fsync status=none
for at in 0 1 2; do poke b.raw $((at << 20)) rot; done
equal "a replica that rots is outvoted" "$(read_all)" "$good"
check "and named" test "$(events '"divergence".*"losers":\[{"replica":"b"')" -gt 0
kill -9 "$pid_c"; wait "$pid_c" 2>/dev/null
equal "with a server gone the other two must agree" "$(dd if=mnt/disk.img bs=1M skip=3 iflag=direct status=none | sha256sum)" \
    "$(dd if=content.raw bs=1M skip=3 status=none | sha256sum)"
dd if=mnt/disk.img of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
equal "and where they do not, reads fail" $? 1
check "it is unmounted" qumount mnt

# ---- fifo ------------------------------------------------------------------------------
rm -rf state
for name in b c; do cp content.raw "$name.raw"; done
serve c
qmount mnt -o cache=none,read-pattern=fifo "${uris[@]}" || not_ok "mount fifo"
forget
equal "fifo reads" "$(read_all)" "$good"
equal "and asks the first" "$(reads a) $(reads b) $(reads c)" "$quorum 0 0"
poke a.raw 4096 rot
check "which is believed" test "$(read_all)" != "$good"
kill -9 "$pid_a"; wait "$pid_a" 2>/dev/null
forget
equal "the next one is read when it is gone" "$(read_all)" "$good"
equal "alone" "$(reads c)" 0
check "and the journal has the error" test "$(events '"replica":"a","errno"')" -gt 0
check "it is unmounted" qumount mnt

# ---- blkverify -------------------------------------------------------------------------
rm -rf state
qemu-img convert -q -O qcow2 content.raw new.qcow2
cp content.raw a.raw
qmount mnt -o blkverify,cache=none a.raw new.qcow2 || not_ok "mount blkverify"
equal "status says blkverify" "$("$QUORUMFS" status --json mnt | jq '.disks[0].blkverify')" true
equal "blkverify reads what is equal" "$(read_all)" "$good"
was=$(od -An -tx1 -j 70000 -N 1 content.raw | tr -d ' ')
rot=$(printf %02x $((0x$was ^ 0xff)))
printf "\x$rot" | dd of=a.raw bs=1 seek=70000 conv=notrunc status=none
dd if=mnt/disk.img of=/dev/null bs=64k skip=1 count=1 iflag=direct 2>/dev/null
equal "what differs fails" $? 1
contains "and the first byte is named, with both values" "$("$QUORUMFS" events mnt)" \
    "byte 70000 is 0x$rot in 'a' and 0x$was in 'b'"
check "it is unmounted" qumount mnt
