#!/bin/bash
# make install with DESTDIR and PREFIX puts every part where it belongs, and takes it away.
. "$(dirname "$0")/lib.sh"
tree=$(dirname "$QUORUMFS")
make_install() { make -s -C "$tree" DESTDIR="$scratch/dest" PREFIX=/usr "$@" >/dev/null; }
sources=$(ls "$tree"/fuse/*.c "$tree"/quorum/*.c "$tree"/formats/*.c | wc -l)
compiles() { make -n -C "$tree" "$@" quorumfs 2>/dev/null | grep -c -- ' -c -o '; }
equal "another compiler does not get this one's objects" "$(compiles CC=other-cc)" "$sources"
equal "nor do other flags" "$(compiles CFLAGS=-O7)" "$sources"
equal "another BUILD is built, though ./quorumfs is there" "$(compiles BUILD="$scratch/build")" "$sources"
check "make install" make_install install
for file in bin/quorumfs share/man/man1/quorumfs.1 share/bash-completion/completions/quorumfs \
    share/doc/quorumfs/examples/sample.conf sbin/mount.fuse.quorumfs; do
    check "$file is installed" test -s "dest/usr/$file"
done
equal "the installed program runs" "$(dest/usr/bin/quorumfs --version)" "$("$QUORUMFS" --version)"
check "bash reads the completion" bash -n dest/usr/share/bash-completion/completions/quorumfs
check "make uninstall" make_install uninstall
equal "nothing stays" "$(find dest -type f -o -type l)" ""
