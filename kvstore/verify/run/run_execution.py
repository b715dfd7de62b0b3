"""One run from its settings to its directory."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from kvstore.devcluster.plan import ClusterError, ClusterPlan, free_nodes
from kvstore.verify.load.__main__ import EXIT_NOT_SERVED
from kvstore.verify.operation_history import Event, HistoryError, Operation, VerdictKind, pair_events
from kvstore.verify.run import run_report, workload_checks
from kvstore.verify.run.client_processes import LoadProcesses
from kvstore.verify.run.cluster_under_test import ClusterUnderTest
from kvstore.verify.run.guarded_resource import GuardedResource
from kvstore.verify.run.namespaces import NamespacedCluster
from kvstore.verify.run.nemeses import NEMESES
from kvstore.verify.run.nemesis_runner import Fault, Field, Missing, NemesisRunner, fired
from kvstore.verify.run.run_settings import Settings
from kvstore.verify.run.workload_checks import Check, Finals
from kvstore.wire import rpc_pb2

START_TIMEOUT_S = 60.0
RECOVERY_TIMEOUT_S = 60.0
"""After the last fault was taken back: an election, and catching up, on a busy machine."""

AFTERWARDS_S = 1.5
"""Clients go on for so long after recovery, so that they call the healed members too."""

LEASES_END_S = 15.0
"""After the last client: by then every lease of the lease workload has ended, elections included."""

WATCH_FLAGS = ("--experimental-watch-progress-notify-interval=200ms",)
"""For the watch workload: watches there last for seconds, and by default a server notifies of progress every
ten minutes. The flag that etcd 3.5 has too."""

OK_SHARE_MIN = 0.5
"""Below this a run says little: it is inconclusive."""


@dataclass(slots=True, kw_only=True)
class RunResult:
    settings: Settings
    verdict: str
    """valid, invalid, unknown or inconclusive."""
    reasons: list[str] = field(default_factory=list)
    """Why it is not valid; first the worst."""
    checks: list[Check] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Operations by outcome: ok, fail, info."""
    faults: list[Fault] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each phase took."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What the workload or the plot measured besides."""
    means: dict[str, str] = field(default_factory=dict)
    """By what faults were done where there is a choice."""

    @property
    def checked(self) -> int:
        return sum(self.counts.values())


class Run:
    def __init__(self, settings: Settings) -> None:
        settings.validate()
        self.settings = settings
        self.result = RunResult(settings=settings, verdict="unknown")
        self.rng = random.Random(f"{settings.seed}/nemesis")  # noqa: S311  repeats with its seed
        plan = ClusterPlan(
            directory=settings.directory / "cluster",
            nodes=free_nodes(settings.nodes),
            token=secrets.token_hex(8),
            python_arguments=settings.program,
            server_arguments=(*(WATCH_FLAGS if settings.workload == "watch" else ()), *settings.server_flags),
        )
        namespaced = settings.network == "namespaces"
        self.cluster = NamespacedCluster(plan) if namespaced else ClusterUnderTest(plan)
        self.field = Field(
            cluster=self.cluster,
            settings=settings,
            rng=self.rng,
            directory=settings.directory,
            client_pids=[],
            means={"network": settings.network},
        )
        self.resource = GuardedResource()
        self.load: LoadProcesses | None = None
        self.finals: Finals | None = None
        self.began_ns = time.monotonic_ns()

    async def carry_out(self) -> RunResult:
        """The whole run. Raises ClusterError when the cluster does not even start."""
        self.settings.save()
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # connection errors to killed members are expected
        nemeses = {}
        for name in self.settings.nemeses:
            nemeses[name] = NEMESES[name](self.field)
            try:
                nemeses[name].prepare()
            except Missing as reason:
                return self._end("inconclusive", f"nemesis {name} cannot work here: {reason}")
        self.settings.write(self.field.means)
        self.result.means = self.field.means
        runner = NemesisRunner(self.field, nemeses)
        try:
            await self._phase("start", self._start())
            await self._phase("work", self._work(runner))
            await self._phase("finals", self._finish())
        finally:
            self.result.faults = runner.faults
            if self.load is not None:
                self.load.kill()
            await self.resource.stop()
            await self.cluster.stop()
        return self._judge()

    async def _phase(self, name: str, work: Any) -> None:
        began = time.monotonic()
        try:
            await work
        finally:
            self.result.seconds[name] = round(time.monotonic() - began, 2)

    async def _start(self) -> None:
        await self.cluster.start()
        await self.cluster.wait_ready(START_TIMEOUT_S)
        await self.cluster.wait_healthy(START_TIMEOUT_S)
        reply = await self.cluster.call(1, "KV/Range", rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
        if reply.count:
            raise ClusterError(f"the new cluster already holds {reply.count} keys")

    async def _work(self, runner: NemesisRunner) -> None:
        settings = self.settings
        options = {"resource_port": await self.resource.start()}
        endpoints = [node.client_address for node in self.cluster.plan.nodes]
        self.load = LoadProcesses(settings, endpoints, options)
        await self.load.start()
        self.field.client_pids += [process.pid for process in self.load.processes]
        deadline = time.monotonic() + settings.seconds
        injecting = asyncio.get_running_loop().create_task(runner.run(deadline))
        while time.monotonic() < deadline and not self.load.ended:
            await asyncio.wait([injecting], timeout=0.25)
            if injecting.done():
                injecting.result()
                await asyncio.sleep(min(0.25, max(0.0, deadline - time.monotonic())))
        if self.load.ended and not injecting.done():
            injecting.cancel()
        await asyncio.wait([injecting])
        if not injecting.cancelled():
            injecting.result()

    async def _finish(self) -> None:
        """Everything taken back, the clients a little longer, then what every member holds."""
        assert self.load is not None
        cluster = self.cluster
        cluster.heal()
        cluster.note_ends()
        for number in cluster.numbers:
            if cluster.state(number) == "paused":
                cluster.resume(number)
            if number not in cluster.alive:
                await cluster.restart(number)
        try:
            await cluster.wait_healthy(RECOVERY_TIMEOUT_S)
        except ClusterError as error:
            self.result.reasons.append(f"no recovery: {error}")
        if not self.load.ended:
            await asyncio.sleep(AFTERWARDS_S)
        codes = await self.load.stop()
        self._note_clients(codes)
        if self.settings.workload == "lease" and EXIT_NOT_SERVED not in codes:
            await asyncio.sleep(LEASES_END_S)
        if not self.result.reasons:
            try:
                self.finals = await self._read_all()
            except grpc.aio.AioRpcError as error:
                self.result.reasons.append(f"the members cannot be read at the end: {error.details()}")

    def _note_clients(self, codes: Sequence[int | None]) -> None:
        assert self.load is not None
        said = self.load.said()
        for position, code in enumerate(codes):
            if code == EXIT_NOT_SERVED:
                self.result.reasons.insert(0, f"inconclusive: {said[position]}")
            elif code != 0:
                words = said[position].splitlines()[-1:] or ["nothing"]
                self.result.reasons.append(f"clients {position + 1} ended with {code}, saying {words[0]}")

    async def _read_all(self) -> Finals:
        everything = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
        first = await self.cluster.call(1, "KV/Range", rpc_pb2.RangeRequest(key=b"\0"))
        revision = first.header.revision
        contents = {}
        for number in self.cluster.numbers:
            await self.cluster.call(number, "KV/Range", rpc_pb2.RangeRequest(key=b"\0"), timeout_s=20.0)
            everything.serializable = True
            everything.revision = revision
            try:
                reply = await self.cluster.call(number, "KV/Range", everything, timeout_s=20.0)
            except grpc.aio.AioRpcError as error:
                self.result.reasons.append(f"node{number} cannot be read at the end: {error.details()}")
                continue
            contents[f"node{number}"] = {
                pair.key.decode(): (
                    pair.value.decode(),
                    pair.mod_revision,
                    pair.create_revision,
                    pair.version,
                    pair.lease,
                )
                for pair in reply.kvs
            }
        return Finals(contents=contents, revision=revision, compacted_through=self.field.compacted_through)

    def _judge(self) -> RunResult:
        assert self.load is not None
        began = time.monotonic()
        result = self.result
        events = run_report.merged(self.load.events(), result.faults)
        run_report.write_histories(self.settings.directory, events)
        operations: list[Operation] = []
        try:
            operations = pair_events(_as_events(events))
            for operation in operations:
                name = operation.outcome.value
                result.counts[name] = result.counts.get(name, 0) + 1
            if self.finals is not None:
                result.checks = workload_checks.judge(self.settings.workload, operations, self.finals)
        except (HistoryError, ValueError) as error:
            result.reasons.append(f"the history cannot be judged: {error}")
        result.reasons += self.cluster.unexpected
        result.reasons += run_report.log_findings(self.cluster)
        self._conclude()
        result.seconds["judge"] = round(time.monotonic() - began, 2)
        run_report.write_all(result, events, operations, self.began_ns)
        if result.verdict == "valid" and not self.settings.keep_data:
            for number in self.cluster.numbers:
                shutil.rmtree(self.cluster.data_of(number), ignore_errors=True)
        return result

    def _conclude(self) -> None:
        result = self.result
        kinds = workload_checks.deciding(result.checks)
        total = sum(result.counts.values())
        inconclusives = [reason for reason in result.reasons if reason.startswith("inconclusive: ")]
        inconclusives += [
            f"inconclusive: nemesis {name} never took hold: {_missed(result.faults, name)}"
            for name in self.settings.nemeses
            if not fired(result.faults, name)
        ]
        if result.counts.get("ok", 0) < OK_SHARE_MIN * total or not total:
            inconclusives.append(
                f"inconclusive: {result.counts.get('ok', 0)} of {total} operations succeeded"
            )
        contradiction = workload_checks.disagreement(result.checks)
        if contradiction:
            result.reasons.append(contradiction)
        findings = [line for check in result.checks for line in check.explanation if check.kind]
        if VerdictKind.INVALID in kinds:
            result.verdict = "invalid"
            result.reasons = [*findings, *result.reasons]
        elif inconclusives:
            result.verdict = "inconclusive"
            result.reasons = [*inconclusives, *(r for r in result.reasons if r not in inconclusives)]
        elif result.reasons:
            result.verdict = "invalid"
        elif VerdictKind.UNKNOWN in kinds or self.finals is None or not kinds:
            result.verdict = "unknown"
            result.reasons = findings or ["no check judged the history"]
        else:
            result.verdict = "valid"

    def _end(self, verdict: str, reason: str) -> RunResult:
        self.result.verdict = verdict
        self.result.reasons = [reason]
        run_report.write_results(self.result)
        return self.result


def _missed(faults: Sequence[Fault], name: str) -> str:
    missed = [fault.missed for fault in faults if fault.nemesis == name and fault.missed]
    return missed[-1] if missed else "there was no time for it"


def _as_events(events: Sequence[dict[str, Any]]) -> list[Event]:
    return [
        Event(
            line=number,
            process=event["process"],
            type=event["type"],
            f=event["f"],
            value=event["value"],
            time=event["time"],
        )
        for number, event in enumerate(events, start=1)
    ]


async def execute(settings: Settings) -> RunResult:
    """Carry out one run. Raises ClusterError when the cluster does not start, ValueError for bad settings."""
    return await Run(settings).carry_out()
