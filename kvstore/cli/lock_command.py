"""lock and elect: hold a lock, or lead, until told to stop (etcdctl's `lock` and `elect`)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import Awaitable, Iterator, Sequence
from typing import TypeVar

import click

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments
from kvstore.cli.gotext import quote
from kvstore.cli.kv_command import printer_for, run
from kvstore.cli.options import INT, Command, global_options, settings
from kvstore.cli.printers import Printer
from kvstore.cli.requests import to_bytes
from kvstore.client import CAMPAIGN, LOCK, RANGE, RESIGN, UNLOCK, Connection, Session, observe, wait_for
from kvstore.errors import KVError
from kvstore.interrupts import caught
from kvstore.wire import rpc_pb2, v3election_pb2, v3lock_pb2

_Result = TypeVar("_Result")

LOCK_TTL_SECONDS = 10
ELECTION_TTL_SECONDS = 60
"""etcdctl's: how long a lock, or a leadership, outlives its holder."""

KILLED = 255
"""The exit code when a signal killed the command under the lock: Go's -1."""


class _ChildFailed(CommandError):
    """The command that ran under the lock failed: its exit code is ours."""

    def __init__(self, code: int) -> None:
        text = f"exit status {code}" if code > 0 else f"signal: {signal.strsignal(-code) or -code}".lower()
        super().__init__(code if code > 0 else KILLED, text)


@contextlib.contextmanager
def _told_to_stop() -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set, also where they were ignored so far: so does etcdctl.

    To be entered once there is something to give back; before that they end the process.
    """
    stop = asyncio.Event()
    with caught(lambda _: stop.set(), ignored_too=True):
        yield stop


async def _first_of(*events: asyncio.Event) -> asyncio.Event:
    """Wait until one of the events is set; the first of those that are."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return next(event for event in events if event.is_set())


async def _unless_stopped(work: Awaitable[_Result], stop: asyncio.Event) -> _Result:
    """The result of `work`, which is cancelled when the stop comes first."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CommandError(ExitCode.ERROR, "context canceled")
        return task.result()
    finally:
        for each in (task, stopping):
            each.cancel()
        await asyncio.wait((task, stopping))


async def _execute(command: Sequence[str], held: v3lock_pb2.LockResponse) -> None:
    """Run the command with the lock in its environment; CommandError when it fails."""
    told = {"ETCD_LOCK_KEY": os.fsdecode(held.key), "ETCD_LOCK_REV": str(held.header.revision)}
    sys.stdout.flush()
    try:
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **told})
    except FileNotFoundError:
        text = f"exec: {quote(to_bytes(command[0]))}: executable file not found in $PATH"
        raise CommandError(ExitCode.ERROR, text) from None
    except OSError as error:
        raise CommandError(ExitCode.ERROR, f"exec: {error.strerror}") from None
    code = await process.wait()
    if code:
        raise _ChildFailed(code)


async def _hold(
    connection: Connection, name: str, command: Sequence[str], ttl_seconds: int, chosen: Printer
) -> None:
    with contextlib.ExitStack() as until_released:
        async with Session(connection, ttl_seconds) as session:
            stop = until_released.enter_context(_told_to_stop())
            request = v3lock_pb2.LockRequest(name=to_bytes(name), lease=session.lease)
            held = await _unless_stopped(wait_for(connection, LOCK, request), stop)
            if command:
                try:
                    await _execute(command, held)
                finally:
                    await connection.call(UNLOCK, v3lock_pb2.UnlockRequest(key=held.key))
                return
            found = await connection.call(RANGE, rpc_pb2.RangeRequest(key=held.key))
            if not found.kvs:
                raise CommandError(ExitCode.ERROR, "lock lost on init")
            chosen.get(found)
            sys.stdout.flush()
            if await _first_of(session.lost, stop) is session.lost:
                raise CommandError(ExitCode.ERROR, "session expired")
            await connection.call(UNLOCK, v3lock_pb2.UnlockRequest(key=held.key))


@click.command(cls=Command, options_metavar="[options] <lockname> [exec-command arg1 arg2 ...]")
@click.argument("args", nargs=-1, metavar="")
@click.option("--ttl", type=INT, default=LOCK_TTL_SECONDS, help="Seconds the lock outlives a dead holder.")
@global_options
def lock(args: tuple[str, ...], ttl: int) -> None:
    """Hold a lock: print its key and wait for Ctrl-C, or run a command while it is held.

    The command finds the key and the revision of the lock in ETCD_LOCK_KEY and ETCD_LOCK_REV, and its
    exit code becomes that of this command. Its options go behind `--`.
    """
    if not args:
        raise bad_arguments("lock takes a lock name argument and an optional command to execute")
    found = settings()
    chosen = printer_for(found, "get")
    run(found, lambda connection: _hold(connection, args[0], args[1:], ttl, chosen))


async def _lead(connection: Connection, name: str, proposal: str, chosen: Printer) -> None:
    with contextlib.ExitStack() as until_released:
        async with Session(connection, ELECTION_TTL_SECONDS) as session:
            stop = until_released.enter_context(_told_to_stop())
            request = v3election_pb2.CampaignRequest(
                name=to_bytes(name), lease=session.lease, value=to_bytes(proposal)
            )
            won = await _unless_stopped(wait_for(connection, CAMPAIGN, request), stop)
            chosen.get(await connection.call(RANGE, rpc_pb2.RangeRequest(key=won.leader.key)))
            sys.stdout.flush()
            if await _first_of(session.lost, stop) is session.lost:
                raise CommandError(ExitCode.ERROR, "elect: session expired")
            await connection.call(RESIGN, v3election_pb2.ResignRequest(leader=won.leader))


async def _listen(connection: Connection, name: str, chosen: Printer) -> None:
    async def listen() -> None:
        with contextlib.suppress(KVError):
            async with contextlib.aclosing(observe(connection, to_bytes(name))) as replies:
                async for reply in replies:
                    chosen.get(rpc_pb2.RangeResponse(header=reply.header, kvs=[reply.kv]))
                    sys.stdout.flush()
        raise CommandError(ExitCode.ERROR, "elect: observer lost")

    await connection.channel(math.inf)  # until then a signal ends the process, as it ends etcdctl
    with _told_to_stop() as stop:
        try:
            await _unless_stopped(listen(), stop)
        except CommandError:
            if not stop.is_set():
                raise


@click.command(cls=Command, options_metavar="[options] <election-name> [proposal]")
@click.argument("args", nargs=-1, metavar="")
@click.option("-l", "--listen", is_flag=True, help="Print who leads, as it changes.")
@global_options
def elect(args: tuple[str, ...], listen: bool) -> None:
    """Take part in an election: print the key when elected and lead until Ctrl-C, or listen to it."""
    if len(args) not in (1, 2):
        raise bad_arguments("elect takes one election name argument and an optional proposal argument")
    if listen and len(args) == 2:
        raise bad_arguments("proposal given but -l is set")
    if not listen and len(args) == 1:
        raise bad_arguments("no proposal argument but -l not set")
    found = settings()
    chosen = printer_for(found, "get")
    if listen:
        run(found, lambda connection: _listen(connection, args[0], chosen))
    else:
        run(found, lambda connection: _lead(connection, args[0], args[1], chosen))
