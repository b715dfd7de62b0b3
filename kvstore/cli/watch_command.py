"""watch: changes as they happen, printed or handed to a command (etcdctl's `watch`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from kvstore.cli.exit_codes import CommandError, ExitCode, bad_arguments, invalid_input
from kvstore.cli.gotext import quote
from kvstore.cli.kv_command import connect, printer_for
from kvstore.cli.options import INT, Command, Settings, global_options, settings
from kvstore.cli.printers import Printer
from kvstore.cli.requests import ALL_KEYS, prefix_end, to_bytes
from kvstore.cli.txn_command import split_arguments
from kvstore.client import Connection, Watching
from kvstore.errors import Compacted, KVError
from kvstore.wire import kv_pb2, rpc_pb2

KEY_VARIABLE, RANGE_END_VARIABLE = "ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"

SEPARATOR = "--"

_COMMAND_KEY = "kvstore.watch.command"
"""Where the words behind the separator are kept until the command runs."""


class _WatchCommand(Command):
    """Sets aside what stands behind `--`: the command to run for each event."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, command = _split(args)
        ctx.meta[_COMMAND_KEY] = command
        return super().parse_args(ctx, own)


def _split(args: Sequence[str]) -> tuple[list[str], list[str] | None]:
    if SEPARATOR not in args:
        return list(args), None
    at = args.index(SEPARATOR)
    return list(args[:at]), list(args[at + 1 :])


@dataclass(frozen=True, slots=True)
class Wanted:
    request: rpc_pb2.WatchCreateRequest
    command: list[str]
    """To be run for each event; may be empty."""


class _Exclusive(CommandError):
    """A range that ends in two ways."""

    def __init__(self) -> None:
        super().__init__(ExitCode.BAD_ARGUMENTS, "`range_end` and `--prefix` are mutually exclusive")


def _range_of(args: Sequence[str], command: list[str] | None, environ: Mapping[str, str]) -> list[str]:
    """The key, and the end of the range if there is one, from arguments or variables."""
    if command == []:
        raise bad_arguments("bad number of arguments (found separator --, but no commands)")
    key, range_end = environ.get(KEY_VARIABLE, ""), environ.get(RANGE_END_VARIABLE, "")
    if not key:
        if not args:
            raise bad_arguments("bad number of arguments")
        return list(args)
    if args:
        raise bad_arguments("bad number of arguments (found conflicting environment key)")
    return [key, range_end] if range_end else [key]


def _wanted(
    args: Sequence[str],
    command: list[str] | None,
    *,
    prefix: bool,
    rev: int,
    prev_kv: bool,
    progress_notify: bool,
) -> Wanted:
    words = _range_of(args, command, os.environ)
    key, range_end = to_bytes(words[0]), b""
    if len(words) == 2:
        if prefix:
            raise _Exclusive
        range_end = to_bytes(words[1])
    elif prefix:
        range_end = prefix_end(key)
        key = key or ALL_KEYS
    request = rpc_pb2.WatchCreateRequest(
        key=key, range_end=range_end, start_revision=rev, prev_kv=prev_kv, progress_notify=progress_notify
    )
    return Wanted(request, command or [])


async def _show(connection: Connection, wanted: Wanted, chosen: Printer, watchings: list[Watching]) -> None:
    async with Watching(connection, wanted.request) as watching:
        watchings.append(watching)
        async for response in watching:
            if response.canceled:
                reason = Compacted.text if response.compact_revision else response.cancel_reason
                click.echo(f"watch was canceled ({reason})", err=True)
            elif not response.events:
                click.echo(f"progress notify: {response.header.revision}")
            chosen.watch(response)
            if wanted.command:
                for event in response.events:
                    await _execute(wanted.command, response.header.revision, event)
    watchings.remove(watching)


async def _execute(command: Sequence[str], revision: int, event: kv_pb2.Event) -> None:
    told = {
        "ETCD_WATCH_REVISION": str(revision),
        "ETCD_WATCH_EVENT_TYPE": quote(kv_pb2.Event.EventType.Name(event.type).encode()),
        "ETCD_WATCH_KEY": quote(event.kv.key),
        "ETCD_WATCH_VALUE": quote(event.kv.value),
    }
    sys.stdout.flush()
    try:
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **told})
        code = await process.wait()
        failure = f"exit status {code}" if code > 0 else f"signal {-code}" if code else ""
    except FileNotFoundError:
        failure = f"exec: {quote(to_bytes(command[0]))}: executable file not found in $PATH"
    except OSError as error:
        failure = f"exec: {error.strerror}"
    if failure:
        shown = " ".join(quote(to_bytes(word)) for word in command)
        click.echo(f"command [{shown}] error ({failure})", err=True)
        raise _CommandFailed


class _CommandFailed(CommandError):
    """The command of an event failed; everything was said."""

    def __init__(self) -> None:
        super().__init__(ExitCode.ERROR, "")


async def _watch(found: Settings, wanted: Wanted, chosen: Printer) -> None:
    async with connect(found) as connection:
        await _show(connection, wanted, chosen, [])
    raise CommandError(ExitCode.INTERRUPTED, "watch is canceled by the server")


@click.command()
@click.argument("args", nargs=-1)
@click.option("--interactive", "-i", is_flag=True)
@click.option("--prefix", is_flag=True)
@click.option("--prev-kv", is_flag=True)
@click.option("--progress-notify", is_flag=True)
@click.option("--rev", type=INT, default=0)
def _line(interactive: bool, **options: Any) -> None:
    """A line of the interactive mode; never run, only read."""


def _read_line(words: Sequence[str]) -> Wanted:
    """What a line behind `watch` asks for. Its errors end the whole command, as etcdctl's do."""
    own, command = _split(words)
    try:
        options = _line.make_context("watch", own, resilient_parsing=False).params
    except click.NoSuchOption as error:
        raise bad_arguments(f"unknown flag: {error.option_name}") from None
    except click.UsageError as error:
        raise bad_arguments(error.format_message()) from None
    options.pop("interactive")
    return _wanted(options.pop("args"), command, **options)


async def _next_line() -> bytes:
    """One line of standard input, empty at its end.

    A thread that ends with the process reads it. A read cannot be cancelled, and a thread awaited by the loop
    would end only when something is typed.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[bytes] = loop.create_future()
    buffered = sys.stdin.buffer
    source = getattr(buffered, "raw", buffered)  # a buffer would be locked when the process ends

    def deliver(line: bytes) -> None:
        if not arrived.done():
            arrived.set_result(line)

    def read() -> None:
        try:
            line = source.readline()
        except OSError:  # the terminal is gone
            line = b""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, line)

    threading.Thread(target=read, name="standard input", daemon=True).start()
    return await arrived


async def _converse(found: Settings, chosen: Printer) -> None:
    """Read `watch ...` and `progress` from standard input, line by line."""
    watchings: list[Watching] = []
    async with connect(found) as connection, asyncio.TaskGroup() as group:
        while True:
            line = await _next_line()
            if not line.endswith(b"\n"):
                raise invalid_input("error reading watch request line: EOF")
            text = os.fsdecode(line[:-1])
            words = split_arguments(text)
            if not words:
                click.echo(f"Invalid command: {text} (watch and progress supported)", err=True)
            elif words[0] == "progress":
                for watching in watchings:
                    await watching.request_progress()
            elif words[0] != "watch":
                click.echo(f"Invalid command {text} (only support watch)", err=True)
            elif len(words) < 2 and not os.environ.get(KEY_VARIABLE):
                click.echo(f"Invalid command {text} (command type or key is not provided)", err=True)
            else:
                try:
                    wanted = _read_line(words[1:])
                except _Exclusive as error:
                    click.echo(f"Invalid command {text} ({error.message})", err=True)
                else:
                    group.create_task(_show(connection, wanted, chosen, watchings))


@click.command(cls=_WatchCommand, options_metavar="[options] [key] [range_end] [-- command [args]]")
@click.argument("args", nargs=-1, metavar="")
@click.option("--interactive", "-i", is_flag=True, help="Read `watch ...` and `progress` from stdin.")
@click.option("--prefix", is_flag=True, help="All keys that begin with the key.")
@click.option("--rev", type=INT, default=0, help="Revision to begin with; 0 is the next.")
@click.option("--prev-kv", is_flag=True, help="Show the pair before the change, too.")
@click.option("--progress-notify", is_flag=True, help="Be told of progress from time to time.")
@global_options
def watch(args: tuple[str, ...], interactive: bool, **options: Any) -> None:
    """Print changes of a key or a range of keys as they happen.

    Behind `--` a command may stand that is run for each change, with ETCD_WATCH_REVISION,
    ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and ETCD_WATCH_VALUE in its environment. The key may come
    from ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END. A lost member or leader is no end: the watch
    goes on where it was.
    """
    found = settings()
    chosen = printer_for(found, "watch")
    range_end = os.environ.get(RANGE_END_VARIABLE, "")
    if range_end and not os.environ.get(KEY_VARIABLE):
        shown = quote(to_bytes(range_end))
        raise bad_arguments(f"{KEY_VARIABLE} is empty but got {RANGE_END_VARIABLE}={shown}")
    command: list[str] | None = click.get_current_context().meta[_COMMAND_KEY]
    if interactive:
        work = _converse(found, chosen)
    else:
        work = _watch(found, _wanted(args, command, **options), chosen)
    try:
        asyncio.run(work)
    except KVError as error:
        raise CommandError(ExitCode.ERROR, error.text) from None
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what ended the conversation, the one thing to say."""
    error = group.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        return _first(error)
    return CommandError(ExitCode.ERROR, error.text) if isinstance(error, KVError) else error
