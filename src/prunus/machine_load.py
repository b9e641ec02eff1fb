"""How busy this machine is, and the environment of the programs that Prunus starts."""

import os

SPINS = "1000"  # GOMP_SPINCOUNT of Prunus itself: about 50 microseconds
SPINS_OF_LIBGOMP = "300000"  # its own default
BUSY = 1.5  # load per core above which other programs slow Prunus down, whose own load is about 1


def load() -> float | None:
    """Load average of the last minute: how many programs wanted to run at once; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def busy(now: float | None, cores: int | None) -> str:
    """`load 5.3 on 2 cores` if other programs use much of the machine; else empty. now: the result of `load`."""
    return f"load {now:.1f} on {cores} cores" if now and cores and now > BUSY * cores else ""


def of_programs() -> dict[str, str]:
    """The environment for a program that Prunus starts, with libgomp's own spin count in place of that of Prunus."""
    is_our_setting = os.environ.get("GOMP_SPINCOUNT") == SPINS
    return {**os.environ, **({"GOMP_SPINCOUNT": SPINS_OF_LIBGOMP} if is_our_setting else {})}
