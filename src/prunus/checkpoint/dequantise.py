"""A quantised original (FP8, MXFP4) written as a plain checkpoint in bfloat16, block by block."""

import time
from pathlib import Path
from typing import Any

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.manifest import versions
from prunus.checkpoint.quantised import DEQUANTISED
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import Partial, check_target, disk_needed
from prunus.errors import PrunusError
from prunus.progress import Steps


def dequantize(model: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a model in FP8 or MXFP4 (folder or hub id) in bfloat16 to the folder out; returns a summary.

    prune, drop and the like read such a model as it is; this is for what cannot, such as a study. The numbers are those
    of transformers' from_pretrained with `dequantize`; the result takes two to four times the original's disk.
    Unfinished work lives in out.partial, and the same call goes on there. Wrong input raises PrunusError and leaves
    nothing behind.
    """
    started = time.monotonic()
    source, target = Checkpoint(resolve(model)), Path(out)
    if source.quantised is None:
        raise PrunusError(f"{source.folder} is not in {' or '.join(DEQUANTISED)}; there is nothing to make bfloat16 of")
    check_target(source.folder, target, overwrite)
    work = {"action": "dequantize", "source": source.fingerprint()}
    with Partial(source, target, work, source.blocks, disk_needed(source.nbytes), overwrite) as partial:
        with Steps("dequantizing", total=source.blocks, unit="blocks", done=len(partial.records)) as steps:
            for index in range(source.blocks):
                if not partial.has(index):
                    partial.write_block(index, source.block_tensors(index), {})
                    steps.advance()
        step = {
            "action": "dequantize",
            "recipe": {"method": source.quantised},
            "versions": versions(),
            "source": source.provenance(model),
            "warnings": [],
        }
        partial.finish(None, step)
    return {
        "out": str(target),
        "from": source.quantised,
        "blocks": source.blocks,
        "seconds": time.monotonic() - started,
        "warnings": source.reading_notes,
    }
