"""Leases, and the locks and elections that hang on them.

A lease expires in `lessor` (deadlines in `lease_clock`); a lock waiter wakes in `lock_queue`.
"""
