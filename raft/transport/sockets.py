"""Shutting down sockets of a library, chosen by their addresses.

gRPC exposes no sockets, yet a stuck or stopping member must end its peer connections at once, and a stuck one
can run nothing but a watchdog thread. So this module searches the process's own descriptors. `shutdown` acts
on the socket itself, not on a descriptor: the library sees an ended connection, as if the peer had closed it,
and its descriptors stay valid.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable

_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"

Chosen = Callable[[socket.socket], bool]


def shut_down(chosen: Chosen) -> int:
    """Shut down every TCP socket of this process that `chosen` accepts; return how many.

    Safe on any thread: each descriptor is examined through a duplicate, so if its number is reused meanwhile,
    no other socket is affected.
    """
    count = 0
    for name in os.listdir(_DESCRIPTORS):
        try:
            descriptor = os.dup(int(name))
        except OSError:
            continue  # closed since listed
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            continue
        with socket.socket(fileno=descriptor) as candidate:
            if candidate.type is not socket.SOCK_STREAM or candidate.family not in _INTERNET:
                continue
            if chosen(candidate):
                try:
                    candidate.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # not connected any more
                count += 1
    return count


def accepted_on(ports: frozenset[int]) -> Chosen:
    """Choose connections accepted on these ports, but not the listening sockets."""

    def chosen(candidate: socket.socket) -> bool:
        return _port(candidate.getsockname()) in ports and _remote_port(candidate) is not None

    return chosen


def listening_on(ports: frozenset[int]) -> Chosen:
    """Choose the listening sockets of these ports: afterwards a connect is refused."""

    def chosen(candidate: socket.socket) -> bool:
        return _port(candidate.getsockname()) in ports and _remote_port(candidate) is None

    return chosen


def connected_to(ports: frozenset[int]) -> Chosen:
    """Choose connections to these remote ports."""

    def chosen(candidate: socket.socket) -> bool:
        return _remote_port(candidate) in ports

    return chosen


Addresses = tuple[tuple[str, int], tuple[str, int]]
"""Host and port of the local end of a connection, then of the remote one."""


def between(connections: frozenset[Addresses]) -> Chosen:
    """Choose exactly these connections."""

    def chosen(candidate: socket.socket) -> bool:
        try:
            return (_address(candidate.getsockname()), _address(candidate.getpeername())) in connections
        except OSError:
            return False  # listening, or already reset

    return chosen


def addresses_of(transport: asyncio.BaseTransport) -> Addresses | None:
    """The addresses of a transport's connection; None once it has ended."""
    local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    if not local or not remote:
        return None
    return _address(local), _address(remote)


_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _address(address: object) -> tuple[str, int]:
    assert isinstance(address, tuple)
    return str(address[0]), int(address[1])


def _port(address: object) -> int:
    assert isinstance(address, tuple)
    return int(address[1])


def _remote_port(candidate: socket.socket) -> int | None:
    try:
        return _port(candidate.getpeername())
    except OSError:
        return None  # listening, or already reset
