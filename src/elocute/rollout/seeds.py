"""Seeds as pure functions of what is sampled: (run seed, step, prompt, sample), whatever the batch or the process."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any mix of numbers and names; equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
