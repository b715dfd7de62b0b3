"""Log lines of the loggers `raft` and `kvstore`, for people (console) and for machines (JSON).

The packages only write to their loggers; an embedding program sees the lines through its own handlers.
`configure` is for a server process: it installs handlers on those two loggers, never on the root logger, and
returns the `Handlers` that remove them again.

Each key of `extra=` becomes a field of the line, `node`, `term` and `role` first:
`log.info("became leader", extra={"node": "a", "term": 7, "role": "leader"})`.
The JSON form is etcd's (level, ts, caller, msg), which tools already read.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime

LOGGERS = ("raft", "kvstore")

# A cluster in trouble logs the same line at every tick. Five show the pattern; one per period shows that it
# lasts.
REPEATS_MAX = 5
REPEATS_PERIOD_S = 10.0
# The code has a few hundred log statements. The bound only guards against generated messages.
REPEAT_KEYS_MAX = 1024

_LEADING_FIELDS = ("node", "term", "role")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "repeated"}

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "dpanic": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}


class RepeatLimit(logging.Filter):
    """Passes a message `REPEATS_MAX` times per period, then counts.

    Two messages are the same when logger, level and unformatted text are. The first one that passes after
    others were dropped carries their number as the field `repeated`.
    """

    def __init__(self) -> None:
        super().__init__()
        # key -> (start of the period on the records' clock in seconds, passed in it, dropped in it); oldest
        # first
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, str(record.msg))
        start, passed, held = self._seen.get(key, (record.created, 0, 0))
        if not 0 <= record.created - start < REPEATS_PERIOD_S:
            self._seen.pop(key, None)
            if held:
                record.repeated = held
            start, passed, held = record.created, 0, 0
        pass_on = passed < REPEATS_MAX
        self._seen[key] = (start, passed + 1, held) if pass_on else (start, passed, held + 1)
        if len(self._seen) > REPEAT_KEYS_MAX:
            self._seen.popitem(last=False)
        return pass_on


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    given = vars(record)
    for name in _LEADING_FIELDS:
        if name in given:
            yield name, given[name]
    for name, value in given.items():
        if name not in _STANDARD and name not in _LEADING_FIELDS:
            yield name, value
    if "repeated" in given:
        yield "repeated", given["repeated"]


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with etcd's names."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "level": _NAMES.get(record.levelno, "info"),
            "ts": _timestamp(record),
            "logger": record.name,
            "caller": f"{record.filename}:{record.lineno}",
            "msg": record.getMessage(),
        }
        for name, value in _fields(record):
            line.setdefault(name, value)
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ConsoleFormatter(logging.Formatter):
    """One line for a person: time, level, logger, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        level = _NAMES.get(record.levelno, "info").upper()
        fields = "".join(f"  {name}={value}" for name, value in _fields(record))
        line = f"{_timestamp(record)}  {level:<5}  {record.name}  {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_FORMATTERS: dict[str, type[logging.Formatter]] = {"json": JsonFormatter, "console": ConsoleFormatter}


def set_level(level: str) -> None:
    """Switch both loggers to `debug`, `info`, `warn`, `error`, `panic` or `fatal`; KeyError otherwise."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(_LEVELS[level])


class _Description(logging.Filter):
    """Adds the fields of the whole process to every line that lacks them."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, object] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in self.fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


class Handlers:
    """The handlers of one `configure`; `close` removes them and restores the levels."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        self._handlers = handlers
        self._description = _Description()
        for handler in handlers:
            handler.addFilter(self._description)
        self._levels = {name: logging.getLogger(name).level for name in LOGGERS}
        for name in LOGGERS:
            for handler in handlers:
                logging.getLogger(name).addHandler(handler)

    def describe(self, **fields: object) -> None:
        """Add these fields (node, term, role), and no earlier ones, to every line from now on."""
        self._description.fields = fields

    def close(self) -> None:
        """Idempotent."""
        for name, level in self._levels.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            for handler in self._handlers:
                logger.removeHandler(handler)
        for handler in self._handlers:
            handler.close()


def configure(*, level: str, form: str, outputs: str) -> Handlers:
    """Send the lines of this process to `outputs` (`default`, `stderr`, `stdout`, files; with commas).

    `form` is `json` or `console`. Raises OSError when a file cannot be opened.
    """
    handlers: list[logging.Handler] = []
    try:
        for output in outputs.split(","):
            handlers.append(_handler(output.strip()))  # noqa: PERF401  an error below must close those opened
    except OSError:
        for handler in handlers:
            handler.close()
        raise
    for handler in handlers:
        handler.setFormatter(_FORMATTERS[form]())
        handler.addFilter(RepeatLimit())
    installed = Handlers(handlers)
    set_level(level)
    return installed


def _handler(output: str) -> logging.Handler:
    match output:
        case "default" | "stderr" | "":
            return logging.StreamHandler(sys.stderr)
        case "stdout":
            return logging.StreamHandler(sys.stdout)
        case _:
            return logging.FileHandler(output, encoding="utf-8")
