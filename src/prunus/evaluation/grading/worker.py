"""The process in which math-verify runs. It is started by its path, so it imports neither Prunus nor torch.

Arguments: seconds per comparison after which the kernel ends the process; memory in MiB. It writes {"ready": true},
then replies to every input line [gold, answer] with {"verdict": "same" | "different" | "error"}, with "last":
true where the process must be replaced. It ends when its input ends.
"""

import json
import os
import random
import re
import resource
import signal
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sympy import Expr

DIGITS = 40
DECIMAL = re.compile(r"[0-9]*\.[0-9]+")


def main() -> None:
    """Write a line of JSON with a verdict for each line [gold, answer] of the input, until it ends.

    Arguments of the command: seconds for each comparison, after which SIGALRM kills the process, and MB of memory.
    """
    seconds, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    try:
        compare("x+1", "1+x")  # loads the libraries, so that their import does not count against the first answer
    except ImportError as error:
        replies.write(json.dumps({"failed": str(error)}) + "\n")
        return
    limit_memory(memory_mb)
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        gold, answer = json.loads(line)
        # SIGALRM without a handler ends the process even inside C code, also if the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = compare(gold, answer)
        except MemoryError:
            replies.write('{"verdict": "error", "last": true}\n')
            replies.flush()
            os._exit(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps({"verdict": verdict}) + "\n")


def limit_memory(memory_mb: int) -> None:
    """Limit the address space to memory_mb MiB."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


@lru_cache(maxsize=256)
def parsed(answer: str) -> tuple:
    """The sympy objects of an answer, decimals as fractions (math-verify's plain-text parser evaluates them)."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from math_verify.parser import LatexExtractionConfig, parse

    exact = DECIMAL.sub(as_fraction, answer)
    try:
        return (latex2sympy(exact, conversion_config=ConversionConfig(lowercase_symbols=False)),)
    except MemoryError:
        raise
    except Exception:  # math-verify's own extraction accepts more notations
        # 0 switches its SIGALRM timeout off, as None does, which its type hints do not know.
        return tuple(parse(f"\\boxed{{{exact}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=0))


def as_fraction(decimal: re.Match[str]) -> str:
    """0.35 as \\frac{35}{100}: floating-point numbers would be compared with a tolerance."""
    whole, _, digits = decimal[0].partition(".")
    return rf"\frac{{{int(whole + digits)}}}{{{10 ** len(digits)}}}"


def compare(gold: str, answer: str) -> str:
    """ "same", "different", or "error" where nothing matched and a comparison failed. Not symmetric.

    An answer \\approx 15.556 is the same as the number that rounds to it.
    """
    rounded = answer.startswith("\\approx")
    failed = False
    for expected in parsed(gold):
        for given in parsed(answer.removeprefix("\\approx")):
            try:
                if rounds_to(expected, answer) if rounded else equal(expected, given):
                    return "same"
            except MemoryError:
                raise
            except Exception:  # sympy raises errors of every kind
                failed = True
    return "error" if failed else "different"


def equal(expected: Any, given: Any) -> bool:
    """Whether two parsed answers are equal to DIGITS significant digits."""
    from math_verify import verify
    from sympy import Expr, MatrixBase
    from sympy.core.relational import Relational

    if isinstance(expected, Expr) and isinstance(given, Expr):
        return expected == given or vanishes(expected, given)
    if isinstance(expected, MatrixBase) and isinstance(given, MatrixBase):
        cells = zip(expected.flat(), given.flat(), strict=True)
        return expected.shape == given.shape and all(equal(a, b) for a, b in cells)
    if isinstance(expected, Relational) and isinstance(given, Relational):
        return same_relation(expected, given)
    if type(expected) is not type(given):
        return False
    return verify(
        expected, given, float_rounding=DIGITS, numeric_precision=DIGITS, timeout_seconds=None, raise_on_error=True
    )


def points(names: set, count: int = 6) -> list:
    """Random values for all symbols, the same in every process: fractions of both signs."""
    from sympy import Rational

    rng = random.Random(20)
    ordered = sorted(names, key=str)
    span = [(1, 1), (1, 1), (1, 1), (-1, 1), (-1, 1), (-1, -1)]
    return [
        {name: Rational(rng.choice(span[index % 6]) * rng.randint(1009, 9973), 3571) for name in ordered}
        for index in range(count)
    ]


def as_complex(expression: "Expr", names: set) -> "Expr":
    """The expression with i as the imaginary unit, if i is its only letter."""
    from sympy import I

    return expression.subs(next(iter(names)), I) if {str(name) for name in names} == {"i"} else expression


def value_at(expression: "Expr", point: dict) -> Any:
    """An mpmath complex number of more than DIGITS significant digits, or None where the value is not finite."""
    import mpmath

    value = expression.subs(point).evalf(DIGITS + 20)
    if not value.is_number or not value.is_finite:
        return None
    return mpmath.mpc(*(str(part) for part in value.as_real_imag()))


def vanishes(expected: "Expr", given: "Expr") -> bool:
    """Whether two expressions agree at random points to DIGITS significant digits.

    Points at which only one side is real are skipped, so that log(x) equals log|x|, as antiderivatives are written.
    Formulas as short as answers that agree at random points are taken as equal. Sympy's simplify decides where fewer
    than two of six points have a value (one point for numbers), or one side is zero and the other nearly so.
    """
    import mpmath
    from sympy import simplify

    names = expected.free_symbols | given.free_symbols
    expected, given = as_complex(expected, names).doit(), as_complex(given, names).doit()
    names = expected.free_symbols | given.free_symbols
    seen = 0
    with mpmath.workdps(2 * DIGITS):
        for point in points(names, 6 if names else 1):
            expected_value, given_value = value_at(expected, point), value_at(given, point)
            if expected_value is None or given_value is None:
                continue
            if names and (expected_value.imag or given_value.imag) and not (expected_value.imag and given_value.imag):
                continue  # outside the domain in which one of the two is real
            seen += 1
            if (apart := abs(expected_value - given_value)) <= mpmath.mpf(10) ** -DIGITS * max(
                abs(expected_value), abs(given_value)
            ):
                continue
            if apart > mpmath.mpf(10) ** -DIGITS or (expected_value and given_value):
                return False
            seen = 0  # one side is zero, the other may be its rounding error
            break
    return seen >= (2 if names else 1) or simplify(expected - given) == 0


def same_relation(expected: Any, given: Any) -> bool:
    """Whether one equation or inequality is a multiple of the other: 2x - y + 3 = 0 is y = 2x + 3."""
    import mpmath
    from sympy import Eq, Ne

    expected_side, given_side = expected.lhs - expected.rhs, given.lhs - given.rhs
    flipped = expected.reversed.func is given.func and not isinstance(expected, Eq | Ne)
    if expected.func is not given.func and not flipped:
        return False
    names = expected_side.free_symbols | given_side.free_symbols
    ratios = []
    with mpmath.workdps(2 * DIGITS):
        for point in points(names):
            pair = value_at(expected_side, point), value_at(given_side, point)
            if pair[0] is None or pair[1] is None or not pair[0] or not pair[1]:
                continue
            ratios.append(pair[1] / pair[0])
        if len(ratios) < 3 or any(abs(ratio - ratios[0]) > mpmath.mpf(10) ** -DIGITS * abs(ratio) for ratio in ratios):
            return False
    if isinstance(expected, Eq | Ne):
        return True
    return ratios[0].imag == 0 and (ratios[0].real < 0) == (expected.func is not given.func)


def rounds_to(expected: "Expr", answer: str) -> bool:
    """Whether a number rounds to the decimal of `\\approx decimal`."""
    import mpmath

    decimal = answer.removeprefix("\\approx").strip()
    value = value_at(expected.doit(), {})
    with mpmath.workdps(2 * DIGITS):
        half = mpmath.mpf(10) ** -len(decimal.partition(".")[2]) / 2
        return value is not None and not value.imag and abs(value.real - mpmath.mpf(decimal)) <= half


if __name__ == "__main__":
    main()
