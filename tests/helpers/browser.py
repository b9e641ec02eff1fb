"""A headless Chromium driven over a pipe (DevTools protocol): click, evaluate, screenshot."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and answers on 4. This program moves the pipe's ends there and executes it.
LAUNCHER = (
    "import os, sys\n"
    "ends = [os.dup(os.dup(os.dup(int(n)))) for n in sys.argv[1:3]]\n"
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)


def find_chromium() -> str | None:
    """The path of a Chromium, None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """A browser: `with Browser(chromium, scratch folder) as browser: browser.open(page); browser.evaluate("1 + 1")`."""

    def __init__(self, executable: str, folder: Path, seconds: float = 60.0) -> None:
        self.seconds = seconds
        commands_read, self.commands = os.pipe()
        self.answers, answers_write = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCHER, str(commands_read), str(answers_write), executable, *FLAGS),
                *(f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
                "about:blank",
            ],
            pass_fds=(commands_read, answers_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands_read)
        os.close(answers_write)
        self.buffer, self.number, self.session = b"", 0, ""
        self.problems: list[str] = []  # exceptions, console errors, violations of the page's content security policy
        self.requests: dict[str, str] = {}  # request id -> address, of requests that the page's policy allowed
        self.scripts = True

    def __enter__(self) -> "Browser":
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.session = ""
            self.call("Browser.close")
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired, AssertionError):
            self.process.kill()
            self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command; events that arrive before it are recorded."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._read(method)).get("id") != self.number:
            self._keep(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self, waiting_for: str) -> dict[str, Any]:
        deadline = time.monotonic() + self.seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium gave no answer to {waiting_for} in {self.seconds} s"
            chunk = os.read(self.answers, 1 << 20)
            assert chunk, f"Chromium ended before it answered {waiting_for}"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _keep(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason"):
            self.requests.pop(params["requestId"], None)

    def open(
        self, page: Path | str, width: int = 1400, height: int = 900, dark: bool = False, fragment: str = ""
    ) -> None:
        """Open a file or an address with a window size and colour scheme, and wait until it is laid out.

        fragment: what follows the address, such as `#part`.
        """
        url = (page if isinstance(page, str) else page.resolve().as_uri()) + fragment
        self.call("Page.navigate", url="about:blank")  # else the last page would be laid out once more
        self.resize(width, height)
        self._set_scheme(dark)
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + self.seconds
        while self.evaluate("document.readyState + location.protocol") != f"complete{url.partition(':')[0]}:":
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.02)
        self.settle()

    def _set_scheme(self, dark: bool) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def choose_scheme(self, dark: bool) -> None:
        """Switch the open page to the dark or the light colour scheme."""
        self._set_scheme(dark)
        self.settle()

    def resize(self, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def settle(self) -> None:
        """Wait for two frames, after which styles and layout are up to date."""
        if not self.scripts:  # promises never resolve without scripts
            time.sleep(0.2)
            return
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, json.dumps(result["exceptionDetails"])
        return result["result"].get("value")

    def let_scripts_run(self, allowed: bool) -> None:
        """Allow or forbid scripts of pages that are opened from now on; evaluate works in both cases."""
        self.call("Emulation.setScriptExecutionDisabled", value=not allowed)
        self.scripts = allowed

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def screenshot(self, path: Path) -> Path:
        """Write what the window shows as a PNG. The whole page would take two seconds."""
        data = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(data["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        path.write_bytes(
            base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])
        )
        return path
