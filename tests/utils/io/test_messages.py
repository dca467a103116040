"""What the machine lacks is not taken for what is wrong with a file."""

from __future__ import annotations

import errno
import io
import os
import zipfile

import pytest
import torch
from fid.files import of_the_machine

from config.errors import MachineError
from utils.io.messages import error_number, is_out_of_memory, line_about, raise_if_machine


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number), "file")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        system(errno.ENOMEM),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"),
        OSError("Cannot allocate memory (os error 12)"),
        OSError("out of memory error when reading image file"),  # Pillow
    ],
)
def test_memory_that_ran_out_is_known_however_it_is_said(error):
    assert is_out_of_memory(error)
    with pytest.raises(MachineError, match="^out of memory while reading a.pt, which stays"):
        raise_if_machine(error, "a.pt")


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shape"), KeyError(1)])
def test_other_errors_are_not_for_want_of_memory(error):
    assert not is_out_of_memory(error)
    raise_if_machine(error, "a.pt")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_what_the_system_says_is_no_word_about_the_file(number):
    with pytest.raises(MachineError, match=f"a.pt: cannot be read: {os.strerror(number)}; it st"):
        raise_if_machine(system(number), "a.pt")


def test_what_a_reader_says_of_a_broken_file_is_about_the_file():
    raise_if_machine(OSError("image file is truncated"), "a.png")
    raise_if_machine(system(errno.EINVAL), "a.zip")  # a place before the file's beginning


def test_numbers_of_the_system_are_found_where_they_are_only_said():
    # safetensors is written in Rust, whose errors come without errno
    assert error_number(OSError("Input/output error (os error 5)")) == errno.EIO
    assert error_number(RuntimeError("can't start new thread")) == errno.EAGAIN
    assert error_number(OSError("image file is truncated")) is None
    assert error_number(ValueError("(os error 5)")) is None


class CompilerError(RuntimeError):
    """torch.compile's, which holds what ended it."""

    def __init__(self, text: str) -> None:
        self.inner_exception = RuntimeError(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[Errno 28] No space left on device", "[Errno 28] No space left on device"),
        ("No working C++ compiler found\n", "No working C++ compiler found"),
        (
            "C++ compile error\n\nOutput:\na.h:9:1: fatal error: Python.h: No file\n"
            "compilation terminated.",
            "a.h:9:1: fatal error: Python.h: No file",
        ),
        (
            "An exception occurred in a subprocess:\n\nTraceback (most recent call last):\n"
            "PermissionError: [Errno 13] Permission denied: '/a'\n",
            "PermissionError: [Errno 13] Permission denied: '/a'",
        ),
    ],
)
def test_networks_that_cannot_be_compiled_are_one_line_with_the_compilers_reason(text, reason):
    needs = "it needs a C++ compiler and a writable TORCHINDUCTOR_CACHE_DIR, or set compile=false"
    assert line_about(CompilerError(text)) == f"torch.compile failed: {reason}; {needs}"


class Unreadable(io.BytesIO):
    """A file on a disk that does not answer."""

    def read(self, _size: int = -1) -> bytes:
        raise system(errno.EIO)


def test_a_disk_that_does_not_answer_is_no_damaged_zip():
    with pytest.raises(zipfile.BadZipFile) as taken_for:
        zipfile.ZipFile(Unreadable(bytes(100)))
    with pytest.raises(MachineError, match="a.pt: cannot be read: Input/output error; it stays"):
        raise_if_machine(taken_for.value, "a.pt")
    assert of_the_machine(taken_for.value) == "file: Input/output error"
    with pytest.raises(zipfile.BadZipFile) as damaged:
        zipfile.ZipFile(io.BytesIO(bytes(100)))
    raise_if_machine(damaged.value, "a.pt")
