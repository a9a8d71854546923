import threading
import time

import pytest

from fakereal.runtime import parallel_map


def test_results_come_in_the_order_of_the_items_however_many_there_are():
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 * (number < 3))
        return number * number

    items = range(1000)
    assert list(parallel_map(slow_at_first, items, "squares")) == [number * number for number in items]
    assert list(parallel_map(slow_at_first, [], "nothing")) == []


def test_an_error_is_raised_at_its_items_turn():
    results = parallel_map(lambda number: 1 // (2 - number), range(9), "dividing")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_caller_that_stops_waits_only_for_the_calls_that_have_begun():
    begun, go = [], threading.Event()

    def wait(number: int) -> None:
        begun.append(number)
        if number:
            go.wait(10)

    results = parallel_map(wait, range(200), "waiting")
    next(results)
    threading.Timer(0.2, go.set).start()
    results.close()
    assert len(begun) < 100
