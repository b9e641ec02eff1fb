"""The pictures of the README and of docs/: the tops of the demo's report, of find.html, and of a problem in view.

`make demo && python scripts/pictures.py demo` writes docs/images/report.png, find.png and view.png. It needs Chromium.
"""

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import prunus

WIDTH, HEIGHT = 1280, 800
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROBLEM = 9  # of the 40 that view exports: a short question with short chains
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def main() -> None:
    """Photograph the pages of a demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="The folder that prunus demo wrote.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit(f"none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory() as scratch:
        chains = Path(scratch) / "chains"
        prunus.view(asked.demo / "results.db", export=chains)
        pages = {
            "report": asked.demo / "report.html",
            "find": asked.demo / "found" / "find.html",
            "view": chains / f"problem-{PROBLEM}.html",
        }
        for name, page in pages.items():
            taken = Path(scratch) / f"{name}.png"
            subprocess.run(
                [
                    *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                    *(f"--user-data-dir={scratch}/profile", f"--window-size={WIDTH},{HEIGHT}"),
                    *(f"--screenshot={taken}", page.resolve().as_uri()),
                ],
                check=True,
                capture_output=True,
                timeout=120,
            )
            (asked.out / f"{name}.png").write_bytes(with_palette(pixels(taken.read_bytes())))


def pixels(png: bytes) -> NDArray[np.uint8]:
    """The picture (height, width, 3) of a PNG with 8 bits a colour, as Chromium writes it."""
    at, data = len(SIGNATURE), b""
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    assert (depth, colour) == (8, 2), "not a PNG with 8 bits a colour and no transparency"
    raw, before = zlib.decompress(data), bytes(3 * width + 3)
    rows = []
    for start in range(0, len(raw), 3 * width + 1):
        row = bytearray(3)  # a black pixel left of each row, as the filters have it
        for at, byte in enumerate(raw[start + 1 : start + 1 + 3 * width]):
            left, above, corner = row[at], before[at + 3], before[at]
            by = sorted((left, above, corner), key=lambda one: abs(left + above - corner - one))[0]
            row.append(byte + (0, left, above, (left + above) // 2, by)[raw[start]] & 255)
        before = bytes(row)
        rows.append(before[3:])
    return np.frombuffer(b"".join(rows), np.uint8).reshape(height, width, 3)


def with_palette(picture: NDArray[np.uint8]) -> bytes:
    """A PNG of the picture with its 256 most frequent colours, which takes a third of the bytes."""
    height, width, _ = picture.shape
    colours, index, counts = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    palette = colours[np.argsort(-counts)[:256]]
    distances = ((colours[:, None].astype(int) - palette[None].astype(int)) ** 2).sum(axis=2)
    rows = distances.argmin(axis=1).astype(np.uint8)[index.reshape(height, width)]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": palette.tobytes(),
        b"IDAT": zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 9),  # 0 before each row: no filter
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return SIGNATURE + b"".join(parts)


if __name__ == "__main__":
    main()
