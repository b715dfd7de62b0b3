"""The small replicated tables beside the keys: members and alarms, with their rows in the backend.

member row  "m" | id u64   ->  is_learner u8 | count u32 of strings | each: length u32, bytes
                               (name, number of peer URLs as text, peer URLs, client URLs)
removed row "r" | id u64  ->  empty: a member that was removed; its id is never used again
alarm row   "a" | alarm u32 | id u64   ->  empty
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from kvstore.engine.requests import AlarmType
from kvstore.engine.results import AlarmMember, Member

MEMBER_PREFIX = b"m"
REMOVED_PREFIX = b"r"
ALARM_PREFIX = b"a"

_MEMBER_KEY = Struct(">cQ")
_ALARM_KEY = Struct(">cIQ")
_MEMBER_HEAD = Struct(">BIII")
_LENGTH = Struct(">I")


class Tables:
    """Changed only by applied commands, so equal on all members at the same log index."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members: dict[int, Member] = {}
        """By id; in the order of ids, so that every member lists them alike."""
        self._removed: dict[int, None] = {}
        """Ids of members that were removed. Disjoint from `_members`; only grows."""
        self._alarms: set[AlarmMember] = set()
        self._unsaved: dict[bytes, bytes | None] = {}
        """Rows the backend lacks."""
        self._loaded = False
        """Rows of a backend were loaded: they replace the bootstrap membership."""
        self.no_space = False
        """Some NOSPACE alarm stands."""
        self.corrupt = False
        """Some CORRUPT alarm stands."""
        for member in sorted(members):
            self.set_member(member)

    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def set_attributes(self, member_id: int, name: str, client_urls: tuple[str, ...]) -> bool:
        """Returns False for an unknown member."""
        member = self._members.get(member_id)
        if member is None:
            return False
        self.set_member(member._replace(name=name, client_urls=client_urls))
        return True

    def member(self, member_id: int) -> Member | None:
        return self._members.get(member_id)

    def is_removed(self, member_id: int) -> bool:
        return member_id in self._removed

    def remove_member(self, member_id: int) -> None:
        """For ever."""
        del self._members[member_id]
        self._removed[member_id] = None
        self._unsaved[_MEMBER_KEY.pack(MEMBER_PREFIX, member_id)] = None
        self._unsaved[_MEMBER_KEY.pack(REMOVED_PREFIX, member_id)] = b""

    def set_member(self, member: Member) -> None:
        new = member.id not in self._members
        self._members[member.id] = member
        if new:
            self._members = dict(sorted(self._members.items()))
        self._unsaved[_MEMBER_KEY.pack(MEMBER_PREFIX, member.id)] = _encode_member(member)

    def alarms(self, alarm: int = AlarmType.NONE) -> tuple[AlarmMember, ...]:
        """Standing alarms, of one type or (NONE) all, sorted by type and member."""
        standing = sorted(self._alarms, key=lambda each: (each.alarm, each.member_id))
        return tuple(each for each in standing if alarm in (AlarmType.NONE, each.alarm))

    def activate(self, alarm: AlarmMember) -> bool:
        """Returns False for a type that cannot be raised."""
        if alarm.alarm not in (AlarmType.NOSPACE, AlarmType.CORRUPT):
            return False
        if alarm not in self._alarms:
            self._alarms.add(alarm)
            self._alarms_changed(alarm, b"")
        return True

    def deactivate(self, alarm: AlarmMember) -> bool:
        """Returns False if it did not stand."""
        if alarm not in self._alarms:
            return False
        self._alarms.remove(alarm)
        self._alarms_changed(alarm, None)
        return True

    def _alarms_changed(self, alarm: AlarmMember, value: bytes | None) -> None:
        self._unsaved[_ALARM_KEY.pack(ALARM_PREFIX, alarm.alarm, alarm.member_id)] = value
        self._derive()

    def _derive(self) -> None:
        self.no_space = any(each.alarm == AlarmType.NOSPACE for each in self._alarms)
        self.corrupt = any(each.alarm == AlarmType.CORRUPT for each in self._alarms)

    @property
    def changed(self) -> bool:
        return bool(self._unsaved)

    def drain_rows(self) -> list[tuple[bytes, bytes | None]]:
        rows = list(self._unsaved.items())
        self._unsaved.clear()
        return rows

    def load_row(self, row: bytes, value: bytes) -> None:
        if not self._loaded:
            self._loaded = True
            self._members.clear()
            self._unsaved.clear()
        if row[:1] == MEMBER_PREFIX:
            member_id = _MEMBER_KEY.unpack(row)[1]
            self._members[member_id] = _decode_member(member_id, value)
        elif row[:1] == REMOVED_PREFIX:
            self._removed[_MEMBER_KEY.unpack(row)[1]] = None
        else:
            _, alarm, member_id = _ALARM_KEY.unpack(row)
            self._alarms.add(AlarmMember(member_id, alarm))
            self._derive()


def _encode_member(member: Member) -> bytes:
    head = _MEMBER_HEAD.pack(
        member.is_learner, len(member.peer_urls), len(member.client_urls), len(member.name.encode())
    )
    parts = [head, member.name.encode()]
    for url in (*member.peer_urls, *member.client_urls):
        parts.append(_LENGTH.pack(len(url.encode())))
        parts.append(url.encode())
    return b"".join(parts)


def _decode_member(member_id: int, value: bytes) -> Member:
    is_learner, peer_count, client_count, name_length = _MEMBER_HEAD.unpack_from(value)
    offset = _MEMBER_HEAD.size
    name = value[offset : offset + name_length].decode()
    offset += name_length
    urls = []
    for _ in range(peer_count + client_count):
        (length,) = _LENGTH.unpack_from(value, offset)
        offset += _LENGTH.size
        urls.append(value[offset : offset + length].decode())
        offset += length
    assert offset == len(value), "a member row has a tail"
    return Member(member_id, name, tuple(urls[:peer_count]), tuple(urls[peer_count:]), bool(is_learner))
