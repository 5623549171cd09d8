#!/usr/bin/env python3
"""writer.py DISK MODEL SEED COUNT [OPTION...]: COUNT random operations on DISK (a mounted
disk) and on MODEL (a plain file of the same content), compared byte by byte. Options:
direct (some writes and reads are O_DIRECT), resize (ftruncate, too), commands=FILE (writes
are of one byte each, and FILE gets what qemu-io is to do for the same), sync (fsync at the
end; else nothing is forced), quiet=END (nothing is written from there on).
Exit status: 0, or 1 and a line that says what differs and after which operation."""
import ctypes
import mmap
import os
import random
import sys

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd, mode, offset, length):
    if libc.fallocate(fd, mode, offset, length) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Writer:
    def __init__(self, disk, model, seed, options):
        self.random = random.Random(seed)
        self.disk = os.open(disk, os.O_RDWR)
        self.direct = os.open(disk, os.O_RDWR | os.O_DIRECT) if "direct" in options else -1
        self.model = os.open(model, os.O_RDWR)
        self.size = os.fstat(self.model).st_size
        self.largest = self.size + self.size // 2
        self.end = int(options.get("quiet", 1 << 62))
        self.resizes = "resize" in options
        self.commands = open(options["commands"], "w") if "commands" in options else None
        self.last = "nothing"
        # Aligned, as O_DIRECT wants it.
        self.page = mmap.mmap(-1, 1 << 20)

    def note(self, text, command=None):
        self.last = text
        if self.commands and command:
            print(command, file=self.commands)

    def range(self):
        size = min(self.size, self.end)
        offset = self.random.randrange(size)
        if self.random.randrange(3) == 0:
            offset %= 1 << 20
        length = self.random.choice((1, 512, 4096, 5000, 65536, 70000, 300000))
        length = self.random.randint(1, length)
        kind = self.random.randrange(4)
        if kind < 2:  # sectors
            offset -= offset % 512
            length += -length % 512
        elif kind == 2:  # clusters
            offset -= offset % 65536
            length = 65536 * self.random.randint(1, 4)
        return offset, min(length, size - offset)

    def data(self, length):
        if self.commands or self.random.randrange(4) == 0:
            byte = self.random.randrange(256)
            return bytes([byte]) * length
        return self.random.randbytes(length)

    def compare(self, offset, length, fd=None):
        want = os.pread(self.model, length, offset)
        got = os.pread(self.disk if fd is None else fd, length, offset)
        if got == want:
            return
        at = next((i for i, (x, y) in enumerate(zip(got, want)) if x != y), len(got))
        sys.exit(f"byte {offset + at} differs ({len(got)} of {length} bytes at {offset}) "
                 f"after {self.last}")

    def around(self, offset, length):
        start = max(0, offset - 66000)
        self.compare(start, min(self.size, offset + length + 66000) - start)

    def write(self):
        offset, length = self.range()
        data = self.data(length)
        self.note(f"write of {length} at {offset}", f"write -q -P {data[0]} {offset} {length}")
        os.pwrite(self.model, data, offset)
        done = os.pwrite(self.disk, data, offset)
        if done != length:
            sys.exit(f"{done} of {self.last}")
        self.around(offset, length)

    def write_direct(self):
        offset, length = self.range()
        offset -= offset % 4096
        length = min(length + -length % 512, self.size // 512 * 512 - offset)
        if self.direct < 0 or length <= 0 or offset + length > self.end:
            return self.write()
        data = self.data(length)
        self.note(f"direct write of {length} at {offset}",
                  f"write -q -P {data[0]} {offset} {length}")
        os.pwrite(self.model, data, offset)
        self.page[:length] = data
        view = memoryview(self.page)[:length]
        done = os.pwrite(self.direct, view, offset)
        if done != length:
            sys.exit(f"{done} of {self.last}")
        self.around(offset, length)
        return None

    def zero(self, mode, name):
        offset, length = self.range()
        self.note(f"{name} of {length} at {offset}", f"write -q -z -u {offset} {length}")
        os.pwrite(self.model, bytes(length), offset)
        fallocate(self.disk, mode | KEEP_SIZE, offset, length)
        self.around(offset, length)

    def resize(self):
        size = self.random.randint(self.largest // 3, self.largest)
        if self.commands or self.random.randrange(2):
            size += -size % 512
        command = f"truncate {size}"
        if size > self.size:  # QEMU shows again what it has cut off within a cluster
            command += f"\nwrite -q -z {self.size} {size - self.size}"
        self.note(f"resize from {self.size} to {size}", command)
        os.ftruncate(self.model, size)
        os.ftruncate(self.disk, size)
        if os.fstat(self.disk).st_size != size:
            sys.exit(f"size {os.fstat(self.disk).st_size} after {self.last}")
        self.size = size
        self.compare(0, size)

    def step(self):
        kind = self.random.randrange(100)
        if kind < 35:
            self.write()
        elif kind < 60:
            self.write_direct()
        elif kind < 70:
            self.zero(PUNCH_HOLE, "hole")
        elif kind < 80:
            self.zero(ZERO_RANGE, "zeroes")
        elif kind == 80 and self.resizes:
            self.resize()
        elif kind < 84:
            self.note("fsync", "flush")
            os.fsync(self.disk)
        else:
            self.compare(*self.range())

    def finish(self, sync):
        self.compare(0, self.size)
        if self.size % 512:  # so that QEMU can see all of it
            os.ftruncate(self.model, self.size - self.size % 512)
            os.ftruncate(self.disk, self.size - self.size % 512)
        if sync:
            os.fsync(self.disk)
        if self.commands:
            self.commands.close()


def main():
    disk, model, seed, count = sys.argv[1:5]
    options = dict((o.split("=", 1) + [""])[:2] for o in sys.argv[5:])
    writer = Writer(disk, model, int(seed), options)
    for number in range(int(count)):
        try:
            writer.step()
        except OSError as error:
            sys.exit(f"operation {number}, {writer.last}: {error}")
    writer.finish("sync" in options)


main()
