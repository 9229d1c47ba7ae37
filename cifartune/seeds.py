"""One seed at the top; every random draw below has a seed of its own."""

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed in [0, 2**32) for the draw that `path` names, independent of all others."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:4], "big")
