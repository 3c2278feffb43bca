"""`python -m flows.cli` is `regraft`."""

from flows.cli import main

main()
