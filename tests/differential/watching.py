"""Watches in programs: several watchers on several streams, compared event by event.

Both sides see a request only after both have answered the one before, so what each watcher must get is
known: a control watcher over all keys shows it. A program ends when every watcher has got what the control
says, or has had time enough. Compared are the answers to each create and cancel, and each watcher's events
as one list; how many revisions a catch-up packs into one response is open, but none may be split.

etcd looks at watchers that start in the past only ten times a second. So nothing that would change what they
get (a compaction, a cancel) happens before both sides have had that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import grpc.aio
from google.protobuf import text_format

from bench import rpc
from kvstore.wire import kv_pb2, rpc_pb2
from tests.differential.context import NoAnswer
from tests.differential.programs import BASE, NOW, Generator, Step, number_of

STREAMS = 2
ANSWER_SECONDS_MAX = 10.0
"""For what must come: long, since a busy machine is no difference."""
EVENTS_SECONDS_MAX = 3.0
"""For events that the control has seen."""
ETCD_LOOP_SECONDS = 0.25
"""etcd's pace with watchers that start in the past is 0.1 s; twice that, and some."""

LOST_TOMBSTONE = "a watch that starts at the compacted revision"
"""etcd 3.5.1 forgets it; later ones show it to a watch that starts there, as this store does."""

Create = rpc_pb2.WatchCreateRequest
Response = rpc_pb2.WatchResponse
Event = kv_pb2.Event


class CreateWatch(NamedTuple):
    """Begin a watch; the start revision may be a symbol."""

    label: int
    stream: int
    request: Create

    def __str__(self) -> str:
        said = text_format.MessageToString(self.request, as_one_line=True)
        return f"watch {self.label} on stream {self.stream} {{ {said}}}"


class CancelWatch(NamedTuple):
    """End a watch, or one that never was."""

    label: int
    stream: int

    def __str__(self) -> str:
        return f"cancel watch {self.label} on stream {self.stream}"


class AskProgress(NamedTuple):
    """Ask one stream how far it is, once it has nothing left to deliver."""

    stream: int

    def __str__(self) -> str:
        return f"progress of stream {self.stream}"


WatchAction = CreateWatch | CancelWatch | AskProgress


def draw_create(generator: Generator) -> Step:
    """A watch with every option there is."""
    draw, options = generator.random, ["watch"]
    key, range_end, kind = generator.interval()
    if kind == "empty" and generator.happens(0.3):
        key, range_end, kind = generator.key(), b"", "single"
    request = Create(key=key, range_end=range_end)
    options.append(f"watch {kind}")

    def has(probability: float, option: str) -> bool:
        chosen = generator.happens(probability)
        if chosen:
            options.append(f"watch {option}")
        return chosen

    if has(0.3, "start in the past"):
        request.start_revision = NOW - draw.randrange(10)
    elif has(0.08, "start at the current revision"):
        request.start_revision = NOW
    elif has(0.1, "start in the future"):
        request.start_revision = NOW + draw.choice((1, 2, 5))
    elif has(0.12, "start compacted"):
        request.start_revision = BASE - 200
    if has(0.35, "prev_kv"):
        request.prev_kv = True
    if has(0.12, "filter puts"):
        request.filters.append(Create.NOPUT)
    if has(0.12, "filter deletes"):
        request.filters.append(Create.NODELETE)
    if has(0.15, "own id"):
        request.watch_id = draw.choice((1, 7, 7, 7, 1 << 40))
    if has(0.1, "fragment"):
        request.fragment = True
    if has(0.1, "progress_notify"):
        request.progress_notify = True
    if has(0.06, "without key"):
        request.key = b""
    generator.labels += 1
    return Step(CreateWatch(generator.labels, draw.randrange(STREAMS), request), tuple(options))


def draw_cancel(generator: Generator) -> Step:
    """Mostly of a watch that exists."""
    label = generator.random.randrange(1, max(2, generator.labels + 1))
    return Step(CancelWatch(label, generator.random.randrange(STREAMS)), ("watch cancel",))


def draw_progress(generator: Generator) -> Step:
    return Step(AskProgress(generator.random.randrange(STREAMS)), ("watch progress",))


OPTIONS = frozenset(
    ["watch", "watch cancel", "watch progress"]
    + [f"watch {kind}" for kind in ("single", "half-open", "prefix", "from-key", "all", "empty")]
    + [
        f"watch start {when}"
        for when in ("in the past", "at the current revision", "in the future", "compacted")
    ]
    + [f"watch {what}" for what in ("prev_kv", "filter puts", "filter deletes", "own id", "fragment")]
    + ["watch progress_notify", "watch without key"]
)


@dataclass(slots=True)
class Watcher:
    """One watch on one side."""

    id: int
    events: list[Event] = field(default_factory=list)
    fragmented: bool = False
    """The last response ended within a revision, and said so."""

    @property
    def revision(self) -> int:
        return self.events[-1].kv.mod_revision if self.events else 0


class Stream:
    """One watch stream to one member of one side, read to its end by a task of its own."""

    def __init__(self, store: rpc.Store, changed: asyncio.Event) -> None:
        self._call = store.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=rpc_pb2.WatchRequest.SerializeToString,
            response_deserializer=Response.FromString,
        )()
        self.watchers: dict[int, Watcher] = {}
        """By id, those that are not cancelled."""
        self.answers: asyncio.Queue[Response] = asyncio.Queue()
        """Everything that carries no events."""
        self.faults: list[str] = []
        """Violations that no server may show on a watch stream."""
        self._changed = changed
        """Set whenever something came."""
        self._reader = asyncio.get_running_loop().create_task(self._read(aiter(self._call)))

    async def send(self, **request: Any) -> None:
        await self._call.write(rpc_pb2.WatchRequest(**request))

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.wait([self._reader])
        if not self._reader.cancelled():
            self._reader.result()

    async def _read(self, responses: AsyncIterator[Response]) -> None:
        try:
            async for response in responses:
                if response.events:
                    self._take(response)
                else:
                    if response.canceled:
                        self.watchers.pop(response.watch_id, None)
                    elif response.created:  # its events may follow at once
                        self.watchers[response.watch_id] = Watcher(response.watch_id)
                    self.answers.put_nowait(response)
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self.faults.append(f"the stream ended with {error.code().name}: {error.details()}")
        except asyncio.CancelledError:  # `close` cancelled the call
            return

    def _take(self, response: Response) -> None:
        watcher = self.watchers.get(response.watch_id)
        if watcher is None:
            self.faults.append(f"events for watch {response.watch_id}, which does not exist")
            return
        revisions = [event.kv.mod_revision for event in response.events]
        if revisions != sorted(revisions):
            self.faults.append(f"revisions out of order: {revisions}")
        if watcher.events and revisions[0] < watcher.revision + (not watcher.fragmented):
            self.faults.append(f"revision {revisions[0]} after {watcher.revision}: repeated or split in two")
        if response.header.revision < revisions[-1]:
            self.faults.append(f"header of revision {response.header.revision} over event of {revisions[-1]}")
        watcher.fragmented = response.fragment
        watcher.events.extend(response.events)


@dataclass(slots=True)
class _Pair:
    """One watch of the program on both sides."""

    request: Create
    """With its start as a number; 0 for none."""
    begins: int
    """First revision it may see."""
    created_at: float
    sides: list[Watcher]
    stream: int
    label: int
    ends: int | None = None
    """Cancelled when this was the newest revision."""

    @property
    def reads_the_past(self) -> bool:
        return bool(self.request.start_revision)


class Watching:
    """All watches of one program, on both sides."""

    def __init__(self, stores: list[rpc.Store], compacted: int, events: Counter[str]) -> None:
        self._stores = stores
        self._streams: dict[int, list[Stream]] = {}
        """By number of the program's stream; the control's is -1."""
        self._pairs: list[_Pair] = []
        self.compacted = compacted
        """Newest revision that history was compacted at."""
        self._compactions: list[int] = [compacted]
        self._counts = events
        self._control: list[Watcher] = []
        self._began = 0
        """Newest revision when the control watchers were opened."""
        self._changed = asyncio.Event()

    async def begin(self, now: int) -> str | None:
        """Open the control watchers."""
        self._began = now
        request = Create(key=b"\x00", range_end=b"\x00", prev_kv=True, start_revision=now + 1)
        streams = self._stream(-1)
        for stream in streams:
            await stream.send(create_request=request)
        answers = [await asyncio.wait_for(one.answers.get(), ANSWER_SECONDS_MAX) for one in streams]
        self._control = [one.watchers[0] for one in streams]
        return self._differs("control watch", answers)

    def _stream(self, number: int) -> list[Stream]:
        if number not in self._streams:
            self._streams[number] = [Stream(store, self._changed) for store in self._stores]
        return self._streams[number]

    async def act(self, action: WatchAction, now: int, base: int) -> str | None:
        """Perform one step on both sides; what differs, in words."""
        if isinstance(action, CreateWatch):
            return await self._create(action, now, base)
        if isinstance(action, CancelWatch):
            return await self._cancel(action, now)
        return await self._progress(action, now)

    async def _create(self, action: CreateWatch, now: int, base: int) -> str | None:
        request = Create.FromString(action.request.SerializeToString())
        if request.start_revision:
            request.start_revision = number_of(request.start_revision, now, base)
        streams = self._stream(action.stream)
        for stream in streams:
            await stream.send(create_request=request)
        answers = await self._answers(streams)
        found = self._differs(str(action), answers)
        if found is not None or answers[0].canceled:
            return found
        watch_id = answers[0].watch_id
        sides = [stream.watchers.get(watch_id) for stream in streams]
        start = request.start_revision
        if 0 < start < self.compacted:
            cancelled = await self._answers(streams)
            return self._differs(f"{action}: behind the compaction", cancelled)
        assert all(side is not None for side in sides)
        self._pairs.append(
            _Pair(
                request=request,
                begins=start or now + 1,
                created_at=time.monotonic(),
                sides=[side for side in sides if side is not None],
                stream=action.stream,
                label=action.label,
            )
        )
        return None

    async def _cancel(self, action: CancelWatch, now: int) -> str | None:
        pair = next((one for one in self._pairs if one.label == action.label and one.ends is None), None)
        if pair is None:
            return None  # an unknown id is not answered, so there is nothing to wait for
        await self._catch_up([pair], now)
        streams = self._streams[pair.stream]
        for stream in streams:
            await stream.send(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=pair.sides[0].id))
        pair.ends = now
        return self._differs(str(action), await self._answers(streams))

    async def _progress(self, action: AskProgress, now: int) -> str | None:
        pairs = [one for one in self._pairs if one.stream == action.stream and one.ends is None]
        if not pairs or any(one.request.start_revision > now for one in pairs):
            return None  # releases differ in whether they answer then, see README.md
        await self._catch_up(pairs, now)
        streams = self._streams[action.stream]
        for stream in streams:
            await stream.send(progress_request=rpc_pb2.WatchProgressRequest())
        return self._differs(str(action), await self._answers(streams))

    async def catch_up(self, now: int) -> None:
        """Let every watch have what is there for it: before a compaction, which would take from etcd what
        its watchers of the past have not looked at, and the pair before each event."""
        await self._catch_up([one for one in self._pairs if one.ends is None], now)

    async def resume(self, now: int) -> None:
        """Open all streams and watches anew, each where it stood: their member was restarted."""
        streams, self._streams = self._streams, {}
        for old in streams.values():
            for stream in old:
                await stream.close()
        control = Create(key=b"\x00", range_end=b"\x00", prev_kv=True)
        await self._resume_one(-1, control, self._control, now + 1)
        for pair in self._pairs:
            if pair.ends is None:
                await self._resume_one(pair.stream, pair.request, pair.sides, max(pair.begins, now + 1))

    async def _resume_one(self, number: int, request: Create, sides: list[Watcher], start: int) -> None:
        streams = self._stream(number)
        again = Create.FromString(request.SerializeToString())
        again.start_revision = start
        for stream in streams:
            await stream.send(create_request=again)
        answers = await self._answers(streams)
        for stream, side, answer in zip(streams, sides, answers, strict=True):
            fresh = stream.watchers[answer.watch_id]
            side.events.extend(fresh.events)
            side.id, side.fragmented = answer.watch_id, fresh.fragmented
            stream.watchers[answer.watch_id] = side

    def compacts(self, revision: int) -> None:
        """A compaction succeeded."""
        self.compacted = max(self.compacted, revision)
        self._compactions.append(revision)

    async def _answers(self, streams: list[Stream]) -> list[Response]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return [await stream.answers.get() for stream in streams]
        except TimeoutError:
            waiting = [stream.answers.qsize() for stream in streams]
            raise NoAnswer(f"a watch stream did not answer, answers waiting: {waiting}") from None

    async def _catch_up(self, pairs: list[_Pair], now: int) -> None:
        """Wait until these watchers have got all that the control has, and the control all up to `now`."""
        if now > self._began:
            await self._until(lambda: all(one.revision >= now for one in self._control))
        for pair in pairs:
            last = self._last_expected(pair, now)
            if last:
                await self._until(partial(_have_come, pair.sides, last))
            elif pair.reads_the_past:
                rest = pair.created_at + ETCD_LOOP_SECONDS - time.monotonic()
                await asyncio.sleep(max(0.0, rest))

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on what the streams brought, within bounds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVENTS_SECONDS_MAX):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def _last_expected(self, pair: _Pair, now: int) -> int:
        """The newest revision that concerns a watch, as far as the control has seen it; 0 for none."""
        for event in reversed(self._control[0].events):
            if event.kv.mod_revision < pair.begins:
                break
            if event.kv.mod_revision <= now and concerns(pair.request, event):
                return int(event.kv.mod_revision)
        return 0

    async def complete(self, now: int) -> str | None:
        """Wait for what is still to come, and compare everything."""
        await self.catch_up(now)
        return self._verdict()

    async def close(self) -> None:
        """End all streams."""
        for streams in self._streams.values():
            for stream in streams:
                await stream.close()

    def _verdict(self) -> str | None:
        for number, streams in self._streams.items():
            for name, stream in zip(("left", "right"), streams, strict=True):
                if stream.faults:
                    return f"stream {number}, {name}: {stream.faults[0]}"
                if not stream.answers.empty():
                    return f"stream {number}, {name}: unasked for: {stream.answers.get_nowait()}"
        found = self._compare("the control watch", self._control)
        for pair in self._pairs:
            said = text_format.MessageToString(pair.request, as_one_line=True)
            found = found or self._compare(f"watch {pair.label} {{ {said}}}", pair.sides)
        return found

    def _compare(self, what: str, sides: list[Watcher]) -> str | None:
        left, right = (list(side.events) for side in sides)
        self._counts["watch events"] += len(left)
        position = 0
        for position, event in enumerate(right):
            if position < len(left) and self._same(left[position], event):
                continue
            if self._is_lost_tombstone(event) and (position >= len(left) or left[position] != event):
                left.insert(position, event)
                self._counts[f"kept difference: {LOST_TOMBSTONE}"] += 1
                continue
            break
        else:
            if len(left) == len(right):
                return None
            position = len(right)
        one = _show(left[position]) if position < len(left) else "nothing"
        other = _show(right[position]) if position < len(right) else "nothing"
        return f"{what}, event {position}\n   left {one}\n  right {other}"

    def _same(self, left: Event, right: Event) -> bool:
        if left == right:
            return True
        # etcd reads the earlier pair when it sends the event, and a compaction may come in between.
        without = Event.FromString(right.SerializeToString())
        without.ClearField("prev_kv")
        return left == without and right.kv.mod_revision - 1 < self.compacted

    def _is_lost_tombstone(self, event: Event) -> bool:
        return event.type == Event.DELETE and event.kv.mod_revision in self._compactions

    def _differs(self, what: str, answers: list[Response]) -> str | None:
        left, right = (_normal_answer(one) for one in answers)
        if left == right:
            return None
        shown = [text_format.MessageToString(one, as_one_line=True) for one in (left, right)]
        return f"{what}\n   left {shown[0]}\n  right {shown[1]}"


def _have_come(sides: list[Watcher], revision: int) -> bool:
    return all(side.revision >= revision for side in sides)


def concerns(request: Create, event: Event) -> bool:
    """Whether a watch is for this event, its start aside."""
    unwanted = Create.NOPUT if event.type == Event.PUT else Create.NODELETE
    if unwanted in request.filters:
        return False
    key, low, high = event.kv.key, request.key or b"\x00", request.range_end
    if not high:
        return bool(key == low)
    return bool(key >= low and (high == b"\x00" or key < high))


def _normal_answer(answer: Response) -> Response:
    copy = Response.FromString(answer.SerializeToString())
    for name in ("cluster_id", "member_id", "raft_term"):
        copy.header.ClearField(name)
    return copy


def _show(event: Event) -> str:
    return str(text_format.MessageToString(event, as_one_line=True))
