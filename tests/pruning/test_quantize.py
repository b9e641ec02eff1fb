"""prunus quantize: the whole command, against whole models of transformers, by itself and after other steps."""

import json
import shutil
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.compressed_tensors import product, unpacked_words
from prunus.checkpoint.loader import load_whole
from prunus.checkpoint.model_folder import ModelFolder
from prunus.checkpoint.writer import Partial
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.plain_data import plain
from prunus.pruning.bits.gptq import Ordered, quantise
from prunus.pruning.bits.grid import Grid, to_nearest
from prunus.pruning.calibration.statistics import Hessian
from prunus.pruning.recover.training import fit
from prunus.recipes import EvalPlan, ExpertsRecipe, PruneRecipe, QuantizeRecipe, RecoverRecipe, WidthRecipe
from prunus.step import kind_of, steps_name
from prunus.store.labels import label_of, step_label
from prunus.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
SEQUENCES, LENGTH = 8, 24
ROWS = torch.randint(3, 128, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with calibration sequences and a random model of three blocks."""
    folder = tmp_path_factory.mktemp("quantize")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in ROWS))
    make_random_model("qwen3", folder / "dense", num_hidden_layers=3)
    return folder


def asked(shared, **changes):
    usual: dict[str, Any] = {
        "bits": 4,
        "calibration": str(shared / "rows.jsonl"),
        "sequences": SEQUENCES,
        "seqlen": LENGTH,
    }
    return QuantizeRecipe(**usual | changes)


@pytest.fixture
def training(shared, monkeypatch):
    """Settings of a recipe that trains on enough sequences for a random model, with a step for each."""
    monkeypatch.setattr("prunus.pruning.quantize.STEP_TOKENS", 64)
    rows = torch.randint(3, 128, (64, 64), generator=torch.Generator().manual_seed(1)).tolist()
    (shared / "long.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    return {"calibration": str(shared / "long.jsonl"), "sequences": 64, "seqlen": 64, "recover": True}


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def weights_of(folder):
    """The plain weights, as every command reads them."""
    return {name: stored.read() for name, stored in Checkpoint(folder).tensors.items()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",),
)  # fmt: skip


@cache
@torch.no_grad()
def by_hand(folder, bits, group, dense=False):
    """The weights of all Linears, each quantised on what it reads in whole passes once all earlier Linears are.

    dense: on what it reads in the dense model instead.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for index in range(len(model.model.layers)):
        for stage in STAGES:
            read, seen = [], (whole if dense else model).model.layers[index]
            handle = seen.get_submodule(stage[0]).register_forward_pre_hook(
                lambda _m, args, read=read: read.append(args[0].flatten(0, 1))
            )
            for ids in ROWS:
                (whole if dense else model)(input_ids=torch.tensor([ids]), use_cache=False)
            handle.remove()
            x_SI = torch.cat(read)
            ordered = Ordered(Hessian(x_SI.T @ x_SI))
            for name in stage:
                weight = model.model.layers[index].get_submodule(name).weight
                made = quantise(weight, ordered, Grid(bits, group or weight.shape[1], torch.float32))
                weight.copy_(product(made.code_OI, made.scale_OG))
                found[f"model.layers.{index}.{name}.weight"] = weight.clone()
    return found


def agreement(made, expected):
    """The share of weights that are equal; a Hessian's last bits turn a few roundings."""
    equal = [torch.isclose(made[name], expected[name], rtol=1e-6, atol=0) for name in expected]
    return sum(int(one.sum()) for one in equal) / sum(one.numel() for one in equal)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, None)])
def test_each_linear_is_quantised_on_what_it_reads_behind_quantised_ones(shared, tmp_path, bits, group):
    told = prunus.quantize(shared / "dense", tmp_path / "out", asked(shared, bits=bits), device="cpu")
    expected, made = by_hand(shared / "dense", bits, group), weights_of(tmp_path / "out")
    assert agreement(made, expected) > 0.999
    if bits == 4:  # with 8, errors of earlier Linears change little
        assert agreement(made, by_hand(shared / "dense", bits, group, dense=True)) < 0.99
    before = tensors_of(shared / "dense")
    assert made.keys() == before.keys() and told.linears == len(expected) == 21 and told.blocks == 3
    assert all(torch.equal(made[name], before[name]) for name in made.keys() - expected.keys())
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.pop("quantization_config")["ignore"] == ["lm_head"]
    assert config == json.loads((shared / "dense/config.json").read_text())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_what_an_engine_loads_is_counted(shared, tmp_path):
    told = prunus.quantize(shared / "dense", tmp_path / "out", asked(shared), device="cpu")
    made = tensors_of(tmp_path / "out")
    (step,) = ModelFolder(tmp_path / "out").manifest.data["history"]
    sizes, total = step["bytes"], sum(tensor.nbytes for tensor in made.values())
    weights = sum(a * b for index in range(3) for a, b in Checkpoint(shared / "dense").linear_shapes(index).values())
    assert (sizes["quantised"], sizes["scales"]) == (weights // 2, weights // 32 * 4)
    kinds = {name: size for name, size in sizes.items() if name not in ("before", "after")}
    assert sizes["after"] == total == sum(kinds.values())
    assert sizes["embeddings"] == made["model.embed_tokens.weight"].nbytes
    assert sizes["before"] == sum(tensor.nbytes for tensor in tensors_of(shared / "dense").values())
    assert step["format"] == {"name": "pack-quantized", "bits": 4, "group": 32}
    assert ModelFolder(tmp_path / "out").parameters == ModelFolder(shared / "dense").parameters
    facts, dense = (prunus.inspect(folder) for folder in (tmp_path / "out", shared / "dense"))
    assert isinstance(facts, prunus.ModelFacts) and isinstance(dense, prunus.ModelFacts) and facts.weights is not None
    row = {"use": "quantize", "possible": True, "note": "W8A8; W4A16 in groups of 32"}
    assert row in plain(dense.uses) and row not in plain(facts.uses)
    assert facts.weight_bytes == total and facts.bytes == kinds and facts.stored == "int4, read in float32"
    assert facts.history[0].bytes == sizes and facts.history[0].format == step["format"]
    assert (
        facts.weights.sparsity > 0
        and kind_of(asked(shared)).nbytes(asked(shared), Checkpoint(shared / "dense")) == total
    )
    (warning,) = [one for one in told.warnings if "groups" in one]
    assert warning == "groups have 32 inputs: 128 does not divide the 64 of self_attn.q_proj"
    assert told.format == "W4A16, groups of 32" and "W4 g32" in (tmp_path / "out/README.md").read_text()
    assert "base_model_relation: quantized" not in (tmp_path / "out/README.md").read_text()  # no hub id


@pytest.mark.slow
def test_by_rounding_to_nearest_nothing_is_run(shared, tmp_path):
    recipe = QuantizeRecipe(bits=4, method="rtn", group="row", calibration="c4")
    told = prunus.quantize(shared / "dense", tmp_path / "out", recipe, device="cpu")
    made, before = weights_of(tmp_path / "out"), tensors_of(shared / "dense")
    for name in [name for name in made if name.endswith("_proj.weight")]:
        codes = to_nearest(before[name], Grid(4, before[name].shape[1]))
        assert torch.equal(made[name], product(codes.code_OI, codes.scale_OG))
    assert told.format == "W4A16, a scale for each row" and told.warnings == []


@pytest.mark.thorough("True-True")
@pytest.mark.slow
@pytest.mark.parametrize(("offload", "recover"), [(False, False), (True, False), (True, True)])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    shared, tmp_path, monkeypatch, offload, recover, training
):
    recipe = asked(shared, **training | {"sequences": 32} if recover else {})
    prunus.quantize(shared / "dense", tmp_path / "whole", recipe, device="cpu", offload=offload)
    write = Partial.write_block

    def stop(self, index, *given):
        write(self, index, *given)
        if index == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Partial, "write_block", stop)
        with pytest.raises(KeyboardInterrupt):
            prunus.quantize(shared / "dense", tmp_path / "out", recipe, device="cpu", offload=offload)
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()
    with pytest.raises(PrunusError, match="unfinished work of another recipe"):
        prunus.quantize(shared / "dense", tmp_path / "out", asked(shared, bits=8), device="cpu")
    done = []

    def note(self, index, *given):
        done.append(index)
        write(self, index, *given)

    monkeypatch.setattr(Partial, "write_block", note)
    prunus.quantize(shared / "dense", tmp_path / "out", recipe, device="cpu", offload=offload)
    assert done == [2] and contents(tmp_path / "out") == contents(tmp_path / "whole")
    blocks = ModelFolder(tmp_path / "out").manifest.data["history"][0].get("blocks", [])
    assert [one["trained"] for one in blocks] == [True] * 3 * recover


@torch.no_grad()
def outputs_of(folder):
    """The output of every block of a folder's plain weights, by transformers, for each token of the calibration."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for seen, layer in zip(found, model.model.layers, strict=True):
        layer.register_forward_hook(lambda _m, _args, out, seen=seen: seen.append(out.flatten(0, 1)))
    for ids in ROWS:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return [torch.cat(rows) for rows in found]


@pytest.mark.thorough
@pytest.mark.slow
def test_trained_scales_and_norms_bring_every_block_nearer_to_the_dense_one(shared, tmp_path, monkeypatch, training):
    def noting(parameters, *given, **settings):
        fitted = fit(parameters, *given, **settings)
        trained.update({one.name: one.parameter.detach().clone() for one in parameters})
        return fitted

    trained: dict[str, torch.Tensor] = {}
    monkeypatch.setattr("prunus.pruning.recover.training.fit", noting)
    for name, recover in (("plain", False), ("trained", True)):
        recipe = asked(shared, **training | {"recover": recover})
        told = prunus.quantize(shared / "dense", tmp_path / name, recipe, device="cpu")
        prunus.dequantize(tmp_path / name, tmp_path / f"{name}-16")
    before, made = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "trained")
    first = {name for name in made if name.startswith("model.layers.0.")}
    scales = {name for name in first if name.endswith("scale")}
    norms = {name for name in first if "norm" in name}
    assert len(scales) == 7 and len(norms) == 4
    assert not any(torch.equal(before[name], made[name]) for name in scales | norms)
    assert all(torch.equal(before[name], made[name]) for name in first - scales - norms), "integers stay"
    assert all(torch.equal(made[name], trained[name]) for name in scales)
    shapes = [{name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (before, made)]
    assert shapes[0] == shapes[1]
    errors = {}
    for name in ("plain", "trained"):
        pairs = zip(outputs_of(tmp_path / f"{name}-16"), outputs_of(shared / "dense"), strict=True)
        errors[name] = [float(((out - y).square().sum(1) / y.square().sum(1)).mean()) for out, y in pairs]
    assert all(ours < plain for plain, ours in zip(errors["plain"], errors["trained"], strict=True)), errors
    (step,) = ModelFolder(tmp_path / "trained").manifest.data["history"]
    assert all(fitted["after"] < fitted["before"] for fitted in step["blocks"])
    assert told.error_after and told.error_after == pytest.approx(sum(fitted["after"] for fitted in step["blocks"]) / 3)
    assert 0.3 < told.error_after / (sum(errors["trained"]) / 3) < 3  # that one is of held-out tokens


@pytest.mark.thorough
@pytest.mark.slow
def test_scales_of_experts_are_trained_and_zeros_stay(shared, tmp_path, training, monkeypatch):
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 1)
    make_random_model("qwen3_moe", tmp_path / "dense", num_hidden_layers=1, mlp_only_layers=[])
    common: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    prunus.prune(tmp_path / "dense", tmp_path / "pruned", PruneRecipe(**common), device="cpu")
    for name, recover in (("plain", False), ("trained", True)):
        recipe = asked(shared, **training | {"recover": recover})
        prunus.quantize(tmp_path / "pruned", tmp_path / name, recipe, device="cpu")
    before, made = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "trained")
    scales = [name for name in made if ".experts." in name and name.endswith("scale")]
    assert len(scales) == 24 and not any(torch.equal(before[name], made[name]) for name in scales)
    pruned, weights = weights_of(tmp_path / "pruned"), weights_of(tmp_path / "trained")
    assert all(bool((weights[n][pruned[n] == 0] == 0).all()) for n in weights if n.endswith("_proj.weight"))


@pytest.mark.slow
def test_a_large_model_has_several_files(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.checkpoint.writer.SINGLE_FILE_BYTES", 0)
    prunus.quantize(shared / "dense", tmp_path / "files", asked(shared, method="rtn"), device="cpu")
    monkeypatch.undo()
    prunus.quantize(shared / "dense", tmp_path / "file", asked(shared, method="rtn"), device="cpu")
    ours, theirs = tensors_of(tmp_path / "files"), tensors_of(tmp_path / "file")
    assert len(list((tmp_path / "files").glob("*.safetensors"))) == 4 and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ModelFolder(tmp_path / "files").checksum() == ModelFolder(tmp_path / "file").checksum()


@pytest.mark.slow
def test_saved_statistics_take_the_place_of_calibration(shared, tmp_path):
    file = tmp_path / "hessians.safetensors"
    common: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    prunus.stats(shared / "dense", file, hessians=True, device="cpu", **common)
    told = prunus.quantize(shared / "dense", tmp_path / "out", QuantizeRecipe(bits=4), stats=file, device="cpu")
    assert agreement(weights_of(tmp_path / "out"), by_hand(shared / "dense", 4, 32, dense=True)) > 0.999
    assert any("saved statistics know of no quantised blocks" in one for one in told.warnings)
    prunus.stats(shared / "dense", tmp_path / "norms.safetensors", device="cpu", **common)
    for recipe, stats, says in (
        (QuantizeRecipe(sequences=5), file, "was measured with sequences 8, not 5"),
        (QuantizeRecipe(method="rtn"), file, "method rtn needs no statistics"),
        (
            QuantizeRecipe(bits=4, recover=True),
            file,
            "--recover trains on calibration tokens, which --stats does not hold",
        ),
        (QuantizeRecipe(dtype="bfloat16"), file, "was measured in F32, not BF16"),
        (QuantizeRecipe(), tmp_path / "norms.safetensors", "holds no Hessians, which gptq needs"),
    ):
        with pytest.raises(PrunusError, match=says):
            prunus.quantize(shared / "dense", tmp_path / "bad", recipe, stats=stats)
    assert not (tmp_path / "bad").exists() and not (tmp_path / "bad.partial").exists()


@pytest.mark.slow
def test_zeros_of_a_pruned_model_stay(shared, tmp_path):
    common: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    prunus.prune(shared / "dense", tmp_path / "pruned", PruneRecipe(pattern="2:4", **common), device="cpu")
    prunus.quantize(tmp_path / "pruned", tmp_path / "out", asked(shared), device="cpu")
    before, made = weights_of(tmp_path / "pruned"), weights_of(tmp_path / "out")
    for name in [name for name in made if name.endswith("_proj.weight")]:
        assert bool((made[name][before[name] == 0] == 0).all()) and int((made[name] != 0).sum()) > 0
    assert prunus.inspect(tmp_path / "out").to_json()["patterns"] == ["2:4", "4:8", "8:16"]


@pytest.mark.slow
def test_projections_that_are_stored_in_one_tensor_are_one_linear(shared, tmp_path):
    make_random_model("phi3", tmp_path / "dense")
    prunus.quantize(tmp_path / "dense", tmp_path / "out", asked(shared, group="32"), device="cpu")
    made = tensors_of(tmp_path / "out")
    assert made["model.layers.0.self_attn.qkv_proj.weight_packed"].shape == (128, 8)
    network = load_whole(Checkpoint(tmp_path / "out"), torch.float32).eval()
    prunus.dequantize(tmp_path / "out", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    ids = torch.tensor(ROWS[:2])
    assert torch.equal(network(ids).logits, plain(ids).logits)


@pytest.mark.slow
@torch.no_grad()
def test_each_expert_is_quantised_on_the_tokens_that_it_meets(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 1)
    make_random_model("qwen3_moe", tmp_path / "dense", num_hidden_layers=2, mlp_only_layers=[])
    recipe = asked(shared)
    told = prunus.quantize(tmp_path / "dense", tmp_path / "out", recipe, device="cpu")
    assert told.linears == 2 * (4 + 3 * 8)
    stored = tensors_of(tmp_path / "out")
    network = load_whole(Checkpoint(tmp_path / "out"), torch.float32).eval()
    read, mlp = [], network.model.layers[0].mlp
    mlp.register_forward_pre_hook(lambda _m, args: read.append(args[0].flatten(0, 1)))
    for ids in ROWS:
        network(input_ids=torch.tensor([ids]), use_cache=False)
    x_SI = torch.cat(read)
    chosen_SK = (x_SI @ mlp.gate.weight.T).topk(2).indices
    before = tensors_of(tmp_path / "dense")
    for expert in range(8):
        own_SI = x_SI[(chosen_SK == expert).any(1)]
        name = f"model.layers.0.mlp.experts.{expert}.gate_proj"
        expected = quantise(before[f"{name}.weight"], Ordered(Hessian(own_SI.T @ own_SI)), Grid(4, 32, torch.float32))
        code_OI = unpacked_words(stored[f"{name}.weight_packed"], 64)
        assert (code_OI == expected.code_OI).float().mean() > 0.99, expert
        everywhere = quantise(before[f"{name}.weight"], Ordered(Hessian(x_SI.T @ x_SI)), Grid(4, 32, torch.float32))
        assert (code_OI == everywhere.code_OI).float().mean() < 0.97, expert
    assert "model.layers.0.mlp.gate.weight" in stored and "model.layers.0.mlp.gate.weight_packed" not in stored


@pytest.mark.slow
def test_it_comes_after_other_steps_and_nothing_after_it(shared, tmp_path):
    common: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    narrow, zeros = WidthRecipe(keep=0.67, multiple=32, **common), PruneRecipe(sparsity=0.25, **common)
    trained = RecoverRecipe.like(zeros, epochs=1, step_tokens=24)
    steps = [narrow, zeros, trained, asked(shared)]
    assert steps_name(steps) == "width-obs-67-wanda-25-recovered-w4-g128"
    prunus.apply_steps(shared / "dense", tmp_path / "out", steps, device="cpu")
    prunus.apply_steps(shared / "dense", tmp_path / "before", steps[:-1], device="cpu")
    prunus.quantize(tmp_path / "before", tmp_path / "two", asked(shared), device="cpu")
    assert ModelFolder(tmp_path / "out").checksum() == ModelFolder(tmp_path / "two").checksum()
    history = ModelFolder(tmp_path / "out").manifest.data["history"]
    assert [step["action"] for step in history] == ["width", "prune", "recover", "quantize"]
    with pytest.raises(PrunusError, match="nothing comes after quantize: put prune before it"):
        prunus.apply_steps(shared / "dense", tmp_path / "bad", [asked(shared), zeros], device="cpu")
    with pytest.raises(PrunusError, match="nothing comes after quantize"):
        prunus.plan(shared / "dense", [asked(shared), zeros], tmp_path / "bad")
    commands = {
        "prune": zeros, "width": narrow, "recover": trained, "quantize": asked(shared),
        "drop": prunus.DropRecipe(blocks="1,"),
    }  # fmt: skip
    for command, recipe in commands.items():
        with pytest.raises(PrunusError, match="comes from quantize, after which there is nothing") as error:
            getattr(prunus, command)(tmp_path / "two", tmp_path / "bad", recipe)
        assert "\n" not in str(error.value) and not (tmp_path / "bad").exists()
    prunus.dequantize(tmp_path / "two", tmp_path / "plain")
    prunus.prune(tmp_path / "plain", tmp_path / "again", PruneRecipe(method="magnitude", sparsity=0.5), device="cpu")


@pytest.mark.slow
def test_groups_divide_what_earlier_steps_leave(shared, tmp_path):
    """Of 104 channels 96 stay, which groups of 32 divide; of 96 channels 90 stay, which no group divides."""
    make_random_model("qwen3", tmp_path / "wide", num_hidden_layers=2, intermediate_size=104)
    narrow, rounded = WidthRecipe(intermediate_size=96, method="magnitude", fit=False), asked(shared, method="rtn")
    with pytest.raises(PrunusError, match=r"no group of 128 or 64 or 32 inputs divides the 104 of mlp\.down_proj"):
        prunus.quantize(tmp_path / "wide", tmp_path / "bad", rounded, device="cpu")
    ahead = prunus.plan(tmp_path / "wide", [narrow, rounded], tmp_path / "out")
    assert any("groups have 32 inputs" in warning for warning in ahead.warnings)
    told = prunus.apply_steps(tmp_path / "wide", tmp_path / "out", [narrow, rounded], device="cpu")
    assert isinstance(told, prunus.Quantized) and told.format == "W4A16, groups of 32"
    steps = [replace(narrow, intermediate_size=90), rounded]
    for attempt in (
        lambda: prunus.plan(shared / "dense", steps, tmp_path / "bad", device="cpu"),
        lambda: prunus.apply_steps(shared / "dense", tmp_path / "bad", steps, device="cpu"),
    ):
        with pytest.raises(PrunusError, match=r"inputs divides the 90 of mlp\.down_proj: use --group row") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "wide"], "nothing was begun"


@pytest.mark.slow
def test_after_removed_experts(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 1000)
    make_random_model("qwen3_moe", tmp_path / "dense", num_hidden_layers=2)
    common: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    steps = [ExpertsRecipe(keep=0.5, **common), asked(shared, bits=8)]
    told = prunus.apply_steps(tmp_path / "dense", tmp_path / "out", steps, device="cpu")
    made = tensors_of(tmp_path / "out")
    assert isinstance(told, prunus.Quantized) and told.format == "W8A8, a scale for each row"
    assert any("routed experts met fewer than 1000" in warning for warning in told.warnings)
    assert sum(tensor.dtype == torch.int8 for tensor in made.values()) == told.linears
    assert not any("experts.4." in name for name in made)


@pytest.mark.slow
def test_16_bit_models_have_scales_in_their_dtype(shared, tmp_path):
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float16, "float16")):
        shutil.copytree(shared / "dense", tmp_path / name)
        tensors = {key: tensor.to(dtype) for key, tensor in tensors_of(shared / "dense").items()}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        config = json.loads((shared / "dense/config.json").read_text()) | {"dtype": name}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        prunus.quantize(tmp_path / name, tmp_path / f"{name}-w4", asked(shared, method="rtn"), device="cpu")
        made = tensors_of(tmp_path / f"{name}-w4")
        assert {t.dtype for key, t in made.items() if key.endswith("scale")} == {dtype}
        assert {tensor.dtype for tensor in weights_of(tmp_path / f"{name}-w4").values()} == {dtype}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"bits": 3}, "bits must be 8 or 4, not 3"),
    "activations": ({"bits": 4, "activations": 8}, "no format with weights of 4 bits and activations of 8"),
    "wide activations": ({"activations": 16}, "no format with weights of 8 bits and activations of 16"),
    "group": ({"bits": 4, "group": "96"}, "group '96' is not known; choose one of 128, 64, 32, row"),
    "group of 8 bits": ({"group": "64"}, "with 8 bits each row has one scale"),
    "nothing to train on": (
        {"bits": 4, "method": "rtn", "recover": True},
        "rtn looks at no tokens, on which recover trains",
    ),
    "nothing to mend": ({"recover": True}, "8 bits cost nothing that training would mend"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_no_format_has_are_refused(case):
    settings, says = BAD[case]
    with pytest.raises(PrunusError, match=says):
        QuantizeRecipe(**settings)


MODELS = {
    "gpt2": "stores transformer.h.0.attn.c_attn as a part of another tensor or transposed",
    "gpt_oss": r"stores model.layers.0.mlp.experts.\*.gate_proj as a part of another tensor or transposed",
    "deepseek_v3": "no group of 128 or 64 or 32 inputs divides the 24 of self_attn.q_b_proj: use --group row",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_models_that_no_format_holds_are_refused_in_one_line(shared, tmp_path, family):
    make_random_model(family, tmp_path / "model")
    for attempt in (
        lambda: prunus.plan(tmp_path / "model", asked(shared), tmp_path / "out", device="cpu"),
        lambda: prunus.quantize(tmp_path / "model", tmp_path / "out", asked(shared), device="cpu"),
    ):
        with pytest.raises(PrunusError, match=MODELS[family]) as error:
            attempt()
        assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_a_dry_run_and_the_command_line(shared, tmp_path, capsys):
    told = prunus.plan(shared / "dense", asked(shared), tmp_path / "out")
    assert told.would_write == str(tmp_path / "out") and told.calibration.endswith("8 sequences, 192 tokens")
    assert told.format == "W4A16, groups of 32" and not any(tmp_path.iterdir())
    command = ["quantize", str(shared / "dense"), str(tmp_path / "out"), "--bits", "4", "--activations", "16"]
    calibration = ["--sequences", "8", "--seqlen", "24", "--calibration", str(shared / "rows.jsonl")]
    main([*command, "--group", "32", *calibration])
    assert "format: W4A16, groups of 32" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--group", "48"])
    main(["quantize", str(shared / "dense"), str(tmp_path / "trained"), "--bits", "4", "--recover", *calibration])
    assert "error after: " in capsys.readouterr().err and (tmp_path / "trained").is_dir()
    prunus.quantize(shared / "dense", tmp_path / "again", asked(shared, group="32"))
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "again").keys()
    assert ModelFolder(tmp_path / "out").checksum() == ModelFolder(tmp_path / "again").checksum()


@pytest.mark.slow
def test_names_labels_and_keys(shared):
    kind, source = kind_of(QuantizeRecipe()), Checkpoint(shared / "dense")
    named: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "w8a8"), ({"method": "rtn"}, "w8a8-rtn"), ({"bits": 4}, "w4-g128"),
        ({"bits": 4, "group": "row"}, "w4-row"), ({"bits": 4, "group": "64", "method": "rtn"}, "w4-g64-rtn"),
        ({"bits": 4, "recover": True}, "w4-g128-recovered"),
    )  # fmt: skip
    for settings, name in named:
        assert kind.name(QuantizeRecipe(**settings)) == name
    assert kind.removed(QuantizeRecipe(), source) == 0
    same = QuantizeRecipe(bits=4), QuantizeRecipe(bits=4, group="32"), QuantizeRecipe(bits=4, activations=16)
    assert len({str(kind.content(recipe, source)) for recipe in same}) == 1
    other = QuantizeRecipe(), QuantizeRecipe(bits=4, group="row"), QuantizeRecipe(bits=4, method="rtn"), same[0]
    other += (replace(same[0], recover=True),)
    assert len({str(kind.content(recipe, source)) for recipe in other}) == 5
    plain = QuantizeRecipe(method="rtn"), QuantizeRecipe(method="rtn", sequences=3, seed=1)
    assert len({str(kind.content(recipe, source)) for recipe in plain}) == 1
    assert QuantizeRecipe.from_json(same[0].to_json()) == same[0]
    form = {"name": "x", "bits": 4, "group": 32}
    step = StepRecord.of({"action": "quantize", "recipe": same[0].to_json(), "format": form})
    assert step_label(step) == "W4 g32" and step_label(step | {"format": None}) == "W4 g128"
    assert step_label(StepRecord.of({"action": "quantize", "recipe": plain[0].to_json()})) == "W8A8 RTN"
    assert step_label(StepRecord.of({"action": "quantize", "recipe": {"bits": 4, "group": "row"}})) == "W4 rows"
    assert step_label(StepRecord.of({"action": "quantize"})) == "W?"
    assert step_label(step | {"recipe": other[-1].to_json()}) == "W4 g32 recovered"
    sizes = step | {"bytes": {"after": 117_000_000, "before": 269_000_000}}
    assert kind.outcome(sizes, True) == "117.0 MB instead of 269.0 MB" and kind.outcome(step, True) == ""
    assert kind.sentence([step]) == "the weights of its Linears have 4 bits, with a scale for every 32 inputs"
    assert kind.sentence([step | {"recipe": other[-1].to_json()}]).endswith(
        "inputs, which is trained, as are the norms"
    )


@pytest.mark.slow
def test_a_reasoner_in_8_bits_is_evaluated_as_its_plain_weights(tmp_path):
    """And its runs are called by the step, not by the bits that its folder has."""
    prunus.quantize("tiny", tmp_path / "w8a8", QuantizeRecipe(method="rtn"), device="cpu")
    prunus.dequantize(tmp_path / "w8a8", tmp_path / "plain")
    plan, found = EvalPlan(tasks=("tiny",), budgets=(16,), limit=3), {}
    for name in ("w8a8", "plain"):
        prunus.evaluate(tmp_path / name, plan, tmp_path / f"{name}.db", device="cpu")
        with Store(tmp_path / f"{name}.db") as store:
            (run,) = store.runs()
            found[name] = [(one.problem_id, one.correct) for one in store.samples(run.run_id)]
            assert run.model.parameters == 1_229_440
            if name == "w8a8":
                assert label_of(run) == "W8A8 RTN"
    assert found["w8a8"] == found["plain"] and len(found["plain"]) == 3
