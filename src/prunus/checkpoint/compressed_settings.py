"""The quantization_config of compressed-tensors: parse its settings, and check that tensors match them.

Engines read weights by these settings and Prunus by the tensors, so the two must agree.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import regex

from prunus.checkpoint.safetensors_file import DTYPES, Stored

PACKED, INTEGERS = "pack-quantized", "int-quantized"
BITS = (4, 8)
_MIXED = "mixed-precision"  # of settings whose groups have formats of their own
_PATTERN, _CLASS = "re:", "Linear"
_SECONDS = 1.0  # for a pattern, which comes with the model
# Settings of each part that are read, or do not affect how weights are stored; others must be empty.
_KNOWN = {
    "quantization_config": {
        "config_groups", "quant_method", "kv_cache_scheme", "format", "quantization_status", "ignore", "version",
        "global_compression_ratio", "run_compressed", "dequantize", "use_optimized_inference",
    },
    "config_groups": {"targets", "weights", "input_activations", "output_activations", "format"},
    "weights": {
        "num_bits", "type", "symmetric", "group_size", "strategy", "actorder", "scale_dtype", "zp_dtype", "observer",
        "observer_kwargs",
    },
}  # fmt: skip
_UNORDERED, _ORDERED = (None, False, "weight", "static"), (True, "group", "dynamic")


class Scheme(NamedTuple):
    """Storage of the Linears that match the targets. group: inputs that share a scale; None: all.

    by_row: whether each row has its own scales. ordered: whether g_idx tells the group of each input. scale: dtype of
    the scales; None: any.
    """

    targets: tuple[str, ...]
    form: str
    bits: int
    group: int | None
    by_row: bool
    symmetric: bool
    ordered: bool
    scale: str | None

    def why_unlike(self, parts: Mapping[str, Stored], shape_OI: tuple[int, int], bits: int) -> str | None:
        """The first setting, in words, that contradicts a Linear's tensors; None if all agree. bits: of the tensors."""
        _, scales, *_ = parts.values()
        groups = scales.shape[1] if len(scales.shape) == 2 else 1
        rows = scales.shape[0] if len(scales.shape) == 2 else 1
        dtype = str(DTYPES.get(scales.dtype, scales.dtype)).removeprefix("torch.")
        checks = {
            f"format {self.form}": ("weight_packed" in parts) == (self.form == PACKED),
            f"num_bits {self.bits}": self.bits == bits or self.form == INTEGERS,
            f"group_size {self.group}": self.group is None or self.group * groups == shape_OI[1],
            "one scale for a row": self.group is not None or groups == 1,
            "scales of rows": not self.by_row or rows == shape_OI[0],
            "one scale in all": self.by_row or scales.elements == 1,
            f"symmetric {str(self.symmetric).lower()}": self.symmetric != ("weight_zero_point" in parts),
            "an actorder" if self.ordered else "no actorder": self.ordered == ("weight_g_idx" in parts),
            f"scale_dtype {self.scale}": self.scale in (None, dtype),
        }
        return next((what for what, holds in checks.items() if not holds), None)


def why_unreadable(settings: Mapping[str, Any]) -> str | None:
    """The setting because of which a model cannot be read, in words; None if it can be read.

    settings: its quantization_config.
    """
    try:
        schemes_of(settings)
    except ValueError as error:
        return str(error)
    return None


def schemes_of(settings: Mapping[str, Any]) -> list[Scheme]:
    """The schemes of a quantization_config. Raises ValueError that names a setting which is not supported."""
    groups = settings.get("config_groups")
    groups = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    if not groups:
        raise ValueError("no groups of Linears")
    if settings.get("transform_config"):
        raise ValueError("rotated weights (transform_config)")
    sparsity = settings.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise ValueError("zeros that are left out (sparsity_config)")
    if settings.get("kv_cache_scheme"):
        raise ValueError("a quantised cache (kv_cache_scheme)")
    _check_known("quantization_config", {**settings, "transform_config": None, "sparsity_config": None})
    if settings.get("quantization_status", "compressed") not in (None, "compressed", "frozen"):
        raise ValueError(f"quantization_status {_short(settings['quantization_status'])}")
    for pattern in _texts(settings.get("ignore") or [], "ignore"):
        _check_pattern(pattern)
    whole = settings.get("format")
    if whole not in (None, _MIXED, PACKED, INTEGERS):
        raise ValueError(f"format {_short(whole)}")
    return [_scheme(group, whole) for group in groups]


def _scheme(group: Mapping[str, Any], whole: str | None) -> Scheme:
    form, weights = group.get("format") or whole, group.get("weights")
    if form not in (PACKED, INTEGERS) or whole not in (None, _MIXED, form):
        raise ValueError(f"format {_short(form)}" + (f" in format {whole}" if whole not in (None, form) else ""))
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
    if not isinstance(weights, Mapping) or weights.get("type") != "int" or type(bits) is not int or bits not in BITS:
        raise ValueError("weights that are not integers of 4 or 8 bits")
    _check_known("config_groups", group)
    _check_known("weights", weights)
    if group.get("output_activations") or ((given := group.get("input_activations")) and not _by_token(given, bits)):
        raise ValueError(f"activations that weights of {bits} bits do not have here (input_activations)")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy not in ("group", "channel", "tensor"):
        raise ValueError(f"scales by {_short(strategy)}")
    is_size = type(size) is int and size > 0
    if not is_size if strategy == "group" else size not in (None, -1):
        raise ValueError(f"group_size {_short(size)} with scales by {strategy}")
    symmetric, order = weights.get("symmetric", True), weights.get("actorder")
    if not isinstance(symmetric, bool):
        raise ValueError(f"symmetric {_short(symmetric)}")
    if order not in (*_UNORDERED, *_ORDERED) or (order and strategy != "group"):
        raise ValueError(f"actorder {_short(order)} with scales by {strategy}")
    scale, zeros = (weights.get(key) for key in ("scale_dtype", "zp_dtype"))
    scale = None if scale is None else str(scale).removeprefix("torch.")
    if scale not in (None, *(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())):
        raise ValueError(f"scale_dtype {_short(scale)}")
    if zeros not in (None, "torch.int8", "int8"):
        raise ValueError(f"zp_dtype {_short(zeros)}")
    targets = _texts(group.get("targets"), "targets")
    for pattern in targets:
        _check_pattern(pattern)
    if not targets:
        raise ValueError("targets that name nothing")
    size = size if strategy == "group" else None
    return Scheme(targets, form, bits, size, strategy != "tensor", symmetric, order in _ORDERED, scale)


def _by_token(activations: object, bits: int) -> bool:
    """Whether activations are rounded as Prunus does with 8-bit weights: to 8-bit integers, by token, dynamically."""
    wanted = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
    given = activations if isinstance(activations, Mapping) else {}
    return bits == 8 and all(given.get(key) == value for key, value in wanted.items())


def _check_known(part: str, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key not in _KNOWN[part] and value not in (None, False, [], {}):
            raise ValueError(f"{_short(key)} in {part}")


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{name} that are no names")
    return tuple(value)


def _check_pattern(text: str) -> None:
    if text.startswith(_PATTERN):
        try:
            regex.compile(text.removeprefix(_PATTERN))
        except (regex.error, RecursionError) as error:
            raise ValueError(f"the pattern {_short(text)}, which is none ({error})") from error


def _short(value: object) -> str:
    return str(value)[:60]


def linear_faults(
    settings: Mapping[str, Any],
    linears: Mapping[str, Mapping[str, Stored]],
    shapes: Mapping[str, tuple[int, int]],
    bits: Mapping[str, int],
    plain: list[str],
) -> Iterator[tuple[str, str]]:
    """Yield (Linear, setting in words that its tensors contradict) for Linears that do not match their settings.

    settings: a quantization_config. linears, shapes, bits: of quantised Linears, by name. plain: names of
    unquantised matrices; one that ends with the last part of a quantised Linear's name counts as a Linear.
    """
    schemes = schemes_of(settings)
    ignored = tuple(settings.get("ignore") or ())
    for linear, parts in linears.items():
        scheme = _scheme_for(linear, schemes)
        if _rank(linear, ignored) is not None:
            yield linear, "that it is not quantised (ignore)"
        elif scheme is None:
            yield linear, "that it is not quantised (targets)"
        elif (what := scheme.why_unlike(parts, shapes[linear], bits[linear])) is not None:
            yield linear, what
    last = {linear.rpartition(".")[2] for linear in linears}
    for name in plain:
        if name.rpartition(".")[2] in last and _scheme_for(name, schemes) and _rank(name, ignored) is None:
            yield name, "that it is quantised (targets)"


def _scheme_for(linear: str, schemes: list[Scheme]) -> Scheme | None:
    """The scheme of a Linear, None without one; targets with its name precede patterns, and these precede its class."""
    ranks = {at: rank for at, scheme in enumerate(schemes) if (rank := _rank(linear, scheme.targets)) is not None}
    return schemes[min(ranks, key=lambda at: ranks[at])] if ranks else None


def _rank(linear: str, targets: tuple[str, ...]) -> int | None:
    """0 if a target names the Linear, 1 if a pattern matches it, 2 if a target is its class; None if no target fits.

    Names in files may have another prefix than those of modules, so a name fits if it is the end of the other name.
    """
    if any(f".{linear}".endswith(f".{target}") or f".{target}".endswith(f".{linear}") for target in targets):
        return 0
    patterns = [target.removeprefix(_PATTERN) for target in targets if target.startswith(_PATTERN)]
    try:
        if any(regex.match(pattern, linear, timeout=_SECONDS) for pattern in patterns):
            return 1
    except TimeoutError as error:
        raise ValueError("a pattern in targets or ignore that takes too long") from error
    return 2 if _CLASS in targets else None
