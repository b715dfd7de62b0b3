"""Runs a fixed program through two engines in one process and prints what must not vary.

Prints: a string hash (which varies with the hash seed, as a control), the digest of all outcomes,
that of all drained rows in order, and the final hash. Started by test_model.py.
"""

from __future__ import annotations

import hashlib
import random

from kvstore.engine import (
    Alarm,
    Compact,
    Compare,
    DeleteRange,
    Engine,
    Member,
    Put,
    Range,
    SetMemberAttributes,
    Txn,
    encode,
)

SEED = 20
BATCHES = 400


def command(rng: random.Random, revision: int):
    def key() -> bytes:
        return b"key%d" % rng.randrange(60)

    choice = rng.random()
    if choice < 0.5:
        return Put(key(), rng.randbytes(rng.randrange(40)), 0, rng.random() < 0.3)
    if choice < 0.65:
        return DeleteRange(key(), rng.choice((b"", b"key4", b"\0")) if rng.random() < 0.2 else b"", True)
    if choice < 0.93:
        compare = Compare(
            key(), rng.randrange(3), rng.randrange(4), rng.randrange(revision), rng.choice((b"", b"\0"))
        )
        first, second = sorted(rng.sample(range(60, 99), 2))
        return Txn(
            (compare,),
            (Put(b"key%d" % first), DeleteRange(key()), Range(b"\0", b"\0", 5, 0, 2, rng.randrange(5))),
            (Put(b"key%d" % second), Txn((compare,), (), (Put(b"x"),))),
        )
    if choice < 0.96:
        return Compact(revision - rng.randrange(30))
    if choice < 0.98:
        return SetMemberAttributes(rng.choice((3, 1, 2, 9)), f"name{rng.randrange(9)}", ("http://h",))
    return Alarm(rng.choice((1, 2, 2, 2)), rng.choice((2, 1, 3)), 1)


def main() -> None:
    rng = random.Random(SEED)
    members = [Member(identity, "", (f"http://{identity}",)) for identity in (3, 1, 2)]
    engines = [Engine(members=members), Engine(members=reversed(members))]
    outcomes, rows = hashlib.sha256(), hashlib.sha256()
    for _ in range(BATCHES):
        batch = [encode(command(rng, engines[0].revision)) for _ in range(rng.randrange(1, 9))]
        answers = [engine.apply(1, 1, batch, True) for engine in engines]
        if repr(answers[0]) != repr(answers[1]):
            raise SystemExit("two engines in one process differ")
        outcomes.update(repr(answers[0]).encode())
        if rng.random() < 0.2:
            drained = [engine.drain_changes() for engine in engines]
            if drained[0] != drained[1]:
                raise SystemExit("two engines in one process drain differently")
            rows.update(repr(drained[0]).encode())
    print(hash("control"), outcomes.hexdigest(), rows.hexdigest(), engines[0].hash_kv())


if __name__ == "__main__":
    main()
