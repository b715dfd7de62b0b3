"""A block's output reduced to what is compared at each level; the same for etcd's text and for ours.

Left out on both sides: logger lines; messages from a member to itself or its own threads (this core counts
its own vote and its own acknowledgement when its storage reports, without a message); the Ready of a single
voter that sends itself a pre-vote request, which this core does within one input. A membership change is
one kind of entry here, whichever of etcd's two encodings carries it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.core.transcripts.grammar import Directive

SHOWN = ("raft-state", "raft-log", "status", "compact")
"""Commands that print what is held: compared whole, at the level of states."""

_HEADER = re.compile(r"> (\d+) (handling Ready|receiving messages|processing (?:append|apply) thread)$")
_LOGGER = re.compile(r"(DEBUG|INFO|WARN|WARNING|ERROR|FATAL)\b")
_ENTRY = re.compile(r"\d+/\d+ Entry")
_MESSAGE = re.compile(r"(dropped: )?(\w+)->(\w+) Msg\w+ ")
_RESPONSES = re.compile(r" Responses:\[(.*)\]$")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_NOTHING_TO_WRITE = re.compile(r"->AppendThread MsgStorageAppend Term:0 Log:0/0$")
_LISTS = ("Entries:", "CommittedEntries:", "Messages:", "Processing:", "Responses:")
_DOING = {
    "process-ready": "handling Ready",
    "deliver-msgs": "receiving messages",
    "send-snapshot": "sending",
    "process-append-thread": "processing append thread",
    "process-apply-thread": "processing apply thread",
}


class Unreadable(ValueError):
    """A line of the output fits no shape."""


@dataclass
class Held:
    """What one block shows of one member's states."""

    must_sync: list[bool] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    """Leader and role, each time one of them changed."""
    hard: list[str] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    """Handed to the disk, in order."""
    committed: list[str] = field(default_factory=list)
    """Handed to the state machine, in order."""


@dataclass
class Section:
    """What one member says or hears in one go."""

    node: int
    doing: str
    messages: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([f"> {self.node} {self.doing}", *[f"    {message}" for message in self.messages]])


@dataclass
class Projection:
    """One block, reduced."""

    shown: list[str] = field(default_factory=list)
    """Lines of a command that only shows something."""
    dropped: bool = False
    """A proposal was dropped."""
    held: dict[int, Held] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    """Only those with messages."""


def project(block: Directive, lines: list[str]) -> Projection:
    """Raises Unreadable."""
    lines = [line.replace("EntryConfChangeV2", "EntryConfChange").rstrip() for line in lines]
    if block.command in SHOWN:
        return Projection(shown=lines)
    result = Projection(dropped="raft proposal dropped" in lines and block.command == "propose")
    first = block.ids[0] if block.ids else 0
    node = 0 if block.command == "deliver-msgs" else first
    section = Section(node, _DOING.get(block.command, "other"))
    sections = [section]
    at = ""
    for line in _without_own_pre_vote(list(_joined(lines))):
        if header := _HEADER.match(line):
            section = Section(int(header[1]), header[2])
            sections.append(section)
            at = ""
        elif line in _LISTS:
            at = line
        elif _MESSAGE.match(line):
            section.messages += _message(line)
        elif _ENTRY.match(line) and at == "Entries:":
            _held(result, section).entries.append(line)
        elif _ENTRY.match(line) and at == "CommittedEntries:":
            _held(result, section).committed.append(line)
        else:
            _state(result, section, line)
    result.sections = [section for section in sections if section.messages]
    return result


def _state(result: Projection, section: Section, line: str) -> None:
    if line.startswith("HardState "):
        _held(result, section).hard.append(line)
    elif line.startswith("Lead:"):
        _held(result, section).soft.append(line)
    elif line.startswith("Snapshot Index:"):
        _held(result, section).snapshots.append(line)
    elif line.startswith("Ready MustSync="):
        _held(result, section).must_sync.append("true" in line)
    elif line not in ("ok", "<empty Ready>", "no messages") and not line.startswith(("raft", "no ap")):
        raise Unreadable(line)


def _held(result: Projection, section: Section) -> Held:
    return result.held.setdefault(section.node, Held())


def _joined(lines: list[str]) -> Iterator[str]:
    """Logger lines left out; a message that goes on over several lines, or with its snapshot, as one."""
    pending = ""
    for raw in lines:
        line = raw.strip()
        if _LOGGER.match(line):
            continue
        if pending and (_is_open(pending) or line.startswith("Snapshot: ")):
            pending += ("" if pending.endswith("[") or line.startswith("]") else " ") + line
            continue
        if pending:
            yield pending
            pending = ""
        if _MESSAGE.match(line):
            pending = line
        else:
            yield line
    if pending:
        yield pending


def _without_own_pre_vote(lines: list[str]) -> Iterator[str]:
    asked = ["Ready MustSync=false:", "Lead:0 State:StatePreCandidate"]
    at = 0
    while at < len(lines):
        if lines[at : at + 2] == asked and (at + 2 == len(lines) or _HEADER.match(lines[at + 2])):
            at += 2
        else:
            yield lines[at]
            at += 1


def _is_open(message: str) -> bool:
    unquoted = _QUOTED.sub("", message)
    return unquoted.count("[") > unquoted.count("]")


def _message(line: str) -> list[str]:
    """The message without what goes to its own sender's core; nothing when that is all it is."""
    responses = _RESPONSES.search(line)
    if responses:
        line = line[: responses.start()]
        kept = [one for text in _split(responses[1]) for one in _message(text)]
        return [f"{line} Responses:[{' '.join(kept)}]"] if kept else _message(line)
    match = _MESSAGE.match(line)
    assert match is not None
    if _NOTHING_TO_WRITE.search(line):
        return []
    sender, target = match[2], match[3]
    if target.endswith("Thread"):
        return [line]
    return [] if sender == target or sender.endswith("Thread") else [line]


def _split(text: str) -> list[str]:
    starts = [match.start() for match in re.finditer(r"\w+->\w+ Msg", text)]
    return [text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
