"""The index of watchers by key and range.

Three tables by kind of interval: single keys in a dict; ranges open at the end sorted by their first key;
bounded ranges in a treap whose nodes know the furthest end below them. A look-up costs O(log n) plus its
result. Watchers of the same interval share one entry.
"""

from __future__ import annotations

import zlib
from typing import Any, Generic, TypeVar

from sortedcontainers import SortedDict  # type: ignore[import-untyped]  # ships no types

from kvstore.engine import OPEN_END

T = TypeVar("T")

Group = dict[T, None]
"""Watchers of one interval, in the order they came."""


class WatchIndex(Generic[T]):
    """From a key to the groups of its watchers."""

    def __init__(self) -> None:
        self._keys: dict[bytes, Group[T]] = {}
        self._open: Any = SortedDict()
        """Ranges without an end: first key -> group."""
        self._root: _Node[T] | None = None
        """Bounded ranges."""
        self._nodes: dict[tuple[bytes, bytes], _Node[T]] = {}
        """The treap's nodes by interval."""
        self._made = 0
        """Nodes ever made; seeds their priorities."""

    def add(self, key: bytes, range_end: bytes, watcher: T) -> None:
        """`range_end` is empty for one key and OPEN_END for all from `key` on."""
        if not range_end:
            self._keys.setdefault(key, {})[watcher] = None
        elif range_end == OPEN_END:
            self._open.setdefault(key, {})[watcher] = None
        else:
            node = self._nodes.get((key, range_end))
            if node is None:
                self._made += 1
                priority = zlib.crc32(self._made.to_bytes(8, "big"))
                node = self._nodes[key, range_end] = _Node(key, range_end, priority)
                self._root = _insert(self._root, node)
            node.group[watcher] = None

    def remove(self, key: bytes, range_end: bytes, watcher: T) -> None:
        """A watcher that was added. Empty entries go with their last watcher."""
        if not range_end:
            group = self._keys[key]
            del group[watcher]
            if not group:
                del self._keys[key]
        elif range_end == OPEN_END:
            group = self._open[key]
            del group[watcher]
            if not group:
                del self._open[key]
        else:
            node = self._nodes[key, range_end]
            del node.group[watcher]
            if not node.group:
                del self._nodes[key, range_end]
                self._root = _delete(self._root, node)

    def find(self, key: bytes) -> list[Group[T]]:
        """Groups of all intervals that hold the key. Do not change them while looking through."""
        found: list[Group[T]] = []
        group = self._keys.get(key)
        if group is not None:
            found.append(group)
        if self._open:
            found.extend(self._open[low] for low in self._open.irange(maximum=key))
        if self._root is not None:
            _stab(self._root, key, found)
        return found


class _Node(Generic[T]):
    """One interval of the treap: a search tree by (low, end), a heap by priority."""

    __slots__ = ("end", "furthest", "group", "left", "low", "priority", "right")

    def __init__(self, low: bytes, end: bytes, priority: int) -> None:
        self.low = low
        self.end = end
        self.priority = priority
        self.furthest = end
        """Greatest `end` in this subtree."""
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None
        self.group: Group[T] = {}

    def before(self, other: _Node[T]) -> bool:
        return (self.low, self.end) < (other.low, other.end)

    def update(self) -> None:
        furthest = self.end
        for child in (self.left, self.right):
            if child is not None and child.furthest > furthest:
                furthest = child.furthest
        self.furthest = furthest


def _stab(root: _Node[T], key: bytes, found: list[Group[T]]) -> None:
    stack: list[_Node[T]] = [root]
    while stack:
        node = stack.pop()
        if node.furthest <= key:
            continue
        if node.left is not None:
            stack.append(node.left)
        if node.low <= key:
            if key < node.end:
                found.append(node.group)
            if node.right is not None:
                stack.append(node.right)


def _insert(root: _Node[T] | None, node: _Node[T]) -> _Node[T]:
    if root is None:
        return node
    if root.priority < node.priority:
        node.left, node.right = _split(root, node)
        node.update()
        return node
    if node.before(root):
        root.left = _insert(root.left, node)
    else:
        root.right = _insert(root.right, node)
    root.update()
    return root


def _split(root: _Node[T] | None, at: _Node[T]) -> tuple[_Node[T] | None, _Node[T] | None]:
    """The subtrees before and behind a node."""
    if root is None:
        return None, None
    if root.before(at):
        root.right, behind = _split(root.right, at)
        root.update()
        return root, behind
    before, root.left = _split(root.left, at)
    root.update()
    return before, root


def _delete(root: _Node[T] | None, node: _Node[T]) -> _Node[T] | None:
    assert root is not None, "only what was inserted is deleted"
    if root is node:
        return _merge(root.left, root.right)
    if node.before(root):
        root.left = _delete(root.left, node)
    else:
        root.right = _delete(root.right, node)
    root.update()
    return root


def _merge(left: _Node[T] | None, right: _Node[T] | None) -> _Node[T] | None:
    if left is None or right is None:
        return left or right
    if left.priority > right.priority:
        left.right = _merge(left.right, right)
        left.update()
        return left
    right.left = _merge(left, right.left)
    right.update()
    return right
