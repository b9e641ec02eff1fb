"""Folders that many tests start from, such as random models: each is made once a run, and copied from then on.

Workers share what is made through a folder that conftest names in the environment. Every test has a copy of its own,
which it may change.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

FOLDER = "PRUNUS_TEST_FOLDERS"  # environment variable; without it nothing is kept
LARGEST = 16 << 20  # bytes: copying more would cost the disk what it saves the processor


def made_once(folder: Path, key: str, make: Callable[[Path], object]) -> None:
    """Have make write files to a folder, which may exist; or copy what it wrote when first called with this key.

    key: says all that the content depends on.
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
                made.rename(kept)  # whole, whenever another worker looks
            except OSError:  # another one has made the same meanwhile
                assert kept.exists()
    shutil.copytree(kept, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
