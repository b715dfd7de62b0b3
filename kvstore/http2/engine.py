"""The HTTP/2 engine: frames, header compression, flow control and stream states, for either side.

The only module that imports ngh2 (libnghttp2). It does no I/O: bytes in by `receive_data`, what they meant by
`events`, bytes out by `data_to_send`. Everything else sees the protocol `Engine` and the event classes below,
so that another engine could be put in here.

What callers must know of it:

* `events` is to be taken after each `receive_data`. The peer's reset of a stream gives `StreamReset`, then
  `StreamClosed`; our own gives `StreamClosed` alone, once `data_to_send` was called.
* Nothing is credited by itself. Every byte of a `DataReceived` must be acknowledged once, also when its
  stream is closed by then, or the connection's window stays smaller for ever. Stream and connection are
  credited together, for no more than that stream received; a WINDOW_UPDATE leaves when half a window has
  been acknowledged. What arrives for a stream that was reset here is credited by the engine.
* `reset_stream` discards what waits in the engine for that stream, and goes out before it: call
  `data_to_send` first. A call that the server ends while the client's side is open must be reset
  (`NO_ERROR`) after that.
* The data of one stream goes out whole before the next stream's: pass long replies on in pieces.
* Requests beyond the peer's limit of streams wait inside. After a GOAWAY the peer opens no stream.
* A method that no longer finds its stream raises `EngineError`; so does everything after a fatal error, and
  (acknowledging too) once the connection is over: after a GOAWAY, when its last stream has closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import ngh2
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    Event,
    GoAwayReceived,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from ngh2 import NGH2Error as EngineError

__all__ = [
    "CANCEL",
    "ENHANCE_YOUR_CALM",
    "INTERNAL_ERROR",
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "REFUSED_STREAM",
    "ConnectionClosed",
    "DataReceived",
    "Engine",
    "EngineBounds",
    "EngineError",
    "Event",
    "GoAwayReceived",
    "Header",
    "PingAcknowledged",
    "RequestReceived",
    "ResponseReceived",
    "SettingsReceived",
    "StreamClosed",
    "StreamReset",
    "TrailersReceived",
    "WindowUpdated",
    "client_engine",
    "server_engine",
]

Header = tuple[bytes, bytes]
"""Name in lower case, value."""

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 2, 7, 8, 11
"""Codes of RST_STREAM and GOAWAY (RFC 9113, section 7)."""

PROTOCOL_WINDOW_BYTES = 65_535
"""Of a connection, and of streams until SETTINGS arrive (RFC 9113, section 6.9.2)."""

WINDOW_BYTES_MAX = 2**31 - 1


class Engine(Protocol):
    """One HTTP/2 connection. Methods raise EngineError."""

    def initiate_connection(self, settings: Mapping[int, int] | None = None) -> None:
        """Queue the preface and our SETTINGS."""

    def receive_data(self, data: bytes) -> None:
        """Bytes of the peer. After an error only `data_to_send` is of use, which may hold a GOAWAY."""

    def events(self) -> list[Event]:
        """What has happened since the last call, in order."""

    def data_to_send(self, amount: int | None = None) -> bytes:
        """Everything that may leave now, or at most so many bytes of it."""

    def send_request(self, headers: Iterable[Header], *, end_stream: bool = False) -> int:
        """Open a stream; returns its id."""

    def send_response(self, stream_id: int, headers: Iterable[Header], *, end_stream: bool = False) -> None:
        """The response's headers; with `end_stream` they are its trailers too."""

    def send_data(self, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
        """Queue a part of the body. It waits inside for the peer's window."""

    def send_trailers(self, stream_id: int, headers: Iterable[Header]) -> None:
        """End our side, after the data that waits."""

    def end_stream(self, stream_id: int) -> None:
        """End our side without trailers, after the data that waits."""

    def reset_stream(self, stream_id: int, error_code: int = CANCEL) -> None:
        """See the module."""

    def ping(self, opaque_data: bytes = bytes(8)) -> None: ...

    def send_goaway(
        self, error_code: int = NO_ERROR, *, last_stream_id: int | None = None, debug_data: bytes = b""
    ) -> None: ...

    def send_shutdown_notice(self) -> None:
        """GOAWAY with the last possible id: the peer opens no more streams; those on their way are served."""

    def acknowledge_received_data(self, amount: int, stream_id: int) -> None:
        """Credit bytes of a stream's `DataReceived`; at most as many as it received."""

    def set_local_window_size(self, window_size: int, *, stream_id: int = 0) -> None:
        """Of a stream, or (0) of the connection."""

    def queued_body_size(self, stream_id: int | None = None) -> int:
        """Bytes of data not yet taken by `data_to_send`, of a stream or of all."""

    @property
    def want_read(self) -> bool:
        """False once the connection is over: after an error, or after a GOAWAY and the last stream."""

    @property
    def want_write(self) -> bool:
        """Whether something may leave now."""

    @property
    def local_window_size(self) -> int:
        """Bytes that the peer may still send on this connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBounds:
    """What the engine allows its peer. Streams beyond the bound are refused; all else ends the connection."""

    streams: int = 16_384
    """Open at once. High, because calls that wait for a lock occupy one each, and an `Unlock` behind them
    must not wait for them; low enough that their windows fit into the connection's."""
    stream_window: int = PROTOCOL_WINDOW_BYTES
    """Bytes of a stream that may be received and not credited. A connection's window is twice what all its
    streams may hold: the engine announces credit in halves of a window, so with less than half of it free
    held streams would stop their siblings. Invariant: 2 * streams * stream_window < 2**31."""
    header_list_bytes: int = 64 * 1024
    """Of one request, uncompressed, with 32 bytes for each field: tokens of a few kilobytes exist."""
    header_fields: int = 256
    resets_burst: int = 20_000
    resets_per_second: int = 2_000
    """Of streams by a client: it may cancel all it has open at once, as when its own deadline passes. One
    costs about 20 us, so a client that opens and resets all the time is ended before it uses a core."""
    glitches_burst: int = 10_000
    glitches_per_second: int = 330
    """Frames that are legal, useless and suspicious, such as empty DATA (nghttp2's default)."""
    settings_entries: int = 32
    continuations: int = 8
    acknowledgements: int = 1_000
    """Of pings and SETTINGS that wait to leave: a peer that pings and never reads is ended."""

    def __post_init__(self) -> None:
        assert self.stream_window > 0
        assert self.connection_window <= WINDOW_BYTES_MAX

    @property
    def connection_window(self) -> int:
        return max(2 * self.streams * self.stream_window, PROTOCOL_WINDOW_BYTES)


def server_engine(bounds: EngineBounds) -> Engine:
    """The server's side of a connection, initiated."""
    settings = {
        int(ngh2.Setting.MAX_CONCURRENT_STREAMS): bounds.streams,
        int(ngh2.Setting.INITIAL_WINDOW_SIZE): bounds.stream_window,
        int(ngh2.Setting.MAX_HEADER_LIST_SIZE): bounds.header_list_bytes,
    }
    return _initiated(ngh2.Connection(ngh2.Role.SERVER, _configuration(bounds)), settings, bounds)


def client_engine(bounds: EngineBounds) -> Engine:
    """The client's side of a connection, initiated."""
    settings = {
        int(ngh2.Setting.ENABLE_PUSH): 0,
        int(ngh2.Setting.INITIAL_WINDOW_SIZE): bounds.stream_window,
        int(ngh2.Setting.MAX_HEADER_LIST_SIZE): bounds.header_list_bytes,
    }
    return _initiated(ngh2.Connection(ngh2.Role.CLIENT, _configuration(bounds)), settings, bounds)


def _initiated(engine: Engine, settings: Mapping[int, int], bounds: EngineBounds) -> Engine:
    engine.initiate_connection(settings)
    if bounds.connection_window > PROTOCOL_WINDOW_BYTES:
        engine.set_local_window_size(bounds.connection_window)
    return engine


def _configuration(bounds: EngineBounds) -> ngh2.Configuration:
    return ngh2.Configuration(
        auto_window_update=False,
        max_inbound_header_list_size=bounds.header_list_bytes,
        max_inbound_header_count=bounds.header_fields,
        stream_reset_rate_limit=(bounds.resets_burst, bounds.resets_per_second),
        glitch_rate_limit=(bounds.glitches_burst, bounds.glitches_per_second),
        max_settings=bounds.settings_entries,
        max_continuations=bounds.continuations,
        max_outbound_ack=bounds.acknowledgements,
    )
