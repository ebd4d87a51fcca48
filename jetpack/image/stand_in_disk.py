#!/usr/bin/env python3
"""Writes a disk with a GPT: a file system as partition 1 behind two small ones that are empty.

    stand_in_disk.py FILE_SYSTEM DISK

Stands in for the last step of NVIDIA's jetson-disk-image-creator.sh; see stand_in.sh.
"""
import os
import struct
import sys
import uuid
import zlib

SECTOR = 512
ROOT_AT = 8192
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le


def ident(text):
    return uuid.uuid5(uuid.NAMESPACE_DNS, text).bytes_le


def entry(name, at, n):
    place = struct.pack("<QQQ", at, at + n - 1, 0)
    return LINUX + ident(name) + place + name.encode("utf-16-le").ljust(72, b"\0")


def header(own, other, table_at, table, n_disk):
    fields = [b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, n_disk - 34, ident("disk"),
              table_at, 128, 128, zlib.crc32(table)]
    form = "<8sIIIIQQQQ16sQIII"
    fields[3] = zlib.crc32(struct.pack(form, *fields))
    return struct.pack(form, *fields).ljust(SECTOR, b"\0")


def main(root, disk):
    n_root = os.path.getsize(root) // SECTOR
    n_disk = ROOT_AT + n_root + 2048
    parts = [("APP", ROOT_AT, n_root), ("TBC", 2048, 384), ("RP1", 4096, 896)]
    table = b"".join(entry(*part) for part in parts).ljust(128 * 128, b"\0")
    protective = struct.pack("<8BII", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, n_disk - 1)
    last = n_disk - 1
    with open(disk, "wb") as out, open(root, "rb") as source:
        out.truncate(n_disk * SECTOR)
        for at, part in [
            (0, bytes(446) + protective.ljust(64, b"\0") + b"\x55\xaa"),
            (1, header(1, last, 2, table, n_disk)),
            (2, table),
            (last - 32, table),
            (last, header(last, 1, last - 32, table, n_disk)),
        ]:
            out.seek(at * SECTOR)
            out.write(part)
        out.seek(ROOT_AT * SECTOR)
        while chunk := source.read(1 << 20):
            out.write(chunk)


main(*sys.argv[1:])
