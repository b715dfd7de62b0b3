"""Cost of applying commands, of holding and of loading them: CPU time per operation, one thread.

    python -m bench.engine_apply [--keys 1000000]

Figures are medians of several rounds of process time; docs/decisions/0002-engine-layout.md has them.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

from kvstore.engine import Compact, DeleteRange, Engine, Put, Range, Txn, encode
from kvstore.engine.record import row_key

VALUE = bytes(256)
BATCH = 64
ROUNDS = 5
DRAIN_BYTES = 32 << 20
LOAD_CHUNK = 10_000
OPERATIONS = 20_000


def measure(name: str, operations: int, work: Callable[[], object], rounds: int = 1) -> None:
    costs = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        costs.append((time.process_time() - start) * 1e6 / operations)
    print(f"{name:<46} {statistics.median(costs):8.2f} us  [{min(costs):.2f}..{max(costs):.2f}]")


def apply_all(engine: Engine, commands: list[bytes], wanted: bool) -> None:
    for start in range(0, len(commands), BATCH):
        engine.apply(1, 1, commands[start : start + BATCH], wanted)


def _apply_afresh(commands: list[bytes], wanted: bool) -> None:
    apply_all(Engine(), commands, wanted)


def bench_apply() -> None:
    rng = random.Random(1)
    keys = [b"key%012d" % rng.randrange(10**9) for _ in range(OPERATIONS)]
    puts = [encode(Put(key, VALUE)) for key in keys]
    with_prev = [encode(Put(key, VALUE, prev_kv=True)) for key in keys]
    txns = [encode(Txn((), (Put(key, VALUE), Range(key)))) for key in keys]
    deletes = [encode(DeleteRange(key)) for key in keys]
    print(f"# batches of {BATCH}, {OPERATIONS} operations, 256 B values")
    for wanted in (False, True):
        who = "outcome wanted" if wanted else "follower"
        measure(f"put, new key, {who}", OPERATIONS, partial(_apply_afresh, puts, wanted), ROUNDS)
        engine = Engine()
        apply_all(engine, puts, False)
        measure(f"put, overwrite, {who}", OPERATIONS, partial(apply_all, engine, puts, wanted), ROUNDS)
    engine = Engine()
    apply_all(engine, puts, False)
    measure(
        "put with prev_kv, outcome wanted", OPERATIONS, lambda: apply_all(engine, with_prev, True), ROUNDS
    )
    measure("txn of put and range, outcome wanted", OPERATIONS, lambda: apply_all(engine, txns, True), ROUNDS)
    reads = [Range(key) for key in keys]
    measure("get", OPERATIONS, lambda: [engine.range(read) for read in reads], ROUNDS)
    measure("drain, per change", 4 * ROUNDS * OPERATIONS, engine.drain_changes)
    measure("compact and sweep, per record", OPERATIONS * ROUNDS * 2, lambda: compact(engine))
    measure("delete of one key, follower", OPERATIONS, lambda: apply_all(engine, deletes, False))


def compact(engine: Engine) -> None:
    engine.apply(1, 1, [encode(Compact(engine.revision, physical=True))], False)


def bench_million(keys: int) -> None:
    print(f"# {keys} keys of 256 B")
    before = resident_bytes()
    engine = Engine()
    fill(engine, keys)
    held = resident_bytes() - before
    print(f"resident {held / keys:.0f} B a key, logical {engine.logical_bytes / keys:.0f} B a key")
    start = time.process_time()
    gc.collect()
    print(f"full collection {1e3 * (time.process_time() - start):.0f} ms")
    some, everything = Range(b"\0", b"\0", limit=10), Range(b"\0", b"\0")
    measure("range of 10 of all keys", 1000, lambda: [engine.range(some) for _ in range(1000)])
    measure("range of all keys, per key", keys, lambda: engine.range(everything))
    current = engine._store.current  # the state as the backend would return it
    rows = sorted((row_key(key, record), record) for key, record in current.items())
    rows.append((b"s", dict(engine.drain_changes())[b"s"] or b""))
    gc.disable()
    start = time.process_time()
    loaded = Engine()
    for first in range(0, len(rows), LOAD_CHUNK):
        loaded.load(rows[first : first + LOAD_CHUNK])
    loaded.load_done()
    print(f"load of the backend {time.process_time() - start:.2f} s for {loaded.key_count} keys")


def fill(engine: Engine, keys: int) -> None:
    """Put so many new keys in random order, draining as a node would."""
    order = list(range(keys))
    random.Random(2).shuffle(order)
    gc.disable()
    start = time.process_time()
    for first in range(0, keys, BATCH):
        commands = [encode(Put(b"key%012d" % number, VALUE)) for number in order[first : first + BATCH]]
        engine.apply(1, 1, commands, False)
        if engine.pending_change_bytes() > DRAIN_BYTES:
            engine.drain_changes()
    engine.drain_changes()
    engine.apply(1, 1, [encode(Put(b"key%012d" % 0, VALUE))], False)  # leaves a state row to drain
    spent = (time.process_time() - start) * 1e6 / keys
    print(f"put in random order, encoding and draining too {spent:.2f} us a key")
    gc.enable()


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=0, help="also fill a store with so many keys")
    options = parser.parse_args()
    bench_apply()
    if options.keys:
        bench_million(options.keys)


if __name__ == "__main__":
    main()
