"""Sweeps that cannot be, grids that are no grids, folders that hold the files of others."""

from __future__ import annotations

import shutil
from pathlib import Path

from cases_checkpoints import VQGAN, WEIGHTS
from cases_configs import BOMB
from fault_case import CANARY, REPAIRED, SWEEP, Case, Maker, both, cut, put, removed, sparse
from fault_files import MIB, encoded, pixels, safetensors

GRID = SWEEP.replace("schedules", "grid bad.yml")

ARGUMENTS: dict[str, tuple[str, str]] = {  # what is wrong: command, what is said
    "no study": ("sweep.py", "required: study"),
    "an unknown study": (SWEEP.replace("schedules", "schedule"), "(did you mean 'schedules'?)"),
    "a study and a grid": (SWEEP.replace("schedules", "schedules grid"), "'grid' is unknown"),
    "a grid without its file": (SWEEP.replace("schedules", "grid"), "grid: name one YAML file"),
    "two grids": (GRID.replace("bad", "a.yml bad"), "grid: name one YAML file"),
    "a config that is not there": (SWEEP.replace("tiny", "gone"), "gone.yml: no such config"),
    "no seeds": (f"{SWEEP} --seeds 0", "'0' is not a whole number from 1"),
    "negative seeds": (f"{SWEEP} --seeds -2", "'-2' is not a whole number"),
    "a billion seeds": (f"{SWEEP} --seeds 1000000000", "not a whole number from 1 to 1,000"),
    "a seed beyond 63 bits": (f"{SWEEP} --seed {2**63}", "seed is"),
    "seeds that run past 63 bits": (f"{SWEEP} --seeds 3 --seed {2**63 - 1}", "--seeds 3"),
    "images in words": (f"{SWEEP} --images few", "'few' is not a whole number"),
    "one image": (f"{SWEEP} --images 1", "--images 1: allowed are 2 to 3"),
    "more images than there are": (f"{SWEEP} --images 4", "--images 4: allowed are 2 to 3"),
    "an unknown device": (f"{SWEEP} --device tpu", "device is 'tpu'"),
    "unknown features": (f"{SWEEP} --features vgg", "--features vgg: scoring.features is"),
    "named weights that are not there": (f"{SWEEP} --transformer gone.pt", "gone.pt: no such"),
    "a data set that is not there": (f"{SWEEP} --data gone", "gone: no such folder"),
    "a file as data set": (f"{SWEEP} --data tiny.yml", "tiny.yml"),
    "images without truth": (f"{SWEEP} --data only", "only: has no ground truth"),
    "a file as output": (f"{SWEEP} --output tiny.yml", "tiny.yml: cannot be made"),
    "an output below a file": (f"{SWEEP} --output tiny.yml/a", "tiny.yml/a: cannot be made"),
}  # fmt: skip

GRIDS: dict[str, tuple[str | bytes | Maker, str]] = {  # content of bad.yml, what is said
    "that is not there": (lambda folder: None, "bad.yml: no such grid file"),
    "that is a folder": (lambda folder: (folder / "bad.yml").mkdir(), "cannot be read as text"),
    "of 1 GiB": (sparse("bad.yml", 1024 * MIB), "larger than 65536 bytes, not a grid"),
    "of random bytes": (bytes(range(256)), "cannot be read as text"),
    "of nothing": ("", "allowed are keys of decoding"),
    "of a list": ("- total_iter\n", "allowed are keys of decoding"),
    "that is no YAML": ("total_iter: [\n", "not valid YAML"),
    "with a tab": ("total_iter:\n\t- 1\n", "not valid YAML"),
    "with a program": (f"total_iter: !!python/object/apply:os.mkdir ['{CANARY}']", "not valid"),
    "with a key given twice": (
        "total_iter: [1]\ntotal_iter: [2]\n", "bad.yml:2: total_iter is given twice"),
    "of a billion laughs": (BOMB, "bad.yml:2: alias *a found"),
    "of nested lists": ("total_iter: " + "[" * 99 + "]" * 99, "nested deeper than 10 levels"),
    "with an unknown key": ("total_iters: [1]\n", "unknown key total_iters (did you mean"),
    "with a key that changes no score": ("animation: [gif]\n", "unknown key animation"),
    "with a number for a list": ("total_iter: 3\n", "total_iter is 3; allowed is a list"),
    "with an empty list": ("total_iter: []\n", "total_iter is []; allowed is a list"),
    "with a list of lists": ("total_iter: [[1, 2]]\n", "total_iter [1, 2]: "),
    "with iterations of 0": ("total_iter: [4, 0]\n", "total_iter 0: "),
    "with a value of 30 kB": (f"total_iter: [{'x' * 30_000}]\n", "xxx...: "),
    "with not a number": ("choice_temperature: [.nan]\n", "choice_temperature nan: "),
    "with an unknown schedule": ("mask_schedule: [cosin]\n", "mask_schedule 'cosin': "),
    "of a million settings": (
        "".join(f"{key}: [{', '.join(map(str, range(1, 101)))}]\n"
                for key in ("total_iter", "sweet_spot", "temperature")),
        "settings; allowed are up to 1000"),
}  # fmt: skip

DAMAGED = [  # what is wrong, change, what is said
    ("truncated weights", cut(WEIGHTS, 0.5), f"{WEIGHTS}: damaged"),
    ("a truncated tokenizer", cut(VQGAN, 0.5), f"{VQGAN}: damaged"),
    ("weights without a description", put(WEIGHTS, safetensors(b"{}")), "contains no description"),
    ("weights that are not there", removed(WEIGHTS), f"{WEIGHTS}: no such weights file"),
    ("a truth of another number", removed("job/test/image_1.png"), "2 ground truths"),
    ("a broken truth", cut("job/test/image_1.png", 0.5), "image_1.png"),
    ("a broken image", cut("job/masked_image/image_1.png", 0.5), "image_1.png"),
    ("an image of another size", put("job/masked_image/image_1.png", encoded(pixels(0, 32))),
     "image_1.png"),
    ("a file in place of its tables", put("out/schedules", "text"), "out/schedules"),
    ("a file in place of its traces", put("out/traces", "text"), "out/traces"),
    ("a folder in place of its cells", lambda f: (f / "out/cells-0.jsonl").mkdir(parents=True),
     "out/cells-0.jsonl"),
]  # fmt: skip

FOREIGN: dict[str, Maker] = {  # what lies in the folder of results and is not ours
    "of random bytes": put("out/cells-0.jsonl", bytes(range(256))),
    "of another program": put("out/cells-0.jsonl", '{"key": 1}\n{"key": ["a"]}\n[]\n7\n'),
    "100,000 brackets deep": put("out/cells-1.jsonl", "[" * 100_000),
    "beside a picture and a link in a circle": both(
        put("out/pictures/a.png", b"text"), lambda f: (f / "out/traces").symlink_to("pictures")
    ),
}


def _without_truth(folder: Path) -> None:
    """A data set that can be repaired and not scored."""
    for part in ("masked_image", "mask64"):
        shutil.copytree(folder / "job" / part, folder / "only" / part)


CASES = [
    *(
        Case(f"a sweep with {what}", command, says, _without_truth)
        for what, (command, says) in ARGUMENTS.items()
    ),
    *(
        Case(f"a grid {what}", GRID, says,
             content if callable(content) else put("bad.yml", content))
        for what, (content, says) in GRIDS.items()
    ),
    *(Case(f"a sweep with {what}", SWEEP, says, change) for what, change, says in DAMAGED),
    *(
        Case(f"a sweep into a folder with results {what}", SWEEP, "", make, REPAIRED,
             replaced="out/cells-0.jsonl")
        for what, make in FOREIGN.items()
    ),
]  # fmt: skip
