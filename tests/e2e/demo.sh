#!/bin/bash
# `make demo` shows what it promises, without a terminal, and leaves nothing behind.
. "$(dirname "$0")/lib.sh"
demo=$(dirname "$QUORUMFS")/contrib/demo.sh
mkdir tmp
exits "the demo runs" 0 env TMPDIR="$scratch/tmp" QUORUMFS="$QUORUMFS" "$demo"
contains "the journal's record is shown" "$out" '"event"'
contains "the record names the loser" "$out" '"divergence"'
contains "verify's verdict is shown" "$out" "exit status 1"
equal "nothing is left behind" "$(ls tmp)" ""
check "nothing is left mounted" sh -c "! grep -q '$scratch' /proc/self/mountinfo"
