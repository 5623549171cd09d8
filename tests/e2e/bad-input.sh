#!/bin/bash
# O2, O3: a missing, truncated, foreign or hostile image gets one clear line and the exit
# code of the manual, within 64 MiB of memory; nothing is mounted and nothing is changed.
. "$(dirname "$0")/lib.sh"
python3 "$e2e/hostile.py" images >list || { not_ok "hostile.py"; exit 1; }
mkdir mnt state

# measured COMMAND...: runs it; status in $status, standard error in $err, the largest
# resident set of it and its helpers in $rss (KiB). It is ended after 10 s: a hang.
measured() {
    read -r status rss < <(python3 - "$@" 2>.err <<'PY'
import resource, subprocess, sys
try:
    code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          timeout=10).returncode
except subprocess.TimeoutExpired:
    code = "hang"
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
PY
    )
    err=$(cat .err)
}
fingerprint() { find images -type f -exec sha256sum {} + | sort | sha256sum; }
before=$(fingerprint)

refused() { # TEXT EXPECTED_STATUS MESSAGE_PART COMMAND...
    local text=$1 expected=$2 part=$3
    shift 3
    measured "$@"
    if [ "$status" != "$expected" ]; then
        not_ok "$text: exit $status instead of $expected ($err)"
    elif [ "$(wc -l <.err)" != 1 ] || [[ $err != "quorumfs: "* ]]; then
        not_ok "$text: not one line: $err"
    elif [[ $err != *"$part"* ]]; then
        not_ok "$text: '$part' is not in: $err"
    elif [ "$rss" -gt 65536 ]; then
        not_ok "$text: $rss KiB of memory"
    else
        ok "$text: ${err#quorumfs: }"
    fi
}

while read -r name text; do
    # Three hard links would be one file: three replicas are three copies.
    refused "info $name" 2 "$text" "$QUORUMFS" info "images/$name"
    refused "verify $name" 2 "$text" "$QUORUMFS" verify "images/$name" images/.good
    refused "mount $name" 32 "$text" "$QUORUMFS" mount -o state-dir=state "images/$name" mnt
done <list

refused "a missing image" 32 "No such file" "$QUORUMFS" mount -o state-dir=state nowhere.qcow2 mnt
refused "a FIFO named by the operator" 32 "fifo" "$QUORUMFS" mount -o state-dir=state raw:images/fifo.raw mnt
refused "a character device" 32 "/dev/zero" "$QUORUMFS" mount -o state-dir=state raw:/dev/zero mnt
refused "a directory" 32 "dir.raw" "$QUORUMFS" mount -o state-dir=state images/dir.raw mnt
truncate -s 1M one.raw two.raw
truncate -s 2M three.raw
refused "sizes that differ" 32 "replica 'c'" "$QUORUMFS" mount -o state-dir=state one.raw two.raw three.raw mnt
refused "sizes that differ, offline" 2 "replica 'c'" "$QUORUMFS" verify one.raw two.raw three.raw
refused "the same file twice" 32 "one.raw" "$QUORUMFS" mount -o state-dir=state one.raw one.raw two.raw mnt
ln one.raw link.raw
refused "the same file by another name" 32 "link.raw" "$QUORUMFS" mount -o state-dir=state one.raw link.raw two.raw mnt
refused "a threshold of 3 of 2" 1 "threshold may not exceed children count" \
    "$QUORUMFS" mount -o state-dir=state --threshold 3 one.raw two.raw mnt
refused "a threshold of 0" 1 "expects a value >= 1" \
    "$QUORUMFS" mount -o state-dir=state --threshold 0 one.raw two.raw mnt
refused "an unknown option" 1 "threshold" "$QUORUMFS" mount -o treshold=2 one.raw two.raw mnt
cp one.raw suffix.unknown
refused "a suffix that says nothing" 32 "format" "$QUORUMFS" mount -o state-dir=state suffix.unknown mnt

equal "no image was changed" "$(fingerprint)" "$before"
check "nothing is mounted" sh -c "! grep -q '$scratch' /proc/self/mountinfo"
equal "the mount point is empty" "$(ls -A mnt)" ""
