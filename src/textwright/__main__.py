"""`python -m textwright`, which is also how `torchrun` starts it."""

from textwright.cli.main import main

main()
