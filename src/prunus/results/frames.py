"""A store's results as pandas frames, and as files of them. Needs the extra `frames`.

A column's unit is the end of its name: `_tokens`, `_share` (of draws or problems), `_pp` (percentage points). `budget`
is the budget as a text, with which `off` (thinking switched off) has a name; its `budget_tokens` is empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prunus.disk import as_path, check_export, disk_errors, write_export
from prunus.errors import PrunusError, nearest, pip
from prunus.plain_data import PrintedRecord
from prunus.results.cells import Cell, Sized
from prunus.results.comparison import compare
from prunus.results.contrasts import ENDS
from prunus.results.summary import BudgetCell, summarise
from prunus.results.verdicts import verdict
from prunus.settings.budgets import NAMED
from prunus.settings.margins import MARGIN, MarginLike
from prunus.store.labels import Identity, identity
from prunus.store.rows import UNKNOWN, Run
from prunus.store.store import Store

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]  # of a frame, by column
Format = Literal["parquet", "csv", "jsonl"]
# Shares of draws in a budget's cell of `summarise`.
SHARES = ("forced", "leaked", "no_answer", "malformed", "failed", "truncated", "reopened", "looping")


class Results:
    """The results of a store, which every call reads anew; `prunus.open` makes one. A notebook shows its runs."""

    def __init__(self, store: str | Path) -> None:
        self.path = as_path(store, "store")
        _pandas()
        with Store(self.path):  # raises PrunusError here rather than in the first call
            pass

    def runs(self) -> "pandas.DataFrame":
        """One row per run: run, model, label (what was done to the model), how it was served, settings of the plan."""
        with Store(self.path) as store:
            return _pandas().DataFrame([self._run_row(run) for run in store.runs()])

    def samples(self, run: str | Identity | None = None, texts: bool = False) -> "pandas.DataFrame":
        """One row per draw, of a run (its id, the start of it, or its model's name) or of all.

        After run, model, label and serving, the columns are the fields of `prunus.store.rows.Sample`; budget is
        budget_tokens.
        texts: also the texts of thinking and answer.
        """
        rows: list[Row] = []
        with Store(self.path) as store:
            for chosen in self._chosen(store, run):
                named = _named(identity(chosen))
                for sample in store.samples(chosen.run_id, texts=texts):
                    values = _known(asdict(sample))
                    values |= _budget(values.pop("budget"))
                    values["answer_cap_tokens"] = values.pop("answer_cap")
                    if not texts:
                        del values["thinking"], values["text"]
                    rows.append(named | values)
        return _framed(rows)

    def curve(self, run: str | Identity | None = None) -> "pandas.DataFrame":
        """One row per run, task and budget: problems, draws, accuracy with its standard error and 95 % interval, mean
        tokens per draw, and shares of draws, all as `summarise` defines them. used_per_budget is the median of thinking
        tokens over the budget, which under native control may exceed 1."""
        rows: list[Row] = []
        with Store(self.path) as store:
            for chosen in self._chosen(store, run):
                for task, of_task in summarise(store, chosen.run_id).tasks.items():
                    for budget, cell in of_task.budgets.items():
                        rows.append(_named(identity(chosen)) | {"task": task} | _budget(budget) | _cell(cell))
        return _framed(rows)

    def compare(
        self,
        base: str | Identity | None = None,
        others: Sequence[str | Identity] | None = None,
        margin: MarginLike = MARGIN,
        stop_margin: MarginLike = MARGIN,
    ) -> "pandas.DataFrame":
        """One row per compared run, task and budget, and one per run with the primary contrast (task and budget empty).

        Differences to base are in percentage points. verdict is the run's, and ends_verdict that on chains that end by
        themselves (None without any), as in `prunus.compare`, whose arguments and errors these are.
        """
        comparison = compare(self.path, base, others, margin=margin, stop_margin=stop_margin)
        rows: list[Row] = []
        for other in comparison.others:
            named = _named(other)
            ends = other.stopping.endings.get(ENDS)
            words = {"verdict": other.verdict, "ends_verdict": None if ends is None else verdict(ends)}
            words |= {"base_run": comparison.base.run}
            rows.append(named | {"task": None} | _budget(None) | _difference(other.primary) | words)
            for task, part in other.tasks.items():
                for budget, cell in part.budgets.items():
                    rows.append(named | {"task": task} | _budget(budget) | _difference(cell) | words)
        return _framed(rows)

    def _repr_html_(self) -> str:
        return self.runs().to_html(index=False)

    def __repr__(self) -> str:
        return f"Results('{self.path}')"

    def _chosen(self, store: Store, run: str | Identity | None) -> list[Run]:
        return store.runs() if run is None else [store.find_run(str(run))]

    def _run_row(self, run: Run) -> Row:
        plan = run.plan
        return _named(identity(run)) | {
            "tasks": ", ".join(plan.tasks),
            "budgets_tokens": ", ".join(map(str, plan.budgets)),
            "mode": plan.mode,
            "profile": plan.profile,
            "seed": plan.seed,
            "backend": plan.backend,
            "control": plan.control,
            "serving_settings": identity(run).serving_settings or None,
            "model_bytes": run.nbytes,
        }


def open(store: str | Path) -> Results:
    """The results of a store, whose methods return pandas frames. Needs pandas (the extra `frames`).

        print(prunus.open("results.db").curve())

    store: SQLite file that `evaluate` or a study wrote.
    """
    return Results(store)


class Exported(PrintedRecord):
    """What `export` wrote.

    rows: the number of rows by path, which are the keys of the plain data.
    """

    rows: Mapping[str, int]

    def to_json(self) -> dict[str, int]:
        """{path: rows}."""
        return dict(self.rows)


def export(store: str | Path, out: str | Path, format: Format = "csv", overwrite: bool = False) -> Exported:
    """Write a store's frames `runs`, `samples` and `curve` as files; returns their numbers of rows.

        print(prunus.export("results.db", "frames").rows)

    store: SQLite file of the results.
    out: the folder of the files.
    format: `csv`, `jsonl` or `parquet`.
    overwrite: replace existing files.

    Every file is written completely or not at all. Raises PrunusError if one exists (unless overwrite), or pandas (for
    parquet also pyarrow) is missing.
    """
    if format not in get_args(Format):
        raise PrunusError(f"format '{format}' is not known; {nearest(format, get_args(Format))}")
    results, folder = Results(store), as_path(out)
    targets = {name: folder / f"{name}.{format}" for name in ("runs", "samples", "curve")}
    check_export(targets.values(), overwrite)
    frames = {path: getattr(results, name)() for name, path in targets.items()}
    with disk_errors(folder):
        write_export({path: partial(_encoded, frame, format) for path, frame in frames.items()})
    return Exported(rows={str(path): len(frame) for path, frame in frames.items()})


def _encoded(frame: "pandas.DataFrame", format: Format) -> bytes:
    buffer = BytesIO()
    try:
        if format == "parquet":
            frame.to_parquet(buffer, index=False)
        elif format == "csv":
            frame.to_csv(buffer, index=False)
        else:
            frame.to_json(buffer, orient="records", lines=True)
    except ImportError as error:
        raise PrunusError(f"parquet needs pyarrow: {pip('frames')}") from error
    except OverflowError as error:
        raise PrunusError(f"{format} holds no seed of more than 64 bits: take csv") from error
    return buffer.getvalue()


def _framed(rows: Sequence[Row]) -> "pandas.DataFrame":
    """A frame of rows whose budget_tokens may be empty."""
    frame = _pandas().DataFrame(rows)
    return frame.astype({"budget_tokens": "Int64"}) if rows else frame


def _known(values: Row) -> Row:
    """The values of a sample, None for those that an imported log does not tell."""
    known = {name: None if name.endswith("_tokens") and value == UNKNOWN else value for name, value in values.items()}
    return known | ({"ended": None} if known["forced_tokens"] is None else {})


def _budget(budget: int | None) -> Row:
    return {
        "budget": None if budget is None else str(budget),
        "budget_tokens": None if budget is None or budget in NAMED else int(budget),
    }


def _named(identity: Identity) -> Row:
    return {"run": identity.run, "model": identity.model, "label": identity.label, "serving": identity.serving}


def _sizes(cell: Sized) -> Row:
    return {"problems": cell.all_problems, "groups": cell.n, "draws": cell.samples}


def _cell(cell: BudgetCell) -> Row:
    kept = cell.adherence
    return {
        **_sizes(cell),
        "accuracy_share": cell.accuracy,
        "accuracy_se_share": cell.se,
        "accuracy_low_share": cell.low,
        "accuracy_high_share": cell.high,
        **{f"{phase}_tokens": getattr(cell.tokens, phase).mean for phase in ("thinking", "answer", "forced", "total")},
        **{f"{name}_share": getattr(cell, name) for name in SHARES},
        "used_per_budget": kept and kept.used,
        "over_budget_share": kept and kept.over,
    }


def _difference(cell: Cell) -> Row:
    points = {name: getattr(cell, name) for name in ("difference", "se", "low", "high", "lower_bound", "mde")}
    return {
        **_sizes(cell),
        "base_draws": cell.base_samples or cell.samples,
        "accuracy_share": cell.accuracy,
        "base_accuracy_share": cell.base_accuracy,
        **{f"{name}_pp": None if value is None else 100 * value for name, value in points.items()},
        "p": cell.p,
        "p_adjusted": cell.p_adjusted,
        "p_margin_adjusted": cell.p_margin_adjusted,
    }


def _pandas() -> Any:
    """The module pandas, imported only when it is needed."""
    try:
        import pandas
    except ImportError as error:
        raise PrunusError(f"frames need pandas: {pip('frames')}") from error
    return pandas
