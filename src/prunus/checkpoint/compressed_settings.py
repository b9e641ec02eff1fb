"""The quantization_config of compressed-tensors: parse its settings, and check that tensors match them.

Engines read weights by these settings and Prunus by the tensors, so the two must agree.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Self

import regex

from prunus.checkpoint.compressed_tensors import BITS, INTEGERS, PACKED, StoredIntegers
from prunus.checkpoint.safetensors_file import DTYPES
from prunus.errors import PrunusError

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

    def why_unlike(self, stored: StoredIntegers) -> str | None:
        """The first setting, in words, that contradicts a Linear's tensors; None if all agree."""
        parts, scales, groups, (outputs, inputs) = stored.parts, stored.scales, stored.groups, stored.shape_OI
        rows = scales.shape[0] if len(scales.shape) == 2 else 1
        dtype = str(DTYPES.get(scales.dtype, scales.dtype)).removeprefix("torch.")
        checks = {
            f"format {self.form}": ("weight_packed" in parts) == (self.form == PACKED),
            f"num_bits {self.bits}": self.bits == stored.bits or self.form == INTEGERS,
            f"group_size {self.group}": self.group is None or self.group * groups == inputs,
            "one scale for a row": self.group is not None or groups == 1,
            "scales of rows": not self.by_row or rows == outputs,
            "one scale in all": self.by_row or scales.elements == 1,
            f"symmetric {str(self.symmetric).lower()}": self.symmetric != ("weight_zero_point" in parts),
            "an actorder" if self.ordered else "no actorder": self.ordered == ("weight_g_idx" in parts),
            f"scale_dtype {self.scale}": self.scale in (None, dtype),
        }
        return next((what for what, holds in checks.items() if not holds), None)


class CompressedSettings(NamedTuple):
    """A quantization_config of compressed-tensors. ignored: names and patterns of Linears that are not quantised."""

    schemes: list[Scheme]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The settings, parsed. Raises ValueError that names a setting which is not supported."""
        given = settings.get("config_groups")
        groups = [group for group in given.values() if isinstance(group, Mapping)] if isinstance(given, Mapping) else []
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
        ignored = _names(settings.get("ignore") or [], "ignore")
        whole = settings.get("format")
        if whole not in (None, _MIXED, PACKED, INTEGERS):
            raise ValueError(f"format {_short(whole)}")
        return cls([_scheme(group, whole) for group in groups], ignored)

    def faults(self, linears: Mapping[str, StoredIntegers], plain: Collection[str]) -> Iterator[tuple[str, str]]:
        """Yield (Linear, setting in words that its tensors contradict) for Linears that do not match these settings.

        linears: the quantised ones, by name. plain: names of unquantised matrices; one that ends with the last part of
        a quantised Linear's name counts as a Linear.
        """
        for linear, stored in linears.items():
            scheme = self._scheme_for(linear)
            if _rank(linear, self.ignored) is not None:
                yield linear, "that it is not quantised (ignore)"
            elif scheme is None:
                yield linear, "that it is not quantised (targets)"
            elif (what := scheme.why_unlike(stored)) is not None:
                yield linear, what
        last = {linear.rpartition(".")[2] for linear in linears}
        for name in plain:
            if name.rpartition(".")[2] in last and self._scheme_for(name) and _rank(name, self.ignored) is None:
                yield name, "that it is quantised (targets)"

    def _scheme_for(self, linear: str) -> Scheme | None:
        """The scheme of a Linear, None without one; targets with its name precede patterns, these precede its class."""
        ranks = [(_rank(linear, scheme.targets), scheme) for scheme in self.schemes]
        fitting = [(rank, scheme) for rank, scheme in ranks if rank is not None]
        return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


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
    targets = _names(group.get("targets"), "targets")
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


def _names(value: object, key: str) -> tuple[str, ...]:
    """Names and patterns of Linears. Raises ValueError for other values, and for a pattern that is none."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{key} that are no names")
    for name in value:
        if name.startswith(_PATTERN):
            try:
                regex.compile(name.removeprefix(_PATTERN))
            except (regex.error, RecursionError) as error:
                raise ValueError(f"the pattern {_short(name)}, which is none ({error})") from error
    return tuple(value)


def _short(value: object) -> str:
    return str(value)[:60]


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
        raise PrunusError(
            "the quantization_config in config.json has a pattern in targets or ignore that takes too long, which is"
            " not read"
        ) from error
    return 2 if _CLASS in targets else None
