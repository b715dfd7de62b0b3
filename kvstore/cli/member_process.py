"""The process of one member: its loop, its signals, what it logs of the leader, and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli.exit_codes import ServerExitCode
from kvstore.configuration.config_setting import ConfigError
from kvstore.server import logs

if TYPE_CHECKING:
    from kvstore.app import NodeHandle  # loads the whole server
    from kvstore.configuration.config_loader import Loaded
    from raft.core.types import Role

STOP_PATIENCE_S = 2.5
"""A stop takes at most 3 s. Nothing is lost when it is aborted: what was acknowledged is on disk."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("kvstore.cli.member_process")


def run(loaded: Loaded) -> int:
    """Run the member until it stops or fails; the exit code."""
    config = loaded.config
    try:
        handlers = logs.configure(level=config.log_level, form=config.log_format, outputs=config.log_outputs)
    except OSError as error:
        click.echo(f"Error: cannot log to {error.filename}: {error.strerror}", err=True)
        return ServerExitCode.CANNOT_START
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
        _end_soon(ServerExitCode.STOP_ABORTED)
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
    from kvstore.app import StartError, serve  # once signals are in hand: it takes longest

    try:
        async with serve(loaded.config) as node:
            _follow(node, handlers)
            gc.collect()
            gc.freeze()  # what was loaded stays: the collector need not look at it again
            reason = await node.wait_failed()
            if node.removed:
                logger.warning("%s; the data directory is of no use any more", reason)
                return ServerExitCode.STOPPED
            logger.critical("the member failed", extra={"error": reason})
            _end_soon(ServerExitCode.FAILED)
        return ServerExitCode.FAILED
    except asyncio.CancelledError:
        if not stop.asked:
            raise
        return ServerExitCode.STOPPED
    except (ConfigError, StartError) as error:
        click.echo(f"Error: {error}", err=True)
        _end_soon(ServerExitCode.CANNOT_START)
        return ServerExitCode.CANNOT_START
    finally:
        sys.stdout.flush()
