"""Elections: who may win, who must not disrupt a leader, and members that return from a partition."""

from __future__ import annotations

import pytest

from raft.core import ConfState, Entry, EntryKind, HardState, MessageType, Role, SnapshotMeta


def _entries(*terms):
    return [Entry(term, index, EntryKind.NORMAL, b"") for index, term in enumerate(terms, 1)]


def _peopled(empty_network, logs, **settings):
    """Members 1.. with logs given as lists of terms, their hard state in the last of these."""
    network = empty_network(1)
    conf = ConfState(voters=tuple(range(1, len(logs) + 1)))
    for member, terms in enumerate(logs, 1):
        network.add(
            member, conf, entries=_entries(*terms), hard_state=HardState(max(terms), 0, 0), **settings
        )
    return network


def test_a_silent_cluster_elects_one_leader(cluster):
    network = cluster(3)
    network.run_ticks(60)
    roles = [network.core(member).role for member in (1, 2, 3)]
    assert sorted(roles) == [Role.FOLLOWER, Role.FOLLOWER, Role.LEADER]
    leader = network.leader()
    assert [network.core(member).leader for member in (1, 2, 3)] == [leader] * 3


def test_timeouts_are_drawn_from_one_to_two_election_times(cluster):
    network = cluster(1, election_ticks=10)
    draws = set()
    for _ in range(300):
        network.core(1)._state.role = Role.FOLLOWER
        network[1].core = network[1]._boot()
        draws.add(network.core(1)._state.election_timeout)
    assert draws == set(range(10, 20))


def test_a_candidates_own_vote_counts_only_once_durable(cluster):
    network = cluster(3, pre_vote=False)
    network.campaign(1)
    network[1].take()
    network.deliver_all(2)
    network[2].run()
    network.deliver_all(1)
    assert network.core(1).role is Role.CANDIDATE, "one granted vote of three, its own not durable"
    network[1].sync()
    assert network.core(1).role is Role.LEADER


def test_a_vote_leaves_only_after_its_sync(cluster):
    network = cluster(3, pre_vote=False)
    network.campaign(1)
    network[1].take()
    network.deliver_all(2)
    ready = network[2].take()
    assert not ready.messages
    assert ready.append is not None
    assert ready.append.must_sync
    assert [m.type for m in ready.append.responses] == [MessageType.VOTE_RESPONSE]


def test_duplicate_votes_count_once(cluster):
    network = cluster(5, pre_vote=False)
    network.campaign(1)
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    vote = network.in_bag(MessageType.VOTE_RESPONSE)[0]
    for _ in range(3):
        network.deliver(vote)
    assert network.core(1).role is Role.CANDIDATE


def test_a_repeated_request_is_granted_again(cluster):
    network = cluster(3, pre_vote=False)
    network.campaign(1)
    network[1].run()
    request = network.in_bag(MessageType.VOTE, to=2)[0]
    network.deliver(request)
    network.deliver(request)
    network[2].run()
    answers = network.in_bag(MessageType.VOTE_RESPONSE, from_=2)
    assert [answer.reject for answer in answers] == [False, False]


def test_one_vote_per_term_survives_a_crash(cluster):
    network = cluster(3, pre_vote=False)
    network.campaign(1)
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    network.crash(2)
    network.restart(2)
    network.campaign(3)
    network[3].run()
    network.deliver(network.in_bag(MessageType.VOTE, from_=3, to=2)[0])
    network[2].run()
    to_three = network.in_bag(MessageType.VOTE_RESPONSE, from_=2, to=3)
    assert [answer.reject for answer in to_three] == [True]


@pytest.mark.parametrize(
    ("own", "other", "granted"),
    [
        ([1, 1], [1, 1], True),
        ([1, 1, 1], [1, 1], False),  # shorter
        ([1, 2], [1, 1, 1], False),  # longer, of an older term
        ([1, 1, 1], [1, 2], True),
    ],
)
def test_votes_go_to_logs_at_least_as_new(empty_network, own, other, granted):
    network = _peopled(empty_network, [other, own], pre_vote=False)
    network.campaign(1)
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    answer = network.in_bag(MessageType.VOTE_RESPONSE)[0]
    assert answer.reject is not granted


def test_a_partitioned_member_does_not_raise_its_term(cluster):
    network = cluster(3)
    network.elect(1)
    network.isolate(3)
    network.run_ticks(100)
    assert network.core(3).term == 1
    network.heal()
    network.run_ticks(15)
    assert (network.leader(), network.core(3).leader, network.core(1).term) == (1, 1, 1)


def test_a_stale_member_of_a_higher_term_gets_back_in(empty_network):
    """Its term ran ahead; it can neither win nor, at first, be heard by the leader of a lower term."""
    network = empty_network(1)
    conf = ConfState(voters=(1, 2, 3))
    for member, term in ((1, 1), (2, 1), (3, 9)):
        network.add(member, conf, hard_state=HardState(term, 0, 0))
    network.isolate(3)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    network.heal()
    network.run_ticks(60)
    assert network.core(3).leader == network.leader() != 0
    assert network.core(3).term >= 9
    assert network.data(3) == [b"a"]


def test_losing_only_the_link_to_the_leader_does_not_depose_it(cluster):
    """The partial partition of Cloudflare's outage: 1 and 3 no longer reach each other, both reach 2."""
    network = cluster(3)
    network.elect(1)
    network.blocked_links = {(1, 3), (3, 1)}
    network.run_ticks(200)
    assert [network.core(member).term for member in (1, 2, 3)] == [1, 1, 1]
    assert network.leader() == 1


def test_without_withheld_votes_and_pre_vote_the_same_partition_deposes_the_leader(cluster):
    """Negative control of the test before."""
    network = cluster(3, withhold_votes=False, pre_vote=False)
    network.elect(1)
    network.blocked_links = {(1, 3), (3, 1)}
    network.run_ticks(200)
    assert network.core(2).term > 3


def test_a_leader_without_a_quorum_steps_down_and_keeps_its_term(cluster):
    network = cluster(3)
    network.elect(1)
    network.isolate(1)
    network.tick(1, count=50)
    assert (network.core(1).role, network.core(1).leader) == (Role.PRE_CANDIDATE, 0)
    assert network.core(1).term == 1


def test_a_leader_without_check_quorum_leads_on(cluster):
    network = cluster(3, check_quorum=False)
    network.elect(1)
    network.isolate(1)
    network.tick(1, count=50)
    assert network.core(1).role is Role.LEADER


def test_a_leader_with_a_quorum_does_not_step_down(cluster):
    network = cluster(3)
    network.elect(1)
    network.partition([1, 2], [3])
    network.run_ticks(60)
    assert network.core(1).role is Role.LEADER


def test_a_pre_candidate_forgets_its_leader_so_that_two_can_agree(cluster):
    """etcd #9586: two members whose leader is gone must not withhold votes from each other."""
    network = cluster(3)
    network.elect(1)
    network.crash(1)
    for member in (2, 3):
        network.tick(member, count=10)
    network.campaign(2)
    assert network.core(2).leader == 0
    network.run_ticks(60)
    assert network.leader() in (2, 3)


def test_pre_votes_of_a_lost_round_do_not_count_in_the_next(cluster):
    network = cluster(5)
    network.campaign(1)
    network[1].run()
    network.deliver_all(2)
    network[2].run()
    granted = network.in_bag(MessageType.PRE_VOTE_RESPONSE)[0]
    network.deliver(granted)
    network.campaign(1)  # asks anew
    assert network.core(1)._state.tracker.votes == {1: True}


def test_a_pre_vote_of_a_lower_term_is_answered(empty_network):
    network = empty_network(1)
    conf = ConfState(voters=(1, 2))
    network.add(1, conf, hard_state=HardState(1, 0, 0))
    network.add(2, conf, hard_state=HardState(7, 0, 0))
    network.campaign(1)
    network.quiesce()
    assert network.core(1).term == 7
    network.run_ticks(40)
    assert network.leader() in (1, 2)


def test_forgetting_the_leader_frees_the_vote_but_not_the_term(cluster):
    network = cluster(3)
    network.elect(1)
    network.campaign(2)
    network.quiesce()
    assert network.leader() == 1, "1 and 3 withhold their votes"
    network.crash(1)
    for member in (2, 3):
        network[member].do(lambda core: core.forget_leader())
    network.campaign(3)
    network.quiesce()
    assert (network.leader(), network.core(3).term) == (3, 2)
    network[3].do(lambda core: core.forget_leader())
    assert network.core(3).leader == 3, "a leader is unmoved"


def test_one_forgetful_member_cannot_depose_a_living_leader(cluster):
    network = cluster(3)
    network.elect(1)
    network[2].do(lambda core: core.forget_leader())
    network.campaign(2)
    network.quiesce()
    assert (network.leader(), network.core(1).term) == (1, 1)
    network.tick(1)
    network.quiesce()
    assert network.core(2).leader == 1


def test_a_leader_forgets_what_a_restarted_member_acknowledged(cluster):
    """A torn tail in the leader's own term: without the report its rejections would look stale for ever."""
    network = cluster(3)
    network.elect(1)
    network.propose(1, b"a")
    network.quiesce()
    network.crash(2)
    network[2].disk.entries.pop()
    network[2].disk.hard_state = network[2].disk.hard_state._replace(commit=1)
    network.restart(2)
    network.propose(1, b"b")
    network.core(1).report_restarted(2)
    network.quiesce()
    assert network.data(2) == [b"a", b"b"]


def test_a_blank_member_with_a_snapshot_configuration_knows_its_voters(empty_network):
    network = empty_network(1)
    conf = ConfState(voters=(1,))
    network.add(1, conf, snapshot=SnapshotMeta(3, 1, conf), hard_state=HardState(0 + 1, 0, 3))
    network.elect(1)
    assert network.core(1).commit == 4
