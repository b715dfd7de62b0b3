"""Transactional anomalies in list-append histories, in the manner of Elle.

Every transaction appends distinct values to lists and reads whole lists. A list read shows the
order of the appends before it, so version orders are known, not guessed; from them follow the
dependencies between transactions:

* ww: appended the next element after another's;
* wr: read a list whose last element another appended;
* rw: read a list to which another then appended the next element;
* rt: began after another had ended (real time).

Strict serializability forbids every cycle. What a cycle is called says how bad it is: G0 has only
ww edges, G1c ww and wr, G-single exactly one rw, G2 more than one; the suffix `-realtime` says that
real-time edges were needed. Some anomalies show without a cycle: reads of failed (G1a) or
intermediate (G1b) appends, reads that disagree on an order, duplicates, a transaction that
contradicts itself, and lost updates.
"""

from __future__ import annotations

import gc
import itertools
from collections import deque
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from kvstore.verify.budget import BUDGET_S_DEFAULT, BoundMetError, Budget, undecided
from kvstore.verify.models import freeze
from kvstore.verify.operation_history import (
    NOTHING_JUDGED,
    Operation,
    Outcome,
    Verdict,
    VerdictKind,
    shows_nothing,
)

ANOMALIES_SHOWN_MAX = 8
"""Anomalies spelled out in a verdict; one is enough to refute, a few help to see the pattern."""

EDGE_BYTES = 40
"""What a dependency takes in a large dict. There are about six of them a transaction; where no read shows the
appends to a key, there are as many as reads times appends."""


class Transaction(NamedTuple):
    """One operation of the history, as mops."""

    operation: Operation
    mops: Sequence[tuple[str, Hashable, Any]]
    """("append", key, value) or ("r", key, tuple of values or None when unknown)."""


class Kind:
    """Edge kinds as bits, so that one mask selects a subgraph."""

    WW, WR, RW, RT = 1, 2, 4, 8


NAMES = {Kind.WW: "ww", Kind.WR: "wr", Kind.RW: "rw", Kind.RT: "rt"}
Graph = list[dict[int, int]]
"""Adjacency by number: target -> mask of kinds. Numbers past the transactions are instants of time."""


def check_list_append(
    operations: Sequence[Operation], *, budget_s: float = BUDGET_S_DEFAULT, budget: Budget | None = None
) -> Verdict:
    """Judge a history of `txn` operations whose values are lists of [append k v] and [r k vs].

    Takes `budget_s` CPU seconds at most, or what is left of a `budget` begun. Raises ValueError when an
    operation does not fit that vocabulary.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of tuples and no circle among them: looking for circles took half of the time
    try:
        return _check(operations, budget or Budget(budget_s))
    finally:
        if collecting:
            gc.enable()


def _check(operations: Sequence[Operation], budget: Budget) -> Verdict:
    anomalies: list[str] = []
    count = len(operations)
    try:
        # Keeps what came before an exception: a bound that is met later makes it no less of a refutation.
        anomalies.extend(itertools.islice(_anomalies(operations, budget), ANOMALIES_SHOWN_MAX))
    except BoundMetError as bound:
        if not anomalies:
            return undecided(count, f"undecided: {bound}")
    if anomalies:
        return Verdict(VerdictKind.INVALID, count, anomalies)
    if shows_nothing(operations):
        return undecided(count, NOTHING_JUDGED)
    return Verdict(VerdictKind.VALID, count)


def _anomalies(operations: Sequence[Operation], budget: Budget) -> Iterator[str]:
    """Those that show without a cycle; only where there are none, the worst cycles."""
    transactions = [_transaction(operation, budget) for operation in operations]
    analysis = _Analysis(transactions, budget)
    direct = False
    for anomaly in analysis.direct():
        direct = True
        yield anomaly
    if not direct:
        yield from _cycles(analysis.graph(), transactions, budget)


def _transaction(operation: Operation, budget: Budget) -> Transaction:
    value = operation.invoked
    if operation.outcome is Outcome.OK and operation.completed is not None:
        value = operation.completed
    mops: list[tuple[str, Hashable, Any]] = []
    known = operation.outcome is Outcome.OK
    budget.step()
    try:
        for f, key, seen in value:
            if f == "append":
                mops.append(("append", freeze(key), freeze(seen)))
            elif f == "r":
                mops.append(("r", freeze(key), _frozen_list(seen) if known else None))
                budget.step(_weight(mops[-1][2]))
            else:
                raise ValueError(f"a list-append transaction knows no {f!r} (line {operation.line})")
    except TypeError:
        raise ValueError(f"a transaction is a list of [f k v] (line {operation.line})") from None
    return Transaction(operation, mops)


ELEMENTS_PER_STEP = 16
"""Elements of a list that are hashed or compared in the time of one step of a budget."""


def _weight(value: Any) -> int:
    """Steps that a pass over a list counts for."""
    return 1 + len(value or ()) // ELEMENTS_PER_STEP


def _frozen_list(seen: Any) -> tuple[Any, ...]:
    """What a read returned; nil is the empty list. Elements are nearly always plain, so try that first."""
    elements = tuple(seen or ())
    try:
        hash(elements)
    except TypeError:
        return tuple(freeze(element) for element in elements)
    return elements


class _Analysis:
    """Who wrote what, who read what, and in which order each list grew."""

    def __init__(self, transactions: Sequence[Transaction], budget: Budget) -> None:
        self.transactions = transactions
        self.budget = budget
        self.writer: dict[tuple[Hashable, Any], int] = {}
        """(key, value) -> number of the transaction that appended it."""
        self.inner: set[tuple[Hashable, Any]] = set()
        """Appends followed by another of the same transaction to the same key: never a final state."""
        self.duplicates: list[str] = []
        self.longest: dict[Hashable, tuple[Any, ...]] = {}
        """The longest list read per key: the order of every append that was seen."""
        for number, (_, mops) in enumerate(transactions):
            self._take(number, mops)

    def _take(self, number: int, mops: Sequence[tuple[str, Hashable, Any]]) -> None:
        last: dict[Hashable, Any] = {}
        for f, key, value in self.budget.each(mops):
            if f == "append":
                if (key, value) in self.writer:
                    self.duplicates.append(f"duplicate-append: {value!r} to {key!r} was appended twice")
                self.writer[key, value] = number
                if key in last:
                    self.inner.add((key, last[key]))
                last[key] = value
            elif value is not None and len(value) > len(self.longest.get(key, ())):
                self.longest[key] = value

    def direct(self) -> Iterator[str]:
        yield from self.duplicates
        for key, order in self.longest.items():
            self.budget.step(_weight(order))
            if len(set(order)) != len(order):
                yield f"duplicate-elements: key {key!r} reads {order!r}"
            yield from self._elements(key, order)
        base: dict[tuple[Hashable, tuple[Any, ...]], int] = {}
        for number, (operation, mops) in enumerate(self.transactions):
            if operation.outcome is Outcome.OK:
                yield from self._internal(operation, mops)
                yield from self._reads(number, operation, mops)
                yield from self._lost_updates(number, mops, base)

    def _internal(self, operation: Operation, mops: Sequence[tuple[str, Hashable, Any]]) -> Iterator[str]:
        """A read must show the transaction's own earlier reads and appends."""
        seen: dict[Hashable, tuple[Any, ...]] = {}
        own: dict[Hashable, tuple[Any, ...]] = {}
        for f, key, value in mops:
            self.budget.step(_weight(seen.get(key)))
            if f == "append":
                if key in seen:
                    seen[key] = (*seen[key], value)
                own[key] = (*own.get(key, ()), value)
                continue
            if (key in seen and seen[key] != value) or (key in own and value[-len(own[key]) :] != own[key]):
                yield f"internal: {operation.describe()} contradicts itself on key {key!r}"
            seen[key] = value

    def _reads(
        self, number: int, operation: Operation, mops: Sequence[tuple[str, Hashable, Any]]
    ) -> Iterator[str]:
        for f, key, value in mops:
            if f != "r" or not value:
                continue
            self.budget.step(_weight(value))
            if self.longest[key][: len(value)] != value:
                yield (
                    f"incompatible-order: {operation.describe()} reads key {key!r} as {value!r},"
                    f" another reads {self.longest[key]!r}"
                )
                continue
            if (key, value[-1]) in self.inner and self.writer[key, value[-1]] != number:
                yield f"G1b: {operation.describe()} reads the intermediate {value[-1]!r} of key {key!r}"

    def _elements(self, key: Hashable, order: tuple[Any, ...]) -> Iterator[str]:
        """Every element read was appended by somebody who may have. Judged once a key, on its longest read:
        the other reads show parts of it, or are reported for not doing so."""
        for element in self.budget.each(order):
            writer = self.writer.get((key, element))
            if writer is None:
                shower = self._shower(key, element)
                yield f"phantom: {shower} reads {element!r} of key {key!r}, never appended"
            elif self.transactions[writer].operation.outcome is Outcome.FAIL:
                shower = self._shower(key, element)
                yield f"G1a: {shower} reads {element!r} of key {key!r}, whose append failed"

    def _shower(self, key: Hashable, element: Any) -> str:
        """The first transaction that read an element of a key."""
        for operation, mops in self.transactions:
            for f, k, value in mops:
                self.budget.step(_weight(value) if f == "r" and k == key else 1)
                if f == "r" and k == key and value and element in value:
                    return operation.describe()
        return "no transaction"

    def _lost_updates(
        self,
        number: int,
        mops: Sequence[tuple[str, Hashable, Any]],
        base: dict[tuple[Hashable, tuple[Any, ...]], int],
    ) -> Iterator[str]:
        """Two transactions that read the same version of a key and both append to it."""
        first: dict[Hashable, tuple[Any, ...]] = {}
        touched: dict[Hashable, None] = {}
        for f, key, value in mops:
            if f == "append":
                touched[key] = None
            elif key not in touched:
                first.setdefault(key, value)
        for key in touched:
            if key not in first:
                continue
            rival = base.setdefault((key, first[key]), number)
            if rival != number:
                yield (
                    f"lost-update: {self.transactions[rival].operation.describe()} and"
                    f" {self.transactions[number].operation.describe()} both append to one version of {key!r}"
                )

    def graph(self) -> Graph:
        """All dependencies. Instants of time follow the transactions, so that real time costs O(n).

        Raises BoundMetError when they would take more memory than the budget allows.
        """
        count = len(self.transactions)
        edges: Graph = [{} for _ in range(count)]
        edge_count = 0

        def edge(source: int, target: int, kind: int) -> None:
            nonlocal edge_count
            self.budget.step()
            if source != target:
                edges[source][target] = edges[source].get(target, 0) | kind
                edge_count += 1
                if edge_count * EDGE_BYTES > self.budget.memory_bytes:
                    raise self.budget.memory_bound()

        unseen = self._unseen()
        following: dict[tuple[Hashable, int], list[int]] = {}
        for key, order in self.longest.items():
            writers = [self.writer[key, element] for element in self.budget.each(order)]
            for source, target in itertools.pairwise(writers):
                edge(source, target, Kind.WW)
            for position, writer in enumerate(writers):
                following[key, position] = [writer]
            if writers:
                for late in unseen.get(key, ()):
                    edge(writers[-1], late, Kind.WW)
        for key, writers in unseen.items():
            following[key, len(self.longest.get(key, ()))] = writers
        for number, (operation, mops) in enumerate(self.budget.each(self.transactions)):
            if operation.outcome is not Outcome.OK:
                continue
            for f, key, value in self._outer_reads(mops):
                del f
                if value:
                    edge(self.writer[key, value[-1]], number, Kind.WR)
                for target in following.get((key, len(value)), ()):
                    edge(number, target, Kind.RW)
        self._real_time(edges)
        return edges

    def _outer_reads(self, mops: Sequence[tuple[str, Hashable, Any]]) -> Iterator[tuple[str, Hashable, Any]]:
        """Reads that saw other transactions' states: those before any own append to the key."""
        touched: dict[Hashable, None] = {}
        for f, key, value in mops:
            if f == "append":
                touched[key] = None
            elif key not in touched:
                yield f, key, value

    def _unseen(self) -> dict[Hashable, list[int]]:
        """Acknowledged appends no read shows: they come after everything read."""
        positions = {key: frozenset(order) for key, order in self.budget.each(self.longest.items())}
        unseen: dict[Hashable, list[int]] = {}
        for (key, value), number in self.budget.each(self.writer.items()):
            acknowledged = self.transactions[number].operation.outcome is Outcome.OK
            if acknowledged and value not in positions.get(key, frozenset()):
                unseen.setdefault(key, []).append(number)
        return unseen

    def _real_time(self, edges: Graph) -> None:
        """Chain the instants of completion; a transaction hangs on the last instant before its call."""
        ended = sorted(
            (operation.ret, number)
            for number, (operation, _) in enumerate(self.transactions)
            if operation.ret is not None and operation.outcome is Outcome.OK
        )
        begun = sorted((operation.call, number) for number, (operation, _) in enumerate(self.transactions))
        position = 0
        for call, number in self.budget.each(begun):
            while position < len(ended) and ended[position][0] < call:
                instant = len(edges)
                edges.append({})
                edges[ended[position][1]][instant] = Kind.RT
                if position:
                    edges[instant - 1][instant] = Kind.RT
                position += 1
            if position:
                edges[len(edges) - 1][number] = Kind.RT


_SEARCHES = (
    ("G0", Kind.WW),
    ("G1c", Kind.WW | Kind.WR),
    ("G0-realtime", Kind.WW | Kind.RT),
    ("G1c-realtime", Kind.WW | Kind.WR | Kind.RT),
    ("G", Kind.WW | Kind.WR | Kind.RW),
    ("G-realtime", Kind.WW | Kind.WR | Kind.RW | Kind.RT),
)
"""Worst first; the last two are named by how many rw edges their cycle has."""


def _cycles(graph: Graph, transactions: Sequence[Transaction], budget: Budget) -> Iterator[str]:
    everything = _SEARCHES[-1][1]
    whole = next(_components(graph, everything, budget), None)
    if whole is None:
        return
    found = False
    try:
        for name, mask in _SEARCHES:
            for component in _components(graph, mask, budget):
                cycle = _shortest_cycle(graph, component, mask, budget)
                found = True
                yield _describe(name, cycle, graph, mask, transactions)
            if found:
                return
    except BoundMetError as bound:
        if not found:  # that there is one is certain all the same
            members = [transactions[number].operation.line for number in whole if number < len(transactions)]
            yield (
                f"G-realtime: a cycle among {len(members)} transactions, one of them on line {min(members)};"
                f" {bound}, before it was searched for the worst"
            )


def _components(graph: Graph, mask: int, budget: Budget) -> Iterator[list[int]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    index = [0] * len(graph)
    low = [0] * len(graph)
    on_stack = bytearray(len(graph))
    stack: list[int] = []
    counter = 0
    for root in range(len(graph)):
        if index[root]:
            continue
        work: list[tuple[int, Iterator[int]]] = []
        visit = root
        while True:
            if visit >= 0:
                counter += 1
                index[visit] = low[visit] = counter
                stack.append(visit)
                on_stack[visit] = 1
                budget.step(2 + len(graph[visit]))
                work.append((visit, iter([t for t, kinds in graph[visit].items() if kinds & mask])))
                visit = -1
            node, targets = work[-1]
            for target in targets:
                if not index[target]:
                    visit = target
                    break
                if on_stack[target]:
                    low[node] = min(low[node], index[target])
            if visit >= 0:
                continue
            work.pop()
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[node])
            if low[node] == index[node]:
                component = []
                while True:
                    member = stack.pop()
                    on_stack[member] = 0
                    component.append(member)
                    if member == node:
                        break
                if len(component) > 1:
                    yield component
            if not work:
                break


CYCLE_STARTS_MAX = 64
"""Members of a component from which a shortest cycle is sought: bounds the work on huge ones."""


def _shortest_cycle(graph: Graph, component: Sequence[int], mask: int, budget: Budget) -> list[int]:
    """The shortest cycle through any of the first members, or of those that the budget allows to try.

    Raises BoundMetError when it allows none.
    """
    best: list[int] = []
    inside = frozenset(component)
    try:
        for start in sorted(component)[:CYCLE_STARTS_MAX]:
            cycle = _cycle_through(start, graph, inside, mask, budget)
            if not best or len(cycle) < len(best):
                best = cycle
    except BoundMetError:
        if not best:
            raise
    return best


def _cycle_through(start: int, graph: Graph, inside: Collection[int], mask: int, budget: Budget) -> list[int]:
    """A shortest cycle through one member of a strongly connected component."""
    parent = {start: -1}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        budget.step(1 + len(graph[node]))
        for target, kinds in graph[node].items():
            if not kinds & mask or target not in inside:
                continue
            if target == start:
                path = [node]
                while parent[path[-1]] >= 0:
                    path.append(parent[path[-1]])
                return path[::-1]
            if target not in parent:
                parent[target] = node
                queue.append(target)
    raise AssertionError(f"no cycle through member {start} of a strongly connected component")


CYCLE_MEMBERS_SHOWN_MAX = 32
"""Transactions of a cycle spelled out: a cycle may be as long as the history."""


def _describe(
    name: str, cycle: Sequence[int], graph: Graph, mask: int, transactions: Sequence[Transaction]
) -> str:
    """The cycle in words, instants of time folded into one `rt` step, and the end of a long one left out."""
    parts = []
    antidependencies = members = 0
    for source, target in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        kinds = graph[source][target] & mask
        kind = kinds & -kinds
        antidependencies += kind == Kind.RW
        if source < len(transactions):
            members += 1
            if members <= CYCLE_MEMBERS_SHOWN_MAX:
                parts.append(f"{transactions[source].operation.describe()} -{NAMES[kind]}->")
    if members > len(parts):
        parts.append(f"{members - len(parts)} more ->")
    if name.startswith("G") and name[1:2] not in {"0", "1"}:
        name = name.replace("G", "G-single" if antidependencies == 1 else "G2", 1)
    return f"{name}: " + " ".join(parts) + " the first again"
