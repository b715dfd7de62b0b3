"""What a run has covered and found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.differential.kinds import options_of

COVERAGE_MIN = 20
"""Of each option and each error text, in a run of so many programs:"""
COVERAGE_PROGRAMS = 500
"""fewer need see proportionally less."""
ERROR_SHARE = (0.10, 0.40)
ABANDONED_SHARE_MAX = 0.02  # programs abandoned because a side answered "unavailable"

ERRORS = (
    "etcdserver: key is not provided",
    "etcdserver: key not found",
    "etcdserver: value is provided",
    "etcdserver: lease is provided",
    "etcdserver: requested lease not found",
    "etcdserver: too many operations in txn request",
    "etcdserver: duplicate key given in txn request",
    "etcdserver: mvcc: required revision has been compacted",
    "etcdserver: mvcc: required revision is a future revision",
    "etcdserver: request is too large",
)
"""Every error text that a healthy cluster without auth gives to these five requests."""


@dataclass(slots=True)
class Tally:
    """What a run has covered and found."""

    kinds: tuple[str, ...] = ()
    programs: int = 0
    steps: int = 0
    requests: int = 0
    """Those of KV; `refused` are among them."""
    refused: int = 0
    options: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """Events of watches, kept differences, and what else a reader wants to see counted."""
    abandoned: list[str] = field(default_factory=list)
    differences: list[dict[str, object]] = field(default_factory=list)

    def shortfalls(self) -> list[str]:
        """What the run must cover and did not."""
        wanted = max(1, min(COVERAGE_MIN, COVERAGE_MIN * self.programs // COVERAGE_PROGRAMS))
        found = [
            f"{self.options[name]:4d} x {name}"
            for name in sorted(options_of(self.kinds))
            if self.options[name] < wanted
        ]
        found += [f"{self.errors[text]:4d} x {text}" for text in ERRORS if self.errors[text] < wanted]
        share = self.refused / max(1, self.requests)
        if not ERROR_SHARE[0] <= share <= ERROR_SHARE[1]:
            found.append(
                f"{share:.1%} of the replies are errors, wanted {ERROR_SHARE[0]:.0%} to {ERROR_SHARE[1]:.0%}"
            )
        if len(self.abandoned) > max(1, ABANDONED_SHARE_MAX * self.programs):
            found.append(f"{len(self.abandoned)} of {self.programs} programs abandoned: {self.abandoned[0]}")
        return found
