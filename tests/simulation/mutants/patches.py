"""Replaces functions of the product while a mutant lives, and puts every one back."""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

import raft.core.raft_core as machine

_TABLES = (machine._FOLLOWER, machine._CANDIDATE, machine._LEADER)


class Patches:
    """A context: what was replaced within it is itself again after it."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()

    def attribute(self, target: Any, name: str, value: Any) -> Any:
        """Set an attribute of a class or module; what it was."""
        before = target.__dict__[name]
        self._undo.append(lambda: setattr(target, name, before))
        setattr(target, name, value)
        return before

    def item(self, table: MutableMapping[Any, Any], key: Any, value: Any) -> None:
        before = table[key]
        self._undo.append(lambda: table.__setitem__(key, before))
        table[key] = value

    def everywhere(self, before: Any, value: Any) -> None:
        """Put `value` wherever the product's modules and the core's tables name the function `before`."""
        found = 0
        for module in [m for name, m in sys.modules.items() if name.startswith(("raft.", "kvstore."))]:
            for name in [name for name, held in vars(module).items() if held is before]:
                self.attribute(module, name, value)
                found += 1
        for table in _TABLES:
            for key in [key for key, held in table.items() if held is before]:
                self.item(table, key, value)
                found += 1
        assert found, f"no module uses {before}"
