"""Packed checkpoints and variants: every bit comes back, and sizes are as promised."""

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_models import (
    STORED,
    bits,
    change_tensors,
    files_of,
    refused,
    rounded_folder,
    same_bits,
    variant_weights,
)
from real_llm import smollm2
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import make_model
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.conversions import pack, read_linears, read_variant, unpack, variant_about, write_variant
from prunus.checkpoint.packed_files import PackedCheckpoint, read_packed
from prunus.checkpoint.packed_tensor import PackedBits, apply_mask, pack_bits, packed_nbytes, unpack_bits
from prunus.cli import main
from prunus.recipes import DropRecipe, PruneRecipe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A model and the same with half of its Linears' weights zeroed."""
    folder = tmp_path_factory.mktemp("models")
    dense = make_model(folder / "dense", "qwen3", dtype=torch.bfloat16, tied=True, hidden_size=48, head_dim=20)
    prunus.prune(dense, folder / "half", PruneRecipe(method="magnitude", sparsity=0.5))
    return dense, folder / "half"


# The layout


def layout_by_hand(weight):
    """The layout of docs/format.md in plain loops over Python numbers, little-endian bytes."""
    rows, columns = weight.shape
    numbers = bits(weight).view({2: np.uint16, 4: np.uint32}[weight.element_size()]).tolist()
    width = (columns + 63) // 64 * 8
    starts, mask, values = [], b"", b""
    for row in range((rows + 15) // 16 * 16):
        if row % 16 == 0:
            starts.append(len(values) // weight.element_size())
        line = 0
        for column in range(columns if row < rows else 0):
            if numbers[row][column]:
                line |= 1 << column
                values += numbers[row][column].to_bytes(weight.element_size(), "little")
        mask += line.to_bytes(width, "little")
    starts.append(len(values) // weight.element_size())
    starts += starts[-1:] * (-len(starts) % 8)
    return struct.pack(f"<{len(starts)}q", *starts), mask, values + bytes(-len(values) % 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (16, 64), (17, 65), (40, 127), (33, 200)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_layout_is_the_documented_one_and_is_undone(shape, dtype, share):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight[torch.rand(shape, generator=generator) < share] = 0
    packed = pack_bits(bits(weight).view({2: np.uint16, 4: np.uint32}[weight.element_size()]))
    assert tuple(part.tobytes() for part in packed) == layout_by_hand(weight)
    assert np.array_equal(unpack_bits(shape, packed), bits(weight).view(packed.values.dtype))
    size = sum(part.nbytes for part in packed)
    assert size == packed_nbytes(shape, int((bits(weight) != 0).sum()), weight.element_size())


def test_half_of_the_weights_in_16_bits_take_9_sixteenths():
    rows, columns = 4096, 4096
    dense = 2 * rows * columns
    assert packed_nbytes((rows, columns), rows * columns // 2, 2) / dense == pytest.approx(0.5625, rel=1e-3)


def test_only_positive_zero_is_a_zero():
    special = torch.tensor([[0.0, -0.0, float("nan"), float("inf"), 1e-45, -1e-45] + [0.0] * 90])
    packed = pack_bits(bits(special).view(np.uint32))
    assert packed.starts[-1] == 5 and packed.mask[0, 0] == 0b111110
    assert np.array_equal(unpack_bits(special.shape, packed), bits(special).view(np.uint32))


# Slabs are larger than small matrices: what lies beyond the first has its own test.
def test_large_matrices():
    numbers = np.random.default_rng(0)
    for shape in ((2500, 333), (40, 20_000)):
        weight = numbers.integers(0, 3, shape).astype(np.uint16)
        packed = pack_bits(weight)
        assert np.array_equal(unpack_bits(shape, packed), weight)
        assert np.array_equal(packed.values[: packed.starts[-1]], weight[weight != 0])
        assert np.array_equal(packed.starts[1], (weight[:16] != 0).sum())
        kept = np.unpackbits(packed.mask, axis=1, bitorder="little")[: shape[0], : shape[1]]
        assert np.array_equal(kept, weight != 0)
        assert np.array_equal(apply_mask(np.full(shape, 7, np.uint16), packed.mask), 7 * kept)


def test_parts_that_do_not_fit_are_refused():
    weight = np.random.default_rng(0).integers(0, 2, (20, 70)).astype(np.uint16)
    good = pack_bits(weight)
    total = int(good.starts[-1])

    def spoil(part: int, place: Any, value: Any) -> PackedBits:
        parts: list[Any] = [array.copy() for array in good]
        parts[part][place] = value
        return PackedBits(*parts)

    bad = [
        spoil(0, slice(2, None), total + 1),
        spoil(0, slice(2, None), total - 1),
        spoil(0, slice(2, None), -1),
        spoil(0, slice(2, None), 1 << 62),
        spoil(0, 1, good.starts[1] + 1),
        spoil(0, -1, 0),
        spoil(1, (0, 0), good.mask[0, 0] ^ 1),
        spoil(1, (0, 8), good.mask[0, 8] | 1 << 6),
        spoil(1, (25, 0), 1),
        spoil(1, slice(0, 20), 255),
        spoil(2, -1, 1),
        good._replace(values=good.values[:-32]),
        good._replace(values=np.append(good.values, np.zeros(32, np.uint16))),
    ]
    for parts in bad:
        with pytest.raises(ValueError, match=r"values|mask|starts"):
            unpack_bits(weight.shape, parts)
    with pytest.raises(ValueError, match="padding"):
        apply_mask(weight, bad[7].mask)


# Folders


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_packed_folder_comes_back_byte_by_byte(tmp_path, family, dtype):
    dense = make_model(tmp_path / "dense", family, dtype=dtype)
    prunus.prune(dense, tmp_path / "half", PruneRecipe(method="magnitude", sparsity=0.6, scope="mlp"))
    change_tensors(tmp_path / "half", lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"][0].mul_(-0.0))
    (tmp_path / "half" / "evidence.json").write_text("{}")
    summary = pack(tmp_path / "half", tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "half", "packed"]
    unpack(tmp_path / "packed", tmp_path / "again")
    ours, theirs = files_of(tmp_path / "again"), files_of(tmp_path / "half")
    tensors = {name: load_file(tmp_path / name / "model.safetensors") for name in ("again", "half")}
    assert all(same_bits(tensors["again"][name], tensor) for name, tensor in tensors["half"].items())
    assert ours.keys() == theirs.keys() and "prunus.json" in ours and "evidence.json" in ours
    assert {name for name in ours if ours[name] != theirs[name]} <= {"model.safetensors"}
    file = (tmp_path / "packed" / "packed.safetensors").stat().st_size
    assert summary["packed_bytes"] < summary["dense_bytes"] and file > summary["packed_bytes"]
    assert PackedCheckpoint(tmp_path / "packed").checksum() == Checkpoint(tmp_path / "half").checksum()


def test_any_safetensors_reader_opens_the_file_and_parts_are_aligned(tmp_path, pruned):
    pack(pruned[1], tmp_path / "packed")
    path = tmp_path / "packed" / "packed.safetensors"
    weight = load_file(pruned[1] / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        mask = file.get_tensor("model.layers.1.mlp.up_proj.weight.mask").numpy()
        values = file.get_tensor("model.layers.1.mlp.up_proj.weight.values")
        info = json.loads(file.metadata()["prunus_packed"])
    kept = np.unpackbits(mask, axis=1, bitorder="little")[: len(weight), : weight.shape[1]].astype(bool)
    assert np.array_equal(kept, (weight != 0).numpy())
    assert torch.equal(values[: kept.sum()], weight[weight != 0])
    assert "model.norm.weight" in names and "model.layers.1.mlp.up_proj.weight" not in names
    assert info["model"]["checksum"] == Checkpoint(pruned[1]).checksum()
    for name, tensor in read_packed(path).tensors.items():
        assert tensor.form == ("packed" if "proj" in name else "dense")
        assert tensor.start % (64 if tensor.form == "packed" else 2) == 0


@pytest.mark.parametrize("form", ["packed", "int8"])
def test_the_reader_of_the_documentation_works(tmp_path, pruned, form):
    _ = rounded_folder(tmp_path / "packed") if form == "int8" else pack(pruned[1], tmp_path / "packed")
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    scope: dict[str, Any] = {}
    exec(page.split("```python")[1].split("```")[0], scope)  # noqa: S102  our own page
    dense = PackedCheckpoint(tmp_path / "packed")
    for name in dense.tensors:
        if "proj.weight" in name:
            found = scope["read_packed_weight"](tmp_path / "packed" / "packed.safetensors", name)
            assert torch.equal(torch.from_numpy(found).bfloat16(), dense.read(name))


def test_masks_alone_are_a_bit_per_weight_and_need_their_source(tmp_path, pruned, monkeypatch):
    dense, half = pruned
    summary = pack(half, tmp_path / "masks", masks_only=True)
    linears = [n for n in Checkpoint(half).tensors if "proj" in n]
    rows = {n: Checkpoint(half).tensors[n].shape for n in linears}
    assert summary["packed_bytes"] == sum((o + 15) // 16 * 16 * ((i + 63) // 64 * 8) for o, i in rows.values())
    unpack(tmp_path / "masks", tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(half)
    other = make_model(
        tmp_path / "other", "qwen3", dtype=torch.bfloat16, tied=True, hidden_size=48, head_dim=20, seed=1
    )
    refused("belongs to another model", unpack, tmp_path / "masks", tmp_path / "x", source=other)
    refused("overlaps", unpack, tmp_path / "masks", dense / "x")
    dense.rename(tmp_path / "moved")
    try:
        refused("(--dense)", unpack, tmp_path / "masks", tmp_path / "x")
        refused("give --dense MODEL", pack, half, tmp_path / "x", masks_only=True)
        unpack(tmp_path / "masks", tmp_path / "again", source=tmp_path / "moved", overwrite=True)
        pack(half, tmp_path / "masks", masks_only=True, source=tmp_path / "moved", overwrite=True)
    finally:
        (tmp_path / "moved").rename(dense)
    assert files_of(tmp_path / "again") == files_of(half)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.partial").exists()


def test_masks_are_refused_where_they_are_not_enough(tmp_path, pruned):
    dense, half = pruned
    refused("says what it was pruned from", pack, dense, tmp_path / "x", masks_only=True)
    prunus.prune(dense, tmp_path / "a", PruneRecipe(method="magnitude", sparsity=0.5))
    change_tensors(tmp_path / "a", lambda tensors: tensors["model.layers.2.mlp.up_proj.weight"][3, 3].fill_(-0.0))
    moved = "kept weights of 'model.layers.2.mlp.up_proj.weight' differ"
    refused(moved, pack, tmp_path / "a", tmp_path / "x", masks_only=True)
    prunus.prune(dense, tmp_path / "b", PruneRecipe(method="magnitude", sparsity=0.5))
    change_tensors(tmp_path / "b", lambda tensors: tensors["model.norm.weight"][3].mul_(2))
    refused("'model.norm.weight' differs", pack, tmp_path / "b", tmp_path / "x", masks_only=True)
    prunus.drop_blocks(half, tmp_path / "c", DropRecipe(blocks="1,"))
    refused("different tensors", pack, tmp_path / "c", tmp_path / "x", masks_only=True)
    assert not any(path.name.startswith("x") for path in tmp_path.iterdir())
    change_tensors(tmp_path / "b", lambda tensors: tensors["model.norm.weight"][3].fill_(float("nan")))
    refused("NaN", pack, tmp_path / "b", tmp_path / "x")


def test_what_an_earlier_version_rounded_is_read_and_says_so(tmp_path):
    summary = unpack(rounded_folder(tmp_path / "packed"), tmp_path / "again")
    assert summary["exact"] is False and "rounded to 8 bits" in summary["warnings"][0]
    before, after = (load_file(folder / "model.safetensors") for folder in (STORED / "pruned", tmp_path / "again"))
    for name, tensor in before.items():
        if "proj.weight" not in name:
            assert same_bits(after[name], tensor)
            continue
        step = tensor.float().abs().amax(1, keepdim=True) / 127
        # Half a step of rounding, and that of bfloat16 itself.
        error = (after[name].float() - tensor.float()).abs() - tensor.float().abs() / 256
        assert (error <= step * 0.501).all() and not same_bits(after[name], tensor)
        assert (after[name][tensor == 0] == 0).all()
    history = prunus.inspect(tmp_path / "again")["history"]
    assert [step["action"] for step in history] == ["prune", "quantise"]


@pytest.mark.parametrize("form", ["packed", "masks"])
def test_inspect_tells_the_size_before_and_after(tmp_path, pruned, form):
    half = pruned[1]
    summary = pack(half, tmp_path / "packed", masks_only=form == "masks")
    before, after = prunus.inspect(half), prunus.inspect(tmp_path / "packed")
    assert before["stored"] == "dense" and after["stored"].startswith("masks of" if form == "masks" else "packed")
    assert after["packed_bytes"] == summary["packed_bytes"]
    assert before["mask_bytes"] == after["mask_bytes"] < before["packed_bytes"] < before["weight_bytes"]
    changed = {"folder", "stored", "uses"}
    uses = after["uses"]
    assert uses == before["uses"][: len(uses)]
    assert [use["use"] for use in before["uses"][len(uses) :]] == ["width", "quantize"]  # not of packed models
    if form == "masks":
        assert after["packed_bytes"] == after["packed_prunable_bytes"] == before["mask_bytes"]
        changed |= {"packed_bytes", "packed_prunable_bytes"}
    same = before.keys() - changed - {"linears"}
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    if form == "packed":
        assert after["linears"] == before["linears"]


def test_inspect_says_that_values_were_rounded(tmp_path):
    found = prunus.inspect(rounded_folder(tmp_path / "packed"))
    assert found["stored"] == "packed, values rounded to 8 bits"
    assert found["packed_bytes"] < prunus.inspect(STORED / "pruned")["packed_bytes"]


def test_inspect_prints_what_a_size_is_a_share_of(pruned, capsys):
    found = prunus.inspect(pruned[1])
    main(["inspect", str(pruned[1])])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    share = found["packed_prunable_bytes"] / found["prunable_bytes"]
    assert any(line[:3] == ["packed", "prunable", "bytes"] and f"({share:.3f}" in line for line in lines)


def test_targets_are_guarded_as_elsewhere(tmp_path, pruned):
    _, half = pruned
    pack(half, tmp_path / "packed")
    refused("packed exists; choose another output or add --overwrite", pack, half, tmp_path / "packed")
    refused("overlaps", pack, half, half / "inside")
    refused("add --masks-only", pack, half, tmp_path / "x", source=half)
    refused("leave the source out", unpack, tmp_path / "packed", tmp_path / "x", source=half)
    refused("is not a packed checkpoint", unpack, half, tmp_path / "x")
    refused("is not a packed checkpoint", unpack, tmp_path / "nothing", tmp_path / "x")
    before = files_of(tmp_path / "packed")
    pack(half, tmp_path / "packed", overwrite=True)
    assert files_of(tmp_path / "packed") == before
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("options", [{}, {"masks_only": True}])
def test_an_interrupted_pack_leaves_nothing_and_a_killed_one_is_done_again(tmp_path, pruned, monkeypatch, options):
    def breaks(model, steps):
        yield from list(read_linears(model, steps))[:4]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunus.checkpoint.conversions.read_linears", breaks)
        with pytest.raises(KeyboardInterrupt):
            pack(pruned[1], tmp_path / "packed", **options)
        assert list(tmp_path.iterdir()) == []
        patch.setattr("prunus.checkpoint.writer.shutil.rmtree", lambda _: None)  # as if killed
        with pytest.raises(KeyboardInterrupt):
            pack(pruned[1], tmp_path / "packed", **options)
    (tmp_path / "packed.partial" / "packed.safetensors.0a1b2c3d.writing").write_bytes(b"half")
    pack(pruned[1], tmp_path / "packed", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert not any(name.endswith(".writing") for name in files_of(tmp_path / "packed"))
    assert PackedCheckpoint(tmp_path / "packed").checksum() == Checkpoint(pruned[1]).checksum()


def test_commands_do_what_the_functions_do(tmp_path, pruned, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pack(pruned[1], tmp_path / "packed")
    main(["pack", str(pruned[1]), "p"])
    main(["pack", str(pruned[1]), "m", "--masks-only", "--dense", str(pruned[0])])
    rounded_folder(tmp_path / "q")
    assert files_of(tmp_path / "p")["packed.safetensors"] == files_of(tmp_path / "packed")["packed.safetensors"]
    main(["unpack", "p", "again"])
    main(["unpack", "m", "again", "--source", str(pruned[0]), "--overwrite"])
    assert files_of(tmp_path / "again") == files_of(pruned[1])
    main(["unpack", "q", "rounded"])
    printed = capsys.readouterr()
    assert printed.out == "" and "exact: False" in printed.err and "form: masks" in printed.err
    with pytest.raises(SystemExit) as ended:
        main(["unpack", "p", "again"])
    assert ended.value.code == 2 and "again exists" in capsys.readouterr().err


def test_what_expects_dense_weights_names_unpack(tmp_path, pruned):
    pack(pruned[1], tmp_path / "packed")
    for function, more in (
        (prunus.prune, (tmp_path / "x", PruneRecipe(calibration="tiny"))),
        (prunus.drop_blocks, (tmp_path / "x", DropRecipe(calibration="tiny"))),
        (prunus.perplexity, (Path(__file__),)),
        (
            partial(prunus.evaluate, engine=prunus.EngineOptions(url="http://localhost:1")),
            (prunus.EvalPlan(tasks=("tiny",), budgets=(16,), backend="openai"), tmp_path / "s.db"),
        ),
        (prunus.pack, (tmp_path / "x",)),
    ):
        refused("packed is a packed checkpoint; run `prunus unpack", function, tmp_path / "packed", *more)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")


def test_a_linear_of_zeros_has_no_values(tmp_path):
    folder = make_model(tmp_path / "dense")
    change_tensors(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].zero_())
    pack(folder, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    assert Checkpoint(tmp_path / "again").checksum() == Checkpoint(folder).checksum()


def test_large_models_come_back_in_shards(tmp_path, pruned, monkeypatch):
    monkeypatch.setattr("prunus.checkpoint.writer.SINGLE_FILE_BYTES", 1000)
    pack(pruned[1], tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors.index.json").exists()
    assert Checkpoint(tmp_path / "again").checksum() == Checkpoint(pruned[1]).checksum()


def test_tensors_that_are_no_weights_come_along(tmp_path):
    """A whole number beside the weights, an empty tensor, and one with three dimensions."""
    folder = make_model(tmp_path / "dense")
    extra = {
        "steps": torch.arange(5),
        "none": torch.zeros(0, 3),
        "cube": torch.rand(2, 3, 5),
        "flag": torch.tensor(True),
    }
    change_tensors(folder, lambda tensors: tensors.update(extra))
    pack(folder, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in extra.items())


# Variants


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variant_comes_back_bit_by_bit(tmp_path, dtype):
    source = Checkpoint(make_model(tmp_path / "dense", dtype=dtype))
    weights = variant_weights(source)
    about = {"recipe": {"sparsity": 0.4}, "note": "ä\n"}
    write_variant(tmp_path / "deep" / "er" / "v.safetensors", source, iter(weights.items()), about)
    path = tmp_path / "deep" / "er" / "v.safetensors"
    assert variant_about(path) == about
    found = dict(read_variant(path, source))
    assert list(found) == list(weights)
    assert all(same_bits(found[name], weight) for name, weight in weights.items())
    forms = [tensor.form for tensor in read_packed(path).tensors.values()]
    assert forms == ["source", "mask", "packed", "packed", "mask"]
    assert [p.name for p in path.parent.iterdir()] == ["v.safetensors"]


def test_variants_belong_to_their_source_and_wrong_weights_leave_nothing(tmp_path):
    source = Checkpoint(make_model(tmp_path / "dense"))
    other = Checkpoint(make_model(tmp_path / "other", seed=1))
    weights, path = variant_weights(source), tmp_path / "v.safetensors"
    name, weight = next(iter(weights.items()))
    for words, wrong in (
        ("'nothing'", [("nothing", weight)]),
        ("is not the weight of a Linear", [("model.norm.weight", source.read("model.norm.weight"))]),
        ("another shape or dtype", [(name, weight.bfloat16())]),
        ("another shape or dtype", [(name, weight.int())]),
        ("another shape or dtype", [(name, weight[:-1])]),
        ("occurs twice", [(name, weight), (name, weight)]),
    ):
        refused(words, write_variant, path, source, wrong, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "other"]
    write_variant(path, source, weights.items(), {})
    refused("belongs to another model", read_variant, path, other)
    refused("does not exist", read_variant, tmp_path / "w.safetensors", source)
    refused("does not exist", variant_about, tmp_path)
    pack(tmp_path / "dense", tmp_path / "packed")
    refused("not a variant", read_variant, tmp_path / "packed" / "packed.safetensors", source)


def test_an_interrupted_variant_leaves_the_old_one(tmp_path):
    source, path = Checkpoint(make_model(tmp_path / "dense")), tmp_path / "v.safetensors"
    weights = variant_weights(source)
    write_variant(path, source, weights.items(), {"n": 1})

    def breaks():
        yield from list(weights.items())[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_variant(path, source, breaks(), {"n": 2})
    assert variant_about(path) == {"n": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "v.safetensors"]


@pytest.mark.real_llm
def test_masks_of_a_real_llm_take_a_sixteenth_and_come_back(tmp_path):
    source, path = Checkpoint(smollm2()), tmp_path / "v.safetensors"
    names = [name for name in source.tensors if "proj.weight" in name]

    def halves():
        for name in names:
            weight = source.read(name)
            yield name, torch.where(weight.abs() > weight[0].abs().median(), weight, 0)

    write_variant(path, source, halves(), {})
    linears = sum(source.tensors[name].nbytes for name in names)
    assert path.stat().st_size == pytest.approx(linears / 16, rel=0.02)
    for (name, weight), (found_name, found) in zip(halves(), read_variant(path, source), strict=True):
        assert name == found_name and same_bits(weight, found)
    assert {tensor.form for tensor in read_packed(path).tensors.values()} == {"mask"}
