"""A thread that works ahead: in order, so far and no further, and its errors come where their item does."""

import threading
from contextlib import closing

import pytest

from prunus.disk import prefetch


@pytest.mark.parametrize("most", [1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order_and_the_thread_is_only_so_far_ahead(most, count):
    begun = []
    results = prefetch(lambda item: begun.append(item) or item * item, range(count), most)
    for index, result in enumerate(results):
        assert result == index * index
        assert len(begun) <= index + 1 + most
    assert begun == list(range(count))


def test_the_next_item_is_worked_on_while_the_caller_has_the_last():
    reached = threading.Event()
    for item in prefetch(lambda item: reached.set() if item == 1 else None, [0, 1]):
        assert item is None
        assert reached.wait(10)


def test_an_error_comes_where_its_item_does():
    results = prefetch(lambda item: 1 // item, [2, 1, 0, 1], 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_closed_one_leaves_the_rest_undone():
    begun = []
    go = threading.Event()

    def work(item):
        begun.append(item)
        if item:
            go.wait(10)

    with closing(prefetch(work, range(100), 50)) as results:
        next(results)
        go.set()
    assert len(begun) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
