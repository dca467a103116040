"""Every script, and everything that may happen to it in the middle of its work.

Each script runs in a child of this process that waits at one place (disturbed.py); there the fault
happens, then the child goes on. Afterwards the same command, with --resume where the script has it,
must leave the very bytes of a run in which nothing happened. `make faults` writes the outcomes into
docs/faults.md.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from disturbed import Child, fill_up, mounted, read_only
from fault_case import INPAINT, PREPARE, SCORE, SWEEP, TOKENIZER, TRANSFORMER
from fault_table import TABLE, WRITE, Cells, cells_in, write_matrix

import utils.search.search
import utils.search.storage
from utils.io.files import read_rows
from utils.io.images import load_rgb

pytestmark = pytest.mark.usefixtures("quick")

NEVER = 10**9  # a call that does not come
DISK, SMALL = 300, "size=16m"  # bytes of a file, or size of the disk, where one is nearly full
SAME = "the same"  # what a rerun leaves
OWN_TOKENIZER = "--run disk --tokenizer run/tokenizer/vqgan.safetensors"
STAGE_2 = f"{TRANSFORMER} {OWN_TOKENIZER} --set training.epochs=3"
SCORED = SCORE.replace("--no-cache", "--cache-dir disk/cache")
PICTURE = "utils.data.augment:load_rgb"
JOB_PICTURE = "utils.data.datasets:load_rgb"


@dataclass(frozen=True)
class Script:
    """A script that writes into the folder disk/, and where it is disturbed."""

    command: str
    place: str
    """A function that is called again and again (disturbed.py)."""
    results: tuple[str, ...]
    """Patterns of the files that must come out as if nothing had happened."""
    reads: tuple[str, str] = (PICTURE, "data/train/image_7.png")
    """The function that reads the first picture, and one that it will come to."""
    damages: tuple[str, ...] = ()
    """Patterns of files of which only a half is left before a rerun."""
    again: str = ""
    """Added to the command when it runs again."""
    saves: bool = False
    """Whether Ctrl-C and SIGTERM make it save its state."""
    locks: bool = False
    """Whether it refuses to work beside another process in its folder."""
    without: dict[str, str] = field(default_factory=dict)
    """Faults that cannot happen to it, and why."""


SCRIPTS = {
    "stage 1": Script(
        f"{TOKENIZER} --run disk --set tokenizer.training.epochs=3",
        "utils.training.tokenizer_step:TokenizerTrainer.step",
        ("disk/tokenizer/vqgan.safetensors",),
        damages=("disk/tokenizer/state.pt",),
        again="--resume",
        saves=True,
        locks=True,
        without={"a worker process dies": "it works in one process"},
    ),
    "stage 2": Script(
        STAGE_2,
        "utils.training.transformer_step:TransformerTrainer.take_step",
        ("disk/transformer/transformer.safetensors",),
        damages=("disk/transformer/state.pt", "data/token_cache/*"),
        again="--resume",
        saves=True,
        without={"a worker process dies": "it works in one process"},
        locks=True,
    ),
    "search": Script(
        f"{TRANSFORMER} {OWN_TOKENIZER} --lr-search 3 --set search.epochs=1 --set search.seeds=0",
        "utils.training.transformer_step:TransformerTrainer.take_step",
        ("disk/transformer/transformer.safetensors",),
        damages=("disk/search/study.db",),
        again="--resume=auto",
    ),
    "inpainting": Script(
        f"{INPAINT.replace('--output out', '--output disk')} --batch-size 1",
        "utils.inpainting.inpainter:Inpainter.decode",
        ("disk/*/*.png",),
        reads=(JOB_PICTURE, "job/masked_image/image_2.png"),
        damages=("disk/*/*_1.png", "disk/*/*_001.png", "disk/test_results/manifest.json"),
        locks=True,
    ),
    "sweep": Script(
        SWEEP.replace("--output out", "--output disk"),
        "utils.sweep.decode:CellDecoder.score",
        ("disk/cells-*.jsonl", "disk/traces/*", "disk/schedules/table.tex"),
        reads=(JOB_PICTURE, "job/masked_image/image_2.png"),
        damages=("disk/cells-0.jsonl", "disk/traces/*", "disk/pictures/*", "disk/schedules/*"),
        locks=True,
    ),
    "scorer": Script(
        f"{SCORED} --json disk/score.json",
        "fid.images:FolderImages.stored_bytes",
        ("disk/score.json",),
        reads=("fid.images:FolderImages.stored_bytes", "results/image_7.png"),
        damages=("disk/score.json", "disk/cache/*"),
        without={"a worker process dies": "its workers are threads"},
    ),
    "prepare_data": Script(
        PREPARE.replace("--out prepared", "--out disk/set"),
        "utils.data.prepare:encode_png",
        ("disk/set/**/*",),
        reads=("utils.data.sources:check_limit", "pictures/image_7.png"),
        damages=("disk/set/dataset.json", "disk/set/*/image_*1.png"),
        without={"a worker process dies": "its workers are threads"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A script in its workspace, which is the current folder."""

    name: str
    shell: Callable
    whole: Path
    """A workspace in which the script has run undisturbed."""

    @property
    def script(self) -> Script:
        return SCRIPTS[self.name]

    def waiting(self, command: str = "", prepare: Callable[[], object] = int) -> Child:
        """The script in a child, at the third visit of its place."""
        command = command or self.script.command
        return Child(command, self.script.place, 3, prepare).reaches_its_place()

    def ends_well(self, more: str) -> None:
        """Run the script again: it must leave what an undisturbed one leaves."""
        said = self.shell(f"{self.script.command} {more}")
        assert said.code == 0, said
        assert found(self.script, Path()) == found(self.script, self.whole)


def found(script: Script, folder: Path) -> dict[str, object]:
    """The result files of a script and what they hold; without dates and seconds."""
    files = [p for pattern in script.results for p in sorted(folder.glob(pattern)) if p.is_file()]
    assert files
    content: dict[str, object] = {str(p.relative_to(folder)): p.read_bytes() for p in files}
    for name in content.keys() & {"disk/score.json"}:
        content[name] = {**json.loads(content[name]), "date": None}
    cells = [content.pop(name) and folder / name for name in sorted(content) if "cells-" in name]
    rows = [row for path in cells for row in read_rows(path)]  # whichever process wrote them
    return content | {"cells": {row["key"]: {**row, "seconds": None} for row in rows}}


def one_line(said: str, code: int) -> str:
    """The line of a refusal: the only one that is an error, and the last one."""
    assert code == 2, said
    assert "Traceback" not in said
    last = said.rstrip("\n").replace("\r", "\n").rpartition("\n")[2]
    assert last.startswith("error: "), said
    return last


def only_whole_files() -> None:
    """No part of a file is left, and every picture can be read."""
    assert not [p for p in Path().rglob(".*") if p.suffix in (".tmp", ".partial", ".old")]
    for path in Path().rglob("*.png"):
        load_rgb(path)


# The faults: each lets one happen, checks what the script says, and that a rerun ends well


def is_killed(bench: Bench) -> str:
    code, _ = bench.waiting().dies().ends()
    assert code == -signal.SIGKILL
    bench.ends_well(bench.script.again)
    if bench.script.saves:
        (log,) = Path("disk").glob("*/log.jsonl")
        assert [row["epoch"] for row in read_rows(log)] == [1, 2, 3]
    return f"killed; {SAME}"


def _is_told_to_stop(bench: Bench, number: int) -> str:
    code, said = bench.waiting().dies(number).ends()
    assert code == 130, said
    assert "Traceback" not in said
    if bench.script.saves:
        assert said.rstrip().endswith("saved; continue with --resume")
    only_whole_files()
    bench.ends_well(bench.script.again)
    return f"code 130; {SAME}"


def is_terminated(bench: Bench) -> str:
    return _is_told_to_stop(bench, signal.SIGTERM)


def is_interrupted(bench: Bench) -> str:
    return _is_told_to_stop(bench, signal.SIGINT)


def loses_its_terminal(bench: Bench) -> str:
    return _is_told_to_stop(bench, signal.SIGHUP)


def is_out_of_time(bench: Bench) -> str:
    """Of a processor, as a batch system limits it; others warn by SIGUSR1 or SIGUSR2."""
    return _is_told_to_stop(bench, signal.SIGXCPU)


def loses_its_reader(bench: Bench) -> str:
    code, _ = bench.waiting().loses_its_reader().ends()
    assert code in (0, 141), code
    only_whole_files()
    bench.ends_well(bench.script.again)
    return f"code {code}; {SAME}"


def finds_the_disk_full(bench: Bench) -> str:
    """On a disk of its own that fills up; without mount rights, where files may have 300 bytes."""
    with mounted(Path("disk"), SMALL) as has_disk:
        if has_disk:
            child = bench.waiting()
            filler = fill_up(Path("disk"))
            code, said = child.ends()
            filler.unlink()
        else:
            limit = (resource.RLIMIT_FSIZE, (DISK, DISK))
            prepare = lambda: resource.setrlimit(*limit)  # noqa: E731
            code, said = Child(bench.script.command, bench.script.place, NEVER, prepare).ends()
        line = one_line(said, code)
        assert any(t in line for t in ("No space left", "disk is full", "too large", "written"))
        only_whole_files()
        bench.ends_well(bench.script.again)
    return f"code 2; {SAME}"


def may_not_write(bench: Bench) -> str:
    with read_only(Path("disk")):
        said = bench.shell(bench.script.command)
        assert "disk" in one_line(said.err, said.code)
    bench.ends_well("")
    return f"code 2; {SAME}"


def misses_a_file(bench: Bench) -> str:
    place, file = bench.script.reads
    child = Child(bench.script.command, place, 1).reaches_its_place()
    Path(file).rename("elsewhere.png")
    code, said = child.ends()
    line = one_line(said, code)
    assert Path(file).name in line or "11 files, 10 read" in line
    Path("elsewhere.png").rename(file)
    bench.ends_well(bench.script.again)
    return f"code 2; {SAME}"


def loses_a_worker(bench: Bench) -> str:
    said = LOSSES[bench.name](bench)
    bench.ends_well(bench.script.again)
    return f"{said}; {SAME}"


def _other_searcher(bench: Bench) -> str:
    """One of two processes that share a study: the other one takes over its trial."""
    command = f"{bench.script.command} {bench.script.again}"
    first, second = bench.waiting(command), bench.waiting(command)
    assert first.dies().ends()[0] == -signal.SIGKILL
    code, said = second.ends()
    assert code == 0, said
    return "the other takes over"


def _process_of_two(rank: int, port: int = 0) -> Callable[[], None]:
    """What torchrun tells the processes that it starts."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    told = {name: str(value) for name, value in names.items()}
    return lambda: os.environ.update(told, MASTER_ADDR="127.0.0.1")


def _rank(bench: Bench) -> str:
    """One of two processes that share the images; the other one does its own share."""
    place = bench.script.place
    first = Child(bench.script.command, place, 1, _process_of_two(1)).reaches_its_place()
    assert first.dies().ends()[0] == -signal.SIGKILL
    code, said = Child(bench.script.command, place, NEVER, _process_of_two(0)).ends()
    assert code == 0, said
    return "the other ends"


def _rank_of_group(bench: Bench) -> str:
    """One of two processes that wait for each other."""
    with socket.create_server(("127.0.0.1", 0)) as found_free:
        port = found_free.getsockname()[1]
    command, place = bench.script.command, bench.script.place
    other = Child(command, place, 2, _process_of_two(1, port))
    main = Child(command, place, NEVER, _process_of_two(0, port))
    other.reaches_its_place().dies().ends()
    code, said = main.ends()
    assert "another process of this run died" in one_line(said, code)
    return "code 2"


LOSSES = {
    "search": _other_searcher,
    "inpainting": _rank,
    "sweep": _rank_of_group,
}


def has_company(bench: Bench) -> str:
    """Two runs in one folder: refused where they would write the same files, else one result."""
    if bench.name == "search":
        command = f"{bench.script.command} {bench.script.again}"
        both = bench.waiting(command), bench.waiting(command)
        codes = [child.ends()[0] for child in [child.goes_on() for child in both]]
        assert 0 in codes  # the other one may find the folder of the last training taken
        assert set(codes) <= {0, 2}
        bench.ends_well(bench.script.again)
        return f"shared; {SAME}"
    child = bench.waiting()
    second = bench.shell(bench.script.command)
    if bench.script.locks:
        assert "another process is at work in this folder" in one_line(second.err, second.code)
    else:
        assert second.code == 0
    code, said = child.ends()
    assert code == 0, said
    assert found(bench.script, Path()) == found(bench.script, bench.whole)
    assert not list(Path().glob("disk/.set*"))
    return f"{'second: code 2' if bench.script.locks else 'both end'}; {SAME}"


def sees_the_clock_go_back(bench: Bench) -> str:
    """By an hour at every look; and every file is dated tomorrow."""
    bench.waiting().dies().ends()
    tomorrow = now = time.time() + 86400
    for path in filter(Path.is_file, Path().rglob("*")):
        os.utime(path, (tomorrow, tomorrow))

    def back() -> float:
        nonlocal now
        now -= 3600
        return now

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", back)
        bench.ends_well(bench.script.again)
    return SAME


def finds_its_files_damaged(bench: Bench) -> str:
    """Half of each is left; what cannot be made again is refused until it is taken away."""
    for name in ("disk", "data"):
        shutil.copytree(bench.whole / name, name, dirs_exist_ok=True)
    damaged = [path for pattern in bench.script.damages for path in Path().glob(pattern)]
    for path in filter(Path.is_file, damaged):
        os.truncate(path, path.stat().st_size // 2)
    assert len(damaged) >= len(bench.script.damages)
    if bench.name not in MENDED:
        bench.ends_well(bench.script.again)
        return f"made again; {SAME}"
    how, place, more = MENDED[bench.name]
    said = bench.shell(f"{bench.script.command} {bench.script.again}")
    assert place in one_line(said.err, said.code)
    if not more:
        Path(place).unlink()
    bench.ends_well(more or bench.script.again)
    return f"code 2; {how}, {SAME}"


MENDED = {  # what is refused until the user decides: how, the file or folder that is named, option
    "search": ("once deleted", "disk/search/study.db", ""),
    "prepare_data": ("with --force", "disk/set", "--force"),
}
FAULTS = {
    "SIGKILL": is_killed,
    "SIGTERM": is_terminated,
    "Ctrl-C": is_interrupted,
    "SIGHUP": loses_its_terminal,
    "SIGXCPU": is_out_of_time,
    "its reader leaves": loses_its_reader,
    "the disk fills up": finds_the_disk_full,
    "a read-only folder": may_not_write,
    "a picture vanishes": misses_a_file,
    "a worker process dies": loses_a_worker,
    "two runs in one folder": has_company,
    "the clock goes back": sees_the_clock_go_back,
    "half a file is left": finds_its_files_damaged,
}
SIGNALS = ("SIGTERM", "Ctrl-C", "SIGHUP", "SIGXCPU")
COMMON = ("its reader leaves", "a read-only folder", "a picture vanishes", "the clock goes back")
LONG = {  # slow scripts, and what happens to them as to the quick ones; left to make test-long
    "stage 1": (*COMMON, "two runs in one folder"),
    "search": (*COMMON, "a worker process dies", "SIGHUP"),
    "sweep": COMMON,
}


@pytest.fixture(scope="module")
def cells() -> Cells:
    """What happened to each script under each fault."""
    return {}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Path]:
    """Workspaces in which a script has run to its end; each runs once."""
    return {}


@pytest.fixture
def bench(request, workspace, shell, undisturbed, tmp_path_factory, monkeypatch) -> Bench:
    """A fresh workspace for a script."""
    monkeypatch.setattr(utils.search.storage, "HEARTBEAT", 1)
    monkeypatch.setattr(utils.search.storage, "GRACE", 3)
    monkeypatch.setattr(utils.search.search, "POLL", 0.1)
    name = request.param
    if name not in undisturbed:
        folder = tmp_path_factory.mktemp("undisturbed") / "workspace"
        shutil.copytree(workspace, folder, symlinks=True)
        os.chdir(folder)
        assert shell(SCRIPTS[name].command).code == 0
        undisturbed[name] = folder
        os.chdir(workspace)
    return Bench(name, shell, undisturbed[name])


def cell(number: int, name: str, fault: str) -> object:
    """A script and a fault; of the signals, which all stop a script alike, one for each script."""
    is_other_signal = fault in SIGNALS and SIGNALS.index(fault) != number % len(SIGNALS)
    is_long = is_other_signal or fault in LONG.get(name, ())
    return pytest.param(name, fault, marks=[pytest.mark.long] if is_long else [])


@pytest.mark.parametrize(
    ("bench", "fault"),
    [cell(number, name, fault) for number, name in enumerate(SCRIPTS) for fault in FAULTS],
    indirect=["bench"],
)
def test_a_script_in_the_middle_of_its_work(bench, fault, cells):
    reason = bench.script.without.get(fault)
    cells[fault, bench.name] = f"cannot happen: {reason}" if reason else FAULTS[fault](bench)


def test_the_committed_matrix_names_exactly_the_cells(cells):
    if os.environ.get(WRITE):
        write_matrix(TABLE, list(FAULTS), list(SCRIPTS), cells)
    assert cells_in(TABLE) == (list(FAULTS), list(SCRIPTS))
