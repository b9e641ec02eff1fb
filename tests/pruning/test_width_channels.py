"""Channels of feed-forward networks: found in any decoder, removed, and equal to the whole model without them."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_models import make_random_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.plain_data import plain
from prunus.pruning.width.channels import (
    Place,
    Unnarrowable,
    base_width,
    describe_width,
    find_units,
    narrow_config,
    narrow_model,
    narrowed,
    of_blocks,
    random_channels,
    verify,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
CPU = torch.device("cpu")
DENSE = {"mlp"}
# By type: changes of its configuration, what is narrowed, kinds of units, their number, channels before and after.
CASES = {
    "llama": ({}, None, DENSE, 2, 96, 60),
    "phi3": ({}, None, DENSE, 2, 96, 60),  # gate and up in one
    "gpt2": ({"n_layer": 2}, None, DENSE, 2, 96, 60),  # Conv1D, biases
    "opt": ({"num_hidden_layers": 2}, None, DENSE, 2, 96, 60),  # no module of its own, biases
    "falcon": ({"bias": True}, None, DENSE, 2, 96, 60),
    "gemma3": ({}, None, DENSE, 4, 96, 60),  # a part for images; a norm after the MLP
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, None, DENSE, 2, 256, 160),  # rounds its field
    "falcon_h1": ({}, None, DENSE, 2, 96, 60),  # a mamba mixer with fields of its own
    "recurrent_gemma": ({}, None, DENSE, 2, 48, 30),  # halves its field
    "mixtral": ({}, None, {"experts"}, 16, 96, 60),
    "gpt_oss": ({}, None, {"experts"}, 16, 96, 60),  # interleaved, transposed, biases
    "qwen3_moe": ({"mlp_only_layers": [1]}, "mlp", DENSE, 1, 96, 60),
    "qwen2_moe": ({}, "shared", {"shared"}, 2, 32, 20),
    "granitemoeshared": ({}, "shared", {"shared"}, 2, 32, 20),  # gate and up in one
    "jamba": ({}, "experts", {"experts", "mlp"}, 18, 96, 60),
    "deepseek_v3": ({"n_shared_experts": 2}, "experts", {"experts", "shared"}, 9, 32, 20),
}


def made(name, folder, **changes):
    longer = ("gemma3", "jamba", "gpt2", "gpt_neox_japanese", "deepseek_v4", "bitnet", "mamba")
    layers = {} if name in longer else {"num_hidden_layers": 2}
    make_random_model(name, folder, **layers | changes)
    return Checkpoint(folder)


def whole(folder):
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    model, told = loaded
    assert not any(told.values()), told
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped products know no float64
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27)[None], use_cache=False).logits


def write(folder, source, new, own, kept):
    """The narrow model as a folder, written by hand. own: the units of each block."""
    tensors = {name: stored.read() for name, stored in source.outer_tensors().items()}
    for index in range(source.blocks):
        block = source.read_block(index)
        block = narrowed(block, own[index], kept[index]) if index in own else block
        tensors |= new.as_stored(index, block)
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(new.config_json))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_narrow_model_is_the_whole_model_whose_down_projections_ignore_the_removed_channels(tmp_path, name):
    """The oracle needs only the down projections, so it does not depend on where gate and up have the channels."""
    changes, of, kinds, count, before, after = CASES[name]
    source = made(name, tmp_path / "m", **changes)
    units = find_units(source, of)
    assert ({unit.of for unit in units}, len(units), base_width(units)) == (kinds, count, before)
    new = narrow_model(source, units, after)
    kept = {index: random_channels(new, own, seed=index) for index, own in of_blocks(units).items()}
    assert verify(source, new, units, CPU) <= 1e-5
    write(tmp_path / "narrow", source, new, of_blocks(units), kept)
    dense = whole(tmp_path / "m")
    for unit in units:
        assert len(kept[unit.index][unit.down]) == after * unit.times
        gone = sorted(set(range(unit.width)) - set(kept[unit.index][unit.down]))
        path, _, last = source.block_name(unit.index, unit.down).rpartition(".")
        if unit.of == "experts":
            path, _, number = path.rpartition(".")
            experts = dense.get_submodule(path)
            experts.down_proj[int(number)].index_fill_(0 if experts.is_transposed else 1, torch.tensor(gone), 0)
        else:
            down = dense.get_submodule(path).get_submodule(last)
            down.weight.index_fill_(0 if type(down).__name__ == "Conv1D" else 1, torch.tensor(gone), 0)
    before_NTV, after_NTV = logits(dense), logits(whole(tmp_path / "narrow"))
    assert (before_NTV - after_NTV).abs().max() <= 1e-12 * before_NTV.abs().max()


def relaid(units):
    """The units with the other layout of their fused tensors."""
    return [
        replace(unit, places=tuple(replace(p, interleaved=not p.interleaved and p.parts > 1) for p in unit.places))
        for unit in units
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "interleaved"), [("phi3", False), ("gpt_oss", True)])
def test_the_layout_of_fused_tensors_is_found_and_a_wrong_one_fails_the_check(tmp_path, name, interleaved):
    """Of gate and up of phi3, and of their biases for all experts of gpt_oss."""
    source = made(name, tmp_path / "m")
    units = find_units(source)
    assert {p.interleaved for u in units for p in u.places if p.parts > 1} == {interleaved}
    new = narrow_model(source, units, 48)
    assert verify(source, new, units, CPU) <= 1e-6
    with pytest.raises(Unnarrowable, match="block 0 would compute something else without some channels"):
        verify(source, new, relaid(units), CPU)


def test_a_tensor_that_loses_other_channels_fails_the_check(tmp_path):
    """Of up, the channel after each one."""
    source = made("llama", tmp_path / "m")
    units = find_units(source)

    def shifted(place):
        return _Shifted(place.name, place.axis) if place.name == "mlp.up_proj.weight" else place

    wrong = [replace(unit, places=tuple(map(shifted, unit.places))) for unit in units]
    with pytest.raises(Unnarrowable, match="block 0 would compute something else"):
        verify(source, narrow_model(source, units, 48), wrong, CPU)


class _Shifted(Place):
    def of_channels(self, whole, channels):
        return whole[[(channel + 1) % len(whole) for channel in channels]]


def test_entries_of_channels_by_hand():
    entry_2T = torch.stack([torch.arange(10)] * 2)
    assert Place("w", 0).of_channels(entry_2T[0], [1, 3]).tolist() == [1, 3]
    assert Place("w", 0, 2).of_channels(entry_2T[0], [1, 3]).tolist() == [1, 3, 6, 8]
    assert Place("w", 0, 2, True).of_channels(entry_2T[0], [1, 3]).tolist() == [2, 3, 6, 7]
    assert Place("w", 1, 2, True).of_channels(entry_2T, [3]).tolist() == [[6, 7]] * 2
    assert Place("w", 1, 2, expert=1).of_channels(entry_2T, [1, 3]).tolist() == [1, 3, 6, 8]


@pytest.mark.slow
def test_config_json_says_the_width_in_every_spelling_and_in_the_part_of_the_language_model(tmp_path):
    def config(name, width, of=None, edit=(), **changes):
        source = made(name, tmp_path / name, **changes)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(edit)))
        source = Checkpoint(tmp_path / name)
        return json.loads(path.read_text()), narrow_config(source, find_units(source, of), width)

    before, after = config("gpt2", 128, n_inner=None, edit={"n_inner": None})
    assert before["n_inner"] is None and after == before | {"n_inner": 128}  # four times the hidden width before
    before, after = config("gemma3", 48)
    text = before["text_config"] | {"intermediate_size": 48}
    assert after == before | {"text_config": text} and before["vision_config"]["intermediate_size"] == 32
    before, after = config("lfm2", 100, layer_types=["conv", "full_attention"])
    assert after == before | {"intermediate_size": 100, "block_auto_adjust_ff_dim": False}
    before, after = config("recurrent_gemma", 30)
    assert after == before | {"intermediate_size": 60}
    before, after = config("gpt_neox_japanese", 192)
    assert after == before | {"intermediate_multiple_size": 3}
    before, after = config("deepseek_v4", 24, edit={"intermediate_size": 32})  # an alias
    assert after == before | {"moe_intermediate_size": 24, "intermediate_size": 24}


REFUSED = {
    "mamba": "intermediate_size is not the width of feed-forward networks of Linears alone: mixer.A_log of block 0",
    "bitnet": r"mlp.ffn_sub_norm.weight of block 0 has it, too$",  # a norm over the channels
    "bloom": r"\(bloom\): no known field of config.json says the width of feed-forward networks",
    "llama4_text": r"feed_forward.experts.gate_up_proj of block 0 has it, too \(routed experts\)",
    "gemma3n_text": "channels of mlp.down_proj of block 0 depend on each other",
    "zamba2": "blocks share weights",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_narrowed_is_refused_in_one_line(tmp_path, name):
    make_random_model(name, tmp_path / "m")
    source = Checkpoint(tmp_path / "m")
    with pytest.raises(Unnarrowable, match=REFUSED[name]) as error:
        find_units(source)
    assert "\n" not in str(error.value)
    assert plain(describe_width(source)) == [{"use": "width", "possible": False, "note": str(error.value)}]


@pytest.mark.slow
def test_wrong_widths_and_kinds_are_refused_in_one_line(tmp_path):
    source = made("llama", tmp_path / "m")
    units = find_units(source)
    for width in (0, -8, 96, 200):
        with pytest.raises(Unnarrowable, match=f"{width} channels are none that 96 can be narrowed to; choose 1 to 95"):
            narrow_config(source, units, width)
    with pytest.raises(Unnarrowable, match=r"has no shared experts whose width .* says; use `--of mlp`"):
        find_units(source, "shared")
    source.quantised = "fp8"
    with pytest.raises(Unnarrowable, match=r"is quantised .fp8., .* run `prunus dequantize` on it first"):
        find_units(source)
    source = made("gpt_neox_japanese", tmp_path / "j")
    with pytest.raises(Unnarrowable, match="cannot say a width of 100 channels, as it counts 64 at a time"):
        narrow_config(source, find_units(source), 100)
    source = made("deepseek_v3", tmp_path / "d")
    with pytest.raises(Unnarrowable, match=r"its shared experts and of its routed experts, .* use `--of experts`"):
        find_units(source, "shared")


def test_inspect_says_what_can_be_narrowed(tmp_path):
    made("deepseek_v3", tmp_path / "m")
    row = next(row for row in prunus.inspect(tmp_path / "m").to_json()["uses"] if row["use"] == "width")
    assert row == {
        "use": "width",
        "possible": True,
        "note": "routed experts and shared experts of 1 block: 32 channels (moe_intermediate_size);"
        " dense feed-forward networks of 1 block: 96 channels (intermediate_size)",
    }
