"""The index of networks that is kept in the repository is the installed timm's."""

import json
from importlib.metadata import version

from cifartune.config.networks import INDEX
from cifartune.models.index import make_index


def test_the_index_is_that_of_timm() -> None:
    stored, found = json.loads(INDEX.read_text()), make_index()
    if stored["timm"] == version("timm"):
        assert stored == found
    # Another version may have more networks, but must have these.
    flags = {name: flag for names in found["families"].values() for name, flag in names.items()}
    kept = {name: flag for names in stored["families"].values() for name, flag in names.items()}
    assert kept.items() <= flags.items()
    assert len(kept) > 1000
