"""The processes of clients: started together, ended together, their files merged into one history."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvstore.devcluster.plan import child_environment
from kvstore.verify.load.logical_client import LoadSpec
from kvstore.verify.load.workloads import CLIENTS_OF
from kvstore.verify.run.run_settings import Settings

AETCD_PYTHON = "KVSTORE_AETCD_PYTHON"
"""Environment variable: the interpreter of an environment that has aetcd."""

END_TIMEOUT_S = 20.0
"""For the operations in flight to end; longer than the longest wait for a lock."""


def aetcd_python() -> str | None:
    """The interpreter that has aetcd, or None."""
    path = os.environ.get(AETCD_PYTHON)
    return path if path and Path(path).exists() else None


class LoadProcesses:
    """All client processes of a run."""

    def __init__(self, settings: Settings, endpoints: list[str], options: dict[str, Any]) -> None:
        self.settings = settings
        self.folder = settings.directory / "clients"
        self.processes: list[asyncio.subprocess.Process] = []
        self.kinds: list[str] = []
        """The client of each process."""
        began_ns = time.monotonic_ns()
        self.specs = [
            LoadSpec(
                workload=settings.workload,
                client=kind,
                endpoints=tuple(endpoints),
                slots=slots,
                slots_total=settings.slots,
                rate=settings.rate,
                timeout_s=settings.timeout_s,
                seed=settings.seed,
                began_ns=began_ns,
                history=str(self.folder / f"{number}-{kind}.jsonl"),
                options=options,
            )
            for number, (kind, slots) in enumerate(_shares(settings), start=1)
        ]

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for spec in self.specs:
            python = (aetcd_python() if spec.client == "aetcd" else None) or sys.executable
            with (self.folder / f"{Path(spec.history).stem}.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    python,
                    "-m",
                    "kvstore.verify.load",
                    json.dumps(asdict(spec)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**child_environment(), "GRPC_VERBOSITY": "NONE"},
                    start_new_session=True,
                )
            self.processes.append(process)
            self.kinds.append(spec.client)

    @property
    def ended(self) -> bool:
        return any(process.returncode is not None for process in self.processes)

    async def stop(self) -> list[int | None]:
        """Ask all to end, wait, kill what does not; the exit codes, None for a killed one."""
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        codes: list[int | None] = []
        deadline = time.monotonic() + END_TIMEOUT_S
        for process in self.processes:
            try:
                codes.append(await asyncio.wait_for(process.wait(), max(0.1, deadline - time.monotonic())))
            except TimeoutError:
                process.kill()
                await process.wait()
                codes.append(None)
        return codes

    def kill(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()

    def said(self) -> list[str]:
        """Whatever the processes wrote to their standard error, process by process."""
        logs = (self.folder / f"{Path(spec.history).stem}.log" for spec in self.specs)
        return [log.read_text(errors="replace").strip() for log in logs if log.exists()]

    def events(self) -> list[dict[str, Any]]:
        """Every event of every process by time; an invocation before a completion of the same time."""
        lines = []
        for spec in self.specs:
            path = Path(spec.history)
            for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break  # the process was killed in the middle of its last line
        lines.sort(key=lambda event: (event["time"], event["type"] != "invoke"))
        return lines


def _shares(settings: Settings) -> list[tuple[str, tuple[int, ...]]]:
    """Which client drives which slots, process by process."""
    kinds = ["thin"] * settings.processes
    allowed = CLIENTS_OF.get(settings.workload, ("thin", "aetcd"))
    slots = list(range(settings.slots))
    by_aetcd = round(settings.slots * settings.aetcd_share)
    if "aetcd" not in allowed or aetcd_python() is None or not by_aetcd:
        return [(kind, tuple(slots[position :: len(kinds)])) for position, kind in enumerate(kinds)]
    own = slots[: len(slots) - by_aetcd]
    thin = kinds[: max(1, len(kinds) - 1)]
    shares = [(kind, tuple(own[position :: len(thin)])) for position, kind in enumerate(thin)]
    return [*shares, ("aetcd", tuple(slots[len(slots) - by_aetcd :]))]
