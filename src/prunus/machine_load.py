"""What Prunus and other programs have of this machine: how busy it is, and what programs inherit that Prunus starts."""

import os

SPINS = "1000"  # GOMP_SPINCOUNT of Prunus itself: about 50 microseconds
SPINS_OF_LIBGOMP = "300000"  # its own default
BUSY = 1.5  # programs that want to run, for each core; Prunus itself wants about 1


def load() -> float | None:
    """How many programs wanted to run at once, on average over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def busy(now: float | None, cores: int | None) -> str:
    """`load 5.3 on 2 cores` where others than Prunus have much of the machine; empty elsewhere. now: as `load`."""
    return f"load {now:.1f} on {cores} cores" if now and cores and now > BUSY * cores else ""


def of_programs() -> dict[str, str]:
    """The environment of a program that Prunus starts, whose waiting threads spin as long as without Prunus."""
    is_our_setting = os.environ.get("GOMP_SPINCOUNT") == SPINS
    return {**os.environ, **({"GOMP_SPINCOUNT": SPINS_OF_LIBGOMP} if is_our_setting else {})}
