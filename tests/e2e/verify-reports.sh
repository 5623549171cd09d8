#!/bin/bash
# verify's files: map, picture and manifest; they are whole or not there, and never an image.
. "$(dirname "$0")/lib.sh"
verify() { "$QUORUMFS" verify "$@"; }
map_valid() { ddrescuelog -q -t "$1" >/dev/null; }
there() { ls "$@" >/dev/null; }
mkdir a b c
pattern a/x.raw 3M 1
truncate -s 5M a/x.raw
cp a/x.raw b/x.raw
cp a/x.raw c/x.raw

exits "all reports at once" 0 verify --mapfile map --svg svg --manifest manifest {a,b,c}/x.raw
check "ddrescuelog accepts the map" map_valid map
equal "all of it is finished" "$(ddrescuelog -l+ -b5242880 map)" 0
check "ddrescuelog finds nothing else" test -z "$(ddrescuelog -l'?/-' map)"
check "the picture is well-formed" python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse("svg")'
equal "the manifest's header" "$(head -n 4 manifest)" "quorumfs-manifest 1
size 5242880
range 1048576
digest sha256"
expected=$(for i in 0 1 2 3 4; do
    echo "$((i << 20)) 1048576 $(dd if=a/x.raw bs=1M skip=$i count=1 status=none | sha256sum | cut -d' ' -f1)"
done)
equal "its digests are sha256sum's" "$(tail -n +5 manifest)" "$expected"
for r in a b c; do exits "replica $r alone is as the manifest says" 0 verify --check manifest $r/x.raw; done
contains "it says so" "$out" "as in the manifest"
qemu-img convert -q -c -O qcow2 c/x.raw c/x.qcow2
exits "a copy in another format too" 0 verify --check manifest c/x.qcow2
exits "another length of ranges" 0 verify --manifest small --manifest-range 64K a/x.raw
equal "has as many lines" "$(wc -l <small)" $((4 + 80))
exits "can be checked too" 0 verify --check small b/x.raw c/x.raw

# Differences.
poke b/x.raw 1048577 rotten
poke c/x.raw 3145728 rotten
poke a/x.raw 3145729 spoilt
exits "differing replicas" 5 verify --mapfile map --svg svg --manifest new {a,b,c}/x.raw
check "ddrescuelog still accepts the map" map_valid map
equal "/ is what differs with a majority" "$(ddrescuelog -b512 -l/ map)" 2048
equal "- is what has none" "$(ddrescuelog -b512 -l- map)" 6144
check "the picture is well-formed" python3 -c 'import xml.dom.minidom; xml.dom.minidom.parse("svg")'
equal "it marks the loser once" "$(grep -c "<rect class='differs' .*512 bytes" svg)" 1
equal "and all three where there is no majority" "$(grep -c "<rect class='nomajority' .*512 bytes" svg)" 3
equal "the manifest knows nothing of that range" "$(sed -n 8p new)" "3145728 1048576 -"
equal "the others are the majority's" "$(sed '8d' new)" "$(sed '8d' manifest)"
exits "the manifest finds a bad replica" 1 verify --check manifest --mapfile map b/x.raw
contains "and where" "$out" "1048576 1048576 differs from the manifest"
equal "also in the map" "$(ddrescuelog -b1048576 -l/ map)" 1
exits "JSON" 1 verify --json --check manifest b/x.raw
equal "has the same" "$(jq -c '[.disks[0].manifest[] | [.offset, .length, .state]]' <<<"$out")" '[[1048576,1048576,"different"]]'
exits "what the manifest does not know is no agreement" 5 verify --check new b/x.raw
contains "and named" "$out" "3145728 1048576 is not in the manifest"
qemu-img convert -q -f qcow2 -O raw c/x.qcow2 d.raw
cp d.raw e.raw
exits "the vote is checked, not each replica" 1 verify --check manifest d.raw e.raw b/x.raw
equal "the voted data is as the manifest says" "$(grep -c 'from the manifest' <<<"$out")" 0

# Manifests that cannot be used.
head -n -1 manifest >short
exits "half a manifest" 2 verify --check short b/x.raw
contains "is said to be one" "$err" "short: line 8: the manifest ends too early"
truncate -s 4M d.raw
exits "a manifest of another size" 2 verify --check manifest d.raw
exits "no manifest" 2 verify --check nowhere d.raw

# Files that cannot be written, or must not.
exits "a report in a directory that is not there" 2 verify --svg no/such/dir/svg a/x.raw
contains "is named" "$err" "no/such/dir/svg: cannot be written: No such file or directory"
before=$(sha256sum b/x.raw)
exits "a report in the place of an image" 2 verify --mapfile b/x.raw {a,b,c}/x.raw
equal "leaves the image alone" "$(sha256sum b/x.raw)" "$before"
qemu-img create -q -f qcow2 -b x.raw -F raw b/top.qcow2
exits "also in the place of a backing file" 2 verify --mapfile b/x.raw b/top.qcow2
equal "which stays, too" "$(sha256sum b/x.raw)" "$before"
before=$(sha256sum a/x.raw)
for option in mapfile svg manifest; do
    exits "--$option without its FILE" 2 verify --$option {a,b,c}/x.raw
    contains "is told" "$err" "a/x.raw: exists and is no older report"
done
equal "the image that stood there stays" "$(sha256sum a/x.raw)" "$before"
: >empty
exits "an empty file may be replaced" 0 verify --mapfile empty a/x.raw
check "it is" map_valid empty
exits "an older report too" 0 verify --mapfile empty a/x.raw
exits "but not by another" 2 verify --svg empty a/x.raw
exits "two reports in one file" 64 verify --mapfile one --svg one a/x.raw
check "make none" test ! -e one
exits "a full device" 2 verify --svg /dev/full a/x.raw
exits "a full standard output" 2 sh -c '"$0" verify a/x.raw >/dev/full' "$QUORUMFS"
exits "a map on standard output" 0 verify --mapfile /dev/stdout a/x.raw
equal "is whole and first" "$(head -n 1 <<<"$out" | cut -c 1-9)" "# Mapfile"
equal "no half-written files are left" "$(ls | grep -c 'XXXX\|\.[A-Za-z0-9]\{6\}$')" 0

# Several disks: a file for each.
printf '[disk %s]\n[replica %s/a]\nsource=a/x.raw\n' one one >set.conf
printf '[disk %s]\n[replica %s/a]\nsource=c/x.raw\n' two two >>set.conf
exits "reports of several disks" 0 verify --svg r.svg --mapfile map2 --manifest ./m.txt set.conf
check "have the disk's name before the suffix" there r-one.svg r-two.svg map2-one map2-two m-one.txt m-two.txt
exits "and are found again" 0 verify --check ./m.txt set.conf

# Progress and signals. Standard output is a pipe that nobody empties at first, so that the
# program cannot be done before the signal comes.
head -c 16M /dev/zero >z.raw
python3 - <<'PY'
with open('y.raw', 'wb') as f:
    f.write((b'\1' + bytes(1023)) * (16 << 10))
PY
mkfifo pipe
signalled() { # SIGNAL: sets $status, $said, $err
    "$QUORUMFS" verify -p --mapfile part --manifest part-manifest y.raw z.raw >pipe 2>.err &
    local pid=$! first
    exec 3<pipe
    read -r first <&3
    kill -"$1" $pid
    said=$(cat <&3)
    wait $pid
    status=$?
    exec 3<&-
    err=$(cat .err)
}
signalled USR1
equal "SIGUSR1 does not end it" "$status" 5
check "it prints a line of progress" test "$(grep -c '^disk: .* of 16 MiB' <<<"$err")" -ge 2
contains "all is verified" "$said" "16777216 bytes compared"
check "ddrescuelog accepts a map of many ranges" map_valid part
rm -f part part-manifest
signalled INT
equal "SIGINT ends it" "$status" 130
contains "with a summary that says so" "$(tail -n 1 <<<"$said")" "interrupted: 2 replicas"
check "the map is written" map_valid part
check "and knows what was not read" test "$(ddrescuelog -b512 '-l?' part | wc -l)" -gt 0
check "half a manifest is not" test ! -e part-manifest
signalled TERM
equal "SIGTERM ends it as well" "$status" 143
exits "-p without a terminal" 0 verify -p a/x.raw
contains "prints lines" "$err" "disk: 100.0%"
exits "without -p" 0 verify a/x.raw
equal "nothing" "$err" ""
