#!/bin/bash
# A mounted disk of qcow2 replicas, each of another geometry, takes thousands of random
# operations like a plain file and like an image that QEMU writes. Afterwards the replicas
# are equal, and qemu-img check finds nothing in them. QUORUMFS_TEST_SEED repeats a run.
. "$(dirname "$0")/lib.sh"
seed=${QUORUMFS_TEST_SEED:-$(date +%s)}
count=${QUORUMFS_TEST_THOROUGH:+20000}
echo "# QUORUMFS_TEST_SEED=$seed"
pattern content.raw 6M "$seed"
dd if=/dev/zero of=content.raw bs=64k seek=20 count=20 conv=notrunc status=none

# replica NAME KIND: content.raw as a qcow2 image.
replica() {
    case $2 in
    overlay:*)
        cp content.raw "$1.base.raw"
        qemu-img create -q -f qcow2 -b "$1.base.raw" -F raw -o "${2#overlay:}" "$1.qcow2"
        ;;
    short:*) # a backing file that ends before the overlay does
        head -c 3M content.raw >"$1.base.raw"
        qemu-img create -q -f qcow2 -b "$1.base.raw" -F raw -o "${2#short:}" "$1.qcow2" 6M
        tail -c 3M content.raw >"$1.tail"
        qemu-io -t unsafe -f qcow2 -c "write -q -s $1.tail 3M 3M" "$1.qcow2"
        ;;
    compressed:*) qemu-img convert -c -f raw -O qcow2 -o "${2#compressed:}" content.raw "$1.qcow2" ;;
    snapshot:*)
        qemu-img convert -f raw -O qcow2 -o "${2#snapshot:}" content.raw "$1.qcow2"
        qemu-img snapshot -c before "$1.qcow2"
        ;;
    data:*)
        qemu-img create -q -f qcow2 -o "data_file=$1.data.raw,${2#data:}" "$1.qcow2" 6M
        qemu-img convert -n -f raw -O qcow2 content.raw "$1.qcow2"
        ;;
    raw:*) cp content.raw "$1.raw" ;;
    *) qemu-img convert -f raw -O qcow2 -o "$2" content.raw "$1.qcow2" ;;
    esac
}

format() { case $1 in *.raw) echo raw ;; *) echo qcow2 ;; esac; }

# Everything there is to say of images after an unmount: they hold expected.raw.
examine() { # TEXT IMAGE...
    local text=$1 image other
    shift
    for image; do
        [ "$(format "$image")" = raw ] ||
            check "$text: qemu-img check finds nothing in $image" \
                qemu-img check -q -f qcow2 "$image"
        check "$text: $image is what was written" \
            qemu-img compare -q -f raw -F "$(format "$image")" expected.raw "$image"
        for other; do
            [ "$image" = "$other" ] || qemu-img compare -q -f "$(format "$image")" \
                -F "$(format "$other")" "$image" "$other" ||
                not_ok "$text: $image and $other differ"
        done
    done
    exits "$text: verify" 0 "$QUORUMFS" verify "$@"
}

# write_on "OPTIONS" COUNT "WRITER OPTIONS" KIND...
write_on() {
    local options=$1 number=${count:-$2} how=$3 kind name images=()
    shift 3
    rm -f ./*.qcow2 ./[a-c].*
    for name in a b c; do
        replica $name "$1" || not_ok "replica $1"
        images+=("$(ls $name.qcow2 $name.raw 2>/dev/null)")
        shift
    done
    cp content.raw expected.raw
    # shellcheck disable=SC2086
    qmount mnt $options "${images[@]}" || { not_ok "mount $options ${images[*]}"; return; }
    # shellcheck disable=SC2086
    check "$options: $number operations ($how), as on a plain file" \
        python3 "$e2e/writer.py" mnt/disk.img expected.raw "$seed" "$number" $how
    equal "$options: digest" "$(digest mnt/disk.img)" "$(digest expected.raw)"
    qumount mnt || not_ok "unmount"
    examine "${images[*]} $options" "${images[@]}"
}

write_on "" 1200 "direct resize" cluster_size=64k cluster_size=512 \
    overlay:extended_l2=on,cluster_size=16k
write_on "-o cache=none" 1000 "direct resize" cluster_size=2M,lazy_refcounts=on \
    compressed:cluster_size=4k,compression_type=zstd data:cluster_size=64k
write_on "-o cache=writeback" 1000 "resize" overlay:cluster_size=64k short:cluster_size=4k \
    raw:
write_on "-s" 600 "direct" snapshot:cluster_size=64k data:data_file_raw=on \
    cluster_size=1k,refcount_bits=1
qemu-img convert -f qcow2 -l before -O raw a.qcow2 before.raw
check "the snapshot is as it was" cmp before.raw content.raw

# The same operations by qemu-io.
qemu-img convert -f raw -O qcow2 content.raw qemu.keep
write_on "" 1000 "direct resize commands=commands" cluster_size=64k,extended_l2=on \
    compat=0.10 cluster_size=512,refcount_bits=64
qemu-io -t unsafe -f qcow2 qemu.keep <commands >qemu.log 2>&1
check "QEMU's image is the same" qemu-img compare -q -f qcow2 -F qcow2 qemu.keep a.qcow2
