"""Which process is at the other end of a loopback connection, according to the kernel.

Reads /proc, so only on Linux; elsewhere no dialler is recognised, and a partition then holds back
everything that comes in instead of picking by dialler.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


def process_of(local_port: int, remote_port: int, pids: Iterable[int]) -> int | None:
    """Return which of `pids` holds the connection from `local_port` to `remote_port`, if any does."""
    inodes = _inodes(local_port, remote_port)
    if not inodes:
        return None
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue  # ended meanwhile
        for name in names:
            try:
                target = os.readlink(f"{folder}/{name}")
            except OSError:
                continue  # closed meanwhile
            if target in inodes:
                return pid
    return None


def _inodes(local_port: int, remote_port: int) -> frozenset[str]:
    """Return the names of sockets with these ports, as they appear among a process's descriptors."""
    found = []
    for table in _TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            ends = [int(address.rpartition(":")[2], 16) for address in fields[1:3]]
            if ends == [local_port, remote_port] and fields[3] == _ESTABLISHED:
                found.append(f"socket:[{fields[9]}]")
    return frozenset(found)
