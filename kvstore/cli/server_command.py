"""`kvstore server`: one member, with etcd's flags.

Exit codes: 0 stopped by SIGINT or SIGTERM; 1 it cannot start (configuration, data directory, port);
2 the flags cannot be read; 3 it failed while it ran (a disk), and acknowledged nothing from then on;
4 stopping took too long and was aborted; 74 the log's disk hung (`kvstore.app`). A second signal
ends the process at once, by that signal.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kvstore.configuration.config_loader import CONFIG_FILE, TABLE, Loaded, load
from kvstore.configuration.config_setting import ConfigError, Group, Handling, Kind, Setting
from kvstore.configuration.go_values import parse_bool, quote
from kvstore.server import logs
from kvstore.version import ETCD_VERSION, __version__

if TYPE_CHECKING:
    from kvstore.app import NodeHandle  # loads the whole server
    from raft.core.types import Role

EXIT_STOPPED = 0
EXIT_CANNOT_START = 1
EXIT_USAGE = 2
EXIT_FAILED = 3
EXIT_STOP_ABORTED = 4

STOP_PATIENCE_S = 2.5
"""A stop takes at most 3 s. Nothing is lost when it is aborted: what was acknowledged is on disk."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("kvstore.cli.server_command")


class _ServerCommand(click.Command):
    """A command that reads flags as Go's package does, and groups them in its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _read_flags(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in Group:
            rows = [
                (f"--{row.name} {row.kind.value}", f"{row.help} [{row.default}]" if row.default else row.help)
                for row in TABLE.values()
                if row.group is group and row.handling is Handling.USED
            ]
            if rows:
                with formatter.section(group.value):
                    formatter.write_dl(rows)
        others = [param.get_help_record(ctx) for param in self.get_params(ctx) if param.name not in _FIELDS]
        with formatter.section("Other"):
            formatter.write_dl([record for record in others if record is not None])
        with formatter.section("Known, without meaning here"):
            names = [f"--{row.name}" for row in TABLE.values() if row.handling is not Handling.USED]
            formatter.write_text(", ".join(names))


_FIELDS = {row.field for row in TABLE.values()}
_ACTIONS = frozenset({"print-config", "version", "help"})
"""Switches of the command itself."""

_SWITCHES = _ACTIONS | {name for name, row in TABLE.items() if row.kind is Kind.SWITCH}
_FLAGS = frozenset({*TABLE, CONFIG_FILE, *_ACTIONS})


def _read_flags(args: Sequence[str]) -> list[str]:
    """The flags as `--name=value`, and actions as `--name`, by the rules of Go's package flag.

    One dash or two; a switch stands alone or has its value behind an equals sign; any other flag takes the
    next argument, whatever that is.
    """
    found, rest = [], list(args)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        arg = rest.pop(0)
        if arg == "--":
            break
        text = arg.removeprefix("-").removeprefix("-")
        if text[0] in "-=":
            _refuse(f"bad flag syntax: {arg}")
        name, equals, value = text.partition("=")
        name = "help" if name == "h" else name
        if name not in _FLAGS:
            _refuse(f"flag provided but not defined: -{name}")
        if name in _SWITCHES:
            value = value if equals else "true"
        elif not equals:
            if not rest:
                _refuse(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if name not in _ACTIONS:
            found.append(f"--{name}={value}")
        elif _is_wanted(name, value):
            found.append(f"--{name}")
    if rest:
        _refuse(f"'{rest[0]}' is not a valid flag", EXIT_CANNOT_START)
    return found


def _is_wanted(action: str, value: str) -> bool:
    try:
        return parse_bool(value)
    except ValueError:
        _refuse(f"invalid boolean value {quote(value)} for -{action}: parse error")


def _refuse(text: str, code: int = EXIT_USAGE) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    raise click.exceptions.Exit(code)


def _option(row: Setting) -> click.Option:
    return click.Option([f"--{row.name}", row.field])


@click.command(cls=_ServerCommand, params=[_option(row) for row in TABLE.values()])
@click.option(f"--{CONFIG_FILE}", help="Read the configuration from this file, and from nowhere else.")
@click.option("--print-config", is_flag=True, help="Print each value with its origin, and end.")
@click.option("--version", is_flag=True, help="Print the version, and end.")
def server(config_file: str | None, print_config: bool, version: bool, **texts: str | None) -> int:
    """Run one member of a cluster.

    Every flag is an environment variable too (ETCD_NAME for --name) and a key of the file
    (TOML, or YAML with the extra `yaml`).
    """
    if version:
        click.echo(_version_lines(), nl=False)
        return EXIT_STOPPED
    flags = {name: text for name, row in TABLE.items() if (text := texts[row.field]) is not None}
    if config_file is not None:
        flags[CONFIG_FILE] = config_file
    loaded = _load(flags, os.environ)
    if print_config:
        click.echo(loaded.print(), nl=False)
        return EXIT_STOPPED
    return _serve(loaded)


def _version_lines() -> str:
    """The lines of `etcd --version`, which tools parse, and our own."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return (
        f"etcd Version: {ETCD_VERSION}\n"
        "Git SHA: none\n"
        f"Go Version: none (Python {platform.python_version()})\n"
        f"Go OS/Arch: {platform.system().lower()}/{machine}\n"
        f"kvstore Version: {__version__}\n"
    )


def _load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    try:
        loaded = load(flags, environ)
        loaded.config.validate()
        if loaded.bootstrap_only:
            from raft.storage import RealFiles, holds_member  # rarely needed

            has_data = holds_member(RealFiles(), str(loaded.config.directory))
            loaded.check_bootstrap(has_data=has_data)
    except ConfigError as error:
        _refuse(error.text, EXIT_USAGE if error.usage else EXIT_CANNOT_START)
    return loaded


def _serve(loaded: Loaded) -> int:
    config = loaded.config
    try:
        handlers = logs.configure(level=config.log_level, form=config.log_format, outputs=config.log_outputs)
    except OSError as error:
        _refuse(f"cannot log to {error.filename}: {error.strerror}", EXIT_CANNOT_START)
    try:
        for warning in loaded.warnings:
            logger.warning(warning)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve_until_stopped(loaded, handlers))
    finally:
        handlers.close()


def _loop_factory() -> Any:
    """uvloop's loops where it is installed (extra `speed`), else the standard ones."""
    try:
        import uvloop  # an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


def _end_soon(code: int) -> None:
    """End the process with `code` unless it has ended by itself in time: a thread may hang in a disk."""
    patience = threading.Timer(STOP_PATIENCE_S, os._exit, (code,))
    patience.daemon = True
    patience.start()


class _Stop:
    """The first signal stops `task`, the second ends the process.

    A thread waits for the signals, which are blocked in every other: neither a busy loop nor a call
    that hangs in the kernel can hold it up. To be made before any other thread, which inherits the block.
    """

    def __init__(self, task: asyncio.Task[int]) -> None:
        self._task = task
        self._loop = task.get_loop()
        self.asked = False
        """True from the first signal on."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # what the second does
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def _wait(self) -> None:
        first = signal.sigwait(_SIGNALS)
        self.asked = True
        _end_soon(EXIT_STOP_ABORTED)
        self._loop.call_soon_threadsafe(self._cancel, first)
        second = signal.sigwait(_SIGNALS)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.kill(os.getpid(), second)

    def _cancel(self, number: int) -> None:
        logger.info("received signal; shutting down", extra={"signal": signal.Signals(number).name})
        self._task.cancel()


def _follow(node: NodeHandle, handlers: logs.Handlers) -> None:
    """Log who leads, and let every line tell the member's term and role."""
    leader = 0

    def changed(term: int, now_leads: int, role: Role) -> None:
        nonlocal leader
        handlers.describe(node=node.name, term=term, role=role.name.lower())
        if now_leads == leader:
            return
        leader = now_leads
        if leader == node.member_id:
            logger.info("this member leads")
        elif leader:
            logger.info("member %x leads", leader)
        else:
            logger.info("no leader is known")

    status = node.status()
    changed(status.term, status.leader, status.role)
    node.node.subscribe(lambda event: changed(*event))


async def _serve_until_stopped(loaded: Loaded, handlers: logs.Handlers) -> int:
    task = asyncio.current_task()
    assert task is not None
    stop = _Stop(task)
    from kvstore.app import StartError, serve  # the whole server; --version and --help do without

    try:
        async with serve(loaded.config) as node:
            _follow(node, handlers)
            gc.collect()
            gc.freeze()  # what was loaded stays: the collector need not look at it again
            reason = await node.wait_failed()
            if node.removed:
                logger.warning("%s; the data directory is of no use any more", reason)
                return EXIT_STOPPED
            logger.critical("the member failed", extra={"error": reason})
            _end_soon(EXIT_FAILED)
        return EXIT_FAILED
    except asyncio.CancelledError:
        if not stop.asked:
            raise
        return EXIT_STOPPED
    except (ConfigError, StartError) as error:
        click.echo(f"Error: {error}", err=True)
        _end_soon(EXIT_CANNOT_START)
        return EXIT_CANNOT_START
    finally:
        sys.stdout.flush()
