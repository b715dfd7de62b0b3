"""Named rare situations of whole members. A campaign that never met one of them has not tested it."""

from __future__ import annotations

from kvstore.testing.image_faults import IMAGE_PROBES

NODE_PROBES: tuple[str, ...] = (*IMAGE_PROBES,)

NODE_UNREACHED: dict[str, str] = {}
"""Probes that a campaign need not reach, each with the reason."""
