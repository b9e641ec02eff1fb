"""Write the model card of a checkpoint: how it was made, its zeros, and, from a store, its curve and verdict."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prunus.cards.certified import CERTIFICATE, NOTHING, read_claims
from prunus.cards.markdown import hub_id
from prunus.cards.text import README, Card, CardResults, Zeros, card_text, is_ours, read_metadata
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import hub_origin, is_built_in, resolve
from prunus.disk import as_path, explained, write_text
from prunus.errors import PrunusError
from prunus.evaluation.tasks import TASKS
from prunus.manifest import MANIFEST, StepRecord, read_manifest
from prunus.plain_data import PrintedRecord
from prunus.pruning.inspection import LinearFacts, ModelFacts, WeightFacts, inspect
from prunus.results.comparison import compare, plan_differences
from prunus.results.summary import summarise
from prunus.settings.margins import MARGIN, MarginLike
from prunus.store.labels import listed
from prunus.store.rows import Run
from prunus.store.store import Store


class CardMade(PrintedRecord):
    """A model card.

    out: the file.
    run, base: ids of the runs that it shows; None without a store, or a run of the dense model.
    verdict: of the comparison of the two; None where there is none.
    warnings: a line each.
    """

    out: str
    run: str | None
    base: str | None
    verdict: str | None
    warnings: Sequence[str]


def card(
    checkpoint: str | Path,
    *,
    store: str | Path | None = None,
    run: str | None = None,
    base: str | None = None,
    base_model: str | None = None,
    margin: MarginLike = MARGIN,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> CardMade:
    """Write the model card (README.md) of a checkpoint that prunus made.

        print(prunus.card("wanda-20", store="results.db", base_model="Qwen/Qwen3-0.6B").verdict)

    The card has the Hub's metadata, the steps that made the model, its zeros (counted now), the commands that repeat
    it, the claims of a certificate of `find` beside it, and with a store its accuracy at each budget and its verdict.
    The licence is that of the README.md that is replaced, which `prune` took from its source's.

    checkpoint: a folder that prunus made.
    store: results of `evaluate`; without one, the card says that nothing was measured.
    run: which run of this checkpoint, where the store has several; its id, the start of it, or its label.
    base: the run to compare with; None: that of the dense model, with the same plan.
    margin: as in compare.
    base_model: hub id of the dense model, where the manifest does not have it.
    out: a file, or a folder for README.md; None: the checkpoint's folder.
    overwrite: replace a README.md that prunus did not write, or that was edited since.

    Raises PrunusError, and leaves files as they were, if prunus did not make the checkpoint, the store has no run of
    it or several, or the file may not be replaced.
    """
    folder = resolve(checkpoint)
    steps = read_manifest(folder).history
    if not steps:
        raise PrunusError(f"{folder} has no {MANIFEST} that says what was done to it: cards are of pruned models")
    if base_model is not None and (hub_id(base_model) is None or "/" not in base_model):
        raise PrunusError(f"'{base_model}' is not a hub id; write it like Qwen/Qwen3-0.6B")
    if store is None and (run or base):
        raise PrunusError("a run is one of a store; name the store, too")
    target = target_of(folder, out)
    check_card_file(target, overwrite)
    results, warnings = (None, []) if store is None else read_results(folder, steps, Path(store), run, base, margin)
    source = read_metadata(folder / README) | read_metadata(target)
    certified = read_claims(folder)
    if certified.claims and certified.checksum != Checkpoint(folder).checksum():
        certified = NOTHING
        warnings.append(f"{CERTIFICATE} is about other weights than those beside it, so the card does not mention it")
    made = Card(steps, source, base_model=base_model, results=results, certified=certified)
    facts = inspect(folder, weights=True)
    assert isinstance(facts, ModelFacts)
    made = replace(made, nbytes=sum(facts.bytes.values()), cache=facts.cache)
    if facts.weights is not None:
        made = replace(made, zeros=zeros_of(facts.weights), patterns=[*facts.weights.patterns])
    if made.base is None:
        warnings.append("the dense model has no known hub id: name it with --base-model before you publish the card")
    try:
        write_text(target, card_text(made))
    except OSError as error:
        raise explained(error, target) from error
    contrast = results.contrast if results else None
    return CardMade(
        out=str(target),
        run=results.run.run_id if results else None,
        base=results.base.run_id if results and results.base else None,
        verdict=contrast.verdict if contrast else None,
        warnings=warnings,
    )


def target_of(folder: Path, out: str | Path | None) -> Path:
    """The file to write the card to. Raises PrunusError if that would be in the Hub's cache or a built-in model."""
    if out is None and (hub_origin(folder) or is_built_in(folder)):
        raise PrunusError(f"{folder} is not a folder of yours; name another for the card (--out)")
    target = folder if out is None else as_path(out)
    return target / README if target.is_dir() else target


def check_card_file(target: Path, overwrite: bool) -> None:
    """Raise PrunusError if the file exists and prunus did not write it as it is (unless overwrite)."""
    if not target.absolute().parent.is_dir():
        raise PrunusError(f"the folder of '{target}' does not exist: create it or name another file")
    if overwrite or not target.exists():
        return
    try:
        is_unedited = is_ours(target.read_text("utf-8"))
    except (OSError, ValueError):
        is_unedited = False
    if not is_unedited:
        raise PrunusError(
            f"{target} was not written by prunus, or was edited since: name another file (--out), or add --overwrite"
        )


def zeros_of(weights: WeightFacts) -> list[Zeros]:
    """The zeros among the weights of each part of the blocks (attention, mlp)."""
    parts: dict[str, list[LinearFacts]] = {}
    for linear in weights.linears:
        parts.setdefault(linear.part, []).append(linear)
    return [
        Zeros(part, sum(linear.zeros for linear in linears), sum(linear.weights for linear in linears))
        for part, linears in parts.items()
    ]


def read_results(
    folder: Path, steps: Sequence[StepRecord], path: Path, run: str | None, base: str | None, margin: MarginLike
) -> tuple[CardResults, list[str]]:
    """The results of a checkpoint's run in a store, and warnings."""
    checksum = Checkpoint(folder).checksum()
    with Store(path) as store:
        card_run = find_ours(store, checksum, run, folder)
        base_run = store.find_run(base) if base else find_dense(store, steps[0].source.checksum, card_run)
        warnings = [] if base_run else [f"{path} has no run of the dense model with this plan: the card has no verdict"]
        tasks = card_run.plan.tasks
        datasets = {task: hub for task in tasks if task in TASKS and (hub := TASKS[task].hub)}
        named = [task if task in TASKS or ":" in task else f"{task}.jsonl" for task in tasks]
        results = CardResults(
            replace(card_run, plan=card_run.plan | {"tasks": named}), summarise(store, card_run.run_id), datasets
        )
        if base_run is not None:
            results = replace(results, base=base_run, base_summary=summarise(store, base_run.run_id))
    if base_run is not None:
        comparison = compare(path, base_run.run_id, [card_run.run_id], margin=margin)
        (contrast,) = comparison.others
        results = replace(results, contrast=replace(contrast, warnings=[*contrast.warnings, *comparison.warnings]))
    return results, warnings


def find_ours(store: Store, checksum: str, run: str | None, folder: Path) -> Run:
    """The run of the weights with this checksum. Raises PrunusError if there is none, or several and `run` is None.

    run: the run that the user named, which must be of these weights. folder: of the checkpoint, for messages.
    """
    runs = (
        [store.find_run(run)]
        if run
        else [
            stored for stored in store.runs_with_rows() if stored.model.checksum == checksum and not stored.is_control
        ]
    )
    if not runs:
        there = ", ".join(dict.fromkeys(str(stored.model.name) for stored in store.runs())) or "no runs"
        raise PrunusError(f"no run of {folder} in {store.path}, which has {there}: run `prunus eval {folder}` first")
    if len(runs) > 1:
        raise PrunusError(f"{store.path} has {len(runs)} runs of {folder}: choose one with --run: {listed(runs)}")
    if runs[0].model.checksum != checksum:
        raise PrunusError(f"run {runs[0].run_id} is of other weights than {folder}: name a run of this checkpoint")
    return runs[0]


def find_dense(store: Store, checksum: str, card_run: Run) -> Run | None:
    """The run of the dense model whose plan can be compared with that of card_run; None if there is none."""
    dense = [
        stored
        for stored in store.runs_with_rows()
        if stored.model.checksum == checksum and not stored.model.manifest.history
    ]
    candidates = [stored for stored in dense if not stored.is_control and not plan_differences(card_run, stored)]
    if len(candidates) > 1:
        raise PrunusError(
            f"{store.path} has several runs of the dense model: choose one with --base: {listed(candidates)}"
        )
    return candidates[0] if candidates else None
