#!/bin/bash
# info says the same as qemu-img info about every kind of image, and which decoder serves
# it and why; hostile names stay on their line; nothing but one line where it cannot open.
. "$(dirname "$0")/lib.sh"
pattern content.raw 3M 5

info_json() { "$QUORUMFS" info --json "$@"; }
# same NAME FORMAT: our figures against qemu-img's.
same() {
    local ours theirs
    ours=$(info_json --format "$2" "$1" | jq -c '.layers[0] | [.format, ."virtual-size",
        (if ."cluster-size" == 0 then null else ."cluster-size" end), ."backing-file",
        ."backing-format", .snapshots, .encrypted]')
    theirs=$(qemu-img info --output=json -f "$2" "$1" | jq -c '[.format, ."virtual-size",
        ."cluster-size", ."backing-filename", ."backing-filename-format",
        (.snapshots // [] | length), (.encrypted // false)]')
    if [ "$2" = qcow ]; then # qemu-img shows a cluster size only for some
        theirs=$(jq -c '.[2] = null' <<<"$theirs") ours=$(jq -c '.[2] = null' <<<"$ours")
    fi
    equal "$1 as qemu-img sees it" "$ours" "$theirs"
}
# specific NAME: the parts of qcow2 that qemu-img lists under format-specific.
specific() {
    equal "$1: version, compression, refcounts, extended L2, lazy refcounts" \
        "$(info_json --format qcow2 "$1" | jq -c '.layers[0] | [.version, .compression,
            ."refcount-bits", ."extended-l2", ."lazy-refcounts"]')" \
        "$(qemu-img info --output=json -f qcow2 "$1" | jq -c '."format-specific".data |
            [if .compat == "0.10" then 2 else 3 end, ."compression-type", ."refcount-bits",
             ."extended-l2" // false, ."lazy-refcounts" // false]')"
}

same content.raw raw
equal "the file's size" "$(info_json content.raw | jq '.layers[0]."file-size"')" "$(stat -c %s content.raw)"
for options in cluster_size=512 cluster_size=2M compat=0.10 refcount_bits=1 refcount_bits=64 \
    lazy_refcounts=on extended_l2=on preallocation=metadata compression_type=zstd; do
    qemu-img convert -q -O qcow2 -o $options content.raw image.qcow2
    same image.qcow2 qcow2
    specific image.qcow2
done
qemu-img convert -q -c -O qcow2 content.raw zlib.qcow2
same zlib.qcow2 qcow2
qemu-img convert -q -O qcow2 content.raw snap.qcow2
qemu-img snapshot -c one snap.qcow2
qemu-img snapshot -c two snap.qcow2
same snap.qcow2 qcow2
qemu-img convert -q -O qcow content.raw one.qcow
same one.qcow qcow
qemu-img create -q -f qcow2 -o data_file=data.raw ext.qcow2 3M
same ext.qcow2 qcow2
equal "the data file is named" "$(info_json ext.qcow2 | jq -r '.layers[0]."data-file"')" \
    "$(realpath data.raw)"

mkdir chain
cp content.raw chain/bottom.raw
qemu-img create -q -f qcow2 -b bottom.raw -F raw chain/middle.qcow2
qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 chain/top.qcow2
same chain/top.qcow2 qcow2
equal "--chain lists every layer" \
    "$(info_json --chain chain/top.qcow2 | jq -c '[.depth, [.layers[].format]]')" \
    '[3,["qcow2","qcow2","raw"]]'
equal "without it only the top" "$(info_json chain/top.qcow2 | jq -c '[.depth, (.layers | length)]')" '[3,1]'
contains "and a summary of the chain" "$("$QUORUMFS" info chain/top.qcow2)" "3 layers"
equal "the table of a chain has every file" \
    "$("$QUORUMFS" info --chain chain/top.qcow2 | grep -c "image: $(realpath chain)/")" 3

decoder() { info_json "$@" | jq -c '.layers[0] | [.decoder, .note != null]'; }
qemu-img create -q -f qcow2 plain.qcow2 3M
qemu-io -f qcow2 -c 'write -q 0 1M' plain.qcow2
equal "auto takes libqcow where it decodes rightly" "$(decoder plain.qcow2)" '["libqcow",false]'
qemu-io -f qcow2 -c 'write -q -z 1M 64k' plain.qcow2
equal "and the native one elsewhere, with a note" "$(decoder plain.qcow2)" '["native",true]'
contains "the note says why" "$("$QUORUMFS" info plain.qcow2)" "zero clusters"
equal "decoder=native is obeyed" "$(decoder -o decoder=native snap.qcow2 | jq -c '.[0]')" '"native"'
equal "raw needs none" "$(decoder content.raw)" '["raw",false]'

equal "FMT:PATH names the format" "$(info_json raw:snap.qcow2 | jq -r '.layers[0].format')" raw
cp snap.qcow2 lie.raw
exits "content that disagrees with the suffix is refused (O1)" 2 "$QUORUMFS" info lie.raw
mkdir else
qemu-img create -q -f qcow2 else/base.qcow2 1M
mkdir top
qemu-img create -q -f qcow2 -b ../else/base.qcow2 -F qcow2 top/top.qcow2
exits "a backing file elsewhere is refused (O2)" 2 "$QUORUMFS" info top/top.qcow2
equal "it is one line" "$(wc -l <.err)" 1
exits "allow-dir= allows it" 0 "$QUORUMFS" info -o allow-dir=else top/top.qcow2
name=$'two\nlines\033[31m\xc2\x9b2J.raw'
cp content.raw "$name"
qemu-img create -q -f qcow2 -b "$name" -F raw odd.qcow2
exits "a name with a newline and an escape" 0 "$QUORUMFS" info --chain odd.qcow2
contains "stays on its line" "$out" "backing file: two?lines?[31m?2J.raw (raw)"
rm "$name"
exits "also in an error" 2 "$QUORUMFS" info odd.qcow2
equal "which is one line" "$(wc -l <.err)" 1
printf 'secret' >secret
qemu-img create -q --object secret,id=s,data=secret -f qcow2 \
    -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M 2>/dev/null ||
    qemu-img create -q --object secret,id=s,data=secret -f qcow -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M
exits "an encrypted image without its password" 2 "$QUORUMFS" info aes.qcow2
exits "and with it" 0 "$QUORUMFS" info -o password-file=secret aes.qcow2
contains "says so" "$out" "AES"
