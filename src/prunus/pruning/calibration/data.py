"""Calibration: which token sequences a model is shown. Token ids are what is kept, so a run can be replayed.

The sampling rule for texts is that of the Wanda family (locuslab/wanda lib/data.py): a random document that is longer
than a window, then a random window of it; no padding, no chat template around plain text. Where it would never end, or
show the same few tokens again and again, we join documents or refuse.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import load_tokenizer, one_line
from prunus.checkpoint.writer import CALIBRATION, Partial
from prunus.disk import partial_folder
from prunus.errors import PrunusError
from prunus.pruning.calibration import HUB_NAMES, calibration_name, read_source, source_file
from prunus.pruning.calibration.text_files import (
    JsonLine,
    check_ids,
    check_text,
    encoder,
    held_out_error,
    read_jsonl,
    render_chats,
)
from prunus.questions import evaluation_set
from prunus.recipes.base import Calibrated

# Corpora up to this many documents are tokenised whole, to see whether enough of them are long.
SMALL_CORPUS = 10_000
# Below this share of distinct tokens a warning is given. Random windows of WikiText-2 (128 x 2048) have about 95 %.
DISTINCT = 0.9


class Calibration(NamedTuple):
    """Calibration sequences: token ids, not all of one length. source: what they were taken from, for people.

    prompts: how many ids at the start of each sequence are prompt, where that is known, else empty.
    """

    sequences: list[list[int]]
    source: str
    warnings: list[str]
    prompts: Sequence[int] = ()

    def shortened(self, most: int) -> "Calibration":
        """Calibration with every sequence cut to at most this number of tokens; a warning says if any had more."""
        longer = sum(len(ids) > most for ids in self.sequences)
        if not longer:
            return self
        note = f"{longer} of {len(self.sequences)} sequences of {self.source} were cut to {most} tokens for gradients"
        cut = self.cut([ids[:most] for ids in self.sequences])
        return cut._replace(warnings=[*self.warnings, note])

    def cut(self, sequences: list[list[int]]) -> "Calibration":
        """Calibration with shorter sequences, which begin as these do; there may be fewer of them."""
        prompts = [min(count, len(ids)) for count, ids in zip(self.prompts, sequences, strict=False)]
        return self._replace(sequences=sequences, prompts=prompts)

    @property
    def tokens(self) -> int:
        """Number of tokens in all."""
        return sum(map(len, self.sequences))

    def to_jsonl(self) -> str:
        """The content of a JSONL file, from which `--calibration` reads the very same sequences."""
        rows: list[dict[str, object]] = [{"token_ids": ids} for ids in self.sequences]
        for row, prompt in zip(rows, self.prompts, strict=False):
            row["prompt_tokens"] = prompt
        return "".join(json.dumps(row) + "\n" for row in rows)

    def summary(self) -> dict[str, object]:
        """What the manifest says: source, counts and the SHA-256 of the ids."""
        digest = hashlib.sha256(json.dumps(self.sequences).encode()).hexdigest()
        return {"source": self.source, "sequences": len(self.sequences), "tokens": self.tokens, "sha256": digest}


def load_calibration(recipe: Calibrated, model: Checkpoint) -> Calibration:
    """The calibration sequences of a recipe for a model. Raises PrunusError if they cannot be read or used.

    That includes a question of a built-in evaluation set in them, as far as prunus.questions can tell.
    """
    name, tokens = calibration_name(recipe.calibration, model.manifest), recipe.calibration_tokens
    sequences = recipe.sequences if tokens is None else -(-tokens // recipe.seqlen)
    sampled, content = replace(recipe, calibration=name, sequences=sequences), read_source(name, model.folder)
    if content is None:
        chosen = _from_hub(sampled, model)
    else:
        chosen = (
            _from_text(content, sampled, model) if isinstance(content, str) else _from_lines(content, sampled, model)
        )
    if tokens is not None:
        chosen = cut_to(chosen, tokens)
    return chosen._replace(warnings=chosen.warnings + check_sequences(chosen, model))


def cut_to(chosen: Calibration, tokens: int) -> Calibration:
    """The first `tokens` tokens, the last sequence cut short. Raises PrunusError if there are fewer."""
    if chosen.tokens < tokens:
        raise PrunusError(f"{chosen.source} holds {chosen.tokens} tokens, fewer than --calibration-tokens {tokens}")
    starts = accumulate(map(len, chosen.sequences), initial=0)
    pairs = zip(chosen.sequences, starts, strict=False)
    return chosen.cut([ids[: tokens - start] for ids, start in pairs if start < tokens])


def load_early(recipe: Calibrated, model: Checkpoint, target: Path) -> Calibration | None:
    """The sequences, loaded before weights are read; None where unfinished work on target has them already."""
    return None if (partial_folder(target) / CALIBRATION).exists() else load_calibration(recipe, model)


def check_kept(recipe: Calibrated, model: Checkpoint, folder: Path) -> None:
    """Raise PrunusError if the sequences in the calibration's file are no longer those kept in folder.

    A corpus of the hub, and a file that is gone, are not checked.
    """
    name, kept = calibration_name(recipe.calibration, model.manifest), folder / CALIBRATION
    if name in HUB_NAMES or not source_file(name).exists() or not kept.exists():
        return
    if load_calibration(recipe, model).sequences != [line.value for line in read_jsonl(kept)]:
        raise PrunusError(f"{name} was changed after {folder} was begun with it: restore it, or delete that folder")


def keep_calibration(
    recipe: Calibrated, model: Checkpoint, partial: Partial, early: Calibration | None = None
) -> Calibration:
    """The sequences, chosen once and kept beside the result: a resumed run sees the very same tokens.

    early: the sequences, if they are loaded already.
    """
    if "calibration" not in partial.notes:
        chosen = early or load_calibration(recipe, model)
        note = {"source": chosen.source, "warnings": chosen.warnings}
        partial.note("calibration", note, {CALIBRATION: chosen.to_jsonl()})
    note = partial.notes["calibration"]
    lines = read_jsonl(partial.folder / CALIBRATION)
    return of_lines(lines, note["source"], note["warnings"])


def of_lines(lines: Sequence[JsonLine], source: str, warnings: list[str]) -> Calibration:
    """Calibration with the token ids of lines, and with the lengths of their prompts if every line says them."""
    rows = [line.row for line in lines]
    prompts = [row["prompt_tokens"] for row in rows] if all("prompt_tokens" in row for row in rows) else []
    return Calibration([line.value for line in lines], source, warnings, prompts)


def describe_calibration(recipe: Calibrated, model: Checkpoint) -> tuple[str, list[str]]:
    """(calibration as text for a plan, its warnings); calibration is read for this, unless it comes from the hub."""
    name = calibration_name(recipe.calibration, model.manifest)
    if name in HUB_NAMES:
        return f"{name}: {recipe.tokens} tokens in sequences of {recipe.seqlen}, from the hub", []
    calibration = load_calibration(recipe, model)
    text = f"{name}: {len(calibration.sequences)} sequences, {calibration.tokens} tokens"
    return text, calibration.warnings


# In the functions below, recipe.calibration is no longer `auto`, and recipe.sequences follows from calibration_tokens.


def _from_lines(lines: Sequence[JsonLine], recipe: Calibrated, model: Checkpoint) -> Calibration:
    if lines[0].kind == "token_ids":
        return _as_they_are(lines, recipe, model)
    if lines[0].kind == "text":
        encode = encoder(model)
        return _from_documents(len(lines), lambda i: encode(lines[i].value), recipe, model)
    documents, warnings = render_chats(source_file(recipe.calibration), lines, model)
    calibration = _from_documents(len(documents), documents.__getitem__, recipe, model)
    return calibration._replace(warnings=warnings + calibration.warnings)


def _as_they_are(lines: Sequence[JsonLine], recipe: Calibrated, model: Checkpoint) -> Calibration:
    """Calibration with whole sequences, whatever seqlen is; of too many, a random choice in the file's order."""
    for line in lines:
        if name := evaluation_set(str(line.row.get("problem_digest"))):
            raise held_out_error(line.place, name)
    check_ids(lines, model.vocabulary)
    for line in lines:
        if len(line.value) > model.context:
            raise PrunusError(f"{line.place}: {len(line.value)} tokens; the model's context is {model.context}")
    name, rng, warnings = recipe.calibration, random.Random(recipe.seed), []
    if recipe.calibration_tokens is not None:  # as many as it takes, in random order; they are cut later
        lines = rng.sample(lines, len(lines))
    elif len(lines) > recipe.sequences:
        lines = [lines[i] for i in sorted(rng.sample(range(len(lines)), recipe.sequences))]
    elif len(lines) < recipe.sequences:
        warnings.append(
            f"{name} holds {len(lines)} sequences, fewer than the {recipe.sequences} asked for: all are taken"
        )
    return of_lines(lines, name, warnings)


def check_sequences(chosen: Calibration, model: Checkpoint) -> list[str]:
    """Apply check_text to the text between special tokens; returns a warning if the model has no tokenizer."""
    try:
        tokenizer = load_tokenizer(model.folder)
    except PrunusError:
        return ["without a tokenizer it cannot be checked whether calibration holds an evaluation problem"]
    special = set(tokenizer.all_special_ids)
    for number, ids in enumerate(chosen.sequences, 1):
        for is_special, part in groupby(ids, key=special.__contains__):
            if not is_special:
                text = str(tokenizer.decode(list(part)))
                check_text(f"{chosen.source}, sequence {number}", text)
                check_text(f"{chosen.source}, sequence {number}", text.partition("\n")[2])  # without `user`
    return []


def _from_text(text: str, recipe: Calibrated, model: Checkpoint) -> Calibration:
    """Random windows of a long text."""
    name, ids, rng = recipe.calibration, encoder(model)(text), random.Random(recipe.seed)
    check_enough(len(ids), recipe, model)
    windows = [random_window(0, ids, recipe.seqlen, rng) for _ in range(recipe.sequences)]
    return Calibration([window.ids for window in windows], name, overlap_warnings(name, windows))


def check_enough(tokens: int, recipe: Calibrated, model: Checkpoint) -> None:
    """Raise PrunusError where a text is too short for the windows asked for, or the model's context for a window."""
    sequences, seqlen, context = recipe.sequences, recipe.seqlen, model.context
    if seqlen > context:
        raise PrunusError(f"seqlen {seqlen} is longer than the model's context; use --seqlen {context} or less")
    if tokens < sequences * seqlen:
        raise PrunusError(
            f"{recipe.calibration} holds {tokens} tokens, too few for {sequences} sequences of {seqlen} "
            f"({sequences * seqlen}); lower --sequences or --seqlen, or give more text"
        )


def _from_documents(
    count: int, ids_of: Callable[[int], list[int]], recipe: Calibrated, model: Checkpoint
) -> Calibration:
    """Random windows of random long documents; of all of them joined, where the long ones hold too few tokens.

    ids_of: the token ids of document 0 to count - 1; a large corpus is only tokenised as far as needed.
    """
    name, seqlen, rng = recipe.calibration, recipe.seqlen, random.Random(recipe.seed)
    wanted = recipe.sequences * seqlen
    documents: dict[int, list[int]] = {}
    if count <= SMALL_CORPUS:
        documents = {index: ids_of(index) for index in range(count)}
        check_enough(sum(map(len, documents.values())), recipe, model)
        long = [ids for ids in documents.values() if len(ids) > seqlen]
        if sum(map(len, long)) < wanted:
            note = f"{name}: only {len(long)} of {count} documents are longer than {seqlen} tokens; "
            joined = joined_windows(list(documents.values()), recipe, model, rng)
            return Calibration(joined, name, [note + "all were joined and cut"])
    check_enough(wanted, recipe, model)
    windows: list[Window] = []
    misses = 0
    while len(windows) < recipe.sequences:
        index = rng.randint(0, count - 1)
        ids = documents[index] if index in documents else documents.setdefault(index, ids_of(index))
        if len(ids) > seqlen:
            windows.append(random_window(index, ids, seqlen, rng))
        else:
            misses += 1
        if misses > 20 * SMALL_CORPUS:
            raise PrunusError(f"{name}: hardly a document has more than {seqlen} tokens; lower --seqlen")
    long = sum(len(ids) > seqlen for ids in documents.values())
    short = f"only {long} of {count} documents are longer than {seqlen} tokens, and only these are used; "
    short = short if long < len(documents) == count else ""
    return Calibration([window.ids for window in windows], name, overlap_warnings(name, windows, short))


def joined_windows(
    documents: Sequence[list[int]], recipe: Calibrated, model: Checkpoint, rng: random.Random
) -> list[list[int]]:
    """Documents in order, each followed by the end-of-text id, cut into windows; a random choice of these, in order."""
    end, size = model.text_config.eos_token_id, recipe.seqlen
    closing = [] if end is None else [end[0] if isinstance(end, list) else end]
    stream = [token for ids in documents for token in (*ids, *closing)]
    chosen = sorted(rng.sample(range(len(stream) // size), recipe.sequences))
    return [stream[index * size : (index + 1) * size] for index in chosen]


def _from_hub(recipe: Calibrated, model: Checkpoint) -> Calibration:
    """C4: shard 0 of the English training files. WikiText-2: the raw training split, its lines joined by blanks.

    Both as the Wanda family has it for calibration; perplexity is measured on text joined by blank lines.
    """
    name, load_dataset = recipe.calibration, import_module("datasets").load_dataset
    try:
        if name == "c4":
            shard = {"train": "en/c4-train.00000-of-01024.json.gz"}
            rows = load_dataset("allenai/c4", data_files=shard, split="train")
        else:
            rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="train")
    except Exception as error:  # network, proxies, hub: each with errors of its own
        raise PrunusError(
            f"calibration '{name}' could not be had from the hub ({one_line(error)}); give a .txt or .jsonl"
        ) from error
    if name == "wikitext2":
        return _from_text(" ".join(rows["text"]), recipe, model)
    encode = encoder(model)
    return _from_documents(len(rows), lambda index: encode(rows[index]["text"]), recipe, model)


class Window(NamedTuple):
    """Consecutive token ids of a document: the document's number, the index of the first id, and the ids."""

    document: int
    start: int
    ids: list[int]


def random_window(document: int, ids: list[int], seqlen: int, rng: random.Random) -> Window:
    """seqlen consecutive ids from a random start. The last possible start is never sampled unless it is the only one.

    This is as in Wanda's code.
    """
    start = rng.randint(0, max(0, len(ids) - seqlen - 1))
    return Window(document, start, ids[start : start + seqlen])


def overlap_warnings(name: str, windows: Sequence[Window], short: str = "") -> list[str]:
    """A warning if windows overlap so much that too few of their tokens are distinct positions of their documents.

    short: words that say that some documents are too short for a window; empty if none is.
    """
    place_S = np.concatenate(
        [(window.document << 40) + window.start + np.arange(len(window.ids)) for window in windows]
    )
    share = len(np.unique(place_S)) / len(place_S)
    if share >= DISTINCT:
        return []
    documents = len({window.document for window in windows})
    source, advice = f"{documents} documents", "give more text, or lower --sequences"
    if short:
        source, advice = "them", "lower --seqlen or --sequences, or give longer documents"
    elif documents == 1:
        source = "one document"
    return [
        f"{name}: {short}{len(windows)} windows of {source} overlap, and only {share:.0%} of their tokens are distinct;"
        f" {advice}"
    ]
