"""Frames and files of a store against what the store and its statistics say themselves."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from fake_store import make_store

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.results.summary import summarise
from prunus.store.store import Store

NAMES = ("tiny", "wanda-20", "wanda-50")


def frames(store: Path) -> Any:
    """The stubs of pandas make a union of many types of every column."""
    return prunus.open(store)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "results.db"
    make_store(path, names=NAMES, problems=12, budgets=(0, 64, 256), draws=2)
    return path


def test_a_row_per_draw_with_the_values_of_the_store(store):
    frame = frames(store).samples()
    with Store(store) as opened:
        runs = opened.runs()
        stored = [sample for run in runs for sample in opened.samples(run.run_id)]
    assert len(frame) == len(stored) == 3 * 12 * 3 * 2
    assert list(frame["correct"]) == [sample.correct for sample in stored]
    assert list(frame["budget_tokens"]) == [sample.budget for sample in stored]
    assert list(frame["thinking_tokens"]) == [sample.thinking_tokens for sample in stored]
    assert "text" not in frame and "text" in frames(store).samples("tiny", texts=True)
    assert set(frames(store).samples("wanda-50")["model"]) == {"wanda-50"}


def test_a_curve_is_the_mean_of_the_draws(store):
    results = frames(store)
    curve, samples = results.curve(), results.samples()
    by_hand = samples.groupby(["model", "budget_tokens"])["correct"].mean()
    found = curve.set_index(["model", "budget_tokens"])["accuracy_share"]
    pandas.testing.assert_series_equal(found.sort_index(), by_hand.sort_index(), check_names=False)
    with Store(store) as opened:
        cell = summarise(opened, opened.find_run("wanda-50").run_id).to_json()["tasks"]["tiny"]["budgets"][64]
    row = curve[(curve["model"] == "wanda-50") & (curve["budget_tokens"] == 64)].iloc[0]
    assert (row["accuracy_low_share"], row["total_tokens"]) == (cell["low"], cell["tokens"]["total"]["mean"])


@pytest.mark.slow
def test_the_margin_of_endings_reaches_their_verdict(store):
    def by_hand(margin: float) -> list[str]:
        others = prunus.compare(store, "tiny", stop_margin=margin).to_json()["others"]
        return [other["stopping"]["endings"]["ends"]["verdict"] for other in others]

    frame = frames(store).compare("tiny", stop_margin=0.5)
    assert frame[frame["task"].isna()]["ends_verdict"].tolist() == by_hand(0.5) != by_hand(0.001)


@pytest.mark.slow
def test_differences_are_those_of_compare_in_points(store):
    frame = frames(store).compare("tiny")
    expected = prunus.compare(store, "tiny").to_json()
    for other in expected["others"]:
        rows = frame[frame["run"] == other["run"]]
        primary = rows[rows["task"].isna()].iloc[0]
        assert primary["difference_pp"] == pytest.approx(100 * other["primary"]["difference"])
        assert set(rows["verdict"]) == {other["verdict"]}
        assert set(rows["ends_verdict"]) == {other["stopping"]["endings"]["ends"]["verdict"]}
        for budget, cell in other["tasks"]["tiny"]["budgets"].items():
            row = rows[rows["budget_tokens"] == int(budget)].iloc[0]
            assert (row["low_pp"], row["high_pp"]) == pytest.approx((100 * cell["low"], 100 * cell["high"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "read"),
    [
        ("csv", pandas.read_csv),
        ("parquet", pandas.read_parquet),
        ("jsonl", lambda path: pandas.DataFrame(map(json.loads, path.read_text().splitlines()))),
    ],
)
def test_files_hold_the_frames(store, tmp_path, format, read):
    main(["export", str(store), str(tmp_path / "out"), "--format", format])
    results = frames(store)
    for name in ("runs", "samples", "curve"):
        frame, found = getattr(results, name)(), read(tmp_path / "out" / f"{name}.{format}")
        assert list(found.columns) == list(frame.columns) and len(found) == len(frame)
    curve = read(tmp_path / "out" / f"curve.{format}")
    assert list(curve["accuracy_share"]) == pytest.approx(list(results.curve()["accuracy_share"]))


def test_nothing_is_overwritten_unasked(store, tmp_path):
    (tmp_path / "curve.csv").write_text("mine")
    with pytest.raises(PrunusError, match=r"curve.csv' exists: name another folder, or add --overwrite"):
        prunus.export(store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"]
    prunus.export(store, tmp_path, overwrite=True)
    assert (tmp_path / "curve.csv").read_text().startswith("run,model")


@pytest.mark.slow
def test_a_seed_that_parquet_cannot_hold_is_one_line(tmp_path):
    make_store(tmp_path / "results.db", names=NAMES[:1], problems=1)
    with Store(tmp_path / "results.db") as store:
        (run,) = store.runs()
        store.add_run(replace(run, run_id="e" * 12, plan=run.plan | {"seed": 2**64}))
    with pytest.raises(PrunusError, match="parquet holds no seed of more than 64 bits"):
        prunus.export(tmp_path / "results.db", tmp_path / "frames", "parquet")
    prunus.export(tmp_path / "results.db", tmp_path / "frames", "csv")
    assert str(2**64) in (tmp_path / "frames" / "runs.csv").read_text()


def test_what_is_missing_is_named(store, tmp_path, monkeypatch):
    with pytest.raises(PrunusError, match=r"the store .* cannot be read"):
        frames(tmp_path / "none.db")
    with pytest.raises(PrunusError, match="format 'xls' is not known; choose one of parquet, csv, jsonl"):
        prunus.export(store, tmp_path, "xls")  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PrunusError, match=r"pip install '\.\[frames\]'"):
        frames(store)


def test_a_notebook_shows_the_runs(store):
    assert all(name in frames(store)._repr_html_() for name in NAMES)
