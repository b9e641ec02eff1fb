"""Importance scores: the numbers per block that an allocation measures, and the JSON file from which to reuse them.

In the file, and in the results of the API, they are called `evidence`.
"""

import json
import math
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import Linear
from prunus.checkpoint.loader import blocks_on
from prunus.checkpoint.runner import Runner
from prunus.disk import read_json
from prunus.errors import PrunusError
from prunus.formats import FORMATS, check_format
from prunus.progress import Steps
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.propagation import BlockRun, dense
from prunus.pruning.calibration.saved_statistics import SavedStats
from prunus.pruning.calibration.statistics import InputStats
from prunus.recipes import PruneRecipe
from prunus.version import __version__

_KEY = re.compile(r"layer_\d+_(attention|mlp)")
WHOLE, PARTS = "block", ("attention", "mlp")
Samples = Sequence[object] | Mapping[str, object]


class ImportanceScores(NamedTuple):
    """The scores of an allocation, and how they were measured. An allocation's `measure` gives the last three.

    scores: a number per block under `block`, or under `attention` and `mlp`. model: checksum of the weights they were
    measured on; None if they come from a user's file. settings: the options and the calibration that they depend on.
    details: further measurements, for information only.
    """

    allocation: str = ""
    model: str | None = None
    settings: Mapping[str, Any] = {}
    scores: Mapping[str, Sequence[float]] = {}
    details: Mapping[str, Any] = {}
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, object]:
        """The scores as JSON data."""
        fields = json.loads(json.dumps(self._asdict()))
        return {"prunus": __version__, "evidence": FORMATS["file of importance scores"], **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ImportanceScores":
        """The inverse of to_json."""
        return cls(**{name: data[name] for name in cls._fields})


def read_scores(path: Path, allocation: str, groups: Sequence[str], blocks: int) -> ImportanceScores:
    """Importance scores from a JSON file written by prunus or by a user.

    A user's file holds a list with a number per block (used for every group), an object with such lists under
    `attention` and `mlp`, or influences by sample (see sample_scores). Raises PrunusError for other content, or if it
    does not fit the model or the allocation.
    """
    data = read_json(path)
    if isinstance(data, Mapping) and "evidence" in data:
        check_format(
            "file of importance scores", path, data["evidence"], "measure them again with `prunus allocate --save`"
        )
        if not set(ImportanceScores._fields) <= set(data):
            raise PrunusError(f"{path} holds no importance scores: measure them again with `prunus allocate --save`")
        result = ImportanceScores.from_json(data)
        if result.allocation != allocation:
            raise PrunusError(f"{path} holds scores of {result.allocation}, not of {allocation}; measure again")
    elif is_by_sample(data):
        if WHOLE in groups:
            raise PrunusError(
                f"{path} holds scores of attention and mlp, which allocation layerif uses, not {allocation}"
            )
        sums, count = sums_of_samples(path, data, groups, blocks)
        result = ImportanceScores(allocation, None, {"file": path.name, "samples": count}, sums, {}, [])
    else:
        scores = dict.fromkeys(groups, data) if isinstance(data, list) else data
        result = ImportanceScores(allocation, None, {"file": path.name}, scores, {}, [])
    check_scores(path, result.scores, groups, blocks)
    return result


def is_scores_file(path: Path) -> bool:
    """Whether a file holds importance scores that prunus wrote."""
    try:
        data = read_json(path)
    except PrunusError:
        return False
    return isinstance(data, Mapping) and data.get("evidence") == FORMATS["file of importance scores"]


def check_scores(path: Path, scores: object, groups: Sequence[str], blocks: int) -> None:
    """Raise PrunusError unless scores hold a list with a finite number per block for every group."""
    for group in groups:
        values = scores.get(group) if isinstance(scores, Mapping) else None
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise PrunusError(f"{path} has no list '{group}'; write one score per block, as a list or under that name")
        if len(values) != blocks:
            raise PrunusError(f"{path} has {len(values)} scores for '{group}', but the model has {blocks} blocks")
        for index, value in enumerate(values):
            if not is_finite(value):
                raise PrunusError(f"{path}: score {index} of '{group}' is {value!r}, which is not a finite number")


# Influences in the file format of the study arXiv:2604.25098: scores of every block's attention and MLP, by sample.
# As in its code, the positive ones are summed over samples (wanda/lib/influence_helper.py,
# positive_influence_aggregation).


def is_by_sample(data: object) -> TypeGuard[Samples]:
    """Whether a file's content has this format: samples in a list or an object, or one object with sums of samples."""
    if isinstance(data, Sequence) and not isinstance(data, str):
        return any(isinstance(row, Mapping) for row in data)
    return isinstance(data, Mapping) and any(isinstance(v, Mapping) or _KEY.fullmatch(k) for k, v in data.items())


def sums_of_samples(
    path: Path, data: Samples, groups: Sequence[str], blocks: int
) -> tuple[dict[str, list[float]], int]:
    """Scores summed over samples, as a list with a sum per block for each of groups; and the number of samples.

    data: a list of samples, or an object of samples by name. A sample is an object with `layer_0_attention`,
    `layer_0_mlp` and so on for every block, or has that object under `scores`; only its positive scores are summed. A
    single such object is taken as the sums themselves. Raises PrunusError for content that does not fit.
    """
    alone = isinstance(data, Mapping) and any(_KEY.fullmatch(key) for key in data)
    samples: dict[str, object] = {"the object": data} if alone else {}
    for place, row in () if alone else data.items() if isinstance(data, Mapping) else enumerate(data):
        name, scores = f"sample {place}", row
        if isinstance(row, Mapping) and set(row) == {"sample_id", "scores"}:
            name, scores = f"sample {row['sample_id']}", row["scores"]
        if name in samples:
            raise PrunusError(f"{path}: {name} occurs twice; remove one")
        samples[name] = scores
    known = {f"layer_{index}_{part}" for index in range(blocks) for part in PARTS}
    sums = {group: [0.0] * blocks for group in groups}
    for name, scores in samples.items():
        if not isinstance(scores, Mapping):
            raise PrunusError(f"{path}: {name} is not an object with scores such as layer_0_attention and layer_0_mlp")
        if unknown := next((key for key in scores if key not in known), None):
            keys = f"layer_0_attention to layer_{blocks - 1}_mlp"
            raise PrunusError(f"{path}: {name} has the unknown key '{unknown}'; keys of this model are {keys}")
        for group, totals in sums.items():
            for index in range(blocks):
                key = f"layer_{index}_{group}"
                value: object = scores.get(key)
                if not is_finite(value):
                    shown = repr(value) if key in scores else "missing"
                    raise PrunusError(f"{path}: '{key}' of {name} is {shown}; every block needs a finite number")
                totals[index] += value if alone else max(0.0, value)
    return sums, len(samples)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a number other than NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Subject(NamedTuple):
    """The model to measure, and how.

    linears: the Linears in scope, by block. saved: input statistics that were saved before; None if the model must be
    run. file: for hidden states while it runs; None keeps them in memory.
    """

    source: Checkpoint
    recipe: PruneRecipe
    linears: Sequence[Sequence[Linear]]
    runner: Runner
    saved: SavedStats | None = None
    file: Path | None = None

    def names(self, index: int, part: str = WHOLE) -> list[str]:
        """Names within block `index` of its Linears in scope, or of those in a part of it."""
        return [linear.name for linear in self.linears[index] if part in (WHOLE, linear.kind)]


def blocks_with_inputs(
    subject: Subject, calibration: Calibration | None
) -> Iterator[tuple[int, dict[str, Tensor], Mapping[str, InputStats]]]:
    """Yield (index, weights, input statistics) of every block, both by Linear; saved, or from one dense pass."""
    source, saved, runner = subject.source, subject.saved, subject.runner
    blocks = blocks_on(source, range(source.blocks), runner.device)
    if saved is not None:
        for index, tensors in enumerate(blocks):
            weights = {name: tensors[f"{name}.weight"].to(runner.device) for name in subject.names(index)}
            yield index, weights, ChainMap(*map(dict, saved.groups(index, "norms", runner.device)))
        return
    assert calibration is not None
    hidden = HiddenStates(runner, calibration.sequences, subject.file)
    with Steps("measuring", total=source.blocks, unit="blocks") as steps:
        for index in range(source.blocks):
            block = runner.make_block(index, next(blocks))
            run = BlockRun(runner, block, index, hidden, subject.linears[index], last=False)
            for stats in dense(run):  # one, since no Hessians are asked for
                names = subject.names(index)
                by_name: dict[str, Tensor] = {n: block.get_submodule(n).get_parameter("weight") for n in names}
                yield index, by_name, stats
            steps.advance()
