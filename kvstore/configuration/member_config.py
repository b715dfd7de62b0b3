"""The configuration of one member: every setting that has an effect here, and its rules.

The fields of `Config` *are* the table of settings: each carries its kind, default, group and help, from which
flags, environment variables, file keys and documentation follow. Values keep their text form (a list of URLs
is one text with commas), so that `Config(name="a", data_dir=path, listen_client_urls="http://127.0.0.1:0")`
reads like the flags; properties give the parsed form.

Names, defaults, checks and their texts are those of etcd 3.5 (`server/embed/config.go`).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.configuration.config_setting import (
    ConfigError,
    Group,
    Handling,
    Kind,
    Setting,
    Url,
    duration_seconds,
    parse_cluster,
    parse_urls,
)
from kvstore.configuration.go_values import parse_duration, parse_integer, quote

DEFAULT_PEER_URL = "http://localhost:2380"
DEFAULT_CLIENT_URL = "http://localhost:2379"

# etcd's bounds: with fewer than five heartbeats in an election timeout one lost packet deposes a leader, and
# above 50 s a cluster stays without a leader for longer than operators wait.
ELECTION_TIMEOUT_MIN_HEARTBEATS = 5
ELECTION_TIMEOUT_MAX_MS = 50_000

REQUEST_BYTES_LIMIT = 10 * 1024 * 1024
"""Above this etcd warns (`recommendedMaxRequestBytes`). Here such a value is refused: a whole request must
fit into a segment of the log (16 MiB) and into a message between members."""

COMPACTION_ENTRIES_DEFAULT = 1024
"""The meaning of `snapshot_count` 0. etcd's default is a hundred times as many: there an entry is one
request, and a compaction copies the state; here an entry is a batch, and a compaction costs nothing."""

QUOTA_DEFAULT_BYTES = 2 * 1024 * 1024 * 1024
"""The meaning of `quota_backend_bytes` 0, as in etcd."""

PROGRESS_INTERVAL_S = 600.0
PROGRESS_INTERVAL_S_MIN = 0.1
"""Between two progress notifications: etcd's default and minimum."""

KEEPALIVE_INTERVAL_S = 2 * 60 * 60.0
KEEPALIVE_TIMEOUT_S = 20.0
"""Pings of clients' connections: etcd's defaults."""

PERIODIC, REVISION = "periodic", "revision"
"""The modes of auto compaction."""

RETENTION_SECONDS_MAX = 10 * 365 * 24 * 3600.0
"""Ten years: at most 876,000 samples are kept."""

LOG_LEVELS = ("debug", "info", "warn", "error", "dpanic", "panic", "fatal")
LOG_FORMATS = ("json", "console")


def _setting(
    kind: Kind,
    default: Any,
    group: Group,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    shown: str | None = None,
) -> Any:
    """A field of `Config` with its row of the table; `shown` is the default in documentation.

    Returns Any, as `dataclasses.field` does: the result serves as a value of the field's own type.
    """
    row = {"kind": kind, "group": group, "help": text, "choices": choices, "shown": shown}
    return dataclasses.field(default=default, metadata=row)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One member's configuration. Call `validate` before use; `kvstore.serve` does."""

    name: str = _setting(Kind.TEXT, "default", Group.MEMBER, "Name of this member, unique in the cluster.")
    data_dir: str | os.PathLike[str] = _setting(  # noqa: RUF009  a field specifier; its default is a text
        Kind.TEXT, "", Group.MEMBER, "Directory of everything the member stores.", shown="${name}.etcd"
    )
    heartbeat_interval: int = _setting(
        Kind.COUNT, 100, Group.MEMBER, "Milliseconds between two heartbeats of a leader."
    )
    election_timeout: int = _setting(
        Kind.COUNT,
        1000,
        Group.MEMBER,
        "Milliseconds without a leader before an election; at least 5 heartbeat intervals, at most 50 s.",
    )
    snapshot_count: int = _setting(
        Kind.COUNT,
        0,
        Group.MEMBER,
        "Entries of the log, each a batch of requests, between two compactions of it"
        f" (0 means {COMPACTION_ENTRIES_DEFAULT}).",
    )
    initial_election_tick_advance: bool = _setting(
        Kind.SWITCH,
        True,
        Group.MEMBER,
        "Campaign at a start as soon as a quorum is connected, instead of after an election timeout; a member"
        " that is the only one always does.",
        shown="true",
    )
    listen_peer_urls: str = _setting(
        Kind.URLS, DEFAULT_PEER_URL, Group.MEMBER, "URLs to listen on for the other members."
    )
    listen_client_urls: str = _setting(
        Kind.URLS, DEFAULT_CLIENT_URL, Group.MEMBER, "URLs to listen on for clients."
    )
    quota_backend_bytes: int = _setting(
        Kind.INTEGER,
        0,
        Group.MEMBER,
        "Bytes of data after which writes are refused until space is freed"
        " (0 means 2 GiB, a negative number no limit).",
    )
    max_txn_ops: int = _setting(
        Kind.COUNT, 128, Group.MEMBER, "Largest number of operations in a transaction."
    )
    max_request_bytes: int = _setting(
        Kind.COUNT, 1_572_864, Group.MEMBER, "Largest size of a client's request in bytes; at most 10 MiB."
    )
    grpc_keepalive_interval: str = _setting(
        Kind.DURATION,
        "2h",
        Group.MEMBER,
        "A client's connection on which nothing was received for so long is pinged; 0s means the default.",
    )
    grpc_keepalive_timeout: str = _setting(
        Kind.DURATION,
        "20s",
        Group.MEMBER,
        "Without anything received for so long after a ping, a client's connection is closed; 0s means the"
        " default.",
    )
    grpc_stack: str = _setting(
        Kind.TEXT,
        "ngh2",
        Group.MEMBER,
        "What speaks gRPC with clients and peers: ngh2, or grpcio, which is taken by itself where ngh2 cannot"
        " be imported; members of both form one cluster."
        " Not a setting of etcd.",
        choices=("ngh2", "grpcio"),
    )
    initial_advertise_peer_urls: str = _setting(
        Kind.URLS,
        "",
        Group.CLUSTERING,
        "URLs at which the other members reach this one; by default the listen-peer-urls.",
        shown=DEFAULT_PEER_URL,
    )
    initial_cluster: str = _setting(
        Kind.CLUSTER,
        "",
        Group.CLUSTERING,
        "The members that bootstrap a new cluster, as name=peer-url pairs; by default this member alone.",
        shown=f"default={DEFAULT_PEER_URL}",
    )
    initial_cluster_state: str = _setting(
        Kind.TEXT,
        "new",
        Group.CLUSTERING,
        "Whether a member without data bootstraps a new cluster or joins an existing one.",
        choices=("new", "existing"),
    )
    initial_cluster_token: str = _setting(
        Kind.TEXT,
        "etcd-cluster",
        Group.CLUSTERING,
        "Distinguishes clusters bootstrapped with the same members, so that they never mix.",
    )
    force_new_cluster: bool = _setting(
        Kind.SWITCH,
        False,
        Group.CLUSTERING,
        "After the permanent loss of a majority: make this member a new cluster of one, with its data.",
        shown="false",
    )
    strict_reconfig_check: bool = _setting(
        Kind.SWITCH,
        True,
        Group.CLUSTERING,
        "Refuse membership changes that might cost the cluster its quorum.",
        shown="true",
    )
    max_learners: int = _setting(
        Kind.COUNT, 1, Group.CLUSTERING, "Largest number of learners; MemberAdd refuses another."
    )
    advertise_client_urls: str = _setting(
        Kind.URLS,
        "",
        Group.CLUSTERING,
        "URLs at which clients reach this member; required with listen-client-urls.",
        shown=DEFAULT_CLIENT_URL,
    )
    auto_compaction_mode: str = _setting(
        Kind.TEXT,
        "periodic",
        Group.CLUSTERING,
        "How auto-compaction-retention counts: periodic (time) or revision.",
    )
    auto_compaction_retention: str = _setting(
        Kind.TEXT,
        "0",
        Group.CLUSTERING,
        "History to keep, compacted by the leader: a duration (a bare number is hours) or, in the mode"
        " revision, a number of revisions; 0 keeps all until a client compacts.",
    )
    listen_metrics_urls: str = _setting(
        Kind.URLS, "", Group.MONITORING, "URLs to listen on for /metrics, /health and /version."
    )
    watch_progress_notify_interval: str = _setting(
        Kind.DURATION,
        "10m",
        Group.EXPERIMENTAL,
        "Between two progress notifications of an idle watcher that requested them; at least 100ms.",
    )
    experimental_watch_progress_notify_interval: str = _setting(
        Kind.DURATION,
        "0s",
        Group.EXPERIMENTAL,
        "etcd 3.5's spelling of watch-progress-notify-interval; 0s leaves it to that one.",
    )
    enable_lease_checkpoint: bool = _setting(
        Kind.SWITCH,
        False,
        Group.EXPERIMENTAL,
        "Replicate the remaining TTL of leases longer than five minutes, so that a new leader does not"
        " restart them with their full TTL.",
        shown="false",
    )
    experimental_enable_lease_checkpoint: bool = _setting(
        Kind.SWITCH,
        False,
        Group.EXPERIMENTAL,
        "etcd 3.5's spelling of enable-lease-checkpoint; either switches it on.",
        shown="false",
    )
    snapshot_catchup_entries: int = _setting(
        Kind.COUNT,
        5000,
        Group.EXPERIMENTAL,
        "Entries of the log kept for a member that lags; one that needs older entries receives a snapshot.",
    )
    experimental_snapshot_catchup_entries: int = _setting(
        Kind.COUNT,
        0,
        Group.EXPERIMENTAL,
        "etcd 3.5's spelling of snapshot-catchup-entries; 0 leaves it to that one.",
    )
    log_level: str = _setting(
        Kind.LEVEL, "info", Group.LOGGING, "Least severe level that is logged.", choices=LOG_LEVELS
    )
    log_format: str = _setting(Kind.TEXT, "json", Group.LOGGING, "Form of a log line.", choices=LOG_FORMATS)
    log_outputs: str = _setting(
        Kind.TEXT,
        "default",
        Group.LOGGING,
        "Where log lines go, separated by commas: stderr (the default), stdout or names of files.",
    )

    @property
    def directory(self) -> Path:
        return Path(self.data_dir or f"{self.name}.etcd")

    @property
    def listen_peer(self) -> tuple[Url, ...]:
        return _listeners("listen-peer-urls", self.listen_peer_urls)

    @property
    def listen_client(self) -> tuple[Url, ...]:
        return _listeners("listen-client-urls", self.listen_client_urls)

    @property
    def listen_metrics(self) -> tuple[Url, ...]:
        """Where to listen for metrics and health; may be empty."""
        return _listeners("listen-metrics-urls", self.listen_metrics_urls) if self.listen_metrics_urls else ()

    @property
    def advertise_peer(self) -> tuple[Url, ...]:
        """Peer URLs announced to the other members; ports of 0 are still 0 here."""
        text = self.initial_advertise_peer_urls or self.listen_peer_urls
        return _urls("initial-advertise-peer-urls", text)

    @property
    def advertise_client(self) -> tuple[Url, ...]:
        """Client URLs announced to clients; ports of 0 are still 0 here."""
        return _urls("advertise-client-urls", self.advertise_client_urls or self.listen_client_urls)

    @property
    def joins_existing(self) -> bool:
        """Whether a member without data joins a running cluster instead of bootstrapping a new one."""
        return self.initial_cluster_state == "existing"

    @property
    def quota_bytes(self) -> int | None:
        """None for no limit."""
        if self.quota_backend_bytes < 0:
            return None
        return self.quota_backend_bytes or QUOTA_DEFAULT_BYTES

    @property
    def compaction_entries(self) -> int:
        """Entries between two compactions of the log; at least 1."""
        return self.snapshot_count or COMPACTION_ENTRIES_DEFAULT

    @property
    def catchup_entries(self) -> int:
        """Entries kept for members that lag; at least 1."""
        return max(1, self.experimental_snapshot_catchup_entries or self.snapshot_catchup_entries)

    @property
    def progress_interval_s(self) -> float:
        """Between two progress notifications of a watcher."""
        seconds = duration_seconds(self.experimental_watch_progress_notify_interval)
        if not seconds:
            seconds = duration_seconds(self.watch_progress_notify_interval)
        return max(seconds, PROGRESS_INTERVAL_S_MIN) if seconds > 0 else PROGRESS_INTERVAL_S

    @property
    def keepalive_interval_s(self) -> float:
        """A client's connection that is silent for so long is pinged."""
        seconds = duration_seconds(self.grpc_keepalive_interval)
        return seconds if seconds > 0 else KEEPALIVE_INTERVAL_S

    @property
    def keepalive_timeout_s(self) -> float:
        """For a ping to be answered."""
        seconds = duration_seconds(self.grpc_keepalive_timeout)
        return seconds if seconds > 0 else KEEPALIVE_TIMEOUT_S

    @property
    def retention(self) -> float:
        """History that auto compaction keeps, in seconds or revisions; 0: off. Raises ConfigError."""
        mode = self.auto_compaction_mode
        if mode not in ("", PERIODIC, REVISION):
            raise ConfigError(f'unknown auto-compaction-mode "{mode}"')
        try:
            return parse_retention(mode, self.auto_compaction_retention)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def initial_members(self) -> dict[str, tuple[Url, ...]]:
        """The members that bootstrap a new cluster, by name.

        Only for a member without data: one with data knows its cluster, and ignores `initial-cluster` and
        the rules here, as in etcd. Raises ConfigError when the name cannot stand in such a list, or the list
        does not name this member, or names a URL twice. Whether it gives this member the URLs that it
        advertises is for `kvstore.server.initial_cluster` to say, which can resolve names.
        """
        if not self.name or "," in self.name or "=" in self.name:
            raise ConfigError(
                f'--name "{self.name}" must be neither empty nor contain a comma or an equals sign'
            )
        if not self.initial_cluster:
            return {self.name: self.advertise_peer}
        try:
            members = parse_cluster(self.initial_cluster)
        except ValueError as error:
            raise ConfigError(f"error setting up initial cluster: {error}") from None
        if self.name not in members:
            raise ConfigError(f'couldn\'t find local name "{self.name}" in the initial cluster configuration')
        listed = sorted(str(url) for urls in members.values() for url in urls)
        if len(set(listed)) < len(listed):
            raise ConfigError(f"initial cluster {self.initial_cluster} has duplicate url")
        return members

    def validate(self) -> None:
        """Raise ConfigError, in etcd's words, at the first rule that is broken.

        These rules hold at every start. Those of a first start are in `initial_members`.
        """
        for row in SETTINGS:
            value = getattr(self, row.field)
            is_path = row.field == "data_dir" and isinstance(value, os.PathLike)
            row.check(os.fspath(value) if is_path else value)
        for url in (*self.listen_peer, *self.listen_client, *self.listen_metrics):
            _check_listener(url)
        _check_hosts("initial-advertise-peer-urls", self.advertise_peer)
        _check_hosts("advertise-client-urls", self.advertise_client)
        self._validate_timers()
        _ = self.retention
        if self.max_txn_ops < 1:
            raise ConfigError(f"--max-txn-ops must be >0 (set to {self.max_txn_ops})")
        if self.max_request_bytes < 1:
            raise ConfigError(f"--max-request-bytes must be >0 (set to {self.max_request_bytes})")
        if self.max_request_bytes > REQUEST_BYTES_LIMIT:
            raise ConfigError(
                f"--max-request-bytes must be at most {REQUEST_BYTES_LIMIT}, so that a request fits into the"
                f" log (set to {self.max_request_bytes})"
            )

    def _validate_timers(self) -> None:
        heartbeat, election = self.heartbeat_interval, self.election_timeout
        if heartbeat <= 0:
            raise ConfigError(f"--heartbeat-interval must be >0 (set to {heartbeat}ms)")
        if election <= 0:
            raise ConfigError(f"--election-timeout must be >0 (set to {election}ms)")
        if ELECTION_TIMEOUT_MIN_HEARTBEATS * heartbeat > election:
            raise ConfigError(
                f"--election-timeout[{election}ms] should be at least as"
                f" {ELECTION_TIMEOUT_MIN_HEARTBEATS} times as --heartbeat-interval[{heartbeat}ms]"
            )
        if election > ELECTION_TIMEOUT_MAX_MS:
            raise ConfigError(
                f"--election-timeout[{election}ms] is too long,"
                f" and should be set less than {ELECTION_TIMEOUT_MAX_MS}ms"
            )


def parse_retention(mode: str, text: str) -> float | int:
    """Seconds for the periodic mode, revisions for the other; 0: off.

    A bare number is hours or revisions, anything else a duration as Go writes it. Raises ValueError
    with etcd's words.
    """
    try:
        count = parse_integer(text or "0", 10)
    except ValueError:
        count = -1
    seconds = count * 3600.0
    if count < 0:
        try:
            count = parse_duration(text)  # etcd's retention is one number of nanoseconds in either mode
        except ValueError as error:
            raise ValueError(f"error parsing CompactionRetention: {error}") from None
        seconds = count / 1e9
    if count < 0:
        raise ValueError(f"error parsing CompactionRetention: {text} is negative")
    if count and not mode:
        raise ValueError("--auto-compaction-mode is undefined")
    if mode == REVISION:
        return count
    if seconds > RETENTION_SECONDS_MAX:
        raise ValueError(f"error parsing CompactionRetention: {text} is more than ten years")
    return seconds


def _listeners(name: str, text: str) -> tuple[Url, ...]:
    """Each URL once: what is given twice is listened on once."""
    return tuple(dict.fromkeys(_urls(name, text)))


def _urls(name: str, text: str) -> tuple[Url, ...]:
    try:
        return parse_urls(text)
    except ValueError as error:
        raise ConfigError(f'invalid value "{text}" for --{name}: {error}') from None


def _check_hosts(name: str, urls: tuple[Url, ...]) -> None:
    for url in urls:
        if not url.host:
            given = quote(",".join(map(str, urls)))
            raise ConfigError(f'--{name} {given} must be "host:port" (unexpected empty host ({url}))')


def _check_listener(url: Url) -> None:
    """A listener binds to an address, never to a name, which may resolve to another address later."""
    if url.scheme == "https":
        raise ConfigError(f"TLS is not supported, so this URL cannot be served ({url})")
    if url.host == "localhost":
        return
    try:
        ipaddress.ip_address(url.host)
    except ValueError:
        raise ConfigError(f"expected IP in URL for binding ({url})") from None


def _row(field: dataclasses.Field[Any]) -> Setting:
    data = field.metadata
    shown = data["shown"]
    return Setting(
        name=field.name.replace("_", "-"),
        kind=data["kind"],
        default=str(field.default) if shown is None else shown,
        group=data["group"],
        help=data["help"],
        choices=data["choices"],
        handling=Handling.USED,
    )


SETTINGS: tuple[Setting, ...] = tuple(_row(field) for field in dataclasses.fields(Config))
"""The settings that have an effect here, in the order of documentation."""
