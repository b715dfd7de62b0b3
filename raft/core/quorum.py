"""Majorities, single and joint: pure arithmetic over who has said what.

A joint configuration decides only what both its halves decide. An empty half decides everything,
so a configuration with an empty second half behaves exactly as the first half alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

EVERYTHING = 2**63 - 1
"""What an empty majority has committed: the neutral element of `min` over int64 indices."""


class VoteResult(Enum):
    """Where an election stands."""

    PENDING = "pending"
    LOST = "lost"
    WON = "won"


def majority_size(voters: int) -> int:
    """The smallest number of `voters` members that any two such groups share a member."""
    return voters // 2 + 1


def majority_committed(voters: Sequence[int], acknowledged: Mapping[int, int]) -> int:
    """The highest index that a majority of `voters` has acknowledged (unknown counts as 0)."""
    if not voters:
        return EVERYTHING
    indices = sorted([acknowledged.get(voter, 0) for voter in voters])
    # In ascending order, the last majority_size() members have all reached the first of them.
    return indices[len(indices) - majority_size(len(indices))]


def joint_committed(incoming: Sequence[int], outgoing: Sequence[int], acknowledged: Mapping[int, int]) -> int:
    """The highest index acknowledged by a majority of each half."""
    committed = majority_committed(incoming, acknowledged)
    return min(committed, majority_committed(outgoing, acknowledged)) if outgoing else committed


def majority_vote(voters: Sequence[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won once a majority said yes, lost once a majority no longer can; repeated answers count once."""
    if not voters:
        return VoteResult.WON
    granted = missing = 0
    for voter in voters:
        answer = votes.get(voter)
        if answer is None:
            missing += 1
        elif answer:
            granted += 1
    needed = majority_size(len(voters))
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.PENDING if granted + missing >= needed else VoteResult.LOST


def joint_vote(incoming: Sequence[int], outgoing: Sequence[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won when both halves are won, lost when either is."""
    first, second = majority_vote(incoming, votes), majority_vote(outgoing, votes)
    if first is second:
        return first
    return VoteResult.LOST if VoteResult.LOST in (first, second) else VoteResult.PENDING
