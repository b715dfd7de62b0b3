"""Watches: which watchers get which applied changes, in which order."""
