"""`python -m t2i`, the command line."""

from t2i.cli.main import main

main()
