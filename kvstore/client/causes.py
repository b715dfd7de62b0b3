"""Why no connection can be made: what gRPC says about it, in the words that a person knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

RESOLVING = "errors resolving "
CONNECTING = "failed to connect to all addresses"

# How the resolvers that gRPC may be built with say that a name has no address. All else, such as a server of
# names that does not answer, may pass.
_NO_SUCH_HOST = (
    "Domain name not found",
    "DNS server returned answer with no data",
    "Misformatted domain name",
    "Name or service not known",
    "No address associated with hostname",
)
_REASON = re.compile(
    r"(?:last error: [A-Z_]+: \S+: |hostname lookup error:)"
    r"(?:address lookup failed for \S+: |.*(?:error: |host: |SO_ERROR\): |connect: ))?(?P<reason>.*)"
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why one endpoint cannot be reached."""

    text: str
    certain: bool = False
    """True when waiting is in vain: its name does not exist."""


def cause_of(details: str) -> Cause | None:
    """The cause in the details of a call that could not be sent; None when they tell of something else."""
    if not details.startswith((RESOLVING, CONNECTING)):
        return None
    if any(words in details for words in _NO_SUCH_HOST):
        return Cause("no such host", certain=True)
    if "Failed parsing HTTP/2" in details:
        return Cause("not a gRPC server")
    match = _REASON.search(details)
    reason = match["reason"] if match else details
    reason = re.sub(r" \(\d+\)|\]$", "", reason).strip()  # the number of the error, as some releases have it
    return Cause(reason[:1].lower() + reason[1:])


def in_words(causes: Sequence[tuple[str, Cause]]) -> str:
    """`connection refused (a:1), no such host (b:2)`: by endpoint, as given."""
    return ", ".join(f"{cause.text} ({target})" for target, cause in causes)
