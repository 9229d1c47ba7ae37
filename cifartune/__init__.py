"""cifartune: hyper-parameter search for CIFAR-10 classifiers.

Importing the package is free: neither torch nor ray is loaded until something is run.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
