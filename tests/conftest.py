"""What holds for every test: the order in which they run, and which of them `make quick` runs."""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from typing import Any

import pytest
from made_once import FOLDER
from quick import fastest

QUICK_SECONDS = 60  # of tests, all workers together
GIVE_UP_SECONDS = 35  # after collection: on a busy machine, and in a clone where nothing has been timed yet
TIMES = "prunus/seconds"  # in pytest's cache: test or shared fixture to seconds
LONGEST_ID = 80  # characters of a test's parameter
APART = ("slow", "real_llm", "browser", "gpu")
_made: list[tuple[str, float]] = []  # fixtures that several tests share, since the last test was set up
_times: dict[str, float] = {}
_until = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"only the fastest tests, {QUICK_SECONDS} s of them")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what all workers share, which start later."""
    if not hasattr(config, "workerinput"):
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="prunus-test-folders-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long texts are cut: the names of all tests travel from every worker, and each once more with every report."""
    return f"{ascii(val)[:LONGEST_ID]}..." if isinstance(val, (str, bytes)) and len(val) > LONGEST_ID else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker is left with one at the end; --quick: the fastest."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if config.getoption("quick"):
        known = known_times(config)
        candidates = [item for item in items if not any(map(item.get_closest_marker, APART))]
        chosen = fastest({item.nodeid: cost(item, known) for item in candidates}, QUICK_SECONDS)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
        items[:] = [item for item in items if item.nodeid in chosen]


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, Any, Any]:
    """What is imported here stays: no collection of garbage need look at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        session.config.stash[_until] = time.monotonic() + GIVE_UP_SECONDS


def known_times(config: pytest.Config) -> dict[str, float]:
    """Of earlier runs."""
    cache = getattr(config, "cache", None)
    return cache.get(TIMES, {}) if cache else {}


def cost(item: pytest.Item, known: dict[str, float]) -> float | None:
    """Seconds that a test took when last run, with the shared fixtures that it uses; None if never run."""
    if item.nodeid not in known:
        return None
    shared = (known.get(shared_name(item, name), 0.0) for name in getattr(item, "fixturenames", ()))
    return known[item.nodeid] + sum(shared)


def shared_name(item: pytest.Item, fixture: str) -> str:
    return f"{item.nodeid.partition('::')[0]} {fixture}"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    began = time.perf_counter()
    made = yield
    if fixturedef.scope != "function":
        _made.append((fixturedef.argname, time.perf_counter() - began))
    return made


def pytest_runtest_setup(item: pytest.Item) -> None:
    _made.clear()
    if item.config.getoption("quick") and time.monotonic() > item.config.stash[_until]:
        pytest.skip(f"not begun within {GIVE_UP_SECONDS} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    if call.when == "setup":
        item.user_properties += [("shared", (shared_name(item, name), seconds)) for name, seconds in _made]
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where pytest was started, with or without workers."""
    name = report.nodeid
    if name.rfind("@") > name.rfind("]"):  # the group, which xdist adds
        name = name[: name.rindex("@")]
    shared: list[Any] = [found for key, found in report.user_properties if key == "shared" and report.when == "setup"]
    if report.when == "setup":
        _times[name] = -sum(seconds for _, seconds in shared)
    if report.skipped:
        _times.pop(name, None)
    elif name in _times:
        _times[name] += report.duration
    _times.update(shared)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the times; those of --quick only where better, or a busy hour would leave it with ever fewer tests."""
    config = session.config
    if getattr(config, "cache", None) and not hasattr(config, "workerinput"):
        known = known_times(config)
        if config.getoption("quick"):
            _times.update({name: min(seconds, known.get(name, seconds)) for name, seconds in _times.items()})
        config.cache.set(TIMES, known | _times)
