"""What one run is: decided before it begins, written to its directory, drawn from nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NODES = (3, 5, 7)
"""Sizes of cluster that make sense: odd, and the largest that a laptop can run in Python."""

SECONDS_MAX = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    workload: str
    nemeses: tuple[str, ...]
    """By name; empty for a run without faults."""
    directory: Path
    seed: int
    nodes: int = 3
    seconds: float = 30.0
    """How long clients work while faults are done; start, recovery and judgement come on top."""
    rate: float = 600.0
    """Operations per second aimed at."""
    slots: int = 16
    """Logical clients."""
    processes: int = 2
    """Processes they live in."""
    timeout_s: float = 2.0
    """Of one call; longer than an election usually takes."""
    aetcd_share: float = 0.25
    """Share of the slots driven by aetcd, where its environment is known."""
    program: tuple[str, ...] = ("-m", "kvstore", "server")
    """Arguments of the interpreter that start a member."""
    server_flags: tuple[str, ...] = ()
    network: str = "relay"
    """How links between members are partitioned: relay or namespaces; the latter needs `enter_hub` before."""
    keep_data: bool = False
    """Whether the members' data stays in the directory after a valid run."""

    def validate(self) -> None:
        """Raise ValueError naming what is out of range."""
        if self.nodes not in NODES:
            raise ValueError(f"a cluster has {', '.join(map(str, NODES))} nodes, not {self.nodes}")
        if not 1 <= self.seconds <= SECONDS_MAX:
            raise ValueError(f"a run takes 1 to {SECONDS_MAX:g} seconds, not {self.seconds:g}")
        if self.rate <= 0 or self.slots <= 0 or not 0 < self.processes <= self.slots:
            raise ValueError("a run needs a rate, slots, and at most as many processes as slots")

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory)}

    def save(self) -> None:
        """Make the directory anew, an earlier run's included, and write `config.json`.

        Raises ValueError for a directory that holds something else.
        """
        if self.directory.exists() and any(self.directory.iterdir()):
            if not (self.directory / "config.json").exists():
                raise ValueError(f"{self.directory} holds something that is no run")
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.write({})

    def write(self, means: dict[str, str]) -> None:
        """Write `config.json`, with what each fault that has a choice is done by."""
        text = json.dumps({**self.as_json(), "means": means}, indent=2)
        (self.directory / "config.json").write_text(text + "\n")
