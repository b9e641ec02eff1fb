"""Narrower feed-forward networks: the whole command, against whole models of transformers and torch's least squares."""

import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from bad_inputs import write_in_fp8
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from torch import nn
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import tiny_folder
from prunus.checkpoint.writer import Partial
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.pruning.recover.recover import are_twins
from prunus.pruning.width import fit as width_fit
from prunus.pruning.width import width as command
from prunus.recipes import ExpertsRecipe, PruneRecipe, RecoverRecipe, WidthRecipe
from prunus.recipes.recover import RATES_AFTER_FIT
from prunus.step import kind_of, steps_name, with_defaults
from prunus.store.labels import step_label

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
SEQUENCES, LENGTH = 8, 24
ROWS = torch.randint(3, 128, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with calibration sequences and a random model with 96 channels in each of three blocks."""
    folder = tmp_path_factory.mktemp("width")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in ROWS))
    make_random_model("qwen3", folder / "dense", num_hidden_layers=3)
    return folder


def asked(shared, **changes):
    usual = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    return WidthRecipe(**usual | changes)


def whole(folder):
    """A model as transformers loads it, with a place for every tensor and a tensor for every place."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, told = loaded
    assert not any(told.values()), told
    return model.eval()


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def seen(model, index, rows=ROWS):
    """What down of a block reads, and what the block gives out, for all calibration tokens, from whole passes."""
    read, given = [], []
    layer = model.model.layers[index]
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: read.append(args[0].flatten(0, 1))),
        layer.register_forward_hook(
            lambda _m, _a, out: given.append((out[0] if isinstance(out, tuple) else out).flatten(0, -2))
        ),
    ]
    for ids in rows:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.cat(read).double(), torch.cat(given).double()


@torch.no_grad()
def by_hand(folder, kept, target, stream="narrow", rows=ROWS, gain=1.0):
    """The tensors of all networks, by whole models and torch's own least squares; channels go one by one.

    gain: by what a network's output is multiplied before it is added.
    """
    theirs, ours = whole(folder), whole(folder)
    found = {}
    for index, layer in enumerate(ours.model.layers):
        _, wanted_SO = seen(theirs, index, rows)
        x_SI, given_SO = seen(theirs if stream == "dense" else ours, index, rows)
        mlp = layer.mlp
        weight_OI = mlp.down_proj.weight.double()
        hessian_II = x_SI.mT @ x_SI
        damped_II = hessian_II + 0.01 * hessian_II.diagonal().mean() * torch.eye(len(hessian_II))
        target_SO = x_SI @ weight_OI.mT + ((wanted_SO - given_SO) / gain if target == "dense" else 0)
        best_OI = (target_SO.mT @ x_SI + weight_OI @ (damped_II - hessian_II)) @ torch.linalg.inv(damped_II)
        stay = torch.arange(len(hessian_II))
        while len(stay) > kept:  # all others are fitted anew without each
            inverse_RR = torch.linalg.inv(damped_II[stay][:, stay])
            weight_OR = best_OI @ damped_II[:, stay] @ inverse_RR
            least = (weight_OR.square().sum(0) / inverse_RR.diagonal()).argmin()
            stay = torch.cat([stay[:least], stay[least + 1 :]])
        x_SK = x_SI[:, stay]
        root = (0.01 * x_SK.square().sum(0).mean()).sqrt()
        damped_SK = torch.cat([x_SK, root * torch.eye(kept)])
        fitted_KO = torch.linalg.lstsq(damped_SK, torch.cat([target_SO, root * weight_OI[:, stay].mT])).solution
        for name, tensor in (
            ("gate_proj", mlp.gate_proj.weight[stay]), ("up_proj", mlp.up_proj.weight[stay]),
            ("down_proj", fitted_KO.mT.float()),
        ):  # fmt: skip
            found[f"model.layers.{index}.mlp.{name}.weight"] = tensor
            mlp.get_submodule(name).weight = nn.Parameter(tensor.clone())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", ["dense", "own"])
def test_a_narrow_model_is_that_of_whole_passes_and_torchs_least_squares(shared, tmp_path, target):
    told = prunus.width(shared / "dense", tmp_path / "out", asked(shared, target=target, damping=0.01), device="cpu")
    expected, made = by_hand(shared / "dense", 72, target), tensors_of(tmp_path / "out")
    assert told.channels == "72 of 96" and told.blocks == 3 and told.difference < 1e-5
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, rtol=2e-3, atol=2e-5)
    before = tensors_of(shared / "dense")
    assert made.keys() == before.keys()
    assert all(torch.equal(made[name], before[name]) for name in made.keys() - expected.keys())
    loaded = whole(tmp_path / "out")
    assert loaded.config.intermediate_size == 72
    assert told.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    (step,) = Checkpoint(tmp_path / "out").manifest.data["history"]
    assert step["channels"] == {"before": 96, "after": 72, "field": "intermediate_size"}
    sizes = [sum(tensor.numel() for tensor in tensors.values()) for tensors in (before, made)]
    assert step["parameters"] == dict(zip(("before", "after"), sizes, strict=True))
    assert told.removed == f"{100 - 100 * sizes[1] / sizes[0]:.1f} % of {sizes[0]:,} parameters"
    about_engines = [text for text in told.warnings if "K-quants" in text]
    assert about_engines and not {*about_engines} & {*step["warnings"]}, "no result depends on them"
    assert [block["target"] for block in step["blocks"]] == [target] * 3
    assert [block["dampings"] for block in step["blocks"]] == [[0.01]] * 3
    said = "OBS width damped 0.01 75\xa0%"
    assert step_label(StepRecord.of(step)) == (said if target == "dense" else said.replace("width", "width own target"))
    card = (tmp_path / "out" / "README.md").read_text()
    said = f"are kept, {sizes[1]:,} of {sizes[0]:,} parameters"
    assert f"72 of 96 channels of its feed-forward networks {said}" in card and card.count(said) == 2
    prunus.card(tmp_path / "out", overwrite=True)  # which counts zeros, and finds none
    assert "Sparsity, counted" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_saved_statistics_give_any_width_as_passes_of_the_dense_model_do(shared, tmp_path):
    file = tmp_path / "stats.safetensors"
    calibration = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    prunus.stats(shared / "dense", file, hessians=True, dtype="float32", device="cpu", **calibration)
    for kept in (72, 48):
        told = prunus.width(
            shared / "dense", tmp_path / str(kept), WidthRecipe(intermediate_size=kept), stats=file, device="cpu"
        )
        assert any("fitted to their own outputs" in text for text in told.warnings)
        assert Checkpoint(tmp_path / str(kept)).manifest.data["history"][0]["recipe"]["target"] == "own"
        made = tensors_of(tmp_path / str(kept))
        for name, tensor in by_hand(shared / "dense", kept, "own", stream="dense").items():
            torch.testing.assert_close(made[name], tensor, rtol=2e-3, atol=2e-5)
    make_random_model("qwen3", tmp_path / "other", num_hidden_layers=2)
    with pytest.raises(PrunusError, match="statistics of another model"):
        prunus.width(tmp_path / "other", tmp_path / "out", WidthRecipe(), stats=file)
    with pytest.raises(PrunusError, match="was measured with sequences 8, not 5"):
        prunus.width(shared / "dense", tmp_path / "out", WidthRecipe(sequences=5), stats=file)
    with pytest.raises(PrunusError, match="method random needs no statistics"):
        prunus.width(shared / "dense", tmp_path / "out", WidthRecipe(method="random", fit=False), stats=file)
    prunus.stats(shared / "dense", tmp_path / "norms.safetensors", device="cpu", **calibration)
    with pytest.raises(PrunusError, match="holds no Hessians"):
        prunus.width(shared / "dense", tmp_path / "out", WidthRecipe(), stats=tmp_path / "norms.safetensors")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_padding_does_not_count_and_multiplied_outputs_are_divided(shared, tmp_path):
    """Sequences of unlike lengths, and a type that multiplies what its networks give."""
    make_random_model("granite", tmp_path / "dense", num_hidden_layers=2, residual_multiplier=0.4)
    rows = [ids[: 9 + 2 * number] for number, ids in enumerate(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    recipe = asked(shared, calibration=str(tmp_path / "rows.jsonl"), damping=0.01)
    prunus.width(tmp_path / "dense", tmp_path / "out", recipe, device="cpu")
    made = tensors_of(tmp_path / "out")
    for name, tensor in by_hand(tmp_path / "dense", 72, "dense", rows=rows, gain=0.4).items():
        torch.testing.assert_close(made[name], tensor, rtol=2e-3, atol=2e-5)


# Types, their field, and the blocks that are fitted to the dense model's hidden states.
TYPES = {
    "gpt2": ("n_inner", "dense"),
    "gemma2": ("intermediate_size", "own"),
    "gpt_oss": ("intermediate_size", "own"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_every_kind_of_network_is_narrowed_and_fitted(shared, tmp_path, name):
    field, target = TYPES[name]
    make_random_model(name, tmp_path / "dense", num_hidden_layers=1)
    rows = [json.loads(line)["token_ids"] for line in (shared / "rows.jsonl").read_text().splitlines()]
    errors, ids = {}, torch.tensor(rows)
    with torch.no_grad():
        before = whole(tmp_path / "dense")(input_ids=ids, use_cache=False).logits
    for fit, how in ((True, {"damping": 0.01}), (False, {"fit": False})):
        told = prunus.width(tmp_path / "dense", tmp_path / str(fit), asked(shared, keep=0.5, **how), device="cpu")
        model = whole(tmp_path / str(fit))
        assert told.difference < 1e-5
        assert getattr(model.config, field) == getattr(whole(tmp_path / "dense").config, field) / 2
        with torch.no_grad():
            errors[fit] = float((model(input_ids=ids, use_cache=False).logits - before).square().mean())
        (step,) = Checkpoint(tmp_path / str(fit)).manifest.data["history"]
        assert {block["target"] for block in step["blocks"]} == {target if fit else None}
        own = [text for text in told.warnings if "own outputs" in text]
        assert len(own) == (fit and target == "own")
        assert not own or ("experts" if name == "gpt_oss" else "a norm or a gate follows") in own[0]
    assert errors[True] < 0.9 * errors[False], errors


@contextmanager
def stopped_at_block(number, monkeypatch):
    """Where work is interrupted when it would write this block."""
    write_block = Partial.write_block

    def stopping(self, index, *arguments):
        if index == number:
            raise KeyboardInterrupt
        write_block(self, index, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Partial, "write_block", stopping)
        yield


@pytest.mark.slow
def test_interrupted_work_resumes_to_the_same_bytes_wherever_streams_are_kept(shared, tmp_path, monkeypatch):
    prunus.width(shared / "dense", tmp_path / "whole", asked(shared), device="cpu")
    with stopped_at_block(2, monkeypatch):
        prunus.width(shared / "dense", tmp_path / "out", asked(shared), device="cpu", offload=True)
    assert (tmp_path / "out.partial").exists()
    fitted: list[str] = []
    narrow_block = command.narrow_block
    monkeypatch.setattr(command, "narrow_block", lambda *given: fitted.append(given[1]) or narrow_block(*given))
    prunus.width(shared / "dense", tmp_path / "out", asked(shared), device="cpu", offload=True)
    assert fitted == [2] and contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
def test_recovery_of_a_fitted_width_has_a_rate_of_its_own(shared, tmp_path):
    dense = make_model(tmp_path / "dense", "qwen3")
    training: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "epochs": 1, "step_tokens": LENGTH}
    made, trained = {}, 0
    for name, recipe in (("fitted", asked(shared)), ("unfitted", asked(shared, fit=False))):
        prunus.width(dense, tmp_path / name, recipe, device="cpu")
        prunus.recover(tmp_path / name, tmp_path / f"{name}-recovered", RecoverRecipe(**training), device="cpu")
        step = Checkpoint(tmp_path / f"{name}-recovered").manifest.data["history"][-1]
        made[name] = step["recipe"]["rate"], step["recipe"]["seed"]
        assert all(block["after"] <= block["before"] for block in step["blocks"])
        trained += sum(block["trained"] for block in step["blocks"])
        assert whole(tmp_path / f"{name}-recovered").config.intermediate_size == 42
    assert trained and made == {"fitted": (None, 1), "unfitted": (0.01, 0)}
    given = WidthRecipe(), RecoverRecipe(rate=0.02, seed=3)
    assert with_defaults(given) == given
    same = with_defaults([WidthRecipe(seed=2), RecoverRecipe(seed=2)])
    assert same[1].seed == 3 and with_defaults(same) == same
    assert with_defaults([WidthRecipe(), PruneRecipe(), RecoverRecipe()])[-1] == RecoverRecipe(rate=0.01)


@pytest.mark.slow
def test_the_rate_after_a_fit_is_the_best_for_the_first_block(shared, tmp_path, monkeypatch):
    """The result is that of the recovery which is given this rate, also where it was stopped after the first block."""
    training: dict[str, Any] = {"calibration": str(shared / "rows.jsonl"), "epochs": 2, "step_tokens": LENGTH}
    poor = asked(shared, method="random", damping=1e6)  # else there is nothing to gain
    prunus.width(shared / "dense", tmp_path / "narrow", poor, device="cpu")
    errors = {}
    for rate in RATES_AFTER_FIT:
        recipe = RecoverRecipe(rate=rate, seed=1, **training)
        prunus.recover(tmp_path / "narrow", tmp_path / f"{rate}", recipe, device="cpu")
        errors[rate] = Checkpoint(tmp_path / f"{rate}").manifest.data["history"][-1]["blocks"][0]["after"]
    best = min(errors, key=lambda rate: errors[rate])
    with stopped_at_block(1, monkeypatch):
        prunus.recover(tmp_path / "narrow", tmp_path / "out", RecoverRecipe(**training), device="cpu")
    prunus.recover(tmp_path / "narrow", tmp_path / "out", RecoverRecipe(**training), device="cpu")
    blocks = Checkpoint(tmp_path / "out").manifest.data["history"][-1]["blocks"]
    assert [block.get("rate") for block in blocks] == [best, *[None] * (len(blocks) - 1)]
    assert len(set(errors.values())) > 1 and blocks[0]["after"] == errors[best]
    assert Checkpoint(tmp_path / "out").checksum() == Checkpoint(tmp_path / f"{best}").checksum()


@pytest.mark.slow
def test_a_recovery_on_the_sequences_of_the_fit_says_so(shared, tmp_path):
    """A text of just as many sequences as are asked for gives the same ones with every seed, and others not at all."""
    prunus.width(shared / "dense", tmp_path / "narrow", asked(shared), device="cpu")
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"token_ids": [*ids[::-1]]}) + "\n" for ids in ROWS))
    for text, warned in ((shared / "rows.jsonl", True), (tmp_path / "other.jsonl", False)):
        recipe = RecoverRecipe(calibration=str(text), sequences=SEQUENCES, seqlen=LENGTH, epochs=1)
        told = prunus.recover(tmp_path / "narrow", tmp_path / "out", recipe, device="cpu", overwrite=True)
        assert any(f"fitted to {SEQUENCES} of these {SEQUENCES} sequences" in text for text in told.warnings) == warned


def test_twins_of_a_narrow_block_are_not_narrower_than_it():
    narrow, dense = {"down": (8, 4), "up": (4, 8)}, {"down": (8, 6), "up": (6, 8)}
    assert are_twins(narrow, dense, True) and not are_twins(narrow, dense, False)
    assert not are_twins(dense, narrow, True) and not are_twins({"down": (8, 4)}, dense, True)


@pytest.mark.slow
def test_zeros_and_experts_chain_with_width(shared, tmp_path):
    calibration = {"calibration": str(shared / "rows.jsonl"), "sequences": SEQUENCES, "seqlen": LENGTH}
    narrow = asked(shared)
    zeros = PruneRecipe(method="wanda", sparsity=0.5, **calibration)
    prunus.apply_steps(shared / "dense", tmp_path / "both", [narrow, zeros], device="cpu")
    made = tensors_of(tmp_path / "both")["model.layers.1.mlp.down_proj.weight"]
    assert made.shape[1] == 72 and int((made == 0).sum()) == made.numel() // 2
    told = prunus.apply_steps(shared / "dense", tmp_path / "again", [zeros, narrow], device="cpu")
    assert any("the fit fills zeros" in text for text in told.warnings)
    make_random_model("mixtral", tmp_path / "mixture", num_hidden_layers=2)
    fewer = ExpertsRecipe(keep=0.5, **calibration)
    prunus.apply_steps(tmp_path / "mixture", tmp_path / "fewer", [fewer, narrow], device="cpu")
    model = whole(tmp_path / "fewer")
    assert (model.config.num_local_experts, model.config.intermediate_size) == (4, 72)
    assert steps_name([fewer, narrow]) == "experts-reap-50-width-obs-75"
    prunus.recover(tmp_path / "fewer", tmp_path / "last", RecoverRecipe(epochs=1, step_tokens=48, **calibration))


@pytest.mark.slow
def test_experts_without_tokens_keep_their_weights_and_a_warning_says_so(shared, tmp_path, monkeypatch):
    make_random_model("mixtral", tmp_path / "dense", num_hidden_layers=1)
    (tmp_path / "short.jsonl").write_text(json.dumps({"token_ids": ROWS[0][:3]}) + "\n")
    recipe = asked(shared, calibration=str(tmp_path / "short.jsonl"), sequences=1, seqlen=3)
    told = prunus.width(tmp_path / "dense", tmp_path / "out", recipe, device="cpu")
    warned = [text for text in told.warnings if "met fewer calibration tokens than they have channels" in text]
    assert len(warned) == 1 and "8 of 8 networks" in warned[0] and ", 0): damping keeps" in warned[0]
    told = prunus.width(tmp_path / "dense", tmp_path / "unfitted", replace(recipe, fit=False), device="cpu")
    assert not any("damping" in text for text in told.warnings)
    before, after = (whole(folder).model.layers[0].mlp.experts for folder in (tmp_path / "dense", tmp_path / "out"))
    unmet = 0
    for old, new in zip(before.down_proj, after.down_proj, strict=True):
        stay = old.norm(dim=0).argsort(stable=True)[24:].sort()[0]
        unmet += torch.equal(old[:, stay], new)
    assert 0 < unmet < 8  # at most six experts have a token
    monkeypatch.setattr(command, "HESSIAN_BYTES", 2 * 8 * 96**2)  # two experts at a time
    prunus.width(tmp_path / "dense", tmp_path / "portions", recipe, device="cpu")
    assert contents(tmp_path / "portions") == contents(tmp_path / "out")


@pytest.mark.slow
def test_experts_that_grouped_products_refuse_are_warned_of(shared, tmp_path):
    make_random_model("mixtral", tmp_path / "dense", num_hidden_layers=1)
    for width, refused in ((72, False), (70, True)):
        recipe = WidthRecipe(method="magnitude", fit=False, intermediate_size=width)
        told = prunus.width(tmp_path / "dense", tmp_path / str(width), recipe, device="cpu")
        said = "rows of experts take 280 bytes, no multiple of 16"
        assert any(said in text and "a multiple of 4 channels" in text for text in told.warnings) == refused
        model = whole(tmp_path / str(width))
        model.set_experts_implementation("grouped_mm")
        with pytest.raises(RuntimeError, match="multiple of 16 bytes") if refused else nullcontext():
            model(input_ids=torch.tensor(ROWS))


@pytest.mark.slow
def test_methods_without_data_need_none_and_choose_by_their_rule(shared, tmp_path):
    for method in ("magnitude", "random"):
        told = prunus.width(
            shared / "dense", tmp_path / method, WidthRecipe(method=method, fit=False, calibration="c4"), device="cpu"
        )
        assert told.error is None
    before, after = tensors_of(shared / "dense"), tensors_of(tmp_path / "magnitude")
    for index in range(3):
        gate, up, down = (f"model.layers.{index}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        squares = before[gate].square().sum(1) + before[up].square().sum(1) + before[down].square().sum(0)
        stay = squares.argsort(descending=True)[:72].sort()[0]
        assert torch.equal(after[down], before[down][:, stay]) and torch.equal(after[up], before[up][stay])
    last = "model.layers.2.mlp.down_proj.weight"
    assert not torch.equal(tensors_of(tmp_path / "random")[last], after[last])


@pytest.mark.slow
def test_a_single_precision_run_is_nearly_the_same(shared, tmp_path, monkeypatch):
    prunus.width(shared / "dense", tmp_path / "double", asked(shared), device="cpu")
    monkeypatch.setattr(width_fit, "WIDEST", 8)
    prunus.width(shared / "dense", tmp_path / "single", asked(shared), device="cpu")
    double, single = (tensors_of(tmp_path / name) for name in ("double", "single"))
    close = [torch.allclose(double[name], single[name], rtol=0.01, atol=1e-3) for name in double]
    assert all(close)


BAD = {
    "keep 1": ({"keep": 1.0}, r"keep must lie in \(0, 1\), not 1.0"),
    "keep 0": ({"keep": 0.0}, r"keep must lie in \(0, 1\), not 0.0"),
    "both": ({"keep": 0.5, "intermediate_size": 48}, "both set the number of channels"),
    "multiple of a number": ({"intermediate_size": 48, "multiple": 8}, "leave multiple out"),
    "nothing left": ({"keep": 0.1, "multiple": 64}, "would keep 0 of 96 channels"),
    "everything left": ({"keep": 0.9, "multiple": 96}, "would keep 96 of 96 channels"),
    "wider": ({"intermediate_size": 96}, "would keep 96 of 96 channels"),
    "no experts": ({"of": "experts"}, "use `--of mlp`"),
    "damping of no fit": ({"fit": False, "damping": 1.0}, "leave it out with fit off"),
    "no damping": ({"damping": 0.0}, "damping must be above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_width_that_cannot_be_is_refused_in_one_line(shared, tmp_path, case):
    settings, words = BAD[case]
    with pytest.raises(PrunusError, match=words) as refused:
        prunus.width(shared / "dense", tmp_path / "out", asked(shared, **settings))
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_quantised_models_and_types_without_a_field_are_refused(shared, tmp_path):
    write_in_fp8(shared / "dense", tmp_path / "quantised")
    with pytest.raises(PrunusError, match=r"is quantised .fp8., .* run `prunus dequantize` on it first$") as refused:
        prunus.width(tmp_path / "quantised", tmp_path / "out", asked(shared))
    assert "\n" not in str(refused.value)
    make_random_model("bloom", tmp_path / "bloom", n_layer=1)
    with pytest.raises(PrunusError, match="no known field"):
        prunus.width(tmp_path / "bloom", tmp_path / "out", asked(shared))
    assert not list(tmp_path.glob("out*"))


def test_too_little_memory_is_said_before_the_work(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("prunus.pruning.calibration.hidden_states.free_on", lambda _device: 300_000)
    with pytest.raises(PrunusError, match=r"96 channels .* takes .* of memory, and 300.0 kB are free") as refused:
        prunus.width(shared / "dense", tmp_path / "out", asked(shared))
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
    prunus.width(shared / "dense", tmp_path / "out", WidthRecipe(method="random", fit=False))


def test_nan_in_the_inputs_is_named_and_leaves_nothing(shared, tmp_path):
    make_random_model("qwen3", tmp_path / "dense", num_hidden_layers=2)
    tensors = load_file(tmp_path / "dense" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] = 1e38
    save_file(tensors, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunusError, match=r"block 1, mlp.down_proj: its calibration inputs hold NaN") as refused:
        prunus.width(tmp_path / "dense", tmp_path / "out", asked(shared), device="cpu")
    assert "\n" not in str(refused.value) and not list(tmp_path.glob("out*"))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(shared, tmp_path, capsys):
    recipe = asked(shared, tensor_parallel=16)
    told = prunus.plan(shared / "dense", recipe, tmp_path / "out")
    assert (told.channels, told.blocks) == ("72 of 96", 3) and not list(tmp_path.iterdir())
    assert any("K-quants" in text for text in told.warnings)
    assert any("72 channels cannot be divided among 16 GPUs" in text for text in told.warnings)
    command_line = ["width", str(shared / "dense"), str(tmp_path / "out"), "--calibration", recipe.calibration]
    main([*command_line, "--dry-run", "--recover"])
    said = capsys.readouterr().err
    assert (
        "channels: 72 of 96" in said
        and "at the best of the rates 0.003, 0.01, 0.02" in said
        and not list(tmp_path.iterdir())
    )


def test_names_and_shares(shared):
    source = Checkpoint(shared / "dense")
    kind = kind_of(WidthRecipe())
    for settings, name in (
        ({}, "width-obs-75"), ({"method": "wanda", "fit": False, "keep": 0.625}, "width-wanda-unfitted-62.5"),
        ({"of": "mlp", "target": "own", "intermediate_size": 48}, "width-mlp-obs-own-48ch"),
    ):  # fmt: skip
        assert kind.name(WidthRecipe(**settings)) == name
    more = WidthRecipe(damping=1.0)
    assert kind.name(more) == "width-obs-damped1-75"
    assert kind.method(StepRecord.of({"action": "width", "recipe": more.to_json()})) == "OBS width damped 1"
    linears = [linear for index in range(3) for linear in source.linears(index)]
    total = sum(linear.shape_OI[0] * linear.shape_OI[1] for linear in linears)
    removed = sum(linear.shape_OI[0] * linear.shape_OI[1] for linear in linears if "mlp" in linear.name) / 4
    assert kind.removed(WidthRecipe(), source) == pytest.approx(removed / total)
    same = WidthRecipe(intermediate_size=72), WidthRecipe(keep=0.75), WidthRecipe(keep=0.74, multiple=24, of="mlp")
    assert len({json.dumps(kind.content(recipe, source), sort_keys=True) for recipe in same}) == 1
    other = WidthRecipe(keep=0.5), WidthRecipe(fit=False), WidthRecipe(target="own"), WidthRecipe(method="flap")
    other = *other, WidthRecipe(damping=1.0)
    assert len({json.dumps(kind.content(recipe, source), sort_keys=True) for recipe in (same[0], *other)}) == 6
    assert all(WidthRecipe.from_json(each.to_json()) == each for each in (*same, *other))
    assert kind.method(StepRecord.of({"action": "width", "recipe": WidthRecipe().to_json()})) == "OBS width"
    unfitted = (
        WidthRecipe(method="magnitude", fit=False),
        WidthRecipe(method="magnitude", fit=False, sequences=3, seed=1),
    )
    assert kind.content(unfitted[0], source) == kind.content(unfitted[1], source)


@pytest.mark.slow
def test_more_damping_keeps_weights_nearer_to_the_old_ones(shared, tmp_path):
    prunus.width(shared / "dense", tmp_path / "cut", asked(shared, fit=False), device="cpu")
    old, moved = load_file(tmp_path / "cut" / "model.safetensors"), []
    for damping in (0.01, 1.0, 100.0):
        prunus.width(shared / "dense", tmp_path / f"{damping}", asked(shared, damping=damping), device="cpu")
        new = load_file(tmp_path / f"{damping}" / "model.safetensors")
        names = [name for name in old if name.endswith("layers.0.mlp.down_proj.weight")]
        moved += [float((new[name].double() - old[name].double()).norm()) for name in names]
    assert moved[0] > moved[1] > moved[2] > 0


@torch.no_grad()
def divergence(folder, rows):
    """Mean over tokens of the KL divergence of a model from tiny."""
    theirs, ours, total = whole(tiny_folder()), whole(folder), 0.0
    for ids in rows:
        p, q = (model(torch.tensor([ids])).logits.log_softmax(-1) for model in (theirs, ours))
        total += float((p.exp() * (p - q)).sum())
    return total / sum(map(len, rows))


@pytest.mark.thorough
@pytest.mark.slow
def test_the_tiny_reasoner_is_hardly_changed_by_a_fitted_width(tmp_path, below):
    rows = [json.loads(line)["token_ids"] for line in (tiny_folder() / "calibration.jsonl").read_text().splitlines()]
    held_out = rows[-16:]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows[:-16]))
    calibration: Any = {"calibration": str(tmp_path / "rows.jsonl"), "calibration_tokens": 3_000, "seqlen": 256}
    found = {}
    for name, settings in (("fitted", {}), ("unfitted", {"fit": False})):
        prunus.width("tiny", tmp_path / name, WidthRecipe(**calibration | settings), device="cpu")
        found[name] = divergence(tmp_path / name, held_out)
    below("fitted / unfitted", found["fitted"] / found["unfitted"], 0.4)
