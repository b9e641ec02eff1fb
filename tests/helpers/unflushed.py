"""Files and databases that are not flushed to disk."""

import os
import sqlite3
from contextlib import suppress
from functools import partial
from typing import Any


class Unflushed(sqlite3.Connection):
    """A connection whose transactions do not wait for the disk."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        with suppress(sqlite3.Error):  # of a file that is no database, which the next statement tells
            self.execute("PRAGMA synchronous = OFF")


def flush_nothing() -> None:
    """From now on, in this process.

    A flush takes milliseconds and a transaction has several; tests have thousands of both, and none cuts the power.
    """
    os.fsync = os.fstat  # which also fails for what is not an open file
    sqlite3.connect = partial(sqlite3.connect, factory=Unflushed)
