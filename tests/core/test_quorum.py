"""Majorities and joint majorities, against etcd-io/raft's tables and against a naive oracle."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.core.quorum import (
    EVERYTHING,
    VoteResult,
    joint_committed,
    joint_vote,
    majority_committed,
    majority_size,
    majority_vote,
)

VOTES = {VoteResult.WON: "VoteWon", VoteResult.LOST: "VoteLost", VoteResult.PENDING: "VotePending"}

FILES = {"majority_commit.txt": 16, "majority_vote.txt": 22, "joint_commit.txt": 50, "joint_vote.txt": 39}
"""Each file and the number of its directives, so that a parser that skips some fails."""


def _halves(block):
    first = [int(member) for member in block.args.get("cfg", [])]
    second = block.args.get("cfgj", [])
    return first, [] if second == ["zero"] else [int(member) for member in second]


def _by_voter(halves, values):
    voters = sorted(halves[0]) + sorted(member for member in halves[1] if member not in halves[0])
    assert len(values) == len(voters), "one value per voter"
    return {voter: value for voter, value in zip(voters, values, strict=True) if value != "_"}


def _committed(first, second, block):
    values = block.args.get("idx", [])
    acknowledged = {voter: int(value) for voter, value in _by_voter((first, second), values).items()}
    committed = joint_committed(first, second, acknowledged)
    assert committed == joint_committed(second, first, acknowledged), "the halves are equals"
    if not second:
        assert committed == majority_committed(first, acknowledged)
    return "∞" if committed == EVERYTHING else str(committed)


def _vote(first, second, block):
    values = block.args.get("votes", [])
    votes = {voter: value == "y" for voter, value in _by_voter((first, second), values).items()}
    result = joint_vote(first, second, votes)
    assert result is joint_vote(second, first, votes), "the halves are equals"
    if not second:
        assert result is majority_vote(first, votes)
    return VOTES[result]


@pytest.mark.parametrize("name", FILES)
def test_tables(name, directives):
    blocks = directives(f"raft-quorum/{name}")
    assert len(blocks) == FILES[name]
    for block in blocks:
        first, second = _halves(block)
        answer = (_committed if block.command == "committed" else _vote)(first, second, block)
        # The last line is the answer; the picture above it is etcd's own drawing of it.
        assert block.expected[-1].removeprefix("<empty majority quorum>") == answer, block


members = st.lists(st.integers(1, 7), unique=True, max_size=7)


@given(members, st.dictionaries(st.integers(1, 7), st.integers(0, 9)))
def test_the_committed_index_is_the_highest_some_majority_holds(voters, acknowledged):
    groups = combinations(voters, majority_size(len(voters)))
    best = (
        max(min(acknowledged.get(voter, 0) for voter in group) for group in groups) if voters else EVERYTHING
    )
    assert majority_committed(voters, acknowledged) == best


@given(members, members, st.dictionaries(st.integers(1, 7), st.booleans()))
def test_an_election_is_decided_exactly_when_the_missing_votes_cannot_change_it(first, second, votes):
    missing = [voter for voter in dict.fromkeys(first + second) if voter not in votes]
    best = joint_vote(first, second, {**votes, **dict.fromkeys(missing, True)})
    worst = joint_vote(first, second, {**votes, **dict.fromkeys(missing, False)})
    now = joint_vote(first, second, votes)
    assert (now is VoteResult.WON) == (worst is VoteResult.WON)
    assert (now is VoteResult.LOST) == (best is VoteResult.LOST)
