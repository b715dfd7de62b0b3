"""The text of a transaction: compares, then requests on success, then on failure, each block ended by
an empty line (`etcdctl/ctlv3/command/txn_command.go`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

import click

from kvstore.cli.exit_codes import CommandError, ExitCode, invalid_input
from kvstore.cli.gotext import parse_int, quote, unquote
from kvstore.wire import rpc_pb2

_RESULTS = {
    "=": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    ">": rpc_pb2.Compare.GREATER,
    "<": rpc_pb2.Compare.LESS,
}
# target -> (kind, field of the operand, base of its digits; 0 for text)
_TARGETS = {
    "ver": (rpc_pb2.Compare.VERSION, "version", 10),
    "version": (rpc_pb2.Compare.VERSION, "version", 10),
    "c": (rpc_pb2.Compare.CREATE, "create_revision", 10),
    "create": (rpc_pb2.Compare.CREATE, "create_revision", 10),
    "m": (rpc_pb2.Compare.MOD, "mod_revision", 10),
    "mod": (rpc_pb2.Compare.MOD, "mod_revision", 10),
    "val": (rpc_pb2.Compare.VALUE, "value", 0),
    "value": (rpc_pb2.Compare.VALUE, "value", 0),
    "lease": (rpc_pb2.Compare.LEASE, "lease", 16),
}
_STRING = r'"(?:[^"\\]|\\.)*"|`[^`]*`'
_COMPARE = re.compile(rf"\s*(?P<key>{_STRING})?(?:\)(?:\s+(?P<result>\S+))?\s*(?P<operand>{_STRING})?)?")
_ARGUMENT = re.compile(r""""(?:[^"\\]|\\.)*"|'[^']*'|[^'"\s]\S*[^'"\s]?""")

ReadRequest = Callable[[str, list[str]], rpc_pb2.RequestOp]
"""Builds a request from a verb and its arguments; raises click's errors when it cannot."""


def parse_compare(line: str) -> rpc_pb2.Compare:
    """Read `mod("key") > "0"`."""
    target, parenthesis, rest = line.partition("(")
    if not parenthesis:
        raise invalid_input(f"malformed comparison: {line}")
    match = _COMPARE.match(rest)
    key_text, result_text, operand_text = match.group("key", "result", "operand") if match else (None,) * 3
    try:
        key = unquote(key_text) if key_text else b""
        operand = unquote(operand_text) if operand_text else b""
    except ValueError as error:
        raise invalid_input(f"malformed comparison: {line} ({error})") from None
    if operand_text is None:
        raise invalid_input(
            f"malformed comparison: {line}; got {target}({quote(key)}) {result_text or ''} {quote(operand)}"
        )
    known = _TARGETS.get(target)
    if known is None:
        raise invalid_input(f"malformed comparison: {line} (unknown target {target})")
    result = _RESULTS.get(result_text or "")
    if result is None:
        raise invalid_input(f"malformed comparison: {line} (unknown result {result_text})")
    kind, field, base = known
    compare = rpc_pb2.Compare(key=key, target=kind, result=result)
    try:
        setattr(compare, field, parse_int(operand.decode("utf-8", "replace"), base) if base else operand)
    except ValueError:
        raise invalid_input(f"invalid txn compare request: {line}") from None
    return compare


def split_arguments(line: str) -> list[str]:
    """The words of a line; single quotes are literal, double quotes have Go's escapes."""
    words = []
    for word in _ARGUMENT.findall(line):
        if word.startswith("'"):
            words.append(word[1:-1])
        elif word.startswith('"'):
            try:
                words.append(unquote(word).decode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise invalid_input(str(error)) from None
        else:
            words.append(word)
    return words


def _block(source: BinaryIO) -> Iterator[str]:
    """The lines up to an empty one; the end of the input before that is an error."""
    while True:
        raw = source.readline()
        if not raw.endswith(b"\n"):
            raise invalid_input("EOF")
        line = raw.decode("utf-8", "surrogateescape").strip()
        if not line:
            return
        yield line


def _parse_request(line: str, read_request: ReadRequest) -> rpc_pb2.RequestOp:
    words = split_arguments(line)
    if len(words) < 2:
        raise invalid_input(f"invalid txn compare request: {line}")
    try:
        return read_request(words[0], words[1:])
    except CommandError as error:
        if error.code is ExitCode.ERROR:  # it could not even be read
            raise invalid_input(f"invalid txn request: {line}") from None
        raise
    except click.UsageError:
        raise invalid_input(f"invalid txn request: {line}") from None


def read_transaction(
    source: BinaryIO, read_request: ReadRequest, prompt: Callable[[str], None]
) -> rpc_pb2.TxnRequest:
    """Read the three blocks; `prompt` receives what is read next."""
    prompt("compares:")
    compares = [parse_compare(line) for line in _block(source)]
    prompt("success requests (get, put, del):")
    success = [_parse_request(line, read_request) for line in _block(source)]
    prompt("failure requests (get, put, del):")
    failure = [_parse_request(line, read_request) for line in _block(source)]
    return rpc_pb2.TxnRequest(compare=compares, success=success, failure=failure)
