"""Images shared among threads: in order, each as it would be alone, and no more than allowed."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from models import parallel
from models.cpu_kernels import padded_groups
from models.parallel import cpu_quota, one_thread, parallel_map, threads, workers

CPU = torch.device("cpu")


@pytest.fixture
def three_workers(monkeypatch):
    monkeypatch.setattr(parallel, "workers", lambda: 3)


@pytest.mark.usefixtures("three_workers")
def test_results_come_in_order_from_several_threads():
    barrier = threading.Barrier(3, timeout=10)

    def work(part: int) -> tuple[int, str, int]:
        barrier.wait()  # passes only when three threads are at work
        return 2 * part, threading.current_thread().name, torch.get_num_threads()

    found = parallel_map(work, range(3), CPU)
    assert [number for number, _, _ in found] == [0, 2, 4]
    assert len({name for _, name, _ in found}) == 3
    assert {threads for _, _, threads in found} == {1}


@pytest.mark.usefixtures("three_workers")
def test_threads_compute_as_their_caller_would():
    def work(_: int) -> tuple[bool, bool, torch.dtype]:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled(), product.dtype

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert set(parallel_map(work, range(3), CPU)) == {(True, False, torch.bfloat16)}
    with torch.no_grad():
        assert set(parallel_map(work, range(3), CPU)) == {(False, False, torch.float32)}
    assert set(parallel_map(work, range(3), CPU)) == {(False, True, torch.float32)}


@pytest.mark.usefixtures("three_workers")
def test_an_error_of_a_part_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda part: 1 / part, [1, 0, 1], CPU)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.usefixtures("three_workers")
def test_a_forked_process_starts_threads_of_its_own():
    barrier = threading.Barrier(3, timeout=10)
    parallel_map(lambda _: barrier.wait(), range(3), CPU)  # so that all threads have started
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends a child that waits for its parent's threads
        os._exit(parallel_map(abs, [-1, 2, -3], CPU) != [1, 2, 3])
    assert os.waitpid(child, 0)[1] == 0


def test_a_gpu_computes_its_parts_in_the_callers_thread():
    names = parallel_map(
        lambda _: threading.current_thread().name, range(3), torch.device("cuda", 0)
    )
    assert set(names) == {threading.current_thread().name}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_logit_depends_on_the_number_of_workers(maskgit, monkeypatch, count):
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, 16, (7, 16), generator=generator)
    hidden = torch.rand(7, 16, generator=generator) < 0.5
    pairs = zip(token_ids.split(1), hidden.split(1), strict=True)
    alone = torch.cat([maskgit.logits_of(*pair) for pair in pairs])
    monkeypatch.setattr(parallel, "workers", lambda: count)
    assert torch.equal(maskgit.logits_of(token_ids, hidden), alone)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000\n", 2), ("150000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", None)],
)
def test_the_quota_of_a_control_group_is_whole_cores(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max") == cores
    assert cpu_quota(tmp_path / "none") is None


def test_workers_are_pytorchs_threads_within_the_quota(monkeypatch, tmp_path):
    count = workers.__wrapped__
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(parallel, "QUOTA", tmp_path / "none")
    assert count() == 8
    (tmp_path / "cpu.max").write_text("300000 100000")
    monkeypatch.setattr(parallel, "QUOTA", tmp_path / "cpu.max")
    assert count() == 3


def test_operations_stay_in_one_thread_for_as_long_as_asked():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_blas_has_its_threads_again_when_the_last_of_several_threads_leaves(monkeypatch):
    blas = [8]

    def limits(count: int, user_api: str) -> SimpleNamespace:
        before, blas[0] = blas[0], count
        return SimpleNamespace(restore_original_limits=lambda: blas.__setitem__(0, before))

    monkeypatch.setattr(parallel, "threadpool_limits", limits)
    first, second = one_thread(), one_thread()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert blas == [1], "the second thread still works"
        other.submit(second.__exit__, None, None, None).result()
    assert blas == [8]


def test_a_block_within_its_like_costs_nothing_but_others_hold_until_they_end(monkeypatch):
    limited, before, counts = [], torch.get_num_threads(), []

    def limits(count: int, user_api: str) -> SimpleNamespace:
        limited.append(count)
        return SimpleNamespace(restore_original_limits=int)

    monkeypatch.setattr(parallel, "threadpool_limits", limits)
    with threads(1):
        for inner in (1, 2, 1):
            with threads(inner), threads(1):
                counts.append(torch.get_num_threads())
            counts.append(torch.get_num_threads())
    assert counts == [1] * 6
    assert limited == [1, 2, 1]
    assert torch.get_num_threads() == before


def test_only_narrow_networks_under_autocast_take_several_images_at_once():
    def sizes(width: int) -> list[int]:
        return [len(group) for group in padded_groups(torch.ones(5, 2), width)]

    assert sizes(256) == [1] * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sizes(256) == [4, 4], "the second is zero-padded"
        assert sizes(512) == [1] * 5
