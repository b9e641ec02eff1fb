"""Zero the n weights of lowest score. This is the only place where zeros are chosen and counted.

Counts are exact, and of equal scores that with the lower index is removed first. Nothing is sorted: a partial
selection finds the threshold, and scores equal to it are resolved in turn only if not all of them are removed.
benchmarks/selection.py measures the time that this saves. Shapes: O output features (rows), I input features (columns).
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunus.recipes.declarations import Group
from prunus.recipes.prune import Rounding

# On a CPU, rows are processed in slices of about this many elements, which stay in its cache.
SLICE = 1 << 19
_SLICE_OF_16_BITS = 1 << 17  # the slice where all operations are on 16-bit numbers
_SAMPLE_STEP = 61  # every 61st number is sampled: 61 divides no usual width, so the sample covers all columns
_GUESSES = 4  # guesses of a threshold from the sample, before the search halves what is left
_SAME_SIZE_INTEGER = {2: torch.int16, 4: torch.int32}
_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # the bit pattern of infinity; those of NaN are larger


class Target(NamedTuple):
    """The zeros that a Linear gets: a share of its weights, or all but n of every m consecutive inputs of a row.

    sparsity: that share. pattern: (n, m). group: what is ranked together; None uses the method's own group. ties: with
    rounding `reference` and the whole tensor as one group, zero every score up to the threshold, as Magnitude's authors
    do, instead of an exact count. extra_zeros: with rows ranked separately, zeros beyond the equal number per row; each
    of the first rows gets one of them.
    """

    sparsity: float
    rounding: Rounding = "exact"
    pattern: tuple[int, int] | None = None
    group: Group | None = None
    ties: bool = True
    extra_zeros: int = 0


def zeros_of(target: Target, shape: tuple[int, ...], group: Group) -> int:
    """Number of zeros that a weight of this shape (O, I) gets, without the ties of rounding `reference`."""
    rows, columns = shape
    if target.pattern is not None:
        keep, width = target.pattern
        return rows * (columns // width) * (width - keep)
    if group == "row":
        return rows * zeros_wanted(columns, target.sparsity, target.rounding) + target.extra_zeros
    return zeros_wanted(rows * columns, target.sparsity, target.rounding)


def zero_lowest(weight_OI: Tensor, score_OI: Tensor, target: Target, group: Group) -> Tensor:
    """New weight with zeros at the lowest scores of each row, of the whole tensor, or of each group of the pattern.

    group: the method's, used if the target names none.
    """
    if target.pattern is not None:
        return zero_lowest_per_pattern(weight_OI, score_OI, target.pattern)
    if (target.group or group) == "row":
        return zero_lowest_per_row(weight_OI, score_OI, target.sparsity, target.rounding, target.extra_zeros)
    return zero_lowest_in_tensor(weight_OI, score_OI, target.sparsity, target.rounding, target.ties)


def zero_smallest(weight_OI: Tensor, target: Target) -> Tensor:
    """New weight with zeros at its smallest entries, ranked in the whole tensor unless the target says otherwise."""
    return zero_lowest(weight_OI, weight_OI.abs(), target, "tensor")


def zero_lowest_per_pattern(weight_OI: Tensor, score_OI: Tensor, pattern: tuple[int, int]) -> Tensor:
    """New weight that keeps the n highest scores of every m consecutive inputs of a row; pattern is (n, m).

    If m does not divide the row's length, the last columns are left dense. Of equal scores the lower column is zeroed.
    """
    keep, width = pattern
    covered = weight_OI.shape[1] // width * width
    result_OI = weight_OI.clone()
    if result_OI.numel() == 0 or covered == 0:
        return result_OI
    _check_scores(score_OI)
    rows = max(1, SLICE // weight_OI.shape[1]) if _on_cpu(weight_OI) else len(weight_OI)
    for begin in range(0, weight_OI.shape[0], rows):
        part_RC = score_OI[begin : begin + rows, :covered]
        _zero(result_OI[begin : begin + rows, :covered], lowest_per_pattern(part_RC, width - keep, width))
    return result_OI


def lowest_per_pattern(score_RC: Tensor, count: int, width: int) -> Tensor:
    """(R, C) true at the `count` lowest scores of every `width` consecutive columns; C is a multiple of width.

    Each score's rank is the number of scores before it in its group. That equals a stable sort, and is much faster for
    groups this small.
    """
    if _on_cpu(score_RC):
        return _lowest_per_pattern_by_pairs(score_RC, count, width)
    score_RGM = score_RC.unflatten(1, (-1, width))
    place_M = torch.arange(width, device=score_RC.device)
    rank_RGM = torch.zeros_like(score_RGM, dtype=torch.int16)
    for j in range(width):
        other_RG1 = score_RGM[:, :, j : j + 1]
        rank_RGM += (other_RG1 < score_RGM) | ((other_RG1 == score_RGM) & (place_M > j))
    return (rank_RGM < count).flatten(1)


def _lowest_per_pattern_by_pairs(score_RC: Tensor, count: int, width: int) -> Tensor:
    """lowest_per_pattern on a CPU, in a tenth of the time: compares each pair once, for all groups G side by side."""
    table_RC = (score_RC.float() if score_RC.dtype in _INFINITY else score_RC).numpy()
    score_MG = np.ascontiguousarray(table_RC.reshape(-1, width).T)
    rank_MG = np.zeros(score_MG.shape, np.min_scalar_type(width))
    for j in range(width - 1):
        before_MG = (score_MG[j] <= score_MG[j + 1 :]).view(np.uint8)  # 1 where j ranks before the later score
        rank_MG[j + 1 :] += before_MG
        rank_MG[j] += rank_MG.dtype.type(width - 1 - j) - before_MG.sum(0, dtype=rank_MG.dtype)
    return torch.from_numpy(np.ascontiguousarray((rank_MG < count).T).reshape(table_RC.shape))


def lowest_in_tensor(score: Tensor, count: int) -> Tensor:
    """True at exactly the `count` lowest scores of the whole tensor; of equal scores the lower flat index is taken.

    For inner loops: on a GPU the program waits for nothing, and scores are not checked; see check_result.
    """
    key_N = _keys(score.reshape(-1))
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    return _take(key_N, _kth_lowest(key_N, count), count).view(score.shape)


@lru_cache
def zeros_wanted(size: int, sparsity: float, rounding: Rounding = "exact") -> int:
    """Number of zeros among `size` weights.

    Rounding `exact`: sparsity * size, rounded to the nearest integer (halves to even), with sparsity taken as the
    decimal number that it prints as. Rounding `reference`: rounded down in floating point, as in the authors' code, so
    that 0.29 of 100 is 28, not 29.
    """
    return round(Fraction(repr(float(sparsity))) * size) if rounding == "exact" else int(size * sparsity)


def zero_lowest_per_row(
    weight_OI: Tensor, score_OI: Tensor, sparsity: float, rounding: Rounding = "exact", extra_zeros: int = 0
) -> Tensor:
    """New weight with zeros at the zeros_wanted(I) lowest scores of every row; other weights keep their bits.

    extra_zeros: each of the first `extra_zeros` rows gets one zero more. score_OI: not negative, no NaN. Of equal
    scores the lower column is zeroed.
    """
    count = zeros_wanted(weight_OI.shape[1], sparsity, rounding)
    result_OI = weight_OI.clone()
    if result_OI.numel() == 0:
        return result_OI
    step = max(1, SLICE // weight_OI.shape[1]) if _on_cpu(weight_OI) else len(weight_OI)
    for first, last, zeros in ((0, extra_zeros, count + 1), (extra_zeros, len(weight_OI), count)):
        for begin in range(first, last if zeros else first, step):
            end = min(begin + step, last)
            _zero(result_OI[begin:end], _lowest_of_rows(score_OI[begin:end], zeros))
    return result_OI


def zero_lowest_in_tensor(
    weight_OI: Tensor, score_OI: Tensor, sparsity: float, rounding: Rounding = "exact", ties: bool = True
) -> Tensor:
    """New weight with zeros at the zeros_wanted(O * I) lowest scores of the whole tensor; other weights stay the same.

    score_OI: not negative, no NaN. Of equal scores the lower flat index is zeroed. With rounding `reference` and ties,
    the threshold is the sorted scores' entry at index int(sparsity * O * I), and every score up to and including it is
    zeroed, as in the authors' code: at least one weight more than asked for, and all that tie with it.
    """
    every_tie = ties and rounding == "reference"
    count = zeros_wanted(weight_OI.numel(), sparsity, rounding)
    if weight_OI.numel() == 0 or (count == 0 and not every_tie):
        return weight_OI.clone()
    key_N = _keys(score_OI.reshape(-1))
    k = count + 1 if every_tie else count
    if _on_cpu(weight_OI):
        return _without_lowest(weight_OI, key_N.numpy(), k, every_tie)
    _check_scores(score_OI)
    threshold = _kth_lowest(key_N, k)
    lowest_N = key_N <= threshold if every_tie else _take(key_N, threshold, k)
    result_OI = weight_OI.clone()
    _zero(result_OI, lowest_N.view(weight_OI.shape))
    return result_OI


def kth_lowest(score_N: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of non-negative scores, as a scalar tensor of their dtype; checked as by `_keys`."""
    return _kth_lowest(_keys(score_N), k).view(score_N.dtype)


def _keys(score_N: Tensor) -> Tensor:
    """Keys in the order of the scores: for 16-bit floats their bit patterns, which compare faster.

    On a CPU the scores are checked: ValueError if a score is negative or NaN. On a GPU they are not, to save a wait.
    """
    if score_N.dtype not in _INFINITY:
        if _on_cpu(score_N):
            _check_scores(score_N)
        return score_N
    pattern_N = score_N.view(torch.int16)
    if not _on_cpu(score_N):
        return pattern_N & 0x7FFF
    low, high = map(int, pattern_N.aminmax())
    if low < 0:  # the sign bit is set: -0.0, which counts as 0.0, or an invalid score
        _check_scores(score_N)
        pattern_N = pattern_N & 0x7FFF
    elif high > _INFINITY[score_N.dtype]:
        raise ValueError("scores hold NaN")
    return pattern_N


def _kth_lowest(key_N: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of the keys that _keys returns."""
    if _on_cpu(key_N):
        return torch.tensor(_kth_and_lower(key_N.numpy(), k)[0], dtype=key_N.dtype)
    if key_N.dtype == torch.int16:
        return _kth_of_counts(key_N, 1 << 15, k)[0].to(torch.int16)
    if key_N.dtype == torch.float32:
        return _kth_by_halves(key_N, k)
    return torch.kthvalue(key_N, k).values


def _kth_by_halves(key_N: Tensor, k: int) -> Tensor:
    """The k-th smallest of non-negative float32 numbers, from histograms of the halves of their bit patterns.

    Bit patterns of such numbers have the order of their values. On a GPU a histogram uses all multiprocessors, while
    torch.kthvalue uses one for the whole tensor.
    """
    pattern_N = key_N.view(torch.int32) & 0x7FFFFFFF  # -0.0 counts as 0.0
    upper_N = pattern_N >> 16
    upper, below = _kth_of_counts(upper_N, 1 << 15, k)
    lower, _ = _kth_of_counts(pattern_N & 0xFFFF, 1 << 16, k - below, upper_N == upper)
    return (upper << 16 | lower).to(torch.int32).view(torch.float32)


def _kth_of_counts(
    number_N: Tensor, bound: int, k: int | Tensor, some_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k-th smallest of integers in [0, bound), and how many are smaller than it; int64 scalars.

    some_N: which of them count; None: all. torch.bincount would do the same, but waits for the least and the largest.
    """
    one_N = torch.ones((), dtype=torch.int32, device=number_N.device).expand(len(number_N))
    count_B = torch.zeros(bound, dtype=torch.int32, device=number_N.device)
    count_B.index_add_(0, number_N.int(), one_N if some_N is None else some_N.int())
    is_lower_B = count_B.cumsum(0) < k
    return is_lower_B.sum(), (count_B * is_lower_B).sum()


def _kth_and_lower(keys: NDArray[Any], k: int) -> tuple[Any, int]:
    """The k-th smallest key and how many are smaller than it, on a CPU.

    For 16-bit keys, which are not negative, a few passes that compare and count are faster than a histogram. Guesses of
    the threshold come from a sorted sample; if those do not find it, the remaining range is halved until it is found.
    """
    if keys.dtype != np.int16:
        threshold = np.partition(keys, k - 1)[k - 1]
        return threshold, int(np.count_nonzero(keys < threshold))
    sample = np.sort(keys[::_SAMPLE_STEP], kind="stable")  # for 16-bit numbers a radix sort, ten times faster
    place = k // _SAMPLE_STEP
    below, limit = -1, (1 << 15) - 1  # invariant: fewer than k keys are <= below, at least k are <= limit
    tries = lower = 0
    while limit - below > 1:
        tries += 1
        guess = int(sample[min(max(place, 0), len(sample) - 1)]) if tries <= _GUESSES else (below + limit) // 2
        guess = min(max(guess, below + 1), limit - 1)
        count = sum(int(np.count_nonzero(keys[part] <= guess)) for part in _slices(0, len(keys)))
        place += (k - count) // _SAMPLE_STEP
        if count >= k:
            limit = guess
        else:
            below, lower = guess, count
    return limit, lower


def _lowest_of_rows(score_RI: Tensor, count: int) -> Tensor:
    """(R, I) true at the `count` lowest scores of each row."""
    _check_scores(score_RI)
    score_RI = score_RI.float()
    if _on_cpu(score_RI):
        table = score_RI.numpy()
        threshold_R1 = torch.from_numpy(np.partition(table, count - 1, axis=1)[:, count - 1 : count].copy())
        lowest_RI = torch.from_numpy(table <= threshold_R1.numpy())
    else:
        threshold_R1 = torch.kthvalue(score_RI, count, dim=1, keepdim=True).values
        return _up_to(score_RI, threshold_R1, count)
    if int(np.count_nonzero(lowest_RI.numpy())) == count * score_RI.shape[0]:
        return lowest_RI
    for row in (lowest_RI.sum(1) > count).nonzero().flatten().tolist():
        lowest_RI[row] = _take(score_RI[row], threshold_R1[row, 0], count)
    return lowest_RI


def _take(key_N: Tensor, threshold: Tensor, count: int) -> Tensor:
    """(N,) true at the `count` lowest keys: all below the threshold (the count-th key) and the first equal to it."""
    if _on_cpu(key_N):  # numpy compares and finds several times faster than torch
        keys, limit = key_N.numpy(), threshold.numpy()
        lowest = keys < limit
        end = _end(keys, limit, count - int(np.count_nonzero(lowest)))
        lowest[:end] |= keys[:end] == limit
        return torch.from_numpy(lowest)
    return _up_to(key_N, threshold, count)


def _up_to(key: Tensor, threshold: Tensor, count: int) -> Tensor:
    """True at the `count` lowest keys of the last axis, whose count-th key is the threshold. Waits for no GPU."""
    lower, equal = key < threshold, key == threshold
    missing = count - lower.sum(-1, keepdim=True)
    return lower | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))


def _on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is on the CPU, where numpy is faster; the torch code for other devices gives the same result."""
    return tensor.device.type == "cpu"


def _without_lowest(weight: Tensor, keys: NDArray[Any], k: int, every_tie: bool) -> Tensor:
    """New weight with +0.0 at its k lowest keys, and with every_tie at all that equal the k-th. For a CPU."""
    limit, lower = _kth_and_lower(keys, k)
    end = len(keys) if every_tie else _end(keys, limit, k - lower)
    bits = weight.reshape(-1).view(_SAME_SIZE_INTEGER[weight.element_size()]).numpy()
    result = np.empty_like(bits)
    for part in _slices(0, end):  # multiplied as integers, as in _zero
        np.multiply(bits[part], keys[part] > limit, out=result[part])
    for part in _slices(end, len(keys)):
        np.multiply(bits[part], keys[part] >= limit, out=result[part])
    return torch.from_numpy(result).view(weight.dtype).view(weight.shape)


def _end(keys: NDArray[Any], limit: NDArray[Any], count: int) -> int:
    """Index just after the count-th key that equals limit."""
    for part in _slices(0, len(keys)):
        equal = keys[part] == limit
        if (matches := int(np.count_nonzero(equal))) >= count:
            return part.start + int(np.flatnonzero(equal)[count - 1]) + 1
        count -= matches
    raise AssertionError(f"{count} more of {limit} expected")


def _slices(begin: int, end: int) -> Iterator[slice]:
    """Slices small enough that intermediate results stay in the cache of a core."""
    return (slice(start, min(start + _SLICE_OF_16_BITS, end)) for start in range(begin, end, _SLICE_OF_16_BITS))


def _zero(weight: Tensor, lowest: Tensor) -> None:
    """Set weights to +0.0 in place. An integer product keeps the bits of the rest and is faster than a masked fill."""
    patterns = weight.view(_SAME_SIZE_INTEGER[weight.element_size()])
    if _on_cpu(weight):
        np.multiply(patterns.numpy(), np.logical_not(lowest.numpy()), out=patterns.numpy())
    else:
        patterns.mul_(~lowest)


def zeros_in(weight: Tensor) -> Tensor:
    """Number of weights that are +0.0 or -0.0, as a scalar on the weight's device, to be read together with others."""
    return torch.tensor(count_zeros(weight)) if _on_cpu(weight) else weight.numel() - weight.count_nonzero()


def count_zeros(weight: Tensor) -> int:
    """Number of weights that are +0.0 or -0.0."""
    if not _on_cpu(weight):
        return int(zeros_in(weight))
    # Integers shifted by their sign bit: about twenty times faster than torch's count of 16-bit floats.
    patterns = weight.reshape(-1).view(_SAME_SIZE_INTEGER[weight.element_size()]).numpy()
    return weight.numel() - sum(int(np.count_nonzero(patterns[part] << 1)) for part in _slices(0, len(patterns)))


def check_result(weight: Tensor) -> None:
    """On a GPU, raise ValueError if weights hold NaN, after inner loops in which scores were not checked."""
    if not _on_cpu(weight) and bool(weight.isnan().any()):
        raise ValueError("scores hold NaN")


def _check_scores(score: Tensor) -> None:
    """Raise ValueError if scores cannot be ranked. NaN propagates through max and fails every comparison."""
    if not bool(score.max() >= 0):
        raise ValueError("scores hold NaN or are negative")
