"""A process on a real pseudo-terminal, which stays warm and shows tables in terminals of several widths."""

import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

START, END = "here it begins", "that was all"
CODE = f"""
import json, sys
from pathlib import Path
known = {{}}
for request in map(json.loads, open(int(sys.argv[1]))):
    code, store = request
    if code not in known:
        known[code] = {{"store": Path(store)}}
        exec(code, known[code])
    print("{START}", flush=True)
    known[code]["show"]()
    print("{END}", flush=True)
"""


class PseudoTerminal:
    """A terminal in which code defines `show`, which prints."""

    def __init__(self) -> None:
        self.screen, inside = pty.openpty()
        requests, self.requests = os.pipe()
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(requests)],
            stdin=inside, stdout=inside, stderr=inside, pass_fds=[requests],
            env=kept | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(inside)
        os.close(requests)

    def lines(self, code: str, store: Path, columns: int) -> list[str]:
        """What is on the screen, without colours and trailing spaces. code: runs once, and shows at every width."""
        ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.write(self.requests, json.dumps([code, str(store)]).encode() + b"\n")
        printed = b""
        while not printed.endswith(f"{END}\r\n".encode()):
            try:
                printed += os.read(self.screen, 65536)
            except OSError:  # the process has ended
                raise AssertionError(printed.decode()) from None
        text = re.sub(r"\x1b\[[0-9;]*m", "", printed.decode())
        return [line.rstrip() for line in text.rpartition(f"{START}\r\n")[2].split("\r\n")[:-2]]

    def close(self) -> None:
        """End the process."""
        os.close(self.requests)
        self.process.wait(60)
        os.close(self.screen)
