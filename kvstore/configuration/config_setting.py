"""A setting: its name, the reader of its text, and its handling.

A setting has one name, spelled as etcd's flag (`listen-client-urls`). The flag, the environment variable
(`ETCD_LISTEN_CLIENT_URLS`), the key of a configuration file and the field of `Config` (`listen_client_urls`)
follow from it. Settings that have an effect here are the fields of `Config`; the others of etcd are in
`etcd_only_settings.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


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
    INTEGER = "integer"  # a signed 64-bit integer
    DURATION = "duration"  # Go's form: 100ms, 5s, 2h45m
    URLS = "URLs"  # separated by commas
    CLUSTER = "members"  # name=url pairs, separated by commas


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
        if self.choices and text not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        return _READERS[self.kind](text)


_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_INT64_MAX = 2**63 - 1
_UINT64_MAX = 2**64 - 1
_DURATION = re.compile(r"[-+]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+)")


def _read_switch(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("parse error")


def _read_integer(text: str) -> int:
    if not re.fullmatch(r"[-+]?\d+", text, re.ASCII):
        raise ValueError("parse error")
    value = int(text)
    if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
        raise ValueError("value out of range")
    return value


def _read_count(text: str) -> int:
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise ValueError("parse error")
    value = int(text)
    if value > _UINT64_MAX:
        raise ValueError("value out of range")
    return value


def _read_duration(text: str) -> str:
    if not _DURATION.fullmatch(text):
        raise ValueError("parse error")
    return text


_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_seconds(text: str) -> float:
    """A duration in Go's form, which `Setting.read` has validated, in seconds."""
    parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", text, re.ASCII)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return -seconds if text.startswith("-") else seconds


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
    Kind.CLUSTER: _read_text,  # etcd, too, reads it only once a new member is made of it
}

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
    """Read one URL by etcd's rules (`client/pkg/types.NewURLs`). Raises ValueError."""
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in {"http", "https", "unix", "unixs"}:
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if scheme in {"unix", "unixs"}:
        raise ValueError(f"URL of a unix socket is not supported: {text}")
    address, slash, _ = rest.partition("/")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]*)\]|([^:\[\]@?#\s]*)):(.*)", address)
    if match is None:
        raise ValueError(f'URL address does not have the form "host:port": {text}')
    bracketed, plain, port = match.groups()
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > PORT_MAX:
        raise ValueError(f'invalid port ":{port}" after host: {text}')
    if slash:
        raise ValueError(f"URL must not contain a path: {text}")
    return Url(scheme, bracketed if bracketed is not None else plain, int(port))


def parse_urls(text: str) -> tuple[Url, ...]:
    """Read a comma-separated list of at least one URL; sorted, as etcd keeps them."""
    return tuple(sorted(parse_url(part) for part in text.split(",")))


def parse_cluster(text: str) -> dict[str, tuple[Url, ...]]:
    """Read `name=url,name=url`; a name may come several times, once per URL."""
    found: dict[str, list[Url]] = {}
    for part in text.split(","):
        name, _, url = part.strip().partition("=")
        found.setdefault(name, []).append(parse_url(url))
    return {name: tuple(sorted(urls)) for name, urls in found.items()}
