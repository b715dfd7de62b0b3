"""Do all members hold the same? Their whole contents at one revision, compared key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from kvstore.verify.operation_history import Verdict, VerdictKind
from kvstore.verify.set_checker import FINDINGS_SHOWN_MAX

Contents = Mapping[str, tuple[object, ...]]
"""Key -> everything else that is known of it: value, revisions, version, lease."""


def check_replicas(contents: Mapping[str, Contents]) -> Verdict:
    """Judge what the members hold, by the name of each, at one common revision. Unknown without members."""
    rows = sum(len(held) for held in contents.values())
    if not contents:
        return Verdict(VerdictKind.UNKNOWN, rows, ("nothing to judge: no member was read",))
    findings = list(islice(_findings(contents), FINDINGS_SHOWN_MAX))
    return Verdict(VerdictKind.INVALID if findings else VerdictKind.VALID, rows, findings)


def _findings(contents: Mapping[str, Contents]) -> Iterator[str]:
    names = sorted(contents)
    for name in names[1:]:
        first, other = contents[names[0]], contents[name]
        for key in sorted({*first, *other}):
            if first.get(key) != other.get(key):
                yield (f"{names[0]} and {name} differ at {key!r}: {first.get(key)!r} and {other.get(key)!r}")
