"""A setting: its name, the reader of its text, and its handling.

A setting has one name, spelled as etcd's flag (`listen-client-urls`). The flag, the environment variable
(`ETCD_LISTEN_CLIENT_URLS`), the key of a configuration file and the field of `Config` (`listen_client_urls`)
follow from it. Settings that have an effect here are the fields of `Config`; the others of etcd are in
`etcd_only_settings.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kvstore.configuration.go_values import (
    INT64_MAX,
    INT64_MIN,
    UINT64_MAX,
    parse_bool,
    parse_duration,
    parse_integer,
    split_host_port,
    split_url,
)


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line for the person who wrote it.

    `usage` is True when a flag or value could not even be read (exit code 2, as etcd's), and False
    when it was read and found wrong (exit code 1).
    """

    def __init__(self, text: str, *, usage: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.usage = usage


class Kind(Enum):
    """The syntax of a setting's text."""

    TEXT = "text"
    SWITCH = "switch"  # true or false
    COUNT = "count"  # an integer >= 0
    INTEGER = "integer"  # a signed 64-bit integer; as in Go, also 0x20000000 or 1_000_000
    DURATION = "duration"  # Go's form: 100ms, 5s, 2h45m
    URLS = "URLs"  # separated by commas
    CLUSTER = "members"  # name=url pairs, separated by commas
    LEVEL = "level"  # of log lines


class Group(Enum):
    """The headings of `--help` and of docs/configuration.md."""

    MEMBER = "Member"
    CLUSTERING = "Clustering"
    SECURITY = "Security"
    AUTH = "Auth"
    MONITORING = "Monitoring"
    LOGGING = "Logging"
    EXPERIMENTAL = "Experimental"
    UNSAFE = "Unsafe"


class Handling(Enum):
    """The effect of a setting here."""

    USED = "used"
    IGNORED = "ignored"  # accepted; a value other than etcd's default gets a warning
    REFUSED = "refused"  # accepted at its default only: ignoring it would be unsafe
    BOOTSTRAP = "bootstrap"  # as REFUSED at a first start; with data ignored, with a warning, as in etcd


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    name: str
    kind: Kind
    default: str
    """The text that stands for the default; empty where it follows from other settings."""
    group: Group
    help: str
    choices: tuple[str, ...] = ()
    handling: Handling = Handling.USED

    @property
    def variable(self) -> str:
        """The environment variable: ETCD_ and the name in upper case."""
        return "ETCD_" + self.name.upper().replace("-", "_")

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    def read(self, text: str) -> str | int | bool:
        """Parse the text of a flag, variable or key; ValueError with etcd's reason."""
        value = _READERS[self.kind](text)
        if self.choices and value not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        return value

    def check(self, value: object) -> None:
        """Raise ConfigError unless the value of the field of `Config` fits, as its text would have to.

        A program may have put there what no flag can hold: a number where a text is wanted, a negative count.
        """
        wanted = _TYPES.get(self.kind, str)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            types = f"must be {wanted.__name__}, not {type(value).__name__}"
            raise ConfigError(f"invalid value {value!r} for --{self.name}: {types}")
        if self.choices and value not in self.choices:
            raise ConfigError(f'invalid value "{value}" for --{self.name}')
        try:
            if not isinstance(value, bool):
                _READERS[self.kind](str(value))
        except ValueError as error:
            raise ConfigError(f'invalid value "{value}" for --{self.name}: {error}') from None


def _read_switch(text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        raise ValueError("parse error") from None


def _read_integer(text: str) -> int:
    return _flag_number(text, minimum=INT64_MIN, maximum=INT64_MAX)


def _read_count(text: str) -> int:
    return _flag_number(text, minimum=0, maximum=UINT64_MAX)


def _flag_number(text: str, *, minimum: int, maximum: int) -> int:
    """As Go's flag package, which names one error in words of its own."""
    try:
        return parse_integer(text, minimum=minimum, maximum=maximum)
    except ValueError as error:
        raise ValueError("value out of range" if "range" in str(error) else "parse error") from None


def _read_duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError:
        raise ValueError("parse error") from None
    return text


def duration_seconds(text: str) -> float:
    """A duration in Go's form, which `Setting.read` has validated, in seconds."""
    return parse_duration(text) / 1e9


def _read_level(text: str) -> str:
    """As zap reads it: in any case, and nothing means info."""
    return text.lower() or "info"


def _read_urls(text: str) -> str:
    if text:
        parse_urls(text)
    return text


def _read_text(text: str) -> str:
    return text


_READERS: dict[Kind, Callable[[str], str | int | bool]] = {
    Kind.TEXT: _read_text,
    Kind.SWITCH: _read_switch,
    Kind.COUNT: _read_count,
    Kind.INTEGER: _read_integer,
    Kind.DURATION: _read_duration,
    Kind.URLS: _read_urls,
    Kind.LEVEL: _read_level,
    Kind.CLUSTER: _read_text,  # etcd, too, reads it only once a new member is made of it
}

_TYPES: dict[Kind, type] = {Kind.SWITCH: bool, Kind.COUNT: int, Kind.INTEGER: int}
"""Of the fields of `Config`; the others are texts."""

PORT_MAX = 65535


@dataclass(frozen=True, slots=True, order=True)
class Url:
    """A URL of a listener or of a member: `scheme://host:port`. Port 0 lets the system choose."""

    scheme: str
    host: str
    """Without the brackets of an IPv6 address."""
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def address(self) -> str:
        """`host:port`, as gRPC and sockets print it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(text: str) -> Url:
    """Read one URL by etcd's rules (`client/pkg/types.NewURLs`). Raises ValueError.

    Refuses, unlike etcd, what it then could not serve or dial: unix sockets, no port or one beyond 65535, a
    user, a query or a fragment, and an IPv6 zone.
    """
    text = text.strip()
    scheme, host_port, path, is_plain = split_url(text)
    if scheme not in {"http", "https", "unix", "unixs"}:
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if scheme in {"unix", "unixs"}:
        raise ValueError(f"URL of a unix socket is not supported: {text}")
    address = split_host_port(host_port)
    if address is None:
        raise ValueError(f'URL address does not have the form "host:port": {text}')
    if path:
        raise ValueError(f"URL must not contain a path: {text}")
    host, port = address
    if not is_plain:
        raise ValueError(f"URL must not contain a user, a query or a fragment: {text}")
    if "%" in host:
        raise ValueError(f"URL with an IPv6 zone is not supported: {text}")
    if not port or int(port) > PORT_MAX:
        raise ValueError(f'invalid port ":{port}" after host: {text}')
    return Url(scheme, host, int(port))


def parse_urls(text: str) -> tuple[Url, ...]:
    """Read a comma-separated list of at least one URL; sorted, as etcd keeps them."""
    return tuple(sorted((parse_url(part) for part in text.split(",")), key=str))


def parse_cluster(text: str) -> dict[str, tuple[Url, ...]]:
    """Read `name=url,name=url`; a name may come several times, once per URL. Nothing between commas is left
    out, as in etcd.
    """
    found: dict[str, list[Url]] = {}
    for part in filter(None, text.split(",")):
        name, _, url = part.strip().partition("=")
        found.setdefault(name, []).append(parse_url(url))
    return {name: tuple(sorted(urls, key=str)) for name, urls in found.items()}
