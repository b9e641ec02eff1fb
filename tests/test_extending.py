"""What CONTRIBUTING promises: a method, an allocation, a depth method and a kind of step are one file and one entry.

The method and the step are those of the page itself; the toys beside them have options.
"""

import json
import shutil
from pathlib import Path

import contributing
import pytest
import warm_processes
from small_study import write_study
from tiny_models import make_model, random_rows

import prunus
from prunus.checkpoint.resolve import resolve

pytestmark = warm_processes.in_one_worker  # fixtures of the module are made once

METHOD = '''
"""A toy: zeroes the largest weights, and scales what is kept by an option."""

from prunus.pruning.masks import zero_lowest


def prune(weight_OI, inputs, target):
    assert inputs is not None and inputs.norm_I.shape == (weight_OI.shape[1],)
    return zero_lowest(weight_OI, 1 / (weight_OI.abs().float() + 1e-9), target, "row")


def configure(method, recipe):
    return method._replace(prune=lambda *given: prune(*given) * recipe.toy_scale)
'''
ALLOCATION = '''
"""A toy: the larger a block's weights, the more it keeps."""

from prunus.checkpoint.loader import blocks_on
from prunus.pruning.allocation.arithmetic import decreasing_sparsities
from prunus.pruning.allocation.measurement import ImportanceScores


def measure(subject, calibration):
    assert calibration is None
    blocks = enumerate(blocks_on(subject.source, range(subject.source.blocks), subject.runner.device))
    power = subject.recipe.toy_power
    scores = [
        sum(block[f"{name}.weight"].float().abs().pow(power).sum().item() for name in subject.names(index))
        for index, block in blocks
    ]
    return ImportanceScores(scores={"block": scores})


def allocate(scores, sizes, recipe):
    return decreasing_sparsities(scores, sizes, recipe.sparsity, 0.1)
'''
DEPTH = '''
"""A toy: removes blocks from the one that an option names."""

from prunus.pruning.depth.choice import KeptBlocks


def choose(model, count):
    first = model.recipe.toy_first
    return KeptBlocks.without(range(first, first + count), model.source.blocks, [])
'''
# One entry of the table each, by the line that it follows.
ENTRIES = {
    "_METHODS = (": """Method("toy", "a test", "zero the largest weights", needs="norms", group="row", updates=True,
        options=(Setting("toy_scale", float, 2.0, "factor of what is kept.", above=0, below=10),)),""",
    "_ALLOCATIONS = (": """Allocation("toy-sizes", "a test", "blocks with larger weights keep more", needs="weights",
        score="sum", settings=("toy_power",),
        options=(Setting("toy_power", int, 1, "exponent of a weight's size.", at_least=1),)),""",
    "_DEPTH_METHODS = (": """DepthMethod("toy", "a test", "remove blocks from a given one", needs_data=False,
        options=(Setting("toy_first", int, 0, "the first block to remove.", at_least=0),)),""",
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

on = dict(calibration="rows.jsonl", sequences=4)
flags = ("--calibration", "rows.jsonl", "--sequences", "4")
prunus.prune("model", "api", prunus.PruneRecipe(method="toy", toy_scale=3, allocation="toy-sizes", toy_power=2, **on))
command("prune", "model", "cli", "--method", "toy", "--toy-scale", "3", "--allocation", "toy-sizes", "--toy-power", "2",
        *flags)
prunus.drop("model", "api-drop", prunus.DropRecipe(method="toy", toy_first=1))
command("drop", "model", "cli-drop", "--method", "toy", "--toy-first", "1")
command("allocate", "model", "--allocation", "toy-sizes", "--save", "toy.json")
command("methods")
for words in json.load(open("commands.json")):
    command(*words)
command("prune", "--help-all")
said = {
    "other": refused(lambda: prunus.PruneRecipe(toy_scale=3)),
    "range": refused(lambda: prunus.PruneRecipe(method="toy", toy_scale=10)),
    "type": refused(lambda: prunus.PruneRecipe.from_json({"method": "toy", "toy_scale": "3"})),
    "scores": refused(lambda: prunus.prune("model", "x", prunus.PruneRecipe(
        allocation="toy-sizes", toy_power=3, scores="toy.json", **on))),
    "hash": prunus.PruneRecipe().hash,
    "json": sorted({*prunus.PruneRecipe(method="toy", toy_scale=3).to_json()} - {*prunus.PruneRecipe().to_json()}),
}
from prunus.pruning.bits.gguf_mixture import Shape, form_in_mixture
from prunus.recipes.gguf import MIXTURES
assert "q5_k_s" in MIXTURES and prunus.GgufRecipe(type="Q5_K_S").type == "q5_k_s"
shape = Shape(blocks=8, heads_per_key=1, experts=0, tied=False, values=list(range(8)), weighted=False)
tensors = [("blk.0.ffn_down.weight", 0, 256), ("blk.0.attn_v.weight", 0, 256), ("blk.3.attn_q.weight", 3, 96)]
said["forms"] = [form_in_mixture(*tensor, "q5_k_s", shape) for tensor in [*tensors, ("output.weight", None, 256)]]
open("said.json", "w").write(json.dumps(said))
"""


def copied(folder: Path) -> Path:
    """A copy of the package in src/prunus of the folder."""
    package = folder / "src" / "prunus"
    shutil.copytree(Path(prunus.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def insert(file: Path, line: str, entry: str) -> None:
    """Write an entry after a line of the file, in which there is one such line."""
    text = file.read_text()
    assert text.count(f"\n{line}\n") == 1
    file.write_text(text.replace(f"\n{line}\n", f"\n{line}\n    {entry}\n"))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder where a copy of the package with the toys has run: a file more and one entry each."""
    folder = tmp_path_factory.mktemp("extended")
    package = copied(folder)
    for place, text in (("methods/toy", METHOD), ("allocation/toy_sizes", ALLOCATION), ("depth/toy", DEPTH)):
        (package / "pruning" / f"{place}.py").write_text(text)
    for line, entry in ENTRIES.items():
        insert(package / "recipes/declarations.py", line, entry)
    pages = ("A pruning method", "A GGUF type")
    for page in pages:
        contributing.apply(page, package)
    (folder / "commands.json").write_text(
        json.dumps([words for page in pages for words in contributing.commands(page)])
    )
    make_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(f'{{"token_ids": {ids}}}\n' for ids in random_rows(4, 16)))
    status, printed = warm_processes.run_with(folder / "src", SCRIPT, folder)
    assert status == 0, printed
    return folder, printed, json.loads((folder / "said.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("way", ["api", "cli"])
def test_a_new_method_and_allocation_prune_with_their_options_and_measure(extended, way):
    from prunus.checkpoint.checkpoint import Checkpoint

    folder = extended[0]
    old, new = Checkpoint(folder / "model"), Checkpoint(folder / way)
    shares = []
    for index in range(old.blocks):
        zeros = total = 0
        for linear in old.linears(index):
            before, after = (each.read_weight(index, f"{linear.name}.weight").float() for each in (old, new))
            gone = after == 0
            assert (after[~gone] == (3 * before[~gone]).to(old.dtype).float()).all(), "it scales by its option"
            assert before[gone].abs().min() >= before[~gone].abs().min()
            zeros, total = zeros + int(gone.sum()), total + gone.numel()
        shares.append(zeros / total)
    assert max(shares) - min(shares) == pytest.approx(0.2, abs=0.02), "as far apart as the allocation says"
    step = new.manifest.data["history"][-1]
    assert (step["recipe"]["toy_scale"], step["allocation"]["settings"]["toy_power"]) == (3.0, 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["api-drop", "cli-drop"])
def test_a_new_depth_method_drops_with_its_option(extended, way):
    manifest = json.loads((extended[0] / way / "prunus.json").read_text())
    assert manifest["history"][-1]["blocks_removed"] == [1]


@pytest.mark.slow
def test_the_method_of_the_page_prunes_the_built_in_model(extended):
    from prunus.checkpoint.checkpoint import Checkpoint

    old, new = Checkpoint(resolve("tiny")), Checkpoint(extended[0] / "out" / "halfway")
    assert new.manifest.data["history"][-1]["recipe"]["method"] == "halfway"
    for index in range(old.blocks):
        for linear in old.linears(index):
            before, after = (each.read_weight(index, f"{linear.name}.weight") for each in (old, new))
            assert ((after == 0).sum(dim=1) == after.shape[1] // 2).all()
            assert (after[after != 0] == before[after != 0]).all()


@pytest.mark.slow
def test_the_gguf_type_of_the_page_has_its_forms(extended):
    """As llama.cpp's Q5_K_S: the head in Q6_K, all other matrices in Q5_K, and in Q5_1 where rows are too short."""
    assert extended[2]["forms"] == ["Q5_K", "Q5_K", "Q5_1", "Q6_K"]


@pytest.mark.slow
def test_recipes_lists_and_help_know_what_was_added(extended):
    _, printed, said = extended
    assert "zero the largest weights (a test; needs norms)" in printed
    assert "--toy-scale X" in printed and "toy: factor of what is kept." in " ".join(printed.split())
    assert said["other"] == "toy_scale belongs to method toy, not to wanda"
    assert said["range"] == "toy_scale must lie in (0, 10) for toy, not 10.0"
    assert said["type"] == "'toy_scale' must be a number, not '3'"
    assert "measured with --toy-power 1, not 3" in said["scores"]
    assert said["json"] == ["toy_scale"]
    assert said["hash"] == prunus.PruneRecipe().hash, "recipes that do not use it keep their hash"


STEP_SCRIPT = """
import io, json, sys
import prunus
from prunus.cli import main
from prunus.steps.scale import ScaleRecipe

def command(*words):
    try:
        main(list(words))
    except SystemExit as ended:
        return ended.code
    return 0

assert [command(*words) for words in json.load(open("commands.json"))] == [0]
said = {"codes": [command("scale", "model", "cli", "--factor", "0.5"), command("scale", "--help")]}
kept, sys.stderr = sys.stderr, io.StringIO()
said["codes"].append(command("scale", "model", "wrong", "--factor", "2"))
said["wrong"], sys.stderr = sys.stderr.getvalue().splitlines(), kept
prunus.apply_steps("model", "api", [ScaleRecipe(factor=0.5), prunus.PruneRecipe(method="magnitude", sparsity=0.25)])
prunus.study("small.toml", out="study")
said["study"] = [run.rows for run in prunus.runs("study/results.db")]
plan = prunus.EvalPlan(tasks=("tiny",), budgets=(8,), answer_tokens=4, limit=20, profile="tiny")
found = prunus.find("model", "found", plan, "ladder.toml", store="found.db", margin=0.5, stop_margin=0.5)
said["rungs"] = found.to_json()["ladders"]["ladder"]
open("said.json", "w").write(json.dumps(said))
"""
STEP_TABLES = """
[[scale]]
factor = [0.5, 0.25]
[[chain]]
steps = [{ scale = { factor = 0.5 } }, { prune = { method = "magnitude", sparsity = 0.25 } }]
"""


@pytest.fixture(scope="module")
def with_scale(tmp_path_factory):
    """A folder where a copy of the package has made steps of CONTRIBUTING.md in all ways."""
    folder = tmp_path_factory.mktemp("with_scale")
    package = copied(folder)
    contributing.apply("A kind of step", package)
    (folder / "commands.json").write_text(json.dumps(contributing.commands("A kind of step")))
    write_study(folder, STEP_TABLES, top="keep_checkpoints = true")
    (folder / "ladder.toml").write_text(
        "[[scale]]\nfactor = [0.9, 0.8]\n[[chain]]\nsteps = [{ scale = { factor = 0.7 } }]"
    )
    status, printed = warm_processes.run_with(folder / "src", STEP_SCRIPT, folder)
    assert status == 0, printed
    return folder, printed, json.loads((folder / "said.json").read_text())


def factors(made: Path, source: Path) -> dict[bool, set[float]]:
    """{whether of an MLP: by what its weights in made are those in source, 0 included}; of what stands in blocks."""
    from safetensors.torch import load_file

    old, new = ({k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
                for folder in (source, made))  # fmt: skip
    found: dict[bool, set[float]] = {True: set(), False: set()}
    for name, before in old.items():
        if name.endswith("proj.weight"):
            found[".mlp." in name] |= {round(x, 2) for x in (new[name].float() / before.float()).flatten().tolist()}
    return found


@pytest.mark.slow
def test_a_new_kind_of_step_is_a_command(with_scale):
    folder, printed, said = with_scale
    assert said["codes"] == [0, 0, 2]
    assert factors(folder / "out" / "scaled", resolve("tiny")) == {True: {0.5}, False: {1.0}}
    assert factors(folder / "cli", folder / "model") == {True: {0.5}, False: {1.0}}
    text = " ".join(printed.split())
    assert "Usage: prunus scale [OPTIONS] MODEL OUT Scale the MLPs of MODEL" in text
    assert "--factor X Factor of the weights of MLPs. [default: 0.5]" in text
    assert said["wrong"] == ["error: factor must lie in (0, 1), not 2.0"] and not (folder / "wrong").exists()


@pytest.mark.slow
def test_a_new_kind_of_step_is_a_step_of_chains(with_scale):
    folder = with_scale[0]
    assert factors(folder / "api", folder / "model") == {True: {0.5, 0.0}, False: {1.0, 0.0}}
    steps = json.loads((folder / "api" / "prunus.json").read_text())["history"]
    assert [(step["action"], step["recipe"].get("factor")) for step in steps] == [("scale", 0.5), ("prune", None)]


@pytest.mark.slow
def test_a_new_kind_of_step_is_in_studies_and_in_ladders(with_scale):
    folder, _, said = with_scale
    made = folder / "study" / "checkpoints" / "model"
    assert {path.name for path in made.iterdir()} == {"scale-50", "scale-25", "scale-50-magnitude-25"}
    assert factors(made / "scale-25", folder / "model") == {True: {0.25}, False: {1.0}}
    assert factors(made / "scale-50-magnitude-25", folder / "model") == {True: {0.5, 0.0}, False: {1.0, 0.0}}
    assert len(said["study"]) == 4 and all(rows == 18 for rows in said["study"])
    assert [rung["name"] for rung in said["rungs"]] == ["scale-90"], "no rung of a random model is certified"
    assert said["rungs"][0]["problems"] > 0 and said["rungs"][0]["run"]
