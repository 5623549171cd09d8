#!/bin/bash
# make install with DESTDIR and PREFIX puts every part where it belongs, and takes it away.
. "$(dirname "$0")/lib.sh"
tree=$(dirname "$QUORUMFS")
make_install() { make -s -C "$tree" DESTDIR="$scratch/dest" PREFIX=/usr "$@" >/dev/null; }
check "make install" make_install install
for file in bin/quorumfs share/man/man1/quorumfs.1 share/bash-completion/completions/quorumfs \
    share/doc/quorumfs/examples/sample.conf sbin/mount.fuse.quorumfs; do
    check "$file is installed" test -s "dest/usr/$file"
done
equal "the installed program runs" "$(dest/usr/bin/quorumfs --version)" "$("$QUORUMFS" --version)"
check "bash reads the completion" bash -n dest/usr/share/bash-completion/completions/quorumfs
check "make uninstall" make_install uninstall
equal "nothing stays" "$(find dest -type f -o -type l)" ""
