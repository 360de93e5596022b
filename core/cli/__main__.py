"""`python -m core.cli` is `blockyard` from a checkout."""

from core.cli.main import main

main()
