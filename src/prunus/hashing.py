"""Content hashes of plain data: equal data, equal hash."""

import hashlib
import json
from typing import Any


def canonical_json(data: Any) -> str:
    """The JSON text that is hashed; equal data give the same text."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(data: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of the data's canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:length]
