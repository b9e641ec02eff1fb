"""Content hashes of plain data: equal data, equal hash."""

import hashlib
import json
from typing import Any


def canonical_json(data: Any) -> str:
    """The same text for the same data: what hashes are taken of."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(data: Any, length: int = 12) -> str:
    """First `length` hex digits of the SHA-256 of canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()[:length]
