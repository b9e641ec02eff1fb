"""What CONTRIBUTING promises: a method, an allocation and a depth method are one file and one entry each."""

import json
import shutil
from pathlib import Path

import pytest
import warm_processes
from tiny_models import make_model, random_rows

import prunus

pytestmark = warm_processes.in_one_worker  # fixtures of the module are made once

METHOD = '''
"""A toy: zeroes the largest weights, and says how many blocks its pass saw before and after."""

import torch

from prunus.pruning.masks import zero_lowest
from prunus.pruning.job import Pass


def prune(weight_OI, inputs, target):
    assert inputs is not None and inputs.norm_I.shape == (weight_OI.shape[1],)
    return zero_lowest(weight_OI, 1 / (weight_OI.abs().float() + 1e-9), target, "row")


class Scale(Pass):
    """Multiplies what is kept by an option."""

    def prepare(self, job, partial, calibration):
        self.seen = []

    def statistics(self, job, run, tensors, groups):
        for group in groups:
            self.seen.append(run.number)
            yield group

    def after_block(self, job, run, index, weights):
        assert self.seen == [*range(index + 1)]
        for name, weight_OI in weights.items():
            assert torch.equal(run.block.get_submodule(name).weight, weight_OI)
            weight_OI.mul_(job.recipe.toy_scale)


passes = (Scale,)
'''
ALLOCATION = '''
"""A toy: the larger a block's weights, the more it keeps."""

from prunus.checkpoint.loader import blocks_on
from prunus.pruning.allocation.arithmetic import decreasing_sparsities
from prunus.pruning.allocation.measurement import Measured


def measure(subject, calibration):
    assert calibration is None
    blocks = enumerate(blocks_on(subject.source, range(subject.source.blocks), subject.runner.device))
    power = subject.recipe.toy_power
    scores = [
        sum(block[f"{name}.weight"].float().abs().pow(power).sum().item() for name in subject.names(index))
        for index, block in blocks
    ]
    return Measured({"block": scores}, {}, [])


def allocate(scores, sizes, recipe):
    return decreasing_sparsities(scores, sizes, recipe.sparsity, 0.1)
'''
DEPTH = '''
"""A toy: removes blocks from the one that an option names."""

from prunus.pruning.depth.choice import Choice


def choose(model, count):
    first = model.recipe.toy_first
    return Choice.without(range(first, first + count), model.source.blocks, [])
'''
# One entry of the table each, by the line that it follows.
ENTRIES = {
    "_METHODS = (": """Method("toy", "a test", "zero the largest weights", needs="norms", group="row", updates=True,
        options=(Option("toy_scale", float, 2.0, "factor of what is kept.", above=0, below=10),)),""",
    "_ALLOCATIONS = (": """Allocation("toy-sizes", "a test", "blocks with larger weights keep more", needs="weights",
        score="sum", settings=("toy_power",),
        options=(Option("toy_power", int, 1, "exponent of a weight's size.", at_least=1),)),""",
    "_DEPTH_METHODS = (": """DepthMethod("toy", "a test", "remove blocks from a given one", needs_data=False,
        options=(Option("toy_first", int, 0, "the first block to remove.", at_least=0),)),""",
}
SCRIPT = """
import json, sys
import prunus
from prunus.cli import main

def refused(make):
    try:
        make()
    except prunus.PrunusError as error:
        return str(error)

def command(*words):
    try:
        main(list(words))
    except SystemExit as ended:
        assert not ended.code, words

on = dict(calibration="rows.jsonl", samples=4)
flags = ("--calibration", "rows.jsonl", "--samples", "4")
prunus.prune("model", "api", prunus.PruneRecipe(method="toy", toy_scale=3, allocation="toy-sizes", toy_power=2, **on))
command("prune", "model", "cli", "--method", "toy", "--toy-scale", "3", "--allocation", "toy-sizes", "--toy-power", "2",
        *flags)
prunus.drop_blocks("model", "api-drop", prunus.DropRecipe(method="toy", toy_first=1))
command("drop", "model", "cli-drop", "--method", "toy", "--toy-first", "1")
command("allocate", "model", "--allocation", "toy-sizes", "--save", "toy.json")
command("methods")
command("prune", "--help")
said = {
    "other": refused(lambda: prunus.PruneRecipe(toy_scale=3)),
    "range": refused(lambda: prunus.PruneRecipe(method="toy", toy_scale=10)),
    "type": refused(lambda: prunus.PruneRecipe.from_json({"method": "toy", "toy_scale": "3"})),
    "scores": refused(lambda: prunus.prune("model", "x", prunus.PruneRecipe(
        allocation="toy-sizes", toy_power=3, scores="toy.json", **on))),
    "hash": prunus.PruneRecipe().hash,
    "json": sorted({*prunus.PruneRecipe(method="toy", toy_scale=3).to_json()} - {*prunus.PruneRecipe().to_json()}),
}
open("said.json", "w").write(json.dumps(said))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder where a copy of the package with the toys has run: three files more, and one entry each."""
    folder = tmp_path_factory.mktemp("extended")
    package = folder / "src" / "prunus"
    shutil.copytree(Path(prunus.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for place, text in (("methods/toy", METHOD), ("allocation/toy_sizes", ALLOCATION), ("depth/toy", DEPTH)):
        (package / "pruning" / f"{place}.py").write_text(text)
    table = package / "declarations.py"
    text = table.read_text()
    for line, entry in ENTRIES.items():
        assert text.count(f"\n{line}\n") == 1
        text = text.replace(f"\n{line}\n", f"\n{line}\n    {entry}\n")
    table.write_text(text)
    make_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(f'{{"token_ids": {ids}}}\n' for ids in random_rows(4, 16)))
    status, printed = warm_processes.run_with(folder / "src", SCRIPT, folder)
    assert status == 0, printed
    return folder, printed, json.loads((folder / "said.json").read_text())


@pytest.mark.parametrize("way", ["api", "cli"])
def test_a_new_method_and_allocation_prune_with_their_options_pass_and_measure(extended, way):
    from prunus.checkpoint.checkpoint import Checkpoint

    folder = extended[0]
    old, new = Checkpoint(folder / "model"), Checkpoint(folder / way)
    shares = []
    for index in range(old.blocks):
        zeros = total = 0
        for linear in old.linears(index):
            before, after = (each.read_weight(index, f"{linear.name}.weight").float() for each in (old, new))
            gone = after == 0
            assert (after[~gone] == (3 * before[~gone]).to(old.dtype).float()).all(), "the pass scales by its option"
            assert before[gone].abs().min() >= before[~gone].abs().min()
            zeros, total = zeros + int(gone.sum()), total + gone.numel()
        shares.append(zeros / total)
    assert max(shares) - min(shares) == pytest.approx(0.2, abs=0.02), "as far apart as the allocation says"
    step = new.manifest["history"][-1]
    assert (step["recipe"]["toy_scale"], step["allocation"]["settings"]["toy_power"]) == (3.0, 2)


@pytest.mark.parametrize("way", ["api-drop", "cli-drop"])
def test_a_new_depth_method_drops_with_its_option(extended, way):
    manifest = json.loads((extended[0] / way / "prunus.json").read_text())
    assert manifest["history"][-1]["blocks_removed"] == [1]


def test_recipes_lists_and_help_know_what_was_added(extended):
    _, printed, said = extended
    assert "zero the largest weights (a test; needs norms)" in printed
    assert "--toy-scale FLOAT" in printed and "toy: factor of what is kept." in " ".join(printed.split())
    assert said["other"] == "toy_scale belongs to method toy, not to wanda"
    assert said["range"] == "toy_scale must be above 0 and below 10, not 10.0"
    assert said["type"] == "'toy_scale' must be a number, not '3'"
    assert "measured with --toy-power 1, not 3" in said["scores"]
    assert said["json"] == ["toy_scale"]
    assert said["hash"] == prunus.PruneRecipe().hash, "recipes that do not use it keep their hash"
