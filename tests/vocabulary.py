"""The words this project does not use, with the field's word for each, and the few places that keep one.

The right-hand words are those of Raft's paper, etcd and Jepsen; docs/ARCHITECTURE.md explains the ones in
use. `tests/test_tidy.py` refuses the left-hand ones as a part of an identifier or a file name and as a word
of prose. Data that other versions read (file prefixes, keys of random streams, method paths) keeps its
spelling, by exemption.
"""

from __future__ import annotations

import re
from typing import NamedTuple

REFUSED: dict[str, str] = {
    "image images": "snapshot; backend",
    "statefile": "backend",
    "settle settles settled settling": "complete; callback `on_result`",
    "hello hellos": "handshake",
    "turn turns": "(loop) iteration",
    "renewal renewals renew renews renewed renewing": "keep-alive",
    "prove proves proved proven proving proof proofs": "confirm leadership; show, check",
    "promise promises promised promising": "guarantee; vote or acknowledgement",
    "driver drivers owner owners": "node, event loop; holder",
    "admission": "replica identity check; vote-eligible",
    "sums": "checksums",
    "founding founder founders": "bootstrap",
    "handover": "forward; transfer",
    "twin twins": "in-memory implementation, fake",
    "question questions": "leader RPC; request",
    "fate fates": "outcome",
    "room rooms floor floors front fronts door doors": "package, layer, server, entry point; space",
    "chance chances": "randomness, rng; probability",
    "place places": "waiter, queue entry; position",
    "cut cuts cutting": "torn tail truncated; disconnect, partition",
    "notice notices noticed": "commit broadcast; detect",
    "wish wishes wished": "snapshot request",
    "window windows": "forwarding session",
    "deaf mute muted sever severs severed severing": "drop inbound, drop outbound, reset connections",
    "overtaken overtake overtakes jumped": "superseded by a snapshot",
    "foreign": "third-party; etcd-only",
    "strike strikes struck ailing calm planted void voids": "inject, faulty, quiesce, mutant, inconclusive",
    "upkeep mend mends mended mending expelled": "maintenance; repair; removed",
    "whoever whom nobody tells": "the caller, no member, is notified, reports",
}
"""Every form of a word that stands alone, to what to say instead."""

PHRASES: dict[str, str] = {
    r"state files?|state_file|StateFile": "backend",
    r"boot ids?|boot_id": "incarnation",
    r"hand(s|ed|ing)? over|hand(ed)?_over|hand-over": "forward (to the leader); transfer (of leadership)",
    r"writ(e|es|ten|ing)[ -]behind|write_behind": "checkpointing of the backend",
    r"fresh disks?": "a replica not yet vote-eligible",
    r"st(and|ands|ood|anding) still": "paused, stalled",
    r"row sums?": "checksums",
    r"planted bugs?": "mutant",
    r"(is|are|was|were|be|been|being) told": "is notified, is sent",
    r"commit notices?": "commit broadcast",
    r"found_voters|ask_leader": "bootstrap_voters, call_leader",
}
"""Phrases (regular expressions over a line) to what to say instead."""


class Exemption(NamedTuple):
    """One place where a refused word stays: the file's path and the line must both match."""

    word: str
    path: str
    line: str
    reason: str


EXEMPTIONS: tuple[Exemption, ...] = (
    Exemption("room", ".*", r"has_room", "free space in a bounded queue; the call object's public name"),
    Exemption("cut", ".*", r"[Pp]ower[ _-]?cut|PowerCut", "the field's word for losing power"),
    Exemption("floor", "kvstore/cli/gotext.py", r"math\.floor", "the standard library's function"),
    Exemption("owner", "tests/conformance/go/main.go", r"IsOwner", "a method of Go's clientv3"),
    Exemption("promise", "tests/conformance/scripts/node_calls.js", r"Promise", "JavaScript's class"),
    Exemption("calm", "raft/sim/cluster.py", r'stream\("calm"\)', "key of a random stream of recorded seeds"),
    Exemption("cut", r"CHANGELOG\.md", r"were `pause-cut`", "an earlier name that users may look for"),
    Exemption("cuts", ".*", r"[Pp]ower[ _-]?cuts", "the field's word for losing power"),
    Exemption(
        "image",
        r"raft/storage/snapshot_store\.py|docs/format\.md|tests/simulation/test_nodes\.py",
        r"\bimage-",
        "on-disk file prefix",
    ),
    Exemption("image", r"proto/raft/transport/wire/peer\.proto", r"rpc Image\(", "gRPC method path"),
    Exemption("image", r"raft/transport/peer_service\.py", r"Peer/Image\"", "gRPC method path"),
    Exemption(
        "found_voters",
        r"kvstore/server/disaster_recovery\.py|tests/compatibility/.*|docs/format\.md",
        r"[\"`]found_voters[\"`]",
        "a key of the JSON in the log's bootstrap item",
    ),
    *(
        Exemption(
            word,
            r"kvstore/http2/.*|kvstore/rpc/http2_binding\.py|tests/http2/.*|docs/grpc-server\.md"
            r"|docs/decisions/0007-.*|tests/vocabulary\.py|kvstore/peering/http2_stack\.py",
            r".*",
            "HTTP/2's flow-control window",
        )
        for word in ("window", "windows")
    ),
    Exemption("notice", "kvstore/http2/.*", "send_shutdown_notice", "a method of ngh2"),
    Exemption(
        "calm",
        r"kvstore/http2/.*|kvstore/peering/http2_stack\.py|tests/http2/.*|tests/transport/test_evidence\.py",
        "ENHANCE_YOUR_CALM",
        "HTTP/2's name of an error code",
    ),
    Exemption("strikes", r".*", r"max_ping_strikes", "gRPC's name of a channel option"),
    Exemption("images", "kvstore/testing/features.py", 'return "images" if', "key of random streams"),
    Exemption("floor", r".*/timeline_page\.html", r"Math\.floor", "JavaScript's function"),
    Exemption("renewed", ".*", "etcd_debugging_lease_renewed", "a metric of etcd"),
    Exemption("founders", "kvstore/server/joining.py", '"founders"', "a JSON key between members"),
    Exemption(
        "image", "tests/server/test_backups.py", r'"image-', "the prefix of a file in the data directory"
    ),
)

WORDS: dict[str, str] = {word: better for words, better in REFUSED.items() for word in words.split()}
PHRASE = re.compile(
    "|".join(rf"(?P<p{n}>(?<![A-Za-z])({phrase})(?![A-Za-z]))" for n, phrase in enumerate(PHRASES))
)
LIKELY = re.compile("|".join(sorted({word[:4] for word in WORDS}) + list(PHRASES)), re.IGNORECASE)
"""A line without a match holds nothing refused: most lines, found in one search."""
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def refused_in(path: str, line: str) -> list[str]:
    """The refused words and phrases of one line of a file, without those that an exemption covers."""
    if not LIKELY.search(line):
        return []
    found = [part.lower() for part in PARTS.findall(line) if part.lower() in WORDS]
    found += [match.group(0).lower() for match in PHRASE.finditer(line)]
    return [word for word in found if not any(covers(one, path, line, word) for one in EXEMPTIONS)]


def covers(exemption: Exemption, path: str, line: str, word: str) -> bool:
    return (
        exemption.word == word
        and re.fullmatch(exemption.path, path) is not None
        and re.search(exemption.line, line) is not None
    )


def instead_of(word: str) -> str:
    """What to say in place of a refused word or phrase."""
    if word in WORDS:
        return WORDS[word]
    match = PHRASE.fullmatch(word)
    return list(PHRASES.values())[int(match.lastgroup[1:])] if match and match.lastgroup else ""
