"""The resource behind a lock: it refuses tokens lower than any it has seen, so no update is lost.

`lock_checker` documents the operations.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvstore.verify.effect_times import NEVER_NS, Moment, contradictions, moments
from kvstore.verify.operation_history import Operation, Outcome


def fence_findings(operations: Sequence[Operation], acquired: Sequence[Moment]) -> Iterator[str]:
    """What contradicts a fenced resource, name by name; `acquired`: the moments of all locks."""
    given = {(moment.operation.completed["name"], moment.revision): moment for moment in acquired}
    by_name: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.f == "update" and operation.outcome is not Outcome.FAIL:
            by_name.setdefault(operation.invoked["name"], []).append(operation)
            lock = given.get((operation.invoked["name"], operation.invoked["token"]))
            if operation.outcome is Outcome.INFO:
                continue
            if lock is None:
                yield f"a token that was never granted: {operation.describe()}"
            elif (operation.returned_ns or 0) < lock.earliest_ns:
                yield f"a token not granted yet: {operation.describe()}"
    for mine in by_name.values():
        yield from _one_resource(mine)


def _one_resource(updates: Sequence[Operation]) -> Iterator[str]:
    done = [operation for operation in updates if operation.outcome is Outcome.OK]
    accepted = sorted(
        (op for op in done if op.completed["accepted"]), key=lambda op: int(op.completed["version"])
    )
    refused = [operation for operation in done if not operation.completed["accepted"]]
    reads = [replace(op, completed={"version": op.completed["base"], "accepted": False}) for op in done]
    yield from contradictions(moments([*done, *reads], _version))
    unknown = len(updates) - len(done)
    version = 0
    token = 0
    for operation in accepted:
        update = operation.completed
        if update["base"] != update["before"]:
            yield f"an update is lost: {operation.describe()}"
        if update["version"] != update["before"] + 1:
            yield f"not the version after: {operation.describe()}"
        if update["token"] < token:
            yield f"accepted after a higher token: {operation.describe()}"
        unknown -= max(0, update["version"] - version - 1)
        if unknown < 0:
            yield f"no update made the versions before: {operation.describe()}"
            unknown = 0
        version, token = update["version"], update["token"]
    top = version + max(0, unknown)
    for operation in done:
        if max(operation.completed["version"], operation.completed["base"]) > top:
            yield f"no update made that version: {operation.describe()}"
    yield from _fence(done, accepted, refused, [op for op in updates if op.outcome is Outcome.INFO])


def _version(operation: Operation) -> tuple[int, bool]:
    return operation.completed["version"], operation.completed["accepted"]


def _fence(
    done: Sequence[Operation],
    accepted: Sequence[Operation],
    refused: Sequence[Operation],
    unknown: Sequence[Operation],
) -> Iterator[str]:
    """A token fences off lower ones from its first request on, and nothing else does."""
    by_token = sorted(done, key=lambda op: int(op.completed["token"]))
    tokens = [operation.completed["token"] for operation in by_token]
    least: list[float] = [NEVER_NS]
    """From the end: the lowest version that any of the higher tokens read."""
    for operation in reversed(by_token):
        least.append(min(least[-1], operation.completed["base"]))
    least.reverse()
    for operation in accepted:
        update = operation.completed
        if least[bisect_right(tokens, update["token"])] < update["version"]:
            yield f"accepted after a higher token was shown: {operation.describe()}"
    for operation in refused:
        update = operation.completed
        if update["version"] != update["before"]:
            yield f"refused, yet it changed: {operation.describe()}"
        higher = least[bisect_right(tokens, update["token"])] <= update["version"]
        end = operation.returned_ns or 0
        if not higher and not any(
            op.invoked["token"] > update["token"] and (op.called_ns or 0) < end for op in unknown
        ):
            yield f"refused, though no higher token had been shown: {operation.describe()}"
