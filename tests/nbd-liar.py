#!/usr/bin/env python3
"""nbd-liar.py SOCKET MODE: an NBD server of one export of 1 MiB that misbehaves.

It stays honest in the handshake unless the mode says otherwise, and starts lying with the
first command. Connections are served one after the other, each in a process of its own.
"""
import os
import signal
import socket
import struct
import sys
import time

SIZE = 1 << 20
OPT_MAGIC, REP_MAGIC = b"IHAVEOPT", 0x3E889045565A9
HAS, RO, FLUSH, FUA, ZEROES = 1, 2, 4, 8, 64


def take(conn, n):
    data = b""
    while len(data) < n:
        part = conn.recv(n - len(data))
        if not part:
            sys.exit(0)
        data += part
    return data


def reply(conn, opt, kind, data=b""):
    conn.sendall(struct.pack(">QIII", REP_MAGIC, opt, kind, len(data)) + data)


def chunk(conn, cookie, kind, data, flags=1):
    conn.sendall(struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(data)) + data)


def stall():
    while True:
        signal.pause()


def handshake(conn, mode, number):
    if mode == "greeting-garbage":
        conn.sendall(os.urandom(64))
        stall()
    conn.sendall(b"NBDMAGIC")
    if mode == "greeting-cut":
        sys.exit(0)
    if mode == "greeting-stall":
        stall()
    conn.sendall(OPT_MAGIC + struct.pack(">H", 3))
    take(conn, 4)
    while True:
        take(conn, 8)
        opt, length = struct.unpack(">II", take(conn, 8))
        take(conn, length)
        if mode == "options-cut":
            sys.exit(0)
        if opt == 8 and not mode.startswith("simple"):
            reply(conn, opt, 1)
        elif opt == 10:
            reply(conn, opt, 4, struct.pack(">I", 7) + b"base:allocation")
            reply(conn, opt, 1)
        elif opt == 7:
            if mode == "words":
                reply(conn, opt, 0x80000006, b"no \x1b[31msuch\nexport \xff")
                continue
            go(conn, mode, number)
            return
        else:
            reply(conn, opt, 0x80000001)


def go(conn, mode, number):
    size = {"size-huge": 1 << 63, "size-large": (1 << 62) + 1}.get(mode, SIZE)
    flags = HAS | FLUSH | FUA | ZEROES
    if mode == "changes" and number > 0:
        size *= 2
    if mode == "no-flush":
        flags = HAS
    if mode == "fua-only":
        flags = HAS | FUA
    reply(conn, 7, 3, struct.pack(">HQH", 0, size, flags))
    blocks = {"block-max": (512, 1024, 1024), "block-min": (1 << 17, 1 << 17, 1 << 20)}.get(mode)
    if blocks:
        reply(conn, 7, 3, struct.pack(">HIII", 3, *blocks))
    reply(conn, 7, 1)


def wait_for_others(kind):
    """Until three servers of the directory have got a command of this kind."""
    directory, suffix = os.path.dirname(sys.argv[1]), f".got-{kind}"
    open(sys.argv[1] + suffix, "w").close()
    while sum(name.endswith(suffix) for name in os.listdir(directory)) < 3:
        time.sleep(0.001)


def answer(conn, mode, kind, cookie, offset, length, flags):
    if mode == "stall":
        stall()
    if mode == "cut" or (mode == "cut-writes" and kind == 1) or \
       (mode in ("changes", "cut-flush") and kind == 3):
        sys.exit(0)
    if mode == "together":
        wait_for_others(kind)
    if mode == "garbage":
        conn.sendall(os.urandom(4096))
        stall()
    if mode == "cookie":
        cookie ^= 0x1234
    if mode == "fua-only" and kind == 1 and not flags & 1:
        chunk(conn, cookie, 0x8001, struct.pack(">IH", 22, 0))
    elif mode == "error" and kind != 3:
        chunk(conn, cookie, 0x8001, struct.pack(">IH", 22, 3) + b"\x1b[m")
    elif mode == "full" and kind in (1, 6):
        chunk(conn, cookie, 0x8001, struct.pack(">IH", 28, 0))
    elif kind == 0 and mode.startswith("simple"):
        data = b"\x11" * (length // 2 if mode == "simple-short" else length)
        conn.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + data)
        if mode == "simple-short":
            sys.exit(0)
    elif kind == 0 and mode == "short":
        chunk(conn, cookie, 1, struct.pack(">Q", offset) + b"\x11" * (length // 2))
    elif kind == 0 and mode == "flood":
        while True:
            conn.sendall(struct.pack(">IHHQIQB", 0x668E33EF, 0, 1, cookie, 9, offset, 1) * 1000)
    elif kind == 0 and mode == "dribble":
        conn.sendall(struct.pack(">IHHQI", 0x668E33EF, 1, 1, cookie, length + 8))
        while True:
            conn.sendall(b"\0")
    elif kind == 0 and mode == "nothing":
        chunk(conn, cookie, 0, b"")
    elif kind == 0 and mode == "outside":
        chunk(conn, cookie, 1, struct.pack(">Q", offset + length) + b"\x11" * 512)
    elif kind == 0 and mode == "overlap":
        for last in (0, 1):
            chunk(conn, cookie, 1, struct.pack(">Q", offset) + b"\x11" * (length // 2), last)
    elif kind == 0 and mode == "chunk-huge":
        conn.sendall(struct.pack(">IHHQI", 0x668E33EF, 1, 1, cookie, 0xFFFFFFFF))
        stall()
    elif kind == 0:
        chunk(conn, cookie, 1, struct.pack(">Q", offset) + b"\x11" * length)
    elif kind == 7:
        entries = {"status-huge": [(0xFFFFFFFF, 3)] * 1000, "status-zero": [(0, 3)],
                   "status-none": [], "status-short": [(1, 3)]}.get(mode, [(length, 0)])
        data = b"".join(struct.pack(">II", *e) for e in entries)
        chunk(conn, cookie, 5, struct.pack(">I", 7) + data)
    elif mode.startswith("simple"):
        conn.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie))
    else:
        chunk(conn, cookie, 0, b"")


def serve(conn, mode, number):
    handshake(conn, mode, number)
    while True:
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", take(conn, 28))
        if magic != 0x25609513 or kind == 2:
            return
        if kind == 1:
            take(conn, length)
        answer(conn, mode, kind, cookie, offset, length, flags)


def main():
    path, mode = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    number = 0
    while True:
        conn, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                serve(conn, mode, number)
            except OSError:
                pass
            os._exit(0)
        conn.close()
        number += 1


main()
