"""Folders that many tests need, such as random models: each is made once per test run and copied afterwards.

Workers share them through a folder that conftest names in the environment. Every test gets its own copy, which it may
change.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

FOLDER = "PRUNUS_TEST_FOLDERS"  # environment variable; without it nothing is kept
LARGEST = 16 << 20  # bytes; copying larger folders would take the disk as long as making them takes the processor


def made_once(folder: Path, key: str, make: Callable[[Path], object]) -> None:
    """Fill a folder, which may exist, by make(folder), or with a copy of the files of the first call with this key.

    key: must contain everything on which the content depends.
    """
    if FOLDER not in os.environ:
        make(folder)
        return
    kept = Path(os.environ[FOLDER]) / hashlib.sha256(key.encode()).hexdigest()
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as place:
            made = Path(place) / "made"
            make(made)
            if sum(file.stat().st_size for file in made.iterdir()) > LARGEST:
                folder.mkdir(parents=True, exist_ok=True)
                for file in made.iterdir():
                    shutil.move(file, folder / file.name)
                return
            try:
                made.rename(kept)  # so that other workers only see complete folders
            except OSError:  # another worker has made the same folder meanwhile
                assert kept.exists()
    shutil.copytree(kept, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)


def kept(key: str, make: Callable[[Path], object]) -> Path:
    """A folder of any size, made by make(folder) once a test run; all tests read it and none may change it."""
    name = hashlib.sha256(key.encode()).hexdigest()
    place = Path(os.environ[FOLDER]) / name
    with FileLock(place.with_suffix(".lock")):  # meanwhile other workers wait
        if not place.exists():
            unfinished = place.with_suffix(".partial")
            make(unfinished)
            unfinished.rename(place)
    return place
