"""Try which models of transformers can be pruned; write docs/models.json, and docs/models.md from it.

python scripts/models.py             try every type on a tiny random model (about 10 minutes); write both files
python scripts/models.py --compare   the same; print the changes against docs/models.json and write nothing
python scripts/models.py --facts     update only what needs no weights: groups and dense matrices (a minute)
python scripts/models.py --page      write docs/models.md from docs/models.json
python scripts/models.py --check     fail unless docs/models.md is up to date with docs/models.json
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
# The tiny random models come from the tests.
sys.path.insert(0, str(ROOT / "tests/helpers"))

DATA, PAGE, README = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md", ROOT / "README.md"
MARKS = "<!-- scripts/models.py -->", "<!-- end -->"
USES = ("prune", "drop", "width", "quantize")
CONSEQUENCES = r", for which |: quantising |, so they cannot "
# What a table of many types leaves out of reasons: the names and numbers of one model.
SHORTER = (
    (
        r"block \d+, renumbered \d+, would have other settings: ([\w.]+) is .*",
        r"renumbered blocks would have another \1",
    ),
    (r"(config\.json has no way to say which blocks stay): .*", r"\1"),
    (r"block \d+ reads an output of block \d+, which would be removed", "a block reads an output of one before it"),
    (r"block \d+ shares weights with block \d+, which would be removed", "blocks share weights"),
    (r"(is not the width of feed-forward networks of Linears alone): .*", r"\1"),
    (r"(channels of )(\S+) of block \d+( depend on each other), .*", r"\1\2\3"),
    (r"stores \S+ as a part of another tensor or transposed", "stores Linears in another tensor or transposed"),
    (r"(has routed experts that cannot be observed one by one) .*", r"\1"),
    (r"(its list of blocks cannot be identified) .*", r"\1"),
)
DECODER, AHEAD, HALF = "decoder", "attends to later tokens", "part of an encoder-decoder model"
Row = dict[str, Any]

# Trying models


def try_type(model_type: str) -> Row:
    """Return what works for a type, tried on a tiny random model of it.

    The row has class, and not_run (why there is no such model), or refused (why its blocks cannot be run one by one),
    or kind, the keys of facts(), and for each of USES "yes" or why it does not work.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from whole_models import NOT_RUN

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    row: Row = {"class": name if isinstance(name, str) else name[0]}
    if model_type in NOT_RUN:
        return row | {"not_run": NOT_RUN[model_type]}
    with tempfile.TemporaryDirectory(prefix="prunus-models-") as scratch:
        return row | _try(model_type, Path(scratch))


def _try(model_type: str, scratch: Path) -> Row:
    import torch
    from random_models import make_random_model
    from whole_models import check_streams

    folder = scratch / "dense"
    try:
        config = make_random_model(model_type, folder)
    except Exception as error:  # raised by the model's own code for sizes that it does not expect
        return {"not_run": _reason(error, scratch)}
    try:
        with torch.no_grad():
            architecture = check_streams(folder, config)
    except AssertionError as error:
        return {"refused": f"not equal to the whole model: {str(error).splitlines()[0]}"}
    except Exception as error:  # refused, or raised by the model's own code
        return {"refused": _reason(error, scratch)}
    row = {"kind": kind_of(folder), **facts(architecture)}
    tries: dict[str, Callable[[Path], None]] = {
        "prune": _prune,
        "drop": _drop,
        "width": _width,
        "quantize": _quantize,
    }
    for use, attempt in tries.items():
        row[use] = _outcome(partial(attempt, scratch), scratch)
    return row


def facts(architecture: "Architecture") -> Row:
    """Return what is known without weights.

    groups: for each kind of block, the Linears that read the same input. dense: why other matrices of blocks stay
    dense. hands_on: whether blocks pass more than hidden states to later ones.
    """
    from prunus.checkpoint.linears import is_stateful
    from prunus.pruning.inspection import describe_blocks

    found = describe_blocks(architecture)
    groups: dict[str, list[str]] = {}
    for row in found.groups:
        short = "+".join(name.rpartition(".")[2] for name in row.linears)
        groups.setdefault(json.dumps(row.blocks), []).append(short)
    dense = {row.why for row in found.left_dense if row.blocks}
    hands_on = bool(architecture.carried) or any(map(is_stateful, architecture.probe.calls))
    return {"groups": ["; ".join(group) for group in groups.values()], "dense": sorted(dense), "hands_on": hands_on}


def facts_of_type(model_type: str) -> Row:
    """Return facts() for a type's tiny model."""
    import torch
    from random_models import tiny_config

    from prunus.checkpoint.architecture import Architecture, skeleton

    return facts(Architecture(skeleton(tiny_config(model_type), torch.float32)))


def kind_of(folder: Path) -> str:
    """Return DECODER, HALF if the model attends to an encoder, or AHEAD if logits change with a later token."""
    import torch
    from whole_models import whole_model

    model = whole_model(folder)
    if any(re.search(r"encoder_attn|cross_?attention|cross_attn", name) for name, _ in model.named_modules()):
        return HALF
    ids_NT = torch.arange(3, 27)[None]
    changed_NT = torch.cat([ids_NT[:, :-1], ids_NT[:, -1:] + 1], 1)
    with torch.no_grad():
        before, after = (model(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (ids_NT, changed_NT))
    return DECODER if torch.allclose(before, after, rtol=1e-4, atol=1e-5) else AHEAD


def _prune(scratch: Path) -> None:
    """Prune half of every Linear by Wanda; check that counts are exact and that transformers loads the result."""
    import torch

    import prunus
    from prunus.recipes import PruneRecipe

    tokens = scratch / "tokens.jsonl"
    ids = torch.randint(3, 100, (4, 24), generator=torch.Generator().manual_seed(0)).tolist()
    tokens.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in ids))
    recipe = PruneRecipe(method="wanda", sparsity=0.5, calibration=f"traces:{tokens}", sequences=4, seqlen=24)
    prunus.prune(scratch / "dense", scratch / "pruned", recipe, device="cpu")
    found = prunus.inspect(scratch / "pruned").to_json()
    assert found["linears"], "no Linear of its blocks can be pruned"
    for row in found["linears"]:
        wanted = row["experts"] * row["shape"][0] * (row["shape"][1] // 2)
        assert row["zeros"] == wanted, f"{row['linear']} has a wrong number of zeros"
    _loads(scratch / "pruned")


def _drop(scratch: Path) -> None:
    """Drop block 1; check that transformers loads the result."""
    import prunus
    from prunus.recipes import DropRecipe

    prunus.drop(scratch / "dense", scratch / "dropped", DropRecipe(blocks="1,"), device="cpu")
    _loads(scratch / "dropped")


def _width(scratch: Path) -> None:
    """Remove a quarter of the channels of every kind of feed-forward network that can be narrowed, chosen at random.

    Check that blocks compute what they did with these channels at 0, and that transformers loads the results.
    """
    import torch
    from safetensors.torch import save_file

    from prunus.checkpoint.checkpoint import Checkpoint
    from prunus.pruning.planned import planned_checkpoint
    from prunus.pruning.width.channels import (  # fmt: skip
        base_width,
        find_units,
        narrow_config,
        narrowed,
        of_blocks,
        planned_tensors,
        random_channels,
        units_by_field,
        verify,
    )

    source, folder = Checkpoint(scratch / "dense"), scratch / "narrow"
    find_units(source)  # raises the reason why nothing can be narrowed
    for units in units_by_field(source)[0].values():
        width = base_width(units) // 4 * 3
        content = narrow_config(source, units, width)
        new = planned_checkpoint(source, content, planned_tensors(source, units, width))
        verify(source, new, units, torch.device("cpu"))
        tensors = {name: stored.read() for name, stored in source.outer_tensors().items()}
        own = of_blocks(units)
        for index in range(source.blocks):
            block = source.read_block(index)
            block = narrowed(block, own[index], random_channels(new, own[index])) if index in own else block
            tensors |= new.as_stored(index, block)
        folder.mkdir(exist_ok=True)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(content))
        _loads(folder)


def _quantize(scratch: Path) -> None:
    """Round all Linears to 8 bits; check that transformers loads the model that is turned back into plain weights."""
    import prunus
    from prunus.recipes import QuantizeRecipe

    prunus.quantize(scratch / "dense", scratch / "quantised", QuantizeRecipe(method="rtn"), device="cpu")
    prunus.dequantize(scratch / "quantised", scratch / "plain")
    _loads(scratch / "plain")


def _loads(folder: Path) -> None:
    """Check that transformers finds all weights, logits are finite, and it generates text if the dense model does."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = loaded
    for wrong in ("missing_keys", "mismatched_keys"):
        assert not info[wrong], f"transformers does not load it: {wrong.replace('_', ' ')}"
    ids_1T = torch.arange(3, 27)[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids_1T, use_cache=False).logits
    assert bool(logits.isfinite().all()), "its logits are not finite"
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}

    def generates(one: Any) -> bool:
        try:
            return one.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), **options).shape == (1, 27)
        except Exception:  # raised by the model's own code
            return False

    if not generates(model):
        dense = AutoModelForCausalLM.from_pretrained(folder.parent / "dense", dtype=torch.float32).eval()
        assert not generates(dense), "it generates no text, though the dense model does"


def _outcome(attempt: Callable[[], None], scratch: Path) -> str:
    try:
        attempt()
    except Exception as error:  # raised by Prunus or by the model's own code
        return _reason(error, scratch)
    return "yes"


def try_real(name: str, model: str) -> Row:
    """Return the row of a published checkpoint, after running it by blocks, pruning it by Wanda and generating text."""
    import runpy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from whole_models import check_streams

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
        recipe = PruneRecipe(method="wanda", sparsity=0.5, calibration=calibration, sequences=16, seqlen=128)
        prunus.prune(folder, Path(scratch) / "pruned", recipe, device="cpu")
        for row in prunus.inspect(Path(scratch) / "pruned").to_json()["linears"]:
            assert row["zeros"] == row["experts"] * row["shape"][0] * (row["shape"][1] // 2), (
                f"{row['linear']} has a wrong number of zeros"
            )
        _loads(Path(scratch) / "pruned")
        pruned: Any = AutoModelForCausalLM.from_pretrained(Path(scratch) / "pruned", dtype=torch.float32)
        ids_NT = torch.tensor([AutoTokenizer.from_pretrained(folder).encode("12 + 7 = ")])
        new = pruned.generate(ids_NT, max_new_tokens=16, do_sample=False).shape[1] - ids_NT.shape[1]
        assert new > 0, "it generates nothing"
    found = (
        f"{len(architecture.layers)} blocks and the logits equal the whole model's bit for bit (float32); pruned to"
        " half of its Linears' weights by Wanda it loads and generates"
    )
    return {"model": name, "type": config.model_type, "found": found}


def _reason(error: BaseException, scratch: Path) -> str:
    """Return an error in one line, without the model's temporary path."""
    from prunus.errors import PrunusError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0] if isinstance(error, (PrunusError, AssertionError)) else f"{type(error).__name__}: {lines[0][:120]}"
    for name in ("dense", "pruned", "dropped", "narrow", "quantised", "plain", "packed"):
        text = text.replace(str(scratch / name), "it")
    head, _, reason = text.partition("cannot be run block by block: ")
    return re.sub(
        r"^it \(\S+\)(: | (?=has no|has routed|blocks share|stores))|; `prunus inspect` says why$", "", reason or head
    )


def _quiet() -> None:
    """Set up a process that tries types: one thread and no messages."""
    import torch
    import transformers

    from prunus import progress

    progress.set_quiet(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def try_all(types: Sequence[str], jobs: int) -> dict[str, Row]:
    """Return a row for each type."""
    rows: dict[str, Row] = {}
    with get_context("spawn").Pool(jobs, _quiet, maxtasksperchild=30) as pool:
        for done, (model_type, row) in enumerate(zip(types, pool.imap(try_type, types), strict=True), 1):
            rows[model_type] = row
            print(f"{done}/{len(types)} {model_type}: {summary(row)}", file=sys.stderr, flush=True)
    return rows


# Reporting


def summary(row: Mapping[str, Any]) -> str:
    """Return a row as one line of text."""
    for why in ("not_run", "refused"):
        if why in row:
            return f"{why.replace('_', ' ')}: {row[why]}"
    return row["kind"] if row["kind"] != DECODER else ", ".join(f"{use}: {row[use]}" for use in USES)


def changes(old: Mapping[str, Row], new: Mapping[str, Row]) -> list[str]:
    """Return a line for each type that differs between sweeps: new, gone, newly streamed, newly refused, changed."""
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
    """Return the numbers of types, of those streamed, refused and not run, of decoders, and of these by working use."""
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
    """Return the main numbers in one sentence, for docs/models.md."""
    n = counts(data["types"])
    return (
        f"Of the {n['types']} types of causal language models in transformers {data['transformers']},"
        f" {n['decoders']} are decoders that run block by block: {n['prune']} can be pruned, {n['drop']} can have"
        " blocks removed"
    )


TEMPLATE = """\
# Models

Made by `scripts/models.py` from `docs/models.json`; do not edit.

Any decoder of transformers that can be run block by block works. {sentence}, {width} fewer channels in their
feed-forward networks and {quantize} Linears in fewer bits. A model is refused unless running its blocks one by one
computes the same as the whole. `prunus inspect MODEL` says what is pruned, what stays dense, and why.

## Decoders

{table}

All four uses work with these types, except:

{failures}

A use works if this holds for a tiny random model of the type (float32, CPU). Every block and the logits equal the whole
model's bit for bit. Pruned by Wanda, every Linear has exactly half of its weights; transformers loads the result, which
generates text if the dense model does. Models load without their second block, with three quarters of the channels
(*width*), and with Linears rounded to 8 bits and turned back (*quantize*); engines and 4 bits were not tried.
Embeddings, heads and other weights outside the blocks always stay dense.

Blocks of {hands_on} pass more than hidden states to later blocks, so layerif, and depth methods that run the model
without some of its blocks, refuse them.

Each matrix of each routed expert is pruned as a Linear ([mixtures of experts](pruning.md#mixtures-of-experts)), but
those of dbrx, jetmoe, llama4, longcat_flash and step3p7, which have code of their own for experts, stay dense.

Models in FP8 or MXFP4 are read in bfloat16, a block at a time, and their pruned copies take two to four times the
bytes. Those in integers of 4 or 8 bits ([compressed-tensors](quantize.md)) are read in the dtype of the model. Other
quantised models are refused.

The logits of axk2, deepseek_v32, glm_moe_dsa and hy_v4 depend, for texts beyond `index_topk` tokens, on whether they
are read token by token with a cache or at once.

## Published checkpoints

{real}

## Refused

{others} more types run block by block, but are no decoders, and {refused} compute something between their blocks, or
have no single list of blocks.

{other_table}
{refused_rows}

## Not tried

There is no tiny model of {not_run} types, which are checked when they are opened: {not_run_types}. `docs/models.json`
has the reasons.
"""


def page(data: Mapping[str, Any]) -> str:
    """Return the content of docs/models.md."""
    rows, n = data["types"], counts(data["types"])
    decoders = {name: row for name, row in rows.items() if row.get("kind") == DECODER}
    others = {name: row for name, row in rows.items() if row.get("kind") not in (None, DECODER)}
    text = TEMPLATE.format(
        **n,
        sentence=sentence(data),
        table=_by_dense(decoders),
        failures=_by_failure(decoders),
        real=_real(data["real"]),
        others=len(others),
        hands_on=", ".join(name for name, row in sorted(decoders.items()) if row["hands_on"]),
        other_table=_reasons({name: row["kind"] for name, row in others.items()}),
        refused_rows=_reasons(
            {name: _short(row["refused"]) for name, row in rows.items() if "refused" in row}, head=False
        ),
        not_run_types=", ".join(name for name, row in sorted(rows.items()) if "not_run" in row),
    )
    return "\n\n".join(map(_wrapped, text.split("\n\n")))


def readme(data: Mapping[str, Any], text: str) -> str:
    """Return the README's text with the current sentence."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    n = counts(data["types"])
    of = f"Of {n['types']} [types](docs/models.md) of language models in transformers {data['transformers']}"
    now = f"{of}, {n['prune']} can be pruned, {n['drop']} can have blocks removed."
    return f"{before}{MARKS[0]}\n{_wrapped(now)}\n{MARKS[1]}{after}"


def _wrapped(paragraph: str) -> str:
    """Return a paragraph in lines of 120 columns; tables, lists and titles are not wrapped."""
    if paragraph.startswith(("|", "#", "1. ")):
        return paragraph
    return fill(paragraph, 120, break_long_words=False, break_on_hyphens=False) + "\n" * paragraph.endswith("\n")


def _by_dense(rows: Mapping[str, Row]) -> str:
    """Return a table with a line for what stays dense in blocks, and the types of which that is true."""
    types: dict[str, list[str]] = {}
    for name, row in sorted(rows.items()):
        types.setdefault("; ".join(row["dense"]) or "nothing", []).append(name)
    lines = [f"| {_escaped(dense)} | {', '.join(names)} |" for dense, names in types.items()]
    return "\n".join(["| stays dense in blocks | model types |", "|---|---|", *lines])


def _by_failure(rows: Mapping[str, Row]) -> str:
    """Return a table with a line for each type with which something does not work; `drop: why` for each use.

    What follows from a reason, which messages add, is left out.
    """
    why = {name: [f"{use}: {_short(row[use])}" for use in USES if row[use] != "yes"] for name, row in rows.items()}
    return _reasons({name: "; ".join(failures) for name, failures in why.items() if failures})


def _short(reason: str) -> str:
    """Return a reason without what follows from it, and without what is of one model only."""
    reason = re.split(CONSEQUENCES, reason)[0]
    for pattern, shorter in SHORTER:
        reason = re.sub(pattern, shorter, reason)
    return reason


def _reasons(reasons: Mapping[str, str], head: bool = True) -> str:
    """Return a table with a line for each reason, and the types that have it; or only these lines."""
    types: dict[str, list[str]] = {}
    for name, why in sorted(reasons.items()):
        types.setdefault(why, []).append(name)
    rows = [f"| {', '.join(names)} | {_escaped(why)} |" for why, names in types.items()]
    return "\n".join([*(["| model types | why |", "|---|---|"] if head else []), *rows])


def _real(real: Iterable[Mapping[str, Any]]) -> str:
    rows = [f"| {row['model']} | {row['type']} | {row['found']} |" for row in real]
    return "\n".join(["| model | model_type | what was found |", "|---|---|---|", *rows])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def read_data() -> dict[str, Any]:
    """Return the content of docs/models.json."""
    return json.loads(DATA.read_text("utf-8"))


def write_data(data: Mapping[str, Any]) -> None:
    """Write docs/models.json."""
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")


def generated() -> dict[Path, str]:
    """Return the text of every file that is made from docs/models.json."""
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
        if any(path.read_text("utf-8") != text for path, text in generated().items()):
            sys.exit("docs/models.md or README.md is not up to date with docs/models.json: run `make docs`")
        return
    if asked.real:
        data = read_data() | {"real": [try_real(*given) for given in asked.real]}
        write_data(data)
    elif asked.facts:
        data = read_data()
        data["types"] = {
            name: row | facts_of_type(name) if "kind" in row else row for name, row in data["types"].items()
        }
        write_data(data)
    elif not asked.page:
        old = read_data() if DATA.exists() else {"types": {}, "real": []}
        data = old | {"transformers": version("transformers"), "types": sweep(asked, old["types"])}
        print("\n".join(changes(old["types"], data["types"])) or "nothing has changed")
        print(f"transformers {old.get('transformers')} -> {data['transformers']}: {counts(data['types'])}")
        if asked.compare:
            return
        write_data(data)
    for path, text in generated().items():
        path.write_text(text, "utf-8")


def sweep(asked: argparse.Namespace, old: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows of all types; only those asked for are tried again."""
    from random_models import TYPES

    kept = {name: row for name, row in old.items() if asked.types and name not in asked.types}
    return dict(sorted((kept | try_all(asked.types or TYPES, asked.jobs)).items()))


if __name__ == "__main__":
    main()
