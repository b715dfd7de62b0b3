"""This member's replica: consensus (which knows no keys) joined with the engine (which knows no consensus).

`replica` proposes commands and confirms reads, `outcome` types what becomes of them, and `quota` refuses
writes while space is short.
"""
