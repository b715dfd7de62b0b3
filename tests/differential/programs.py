"""Random programs of KV requests: every option of Range, Put, DeleteRange, Txn and Compact.

A program is a list of raw requests, so that it can be printed, shortened and run again. Revisions in it are
symbols, because they depend on what ran before: a number near NOW means "the newest revision plus the
distance", one near BASE "the revision at the program's start plus the distance". `resolve` fills them in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from kvstore.wire import rpc_pb2

NOW = 1 << 40
BASE = 1 << 44
SYMBOL_DISTANCE_MAX = 1 << 20  # how far a symbol's distance reaches either way
KV_WEIGHTS = {
    "range": 28, "put": 24, "delete": 8, "txn": 32, "reading_txn": 5, "compaction": 6, "oversize": 0.8
}  # fmt: skip
KEYS_MAX = 200
OPERATIONS = 30
TXN_OPERATIONS_MAX = 128  # etcd's default of --max-txn-ops
REQUEST_BYTES_TOO_MANY = 1_600_000  # above etcd's default of 1,572,864, below the transport's own limit

Range = rpc_pb2.RangeRequest
Put = rpc_pb2.PutRequest
Delete = rpc_pb2.DeleteRangeRequest
Txn = rpc_pb2.TxnRequest
Compaction = rpc_pb2.CompactionRequest
Compare = rpc_pb2.Compare
RequestOp = rpc_pb2.RequestOp
Request = Range | Put | Delete | Txn | Compaction

SORT_TARGETS = tuple(Range.SortTarget.values())
SORT_ORDERS = tuple(Range.SortOrder.values())
COMPARE_TARGETS = tuple(Compare.CompareTarget.values())
COMPARE_RESULTS = tuple(Compare.CompareResult.values())


class Step(NamedTuple):
    """One request and the options that it exercises, for the coverage count."""

    request: Any
    """A request of KV, or an action that performs itself (`watching`, `leasing`)."""
    options: tuple[str, ...]


def resolve(request: Request, now: int, base: int) -> Request:
    """A copy with every symbolic revision replaced by a number."""
    copy = type(request)()
    copy.CopyFrom(request)
    _resolve_into(copy, now, base)
    return copy


def number_of(value: int, now: int, base: int) -> int:
    """What a symbol stands for; other numbers are themselves."""
    for symbol, meaning in ((NOW, now), (BASE, base)):
        if abs(value - symbol) < SYMBOL_DISTANCE_MAX:
            return max(1, meaning + value - symbol)
    return value


def _resolve_into(message: Request | Compare, now: int, base: int) -> None:
    if isinstance(message, Txn):
        for compare in message.compare:
            _resolve_into(compare, now, base)
        for operation in (*message.success, *message.failure):
            kind = operation.WhichOneof("request")
            if kind is not None:
                _resolve_into(getattr(operation, kind), now, base)
        return
    names = ["revision", "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"]
    if isinstance(message, Compare):
        kind = message.WhichOneof("target_union")
        names = [kind] if kind in ("create_revision", "mod_revision") else []
    for name in names:
        if name in message.DESCRIPTOR.fields_by_name and getattr(message, name):
            setattr(message, name, number_of(getattr(message, name), now, base))


def without_inner_revisions(step: Step) -> Step:
    """The step without explicit revisions of ranges inside a transaction that writes.

    When such a range fails (compacted, future), etcd 3.5 refuses the transaction on the member that was asked
    and applies it on the others (etcd #18667), so its members no longer agree and later replies say nothing;
    nor does a member agree with itself, once it was killed and applies its log again. Programs for several
    members and programs with restarts therefore leave these out; the others have them.
    """
    if not isinstance(step.request, Txn) or "txn reads" in " ".join(step.options):
        return step
    copy = Txn.FromString(step.request.SerializeToString())
    for operation in _operations(copy):
        if operation.WhichOneof("request") == "request_range":
            operation.request_range.ClearField("revision")
    return Step(copy, tuple(name for name in step.options if not name.startswith("range revision")))


def _operations(txn: Txn) -> Iterator[RequestOp]:
    for operation in (*txn.success, *txn.failure):
        yield operation
        if operation.WhichOneof("request") == "request_txn":
            yield from _operations(operation.request_txn)


def puts(txn: Txn) -> list[Put]:
    return [one.request_put for one in _operations(txn) if one.WhichOneof("request") == "request_put"]


def deletes(txn: Txn) -> list[Delete]:
    kind = "request_delete_range"
    return [one.request_delete_range for one in _operations(txn) if one.WhichOneof("request") == kind]


class Generator:
    """Draws one program from one seed."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        width = self.random.choice((1, 2, 3, 3))
        alphabet = self.random.choice((b"ab", b"abc", b"\x00a\xff", b"abcdefgh"))
        keys = {bytes(self.random.choice(alphabet) for _ in range(width)) for _ in range(KEYS_MAX)}
        keys.update(bytes(self.random.choice(alphabet) for _ in range(width + 1)) for _ in range(8))
        self.keys = sorted(keys)[:KEYS_MAX]
        self.hot = self.random.sample(self.keys, min(6, len(self.keys)))
        self.labels = 0
        """Watches begun so far, by number from 1."""
        self.values = [b"", b"0", b"1", b"12", b"\x00", b"\xff\xfe", b"v" * 40]

    # --- parts ---

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def key(self) -> bytes:
        return self.random.choice(self.hot if self.happens(0.75) else self.keys)

    def value(self) -> bytes:
        return self.random.choice(self.values) if self.happens(0.6) else b"%d" % self.random.randrange(10**6)

    def interval(self) -> tuple[bytes, bytes, str]:
        """key, range_end and what kind of interval they make."""
        kind = self.random.choices(INTERVALS, (36, 16, 12, 10, 10, 16))[0]
        key = self.key()
        if kind == "half-open":
            other = self.key()
            if key == other:
                other = key + b"\x00"
            return min(key, other), max(key, other), kind
        if kind == "prefix":
            prefix = key[:1]
            return (prefix, b"\x00", kind) if prefix == b"\xff" else (prefix, bytes([prefix[0] + 1]), kind)
        if kind == "from-key":
            return key, b"\x00", kind
        if kind == "all":
            return b"\x00", b"\x00", kind
        if kind == "empty":
            return key + b"z", key, kind
        return key, b"", kind

    def near(self, spread: int = 12) -> int:
        """A symbolic revision that is usually valid."""
        if self.happens(0.5):
            return NOW - self.random.randrange(spread)
        return BASE + self.random.randrange(spread)

    # --- requests ---

    def range(self, *, inside: bool = False) -> Step:
        key, range_end, kind = self.interval()
        request, options = Range(key=key, range_end=range_end), [f"range {kind}"]

        def has(probability: float, option: str) -> bool:
            chosen = self.happens(probability)
            if chosen:
                options.append(f"range {option}")
            return chosen

        if has(0.25, "limit"):
            request.limit = self.random.choice((1, 1, 2, 3, 100, -1))
        if has(0.2, "revision in the past"):
            request.revision = NOW - self.random.randrange(10)
        elif has(0.02, "revision negative"):
            request.revision = -3
        elif has(0.05, "revision in the future"):
            request.revision = NOW + self.random.choice((1, 2, 1000))
        elif has(0.04, "revision long gone"):
            request.revision = BASE - self.random.randrange(100)
        if self.happens(0.4):
            request.sort_order = self.random.choice(SORT_ORDERS)
            request.sort_target = self.random.choice(SORT_TARGETS)
            order, target = (
                Range.SortOrder.Name(request.sort_order),
                Range.SortTarget.Name(request.sort_target),
            )
            options.append(f"range sort {order} {target}")
        if has(0.12, "keys_only"):
            request.keys_only = True
        if has(0.08, "count_only"):
            request.count_only = True
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if has(0.08, name):
                setattr(request, name, self.near())
        if has(0.3, "serializable"):
            request.serializable = True
        if not inside and has(0.06, "without key"):
            request.key = b""
        return Step(request, tuple(options))

    def put(self) -> Step:
        key = self.random.choice(self.keys) if self.happens(0.05) else self.key()
        request, options = Put(key=key, value=self.value()), ["put"]
        if self.happens(0.3):
            request.prev_kv = True
            options.append("put prev_kv")
        if self.happens(0.15):
            request.ignore_value = True
            options.append("put ignore_value")
            if self.happens(0.8):
                request.value = b""
        if self.happens(0.12):
            request.ignore_lease = True
            options.append("put ignore_lease")
        if self.happens(0.25 if request.ignore_lease else 0.04):
            request.lease = self.random.choice((1, 7, 1 << 62))
            options.append("put lease")
        if self.happens(0.02):
            request.key = b""
            options.append("put without key")
        return Step(request, tuple(options))

    def delete(self) -> Step:
        key, range_end, kind = self.interval()
        if kind == "all" and self.happens(0.3):
            key, range_end, kind = self.key(), b"", "single"
        request, options = Delete(key=key, range_end=range_end), [f"delete {kind}"]
        if self.happens(0.35):
            request.prev_kv = True
            options.append("delete prev_kv")
        if self.happens(0.08):
            request.key = b""
            options.append("delete without key")
        return Step(request, tuple(options))

    def compare(self) -> tuple[Compare, tuple[str, ...]]:
        target, result = self.random.choice(COMPARE_TARGETS), self.random.choice(COMPARE_RESULTS)
        if self.happens(0.4):  # compares that tend to hold, so that success branches of long lists run
            result = self.random.choice((Compare.NOT_EQUAL, Compare.GREATER, Compare.LESS))
        compare = Compare(key=self.key(), target=target, result=result)
        options = [f"compare {Compare.CompareTarget.Name(target)} {Compare.CompareResult.Name(result)}"]
        if self.happens(0.1):
            options.append("compare without operand")
        elif target == Compare.VERSION:
            compare.version = self.random.randrange(4)
        elif target == Compare.CREATE:
            compare.create_revision = self.random.choice((0, self.near(), self.near()))
        elif target == Compare.MOD:
            compare.mod_revision = self.random.choice((0, self.near(), self.near()))
        elif target == Compare.VALUE:
            compare.value = self.value()
        else:
            compare.lease = self.random.choice((0, 0, 5))
        if self.happens(0.2):
            compare.key, compare.range_end, kind = self.interval()
            options.append(f"compare {kind}")
        if self.happens(0.03):
            compare.key = b""
            options.append("compare without key")
        return compare, tuple(options)

    def operation(self, depth: int, used: set[bytes]) -> tuple[RequestOp, tuple[str, ...]]:
        """One operation of a branch; `used` holds keys put in it, to keep most branches valid."""
        kind = self.random.choices(
            ("range", "put", "delete", "txn", "empty"), (30, 42, 16, 10 if depth < 3 else 0, 1)
        )[0]
        if kind == "empty":
            return RequestOp(), ("operation empty",)
        if kind == "txn":
            inner = self.txn(depth + 1, used)
            return RequestOp(request_txn=inner.request), (*inner.options, f"nested depth {depth + 1}")
        if kind == "range":
            step = self.range(inside=self.happens(0.97))
            return RequestOp(request_range=step.request), (*step.options, "operation range")
        if kind == "delete":
            step = self.delete()
            if step.request.range_end and self.happens(0.85):  # most intervals would hit a put of the branch
                step.request.range_end = b""
                step = Step(step.request, ("delete single",))
            if step.request.key in used and self.happens(0.95):
                return self.operation(depth, used)
            return RequestOp(request_delete_range=step.request), (*step.options, "operation delete")
        step = self.put()
        if step.request.key in used and self.happens(0.97):
            return RequestOp(request_range=Range(key=step.request.key)), ("operation range",)
        used.add(step.request.key)
        return RequestOp(request_put=step.request), (*step.options, "operation put")

    def branch(self, depth: int, used: set[bytes]) -> tuple[list[RequestOp], tuple[str, ...]]:
        drawn = [self.operation(depth, used) for _ in range(self.random.randrange(4 if depth else 6))]
        return [operation for operation, _ in drawn], tuple(name for _, names in drawn for name in names)

    def txn(self, depth: int = 0, used: set[bytes] | None = None) -> Step:
        compares = [self.compare() for _ in range(self.random.choice((0, 1, 1, 1, 2, 3)))]
        options = ["txn"] + [name for _, names in compares for name in names]
        if not compares:
            options.append("txn without compare")
        branches = []
        for _ in range(2):
            operations, names = self.branch(depth, set(used or ()))
            options += names
            branches.append(operations)
        request = Txn(compare=[compare for compare, _ in compares], success=branches[0], failure=branches[1])
        if depth == 0 and self.happens(0.03):
            options.append("txn too many")
            reads = [RequestOp(request_range=Range(key=self.key())) for _ in range(TXN_OPERATIONS_MAX + 1)]
            self.random.choice((request.success, request.failure)).extend(reads)
        elif depth == 0 and self.happens(0.06):
            options.append("txn duplicate key")
            put = RequestOp(request_put=Put(key=self.hot[0], value=b"d"))
            both = (
                RequestOp(request_delete_range=Delete(key=b"\x00", range_end=b"\x00"))
                if self.happens(0.5)
                else put
            )
            self.random.choice((request.success, request.failure)).extend((put, both))
        # etcd 3.5 does not see that a delete from a key onwards takes away a key whose value a later put
        # wants to keep, and crashes while it applies that.
        if depth == 0 and any(one.range_end == b"\x00" for one in deletes(request)):
            for put in puts(request):
                put.ignore_value = put.ignore_lease = False
            options = [name for name in options if not name.startswith("put ignore")]
        return Step(request, tuple(options))

    def reading_txn(self) -> Step:
        """Only ranges: answered without an entry in the log, and locally if all are serializable."""
        steps = [self.range(inside=True) for _ in range(self.random.randrange(1, 4))]
        is_local = self.happens(0.5)
        for step in steps:
            step.request.serializable = is_local
        options = [name for step in steps for name in step.options if name != "range serializable"]
        kind = "txn reads serializable" if is_local else "txn reads linearizable"
        operations = [RequestOp(request_range=step.request) for step in steps]
        compares = [self.compare()[0]] if self.happens(0.5) else []
        return Step(
            Txn(compare=compares, success=operations, failure=operations[:1]), ("txn", kind, *options)
        )

    def compaction(self) -> Step:
        revision, option = self.random.choices(
            (
                (NOW - self.random.randrange(8), "compact near"),
                (BASE - 5, "compact again"),
                (NOW + 3, "compact ahead"),
            ),
            (4, 4, 3),
        )[0]
        physical = self.happens(0.4)
        options = (option, "compact physical") if physical else (option,)
        return Step(Compaction(revision=revision, physical=physical), options)

    def oversize(self) -> Step:
        return Step(Put(key=self.key(), value=b"x" * REQUEST_BYTES_TOO_MANY), ("put too large",))

    def program(
        self, operations: int = OPERATIONS, more: Sequence[Draw] = (), only: frozenset[str] | None = None
    ) -> list[Step]:
        """Requests of KV (`only` those, if given), mixed with `more`."""
        draws: list[Callable[[], Step]] = []
        weights: list[float] = []
        for name, weight in KV_WEIGHTS.items():
            if only is None or name in only:
                weights.append(weight)
                draws.append(getattr(self, name))
        for weight, draw in more:
            weights.append(weight)
            draws.append(partial(draw, self))
        # What is mixed in comes on top, so that a program of many kinds exercises KV no less.
        operations = round(operations * (1 + sum(weight for weight, _ in more) / 100))
        warm_up = [
            Step(Put(key=key, value=self.value()), ("put",)) for key in self.hot[: self.random.randrange(5)]
        ]
        kinds = self.random.choices(draws, weights, k=operations - len(warm_up))
        return warm_up + [draw() for draw in kinds]


Draw = tuple[float, Callable[[Generator], Step]]
"""A kind of step beside those of KV, and its weight (theirs add up to about 100)."""


INTERVALS = ("single", "half-open", "prefix", "from-key", "all", "empty")
OPTIONS = """
range limit, range keys_only, range count_only, range serializable, range without key,
range revision in the past, range revision negative, range revision in the future, range revision long gone,
range min_mod_revision, range max_mod_revision, range min_create_revision, range max_create_revision,
put, put prev_kv, put ignore_value, put ignore_lease, put lease, put without key, put too large,
delete prev_kv, delete without key, compare without operand, compare without key,
txn, txn without compare, txn too many, txn duplicate key, txn reads serializable, txn reads linearizable,
operation empty, operation range, operation put, operation delete, nested depth 1, nested depth 2,
compact near, compact again, compact ahead, compact physical
"""


def expected_options() -> frozenset[str]:
    """Every option that a run must cover, written out from the API rather than from what was drawn."""
    found = {option.strip() for option in OPTIONS.split(",")}
    found |= {f"{verb} {kind}" for verb in ("range", "delete") for kind in INTERVALS}
    found |= {f"compare {kind}" for kind in INTERVALS[1:]}
    orders, targets = list(Range.SortOrder.keys()), list(Range.SortTarget.keys())
    found |= {f"range sort {order} {target}" for order in orders for target in targets}
    subjects, results = list(Compare.CompareTarget.keys()), list(Compare.CompareResult.keys())
    return frozenset(found | {f"compare {subject} {result}" for subject in subjects for result in results})
