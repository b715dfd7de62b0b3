"""A reader for the part of EDN that histories are written in.

Reads nil, booleans, numbers, strings, characters, symbols, keywords, lists, vectors, maps, sets,
tagged elements (the tag is dropped), discards (`#_`) and comments. Keywords become plain strings
without the colon: histories use keywords and strings for the same nouns.

Own code and not a package: see docs/decisions/0003-edn-reader.md for the figures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from kvstore.verify.budget import Budget

_TOKEN = re.compile(
    r"""
    (?P<skip>[\s,]+|;[^\n]*)
  | (?P<open>\#\{|[\[({])
  | (?P<close>[\])}])
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<char>\\(?:newline|space|tab|return|u[0-9a-fA-F]{4}|.))
  | (?P<discard>\#_)
  | (?P<tag>\#[A-Za-z][\w.\-/]*)
  | (?P<meta>\^)
  | (?P<atom>[^\s,;"\[\](){}]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSERS = {"[": "]", "(": ")", "{": "}", "#{": "}"}
_INTEGER = re.compile(r"[+-]?\d+N?\Z")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_WORDS: dict[str, Any] = {"nil": None, "true": True, "false": False}
_CHARACTERS = {"newline": "\n", "space": " ", "tab": "\t", "return": "\r"}

DEPTH_MAX = 64
"""Nesting bound. Real histories nest four or five deep; hostile input must not exhaust the stack."""


class EdnError(ValueError):
    """The text is not EDN; `position` is the character offset of the trouble."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


def parse_all(text: str, budget: Budget | None = None) -> list[tuple[Any, int]]:
    """Every top-level form of `text` with the offset it begins at. Raises EdnError, and BoundMetError."""
    return _Parser(text, budget or Budget(math.inf)).forms()


def parse_items(text: str, budget: Budget | None = None) -> list[tuple[Any, int]]:
    """As `parse_all`, but of a text that is one vector or list its items, each with its own offset."""
    parser = _Parser(text, budget or Budget(math.inf))
    forms = parser.forms()
    if len(forms) != 1 or not isinstance(forms[0][0], list):
        return forms
    items, begin = forms[0]
    offsets = parser.offsets if items is parser.outermost else [begin] * len(items)
    return list(zip(items, offsets, strict=True))


class _Parser:
    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._budget = budget
        self._tokens: Iterator[tuple[str, str, int]] = self._scan()
        self.outermost: list[Any] = []
        """The latest vector or list that stands inside no other form, and without a tag."""
        self.offsets: list[int] = []
        """Where each of its items begins."""

    def _scan(self) -> Iterator[tuple[str, str, int]]:
        text, position, end = self._text, 0, len(self._text)
        match, step = _TOKEN.match, self._budget.step
        while position < end:
            found = match(text, position)
            step()
            if found is None:
                raise EdnError(f"cannot read {text[position : position + 12]!r}", position)
            kind = found.lastgroup
            if kind is not None and kind != "skip":
                yield kind, found.group(), position
            position = found.end()

    def forms(self) -> list[tuple[Any, int]]:
        found = []
        for kind, token, position in self._tokens:
            if kind == "discard":
                self._value(0)
            else:
                found.append((self._build(kind, token, position, 0), position))
        return found

    def _value(self, depth: int) -> Any:
        for kind, token, position in self._tokens:
            if kind == "discard":
                self._value(depth)
                continue
            return self._build(kind, token, position, depth)
        raise EdnError("the text ends inside a form", len(self._text))

    def _build(self, kind: str, token: str, position: int, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise EdnError(f"nested deeper than {DEPTH_MAX}", position)
        if kind == "atom":
            return _atom(token)
        if kind == "open":
            return self._collection(token, position, depth + 1)
        if kind == "string":
            return _unescape(token[1:-1]) if "\\" in token else token[1:-1]
        if kind == "tag":
            return self._value(depth + 1)
        if kind == "meta":
            self._value(depth + 1)
            return self._value(depth + 1)
        if kind == "char":
            return _character(token[1:])
        raise EdnError(f"unexpected {token!r}", position)

    def _collection(self, opener: str, begin: int, depth: int) -> Any:
        closer = _CLOSERS[opener]
        items: list[Any] = []
        offsets: list[int] = []
        if depth == 1 and opener in ("[", "("):
            self.outermost, self.offsets = items, offsets
        for kind, token, position in self._tokens:
            if kind == "close":
                if token != closer:
                    raise EdnError(f"expected {closer!r}, found {token!r}", position)
                return _collect(opener, items, begin)
            if kind == "discard":
                self._value(depth)
            else:
                offsets.append(position)
                items.append(self._build(kind, token, position, depth))
        raise EdnError(f"{opener!r} is never closed", begin)


def _collect(opener: str, items: list[Any], begin: int) -> Any:
    if opener != "{":
        return items
    if len(items) % 2:
        raise EdnError("a map with a key and no value", begin)
    return {_hashable(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _hashable(key: Any) -> Any:
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key


def _atom(token: str) -> Any:
    if token[0] == ":":
        return token[1:]
    if token in _WORDS:
        return _WORDS[token]
    if _INTEGER.match(token):
        return int(token.rstrip("N"))
    try:
        return float(token.rstrip("M"))
    except ValueError:
        return token


def _unescape(body: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found.group(1)
        return chr(int(code[1:], 16)) if code[0] == "u" and len(code) == 5 else _ESCAPES.get(code, code)

    return _ESCAPE.sub(one, body)


def _character(name: str) -> str:
    if len(name) == 5 and name[0] == "u":
        return chr(int(name[1:], 16))
    return _CHARACTERS.get(name, name)
