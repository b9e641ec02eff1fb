"""The kernel against numpy in float64, on every instruction set that this processor has, and its layout bit by bit."""

import threading

import numpy as np
import pytest
import torch
from torch.nn import functional

from prunus.checkpoint.packed_tensor import bit_patterns, pack_bits, unpack_bits
from prunus.errors import PrunusError
from prunus.native import load as library
from prunus.sparse import linear, weight
from prunus.sparse.linear import apply, multiply
from prunus.sparse.weight import SparseWeight, checked, from_packed, pack

pytestmark = pytest.mark.skipif(library.kernel().library is None, reason=library.kernel().reason)
EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-23}
BEST = library.kernel().isa
# Outputs not of 16, inputs not of 32 or 1024, single ones, and sizes that fit.
SHAPES = [(1, 1), (5, 31), (16, 32), (17, 33), (40, 515), (64, 512), (33, 1100)]


@pytest.fixture(params=range(1, BEST + 1), ids=lambda isa: library.ISAS[isa])
def isa(request, monkeypatch):
    """Every instruction set in turn."""
    found = library.kernel()._replace(isa=request.param)
    for module in (weight, linear):
        monkeypatch.setattr(module, "needed", lambda: found)
    return request.param


def random_weight(shape, sparsity, dtype=torch.bfloat16, seed=0):
    """A matrix in which about this share is zero, and two negative ones, which count as weights."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(shape, generator=generator).to(dtype)
    made[torch.rand(shape, generator=generator) < sparsity] = 0
    made.view(-1)[:: max(1, made.numel() // 2)] = -0.0
    return made


def exact(x, dense, bias):
    """The product in float64, and the sum of the sizes of what is added, by which errors are judged."""
    x, dense, bias = x.double().numpy(), dense.double().numpy(), bias.double().numpy()
    return x @ dense.T + bias, np.abs(x) @ np.abs(dense.T) + np.abs(bias)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("activations", EPSILON, ids=str)
def test_products_are_those_of_float64(isa, dtype, activations):
    for shape in SHAPES:
        for sparsity in (0.0, 0.2, 0.5, 0.95, 1.0):
            dense = random_weight(shape, sparsity, dtype)
            bias = torch.randn(shape[0]).to(activations)
            packed = pack(dense)
            for rows in (*range(1, 10), 13, 40):
                x = torch.randn(rows, shape[1]).to(activations)
                expected, size = exact(x, dense, bias)
                # One rounding of the result, and float32 sums of products.
                allowed = EPSILON[activations] * np.abs(expected) + 2.0**-21 * size + 1e-7
                for given in (packed, dense):
                    got = multiply(x, given, bias).double().numpy()
                    assert (np.abs(got - expected) <= allowed).all(), (shape, sparsity, rows)


def layout_by_hand(dense):
    """Masks, values (as lists of bit patterns) and starts in the order that kernel.cpp describes, in plain loops."""
    outputs, inputs = dense.shape
    bits = bit_patterns(dense).tolist()
    chunks, masks, values, starts = -(-inputs // 32), [], [], []
    tiles = -(-chunks // 32)
    for group in range(-(-outputs // 16)):
        starts.append(len(values))
        for tile in range(tiles):
            for quad in range(4):
                for chunk in range(chunks * tile // tiles, chunks * (tile + 1) // tiles):
                    for row in range(4):
                        output, mask = group * 16 + quad * 4 + row, 0
                        for k in range(32):
                            column = chunk * 32 + k
                            if output < outputs and column < inputs and bits[output][column]:
                                mask |= 1 << k
                                values.append(bits[output][column])
                        masks.append(mask)
    return masks, values, [*starts, len(values)]


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_layout_is_as_described_and_every_bit_comes_back(isa, dtype):
    for shape in [(1, 1), (17, 33), (40, 515), (18, 2100)]:
        dense = random_weight(shape, 0.5, dtype)
        dense.view(-1)[shape[1] // 2] = torch.nan
        packed = pack(dense)
        masks, values, starts = layout_by_hand(dense)
        assert (packed.masks.numpy().view(np.uint32) == masks).all()
        assert (bit_patterns(packed.values)[: packed.kept] == values).all() and packed.kept == len(values)
        assert packed.starts.tolist() == starts
        assert (bit_patterns(packed.unpack()) == bit_patterns(dense)).all()
        groups = -(-shape[0] // 16)
        assert (bit_patterns(packed.unpack(groups - 1, groups)) == bit_patterns(dense[16 * (groups - 1) :])).all()


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_a_packed_checkpoints_arrays_become_the_same_weight(isa, dtype):
    for shape in SHAPES:
        dense = random_weight(shape, 0.6, dtype)
        ours, theirs = pack(dense), from_packed(shape, dtype, *pack_bits(bit_patterns(dense)))
        assert torch.equal(ours.masks, theirs.masks) and torch.equal(ours.starts, theirs.starts)
        assert (bit_patterns(ours.values) == bit_patterns(theirs.values)).all()


def test_arrays_that_lie_are_refused_wherever_the_reference_refuses_them():
    shape = (40, 100)
    good = pack_bits(bit_patterns(random_weight(shape, 0.5)))
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        starts, mask, values = good.starts.copy(), good.mask.copy(), good.values.copy()
        match generator.integers(3):
            case 0:
                mask.reshape(-1)[generator.integers(mask.size)] ^= 1 << generator.integers(8)
            case 1:
                starts[generator.integers(len(starts))] += generator.choice([-(1 << 62), -1, 1, 64, 1 << 40])
            case _:
                values = values[: generator.integers(len(values))].copy()
        try:
            expected = unpack_bits(shape, good._replace(starts=starts, mask=mask, values=values))
        except (ValueError, IndexError):
            expected = None
        try:
            got = from_packed(shape, torch.bfloat16, starts, mask, values).unpack()
        except PrunusError as error:
            assert "\n" not in str(error)
            refused += 1
            assert expected is None
        else:  # what differs is padding, which is not looked at here
            assert (bit_patterns(got) == unpack_bits(shape, good)).all()
    assert refused > 200


def test_parts_that_disagree_are_no_weight():
    packed = pack(random_weight((40, 100), 0.5))
    masks, values, starts = packed.masks, packed.values, packed.starts
    other = starts.clone()
    other[1] += 1
    flipped = masks.clone()
    flipped[7] ^= 1
    for wrong in [
        (flipped, values, starts),
        (masks, values[:-1].clone(), starts),
        (masks, values, other),
        (masks[:-1].clone(), values, starts),
        (masks.float(), values, starts),
        (masks, values.double(), starts),
    ]:
        with pytest.raises(PrunusError, match="not those of a weight"):
            SparseWeight(*wrong, 40, 100)
    with pytest.raises(PrunusError, match="not those of a weight"):
        checked(masks, values, starts, 40, 132)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_plain_16_bit_weight_is_as_exact_as_float32(isa, dtype, monkeypatch):
    """Against float64, relative to the sum of the products' sizes: no looser than a float32 sum of as many terms."""
    for outputs, inputs in [(1, 1), (5, 31), (31, 33), (33, 1100), (100, 2100), (530, 70)]:
        dense, bias = random_weight((outputs, inputs), 0.1, dtype), torch.randn(outputs)
        for rows in (1, 3, 4, 16, 17, 33, 64, 100):
            # Numbers of all sizes, whose float32 mantissas are full.
            x = torch.randn(rows, inputs) * 2.0 ** torch.randint(-20, 20, (rows, inputs))
            expected, size = exact(x, dense, bias)
            found = []
            for count in (1, 3):
                monkeypatch.setattr(linear, "threads", lambda count=count: count)
                found.append(multiply(x, dense, bias))
            assert torch.equal(*found)
            apart = np.abs(found[0].double().numpy() - expected)
            assert (apart <= 2.0**-23 * (2 + inputs / 32) * size + 1e-30).all(), (outputs, inputs, rows)


def test_infinities_and_nan_come_through(isa):
    """As in float64: NaN and infinities in x and W, and numbers near the largest, which parts of x must not exceed."""
    x, dense = torch.randn(20, 70), random_weight((18, 70), 0.0)
    x[1, 3], x[2, 5], x[3, 7], x[4] = torch.inf, -torch.inf, torch.nan, 3.4028e38 * torch.eye(70)[9]
    x[5] = 1e-30 * torch.randn(70)
    x.view(torch.int32)[6, 8] = 0x7F800001  # a NaN whose upper half is that of an infinity
    dense[:, 9] = 0.5
    dense[2, 11] = torch.inf
    x[0, 11], x[8, 11] = 1.5, -2.0  # numbers without lower parts, which an infinite weight must not turn into NaN
    for rows in (1, 8, 20):
        for start in range(0, 20 - rows + 1, 7):
            got, expected = (
                multiply(x[start : start + rows].clone(), dense),
                x[start : start + rows].double() @ dense.double().T,
            )
            torch.testing.assert_close(got, expected.float(), equal_nan=True, rtol=1e-5, atol=1e-5)
            if start <= 5 < start + rows:
                torch.testing.assert_close(got[5 - start, 3:], expected.float()[5 - start, 3:], rtol=1e-5, atol=1e-36)


def test_results_do_not_depend_on_threads_or_rows(isa, monkeypatch):
    dense = random_weight((200, 700), 0.5)
    packed, x = pack(dense), torch.randn(9, 700).bfloat16()
    results, plain = [], []
    for count in (1, 2, 5):
        monkeypatch.setattr(linear, "threads", lambda count=count: count)
        results += [multiply(x, packed), torch.cat([multiply(row[None], packed) for row in x])]
        plain.append(multiply(x, dense))
    for found in (results, plain):
        assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_many_rows_have_the_bits_of_one_row(isa, dtype, monkeypatch):
    """Over several spans of columns, panels of outputs, and blocks and slabs of rows."""
    bias = torch.randn(100).to(dtype)
    for outputs, inputs, rows in [(100, 1100, 9), (37, 2100, 14), (100, 5000, 1000), (600, 70, 31), (1, 1, 50)]:
        packed, x = pack(random_weight((outputs, inputs), 0.5)), torch.randn(rows, inputs).to(dtype)
        some = sorted({0, 1, 7, rows // 2, rows - 2, rows - 1})
        expected = torch.cat([multiply(x[row : row + 1], packed, bias[:1].expand(outputs).clone()) for row in some])
        exactly, size = exact(x, packed.unpack(), bias[:1].expand(outputs))
        allowed = EPSILON[dtype] * np.abs(exactly) + 2.0**-20 * size + 1e-7
        for count in (1, 3):
            monkeypatch.setattr(linear, "threads", lambda count=count: count)
            got = multiply(x, packed, bias[:1].expand(outputs).clone())
            assert torch.equal(got[some], expected), (outputs, inputs, rows, count)
            assert (np.abs(got.double().numpy() - exactly) <= allowed).all()


@pytest.mark.parametrize("rows", [4, 25])  # by threads of our own, and by torch's
def test_callers_at_the_same_time_get_what_they_would_alone(monkeypatch, rows):
    monkeypatch.setattr(linear, "threads", lambda: 3)
    packed, x = pack(random_weight((500, 900), 0.5)), torch.randn(rows, 900).bfloat16()
    alone, wrong = multiply(x, packed), []

    def call():
        wrong.extend(turn for turn in range(200) if not torch.equal(multiply(x, packed), alone))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.parametrize("panel_bytes", [1, 100_000, linear.PANEL_BYTES])  # 38 panels, 4 and one
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_panels_are_torchs_product_of_the_dense_weight(dtype, panel_bytes, monkeypatch):
    monkeypatch.setattr(linear, "PANEL_BYTES", panel_bytes)
    dense = random_weight((600, 300), 0.5)
    bias = torch.randn(600).to(dtype)
    x = torch.randn(3, 21, 300).to(dtype)
    expected = functional.linear(x, dense.to(dtype), bias)
    for given in (pack(dense), dense):
        got = apply(x, given, bias, 8)
        assert got.shape == (3, 21, 600)
        torch.testing.assert_close(got, expected, rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)


def test_an_empty_x_gives_an_empty_y():
    assert apply(torch.empty(2, 0, 40, dtype=torch.bfloat16), pack(random_weight((7, 40), 0.5)), None, 8).shape == (
        2,
        0,
        7,
    )


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(2, 40, requires_grad=True), None, "gradients"),
        (torch.zeros(2, 40, dtype=torch.float64), None, "float64"),
        (torch.zeros(2, 40, dtype=torch.int64), None, "int64"),
        (torch.zeros(2, 41), None, "takes"),
        (torch.zeros(40, 2).t(), None, "contiguous"),
        (torch.zeros(2, 40, device="meta"), None, "meta"),
        (torch.zeros(2, 40), torch.zeros(6), "bias"),
        (torch.zeros(2, 40), torch.zeros(7, dtype=torch.bfloat16), "bias"),
    ],
)
def test_wrong_x_is_refused_in_one_line(x, bias, message):
    dense = random_weight((7, 40), 0.5)
    for given in (pack(dense), dense):
        with pytest.raises(PrunusError, match=message) as caught:
            multiply(x, given, bias)
        assert "\n" not in str(caught.value)


def test_wrong_weights_are_refused():
    for wrong in [
        torch.zeros(3),
        torch.zeros(0, 3),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(2, 2, device="meta"),
    ]:
        with pytest.raises(PrunusError, match="cannot be packed"):
            pack(wrong)
    with pytest.raises(PrunusError, match="contiguous"):
        multiply(torch.zeros(1, 3), torch.zeros(3, 4).t())
    with pytest.raises(PrunusError, match="groups"):
        pack(torch.ones(4, 4)).unpack(1, 3)
