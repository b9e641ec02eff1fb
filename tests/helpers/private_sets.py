"""Problems of a gated set."""

from functools import cache

from prunus.evaluation.tasks import Problem


@cache
def private_problems() -> list[Problem]:
    return [Problem(f"g{n}", "gated", f"secret question {n}", "B", "choice", ("one", "two"), True) for n in range(3)]
