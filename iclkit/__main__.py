"""``python -m iclkit``."""

from iclkit.cli import main

main()
