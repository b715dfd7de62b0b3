"""Members join, are promoted, lead and leave under faults; and the oracle detects broken membership."""

from __future__ import annotations

from collections import Counter

import pytest

from kvstore.engine.tables import Tables
from kvstore.testing.nodes import SimulationFailed, run_seed
from raft.node.membership import Membership

LENGTH_S = 12.0
CLASSES = ("isolate-leader", "partition", "crash", "pause", "drop")


def test_the_membership_changes_while_faults_are_injected() -> None:
    done: Counter[str] = Counter()
    for seed in range(3):
        report = run_seed(seed, length_s=LENGTH_S, features=("members",), classes=CLASSES)
        done.update(report.operations)
    for change in ("add", "promote", "remove", "transfer"):
        assert done[f"{change} ok"] > 0, done


def test_a_record_truncated_in_a_callback_of_its_own_ends_the_process() -> None:
    """In seed 16 a member once appended after a frame that a power cut had torn."""
    run_seed(16, length_s=15.0, features=("members",), classes=("isolate-leader", "partition", "crash"))


def test_a_removed_leader_stays_until_the_others_can_do_without_its_vote() -> None:
    """In seed 211 it once stopped with its removal: the others still had to count its vote."""
    run_seed(211, length_s=15.0, features=("members",))


def test_a_transfer_that_waits_for_a_paused_leader_is_no_violation() -> None:
    """In seed 1046 a leader lost all others for five seconds amid a transfer, and led again by its end."""
    report = run_seed(1046)
    assert report.operations["transfer fail"] > 0


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        ("forgets who was removed", "membership converges"),
        ("changes the list only", "an acknowledged change of the membership holds"),
    ],
)
def test_what_goes_wrong_is_seen(broken: str, invariant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "forgets who was removed":

        def remove_member(tables: Tables, member_id: int) -> None:
            del tables._members[member_id]

        monkeypatch.setattr(Tables, "remove_member", remove_member)
    else:
        apply = Membership.apply

        def apply_to_the_list_only(self: Membership, entry: object) -> None:
            core = self._core

            class DropsInbound:
                def __getattr__(self, name: str) -> object:
                    return (lambda change: core.conf) if name == "apply_conf" else getattr(core, name)

            self._core = DropsInbound()
            apply(self, entry)
            self._core = core

        monkeypatch.setattr(Membership, "apply", apply_to_the_list_only)
    with pytest.raises(SimulationFailed) as caught:
        run_seed(0, length_s=LENGTH_S, features=("members",), classes=("drop",))
    assert caught.value.invariant == invariant


def test_torn_members_that_know_a_removed_voter_may_wait_for_its_evidence() -> None:
    """In this seed two of four voters tore their tails before they had applied the removal of a fifth,
    which never campaigns again: no leader is guaranteed then, and none came."""
    report = run_seed(118_743_513_765, length_s=30.0)
    assert (report.torn, report.beyond_budget) == (2, 1)
