"""`t2i` and `python -m t2i`, the command line."""

import sys


def main() -> None:
    """Run the command line; an interrupt, also one while it is imported, is one line and exit code 130."""
    try:
        from t2i.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
