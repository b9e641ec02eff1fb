"""How long a variant samples the base's ids: `python benchmarks/parting.py STORE MODEL BASE VARIANT...`, seconds.

STORE holds runs of `prunus eval` of the same plan, with a temperature, by any engine; BASE and VARIANT are their names
or ids, and MODEL is a folder with their tokenizer. For each variant it prints the mean number of ids of thinking, at
the largest budget, before chains of equal problem and draw part, how many chains are the same, and, so that one sees
what chance alone gives, the first number for chains of different problems. docs/measurements/verdicts.md has figures.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.store.store import Store


def in_common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The number of ids before two chains part."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def parting(base: Mapping[tuple[str, int], Sequence[int]], other: Mapping[tuple[str, int], Sequence[int]]) -> str:
    """A line about the chains of two runs, by problem and draw."""
    keys = sorted(base.keys() & other.keys())
    lengths = [in_common(base[key], other[key]) for key in keys]
    same = sum(list(base[key]) == list(other[key]) for key in keys)
    shifted = [in_common(base[key], other[then]) for key, then in zip(keys, keys[1:] + keys[:1], strict=True)]
    whole = sum(len(base[key]) for key in keys) / len(keys)
    return (
        f"{sum(lengths) / len(keys):.1f} of {whole:.1f} ids before they part, {same} of {len(keys)} chains the same;"
        f" chains of different problems: {sum(shifted) / len(keys):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("model")
    parser.add_argument("base")
    parser.add_argument("variant", nargs="+")
    options = parser.parse_args()
    tokenizer = load_tokenizer(resolve(options.model))
    with Store(options.store, create=False) as store:
        chains = {}
        for name in (options.base, *options.variant):
            samples = store.samples(store.find_run(name).run_id, texts=True)
            largest = max(one.budget for one in samples)
            chains[name] = {
                (one.problem_id, one.draw): tokenizer.encode(one.thinking, add_special_tokens=False)
                for one in samples
                if one.budget == largest
            }
    for name in options.variant:
        print(f"{name}: {parting(chains[options.base], chains[name])}")


if __name__ == "__main__":
    main()
