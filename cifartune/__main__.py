"""`python -m cifartune`."""

from cifartune.cli import main

main()
