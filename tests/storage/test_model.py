"""Long random lives of one member's log, with power cuts, against the model of what it must hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from raft.core.ready import AppendToken, AppendWork
from raft.core.types import SnapshotMeta
from raft.storage import Checkpoint, MemberDirectory, MemoryFiles
from raft.storage.memory_files import PowerCut

SEEDS = 120
STEPS = 40


class Life:
    """One member under random operations: every choice comes from the seed."""

    def __init__(self, kit: Any, disk: Any, seed: int) -> None:
        self.kit = kit
        self.disk = disk
        self.rng = kit.seeded(seed)
        self.sequence = 0
        self.candidates: list[Any] = [kit.Model()]
        """States that may be found after a crash: the acknowledged one first, then what was begun."""
        self.seen: dict[str, int] = {}

    @property
    def model(self) -> Any:
        return self.candidates[-1]

    def count(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1

    def begin(self, model: Any) -> None:
        self.candidates.append(model)

    def acknowledge(self) -> None:
        del self.candidates[:-1]

    def work(self) -> AppendWork:
        """Entries (some overwrite uncommitted ones in a new term), a new term and vote, or a commit index."""
        rng, model = self.rng, self.model
        self.sequence += 1
        state = model.state
        term = max(state.term, 1)
        kind = rng.choice(["append", "append", "append", "overwrite", "vote", "commit"])
        self.count(kind)
        back = 0
        if kind == "overwrite":
            back = rng.randrange(model.last_index - max(state.commit, model.base.index) + 1)
            term += 1
        if kind in ("append", "overwrite"):
            size = rng.choice([0, 10, 300, 511, 1100])
            work = self.kit.append(self.sequence, model, rng.randrange(1, 4), size, term=term, back=back)
            last = work.entries[-1].index
        else:
            term += kind == "vote"
            last = model.last_index
            work = AppendWork(token=AppendToken(term, self.sequence, last, term), must_sync=True)
        vote = rng.randrange(1, 4) if term > state.term else state.vote
        commit = rng.randrange(state.commit, last + 1)
        work.hard_state = state._replace(term=term, vote=vote, commit=commit)
        return work

    async def step(self, member: MemberDirectory) -> None:
        rng, model, log = self.rng, self.model, member.log
        roll = rng.random()
        if roll < 0.08 and model.state.commit > model.base.index:
            self.count("compact")
            index = rng.randrange(model.base.index + 1, model.state.commit + 1)
            base = SnapshotMeta(index, model.entries[index - model.base.index - 1].term, self.kit.CONF)
            if (await member.state.mark()).index < index:
                await member.state.commit(Checkpoint(*base), [(b"k%d" % index, b"v")])
            self.begin(model.compacted(base))
            log.stage_compaction(base)
        elif roll < 0.13:
            log.stage_synced_through()
        elif roll < 0.17:
            log.stage_peer_disk(rng.randrange(2, 5), 1000 + rng.randrange(3))
        else:
            for _ in range(rng.randrange(1, 4)):  # a group; each may be the last found
                work = self.work()
                self.begin(self.model.after(work))
                log.stage_work(work)
        log.commit()
        self.acknowledge()
        if log.needs_maintenance:
            log.maintain()

    async def reopen(self) -> MemberDirectory:
        member: MemberDirectory = await self.disk.open()
        found = [model for model in self.candidates if model.matches(member.recovered)]
        assert found, f"found {member.recovered}, wanted one of {self.candidates}"
        # A frame is whole or gone: what is found is either the acknowledged state or all of the group,
        # or, when the group was split over frames, one of the states between.
        self.candidates = [found[-1]]
        self.count("truncated" if member.recovered.tail_truncated else "clean")
        if member.recovered.tail_truncated and self.rng.random() < 0.7:
            member.log.stage_vote_eligible()
            member.log.commit()
        return member


def draws(rng: Any) -> Iterator[int]:
    """How many operations each life lasts before the power fails."""
    while True:
        yield rng.choice([1, 3, 10, 30, 100])


@pytest.mark.asyncio
async def test_random_lives_with_power_cuts_lose_nothing_acknowledged(kit: Any) -> None:
    seen: dict[str, int] = {}
    for seed in range(SEEDS):
        disk = kit.in_memory()
        life = Life(kit, disk, seed)
        await kit.close(await life.reopen())
        spans = draws(life.rng)
        steps = 0
        while steps < STEPS:
            assert isinstance(disk.files, MemoryFiles)
            end = disk.files.calls + next(spans)
            disk.files.fault = lambda n, operation, path, end=end: PowerCut(operation) if n >= end else None
            try:
                member = await life.reopen()
                while steps < STEPS:
                    steps += 1
                    await life.step(member)
            except PowerCut:
                pass
            disk.files.crash(life.rng.randrange)
        await kit.close(await life.reopen())
        for what, count in life.seen.items():
            seen[what] = seen.get(what, 0) + count
    print(seen)
    for what in ("append", "overwrite", "vote", "commit", "compact", "truncated", "clean"):
        assert seen[what] >= 50, f"too little {what}: {seen}"
