#!/bin/bash
# What happens on a mount is told on its control socket: divergences in QEMU's words and in
# ours, and each change of a replica's state.
. "$(dirname "$0")/lib.sh"

pattern a.raw 4M 1
cp a.raw b.raw && cp a.raw c.raw
qmount mnt -o cache=none a.raw b.raw c.raw || { not_ok "mount"; exit 1; }
socket=$("$QUORUMFS" status --json mnt | jq -r .socket)

# listen N: the next N events, one a line, after "ready".
cat >listen.py <<'END'
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
f = s.makefile("rw", newline="\r\n")
f.readline()
f.write('{"execute":"qmp_capabilities"}\r\n'); f.flush()
f.readline()
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    e = json.loads(f.readline())
    d = e["data"]
    print(e["event"], d.get("node-name", d.get("disk")), d.get("sector-num"), d.get("sectors-count"), d.get("count"), flush=True)
END
start python3 listen.py "$socket" 4 >heard
listener=$started
wait_for grep -q ready heard
poke c.raw 8192 "changed"
dd if=mnt/disk.img of=/dev/null bs=4k skip=2 count=1 iflag=direct status=none
dd if=mnt/disk.img of=/dev/null bs=4k skip=2 count=1 iflag=direct status=none
wait "$listener"
equal "a divergence is told each time, of exactly its sectors" "$(tail -n +2 heard)" \
    "QUORUM_REPORT_BAD disk.c 16 1 None
quorumfs-divergence disk None None 1
QUORUM_REPORT_BAD disk.c 16 1 None
quorumfs-divergence disk None None 2"
check "unmounts" qumount mnt
