"""make-mirror: copy a cluster's keys into another one, and every change from then on.

As etcdctl's, but that what is there at the beginning is copied in transactions of many puts instead of
one by one. Sending one of them twice would change nothing, since a mirror is the only writer of its keys;
still nothing is sent again on its own account: a failure ends the command, as it ends etcdctl.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import click

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments, bad_feature
from kvstore.cli.kv_command import connect
from kvstore.cli.options import INT, Command, global_options, settings
from kvstore.cli.requests import ALL_KEYS, prefix_end, to_bytes
from kvstore.client import RANGE, TXN, Connection, Watching
from kvstore.errors import Compacted, KVError
from kvstore.wire import kv_pb2, rpc_pb2

PAGE_KEYS = 1000
"""Keys read at once, as etcdctl does."""
TXN_BYTES = 512 * 1024
"""Of keys and values in one transaction: a third of what a server takes by default."""
REPORT_SECONDS = 30.0
"""How often the count is printed without a terminal, as etcdctl does."""
PROGRESS_SECONDS = 0.5
"""How often a terminal's line is updated."""


class _Progress:
    """How many changes were copied: a line updated on a terminal, else a number now and then."""

    def __init__(self) -> None:
        self.copied = 0
        self._began = time.monotonic()

    async def run(self) -> None:
        live = sys.stderr.isatty()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS if live else REPORT_SECONDS)
            if live:
                pace = self.copied / (time.monotonic() - self._began)
                click.echo(f"\r{self.copied:,} changes copied, {pace:,.0f} a second ", nl=False, err=True)
            else:
                click.echo(str(self.copied))


class _Mirror:
    def __init__(
        self, source: Connection, target: Connection, *, prefix: bytes, onto: bytes, operations_max: int
    ) -> None:
        self._source = source
        self._target = target
        self._prefix, self._onto = prefix, onto
        self._end = prefix_end(prefix) if prefix else ALL_KEYS
        self._operations_max = operations_max
        self.progress = _Progress()

    async def run(self, revision: int) -> None:
        """Copy all there is, or (with a revision) nothing; then all that changes, from then on."""
        if not revision:
            revision = await self._copy_all() + 1
        request = rpc_pb2.WatchCreateRequest(
            key=self._prefix or ALL_KEYS, range_end=self._end, start_revision=revision
        )
        async with Watching(self._source, request) as watching:
            async for response in watching:
                if response.compact_revision:
                    raise Compacted
                for changes in _by_revision(response.events):
                    await self._write([self._change(event) for event in changes])

    async def _copy_all(self) -> int:
        """Everything as of one revision; which one."""
        key, revision, more = self._prefix or ALL_KEYS, 0, True
        while more:
            request = rpc_pb2.RangeRequest(key=key, range_end=self._end, limit=PAGE_KEYS, revision=revision)
            page = await self._source.call(RANGE, request)
            revision = revision or page.header.revision
            await self._write([self._put(pair) for pair in page.kvs])
            more = page.more
            if page.kvs:
                key = page.kvs[-1].key + b"\0"
        return revision

    def _there(self, key: bytes) -> bytes:
        return self._onto + key[len(self._prefix) :]

    def _put(self, pair: kv_pb2.KeyValue) -> rpc_pb2.RequestOp:
        return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=self._there(pair.key), value=pair.value))

    def _change(self, event: kv_pb2.Event) -> rpc_pb2.RequestOp:
        if event.type == kv_pb2.Event.PUT:
            return self._put(event.kv)
        key = self._there(event.kv.key)
        return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))

    async def _write(self, operations: Sequence[rpc_pb2.RequestOp]) -> None:
        for part in _parts(operations, self._operations_max):
            await self._target.call(TXN, rpc_pb2.TxnRequest(success=part))
            self.progress.copied += len(part)


def _by_revision(events: Iterable[kv_pb2.Event]) -> Iterator[list[kv_pb2.Event]]:
    held: list[kv_pb2.Event] = []
    for event in events:
        if held and held[-1].kv.mod_revision != event.kv.mod_revision:
            yield held
            held = []
        held.append(event)
    if held:
        yield held


def _parts(operations: Sequence[rpc_pb2.RequestOp], count_max: int) -> Iterator[list[rpc_pb2.RequestOp]]:
    held: list[rpc_pb2.RequestOp] = []
    held_bytes = 0
    for operation in operations:
        size = operation.ByteSize()
        if held and (len(held) == count_max or held_bytes + size > TXN_BYTES):
            yield held
            held, held_bytes = [], 0
        held.append(operation)
        held_bytes += size
    if held:
        yield held


_UNSUPPORTED = ("dest-cacert", "dest-cert", "dest-key", "dest-user", "dest-password")


def _refused(command: Any) -> Any:
    """What belongs to TLS and users is taken, to be refused by name."""
    for name in _UNSUPPORTED:
        command = click.option(f"--{name}", default="", hidden=True)(command)
    return click.option("--dest-insecure-transport", is_flag=True, default=True, hidden=True)(command)


@click.command("make-mirror", cls=Command, options_metavar="[options] <destination>")
@click.argument("args", nargs=-1, metavar="")
@click.option("--prefix", default="", help="Only keys that begin with this.")
@click.option("--dest-prefix", default="", help="What the prefix becomes at the destination.")
@click.option("--no-dest-prefix", is_flag=True, help="Leave the prefix away at the destination.")
@click.option("--rev", type=INT, default=0, help="Copy only changes, from this revision on.")
@click.option("--max-txn-ops", type=INT, default=128, help="Largest number of changes in a transaction.")
@_refused
@global_options
def make_mirror(
    args: tuple[str, ...],
    prefix: str,
    dest_prefix: str,
    no_dest_prefix: bool,
    rev: int,
    max_txn_ops: int,
    dest_insecure_transport: bool,
    **unsupported: str,
) -> None:
    """Copy all keys to the cluster at <destination>, and every change from then on.

    Goes on until it is interrupted; a terminal shows how far it is.
    """
    del dest_insecure_transport  # the only kind there is
    if len(args) != 1:
        raise bad_arguments("make-mirror takes one destination argument")
    for name, value in unsupported.items():
        if value:
            raise bad_feature(f"--{name.replace('_', '-')} is not supported")
    if no_dest_prefix and dest_prefix:
        raise bad_arguments(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one"
        )
    if max_txn_ops < 1:
        raise bad_arguments("--max-txn-ops must be at least 1")
    onto = "" if no_dest_prefix else dest_prefix or prefix
    found = settings()

    async def work() -> None:
        async with connect(found) as source, connect(found, args[0]) as target:
            mirror = _Mirror(
                source, target, prefix=to_bytes(prefix), onto=to_bytes(onto), operations_max=max_txn_ops
            )
            telling = asyncio.ensure_future(mirror.progress.run())
            try:
                await mirror.run(max(0, rev))
            finally:
                telling.cancel()
                with suppress(asyncio.CancelledError):
                    await telling

    try:
        asyncio.run(work())
    except KVError as error:
        raise CommandError(ExitCode.ERROR, error.text) from None
