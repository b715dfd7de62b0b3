"""One run of a local cluster, from `up` to its end; and how other commands find it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kvstore.devcluster import control
from kvstore.devcluster.display import Display, banner
from kvstore.devcluster.plan import ClusterError, ClusterPlan, Running, child_environment, load, save
from kvstore.devcluster.supervisor import READY_TIMEOUT_S, STOP_TIMEOUT_S, Supervisor

LOCK_FILE = "lock"
SUPERVISOR_LOG = "supervisor.log"
DOWN_TIMEOUT_S = STOP_TIMEOUT_S + 5.0
_POLL_S = 0.05


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold the state directory for one supervisor; raises ClusterError when another has it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(f"a cluster already runs in {directory}; stop it with: down") from None
        yield


async def run(plan: ClusterPlan, display: Display) -> None:
    """Run the cluster until SIGINT, SIGTERM or a `down`; raises ClusterError when it does not come up."""
    loop = asyncio.get_running_loop()
    # gRPC remarks on every connection that a killed member leaves behind; the display says it better.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with directory_lock(plan.directory):

        def record() -> None:
            if server.port:
                save(
                    plan,
                    Running(
                        supervisor_pid=os.getpid(),
                        control_port=server.port,
                        control_secret=server.secret,
                        pids=supervisor.pids,
                    ),
                )

        supervisor = Supervisor(plan, on_change=record)
        server = control.ControlServer(supervisor)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop_asked.set)
        plan.check_ports()
        await server.start()
        tasks: list[asyncio.Task[Any]] = []
        try:
            stopping = loop.create_task(server.stop_asked.wait())
            tasks.append(stopping)
            coming_up = loop.create_task(_come_up(supervisor))
            tasks.append(coming_up)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if coming_up.done():
                coming_up.result()
                click.echo(banner(plan))
                showing = loop.create_task(display.show(supervisor))
                tasks.append(showing)
                await asyncio.wait([stopping, showing], return_when=asyncio.FIRST_COMPLETED)
                if showing.done():
                    showing.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()
            await supervisor.stop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            save(plan, Running())
        click.echo("cluster stopped")


async def _come_up(supervisor: Supervisor) -> None:
    await supervisor.start()
    await supervisor.wait_ready()


async def start_in_background(plan: ClusterPlan, arguments: list[str]) -> None:
    """Start a supervisor of its own session and return once the cluster is up; ClusterError if it is not."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    log = plan.directory / SUPERVISOR_LOG
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: ASYNC220, S603  our own module, and it outlives this loop
            [sys.executable, "-m", "kvstore.devcluster", "up", "--foreground", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=child_environment(),
            start_new_session=True,
        )
    up = banner(plan).splitlines()[0]
    deadline = time.monotonic() + READY_TIMEOUT_S + DOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if up in text:
            return
        if process.poll() is not None:
            last = text.strip().splitlines()[-1:] or ["it said nothing"]
            raise ClusterError(last[0].removeprefix("Error: "))
        await asyncio.sleep(_POLL_S)
    raise ClusterError(f"the cluster did not come up; see {log}")


def ask(directory: Path, verb: str, *arguments: str) -> Any:
    """Send one request to the cluster that runs in `directory`; ClusterError when none does."""
    recorded = load(directory)
    if recorded is None or not recorded[1].control_port:
        raise ClusterError(f"no cluster runs in {directory}; start one with: up")
    try:
        return asyncio.run(control.ask(recorded[1], verb, *arguments))
    except OSError:
        raise ClusterError(
            f"the cluster in {directory} has gone without a word; clear up with: down"
        ) from None


async def down(directory: Path) -> int:
    """Stop the cluster in `directory` and wait for its end; return how many orphaned members were killed."""
    recorded = load(directory)
    if recorded is None or not recorded[1].control_port:
        raise ClusterError(f"no cluster runs in {directory}")
    plan, running = recorded
    try:
        await control.ask(running, "down")
    except OSError:
        killed = _kill_orphans(plan, running)
        save(plan, Running())
        return killed
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        recorded = load(directory)
        if recorded is None or not recorded[1].control_port:
            return 0
        await asyncio.sleep(_POLL_S)
    raise ClusterError(f"the cluster did not stop within {DOWN_TIMEOUT_S:.0f} s")


def _kill_orphans(plan: ClusterPlan, running: Running) -> int:
    """Kill members whose supervisor was killed, as far as they can be recognised by their command line."""
    killed = 0
    for number, pid in running.pids.items():
        mark = f"--data-dir={plan.data_directory(plan.node(number))}"
        try:
            if pid and mark in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        except OSError:
            continue  # ended already
    return killed
