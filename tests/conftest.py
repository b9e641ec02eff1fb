"""What holds for every test: the order in which they run, and which of them `make quick` runs."""

import gc
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_once import FOLDER
from quick import fastest, longest_first
from unflushed import flush_nothing

from prunus.progress import set_quiet

QUICK_SECONDS = 60  # of tests, all workers together
GIVE_UP_SECONDS = 35  # after collection: on a busy machine, and in a clone where nothing has been timed yet
TIMES = "prunus/seconds"  # in pytest's cache: test or shared fixture to seconds
LONG_SECONDS = 3  # groups and tests that take longer start before all others
SLOW_SECONDS = 15  # of a slow test that has never been timed
LONGEST_ID = 80  # characters of a test's parameter
APART = ("slow", "real_llm", "browser", "gpu")
_made: list[tuple[str, float]] = []  # fixtures that several tests share, since the last test was set up
_times: dict[str, float] = {}
_until = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"only the fastest tests, {QUICK_SECONDS} s of them")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for what all workers share, which start later; and nothing is flushed to disk."""
    flush_nothing()
    os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")  # four threads take longer than one to read small tensors
    if not hasattr(config, "workerinput"):
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="prunus-test-folders-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long texts are cut: the names of all tests travel from every worker, and each once more with every report."""
    return f"{ascii(val)[:LONGEST_ID]}..." if isinstance(val, (str, bytes)) and len(val) > LONGEST_ID else None


@pytest.fixture(autouse=True)
def _not_quiet() -> None:
    """A test that made this process quiet says nothing of the next one."""
    set_quiet(False)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Every worker must come to the same order: from the times that were known when they started."""
    node.workerinput[TIMES] = known_times(node.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long first, so that no worker is left with it at the end; --quick: the fastest alone."""
    known = known_times(config)
    costs = {item.nodeid: cost(item, known) for item in items}
    if config.getoption("quick"):
        candidates = [item.nodeid for item in items if not any(map(item.get_closest_marker, APART))]
        chosen = fastest({name: costs[name] for name in candidates}, QUICK_SECONDS)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
        items[:] = [item for item in items if item.nodeid in chosen]
    units = units_of(items)
    guesses = {item.nodeid: SLOW_SECONDS if item.get_closest_marker("slow") else 0.0 for item in items}
    seconds = {name: known.get(name, guesses.get(name, 0.0)) for name in units}
    at = {name: place for place, name in enumerate(longest_first(units, seconds, LONG_SECONDS))}
    items.sort(key=lambda item: at[item.nodeid])


def units_of(items: list[pytest.Item]) -> dict[str, str]:
    """What runs in one worker, by test and by fixture that tests share: the test's group, or the test alone."""
    units: dict[str, str] = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        unit = item.nodeid if mark is None else str(mark.args[0])
        units |= dict.fromkeys([item.nodeid, *shared_names(item)], unit)
    return units


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, Any, Any]:
    """What is imported here stays: no collection of garbage need look at it, now or later, and others are rarer."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
        gc.enable()
        session.config.stash[_until] = time.monotonic() + GIVE_UP_SECONDS


def known_times(config: pytest.Config) -> dict[str, float]:
    """Of earlier runs."""
    if hasattr(config, "workerinput"):
        return config.workerinput[TIMES]  # pyright: ignore[reportAttributeAccessIssue]  xdist's
    cache = getattr(config, "cache", None)
    return cache.get(TIMES, {}) if cache else {}


def cost(item: pytest.Item, known: dict[str, float]) -> float | None:
    """Seconds that a test took when last run, with the shared fixtures that it uses; None if never run."""
    if item.nodeid not in known:
        return None
    return known[item.nodeid] + sum(known.get(name, 0.0) for name in shared_names(item))


def shared_names(item: pytest.Item) -> list[str]:
    """What times call the fixtures that a test uses, if others share them."""
    return [shared_name(item, fixture) for fixture in getattr(item, "fixturenames", ())]


def shared_name(item: pytest.Item, fixture: str) -> str:
    return f"{item.nodeid.partition('::')[0]} {fixture}"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    began = time.perf_counter()
    made = yield
    if fixturedef.scope != "function":
        _made.append((fixturedef.argname, time.perf_counter() - began))
    return made


@pytest.fixture(scope="module")
def few_resamples() -> Generator[None]:
    """For tests of studies: intervals are tested elsewhere, and cost more than all else there."""
    from prunus.reporting import report_data
    from prunus.results.comparison import compare_runs, compared
    from prunus.study import pages

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "compared", partial(compared, resamples=100))
        patch.setattr(report_data, "compare_runs", partial(compare_runs, resamples=100))
        yield


@pytest.fixture
def search_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test of searches, with a model, a task and text."""
    from small_search import fill

    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rungs that answer by a script; counts the chains of each."""
    from small_search import script

    return script(monkeypatch)


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
