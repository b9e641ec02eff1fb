"""Files of variants: every bit comes back, and sizes are as promised."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from packed_models import bits, refused, same_bits, variant_weights
from real_llm import smollm2
from safetensors import safe_open
from tiny_models import make_model

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.packed_files import read_packed, read_variant, variant_about, write_variant
from prunus.checkpoint.packed_tensor import PackedBits, apply_mask, pack_bits, packed_nbytes, unpack_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# The layout


def layout_by_hand(weight):
    """The layout that packed_files.py describes in plain loops over Python numbers, little-endian bytes."""
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
    refused("cannot be read", read_variant, tmp_path / "w.safetensors", source)
    refused("cannot be read", variant_about, tmp_path)


def read_variant_weight(path, name, source):
    """The weight of a variant, bit by bit, by the description alone; source: that of the dense model."""
    with safe_open(path, "pt") as file:
        row = json.loads(file.metadata()["prunus_packed"])["tensors"][name]
        if row["form"] == "source":
            return source
        mask = file.get_tensor(f"{name}.mask").numpy()
        values = file.get_tensor(f"{name}.values") if row["form"] == "packed" else None
    outputs, inputs = row["shape"]
    kept = torch.from_numpy(np.unpackbits(mask, axis=1, bitorder="little")[:outputs, :inputs].astype(bool))
    weight = torch.zeros_like(source)
    weight[kept] = source[kept] if values is None else values[: kept.sum()]
    return weight


def test_a_reader_written_from_the_description_reads_every_weight(tmp_path):
    source = Checkpoint(make_model(tmp_path / "dense", dtype=torch.bfloat16))
    weights = variant_weights(source)
    write_variant(tmp_path / "v.safetensors", source, weights.items(), {})
    for name, weight in weights.items():
        assert same_bits(read_variant_weight(tmp_path / "v.safetensors", name, source.read(name)), weight), name


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


@pytest.mark.thorough
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
