#!/usr/bin/env python3
"""Makes one directory of images that must be refused: NAME.FORMAT, plus what they point at.

Every image starts as a small valid one made by qemu-img; then one thing is broken. The
list printed on standard output is "NAME TEXT": TEXT must be part of the error message.
"""
import os
import struct
import subprocess
import sys

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
os.chdir(out)


def qemu_img(*words):
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def qemu_io(name, *commands):
    words = [w for c in commands for w in ("-c", c)]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, name], check=True,
                   stdout=subprocess.DEVNULL)


qemu_img("create", "-q", "-f", "qcow2", ".good", "16M")
qemu_io(".good", "write -q -P 65 0 1M", "write -q -P 66 8M 64k")
good = open(".good", "rb").read()
L1_OFFSET = struct.unpack(">Q", good[40:48])[0]
L2_OFFSET = struct.unpack(">Q", good[L1_OFFSET:L1_OFFSET + 8])[0] & 0x00FFFFFFFFFFFE00
COPIED = 1 << 63


def put(name, text, *patches, length=None, tail=b""):
    """A copy of the good image with (offset, format, value) patches."""
    image = bytearray(good)
    for offset, form, value in patches:
        data = value if form == "s" else struct.pack(">" + form, value)
        image[offset:offset + len(data)] = data
    image = image[:length] if length is not None else image
    with open(name, "wb") as f:
        f.write(bytes(image) + tail)
    print(name, text)


def backing(name, text, target, form=b"raw"):
    """An image whose header names a backing file."""
    extension = struct.pack(">II", 0xE2792ACA, len(form)) + form + b"\0" * (-len(form) % 8)
    extension += struct.pack(">II", 0, 0)
    header_length = struct.unpack(">I", good[100:104])[0]
    where = header_length + len(extension)
    raw = target.encode()
    put(name, text, (header_length, "s", extension), (where, "s", raw),
        (8, "Q", where), (16, "I", len(raw)))


# Foreign, truncated, empty.
open("empty.qcow2", "wb").close()
print("empty.qcow2 qcow2")
with open("foreign.qcow2", "wb") as f:
    f.write(os.urandom(65536).replace(b"QFI", b"xxx"))
print("foreign.qcow2 qcow2")
put("header-only.qcow2", "header-only.qcow2", length=60)
put("truncated.qcow2", "truncated.qcow2", length=L2_OFFSET + 4096)
put("qcow2-in.raw.img", "qcow2")

# Sizes, counts and offsets.
put("version.qcow2", "version", (4, "I", 9))
put("size-2-63.qcow2", "size", (24, "Q", 1 << 63))
put("size-huge.qcow2", "size-huge.qcow2", (24, "Q", (1 << 62) - 512))
put("cluster-bits-8.qcow2", "cluster", (20, "I", 8))
put("cluster-bits-60.qcow2", "cluster", (20, "I", 60))
put("l1-oversized.qcow2", "L1", (36, "I", 0x7FFFFFFF))
put("l1-32m.qcow2", "L1", (36, "I", (32 << 20) // 8))
put("l1-small.qcow2", "L1", (36, "I", 0))
put("l1-outside.qcow2", "L1", (40, "Q", 1 << 40))
put("l1-unaligned.qcow2", "L1", (40, "Q", L1_OFFSET + 512))
put("l1-wraps.qcow2", "L1", (40, "Q", (1 << 64) - 65536))
put("refcount-table-oversized.qcow2", "refcount", (56, "I", 0x7FFFFFFF))
put("refcount-table-outside.qcow2", "refcount", (48, "Q", 1 << 50))
put("refcount-order.qcow2", "refcount", (96, "I", 7))
put("header-length.qcow2", "header", (100, "I", 0xFFFFFFFF))
put("snapshots-many.qcow2", "snapshot", (60, "I", 70000), (64, "Q", 65536))
put("snapshots-outside.qcow2", "snapshot", (60, "I", 60000), (64, "Q", 1 << 45))
put("backing-name-long.qcow2", "backing", (8, "Q", 1024), (16, "I", 60000))
put("luks.qcow2", "LUKS", (32, "I", 2))
put("crypt-7.qcow2", "encrypt", (32, "I", 7))
put("incompatible.qcow2", "feature", (72, "Q", 1 << 40))

# Tables and clusters in the wrong place.
put("l2-outside.qcow2", "L2", (L1_OFFSET, "Q", COPIED | 1 << 45))
put("l2-unaligned.qcow2", "L2", (L1_OFFSET, "Q", COPIED | (L2_OFFSET + 512)))
put("l2-on-header.qcow2", "l2-on-header", (L1_OFFSET, "Q", COPIED | 65536))
put("l2-on-l1.qcow2", "l2-on-l1", (L1_OFFSET, "Q", COPIED | L1_OFFSET))
put("l1-reserved.qcow2", "L1", (L1_OFFSET, "Q", COPIED | L2_OFFSET | 1))
put("data-on-header.qcow2", "header", (L2_OFFSET, "Q", COPIED | 0 | 1 << 9))
put("data-on-l1.qcow2", "data-on-l1", (L2_OFFSET, "Q", COPIED | L1_OFFSET))
put("data-on-l2.qcow2", "data-on-l2", (L2_OFFSET, "Q", COPIED | L2_OFFSET))
put("data-on-refcounts.qcow2", "data-on-refcounts", (L2_OFFSET, "Q", COPIED | 65536))
put("data-outside.qcow2", "data-outside", (L2_OFFSET, "Q", COPIED | 1 << 45))
put("compressed-outside.qcow2", "compressed", (L2_OFFSET, "Q", 1 << 62 | 0x3FFF << 40 | 1 << 45))

# Extensions.
put("extension-overruns.qcow2", "extension", (112, "I", 0xE2792ACA), (116, "I", 0x7FFFFFFF))

# Names in images: all of them must stay unopened (O2).
open("plain.raw", "wb").write(b"x" * 65536)
os.makedirs("../outside", exist_ok=True)
open("../outside/secret.raw", "wb").write(b"s" * 65536)
os.symlink("../outside/secret.raw", "link.raw")
os.mkfifo("fifo.raw")
os.mkdir("dir.raw")
backing("out-relative.qcow2", "secret.raw", "../outside/secret.raw")
backing("out-absolute.qcow2", "/etc/passwd", "/etc/passwd")
backing("out-symlink.qcow2", "link.raw", "link.raw")
backing("out-dotdot.qcow2", "secret.raw", "./sub/../../outside/secret.raw")
backing("fifo.qcow2", "fifo.raw", "fifo.raw")
backing("directory.qcow2", "dir.raw", "dir.raw")
backing("device.qcow2", "/dev/zero", "/dev/zero")
backing("proc.qcow2", "/proc", "/proc/self/fd/0")
backing("json.qcow2", "json:", 'json:{"driver":"file","filename":"/etc/passwd"}')
backing("nbd.qcow2", "nbd:", "nbd:localhost:10809")
backing("http.qcow2", "http:", "http://localhost/x")
backing("missing.qcow2", "No such file", "nowhere.raw")
backing("itself.qcow2", "itself.qcow2", "itself.qcow2", b"qcow2")
backing("cycle-a.qcow2", "cycle-", "cycle-b.qcow2", b"qcow2")
backing("cycle-b.qcow2", "cycle-", "cycle-a.qcow2", b"qcow2")
backing("format-unknown.qcow2", "vmdk", "plain.raw", b"vmdk")
for i in range(80):
    with open(os.devnull, "w") as sys.stdout:
        backing(f"deep-{i}.qcow2", "", f"deep-{i + 1}.qcow2", b"qcow2")
    sys.stdout = sys.__stdout__
open("deep-80.qcow2", "wb").write(good)
print("deep-0.qcow2 layers")

# An external data file that lies outside.
qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=inside.raw", "df.qcow2", "1M")
image = open("df.qcow2", "rb").read()
for name, target in (("data-file-outside.qcow2", b"/etc/passwd"),
                     ("data-file-fifo.qcow2", b"fifo.raw"),
                     ("data-file-missing.qcow2", b"nowhere"),
                     ("data-file-json.qcow2", b"json:{}")):
    at = image.index(struct.pack(">I", 0x44415441))
    padded = target.ljust((len(target) + 7) // 8 * 8, b"\0")
    rest = image[at + 8 + 16:] if len(b"inside.raw") > 8 else image[at + 8 + 8:]
    new = image[:at + 4] + struct.pack(">I", len(target)) + padded + rest
    open(name, "wb").write((new + b"\0" * 64)[:len(image)])
    print(name, target.decode().split("{")[0])
os.remove("df.qcow2")
os.remove("inside.raw")
