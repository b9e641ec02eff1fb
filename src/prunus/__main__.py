"""Entry point of the command `prunus`, and of `python -m prunus`."""

import sys

from prunus.errors import missing_package


def main() -> None:
    """Run the command line; exit with an error in one line if a package that Prunus needs is not installed."""
    try:
        from prunus.cli import main as run
    except ModuleNotFoundError as error:
        if (line := missing_package(error)) is None:
            raise
        sys.exit(f"error: {line}")
    run()


if __name__ == "__main__":
    main()
