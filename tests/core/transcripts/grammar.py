"""The grammar of etcd-io/raft's data-driven files: blocks of a command, its input and its expected output."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ARGUMENT = re.compile(r"([^\s=]+)(?:=(\([^)]*\)|\S*))?")


@dataclass
class Directive:
    """One block of a file: a command line, input lines and the expected output."""

    line: int
    """Where the command line stands, from 1."""
    command: str
    args: dict[str, list[str]]
    """`key=value` and `key=(v1,v2)`; a bare word stands as a key with an empty list."""
    input: list[str]
    expected: list[str]
    words: list[str]
    """The bare words, in order."""

    @property
    def ids(self) -> list[int]:
        """The bare words that are numbers: members, or a count, or an index."""
        return [int(word) for word in self.words if word.isdigit()]

    def value(self, name: str, default: str) -> str:
        values = self.args.get(name)
        return values[0] if values else default

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple([int(word) for word in self.args.get(name, ())])

    def flag(self, name: str) -> bool:
        """Whether `name` or `name=true` is given."""
        return self.args.get(name, ["false"]) in ([], ["true"])

    def __str__(self) -> str:
        given = [key + (f"={','.join(values)}" if values else "") for key, values in self.args.items()]
        return " ".join([self.command, *given])


def parse_directives(text: str) -> list[Directive]:
    """Blocks of a file: comments, a command, input, `----`, output to a blank line."""
    blocks: list[Directive] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        command, _, rest = line.partition(" ")
        found = _ARGUMENT.findall(rest)
        args = {
            key: [word for word in re.split(r"[,\s]+", value.strip("()")) if word] for key, value in found
        }
        block = Directive(number, command, args, [], [], [key for key, value in found if not value])
        for _, following in lines:
            if following == "----":
                break
            block.input.append(following)
        for _, following in lines:
            if not following.strip():
                break
            block.expected.append(following)
        blocks.append(block)
    return blocks
