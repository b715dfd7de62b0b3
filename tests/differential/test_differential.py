"""This store gives etcd's replies, and the judge that says so can be trusted."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import clusters
from kvstore.wire import kv_pb2, rpc_pb2
from tests.differential import judge
from tests.differential.programs import (
    BASE,
    NOW,
    Compare,
    Generator,
    Put,
    Range,
    Request,
    Step,
    Txn,
    deletes,
    puts,
    resolve,
    without_inner_revisions,
)
from tests.differential.runner import Run, Tally
from tests.differential.watching import LOST_TOMBSTONE

SECONDS = 60
SECONDS_WITH_LEASES = 20  # with start and stop both runs take 90 s
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "differential-short.json"
needs_etcd = pytest.mark.skipif(clusters.find_etcd() is None, reason=clusters.NO_ETCD)


def real(folder: Path, size: int) -> clusters.Cluster:
    return clusters.etcd(folder, size=size, flags=["--unsafe-no-fsync"])


def ours(folder: Path, size: int) -> clusters.Cluster:
    return clusters.ours(folder, size=size)


def seed() -> int:
    chosen = int(os.environ.get("KVSTORE_SEED", random.SystemRandom().randrange(10**9)))
    print(f"seed {chosen}; repeat with KVSTORE_SEED={chosen}")
    return chosen


@needs_etcd
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_same_replies_as_etcd(tmp_path: Path) -> None:
    run = Run(
        left=real,
        right=ours,
        folder=tmp_path,
        seed=seed(),
        programs=10_000,
        seconds=SECONDS,
        kinds=("watch",),
    )
    asyncio.run(run.go())
    run.add_to(RESULTS)
    assert run.tally.differences == []
    assert run.tally.shortfalls() == []


@needs_etcd
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_same_leases_and_locks_as_etcd(tmp_path: Path) -> None:
    """Too short a run to cover everything; `make differential` does."""
    run = Run(left=real, right=ours, folder=tmp_path, seed=seed(), programs=10_000)
    run.kinds, run.seconds = ("watch", "lease", "lock"), SECONDS_WITH_LEASES
    asyncio.run(run.go())
    run.add_to(RESULTS)
    assert run.tally.differences == []
    assert run.tally.options["lock"] + run.tally.options["campaign"] > 10
    assert run.tally.options["lease put"] > 10


def _count(request: Request, reply: judge.Reply | judge.Refusal) -> judge.Reply | judge.Refusal:
    if isinstance(reply, rpc_pb2.RangeResponse) and reply.count > 2:
        reply.count += 1
    return reply


def _text(request: Request, reply: judge.Reply | judge.Refusal) -> judge.Reply | judge.Refusal:
    if isinstance(reply, judge.Refusal) and "duplicate" in reply.text:
        return reply._replace(text=reply.text.upper())
    return reply


@needs_etcd
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("alter", "steps_max"), [(None, 0), (_count, 4), (_text, 1)])
def test_the_judge_bites(
    tmp_path: Path,
    alter: Callable[[Request, judge.Reply | judge.Refusal], judge.Reply | judge.Refusal] | None,
    steps_max: int,
) -> None:
    """etcd against itself: equal as it stands; with one kind of reply altered, reported and shrunk."""
    run = Run(left=real, right=real, folder=tmp_path, seed=seed(), programs=25, sizes=(1,), alter=alter)
    run.differences_max = 1
    asyncio.run(run.go())
    assert run.tally.programs > 0
    if alter is None:
        assert run.tally.differences == []
        return
    shrunk = run.tally.differences[0]["shrunk_to"]
    assert isinstance(shrunk, list)
    assert len(shrunk) <= steps_max + 3, shrunk  # a few puts may be needed before the altered reply


def test_what_is_kept_on_purpose_is_told() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    told = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    kept = [LOST_TOMBSTONE, *(one.name for one in judge.KEPT)]
    assert [name for name in kept if name not in told] == []


def test_a_seed_is_a_program() -> None:
    assert Generator("7:1").program() == Generator("7:1").program()
    assert Generator("7:1").program() != Generator("7:2").program()


def test_programs_do_not_crash_etcd() -> None:
    """A delete from a key onwards and a put that keeps what it deletes never meet in one transaction."""
    met = 0
    for number in range(300):
        for request, _ in Generator(f"crash:{number}").program():
            if isinstance(request, Txn) and any(one.range_end == b"\x00" for one in deletes(request)):
                met += 1
                assert not any(one.ignore_value or one.ignore_lease for one in puts(request))
    assert met > 50


def test_symbols_become_revisions() -> None:
    request = Txn(compare=[Compare(mod_revision=NOW - 3)])
    request.success.add().request_range.CopyFrom(Range(revision=BASE + 2, min_mod_revision=NOW - 500))
    solved = resolve(request, now=100, base=90)
    assert solved.compare[0].mod_revision == 97
    assert solved.success[0].request_range.revision == 92
    assert solved.success[0].request_range.min_mod_revision == 1
    assert request.compare[0].mod_revision == NOW - 3


def test_inner_revisions_are_left_out_and_nothing_else() -> None:
    write, read = Txn(), Txn()
    write.success.add().request_txn.success.add().request_range.CopyFrom(
        Range(key=b"a", revision=NOW, limit=2)
    )
    read.success.add().request_range.CopyFrom(Range(key=b"a", revision=NOW))
    kept = without_inner_revisions(Step(write, ("txn", "range limit", "range revision in the past")))
    assert kept.options == ("txn", "range limit")
    assert kept.request.success[0].request_txn.success[0].request_range == Range(key=b"a", limit=2)
    reading = Step(read, ("txn", "txn reads linearizable"))
    assert without_inner_revisions(reading) is reading


PAIRS = [kv_pb2.KeyValue(key=key, version=version) for key, version in ((b"a", 1), (b"b", 1), (b"c", 2))]


def reply(*indices: int, more: bool = False) -> rpc_pb2.RangeResponse:
    return rpc_pb2.RangeResponse(kvs=[PAIRS[index] for index in indices], count=3, more=more)


def test_ties_may_come_in_any_order_and_nothing_else() -> None:
    by_version = Range(key=b"a", range_end=b"z", sort_target=Range.VERSION)
    by_key = Range(key=b"a", range_end=b"z")
    assert judge.difference(by_version, reply(0, 1, 2), reply(1, 0, 2)) is None
    assert judge.difference(by_version, reply(0, 1, 2), reply(0, 2, 1)) is not None
    assert judge.difference(by_key, reply(0, 1, 2), reply(1, 0, 2)) is not None
    assert (
        judge.difference(by_version, reply(0, more=True), reply(1, more=True)) is None
    )  # the limit splits the tie
    assert judge.difference(by_version, reply(0, more=True), reply(2, more=True)) is not None
    assert judge.difference(by_version, reply(0, 1, more=True), reply(0, more=True)) is not None


@pytest.mark.parametrize(
    ("field", "value"), [("cluster_id", 9), ("member_id", 9), ("raft_term", 9), ("revision", 9)]
)
def test_of_the_header_only_the_revision_counts(field: str, value: int) -> None:
    header = rpc_pb2.ResponseHeader(**{field: value})
    found = judge.difference(Put(key=b"a"), rpc_pb2.PutResponse(), rpc_pb2.PutResponse(header=header))
    assert found is not None  # a missing header is not an empty one
    empty = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader())
    found = judge.difference(Put(key=b"a"), empty, rpc_pb2.PutResponse(header=header))
    assert (found is None) == (field != "revision")


def test_refusals_differ_by_code_and_by_text() -> None:
    refusal = judge.Refusal(3, "etcdserver: key not found")
    assert judge.difference(Put(), refusal, refusal) is None
    assert judge.difference(Put(), refusal, refusal._replace(code=5)) is not None
    assert judge.difference(Put(), refusal, refusal._replace(text="etcdserver: no key")) is not None
    assert judge.difference(Put(), refusal, rpc_pb2.PutResponse()) is not None


def test_too_little_coverage_is_reported() -> None:
    tally = Tally(programs=1, requests=100, refused=1)
    assert any("of the replies are errors" in line for line in tally.shortfalls())
    assert any("range limit" in line for line in tally.shortfalls())
