"""Detect LongRoPE, whose long or short factors engines choose by the longest sequence that they allow.

vLLM compares `max_model_len` with the length of training, llama.cpp the context of a slot, transformers each sequence.
"""

from pathlib import Path

from prunus.disk import read_object

KINDS = ("longrope", "su")  # the second is Microsoft's first name for it


def has_longrope(folder: Path) -> bool:
    """Whether a folder has a config.json with LongRoPE in any of its parts."""
    path = folder / "config.json"
    return path.is_file() and names_longrope(read_object(path))


def names_longrope(config: object) -> bool:
    """Whether a part of a config.json, or any object within it, has a RoPE type of KINDS."""
    if isinstance(config, list):
        return any(map(names_longrope, config))
    if not isinstance(config, dict):
        return False
    return any(config.get(key) in KINDS for key in ("rope_type", "type")) or any(map(names_longrope, config.values()))
