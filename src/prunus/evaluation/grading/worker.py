"""The process in which math-verify runs. Started by path, so it imports neither Prunus nor torch.

Arguments: seconds after which the kernel ends it, memory in MiB. It writes {"ready": true}, then answers every line
[gold, answer, both] on its input with {"verdict": "same" | "different" | "error"}, and "last": true where it must be
replaced. It ends with its input.
"""

import json
import os
import signal
import sys
from functools import lru_cache


def main() -> None:
    """Serve until the input ends."""
    seconds, memory_mb = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    try:
        compare("x+1", "1+x")  # loads what should not count against the first answer
    except ImportError as error:
        replies.write(json.dumps({"failed": str(error)}) + "\n")
        return
    limit_memory(memory_mb)
    replies.write('{"ready": true}\n')
    for line in sys.stdin:
        gold, answer, both = json.loads(line)
        # Untouched, SIGALRM ends a process even inside C code: a hung worker dies although its parent may be gone.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = compare(gold, answer)
            if both and verdict == "same":
                verdict = compare(answer, gold)
        except MemoryError:
            replies.write('{"verdict": "error", "last": true}\n')
            replies.flush()
            os._exit(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps({"verdict": verdict}) + "\n")


def limit_memory(memory_mb: int) -> None:
    """No allocation beyond memory_mb of address space (where the system enforces it)."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


@lru_cache(maxsize=256)
def parsed(answer: str) -> tuple:
    """What math-verify reads in a boxed answer. Only its LaTeX reader: the one for plain expressions evaluates text."""
    from math_verify.parser import LatexExtractionConfig, parse

    # 0 switches its SIGALRM timeout off, as None does, which its type hints do not know.
    return tuple(parse(f"\\boxed{{{answer}}}", extraction_config=[LatexExtractionConfig()], parsing_timeout=0))


def compare(gold: str, answer: str) -> str:
    """same, different, or error where no comparison succeeded and at least one failed. Not symmetric."""
    from math_verify import verify

    failed = False
    for expected in parsed(gold):
        for given in parsed(answer):
            try:
                if verify(expected, given, timeout_seconds=None, raise_on_error=True):
                    return "same"
            except MemoryError:
                raise
            except Exception:  # sympy fails in every way there is
                failed = True
    return "error" if failed else "different"


if __name__ == "__main__":
    main()
