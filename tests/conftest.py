"""What holds for every test, and the order in which they run."""

import gc
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from made_once import FOLDER
from unflushed import flush_nothing

from prunus.progress import set_quiet

LONGEST_ID = 80  # characters of a test's parameter
FEW_RESAMPLES = 400


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


@pytest.fixture
def below(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """below(name, value, limit) asserts value < limit of a number that moves with the processor's rounding.

    scripts/processors.py runs the tests that use it under the settings of several processors, and compares how far each
    number moves with its distance from the limit.
    """

    def check(name: str, value: float, limit: float) -> None:
        request.node.user_properties.append((name, json.dumps([value, limit])))
        assert value < limit, f"{name} is {value}, not below {limit}"

    return check


@pytest.fixture(autouse=True)
def _not_quiet() -> None:
    """A test that made this process quiet says nothing of the next one."""
    set_quiet(False)


@pytest.fixture(autouse=True)
def _machine_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do on the machine that runs the tests adds no line to what a test reads."""
    monkeypatch.setattr("prunus.machine_load.os.getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups with slow tests first, then other slow tests, so that no worker is left with one; `below` marks its users.

    Tests with the same module's fixtures run in one worker, so that each is made once.
    """
    for item in items:
        of_few(item)
        if "below" in getattr(item, "fixturenames", ()):
            item.add_marker("rounding")
        shared = item.config.pluginmanager.hasplugin("xdist") and uses_fixture_of_module(item)
        if shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    slow = {unit_of(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (unit_of(item) not in slow, item.get_closest_marker("xdist_group") is None))


def of_few(item: pytest.Item) -> None:
    """Take the mark `thorough` from a test whose parameters are among those that it names."""
    mark, case = item.get_closest_marker("thorough"), getattr(item, "callspec", None)
    if mark is not None and case is not None and case.id in mark.args:
        item.own_markers.remove(mark)


def uses_fixture_of_module(item: pytest.Item) -> bool:
    """Whether the test's own module makes something for all of its tests that this one needs."""
    info = getattr(item, "_fixtureinfo", None)
    fixtures = [one for each in info.name2fixturedefs.values() for one in each] if info else []
    return any(one.scope == "module" and one.baseid.endswith(".py") for one in fixtures)


def unit_of(item: pytest.Item) -> str:
    """What runs in one worker: the test's group, or the test alone."""
    mark = item.get_closest_marker("xdist_group")
    return item.nodeid if mark is None else str(mark.args[0])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported here stays: no collection of garbage need look at it, now or later, and others are rarer."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_probe_for_a_configuration() -> Generator[None]:
    """How a model's rows decode is found out once for each configuration, as it takes as long as a dozen tokens."""
    from prunus.evaluation.backends import hf

    find: Any = hf.rows_for
    found = dict[object, Any]()

    def rows_for(model: Any) -> partial[Any]:
        config = model.config
        key = config.to_json_string(use_diff=False).replace(str(config._name_or_path), ""), model.dtype
        kind = found[key] if key in found else found.setdefault(key, find(model))
        return partial(kind.func, model, **kind.keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf, "rows_for", rows_for)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_search_for_groups_of_the_same_questions() -> Generator[None]:
    """Which problems of a set belong together follows from their texts, and is found out once for each set."""
    from prunus.evaluation import resolved_plan, tasks

    find: Any = tasks.leaders
    found = cache(find)

    def leaders(texts: Sequence[str], keys: Sequence[str]) -> list[int]:
        return [*found(tuple(texts), tuple(keys))]

    with pytest.MonkeyPatch.context() as patch:
        for module in (tasks, resolved_plan):
            patch.setattr(module, "leaders", leaders)
        yield


DETECTABLE = ("test_betting", "test_comparison", "test_tutorial")  # files that check the effects that can be detected
INTERVALS = (*DETECTABLE, "test_accuracy_bands")  # and intervals


@pytest.fixture(scope="module", autouse=True)
def few_simulations(request: pytest.FixtureRequest) -> Generator[None]:
    """Only few files check intervals and detectable effects; elsewhere they take two thirds of a comparison's time."""
    from prunus.statistics import metrics, paired, power

    infer = paired.infer

    def infer_from_few(strata: Any, resamples: int = paired.RESAMPLES, seed: int = 0) -> paired.Inference:
        return infer(strata, min(resamples, FEW_RESAMPLES), seed)

    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ not in DETECTABLE:
            patch.setattr(power, "SIMULATED", 0)  # the least number of comparisons
            patch.setattr(power, "HALVINGS", 1)
        if request.module.__name__ not in INTERVALS:
            patch.setattr(paired, "infer", infer_from_few)
            patch.setattr(metrics, "EXPLORING_RESAMPLES", FEW_RESAMPLES)
        yield


@pytest.fixture(scope="module")
def few_resamples() -> Generator[None]:
    """For tests of studies: intervals are tested elsewhere, and cost more than all else there."""
    from prunus.reporting import report_data
    from prunus.results.comparison import compare, compare_runs
    from prunus.studies import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "compare", partial(compare, resamples=100))
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
