"""etcd-io/raft's interaction scripts, replayed against this core; see transcripts/README.md."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from tests.core.transcripts.__main__ import scripts
from tests.core.transcripts.judge import LEVELS, WAIVED_MAX, WAIVERS, judge_file, judge_text
from tests.core.transcripts.projection import Unreadable

FILES_MIN = 22
ALTERED_PER_FILE = 4
_OWN = re.compile(r"(\w+)->\1 |Thread->|^\s*(?:DEBUG|INFO|WARN|ERROR)")
"""Lines the projection leaves out: logger lines, and messages from a member to itself."""

QUIET_SCRIPT = """
add-nodes 3 voters=(1,2,3) index=10 inflight=2
----
ok

campaign 1
----
ok

process-ready 1
----
Ready MustSync=true:
Lead:0 State:StateCandidate
HardState Term:1 Vote:1 Commit:10
Messages:
1->2 MsgVote Term:1 Log:1/10
1->3 MsgVote Term:1 Log:1/10

deliver-msgs 2 drop=(3)
----
1->2 MsgVote Term:1 Log:1/10
dropped: 1->3 MsgVote Term:1 Log:1/10

raft-state
----
1: StateCandidate (Voter) Term:1 Lead:0
2: StateFollower (Voter) Term:1 Lead:0
3: StateFollower (Voter) Term:0 Lead:0
"""


def folder():
    root = os.environ.get("KVSTORE_TESTDATA")
    if not root:
        pytest.skip("KVSTORE_TESTDATA names no folder of third-party test data")
    return Path(root)


def verdicts(text):
    return {verdict.level: verdict for verdict in judge_text("script", text)}


def test_every_script_passes_at_both_levels():
    paths = scripts(folder())
    assert len(paths) >= FILES_MIN
    judged = [verdict for path in paths for verdict in judge_file(path)]
    failed = [difference for verdict in judged for difference in verdict.differences]
    assert not failed, "\n\n".join(failed)
    compared = {level: sum(v.compared for v in judged if v.level == level) for level in LEVELS}
    assert min(compared.values()) > 100, compared


def test_the_waivers_are_few_and_of_the_level_of_messages():
    assert len({waiver.file for waiver in WAIVERS}) <= WAIVED_MAX
    assert all(waiver.level == "message" and waiver.reason for waiver in WAIVERS)


def test_a_script_of_our_own():
    for verdict in verdicts(QUIET_SCRIPT).values():
        assert verdict.passed, verdict.differences


@pytest.mark.parametrize(
    ("level", "before", "after"),
    [
        ("state", "HardState Term:1 Vote:1 Commit:10", "HardState Term:1 Vote:1 Commit:11"),
        ("state", "1: StateCandidate (Voter) Term:1", "1: StateCandidate (Voter) Term:2"),
        ("state", "Lead:0 State:StateCandidate", "Lead:1 State:StateCandidate"),
        ("message", "1->3 MsgVote Term:1 Log:1/10", "1->3 MsgVote Term:1 Log:1/11"),
        ("message", "1->2 MsgVote Term:1", "1->2 MsgPreVote Term:1"),
        ("message", "dropped: ", ""),
    ],
)
def test_a_changed_number_fails_at_its_level_and_only_there(level, before, after):
    judged = verdicts(QUIET_SCRIPT.replace(before, after, 1))
    assert {name: verdict.passed for name, verdict in judged.items()} == {
        name: name != level for name in LEVELS
    }


def test_any_number_changed_in_any_script_is_detected():
    """Numbers drawn at random from the expected output, logger lines and own messages aside."""
    rng = random.Random(7)
    for path in scripts(folder()):
        lines = path.read_text("utf-8").split("\n")
        numbers = []
        expected = False
        for at, line in enumerate(lines):
            expected = line == "----" or (expected and bool(line))
            if expected and not _OWN.search(line):
                numbers += [(at, match.span()) for match in re.finditer(r"\d+", line)]
        for at, (start, end) in rng.sample(numbers, ALTERED_PER_FILE):
            line = lines[at]
            altered = line[:start] + str(int(line[start:end]) + 1) + line[end:]
            text = "\n".join([*lines[:at], altered, *lines[at + 1 :]])
            assert not all(verdict.passed for verdict in judge_text(path.name, text)), (path.name, altered)


def test_what_cannot_be_read_fails_both_levels():
    judged = verdicts(QUIET_SCRIPT.replace("Messages:", "Mesages:", 1))
    assert all(Unreadable.__name__.lower() in verdict.differences[0].lower() for verdict in judged.values())
    judged = verdicts(QUIET_SCRIPT.replace("campaign 1", "compain 1", 1))
    assert all("unknown verb" in verdict.differences[0] for verdict in judged.values())


def test_a_faulty_core_is_detected(monkeypatch):
    """A leader that ignores rejections fails a script at both levels."""
    monkeypatch.setattr("raft.core.progress.Progress.back_off", lambda self, rejected, hint: False)
    path = folder() / "raft-interaction" / "probe_and_replicate.txt"
    assert not any(verdict.passed for verdict in judge_file(path))
