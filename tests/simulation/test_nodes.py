"""Whole members under every kind of fault, and broken members that the same runs must catch.

The seeds here are a short, fixed selection; `make simulate` goes on from there. See README.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import pytest

from kvstore.testing.faults import CLASSES
from kvstore.testing.nodes import SimulationFailed, run_seed
from raft.core.read_index import ReadRounds, Round
from raft.core.ready import Ready
from raft.node.admission import Admission
from raft.node.forwarding import Forwarding
from raft.node.node import Node
from raft.node.proposals import Proposals
from raft.storage.memory import MemoryFile
from raft.transport.protocol import ForwardedBatch, ForwardRefused

SEEDS = 12
"""Swarm runs in this suite: about twenty seconds on one core."""

LENGTH_S = 12
"""Virtual seconds of faults in each of them."""

CONTROL_SEEDS = 30
"""A broken member must be caught within so many seeds."""


@pytest.fixture(autouse=True)
def quiet_members() -> Iterator[None]:
    """Members complain, rightly, of what is done to them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_promises_hold_under_a_swarm_of_faults(seed: int) -> None:
    report = run_seed(seed, length_s=LENGTH_S)
    print(report)
    assert not report.void
    assert sum(report.faults.values()) > 0


@pytest.mark.parametrize("name", CLASSES)
def test_promises_hold_under_each_class(name: str) -> None:
    report = run_seed(1000, classes=(name,), length_s=6)
    print(report)
    assert set(report.faults) == {name}


def test_a_seed_repeats_its_run() -> None:
    first, second = run_seed(3, length_s=LENGTH_S), run_seed(3, length_s=LENGTH_S)
    assert (first.digest, first.faults, first.operations) == (second.digest, second.faults, second.operations)
    assert first.digest != run_seed(4, length_s=LENGTH_S).digest


# ---------------------------------------------------------------------- negative controls


def sync_is_a_no_op(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryFile, "datasync", lambda self: self._count("datasync"))


def reads_skip_the_quorum(patch: pytest.MonkeyPatch) -> None:
    def take_confirmed(self: ReadRounds, conf: object, member_id: int) -> list[Round]:
        done = list(self.rounds)
        self.rounds.clear()
        self.pending -= sum(len(finished.reads) for finished in done)
        return done

    patch.setattr(ReadRounds, "take_confirmed", take_confirmed)


def promises_leave_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    execute = Node._execute

    def eager(self: Node, ready: Ready) -> None:
        if ready.append is not None:
            self._send(ready.append.responses)
        execute(self, ready)

    patch.setattr(Node, "_execute", eager)


def batches_are_sent_to_the_next_leader_at_once(patch: pytest.MonkeyPatch) -> None:
    open_window = Proposals.open_window

    def impatient(self: Proposals, term: int, leader: int, leader_boot_id: int) -> bool:
        if (term, leader, leader_boot_id) != self._window:
            while self._flight:
                self._put_back(self._flight.pop())
        return open_window(self, term, leader, leader_boot_id)

    patch.setattr(Proposals, "open_window", impatient)


def leader_takes_a_batch_again(patch: pytest.MonkeyPatch) -> None:
    on_batch = Forwarding.on_batch

    def forgetful(
        self: Forwarding, member_id: int, batch: ForwardedBatch, leading_term: int
    ) -> ForwardRefused | None:
        window = self._windows.get((member_id, batch.boot_id))
        if window is not None and leading_term == batch.term:
            window.next = batch.counter
        return on_batch(self, member_id, batch, leading_term)

    patch.setattr(Forwarding, "on_batch", forgetful)


def failed_sync_is_ignored(patch: pytest.MonkeyPatch) -> None:
    datasync = MemoryFile.datasync

    def hopeful(self: MemoryFile) -> None:
        try:
            datasync(self)
        except OSError:
            return

    patch.setattr(MemoryFile, "datasync", hopeful)


def fresh_disk_votes_at_once(patch: pytest.MonkeyPatch) -> None:
    judge = Admission.__init__

    def trusting(self: Admission, **arguments: object) -> None:
        judge(self, **arguments)  # type: ignore[arg-type]  # passed on as they came
        if not self.admitted:
            self._admit()

    patch.setattr(Admission, "__init__", trusting)


Bug = Callable[[pytest.MonkeyPatch], None]

BUGS: dict[Bug, tuple[Sequence[str], str]] = {
    sync_is_a_no_op: (("crash",), "another batch|cannot start"),
    promises_leave_before_the_sync: (
        ("crash", "slow-disk"),
        "(another|skips the) batch|completeness",
    ),
    reads_skip_the_quorum: (("isolate-leader", "pause"), "not linearizable"),
    batches_are_sent_to_the_next_leader_at_once: (("crash", "delay", "slow-disk"), "applied twice"),
    leader_takes_a_batch_again: (("reset", "delay", "slow-disk"), "applied twice"),
    failed_sync_is_ignored: (("io-error",), "lives on after its disk failed"),
    fresh_disk_votes_at_once: (("wipe",), "votes again"),
}
"""What is broken, under which faults, and what the judge must say of it."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_broken_member_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    classes, verdict = BUGS[bug]
    bug(monkeypatch)
    with pytest.raises(SimulationFailed, match=verdict) as caught:
        run_seeds(classes)
    print(caught.value)


def run_seeds(classes: Sequence[str]) -> None:
    for seed in range(CONTROL_SEEDS):
        run_seed(seed, length_s=LENGTH_S, classes=classes)
