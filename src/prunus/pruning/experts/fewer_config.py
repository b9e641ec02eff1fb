"""config.json of a model with fewer experts. verification.py checks the result, so no rule here need be complete."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.pruning.depth.shortened_config import PREDICTING
from prunus.pruning.experts.mixture import expert_counts, number_fields


def fewer_config(source: Checkpoint, kept: Mapping[int, int], left_out: bool) -> dict[str, Any]:
    """The content of config.json with other numbers of experts.

    kept: the number of experts of each block that loses some. left_out: whether extra blocks that predict further
    tokens are not written.
    """
    content, text = source.config_json, source.text_config
    part = next((name for name in source.config.sub_configs if getattr(source.config, name, None) is text), None)
    if part is None or not isinstance(content.get(part), dict):
        return _fewer(content, source, kept, left_out)
    return {**content, part: _fewer(content[part], source, kept, left_out)}


def _fewer(content: Mapping[str, Any], source: Checkpoint, kept: Mapping[int, int], left_out: bool) -> dict[str, Any]:
    text, before = source.text_config, expert_counts(source)
    after = [kept.get(index, count) for index, count in enumerate(before)]
    # All spellings of the field, since transformers writes one and reads another; else shapes would not match.
    names = number_fields(text)
    present = [name for name in names if name in content and content[name] in (before[0], before, tuple(before))]
    fewer = {**content, **dict.fromkeys(present or names[:1], _number(after, kept))}
    if left_out:
        fewer |= {name: 0 for name in PREDICTING if fewer.get(name)}
    return fewer


def _number(after: Sequence[int], kept: Mapping[int, int]) -> int | list[int]:
    """One number if all blocks that lose experts keep the same number, as config.json of nearly all types asks for."""
    numbers = set(kept.values())
    return numbers.pop() if len(numbers) == 1 else list(after)
