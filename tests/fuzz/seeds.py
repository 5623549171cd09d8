#!/usr/bin/env python3
"""Seeds for the fuzz targets, and inputs turned into images and back (packed.h).

seeds.py qcow2|qcow1 DIRECTORY     small images of every kind, made by qemu-img
seeds.py xml DIRECTORY             configurations, of both forms
seeds.py pack IMAGE [DATAFILE]     writes an input to standard output
seeds.py unpack INPUT IMAGE [DATAFILE]
"""
import itertools
import os
import random
import struct
import subprocess
import sys
import tempfile

SECTOR = 512
DATA_FILE = 1 << 31


def pack(image, data=b'', script=b''):
    parts = []
    lengths = []
    for content, flag in ((image, 0), (data, DATA_FILE)):
        content += bytes(-len(content) % SECTOR)
        lengths.append(len(content) // SECTOR)
        for number in range(len(content) // SECTOR):
            sector = content[number * SECTOR:(number + 1) * SECTOR]
            if any(sector):
                parts.append(struct.pack('<I', number | flag) + sector)
    return struct.pack('<II', *lengths) + b''.join(parts) + script


def unpack(packed):
    lengths = struct.unpack_from('<II', packed)
    files = [bytearray(n * SECTOR) for n in lengths]
    for at in range(8, len(packed) - SECTOR - 3, SECTOR + 4):
        number, = struct.unpack_from('<I', packed, at)
        which, number = divmod(number, DATA_FILE)
        if number < lengths[which]:
            files[which][number * SECTOR:(number + 1) * SECTOR] = \
                packed[at + 4:at + 4 + SECTOR]
    return files


def load(path):
    with open(path, 'rb') as f:
        return f.read()


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def io(path, fmt, *commands, abort=False):
    arguments = [x for c in commands for x in ('-c', c)]
    if abort:  # QEMU ends without closing the image: dirty, refcounts not written
        subprocess.run(['qemu-io', '-f', fmt, *arguments, '-c', 'flush', '-c', 'abort', path],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        run('qemu-io', '-f', fmt, *arguments, path)


# name: (options, size in KiB or bytes with a B, steps). In a step, {c} is the cluster size.
WRITES = ('write -P 1 0 1k', 'write -P 2 {c} 512', 'write -z {2c} {c}',
          'write -P 3 {5c} 1k', 'discard {5c} {c}', 'write -P 4 {7c} 512')
PACKED = ('write -P 1 0 512', 'write -c -P 2 {c} {c}', 'write -c -P 3 {2c} {c}',
          'write -c -P 4 {6c} {c}')


def qcow2_kinds():
    for cluster in (512, 4096, 65536):
        name = f'c{cluster}'
        yield f'{name}-empty', cluster, {}, ()
        yield f'{name}-v3', cluster, {}, WRITES
        yield f'{name}-v2', cluster, {'compat': '0.10'}, WRITES
        yield f'{name}-zlib', cluster, {}, PACKED
        yield f'{name}-zstd', cluster, {'compression_type': 'zstd'}, PACKED
        yield f'{name}-snapshot', cluster, {}, \
            (*WRITES, '!snapshot', 'write -P 9 0 512', 'write -c -P 8 {3c} {c}', '!snapshot')
        yield f'{name}-bitmap', cluster, {}, (*WRITES, '!bitmap', 'write -P 9 {3c} 512')
        yield f'{name}-dirty', cluster, {'lazy_refcounts': 'on'}, (*WRITES, '!abort')
        yield f'{name}-dirty-snapshot', cluster, {'lazy_refcounts': 'on'}, \
            (*PACKED, '!snapshot', 'write -P 7 {c} 512', '!abort')
        yield f'{name}-data-file', cluster, {'data_file': 'DATA'}, WRITES
        yield f'{name}-data-file-raw', cluster, \
            {'data_file': 'DATA', 'data_file_raw': 'on'}, WRITES
        for bits in (1, 8, 64):
            yield f'{name}-r{bits}', cluster, {'refcount_bits': bits}, WRITES
        yield f'{name}-backing', cluster, {'BACKING': '1'}, WRITES
    for cluster in (16384, 65536):
        yield f'c{cluster}-extl2', cluster, {'extended_l2': 'on'}, WRITES
        yield f'c{cluster}-extl2-all', cluster, {'extended_l2': 'on', 'lazy_refcounts': 'on'}, \
            (*PACKED, '!snapshot', '!bitmap', *WRITES, 'write -z 1k 1k', '!abort')


def make_qcow2(directory, name, cluster, options, steps):
    path, data = (os.path.join(directory, x) for x in (name, name + '.data'))
    options = dict(options, cluster_size=cluster)
    if 'data_file' in options:
        options['data_file'] = data
    backing = ['-b', '/base', '-F', 'raw', '-u'] if options.pop('BACKING', None) else []
    flat = ','.join(f'{k}={v}' for k, v in options.items())
    run('qemu-img', 'create', '-q', '-f', 'qcow2', *backing, '-o', flat, path,
        str(cluster * 10 + 1024))
    if backing:  # one that QEMU can open; the name in the image stays
        run('qemu-img', 'rebase', '-u', '-b', '', path)
    pending = []

    def flush(abort=False):
        if pending:
            io(path, 'qcow2', *pending, abort=abort)
            pending.clear()
    for step in steps:
        if not step.startswith('!'):
            for times in ('', 2, 3, 5, 6, 7):
                step = step.replace('{%sc}' % times, str(cluster * (times or 1)))
            pending.append(step)
            continue
        flush(step == '!abort')
        if step == '!snapshot':
            run('qemu-img', 'snapshot', '-c', 's%d' % len(os.listdir(directory)), path)
        if step == '!bitmap':
            run('qemu-img', 'bitmap', '--add', '-g', '512', path, 'b')
    flush()
    if backing:
        run('qemu-img', 'rebase', '-u', '-b', '/base', '-F', 'raw', path)
    return load(path), load(data) if os.path.exists(data) else b''


def qcow1_kinds():
    yield 'empty', ()
    yield 'plain', ('write -P 1 0 1k', 'write -P 2 64k 4k', 'write -P 3 300k 512')
    yield 'zlib', ('write -P 1 0 1k', 'write -c -P 2 64k 64k', 'write -c -P 3 128k 64k')


def make_qcow1(directory, name, steps):
    path = os.path.join(directory, name)
    run('qemu-img', 'create', '-q', '-f', 'qcow', path, '400k')
    if steps:
        io(path, 'qcow', *[s.replace('64k 64k', '4k 4k').replace('128k 64k', '8k 4k')
                           for s in steps])
    return load(path), b''


def seeds(fmt, target):
    rng = random.Random(1)
    os.makedirs(target, exist_ok=True)
    make, kinds = (make_qcow2, qcow2_kinds()) if fmt == 'qcow2' else (make_qcow1, qcow1_kinds())
    for name, *rest in kinds:
        with tempfile.TemporaryDirectory() as directory:
            image, data = make(directory, name, *rest)
        with open(os.path.join(target, name), 'wb') as f:
            f.write(pack(image, data, rng.randbytes(160)))


KEYFILE = '''[disk vm1]
file=a.img
alias=ua-1
threshold=1
read-only=true
on-divergence=repair
min-replicas=1
degraded=warn
decoder=native
read-pattern=rotate
replica-timeout=500ms
blkverify=true
allow-dir=/x;y
password-file=/pw

[replica vm1/left]
source=qcow2:a
timeout=2s
password-file=own

[disk vm2]
[replica vm2/a]
source=nbds://u@h:7/x?tls-psk-file=/psk
format=raw
[replica vm2/b]
source=nbd+unix:///x?socket=/s
'''
XML = '''<?xml version='1.0'?>
<domain type='kvm'><devices><disk type='file'><alias name='q'/>
<backingStore type='file'/></disk>
<disk type='quorum' device='cdrom' threshold='1'><driver name='qemu' type='quorum' format='raw'/>
<backingStore type='file'><format type='qcow2'/><source file='/a'><seclabel/></source>
<backingStore type='file'><backingStore/></backingStore>
<quorumfs:options xmlns:quorumfs='u' name='l' timeout='2s' decoder='both' password-file='p'/>
</backingStore><backingStore type='block'><driver name='qemu' type='raw'/><source dev='/b'/>
</backingStore><target dev='vda' bus='virtio'/><readonly/><alias name='ua-1'/><boot order='1'/>
<quorumfs:options file='f' min-replicas='1' read-pattern='fifo' blkverify='false'/>
<quorumfs:allow-dir path='/x'/></disk></devices></domain>
'''
NETWORK = '''<disk type='quorum'><threshold value='2'/><backingStore type='network'>
<source protocol='nbd' name='x&amp;y' tls='yes'><host name='::1' port='7' transport='tcp'/></source>
<quorumfs:tls certificates='/pki'/></backingStore><backingStore type='network'>
<source protocol='nbd' tls='yes'><host transport='unix' socket='/s'/></source>
<quorumfs:tls user='u' psk-file='/psk'/></backingStore></disk>
'''
REFERENCE = '''<devices><disk type='file'><alias name='q'/></disk><disk type='quorum'>
<backingStore type='file'><driver type='replication' format='qcow2'/><source file='/a'/>
<reference name='q'/></backingStore></disk></devices>
'''


def text_seeds(target):
    os.makedirs(target, exist_ok=True)
    for number, text in enumerate((KEYFILE, XML, NETWORK, REFERENCE)):
        with open(os.path.join(target, f'text{number}'), 'w', encoding='utf-8') as f:
            f.write(text)


def main():
    what, *arguments = sys.argv[1:] or ['']
    if what in ('qcow2', 'qcow1') and len(arguments) == 1:
        seeds(what, arguments[0])
    elif what == 'xml' and len(arguments) == 1:
        text_seeds(*arguments)
    elif what == 'pack' and len(arguments) in (1, 2):
        sys.stdout.buffer.write(pack(*map(load, arguments)))
    elif what == 'unpack' and len(arguments) in (2, 3):
        for path, content in itertools.zip_longest(arguments[1:], unpack(load(arguments[0]))):
            if path:
                with open(path, 'wb') as f:
                    f.write(content)
    else:
        sys.exit(__doc__)


main()
