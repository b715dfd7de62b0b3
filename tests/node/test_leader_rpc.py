"""Leader RPC: answered by a member that leads, resent when lost, never forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvstore.testing import SimulatedCluster, run_virtual
from raft.node import NodeError, NoLeader, ReadTimedOut, Stopped
from raft.node.leader_rpc import LEADER_CALLS_MAX, LeaderRpc
from raft.transport import LeaderReply, LeaderRequest


class Desk:
    """The leader calls of one incarnation, with everything around them played by the test."""

    def __init__(self, leader: int = 2) -> None:
        self.leader = leader
        self.now_s = 0.0
        self.sent: list[tuple[int, LeaderRequest | LeaderReply]] = []
        self.told: list[tuple[bytes, type[NodeError] | None]] = []
        self.leader_rpc = LeaderRpc(
            member_id=1,
            incarnation=77,
            leader=lambda: self.leader,
            clock=lambda: self.now_s,
            send=self.send,
        )

    def send(self, member_id: int, message: LeaderRequest | LeaderReply) -> bool:
        self.sent.append((member_id, message))
        return True

    def ask(self, data: bytes = b"?") -> None:
        self.leader_rpc.call(
            data, lambda answer, error: self.told.append((answer, error and type(error))), self.now_s + 7
        )


def test_a_leader_call_goes_to_the_leader_and_its_first_answer_completes_it() -> None:
    desk = Desk()
    desk.ask()
    assert desk.sent == [(2, LeaderRequest(77, 1, b"?"))]
    desk.leader_rpc.on_reply(LeaderReply(78, 1, b"another process"))
    assert desk.told == []
    desk.leader_rpc.on_reply(LeaderReply(77, 1, b"!"))
    desk.leader_rpc.on_reply(LeaderReply(77, 1, b"again"))
    assert desk.told == [(b"!", None)]


def test_a_leader_call_is_asked_again_of_the_next_leader_and_after_a_silence() -> None:
    desk = Desk()
    desk.ask()
    desk.leader = 3
    desk.leader_rpc.resend()
    desk.now_s = 0.9
    desk.leader_rpc.tick()
    assert len(desk.sent) == 2
    desk.now_s = 1.1
    desk.leader_rpc.tick()
    assert desk.sent[1:] == [(3, LeaderRequest(77, 1, b"?"))] * 2


def test_time_runs_out_with_and_without_a_leader() -> None:
    desk = Desk()
    desk.ask()
    desk.now_s = 7.0
    desk.leader_rpc.tick()
    desk.leader = 0
    desk.ask()
    desk.now_s = 14.0
    desk.leader_rpc.tick()
    assert desk.told == [(b"", ReadTimedOut), (b"", NoLeader)]


def test_a_leader_answers_itself_and_only_while_it_leads() -> None:
    desk = Desk(leader=1)
    desk.leader_rpc.answerer = lambda data, reply: reply(data + b"!")
    desk.ask()
    assert desk.told == [(b"?!", None)]
    desk.leader_rpc.on_request(3, LeaderRequest(99, 5, b"x"))
    assert desk.sent == [(3, LeaderReply(99, 5, b"x!"))]
    desk.leader = 2
    desk.leader_rpc.on_request(3, LeaderRequest(99, 6, b"x"))
    assert len(desk.sent) == 1


def test_the_number_of_open_leader_calls_is_bounded() -> None:
    desk = Desk()
    for _ in range(LEADER_CALLS_MAX):
        desk.ask()
    assert desk.told == []
    desk.ask()
    assert len(desk.told) == 1
    desk.leader_rpc.fail_all(Stopped("server stopped"))
    assert len(desk.told) == LEADER_CALLS_MAX + 1


def ask(cluster: SimulatedCluster, member_id: int, data: bytes) -> asyncio.Future[bytes]:
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_result(answer: bytes, error: NodeError | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)

    cluster.members[member_id].running.call_leader(data, on_result)
    return future


def answer_with_names(cluster: SimulatedCluster) -> None:
    def answerer(name: bytes) -> Callable[[bytes, Callable[[bytes], None]], None]:
        return lambda data, reply: reply(data + b" by " + name)

    for node in cluster.running:
        node.answer_with(answerer(b"%d" % node.member_id))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_member_gets_an_answer_and_a_killed_leader_is_no_obstacle(seed: int) -> None:
    async def scenario(cluster: SimulatedCluster) -> None:
        leader = await cluster.wait_for_leader()
        answer_with_names(cluster)
        first = leader.member_id
        answers = await asyncio.gather(*(ask(cluster, member, b"a") for member in cluster.members))
        assert answers == [b"a by %d" % first] * 3
        others = [node.member_id for node in cluster.running if node.member_id != first]
        pending = [ask(cluster, member, b"b") for member in others]
        cluster.crash(first)
        for answer in await asyncio.gather(*pending):
            assert answer.startswith(b"b by ")
        third = await asyncio.gather(*(ask(cluster, member, b"c") for member in others))
        leader = await cluster.wait_for_leader()
        assert set(third) == {b"c by %d" % leader.member_id}
        assert leader.member_id != first

    run(scenario, seed)


def run(scenario: Callable[[SimulatedCluster], Awaitable[None]], seed: int) -> None:
    async def main() -> None:
        cluster = SimulatedCluster(seed=seed, size=3)
        await cluster.start_all()
        await scenario(cluster)
        await cluster.stop_all()

    print(f"seed {seed}")
    run_virtual(main())
