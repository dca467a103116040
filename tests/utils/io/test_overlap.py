"""Reading ahead keeps order and bounds; writing behind loses no error."""

from __future__ import annotations

import threading
import time

import pytest

from utils.io.files import WriteBehind, read_ahead


def test_results_come_in_order_whoever_is_first():
    def slow_at_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert list(read_ahead(slow_at_first, range(20), 3, 5)) == [i * i for i in range(20)]


def test_no_more_than_the_bound_is_read_before_it_is_taken():
    begun = []
    results = read_ahead(lambda item: begun.append(item) or item, range(100), 2, 4)
    for taken in range(10):
        assert next(results) == taken
        time.sleep(0.01)
        assert len(begun) <= taken + 1 + 4
    results.close()


def test_what_is_read_ahead_holds_no_more_than_the_bound_whatever_comes_first():
    sizes, begun = [1, 60, 60, 30, 250, 10], []
    results = read_ahead(lambda i: begun.append(i) or i, range(6), 2, 9, sizes.__getitem__, 100)
    for taken in range(6):
        assert next(results) == taken
        time.sleep(0.01)
        ahead = [sizes[item] for item in begun if item > taken]
        assert sum(ahead) <= 100 or ahead == [250]
    assert sorted(begun) == list(range(6))


def test_an_error_comes_where_its_item_would():
    def odd_one(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = read_ahead(odd_one, range(9), 2, 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_all_jobs_are_done_when_the_block_ends():
    done = []
    with WriteBehind(2, 3, 100) as writer:
        for item in range(20):
            writer.submit(lambda item=item: done.append(item), 1)
    assert sorted(done) == list(range(20))


def test_jobs_that_wait_hold_no_more_than_the_bound_and_a_larger_one_waits_alone():
    sizes, held, most, lock = [40, 40, 30, 250, 10, 90, 5, 5, 100], [0], [], threading.Lock()

    def write(size: int) -> None:
        time.sleep(0.005)
        with lock:
            held[0] -= size

    with WriteBehind(2, 50, 100) as writer:
        for size in sizes:
            writer.submit(lambda size=size: write(size), size)
            with lock:
                held[0] += size
                most.append((held[0], size))
    assert all(now <= 100 or now == size == 250 for now, size in most)
    assert any(now > size for now, size in most), "more than one may wait"


def test_the_first_error_is_raised_by_the_next_submission():
    done, gate = [], threading.Event()

    def fail() -> None:
        gate.wait()
        raise OSError("full")

    def write_all() -> None:
        with WriteBehind(1, 2, 100) as writer:
            writer.submit(fail, 1)
            writer.submit(lambda: done.append(1), 1)
            gate.set()
            for _ in range(50):
                writer.submit(lambda: done.append(1), 1)

    with pytest.raises(OSError, match="full"):
        write_all()
    assert len(done) < 50


def test_jobs_submitted_before_an_error_within_the_block_are_done():
    done, gate = [], threading.Event()

    def write_some() -> None:
        with WriteBehind(1, 9, 100) as writer:
            writer.submit(gate.wait, 1)
            writer.submit(lambda: done.append(1), 1)
            threading.Timer(0.1, gate.set).start()
            raise ValueError("the next input is damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_some()
    assert done == [1]


def test_an_error_within_the_block_is_not_hidden_by_one_of_a_job():
    def fail() -> None:
        raise OSError("full")

    def write_and_stop() -> None:
        with WriteBehind(1, 2, 100) as writer:
            writer.submit(fail, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
