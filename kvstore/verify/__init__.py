"""Checkers for histories: do the clients' observations satisfy the guaranteed semantics?

A history is a list of events in real-time order (`operation_history`), read from Jepsen's EDN, from JSON
lines or from Porcupine's logs (`history_readers`). Every operation ends in one of three ways:

* `ok`: it happened, and this is what it returned;
* `fail`: it certainly did not happen (or, for a compare-and-set, its comparison did not hold);
* `info`: unknown; it may take effect at any later time, or never.

Three families of checkers:

* `linearizability`: a search for one legal order of register, map and mutex operations, depth
  first and breadth first in competition, split by key where keys are independent, all keys concurrently;
* `revision_witness`: for stores that number their writes, the order of the revisions, replayed and compared;
* `list_append`: transactional anomalies as cycles between transactions, in the manner of Elle.

A verdict is valid, invalid (with the operation that cannot be placed, or the cycle) or unknown: a bound of
CPU or memory was met (`budget`), or the history is empty. These modules know nothing of this store; they
check any system's history.
"""

from __future__ import annotations

from kvstore.verify.budget import Budget
from kvstore.verify.history_readers import read_history
from kvstore.verify.linearizability import check_linearizability
from kvstore.verify.list_append import check_list_append
from kvstore.verify.models import MODELS, Model, Semantics
from kvstore.verify.operation_history import (
    Event,
    HistoryError,
    Operation,
    Outcome,
    Verdict,
    VerdictKind,
    pair_events,
)
from kvstore.verify.revision_witness import check_revisions

__all__ = [
    "MODELS",
    "Budget",
    "Event",
    "HistoryError",
    "Model",
    "Operation",
    "Outcome",
    "Semantics",
    "Verdict",
    "VerdictKind",
    "check_linearizability",
    "check_list_append",
    "check_revisions",
    "pair_events",
    "read_history",
]
