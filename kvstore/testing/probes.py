"""Named rare situations of whole members. A campaign that never met one of them has not tested it."""

from __future__ import annotations

NODE_PROBES: tuple[str, ...] = ()

NODE_UNREACHED: dict[str, str] = {}
"""Probes that a campaign need not reach, each with the reason."""
