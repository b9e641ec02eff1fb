"""A report in a real browser, and its keys."""

import os
from collections.abc import Iterator

import pytest
from browser import Browser, find_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        assert not os.environ.get("CI"), "CI needs a Chromium: apt-get install --no-install-recommends chromium"
        pytest.skip("no Chromium on the PATH: apt-get install --no-install-recommends chromium")
    with Browser(executable, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def press(browser: Browser, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": " "} if key == " " and kind == "keyDown" else {}
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)
    browser.settle()
