"""Calibration: which token sequences a model is shown. Token ids are what is kept, so a run can be replayed.

The sampling rule for texts is that of the Wanda family (locuslab/wanda lib/data.py): a random document that is longer
than a window, then a random window of it; no padding, no chat template around plain text. Where it would never end, or
show the same few tokens again and again, we join documents or refuse.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from prunus.checkpoint.files import Checkpoint
from prunus.checkpoint.partial import CALIBRATION, Partial
from prunus.checkpoint.source import one_line, tiny_folder
from prunus.errors import PrunusError
from prunus.pruning.text_files import KINDS, Line, check_ids, encoder, read_jsonl, read_text, render_chats
from prunus.recipes import DropRecipe, PruneRecipe

HUB_NAMES = ("c4", "wikitext2")
TRACES = "traces:"
# Corpora up to this many documents are tokenised whole, to see whether enough of them are long.
SMALL_CORPUS = 10_000


class Calibration(NamedTuple):
    """sequences: token ids, not all of one length. source: what they were taken from, for people."""

    sequences: list[list[int]]
    source: str
    warnings: list[str]

    @property
    def tokens(self) -> int:
        """Number of tokens in all."""
        return sum(map(len, self.sequences))

    def to_jsonl(self) -> str:
        """A file that `--calibration` reads back to the very same sequences."""
        return "".join(json.dumps({"token_ids": ids}) + "\n" for ids in self.sequences)

    def summary(self) -> dict[str, Any]:
        """What the manifest says: source, counts and the SHA-256 of the ids."""
        digest = hashlib.sha256(json.dumps(self.sequences).encode()).hexdigest()
        return {"source": self.source, "sequences": len(self.sequences), "tokens": self.tokens, "sha256": digest}


class Request(NamedTuple):
    """What is asked for: samples sequences of seqlen tokens from the named source, for one model."""

    name: str
    samples: int
    seqlen: int
    seed: int
    model: Checkpoint


def calibration_name(recipe: PruneRecipe | DropRecipe, model: Checkpoint) -> str:
    """recipe.calibration with `auto` replaced: tiny for the tiny reasoner, else c4."""
    if recipe.calibration != "auto":
        return recipe.calibration
    return "tiny" if model.manifest.get("profile") == "tiny" else "c4"


def load_calibration(recipe: PruneRecipe | DropRecipe, model: Checkpoint) -> Calibration:
    """The calibration sequences of a recipe for a model; everything wrong with them raises PrunusError."""
    name = calibration_name(recipe, model)
    request = Request(name, recipe.samples, recipe.seqlen, recipe.seed, model)
    if name in HUB_NAMES:
        return _from_hub(request)
    if name == "tiny":
        return _from_jsonl(tiny_folder() / CALIBRATION, ("token_ids",), request)
    if name.startswith(TRACES):
        return _from_jsonl(Path(name.removeprefix(TRACES)).expanduser(), ("token_ids",), request)
    if name.endswith(".jsonl"):
        return _from_jsonl(Path(name).expanduser(), KINDS, request)
    if name.endswith(".txt"):
        return _from_text(read_text(Path(name).expanduser()), request)
    raise PrunusError(f"calibration '{name}' is neither c4, wikitext2, tiny, traces:FILE nor a .txt or .jsonl file")


def keep_calibration(recipe: PruneRecipe | DropRecipe, model: Checkpoint, partial: Partial) -> Calibration:
    """The sequences, chosen once and kept beside the result: a resumed run sees the very same tokens."""
    if "calibration" not in partial.notes:
        chosen = load_calibration(recipe, model)
        note = {"source": chosen.source, "warnings": chosen.warnings}
        partial.note("calibration", note, {CALIBRATION: chosen.to_jsonl()})
    note = partial.notes["calibration"]
    sequences = [line.value for line in read_jsonl(partial.folder / CALIBRATION)]
    return Calibration(sequences, note["source"], note["warnings"])


def describe_calibration(recipe: PruneRecipe | DropRecipe, model: Checkpoint) -> tuple[str, list[str]]:
    """What calibration would be, and warnings; read already unless it comes from the hub."""
    name = calibration_name(recipe, model)
    if name in HUB_NAMES:
        return f"{name}: {recipe.samples} sequences of {recipe.seqlen} tokens, from the hub", []
    calibration = load_calibration(recipe, model)
    text = f"{name}: {len(calibration.sequences)} sequences, {calibration.tokens} tokens"
    return text, calibration.warnings


def _from_jsonl(path: Path, kinds: Sequence[str], request: Request) -> Calibration:
    lines = read_jsonl(path, kinds)
    if lines[0].kind == "token_ids":
        return _as_they_are(path, lines, request)
    if lines[0].kind == "text":
        encode = encoder(request.model)
        return _from_documents(len(lines), lambda i: encode(lines[i].value), request)
    documents, warnings = render_chats(path, lines, request.model)
    calibration = _from_documents(len(documents), documents.__getitem__, request)
    return calibration._replace(warnings=warnings + calibration.warnings)


def _as_they_are(path: Path, lines: Sequence[Line], request: Request) -> Calibration:
    """Whole sequences, whatever seqlen is; of more than asked for a random choice, in the file's order."""
    config = request.model.config
    check_ids(path, lines, config.vocab_size)
    for line in lines:
        if len(line.value) > config.max_position_embeddings:
            context = config.max_position_embeddings
            raise PrunusError(f"{path}, line {line.number}: {len(line.value)} tokens; the model's context is {context}")
    warnings = []
    if len(lines) > request.samples:
        lines = [lines[i] for i in sorted(random.Random(request.seed).sample(range(len(lines)), request.samples))]
    elif len(lines) < request.samples:
        warnings.append(f"{request.name} holds {len(lines)} sequences, fewer than the {request.samples} asked for")
    return Calibration([line.value for line in lines], request.name, warnings)


def _from_text(text: str, request: Request) -> Calibration:
    """Random windows of one long text."""
    ids = encoder(request.model)(text)
    check_enough(len(ids), request)
    rng = random.Random(request.seed)
    windows = [random_window(ids, request.seqlen, rng) for _ in range(request.samples)]
    return Calibration(windows, request.name, [])


def random_window(ids: list[int], seqlen: int, rng: random.Random) -> list[int]:
    """seqlen consecutive ids. The last possible start is left out, as in the authors' code, unless it is the only."""
    start = rng.randint(0, max(0, len(ids) - seqlen - 1))
    return ids[start : start + seqlen]


def check_enough(tokens: int, request: Request) -> None:
    """Raise PrunusError where a text is too short for the windows asked for, or the model's context for one window."""
    _, samples, seqlen, _, model = request
    context = model.config.max_position_embeddings
    if seqlen > context:
        raise PrunusError(f"seqlen {seqlen} is longer than the model's context; use --seqlen {context} or less")
    if tokens < samples * seqlen:
        raise PrunusError(
            f"{request.name} holds {tokens} tokens, too few for {samples} samples of {seqlen} ({samples * seqlen}); "
            "lower --samples or --seqlen, or give more text"
        )


def _from_documents(count: int, ids_of: Callable[[int], list[int]], request: Request) -> Calibration:
    """Random windows of random long documents; of all of them joined, where the long ones hold too few tokens.

    ids_of: the token ids of document 0 to count - 1; a large corpus is only tokenised as far as needed.
    """
    wanted, rng = request.samples * request.seqlen, random.Random(request.seed)
    documents: dict[int, list[int]] = {}
    if count <= SMALL_CORPUS:
        documents = {index: ids_of(index) for index in range(count)}
        check_enough(sum(map(len, documents.values())), request)
        long = [ids for ids in documents.values() if len(ids) > request.seqlen]
        if sum(map(len, long)) < wanted:
            note = f"{request.name}: only {len(long)} of {count} documents are longer than {request.seqlen} tokens; "
            windows = joined_windows(list(documents.values()), request, rng)
            return Calibration(windows, request.name, [note + "all were joined and cut"])
    check_enough(wanted, request)
    windows: list[list[int]] = []
    misses = 0
    while len(windows) < request.samples:
        index = rng.randint(0, count - 1)
        ids = documents[index] if index in documents else documents.setdefault(index, ids_of(index))
        if len(ids) > request.seqlen:
            windows.append(random_window(ids, request.seqlen, rng))
        else:
            misses += 1
        if misses > 20 * SMALL_CORPUS:
            raise PrunusError(
                f"{request.name}: hardly a document has more than {request.seqlen} tokens; lower --seqlen"
            )
    return Calibration(windows, request.name, [])


def joined_windows(documents: Sequence[list[int]], request: Request, rng: random.Random) -> list[list[int]]:
    """Documents in order, each followed by the end-of-text id, cut into windows; a random choice of these, in order."""
    end = request.model.config.eos_token_id
    closing = [] if end is None else [end[0] if isinstance(end, list) else end]
    stream = [token for ids in documents for token in (*ids, *closing)]
    size = request.seqlen
    chosen = sorted(rng.sample(range(len(stream) // size), request.samples))
    return [stream[index * size : (index + 1) * size] for index in chosen]


def _from_hub(request: Request) -> Calibration:
    """C4: shard 0 of the English training files. WikiText-2: the raw training split as one text."""
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise PrunusError(
            f"calibration '{request.name}' needs the package datasets: pip install 'prunus[hub]'; "
            "or give a .txt or .jsonl file"
        ) from error
    try:
        if request.name == "c4":
            shard = {"train": "en/c4-train.00000-of-01024.json.gz"}
            rows = load_dataset("allenai/c4", data_files=shard, split="train")
        else:
            rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="train")
    except Exception as error:  # network, proxies, hub: each with errors of its own
        raise PrunusError(
            f"calibration '{request.name}' could not be had from the hub ({one_line(error)}); give a .txt or .jsonl"
        ) from error
    if request.name == "wikitext2":
        return _from_text("\n\n".join(rows["text"]), request)
    encode = encoder(request.model)
    return _from_documents(len(rows), lambda index: encode(rows[index]["text"]), request)
