"""Carry out a declared search: evaluate rung after rung, only as far as it takes to decide, and say how it goes.

Rungs are made and evaluated on one loaded model or on a Ray cluster. Decisions are left to the walk, so a search on a
cluster decides as one on a single machine does.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any

from prunus.manifest import MANIFEST
from prunus.plain_data import content_hash
from prunus.progress import Steps, say
from prunus.pruning.calibration.saved_statistics import FIELDS, stats
from prunus.pruning.methods import find_method
from prunus.recipes import PruneRecipe
from prunus.results.certificate import DeclaredRung
from prunus.results.ladder import ACCURACY, DENSE, ENDPOINTS, paths, rounds_like
from prunus.results.vocabulary import RungVerdict
from prunus.results.words import bounds_in_points
from prunus.settings.engines import BACKENDS
from prunus.statistics.anytime import Round, with_estimate
from prunus.statistics.paired import Floats
from prunus.store.characters import MINUS
from prunus.store.rows import Sample
from prunus.store.store import Store
from prunus.store.stored import Adaptive
from prunus.studies.cells import Cell, Variant
from prunus.studies.engine import StudyEngine, makes_all_first
from prunus.studies.find.decisions import OUT_OF_TOKENS, Decided, SearchRows, cautions, decided, up_to
from prunus.studies.find.search import Search
from prunus.studies.looks.missing import missing_in
from prunus.studies.ray import Cluster, connected
from prunus.studies.ray.driver import Driver, StudyJob
from prunus.studies.variants import is_made, kept_folder, make_variant, unfinished_folder, variant_files

Show = Callable[[float], None]  # called with the number of chains that were completed


class Rungs:
    """Makes, evaluates and deletes rungs: `with closing(Rungs(search, store, folder, device, cluster)) as rungs: ...`.

    When rows are missing for the first time, the model is loaded, or the cluster is joined, whose workers then make and
    evaluate rungs. folder: of unfinished work. cluster: None for this process.
    """

    def __init__(self, search: Search, store: Store, folder: Path, device: str, cluster: Cluster | None) -> None:
        self.search, self.store, self.folder, self.device, self.cluster = search, store, folder, device, cluster
        self.driver: Driver | None = None
        self.engine = StudyEngine(search.grid, folder, device)
        self.all_first = makes_all_first(search.plan.backend, device)
        self.show: Show = lambda _: None
        self.adaptive = Adaptive.of({"by": "find", "seed": search.plan.seed})
        self.deleted: set[str] = set()
        self.stack = ExitStack()
        self.stack.enter_context(self.engine)

    def close(self) -> None:
        """Free the model, and leave the cluster."""
        self.stack.close()

    def evaluate(self, parts: Sequence[tuple[Cell, Sequence[Round]]], show: Show) -> bool:
        """Compute and store the rows of cells that are missing, each in its rounds; returns whether there were any."""
        work = [(cell, missing) for cell, rounds in parts if (missing := missing_in(self.store, cell.resolved, rounds))]
        self.show = show
        if self.cluster is not None and work:
            self.hand_out(work)
            return True
        for cell, batches in work:
            for variant in self.variants if self.all_first else [cell.variant]:
                self.make(variant)
            for samples in self.engine.evaluate(self.search.model, cell, batches, self.store, adaptive=self.adaptive):
                self.added(cell.run_id, samples)
        return bool(work)

    def added(self, _: str, samples: Sequence[Sample]) -> None:
        """Show that rows were added."""
        self.show(len(samples) / len({sample.budget for sample in samples}))

    @property
    def variants(self) -> list[Variant]:
        """Variants of all rungs, without the dense model."""
        return list(dict.fromkeys(cell.variant for cell in self.search.cells.values() if cell.variant.steps))

    def make(self, variant: Variant) -> None:
        """Make a rung unless its files exist. Its checkpoint stays, except where all rungs are made beforehand."""
        if self.search.grid.serves or variant.key in self.deleted or is_made(self.folder, variant):
            return  # for a server the checkpoint is made when it is started
        self.engine.release()
        say(f"making {variant.name}")
        leave, stats = not self.all_first, self.statistics_for(variant)
        make_variant(self.search.model, variant, self.folder, self.device, keep=False, leave=leave, stats=stats)

    def statistics_for(self, variant: Variant) -> Path | None:
        """A file of statistics that this rung shares with others, measured if it is missing; None where there are none.

        Rungs are calibrated on the same inputs only if their propagation is `dense`.
        """
        mine = shared_settings(variant)
        if mine is None or [shared_settings(other) for other in self.variants].count(mine) < 2:
            return None
        file = self.folder / f"{content_hash(mine)}.stats.safetensors"
        if not file.exists():
            stats(self.search.model.name, file, device=self.device, **mine)
        return file

    def hand_out(self, work: Sequence[tuple[Cell, list[list[tuple[int, int]]]]]) -> None:
        """Have batches of cells, and the variants that they need, done on the cluster."""
        model = self.search.model
        if self.driver is None:
            self.driver = self.joined()
            if BACKENDS[self.search.plan.backend].fills_gpu:  # it will occupy whole GPUs, so all are made now
                self.driver.do(self.to_make(self.variants))
        batches = [StudyJob(model, cell.variant, cell, batch, True) for cell, missing in work for batch in missing]
        self.driver.do([*self.to_make(cell.variant for cell, _ in work), *batches])

    def to_make(self, variants: Iterable[Variant]) -> list[StudyJob]:
        """The jobs of making the variants that are missing and were not deleted."""
        missing = {
            variant.key: variant
            for variant in variants
            if variant.key not in self.deleted and not is_made(self.folder, variant)
        }
        return [StudyJob(self.search.model, variant, None, [], True) for variant in missing.values()]

    def joined(self) -> Driver:
        """Join the cluster until `close` is called; returns a driver of it."""
        assert self.cluster is not None
        self.stack.enter_context(connected(self.cluster.address))
        grid, model = self.search.grid, self.search.model
        of = self.cluster, grid, [model], self.folder, self.store, self.added, self.device
        return Driver(*of, self.stack, self.adaptive)

    def delete(self, variant: Variant) -> None:
        """Delete the files of a rung that is not needed any more."""
        self.deleted.add(variant.key)
        if self.driver is not None:
            self.driver.files.pop(variant.key, None)
        self.engine.release()
        for path in reversed(variant_files(self.folder, variant)):
            path.unlink()
        for folder in (unfinished_folder(self.folder, variant), kept_folder(self.folder, self.search.model, variant)):
            if folder.exists():
                (folder / MANIFEST).unlink(missing_ok=True)  # first, so that what is left is not taken for complete
                shutil.rmtree(folder)


def shared_settings(variant: Variant) -> Mapping[str, Any] | None:
    """The arguments of `stats` for the statistics from which a variant is pruned; None if there is no such file."""
    recipe = variant.steps[0]
    if not isinstance(recipe, PruneRecipe) or recipe.propagation != "dense" or len(variant.steps) > 1:
        return None
    method = find_method(recipe)
    if method.needs == "nothing":
        return None
    fields = {name: getattr(recipe, name) for name in (*FIELDS, "dtype")}
    return fields | {"hessians": method.needs == "hessian"}


class Walk:
    """The walk along the ladders of a search, rung by rung: `Walk(search, rows, rungs).run()`."""

    def __init__(self, search: Search, rows: SearchRows, rungs: Rungs) -> None:
        self.search, self.rows, self.rungs = search, rows, rungs
        self.last: Decided | None = None
        self.expected = search.expected_rounds
        self.progress = ExitStack()
        self.steps: Steps | None = None
        self.warned = False

    def run(self) -> DeclaredRung | None:
        """Walk all ladders; returns the best certified rung, and deletes all others on the way."""
        best, of_best, undecided = None, 0, [rung.run for rung in self.search.declared.rungs]
        with self.progress:
            for outcome in decided(self.rows, self.search.declared, self.provide):
                self.progress.close()
                self.last, self.steps, rung = outcome, None, outcome.rung
                say(f"{rung.name}: {self.sentence(outcome)}; {outcome.spent:,} tokens so far")
                undecided.remove(rung.run)
                if outcome.decision.word == RungVerdict.CERTIFIED and rung.exceeds(best, of_best == outcome.ladder):
                    rung, best, of_best = best, rung, outcome.ladder
                if rung is not None and not self.is_needed(rung, [*undecided, *([best.run] if best else [])]):
                    self.rungs.delete(self.search.cells[rung.run].variant)
        most = self.search.declared.max_tokens
        if self.last is not None and most is not None and self.last.spent >= most:
            say(f"no other rung is looked at: {OUT_OF_TOKENS}")
        return best

    def is_needed(self, rung: DeclaredRung, runs: Sequence[str]) -> bool:
        """Whether a rung's files must stay: its variant is the dense model, or is that of one of these runs, too."""
        cells = self.search.cells
        variant = cells[rung.run].variant
        return not variant.steps or any(cells[run].variant == variant for run in runs)

    def provide(self, rung: DeclaredRung, looked: int, until: int, spent: int) -> None:
        """Evaluate what is missing of the dense model and a rung for the next look. looked: rounds that it had."""
        search, this = self.search, self.search.cells[rung.run]
        if self.steps is None:
            self.begin(rung)
            total, unit = len(search.order), "problems" if all(len(round) == 1 for round in search.order) else "rounds"
            self.steps = self.progress.enter_context(Steps(rung.name, total, unit))
        steps = self.steps
        differences = self.rows.differences(rung.run)
        note = f"{self.bounds(up_to(differences, looked))}, {spent:,} tokens"
        if len(differences[ACCURACY]) < until:
            draws = sum(search.plan.draws(of_base) for of_base in (True, False))
            chains, done = draws * sum(map(len, search.order[looked:until])), 0.0

            def show(finished: float) -> None:
                nonlocal done
                done += finished
                steps.within((until - looked) * min(done / chains, 1), note)

            parts = [(search.dense, search.order[looked : self.dense_until(until, this)])]
            if self.rungs.evaluate([*parts, (this, search.order[looked:until])], show):
                self.rows.forget()
        steps.advance(until - looked, note=note)
        differences = self.rows.differences(rung.run)
        self.warn({end: float(differences[DENSE[end]][:until].mean()) for end in ENDPOINTS})

    def begin(self, rung: DeclaredRung) -> None:
        """Say how many problems a rung will take if it differs as the rung before it on its ladder did."""
        ladders = [ladder.rungs for ladder in self.search.declared.ladders]
        if self.last is None or not any(self.last.rung in rungs and rung in rungs for rungs in ladders):
            self.expected = self.search.expected_rounds
            return
        differences = up_to(self.last.differences, self.last.looked)
        self.expected = ceil(min(len(self.search.order), rounds_like(differences, self.search.rule)))
        problems = sum(map(len, self.search.order[: self.expected]))
        say(f"{rung.name}: about {problems} problems if it differs as {self.last.rung.name} did")

    def warn(self, dense: Mapping[str, float]) -> None:
        """Warn, once, as soon as a margin is wide beside the dense model's own results. dense: these by endpoint."""
        if not self.warned and (notes := cautions(self.search.rule, dense, "so far the original")):
            say(f"warning: {notes}")
            self.warned = True

    def dense_until(self, until: int, rung: Cell) -> int:
        """The round up to which the dense model is evaluated when a rung needs it up to `until`.

        Where an engine is started anew for every model or for the rung's serving, it is at least as far as a harmless
        rung needs.
        """
        grid, by_bytes = self.search.grid, self.search.declared.model.engine is not None
        anew = rung.serving > 0 or grid.serves or by_bytes
        return max(until, self.expected) if anew else until

    def bounds(self, differences: Mapping[str, Floats]) -> str:
        """`accuracy -0.3 [-2.4, +1.9], ends -0.1 [-4.0, +3.1]` in points: differences so far and their bounds.

        For a relative margin, differences are from the share of the dense model's result that is to be kept.
        """
        if not len(differences[ACCURACY]):
            return "no problem yet"
        parts = []
        for end, seen in paths(differences, self.search.rule).items():
            margin = self.search.rule.margins[end]
            over = f" over {100 - 100 * margin.size:g} % of the original's" if margin.relative else ""
            numbers = with_estimate(seen.estimate[-1], seen.lower[-1], seen.upper[-1])
            bounds = bounds_in_points(*numbers[1:], margin)
            parts.append(f"{end}{over} {100 * numbers[0]:+.1f} {bounds}".replace(MINUS, "-"))
        return ", ".join(parts)

    def sentence(self, outcome: Decided) -> str:
        """What was decided about a rung, after how many problems, and its bounds."""
        decision, order = outcome.decision, self.search.order
        problems, total = sum(map(len, order[: decision.rounds])), sum(map(len, order))
        reason = f" ({outcome.why})" if outcome.why else ""
        return f"{decision.word}{reason} after {problems} of {total} problems: " + self.bounds(
            up_to(outcome.differences, decision.rounds)
        )
