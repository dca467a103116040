"""Devices: what a script asks of the C library, and that picking a device asks for nothing."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from utils.device import pick_device, pick_dtype

TENSORS = 3 * 31 * 2**20  # bytes, in three blocks that are each below the library's limit
GIVEN_BACK = """
import resource
import torch
from utils.cli import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def given_back():
    tensors = [torch.ones(31 * 2**18) for _ in range(3)]
    before = resident()
    tensors.clear()
    return before - resident()

print(given_back())
assert keep_freed_memory()
print(given_back())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_tensor_instead_of_given_back():
    command = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 0.9 * TENSORS
    assert after < 0.1 * TENSORS


def test_picking_a_device_and_a_dtype_changes_nothing_of_the_process(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("the C library was asked"))
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()
    device = pick_device("cpu")
    assert pick_dtype("auto", device) in (torch.float32, torch.bfloat16)
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()) == before
