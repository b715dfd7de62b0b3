"""The Raft paper and thesis, clause by clause: one test per guarantee.

Paper: "In Search of an Understandable Consensus Algorithm", extended version. Thesis: Ongaro, 2014.
Other files of this folder test the same in depth; here each guarantee has its simplest test.
"""

from __future__ import annotations

import pytest

from raft.core import (
    ConfChange,
    ConfState,
    ConfStep,
    ConfStepKind,
    ConfTransition,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    Role,
    SnapshotMeta,
)

ALL_ROLES = (Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER)


def entries(*terms):
    return [Entry(term, index, EntryKind.NORMAL, b"%d" % index) for index, term in enumerate(terms, 1)]


def peopled(empty_network, logs, *, commit=0, **settings):
    """Members 1.. with logs given as terms; each knows the highest of its own terms."""
    network = empty_network(1)
    conf = ConfState(voters=tuple(range(1, len(logs) + 1)))
    for member, terms in enumerate(logs, 1):
        hard_state = HardState(max(terms, default=0), 0, min(commit, len(terms)))
        network.add(member, conf, entries=entries(*terms), hard_state=hard_state, **settings)
    return network


def in_role(cluster, role, **settings):
    """A cluster of three in which member 1 has this role."""
    network = cluster(3, pre_vote=role is Role.PRE_CANDIDATE, **settings)
    if role is Role.LEADER:
        network.elect(1)
    elif role is not Role.FOLLOWER:
        network.campaign(1)
        network.bag.clear()
    assert network.core(1).role is role
    return network


def heartbeat(term, *, to=1, from_=2):
    return Message(MessageType.HEARTBEAT, to, from_, term)


# ---------------------------------------------------------------------- 5.1 terms


@pytest.mark.parametrize("role", ALL_ROLES)
def test_5_1_a_larger_term_is_adopted_and_makes_a_follower(cluster, role):
    """“If one server's current term is smaller than the other's, then it updates its current term to the
    larger value. If a candidate or leader discovers that its term is out of date, it immediately reverts
    to follower state."""
    network = in_role(cluster, role)
    network.deliver(heartbeat(9))
    assert (network.core(1).term, network.core(1).role, network.core(1).leader) == (9, Role.FOLLOWER, 2)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_5_1_a_stale_request_is_rejected(cluster, role):
    """“If a server receives a request with a stale term number, it rejects the request."""
    network = in_role(cluster, role)
    network.deliver(heartbeat(9))
    before = network.core(1).status()
    network.deliver(Message(MessageType.APPEND, 1, 3, 2, 0, 0, entries(2), 1))
    network.bag.clear()
    network.deliver(Message(MessageType.VOTE, 1, 3, 2, 9, 9))
    assert network.core(1).status() == before
    network.quiesce(1)
    answers = [m for m in network.bag if m.type is MessageType.VOTE_RESPONSE]
    assert [(m.to, m.reject, m.term) for m in answers] == [(3, True, before.term)]


def test_5_1_terms_grow_with_each_election(cluster):
    network = cluster(3)
    terms = []
    for leader in (1, 2, 3):
        for member in network.members.values():
            member.core._state.election_elapsed = 10
        network.campaign(leader)
        network.quiesce()
        terms.append(network.core(leader).term)
    assert terms == [1, 2, 3]


# ---------------------------------------------------------------------- 5.2 leader election


def test_5_2_servers_begin_as_followers(cluster):
    assert [member.core.role for member in cluster(3).members.values()] == [Role.FOLLOWER] * 3


def test_5_2_leaders_send_periodic_heartbeats(cluster):
    network = cluster(3, heartbeat_ticks=2)
    network.elect(1)
    sent = []
    for _ in range(6):
        network.tick(1)
        if network.core(1).has_ready():
            network[1].take()
        sent.append(len(network.in_bag(MessageType.HEARTBEAT)))
    assert sent == [0, 2, 2, 4, 4, 6]


@pytest.mark.parametrize("pre_vote", [False, True])
def test_5_2_silence_starts_an_election(cluster, pre_vote):
    """“If a follower receives no communication over a period of time called the election timeout” it
    begins an election; heartbeats put it off."""
    network = cluster(3, pre_vote=pre_vote)
    network.tick(1, count=9)
    network.deliver(heartbeat(1))
    network.tick(1, count=9)
    assert network.core(1).role is Role.FOLLOWER
    network.tick(1, count=11)
    assert network.core(1).role is (Role.PRE_CANDIDATE if pre_vote else Role.CANDIDATE)


def test_5_2_an_election_raises_the_term_votes_for_self_and_asks_everyone(cluster):
    network = cluster(3, pre_vote=False)
    network.campaign(1)
    status = network.core(1).status()
    assert (status.term, status.vote, status.role) == (1, 1, Role.CANDIDATE)
    network[1].take()
    assert [(m.type, m.to, m.term) for m in network.bag] == [
        (MessageType.VOTE, 2, 1),
        (MessageType.VOTE, 3, 1),
    ]


@pytest.mark.parametrize(
    ("size", "granted", "refused", "role"),
    [
        (1, (), (), Role.LEADER),
        (3, (2, 3), (), Role.LEADER),
        (3, (2,), (), Role.LEADER),
        (5, (2, 3), (), Role.LEADER),
        (5, (2,), (), Role.CANDIDATE),
        (3, (), (), Role.CANDIDATE),
        (3, (), (2, 3), Role.FOLLOWER),
        (5, (2,), (3, 4, 5), Role.FOLLOWER),
        (5, (), (2,), Role.CANDIDATE),
    ],
)
def test_5_2_a_majority_decides(cluster, size, granted, refused, role):
    network = cluster(size, pre_vote=False)
    network.campaign(1)
    network[1].run()
    for voter in granted + refused:
        network.deliver(Message(MessageType.VOTE_RESPONSE, 1, voter, 1, reject=voter in refused))
    assert (network.core(1).role, network.core(1).term) == (role, 1)


@pytest.mark.parametrize(("vote", "asking", "granted"), [(0, 2, True), (2, 2, True), (3, 2, False)])
def test_5_2_first_come_first_served(empty_network, vote, asking, granted):
    """“Each server will vote for at most one candidate in a given term”."""
    network = empty_network(1)
    network.add(1, ConfState(voters=(1, 2, 3)), hard_state=HardState(4, vote, 0))
    network.deliver(Message(MessageType.VOTE, 1, asking, 4, 4, 4))
    answer = network[1].take().append.responses[0]
    assert answer.reject is not granted


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.PRE_CANDIDATE])
@pytest.mark.parametrize("later", [0, 1])
def test_5_2_a_candidate_yields_to_a_leader_of_its_term(cluster, role, later):
    network = in_role(cluster, role)
    network.deliver(heartbeat(network.core(1).term + later))
    assert (network.core(1).role, network.core(1).leader) == (Role.FOLLOWER, 2)


def test_5_2_a_split_vote_times_out_and_a_new_election_begins(cluster):
    network = cluster(2, pre_vote=False)
    network.campaign(1)
    network.campaign(2)
    network.quiesce()
    assert network.leader() == 0
    assert (network.core(1).term, network.core(2).term) == (1, 1)
    network.tick(1, count=20)
    assert network.core(1).term > 1


def test_5_2_timeouts_differ(cluster):
    """“Raft uses randomized election timeouts to ensure that split votes are rare”."""
    network = cluster(5)
    drawn = set()
    for member in network.members.values():
        for _ in range(20):
            member.do(lambda core: core.step(heartbeat(core.term + 1, to=core.id, from_=core.id % 5 + 1)))
            drawn.add(member.core._state.election_timeout)
    assert drawn == set(range(10, 20))


# ---------------------------------------------------------------------- 5.3 log replication


def test_5_3_a_leader_appends_and_sends_in_parallel_with_its_own_write(cluster):
    """Thesis 10.2.1: the leader may send to followers while it writes to its own disk."""
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"x")
    ready = network[1].take()
    assert {m.to: [e.data for e in m.entries] for m in ready.messages} == {2: [b"x"], 3: [b"x"]}
    assert [e.data for e in ready.append.entries] == [b"x"]


@pytest.mark.parametrize(
    ("size", "holders", "committed"),
    [(1, 0, True), (3, 0, False), (3, 1, True), (5, 1, False), (5, 2, True), (5, 4, True)],
)
def test_5_3_an_entry_is_committed_once_a_majority_holds_it(cluster, size, holders, committed):
    network = cluster(size)
    network.elect(1)
    network.propose(1, b"x")
    network[1].run()
    for member in range(2, 2 + holders):
        network.deliver_all(member)
        network[member].run()
    network.deliver_all(1)
    assert (network.core(1).commit == 2) is committed


def test_5_3_a_commit_includes_all_earlier_entries(empty_network):
    """“This also commits all preceding entries in the leader's log, including entries created by
    previous leaders."""
    network = peopled(empty_network, [[1, 1, 2], [1, 1], [1]])
    network.elect(1)
    assert network.data(2) == [b"1", b"2", b"3"]


def test_5_3_followers_learn_of_commits_and_apply_in_order(cluster):
    network = cluster(3)
    network.elect(1)
    for number in range(5):
        network.propose(1, b"%d" % number)
    network.quiesce()
    assert network.data(3) == [b"%d" % number for number in range(5)]


def test_5_3_the_leader_retries_for_ever(cluster):
    """“The leader retries AppendEntries RPCs indefinitely (even after it has responded to the client)”."""
    network = cluster(3)
    network.elect(1)
    network.crash(3)
    network.propose(1, b"x")
    network.run_ticks(100)
    network.restart(3)
    network.run_ticks(3)
    assert network.data(3) == [b"x"]


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "accepted"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (2, 1, False), (3, 3, False)],
)
def test_5_3_the_consistency_check(empty_network, prev_index, prev_term, accepted):
    """“If the follower does not find an entry in its log with the same index and term, then it refuses”."""
    network = peopled(empty_network, [[1, 2]])
    network.core(1)._state.tracker.adopt(ConfState(voters=(1, 2)), 1)
    network.deliver(Message(MessageType.APPEND, 1, 2, 3, prev_term, prev_index))
    answer = network[1].take().append.responses[0]
    assert answer.reject is not accepted


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "sent", "expected"),
    [
        (2, 2, [3], [1, 2, 3]),
        (1, 1, [3, 4], [1, 3, 4]),
        (0, 0, [1], [1, 2]),
        (0, 0, [3], [3]),
    ],
)
def test_5_3_conflicts_are_overwritten_and_only_those(empty_network, prev_index, prev_term, sent, expected):
    network = peopled(empty_network, [[1, 2]])
    network.core(1)._state.tracker.adopt(ConfState(voters=(1, 2)), 1)
    new = [Entry(term, prev_index + n, EntryKind.NORMAL, b"new") for n, term in enumerate(sent, 1)]
    network.deliver(Message(MessageType.APPEND, 1, 2, 4, prev_term, prev_index, new))
    network[1].run()
    assert [term for term, _ in network.log(1)] == expected
    assert [entry.term for entry in network[1].disk.entries] == expected


def test_5_3_a_leader_never_overwrites_its_own_log(cluster):
    network = cluster(3)
    network.elect(1)
    before = network.log(1)
    network.deliver(Message(MessageType.APPEND, 1, 2, 1, 0, 0, entries(1, 1, 1)))
    assert network.log(1) == before


# ---------------------------------------------------------------------- 5.4 safety


@pytest.mark.parametrize(
    ("own", "asking", "granted"),
    [
        ([1], (1, 1), True),
        ([1], (1, 2), True),
        ([1, 1], (1, 1), False),
        ([1], (2, 1), True),
        ([1, 1], (2, 1), True),
        ([2], (1, 1), False),
        ([2], (1, 9), False),
    ],
)
def test_5_4_1_a_vote_goes_to_a_log_at_least_as_new(empty_network, own, asking, granted):
    network = peopled(empty_network, [own])
    term, index = asking
    network.deliver(Message(MessageType.VOTE, 1, 2, 5, term, index))
    assert network[1].take().append.responses[0].reject is not granted


def test_5_4_2_only_entries_of_the_own_term_are_committed_by_counting(empty_network):
    network = peopled(empty_network, [[1, 2], [1, 2], [1]])
    network.drop = lambda m: m.type is MessageType.APPEND and any(e.term > 2 for e in m.entries)
    network.elect(1)
    for member in (2, 3):
        network.deliver(Message(MessageType.APPEND_RESPONSE, 1, member, 3, index=2))
    assert network.core(1)._state.tracker.committed() == 2
    assert network.core(1).commit == 0
    network.deliver(Message(MessageType.APPEND_RESPONSE, 1, 2, 3, index=3))
    assert network.core(1).commit == 3


def test_5_4_3_a_later_leader_holds_what_was_committed(cluster):
    network = cluster(5)
    network.elect(1)
    network.partition([1, 2, 3], [4, 5])
    network.propose(1, b"x")
    network.quiesce()
    network.heal()
    network.crash(1)
    for member in (2, 3, 4, 5):
        network[member].do(lambda core: core.forget_leader())
    network.campaign(5)  # lacks x: 2 and 3 refuse, and with them every majority
    network.quiesce()
    assert network.leader() == 0
    network.elect(3)
    network.quiesce()
    assert network.data(5) == [b"x"]


def test_5_5_repeated_requests_do_no_harm(cluster):
    """“Raft RPCs are idempotent”."""
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"x")
    network[1].run()
    append = network.in_bag(MessageType.APPEND, to=2)[0]
    for _ in range(3):
        network.deliver(append)
        network[2].run()
    network.quiesce()
    assert network.data(2) == [b"x"]


# ---------------------------------------------------------------------- 6 membership, 7 compaction


def test_6_joint_consensus_needs_separate_majorities(cluster):
    """“Agreement (for elections and entry commitment) requires separate majorities from both”."""
    network = cluster(3)
    network.elect(1)
    steps = [ConfStep(ConfStepKind.ADD_VOTER, m) for m in (4, 5)]
    steps += [ConfStep(ConfStepKind.REMOVE, m) for m in (2, 3)]
    network.change_conf(1, ConfChange(tuple(steps), ConfTransition.JOINT_EXPLICIT))
    network.quiesce()
    network.propose(1, b"x")
    network.quiesce()
    assert network.core(1).commit == 2, "1, 2 and 3 hold x, but no majority of 1, 4 and 5"


def test_6_removed_servers_do_not_disrupt(cluster):
    """“Servers disregard RequestVote RPCs when they believe a current leader exists”."""
    network = cluster(3, pre_vote=False)
    network.elect(1)
    network.deliver(Message(MessageType.VOTE, 2, 3, 9, 9, 9))
    assert network.core(2).term == 1


def test_7_a_follower_far_behind_is_sent_a_snapshot(cluster):
    network = cluster(3)
    network.elect(1)
    network.partition([1, 2], [3])
    for _ in range(3):
        network.propose(1, b"x")
        network.quiesce()
    network[1].compact()
    network.heal()
    network.run_ticks(3)
    assert network.data(3) == [b"x"] * 3
    assert network.core(3).status().compacted == 4


def test_7_a_snapshot_discards_a_log_that_contradicts_it(empty_network):
    """“If ... the snapshot will contain new information not already in the recipient's log ... the follower
    discards its entire log”."""
    network = peopled(empty_network, [[1, 1, 1, 1]])
    conf = ConfState(voters=(1, 2, 3))
    meta = SnapshotMeta(2, 2, conf)
    network.snapshots[2, 2] = entries(1, 2)
    network.deliver(Message(MessageType.SNAPSHOT, 1, 2, 3, snapshot=meta))
    network[1].run()
    assert network.log(1) == []
    assert (network.core(1).commit, network.core(1).last_index) == (2, 2)


def test_7_a_snapshot_of_a_prefix_keeps_what_follows(empty_network):
    """“If instead the follower receives a snapshot that describes a prefix of its log ... entries following
    the snapshot are still valid and must be retained”."""
    network = peopled(empty_network, [[1, 1, 1, 1]])
    meta = SnapshotMeta(2, 1, ConfState(voters=(1, 2, 3)))
    network.deliver(Message(MessageType.SNAPSHOT, 1, 2, 3, snapshot=meta))
    network[1].run()
    assert (network.core(1).commit, network.core(1).last_index) == (2, 4)


# ---------------------------------------------------------------------- thesis


def test_thesis_3_10_a_transfer_needs_less_than_an_election_timeout(cluster):
    """The prior leader stops accepting requests, brings the target up to date and sends TimeoutNow; the
    target stands at once. If it takes an election timeout, the leader resumes."""
    network = cluster(3)
    network.elect(1)
    network[1].do(lambda core: core.transfer_leader(2))
    with pytest.raises(ProposalDropped):
        network.propose(1, b"x")
    network.quiesce()  # no tick has passed
    assert network.leader() == 2


def test_thesis_4_2_1_new_servers_catch_up_as_non_voters(cluster):
    network = cluster(2)
    network.elect(1)
    network.add(3, network[1].disk.backend_conf)
    network.change_conf(1, ConfChange((ConfStep(ConfStepKind.ADD_LEARNER, 3),)))
    network.quiesce()
    network.run_ticks(2)
    assert network.core(3).commit == network.core(1).commit
    assert network.core(1).conf == ConfState(voters=(1, 2), learners=(3,))


def test_thesis_4_2_2_a_leader_manages_a_cluster_it_is_leaving(cluster):
    """It "temporarily ... manages a cluster that does not include itself; it replicates log entries but
    does not count itself in majorities", and steps down once the change is committed."""
    network = cluster(3)
    network.elect(1)
    network.change_conf(1, ConfChange((ConfStep(ConfStepKind.REMOVE, 1),)))
    network.quiesce()
    assert network.core(1).role is Role.FOLLOWER
    assert network.core(2).conf.voters == network.core(3).conf.voters == (2, 3)


def test_thesis_4_2_3_a_vote_ordered_by_the_leader_overrides_the_guarantee(cluster):
    network = cluster(3)
    network.elect(1)
    plain = Message(MessageType.VOTE, 2, 3, 2, 1, 9)
    network.deliver(plain)
    assert network.core(2).term == 1
    plain.context = 1
    network.deliver(plain)
    assert (network.core(2).term, network.core(2).status().vote) == (2, 3)


def test_thesis_6_2_a_leader_that_hears_no_majority_steps_down(cluster):
    network = cluster(3)
    network.elect(1)
    network.isolate(1)
    network.tick(1, count=20)
    assert network.core(1).role is Role.FOLLOWER


def test_thesis_6_4_read_only_queries(cluster):
    """1. an entry of the own term is committed; 2. the commit index is saved; 3. a round of heartbeats is
    answered by a majority; 4. the state machine reaches that index."""
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"x")
    network.quiesce()
    network.read(1, 1)
    network[1].take()
    assert network[1].reads == {}
    network.quiesce()
    assert network[1].reads == {1: network.core(1).commit}


def test_thesis_6_4_a_follower_asks_the_leader_for_the_index(cluster):
    network = cluster(3)
    network.elect(1)
    network.read(3, 1)
    network.quiesce()
    assert network[3].reads == {1: 1}


def test_thesis_9_6_a_pre_vote_raises_no_term_and_casts_no_vote(cluster):
    network = cluster(3)
    network.campaign(1)
    network[1].run()
    network.deliver_all(2)
    status = network.core(2).status()
    assert (status.term, status.vote, network.core(1).term) == (0, 0, 0)
    network.quiesce()
    assert (network.core(1).role, network.core(1).term) == (Role.LEADER, 1)


def test_thesis_9_6_a_pre_vote_is_refused_while_a_leader_is_heard(cluster):
    network = cluster(3)
    network.elect(1)
    network.campaign(3)
    network.quiesce()
    assert (network.leader(), network.core(1).term) == (1, 1)


def test_thesis_10_2_1_a_leader_may_commit_before_its_own_write_is_durable(cluster):
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"x")
    network[1].take()
    for member in (2, 3):
        network.deliver_all(member)
        network[member].run()
    network.deliver_all(1)
    assert network.core(1).commit == 2
    assert network.core(1).status().stable == 1
