"""The parts of the runner that need no process."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.verify import pair_events, read_history
from kvstore.verify.load.workloads import WORKLOADS
from kvstore.verify.operation_history import Operation, Outcome, VerdictKind
from kvstore.verify.run import run_report
from kvstore.verify.run.availability import availability
from kvstore.verify.run.guarded_resource import GuardedResource
from kvstore.verify.run.nemeses import NEMESES
from kvstore.verify.run.nemesis_runner import Fault, FaultMissedError, Field, NemesisRunner
from kvstore.verify.run.network_faults import SHAPES, Links
from kvstore.verify.run.rotation import ROTATION, plan_runs
from kvstore.verify.run.run_execution import Run, RunResult
from kvstore.verify.run.run_settings import Settings
from kvstore.verify.run.workload_checks import Check, Finals, as_register, judge
from kvstore.verify.verify_command import verify


def reachable(members: list[int], links: Links) -> dict[int, set[int]]:
    """From which members each member receives, itself included."""
    return {one: {other for other in members if (other, one) not in links} for one in members}


@pytest.mark.parametrize("count", [3, 5, 7])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_partitions(name: str, count: int) -> None:
    members = list(range(1, count + 1))
    majority = count // 2 + 1
    for seed in range(50):
        links = SHAPES[name](members, 2, random.Random(seed))
        assert links, "no link is blocked"
        heard = reachable(members, links)
        if name == "partition-one-way":
            assert not set(links) & {(b, a) for a, b in links}, "blocked in both directions"
        elif name != "partition-ring":
            assert set(links) == {(b, a) for a, b in links}, "blocked in one direction only"
        if name == "partition-leader":
            assert heard[2] == {2}
        if name == "partition-halves":
            assert sorted({len(group) for group in heard.values()}) == [count - majority, majority]
        if name == "partition-ring":
            assert all(len(group) == majority for group in heard.values())
            assert all(a != b for a, b in itertools.combinations(heard.values(), 2))
        if name == "partition-bridge":
            assert sum(len(group) == count for group in heard.values()) == 1
            assert not any(len(group) == count - 1 for group in heard.values()) or count == 3


def test_the_resource_refuses_lower_tokens_and_only_with_tokens() -> None:
    guarded = GuardedResource()

    def ask(op: str, token: int | None, name: str = "n") -> tuple[int, bool]:
        answer = guarded.answer({"op": op, "name": name, "token": token})
        return answer["version"], answer["accepted"]

    assert ask("read", 5) == (0, True)
    assert ask("read", 7) == (0, True)
    assert ask("write", 5) == (0, False)
    assert ask("write", 7) == (1, True)
    assert ask("write", None, "m") == (1, True)
    assert ask("write", None, "m") == (2, True)


def settings(directory: Path, **more: Any) -> Settings:
    return Settings(workload="register", nemeses=("kill",), directory=directory, seed=1, **more)


def test_watched_members_notify_of_progress_while_a_watch_lasts(tmp_path: Path) -> None:
    """By default a server does it every ten minutes, and no check would see it."""
    flags = {
        workload: Run(
            Settings(workload=workload, nemeses=("kill",), directory=tmp_path, seed=1)
        ).cluster.plan.server_arguments
        for workload in ("watch", "register")
    }
    assert flags == {"watch": ("--experimental-watch-progress-notify-interval=200ms",), "register": ()}


EVENTS = [
    {"time": 1_000_000, "process": 0, "type": "invoke", "f": "put", "value": ["a", "1"], "node": 0},
    {"time": 3_000_000, "process": 0, "type": "ok", "f": "put", "value": {"revision": 2}, "node": 0},
    {"time": 4_000_000, "process": 1, "type": "invoke", "f": "get", "value": ["a"], "node": 1},
    {"time": 5_000_000, "process": 1, "type": "ok", "f": "get", "value": None, "node": 1},
]


def finished(directory: Path, read: Any, faults: list[Fault]) -> RunResult:
    """A run that ended with these two operations, judged and reported as a real one is."""
    events = json.loads(json.dumps(EVENTS))
    events[3]["value"] = read
    run = Run(settings(directory))
    directory.mkdir(exist_ok=True)
    run.result.faults = faults
    run.load = type("Load", (), {"events": lambda self: events})()  # type: ignore[assignment]  # only its events are asked for
    run.finals = Finals(contents={"node1": {"a": ("1", 2, 2, 1, 0)}}, revision=2)
    return run._judge()


KILLED = Fault(nemesis="kill", target="killed node2", begin_ns=1, end_ns=2, evidence="gone", nodes=(2,))
MISSED = Fault(nemesis="kill", target="", begin_ns=1, end_ns=2, missed="no member is alive")
FRESH = {"revision": 2, "value": "1", "mod": 2}
STALE = {"revision": 1, "value": None, "mod": 0}


@pytest.mark.parametrize(
    ("read", "faults", "verdict"),
    [
        (FRESH, [KILLED], "valid"),
        (STALE, [KILLED], "invalid"),
        (FRESH, [MISSED], "inconclusive"),
        (FRESH, [], "inconclusive"),
    ],
)
def test_the_verdict_of_a_run(tmp_path: Path, read: Any, faults: list[Fault], verdict: str) -> None:
    result = finished(tmp_path, read, faults)
    assert result.verdict == verdict, result.reasons
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["verdict"], written["seed"], written["checked"]) == (verdict, 1, 2)
    junit = (tmp_path / "junit.xml").read_text()
    assert ("<failure" in junit, "<error" in junit) == (verdict == "invalid", verdict == "inconclusive")


def test_both_forms_of_a_history_read_the_same(tmp_path: Path) -> None:
    finished(tmp_path, FRESH, [KILLED])
    edn, lines = (pair_events(read_history(tmp_path / f"history.{form}")) for form in ("edn", "jsonl"))
    assert edn == lines
    assert [operation.f for operation in edn] == ["put", "get"]
    assert edn[1].completed == FRESH


def test_the_page_stands_alone_and_names_what_cannot_be_placed(tmp_path: Path) -> None:
    finished(tmp_path, STALE, [KILLED])
    page = (tmp_path / "timeline.html").read_text()
    assert not re.search(r"(src|href)=|https?://", page)
    found = re.search(r"const D = (.*);\n", page)
    assert found is not None
    data = json.loads(found.group(1))
    assert data["verdict"] == "invalid"
    named = [row for row in data["operations"] if row[6]]
    assert [row[5].split(":")[0] for row in named] == ["line 5"]
    assert [row[7] for row in data["operations"]] == [0, -1], "the put is the longest legal order"
    assert data["faults"][0]["name"] == "kill"


class Elusive:
    """A nemesis whose fault takes hold at the third attempt only."""

    nodes: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.attempts = 0

    def prepare(self) -> None:
        """Nothing to prepare."""

    async def begin(self) -> str:
        self.attempts += 1
        return "tried"

    async def end(self) -> str:
        if self.attempts < 3:
            raise FaultMissedError("not this time")
        return "took hold"


class NoCluster:
    """A cluster that is always healthy."""

    numbers: tuple[int, ...] = ()

    def note_ends(self) -> None:
        """No member ends by itself."""

    async def statuses(self) -> list[Any]:
        return []


@pytest.mark.asyncio
async def test_a_run_goes_on_until_each_fault_took_hold_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore.verify.run.nemesis_runner.QUIET_S", (0.0, 0.01))
    monkeypatch.setattr("kvstore.verify.run.nemesis_runner.HOLD_S", (0.0, 0.01))
    field = Field(
        cluster=NoCluster(),  # type: ignore[arg-type]  # all that the injector uses
        settings=settings(tmp_path),
        rng=random.Random(1),
        directory=tmp_path,
        client_pids=[],
    )
    runner = NemesisRunner(field, {"kill": Elusive()})
    await runner.run(deadline=time.monotonic())
    assert [bool(fault.evidence) for fault in runner.faults] == [False, False, True]
    assert [fault.missed for fault in runner.faults] == ["not this time", "not this time", ""]


def test_too_few_successes_are_inconclusive(tmp_path: Path) -> None:
    run = Run(settings(tmp_path))
    run.result.faults = [KILLED]
    run.result.counts = {"ok": 4, "fail": 5, "info": 0}
    run.finals = Finals(contents={}, revision=1)
    run._conclude()
    assert run.result.verdict == "inconclusive"


def test_a_run_that_no_check_judged_is_unknown(tmp_path: Path) -> None:
    run = Run(settings(tmp_path))
    run.result.faults = [KILLED]
    run.result.counts = {"ok": 4}
    run.finals = Finals(contents={}, revision=1)
    run._conclude()
    assert (run.result.verdict, run.result.reasons) == ("unknown", ["no check judged the history"])


def test_a_run_that_judged_nothing_is_unknown(tmp_path: Path) -> None:
    run = Run(settings(tmp_path))
    run.result.faults = [KILLED]
    run.result.counts = {"ok": 4}
    run.finals = Finals(contents={}, revision=1)
    run.result.checks = judge("register", [], run.finals)
    run._conclude()
    assert run.result.verdict == "unknown"
    assert all(reason.startswith("nothing to judge") for reason in run.result.reasons)


def test_checkers_that_disagree_are_a_finding(tmp_path: Path) -> None:
    run = Run(settings(tmp_path))
    run.result.faults = [KILLED]
    run.result.counts = {"ok": 4}
    run.finals = Finals(contents={}, revision=1)
    kinds = {"revision witness": VerdictKind.VALID, "search": VerdictKind.INVALID}
    run.result.checks = [Check(name=n, kind=k, operations=1, seconds=0.0) for n, k in kinds.items()]
    run._conclude()
    assert run.result.verdict == "invalid"
    assert any("says there is none" in reason for reason in run.result.reasons)


def test_time_to_recover() -> None:
    def ok(second: float) -> Operation:
        moment = int(second * 1e9)
        return Operation(0, "get", None, None, None, Outcome.OK, 0, 1, 1, moment - 1000, moment)

    operations = [ok(0.01 * n) for n in range(100)] + [ok(3.5 + 0.01 * n) for n in range(100)]
    fault = Fault(nemesis="kill", target="", begin_ns=int(1e9), end_ns=int(3e9))
    (row,) = availability(operations, [fault])
    assert row["longest_gap_s"] == pytest.approx(3.51 - 1.0, abs=0.03)
    assert row["recovered_s"] == pytest.approx(0.5, abs=0.01)


def test_an_operation_of_the_register_keeps_its_meaning_in_the_search() -> None:
    def done(f: str, asked: Any, completed: Any, outcome: Outcome = Outcome.OK) -> Operation:
        return Operation(0, f, None, asked, completed, outcome, 0, 1, 1)

    refused = done("cas", ["k", "1", "2"], {"revision": 3, "succeeded": False})
    never = done("cas", ["k", "1", "2"], None, Outcome.FAIL)
    stale = done("get", ["k", "serializable"], STALE)
    gone = done("delete", ["k"], {"revision": 3, "deleted": 1})
    converted = as_register([refused, never, stale, gone])
    assert [(op.f, op.outcome) for op in converted] == [("cas", Outcome.FAIL), ("write", Outcome.OK)]


def test_every_workload_has_checks_and_every_rotation_runs_what_exists() -> None:
    finals = Finals(contents={"node1": {}}, revision=1)
    for workload in WORKLOADS:
        assert len(judge(workload, [], finals)) >= 2
    for workload, nemeses in ROTATION:
        assert workload in WORKLOADS
        assert all(name in NEMESES for name in nemeses)
    for minutes in (1.0, 3.0, 10.0, 60.0):
        runs = plan_runs(minutes, 1)
        assert 0.6 * 60 * minutes <= sum(run[2] + 15 for run in runs) <= 1.4 * 60 * minutes


def test_junit_of_several_runs(tmp_path: Path) -> None:
    results = [
        RunResult(settings=settings(tmp_path), verdict=verdict, reasons=["a < b"])
        for verdict in ("valid", "invalid", "inconclusive")
    ]
    text = run_report.junit(results)
    assert "tests='3' failures='1' errors='1'" in text
    assert "a &lt; b" in text


@pytest.mark.parametrize(
    "arguments",
    [["--workload", "nonsense"], ["--nemesis", "kill,nonsense"], ["--nodes", "4"], ["--seconds", "0"]],
)
def test_what_cannot_be_run_is_said_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(verify, ["run", "--directory", str(tmp_path / "runs"), *arguments])
    assert done.exit_code == 3, done.output
    said = next(line for line in done.output.splitlines() if not line.startswith("seed "))
    assert said.startswith("Error: ")
    assert not (tmp_path / "runs").exists()


def test_checking_a_file_loads_no_cluster() -> None:
    imported = "[name for name in ('grpc', 'asyncio') if name in sys.modules]"
    program = f"import sys, kvstore.verify.verify_command; print({imported})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
