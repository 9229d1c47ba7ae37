"""CIFAR-10: fetched once, verified by content, memory-mapped by every process of a node.

The test images are read by `cifartune.data.test_set` alone, which is not re-exported here.
"""

from cifartune.data.cifar10 import CLASSES, LabelledImages, default_root
from cifartune.data.fetching import fetch, root_here
from cifartune.data.prepared import Info, info, load_train, verify

__all__ = [
    "CLASSES",
    "Info",
    "LabelledImages",
    "default_root",
    "fetch",
    "info",
    "load_train",
    "root_here",
    "verify",
]
