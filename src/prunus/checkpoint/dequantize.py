"""Write a model without its quantisation."""

import time
from dataclasses import field
from pathlib import Path

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.foreign_weights import DEQUANTISED
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import Partial
from prunus.disk import as_path
from prunus.errors import PrunusError
from prunus.manifest import StepRecord
from prunus.plain_data import content_hash
from prunus.step import Made
from prunus.version import versions


class Dequantized(Made):
    """A model without its quantisation, as `dequantize` wrote it.

    quantisation: the method by which it was quantised; the key in JSON is `from`.
    blocks: number of blocks.
    """

    quantisation: str = field(metadata={"key": "from"})
    blocks: int


def dequantize(model: str | Path, out: str | Path, *, overwrite: bool = False) -> Dequantized:
    """Write a plain copy of a model in FP8, MXFP4 or integers to the folder out.

        plain = prunus.dequantize("w8a8", "w8a8-plain")
        print(plain.quantisation)

    model: a folder or a hub id.
    out: the folder to write.
    overwrite: replace an existing result.

    The weights are those of transformers' from_pretrained with `dequantize`; they take two to four times the disk space
    of the original. Commands such as prune and drop read quantised models directly; this is for those that cannot, such
    as study.
    Unfinished work is kept in out.partial, where the same call resumes it. Raises PrunusError, and leaves nothing
    behind, if the model is not so quantised, or out cannot be written.
    """
    started = time.monotonic()
    source, target = Checkpoint(resolve(model)), as_path(out)
    if source.quantised is None:
        known = f"{', '.join(DEQUANTISED[:-1])} or {DEQUANTISED[-1]}"
        raise PrunusError(f"{source.folder} is not in {known}; there is nothing to dequantize")
    work = content_hash({"action": "dequantize", "source": source.fingerprint()})
    with Partial(source, target, work, source.blocks, source.nbytes, overwrite) as partial:
        partial.copy_blocks(source, "dequantizing")
        step = {
            "action": "dequantize",
            "recipe": {"method": source.quantised},
            "versions": versions(),
            "source": source.provenance(model),
            "warnings": [],
        }
        partial.finish(None, StepRecord.of(step), {})
    return Dequantized(
        out=str(target),
        quantisation=source.quantised,
        blocks=source.blocks,
        seconds=time.monotonic() - started,
        warnings=source.reading_notes,
    )
