"""Forecast of a search before it starts: problems and tokens of each rung, and the margin it can certify at all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.plain_data import plain
from prunus.results.ladder import ACCURACY, CHANGED, DENSE, ENDPOINTS, ENDS, FEW_CHANGED, Forecast, forecast
from prunus.store.store import Store, is_begun
from prunus.studies.cells import chain_tokens, tokens_per_chain
from prunus.studies.find.decisions import SearchRows, cautions
from prunus.studies.find.search import Search

WORDS = {ACCURACY: "accuracy", ENDS: "ending by itself"}  # of the endpoints, in sentences


@dataclass(frozen=True)
class SearchForecast:
    """What to expect of a search. Its text is its lines.

    problems, rungs: numbers in all.
    forecasts: of each endpoint.
    chain_tokens: of a draw under all budgets.
    measured: whether chain_tokens is the mean of the dense model's rows in the store; else no chain takes more.
    expected: problems that a harmless rung takes, at most all.
    rung_tokens, grid_tokens: of such a rung, and of all rungs and the dense model in full.
    impossible: a line for each margin that cannot be certified.
    warning: where the dense model's rows in the store show that it solves little beside the margin.
    lines: all of this in sentences.
    ladder: the TOML of a ladder by bytes that `find` chose.
    """

    problems: int
    rungs: int
    forecasts: dict[str, Forecast]
    chain_tokens: float
    measured: bool
    expected: int
    rung_tokens: int
    grid_tokens: int
    impossible: tuple[str, ...]
    warning: str = ""
    lines: tuple[str, ...] = ()
    ladder: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with None for numbers that are not finite."""
        data = vars(self) | {"forecasts": {end: vars(forecast) for end, forecast in self.forecasts.items()}}
        return {name: plain(value) for name, value in data.items() if name != "ladder" or value is not None}

    def __repr__(self) -> str:
        return "\n".join(self.lines)


def dense_so_far(search: Search, store: Path) -> tuple[dict[str, float], bool, float | None]:
    """Summary of the rows that a store has of the dense model. store: its path, which need not exist.

    Returns the mean of each endpoint over the rounds that are complete, empty without any; whether these are all; and
    the mean number of tokens of its chains, None without any.
    """
    if not is_begun(store):
        return {}, False, None
    run_id = search.dense.run_id
    with Store(store) as opened:
        differences = SearchRows(opened, search.declared).differences(run_id)
        tokens = tokens_per_chain([opened.samples(run_id)], search.plan.reuse)
    rounds = len(differences[ACCURACY])
    means = {end: float(differences[DENSE[end]].mean()) for end in ENDPOINTS} if rounds else {}
    return means, rounds == len(search.order), tokens


def search_forecast(search: Search, store: Path) -> SearchForecast:
    """Forecast of what a search will take; nothing is loaded or written. store: its path, which need not exist."""
    (means, whole, mean_tokens), margins = dense_so_far(search, store), search.rule.margins
    problems, draws, rungs = sum(map(len, search.order)), search.plan.samples, len(search.cells)
    dense_draws = search.plan.draws(of_base=True)
    work, expected = search.dense.resolved, counted(search.expected_rounds, search)
    forecasts = forecast(search.rule, len(search.order), draws, dense=means, base_draws=dense_draws)
    # Without rows, the most tokens of a chain, on average over the problems.
    per_chain = mean_tokens or float(
        np.mean([chain_tokens(search.plan, work.budgets, work.answers_at_most(i)) for i in range(len(work.problems))])
    )
    covered = [end for end, mean in means.items() if whole and margins[end].covers(mean)]
    nothing = [f"losing all of the original's {WORDS[end]} would be within the margin" for end in covered]
    made = SearchForecast(
        problems=problems,
        rungs=rungs,
        forecasts=forecasts,
        chain_tokens=per_chain,
        measured=mean_tokens is not None,
        expected=expected,
        rung_tokens=round(expected * draws * per_chain),
        grid_tokens=round((rungs * draws + dense_draws) * problems * per_chain),
        impossible=(*nothing, *impossible_lines(search, forecasts, means)),
        warning=cautions(search.rule, means, "the original"),
    )
    return replace(made, lines=tuple(lines_of(search, made, means)))


def impossible_lines(search: Search, forecasts: dict[str, Forecast], dense: Mapping[str, float]) -> list[str]:
    """A line for each margin that this number of problems cannot certify, whatever they show."""
    return [
        f"{counted(len(search.order), search)} problems cannot certify a margin of {size(search, end)} in {WORDS[end]};"
        f" {points(ceil(1000 * forecast.smallest) / 1000)} would be possible"
        for end, forecast in forecasts.items()
        if forecast.smallest > search.rule.margins[end].points(dense.get(end, 1.0))
    ]


def size(search: Search, end: str) -> str:
    """`2 points`, `5 % of the dense model's`: the margin of an endpoint."""
    margin = search.rule.margins[end]
    return margin.words("the original's") if margin.relative else points(margin.size)


def lines_of(search: Search, outlook: SearchForecast, dense: Mapping[str, float]) -> list[str]:
    """The forecast in sentences."""
    draws, declared = search.plan.samples, search.declared
    spans = {ladder.name: dict.fromkeys(ladder.rungs[end].name for end in (0, -1)) for ladder in declared.ladders}
    ladders = "; ".join(f"{name}: {' to '.join(span)}" for name, span in spans.items())
    grouped = f" in {outlook.problems - len(declared.groups)} groups" if declared.groups else ""
    more = f" ({search.plan.base_samples} of the original)" if search.plan.base_samples else ""
    each = f"{outlook.problems} problems{grouped} with {draws} draw{'s' * (draws > 1)} each{more}"
    lines = [f"{each}; {outlook.rungs} rungs ({ladders})"]
    if declared.model.engine is not None:
        sizes = [("dense", declared.model.size), *((rung.name, rung.size) for rung in declared.rungs)]
        named = ", ".join(f"{name} {show_bytes(size)}" for name, size in sizes if size is not None)
        tokens = declared.model.tokens
        takes = "loads" if tokens is None else f"takes for weights and the cache of a chain of {tokens:,} tokens"
        lines.append(f"{declared.model.engine} {takes}: {named}")
    for end, expected in outlook.forecasts.items():
        margin, least = search.rule.margins[end], points(ceil(1000 * expected.smallest) / 1000)
        limit = size(search, end)
        if margin.relative:
            limit += f", {points(margin.points(dense[end]))}," if end in dense else ", if that is everything,"
        takes = (
            f"about {counted(expected.fewer, search)} to {counted(expected.rounds, search)} problems"
            if isfinite(expected.rounds)
            else "more problems than anybody has"
        )
        line = (
            f"{WORDS[end]}: a margin of {limit} takes {takes} if {100 * FEW_CHANGED:g} to {100 * CHANGED:g} %"
            f" of a rung's draws change (an assumption); {least} at best"
        )
        if expected.rounds > expected.available:
            line += f"; {advice(expected, draws, search.plan.draws(of_base=True), outlook.rungs)}"
        lines.append(line)
    kind = "about" if outlook.measured else "at most"
    lines.append(
        f"a rung of which {100 * CHANGED:g} % change takes {kind} {outlook.rung_tokens:,} tokens ({outlook.expected}"
        f" problems); all rungs in full would take {kind} {outlook.grid_tokens:,}"
    )
    return [*lines, *(f"warning: {line}" for line in (outlook.warning, *outlook.impossible) if line)]


def advice(forecast: Forecast, draws: int, dense_draws: int, rungs: int) -> str:
    """Advice where the problems are probably too few: the change that adds the fewest draws if all rungs are walked."""
    more = inf if forecast.draws is None else forecast.draws * (1 + rungs) - draws * rungs - dense_draws
    of_base = inf if forecast.base_draws is None else forecast.base_draws - dense_draws
    if of_base < more:
        return f"--base-samples {forecast.base_draws} would make these problems enough"
    if forecast.draws is not None and forecast.draws > draws:
        return f"--samples {forecast.draws} would make these problems enough"
    return "these are too few with any number of draws: take more problems or a larger margin"


def refuse_impossible(outlook: SearchForecast) -> None:
    """Raise PrunusError if a margin cannot be certified at all."""
    if outlook.impossible:
        raise PrunusError(f"{outlook.impossible[0]}: take more problems or a larger margin")


def counted(rounds: float, search: Search) -> int:
    """How many problems a number of rounds holds, rounded up."""
    return ceil(rounds * sum(map(len, search.order)) / len(search.order))


def points(share: float) -> str:
    """A share as text: `2 points`, `0.3 points`."""
    return f"{100 * share:.3g} point{'' if share == 0.01 else 's'}"
