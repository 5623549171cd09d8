# nbd-lib.sh: what scripts with replicas on NBD servers share, beside lib.sh; sourced by them
# after it. Replica NAME is served from NAME.raw on NAME.sock.
command -v nbdkit >/dev/null || { skip "NBD replicas" "no nbdkit"; exit 0; }

nbd_listens() { python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"; }
nbd_uri() { printf 'nbd+unix:///?socket=%s/%s.sock' "$scratch" "$1"; }
# serve NAME [NBDKIT ARGUMENTS...]: filters first, then parameters. Its pid is in pid_NAME.
serve() {
    local name=$1 filters=() parameters=() word
    shift
    for word; do case $word in -*) filters+=("$word") ;; *) parameters+=("$word") ;; esac; done
    rm -f "$name.sock"
    start nbdkit -f --exit-with-parent -U "$scratch/$name.sock" "${filters[@]}" file "$name.raw" \
        "${parameters[@]}" 2>>nbd.log
    printf -v "pid_$name" %s "$started"
    wait_for nbd_listens "$name.sock"
}
# serve_qemu NAME: the same by qemu-nbd.
serve_qemu() {
    rm -f "$1.sock"
    start qemu-nbd -t --cache=writeback -f raw -e 8 -k "$scratch/$1.sock" "$1.raw" 2>>nbd.log
    printf -v "pid_$1" %s "$started"
    wait_for nbd_listens "$1.sock"
}
server_pid() { local pid=pid_$1; printf %s "${!pid}"; }
server_kill() { # NAME: at once
    local pid
    pid=$(server_pid "$1")
    kill -9 "$pid"
    wait "$pid" 2>/dev/null
}
