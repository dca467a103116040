"""Scripts that are killed, stopped or robbed of their disk and files in the middle of their work.

Each script runs in a child of this process that is stopped at one place; there the fault happens,
then the child goes on. Afterwards the same command, with --resume where the script has it, must
leave the very bytes of a run in which nothing happened.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_case import INPAINT, PREPARE, SCORE, TOKENIZER, TRANSFORMER
from fault_files import encoded, mask, pixels

from utils.images import load_rgb
from utils.runlog import read_rows

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for a child to reach its place or its end
NEVER = 10**9  # a call that does not come
DISK = 300  # bytes that a file may have on a disk that is nearly full
EPOCHS = "training.epochs=3"
Fault = Callable[[int, Path], None]  # child's number, workspace


@dataclass(frozen=True)
class Script:
    """A script, the place at which it is disturbed, and what it is for."""

    command: str
    place: str
    """module:object.attribute, a function that is called again and again."""
    results: tuple[str, ...]
    """Patterns of the files that must come out as if nothing had happened."""
    again: str = ""
    """Added to the command when it runs again."""
    saves: bool = False
    """Whether Ctrl-C and SIGTERM make it save its state."""


SCRIPTS = {
    "stage 1": Script(
        f"{TOKENIZER} --set tokenizer.{EPOCHS}",
        "utils.train_tokenizer:TokenizerTrainer.step",
        ("run/tokenizer/vqgan.safetensors",),
        "--resume",
        saves=True,
    ),
    "stage 2": Script(
        f"{TRANSFORMER} --set {EPOCHS}",
        "utils.transformer_trainer:TransformerTrainer.take_step",
        ("run/transformer/transformer.safetensors",),
        "--resume",
        saves=True,
    ),
    "search": Script(
        f"{TRANSFORMER} --lr-search 3 --set search.epochs=1",
        "utils.transformer_trainer:TransformerTrainer.take_step",
        ("run/transformer/transformer.safetensors",),
        "--resume=auto",
        saves=True,
    ),
    "inpainting": Script(
        f"{INPAINT} --batch-size 1",
        "utils.inpainter:Inpainter.decode",
        ("out/*/*.png",),
    ),
    "prepare_data": Script(PREPARE, "utils.prepare:encode_png", ("prepared/**/*",)),
    "scorer": Script(
        f"{SCORE} --json score.json",
        "fid_images:FolderImages.stored_bytes",
        ("score.json",),
    ),
}
EACH = pytest.mark.parametrize("name", SCRIPTS)


class Child:
    """A copy of this process that runs a command and waits at one place for what happens to it."""

    def __init__(self, command: str, place: str, call: int, prepare: Callable[[], None]) -> None:
        self.said, writing = os.pipe()
        self.number = os.fork()
        if self.number:
            os.close(writing)
            return
        for stream in (1, 2):
            os.dup2(writing, stream)
        sys.stdout = sys.stderr = os.fdopen(writing, "w", buffering=1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
        try:
            _wait_at(place, call)
            prepare()
            code = _run(command)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)

    def reaches_its_place(self) -> None:
        """Wait until the child waits."""
        deadline = time.monotonic() + PATIENCE
        while not Path("reached").exists():
            assert time.monotonic() < deadline, "the child never came to its place"
            assert os.waitpid(self.number, os.WNOHANG) == (0, 0), self.output()
            time.sleep(0.002)

    def ends(self) -> tuple[int, str]:
        """Let it go on; its exit code (negative: the signal that killed it) and what it said."""
        Path("go").touch()
        said = self.output()
        code = os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])
        Path("go").unlink()
        Path("reached").unlink(missing_ok=True)
        return code, said

    def output(self) -> str:
        """All that the child says until its end."""
        with os.fdopen(self.said, errors="replace") as file:
            return file.read()


def _wait_at(place: str, call: int) -> None:
    """Let the n-th call of a function say that it is reached, and wait for the file "go"."""
    module, _, path = place.partition(":")
    *owner, name = path.split(".")
    target = importlib.import_module(module)
    for part in owner:
        target = getattr(target, part)
    function, calls = getattr(target, name), []

    def waiting(*arguments: object, **options: object) -> object:
        calls.append(name)
        if len(calls) == call:
            Path("reached").touch()
            while not Path("go").exists():
                time.sleep(0.002)
        return function(*arguments, **options)

    setattr(target, name, waiting)


def _run(command: str) -> int:
    """Run a command line as a shell would; its exit code."""
    words = shlex.split(command)
    sys.argv = words
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as left:
        return left.code or 0
    return 0


@pytest.fixture
def results(workspace, shell, tmp_path_factory) -> Callable[[Script], dict[str, bytes]]:
    """What a script leaves where nothing happens; each is run once."""

    def undisturbed(script: Script) -> dict[str, bytes]:
        if script.command not in _UNDISTURBED:
            other = tmp_path_factory.mktemp("undisturbed") / "workspace"
            shutil.copytree(workspace, other, symlinks=True)
            os.chdir(other)
            assert shell(script.command).code == 0
            _UNDISTURBED[script.command] = found(script, other)
            os.chdir(workspace)
        return _UNDISTURBED[script.command]

    return undisturbed


_UNDISTURBED: dict[str, dict[str, bytes]] = {}


def found(script: Script, folder: Path) -> dict[str, bytes]:
    """The result files of a script and their bytes; of a certificate all but its date."""
    files = [p for pattern in script.results for p in sorted(folder.glob(pattern)) if p.is_file()]
    content = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    if "score.json" in content:
        certificate = json.loads(content["score.json"])
        content["score.json"] = json.dumps({**certificate, "date": None}).encode()
    return content


def disturb(
    script: Script, workspace: Path, fault: Fault, prepare: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Run a script in a child, let a fault happen at its third visit of the place."""
    child = Child(script.command, script.place, 3, prepare)
    child.reaches_its_place()
    fault(child.number, workspace)
    return child.ends()


def one_line(said: str, code: int) -> str:
    """The line of a refusal: the only one that is an error, and the last one."""
    assert code == 2, said
    assert "Traceback" not in said
    last = said.rstrip("\n").replace("\r", "\n").rpartition("\n")[2]
    assert last.startswith("error: "), said
    return last


@EACH
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_killed_or_stopped_ends_as_if_nothing_had_been(
    name, number, workspace, shell, results
):
    script = SCRIPTS[name]
    expected = results(script)
    code, said = disturb(script, workspace, lambda child, _: os.kill(child, number))
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130, said
        assert "Traceback" not in said
        if script.saves and name != "search":
            assert said.rstrip().endswith("saved; go on with --resume")
        assert not [p for p in workspace.rglob(".*") if p.suffix in (".tmp", ".partial", ".old")]
    again = shell(f"{script.command} {script.again}")
    assert again.code == 0, again
    assert found(script, workspace) == expected


@EACH
def test_a_disk_that_fills_up_is_one_line_and_costs_nothing(name, workspace, shell, results):
    script = SCRIPTS[name]
    expected = results(script)

    def nearly_full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, DISK))

    code, said = Child(script.command, script.place, NEVER, nearly_full).ends()
    line = one_line(said, code)
    assert "File too large" in line or "disk I/O error" in line or "cannot be written" in line
    for path in workspace.rglob("*.png"):
        load_rgb(path)  # whole
    assert not list(workspace.rglob("*.tmp"))
    again = shell(f"{script.command} {script.again.replace('--resume=auto', '')}")
    if again.code:  # a run whose first state was written before the disk was full
        again = shell(f"{script.command} --restart")
    assert again.code == 0, again
    assert found(script, workspace) == expected


@pytest.mark.parametrize("name", ["stage 2", "inpainting", "prepare_data", "scorer"])
def test_a_clock_that_goes_back_changes_no_result(name, workspace, shell, results, monkeypatch):
    script = SCRIPTS[name]
    expected = results(script)
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    said = shell(script.command)
    assert said.code == 0, said
    assert found(script, workspace) == expected


VANISHES = {  # script: file that is gone when the script comes to it
    "inpainting": "job/masked_image/image_2.png",
    "scorer": "results/image_7.png",
}


@pytest.mark.parametrize("name", VANISHES)
def test_a_file_that_vanishes_is_named(name, workspace, shell, results):
    script, file = SCRIPTS[name], VANISHES[name]
    if name == "inpainting":  # its files are read ahead
        for i in range(3, 200):
            (workspace / f"job/masked_image/image_{i}.png").write_bytes(encoded(pixels(i)))
            (workspace / f"job/mask64/mask_{i}.png").write_bytes(encoded(mask()))
        shutil.rmtree(workspace / "job/test")
        file = "job/masked_image/image_199.png"
    code, said = disturb(script, workspace, lambda _, folder: (folder / file).unlink())
    assert file in one_line(said, code)


def test_a_picture_that_vanishes_while_a_set_is_prepared_is_left_out(workspace, shell):
    script = SCRIPTS["prepare_data"]
    smaller = Script(script.command.replace("6 3 2", "3 2 1"), "utils.sources:load_rgb", ())

    def vanish(_child: int, folder: Path) -> None:
        for picture in list((folder / "pictures").iterdir())[:3]:
            picture.unlink()

    code, said = disturb(smaller, workspace, vanish)
    assert code == 0, said
    assert len(list(workspace.glob("prepared/train/*.png"))) == 3


def test_a_reader_that_dies_is_one_line(workspace):
    command = SCORE.replace("--num-workers 0", "--num-workers 2 --batch-size 1")
    main = []

    def deadly() -> None:
        import fid_images

        main.append(os.getpid())
        read = fid_images.FolderImages.stored_bytes

        def dying(self: object, index: int) -> bytes:
            if os.getpid() != main[0] and index == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(self, index)

        fid_images.FolderImages.stored_bytes = dying

    child = Child(command, "fid_scorer:Scorer.statistics", NEVER, deadly)
    code, said = child.ends()
    assert "a process that reads images died" in one_line(said, code)


@pytest.mark.parametrize("name", ["stage 1", "stage 2"])
def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(name, workspace, shell, results):
    script = SCRIPTS[name]
    expected = results(script)
    child = Child(script.command, script.place, 3, lambda: None)
    child.reaches_its_place()
    second = shell(script.command)
    assert second.code == 2
    assert "another process is at work in this folder" in second.last
    code, said = child.ends()
    assert code == 0, said
    assert found(script, workspace) == expected


def test_two_repairs_into_one_folder_leave_the_result_of_one(workspace, shell, results):
    script = SCRIPTS["inpainting"]
    expected = results(script)
    child = Child(script.command, script.place, 2, lambda: None)
    child.reaches_its_place()
    assert shell(script.command).code == 0
    code, said = child.ends()
    assert code == 0, said
    assert found(script, workspace) == expected
    manifest = json.loads((workspace / "out/test_results/manifest.json").read_text())
    assert len(manifest["images"]) == 3


def test_two_preparations_into_one_folder_leave_one_whole_set(workspace, shell, results):
    script = SCRIPTS["prepare_data"]
    expected = results(script)
    child = Child(script.command, script.place, 3, lambda: None)
    child.reaches_its_place()
    assert shell(script.command).code == 0
    code, said = child.ends()
    assert code == 0, said
    assert found(script, workspace) == expected
    assert not list(workspace.glob(".prepared*"))


@pytest.fixture
def read_only(workspace):
    """Make a folder that cannot be written to, even by root; skip where that cannot be done."""
    import subprocess

    folders: list[Path] = []

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(folder)]
        if os.geteuid():
            folder.chmod(0o500)
        elif not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
            pytest.skip("may not mount a file system")
        else:
            folders.append(folder)

    yield make
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


READ_ONLY = {
    "stage 1": (f"{TOKENIZER} --run locked", "locked"),
    "stage 2": (
        f"{TRANSFORMER} --run locked --tokenizer run/tokenizer/vqgan.safetensors",
        "locked",
    ),
    "search": (
        f"{TRANSFORMER} --lr-search --run locked --tokenizer run/tokenizer/vqgan.safetensors",
        "locked",
    ),
    "inpainting": (INPAINT.replace("--output out", "--output locked"), "locked"),
    "prepare_data": (PREPARE.replace("--out prepared", "--out locked/set"), "locked"),
    "scorer": (f"{SCORE} --json locked/score.json", "locked"),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_a_folder_that_cannot_be_written_to_is_named(name, workspace, shell, read_only):
    command, folder = READ_ONLY[name]
    read_only(workspace / folder)
    said = shell(command)
    assert folder in one_line(said.err, said.code)


def test_a_log_is_complete_after_a_kill(workspace, shell):
    script = SCRIPTS["stage 2"]
    disturb(script, workspace, lambda child, _: os.kill(child, signal.SIGKILL))
    assert shell(f"{script.command} --resume").code == 0
    assert [row["epoch"] for row in read_rows(workspace / "run/transformer/log.jsonl")] == [1, 2, 3]
