"""Which models of transformers can be pruned: docs/models.json, found by trying, and docs/models.md, made from it.

python scripts/models.py             try every type on a tiny random model (about 10 minutes); write both files
python scripts/models.py --compare   the same; print what has changed since, and write nothing
python scripts/models.py --facts     find anew only what needs no weights: groups and what stays dense (a minute)
python scripts/models.py --page      write docs/models.md from docs/models.json
python scripts/models.py --check     fail unless docs/models.md is what docs/models.json gives
python scripts/models.py --types llama,mamba   try only these; with --compare write nothing
python scripts/models.py --real "SmolLM2=.cache/smollm2" "the tiny reasoner=tiny"   try published checkpoints instead
"""

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunus.checkpoint.architecture import Architecture

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/helpers")]  # the tiny random models are those of the tests

DATA, PAGE, README = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md", ROOT / "README.md"
MARKS = "<!-- scripts/models.py -->", "<!-- end -->"
USES = ("prune", "drop", "pack", "sparse")
DECODER, AHEAD, HALF = "decoder", "looks ahead", "half of a model with an encoder"
Row = dict[str, Any]

# Trying


def try_type(model_type: str) -> Row:
    """What can be done with a type, each thing done on a tiny random model of it.

    not_run: why there is no such model; refused: why its blocks are not run one by one. Else kind, groups, dense (why
    matrices of blocks stay so), and for each of USES "yes" or why not.
    """
    from test_architecture import NOT_RUN
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    row: Row = {"class": name if isinstance(name, str) else name[0]}
    if model_type in NOT_RUN:
        return row | {"not_run": NOT_RUN[model_type]}
    with tempfile.TemporaryDirectory(prefix="prunus-models-") as scratch:
        return row | _try(model_type, Path(scratch))


def _try(model_type: str, scratch: Path) -> Row:
    import torch
    from random_models import make_random_model
    from test_architecture import check_streams

    folder = scratch / "dense"
    try:
        config = make_random_model(model_type, folder)
    except Exception as error:  # the model's own code, given sizes that it did not expect
        return {"not_run": _reason(error, scratch)}
    try:
        with torch.no_grad():
            architecture = check_streams(folder, config)
    except AssertionError as error:
        return {"refused": f"not equal to the whole model: {str(error).splitlines()[0]}"}
    except Exception as error:  # refused, or the model's own code
        return {"refused": _reason(error, scratch)}
    row = {"kind": kind_of(folder), **facts(architecture)}
    tries: dict[str, Callable[[Path], None]] = {"prune": _prune, "drop": _drop, "pack": _pack, "sparse": _sparse}
    for use, attempt in tries.items():
        needs = "prune" if use in ("pack", "sparse") else None
        row[use] = row[needs] if needs and row[needs] != "yes" else _outcome(partial(attempt, scratch), scratch)
    return row


def facts(architecture: "Architecture") -> Row:
    """Without weights: which Linears read the same input, for each kind of block, and why other matrices stay dense.

    hands_on: whether blocks hand on more than hidden states.
    """
    from prunus.checkpoint.linears import is_stateful
    from prunus.pruning.capabilities import describe_blocks

    found = describe_blocks(architecture)
    groups: dict[str, list[str]] = {}
    for row in found["groups"]:
        short = "+".join(name.rpartition(".")[2] for name in row["linears"])
        groups.setdefault(json.dumps(row["blocks"]), []).append(short)
    dense = {row["why"] for row in found["left_dense"] if row["blocks"]}
    hands_on = bool(architecture.carried) or any(map(is_stateful, architecture.probe.calls))
    return {"groups": ["; ".join(group) for group in groups.values()], "dense": sorted(dense), "hands_on": hands_on}


def again(model_type: str) -> Row:
    """facts() of a type's tiny model."""
    import torch
    from random_models import tiny_config

    from prunus.checkpoint.architecture import Architecture

    return facts(Architecture(tiny_config(model_type), torch.float32))


def kind_of(folder: Path) -> str:
    """Whether a model is a decoder: nothing in it reads an encoder, and no logits change with a later token."""
    import torch
    from test_architecture import whole_model

    model = whole_model(folder)
    if any(re.search(r"encoder_attn|cross_?attention|cross_attn", name) for name, _ in model.named_modules()):
        return HALF
    ids_NT = torch.arange(3, 27)[None]
    changed_NT = torch.cat([ids_NT[:, :-1], ids_NT[:, -1:] + 1], 1)
    with torch.no_grad():
        before, after = (model(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (ids_NT, changed_NT))
    return DECODER if torch.allclose(before, after, rtol=1e-4, atol=1e-5) else AHEAD


def _prune(scratch: Path) -> None:
    """Half of every Linear by Wanda: the counts are exact and transformers loads the result."""
    import torch

    import prunus
    from prunus.recipes import PruneRecipe

    tokens = scratch / "tokens.jsonl"
    ids = torch.randint(3, 100, (4, 24), generator=torch.Generator().manual_seed(0)).tolist()
    tokens.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in ids))
    recipe = PruneRecipe(method="wanda", sparsity=0.5, calibration=f"traces:{tokens}", samples=4, seqlen=24)
    prunus.prune(scratch / "dense", scratch / "pruned", recipe, device="cpu")
    found = prunus.inspect(scratch / "pruned")
    assert found["linears"], "no Linear of its blocks can be pruned"
    for row in found["linears"]:
        assert row["zeros"] == row["shape"][0] * (row["shape"][1] // 2), f"{row['linear']} has another count of zeros"
    _loads(scratch / "pruned")


def _drop(scratch: Path) -> None:
    """Block 1 goes; transformers loads the result."""
    import prunus
    from prunus.recipes import DropRecipe

    prunus.drop_blocks(scratch / "dense", scratch / "dropped", DropRecipe(blocks="1,"), device="cpu")
    _loads(scratch / "dropped")


def _pack(scratch: Path) -> None:
    """Smaller than dense, and unpacked to the same bytes, which unpack itself checks."""
    import prunus

    packed = prunus.pack(scratch / "pruned", scratch / "packed")
    assert packed["packed_bytes"] < packed["dense_bytes"], "nothing gets smaller"
    prunus.unpack(scratch / "packed", scratch / "unpacked")


def _sparse(scratch: Path) -> None:
    """The kernel's logits are those of torch."""
    import torch
    from test_architecture import whole_model

    from prunus import sparse

    model = sparse.load(scratch / "packed", always_sparse=True)
    done = sparse.describe(model)
    assert done.isa != "off", f"no kernel here to try: {done.reason}"
    assert done.sparse, "no Linear of its blocks is stored as the model has it"
    ids_NT = torch.arange(3, 27)[None]
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids_NT, use_cache=False).logits for m in (model, whole_model(scratch / "pruned")))
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())), "other logits"


def _loads(folder: Path) -> None:
    """transformers finds each weight that it looks for, and the model gives numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    for wrong in ("missing_keys", "mismatched_keys"):
        assert not info[wrong], f"transformers does not load it: {wrong.replace('_', ' ')}"
    ids_1T = torch.arange(3, 27)[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids_1T, use_cache=False).logits
    assert bool(logits.isfinite().all()), "logits that are no numbers"
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}

    def goes_on(one: Any) -> bool:
        try:
            return one.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **options).shape == (1, 27)
        except Exception:  # of the model's own code
            return False

    if not goes_on(model):
        dense = AutoModelForCausalLM.from_pretrained(folder.parent / "dense", dtype=torch.float32).eval()
        assert not goes_on(dense), "it generates no text, though the dense model does"


def _outcome(attempt: Callable[[], None], scratch: Path) -> str:
    try:
        attempt()
    except Exception as error:  # of ours or of the model's own code
        return _reason(error, scratch)
    return "yes"


def try_real(name: str, model: str) -> Row:
    """A published checkpoint: run by blocks and whole, pruned by Wanda, loaded, asked to go on with a text."""
    import runpy

    import torch
    from test_architecture import check_streams
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import prunus
    from prunus.checkpoint.resolve import load_config, resolve
    from prunus.recipes import PruneRecipe

    _quiet()
    folder = resolve(model)
    config = load_config(folder)
    with torch.no_grad():
        architecture = check_streams(folder, config)
    with tempfile.TemporaryDirectory(prefix="prunus-models-") as scratch:
        text = Path(scratch) / "text.txt"
        text.write_text("\n\n".join(runpy.run_path(str(ROOT / "benchmarks" / "docstrings.py"))["docstrings"]()))
        calibration = "tiny" if model == "tiny" else str(text)
        recipe = PruneRecipe(method="wanda", sparsity=0.5, calibration=calibration, samples=16, seqlen=128)
        prunus.prune(folder, Path(scratch) / "pruned", recipe, device="cpu")
        for row in prunus.inspect(Path(scratch) / "pruned")["linears"]:
            assert row["zeros"] == row["shape"][0] * (row["shape"][1] // 2), (
                f"{row['linear']} has another count of zeros"
            )
        _loads(Path(scratch) / "pruned")
        pruned: Any = AutoModelForCausalLM.from_pretrained(Path(scratch) / "pruned", dtype=torch.float32)
        ids_NT = torch.tensor([AutoTokenizer.from_pretrained(folder).encode("12 + 7 = ")])
        new = pruned.generate(ids_NT, max_new_tokens=16, do_sample=False).shape[1] - ids_NT.shape[1]
        assert new > 0, "it generates nothing"
    found = (
        f"{len(architecture.layers)} blocks and the logits equal the whole model's bit for bit (float32); with half of"
        " its Linears' weights gone by Wanda it loads and generates"
    )
    return {"model": name, "type": config.model_type, "found": found}


def _reason(error: BaseException, scratch: Path) -> str:
    """An error in one line, without the place where the model lay."""
    from prunus.errors import PrunusError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0] if isinstance(error, (PrunusError, AssertionError)) else f"{type(error).__name__}: {lines[0][:120]}"
    for name in ("dense", "pruned", "dropped", "packed"):
        text = text.replace(str(scratch / name), "it")
    head, _, reason = text.partition("cannot be run block by block: ")
    return re.sub(r"^it \(\S+\):? (?=has no|blocks share)|; `prunus inspect` says why$", "", reason or head)


def _quiet() -> None:
    """For a process that tries types: one thread, and nothing said."""
    import torch
    import transformers

    from prunus import progress

    progress.set_quiet(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def try_all(types: Sequence[str], jobs: int) -> dict[str, Row]:
    """A row for each type."""
    rows: dict[str, Row] = {}
    with get_context("spawn").Pool(jobs, _quiet, maxtasksperchild=30) as pool:
        for done, (model_type, row) in enumerate(zip(types, pool.imap(try_type, types), strict=True), 1):
            rows[model_type] = row
            print(f"{done}/{len(types)} {model_type}: {summary(row)}", file=sys.stderr, flush=True)
    return rows


# Telling


def summary(row: Mapping[str, Any]) -> str:
    """A row in one line."""
    for why in ("not_run", "refused"):
        if why in row:
            return f"{why.replace('_', ' ')}: {row[why]}"
    return row["kind"] if row["kind"] != DECODER else ", ".join(f"{use}: {row[use]}" for use in USES)


def changes(old: Mapping[str, Row], new: Mapping[str, Row]) -> list[str]:
    """What differs between two sweeps, a line per type: new, gone, newly streamed, newly refused, other."""
    lines = [f"new: {name} ({summary(new[name])})" for name in sorted(set(new) - set(old))]
    lines += [f"gone: {name}" for name in sorted(set(old) - set(new))]
    for name in sorted(set(old) & set(new)):
        before, after = old[name], new[name]
        if before == after:
            continue
        if "kind" in after and "kind" not in before:
            lines.append(f"newly streamed: {name} ({summary(after)}); was {summary(before)}")
        elif "kind" in before and "kind" not in after:
            lines.append(f"newly refused: {name} ({summary(after)}); was {summary(before)}")
        else:
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            lines += [f"changed: {name}, {key}: {before.get(key)} -> {after.get(key)}" for key in keys]
    return lines


def counts(rows: Mapping[str, Row]) -> dict[str, int]:
    """How many types there are, are streamed, are decoders, and of those how many each use works for."""
    streamed = [row for row in rows.values() if "kind" in row]
    decoders = [row for row in streamed if row["kind"] == DECODER]
    return {
        "types": len(rows),
        "streamed": len(streamed),
        "decoders": len(decoders),
        "refused": sum("refused" in row for row in rows.values()),
        "not_run": sum("not_run" in row for row in rows.values()),
        **{use: sum(row[use] == "yes" for row in decoders) for use in USES},
    }


def sentence(data: Mapping[str, Any]) -> str:
    """How much works, in one sentence, which the README has as well."""
    n = counts(data["types"])
    return (
        f"Of the {n['types']} types of causal language models in transformers {data['transformers']},"
        f" {n['decoders']} are decoders that run so: {n['prune']} can be pruned, {n['drop']} can lose blocks"
    )


TEMPLATE = """\
# Models

Made by `scripts/models.py` from `docs/models.json`; do not edit.

Any decoder of transformers that can be run block by block works. {sentence}, {pack} can be packed and {sparse} run
on the sparse kernel. There is no table of architectures in Prunus: a model is taken apart with transformers' own code,
and refused unless its blocks, run one by one, are all that it does. `prunus inspect MODEL` says of any model what is
pruned, what stays dense, and why.

{table}

*yes* means that it was done on a tiny random model of the type (two to six blocks, width 64, float32, CPU). Every block
and the logits equal the whole model's, bit for bit, at lengths of 24 and 40 tokens. Pruned by Wanda, every Linear has
half of its weights, to the weight, and transformers loads the result and goes on with a text where it does so with the
dense model; the model without its second block loads, too.
Packed and unpacked the bytes are the same, and the logits of the sparse kernel are torch's. What a type's default
configuration leaves off was not tried. Embeddings, heads and what else lies outside the blocks stay dense always.

Blocks of {hands_on} hand on more than hidden states (keys and values, or which tokens were chosen). No gradient stops
at one of their blocks, so what needs gradients of the model's loss (such as gblm and layerif) and depth methods that
leave out blocks in trials refuse them in a line.

Originals in FP8 or MXFP4 are read in bfloat16, a block at a time, and what is made of them is in bfloat16: two to four
times the original's bytes. The manifest names the original's checksum and quantisation. Other quantised models are
refused.

axk2, deepseek_v32, glm_moe_dsa and hy_v4 look at the `index_topk` tokens that an indexer chooses. In transformers
itself, without Prunus, texts longer than that get other logits when they are read with a cache, token by token, than
when they are read at once: the choice among tokens of equal score differs. Up to `index_topk` tokens they agree.

## Published checkpoints

{real}

## No decoders

{others} more types run block by block, but see later tokens (like BERT) or are half of a model with an encoder. They
are refused.

{other_table}

## Refused

{refused} types do something between their blocks that blocks alone would miss, or have no single list of them. The
check that fails says so before anything is written.

{refused_table}

## Not tried

Of {not_run} types there is no tiny model. They are checked like all others when they are opened.

{not_run_table}

## Again

`python scripts/models.py` tries every type with the transformers that is installed and writes this page; with
`--compare` it prints what has changed since.
"""


def page(data: Mapping[str, Any]) -> str:
    """docs/models.md."""
    rows, n = data["types"], counts(data["types"])
    decoders = {name: row for name, row in rows.items() if row.get("kind") == DECODER}
    others = {name: row for name, row in rows.items() if row.get("kind") not in (None, DECODER)}
    text = TEMPLATE.format(
        **n,
        sentence=sentence(data),
        table=_table(decoders),
        real=_real(data["real"]),
        others=len(others),
        hands_on=", ".join(name for name, row in sorted(decoders.items()) if row["hands_on"]),
        other_table=_reasons({name: row["kind"] for name, row in others.items()}),
        refused_table=_reasons({name: row["refused"] for name, row in rows.items() if "refused" in row}),
        not_run_table=_reasons({name: row["not_run"] for name, row in rows.items() if "not_run" in row}),
    )
    return "\n\n".join(map(_wrapped, text.split("\n\n")))


def readme(data: Mapping[str, Any], text: str) -> str:
    """README.md with the sentence of the data."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{_wrapped(sentence(data))} ([docs/models.md](docs/models.md)).\n{MARKS[1]}{after}"


def _wrapped(paragraph: str) -> str:
    """Lines of 120 columns; tables, lists and titles as they are."""
    if paragraph.startswith(("|", "#", "1. ")):
        return paragraph
    return fill(paragraph, 120, break_long_words=False, break_on_hyphens=False) + "\n" * paragraph.endswith("\n")


def _table(rows: Mapping[str, Row]) -> str:
    """What can be done; reasons why not are numbered, and stand below."""
    notes: dict[str, int] = {}
    lines = [
        "| model_type | prune | drop | pack | sparse kernel | stays dense in blocks |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        cells = [_cell(row[use], notes) for use in USES]
        lines.append(f"| {name} | {' | '.join(cells)} | {_escaped('; '.join(row['dense']))} |")
    listed = [f"{number}. {_escaped(note)}" for note, number in notes.items()]
    return "\n".join([*lines, *([""] if listed else []), *listed])


def _cell(outcome: str, notes: dict[str, int]) -> str:
    return outcome if outcome == "yes" else f"no ({notes.setdefault(outcome, len(notes) + 1)})"


def _reasons(reasons: Mapping[str, str]) -> str:
    rows = [f"| {name} | {_escaped(why)} |" for name, why in sorted(reasons.items())]
    return "\n".join(["| model_type | why |", "|---|---|", *rows])


def _real(real: Iterable[Mapping[str, Any]]) -> str:
    rows = [f"| {row['model']} | {row['type']} | {row['found']} |" for row in real]
    return "\n".join(["| model | model_type | what was found |", "|---|---|---|", *rows])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def read_data() -> dict[str, Any]:
    """docs/models.json."""
    return json.loads(DATA.read_text("utf-8"))


def write_data(data: Mapping[str, Any]) -> None:
    """docs/models.json."""
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")


def made() -> dict[Path, str]:
    """What is made from the data."""
    data = read_data()
    return {PAGE: page(data), README: readme(data, README.read_text("utf-8"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", metavar="NAME=MODEL", nargs="+", type=lambda text: text.split("="))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--facts", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--types", type=lambda text: text.split(","))
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    if asked.check:
        if any(path.read_text("utf-8") != text for path, text in made().items()):
            sys.exit("docs/models.md or README.md is out of step with docs/models.json: run `make docs`")
        return
    if asked.real:
        data = read_data() | {"real": [try_real(*given) for given in asked.real]}
        write_data(data)
    elif asked.facts:
        data = read_data()
        data["types"] = {name: row | again(name) if "kind" in row else row for name, row in data["types"].items()}
        write_data(data)
    elif not asked.page:
        old = read_data() if DATA.exists() else {"types": {}, "real": []}
        data = old | {"transformers": version("transformers"), "types": sweep(asked, old["types"])}
        print("\n".join(changes(old["types"], data["types"])) or "nothing has changed")
        print(f"transformers {old.get('transformers')} -> {data['transformers']}: {counts(data['types'])}")
        if asked.compare:
            return
        write_data(data)
    for path, text in made().items():
        path.write_text(text, "utf-8")


def sweep(asked: argparse.Namespace, old: Mapping[str, Row]) -> dict[str, Row]:
    """The rows of all types, of which only those asked for are tried anew."""
    from random_models import TYPES

    kept = {name: row for name, row in old.items() if asked.types and name not in asked.types}
    return dict(sorted((kept | try_all(asked.types or TYPES, asked.jobs)).items()))


if __name__ == "__main__":
    main()
