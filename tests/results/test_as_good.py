"""With how much thinking the base is as good as a variant: where its curve has the variant's accuracy, and between."""

import math

import pytest
from fake_store import make_store

import prunus
from prunus.results.as_good import crossing

BUDGETS = (0, 16, 64, 256, 1024)


def reached(budgets: list[int], curve: list[float], accuracy: float) -> float | None:
    """The crossing by small steps along log2 of the budget."""
    if accuracy < curve[0]:
        return None
    highest = 0.0
    for step in range(100_000):
        at = math.log2(budgets[0]) + step / 100_000 * math.log2(budgets[-1] / budgets[0])
        place = max(k for k, budget in enumerate(budgets[:-1]) if math.log2(budget) <= at + 1e-12)
        left, right = math.log2(budgets[place]), math.log2(budgets[place + 1])
        so_far = [max(curve[: k + 1]) for k in (place, place + 1)]
        highest = so_far[0] + (at - left) / (right - left) * (so_far[1] - so_far[0])
        if highest > accuracy:
            return 2**at
    return float(budgets[-1])


@pytest.mark.parametrize("accuracy", [0.05, 0.1, 0.2, 0.45, 0.5, 0.7, 0.9])
def test_the_estimate_is_where_the_curve_has_the_accuracy(accuracy):
    budgets, curve = [16, 64, 256, 1024], [0.1, 0.5, 0.4, 0.8]  # which falls once
    wanted = reached(budgets, curve, accuracy)
    assert crossing(budgets, curve, accuracy) == (wanted if wanted is None else pytest.approx(wanted, rel=1e-3))


@pytest.mark.slow
def test_it_is_the_exchange_with_the_roles_of_base_and_variant_exchanged(tmp_path):
    store = make_store(tmp_path / "a.db", names=("tiny", "wanda-20", "drop-1"), problems=84, budgets=BUDGETS)
    compared, found = prunus.compare(store, resamples=100), {}
    for name in ("wanda-20", "drop-1"):
        entry = compared[name]
        (of_base,) = [run for run in prunus.efforts(store, base=entry.run).runs if run.run == compared.base.run]
        assert of_base.exchange and entry.as_good
        exchange = next(at for at in of_base.exchange.as_right if at.base_budget == max(BUDGETS))
        low, high, estimate = entry.as_good.low, entry.as_good.high, entry.as_good.estimate
        assert (entry.as_good.largest, low, high) == (1024, exchange.above, exchange.below)
        assert low and estimate and low < estimate < (high or 1025)
        found[name] = estimate, high
    assert found["drop-1"][0] < found["wanda-20"][0] and found["drop-1"][1] is not None


def test_it_is_not_known_with_a_single_budget(tmp_path):
    store = make_store(tmp_path / "a.db", names=("tiny", "drop-1"), problems=21, budgets=(0, 64))
    assert prunus.compare(store, resamples=100)["drop-1"].as_good is None
