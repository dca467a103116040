"""What outer jobs, links and other systems leave: variables, places that move, other accents."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

from cases_checkpoints import WEIGHTS
from fault_case import (
    INPAINT,
    PAGE,
    PREPARE,
    REPAIRED,
    SCORE,
    SEARCH,
    SWEEP,
    TOKENIZER,
    TRANSFORMER,
    Case,
    Maker,
    both,
    linked,
    manifest_with,
    moved,
    put,
)

EARLIER = "out/test_results/manifest.json"
HUB = f"{INPAINT} --set pretrained=somebody/cats --set run=none"
DINOV2 = f"{SCORE.partition(' --dims')[0]} --features dinov2 --predicted-path results"
GRADE = "grade.py solutions --config tiny.yml --data job --output out"
OWN = f"{TRANSFORMER} --run own --tokenizer run/tokenizer/vqgan.safetensors"
SET = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
LEFT: list[tuple[str, str, dict[str, str], str, int]] = [  # what, command, variables, said, code
    ("WORLD_SIZE=2 of an outer job", INPAINT, {"WORLD_SIZE": "2"},
     "note: WORLD_SIZE=2 is ignored: torchrun would also set RANK, LOCAL_RANK, MASTER", REPAIRED),
    ("RANK=1 of an outer job", INPAINT, {"RANK": "1"}, "note: RANK=1 is ignored", REPAIRED),
    ("torchrun's variables but one", INPAINT, SET, "torchrun would also set MASTER_PORT", REPAIRED),
    ("WORLD_SIZE=2 beside a training", OWN, {"WORLD_SIZE": "2"}, "is ignored", REPAIRED),
    ("RANK=1 beside a stage 1", f"{TOKENIZER} --run own", {"RANK": "1"}, "is ignored", REPAIRED),
    ("WORLD_SIZE=2 beside a sweep", SWEEP, {"WORLD_SIZE": "2"}, "is ignored", REPAIRED),
    ("WORLD_SIZE=2 beside the scorer", SCORE, {"WORLD_SIZE": "2"}, "is ignored", REPAIRED),
    ("an empty WORLD_SIZE", INPAINT, {"WORLD_SIZE": ""},
     "the environment has WORLD_SIZE=''; allowed are whole numbers from 1, or unset it", 2),
    ("an empty RANK beside the scorer", SCORE, {"RANK": ""}, "RANK=''; allowed are whole", 2),
    ("a WORLD_SIZE in words beside a search", SEARCH, {"WORLD_SIZE": "two"}, "WORLD_SIZE='two'", 2),
    ("a negative RANK beside a training", OWN, {"RANK": "-1"}, "RANK='-1'; allowed are whole", 2),
    ("a RANK beyond WORLD_SIZE", INPAINT, {**SET, "RANK": "2", "MASTER_PORT": "1"},
     "RANK=2 and WORLD_SIZE=2; ranks count from 0", 2),
    ("a MASTER_PORT in words", OWN, {**SET, "MASTER_PORT": "http"},
     "the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT", 2),
    ("a MASTER_PORT in words beside the scorer", SCORE, {**SET, "MASTER_PORT": "http"},
     "the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT", 2),
    ("a proxy beside the page", f"{PAGE} tiny.yml", dict.fromkeys(
        ("http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9"), "", REPAIRED),
    ("a SOCKS proxy beside the page", f"{PAGE} tiny.yml", {"all_proxy": "socks5://127.0.0.1:9"},
     "", REPAIRED),
    ("certificates that are gone beside the page", f"{PAGE} tiny.yml", {"SSL_CERT_FILE": "gone"},
     "", REPAIRED),
    ("a key log that is gone beside the page", f"{PAGE} tiny.yml", {"SSLKEYLOGFILE": "gone/log"},
     "", REPAIRED),
    ("another page's settings", f"{PAGE} tiny.yml", {"GRADIO_MCP_SERVER": "True",
     "GRADIO_NUM_WORKERS": "x", "GRADIO_ROOT_PATH": "/x"}, "", REPAIRED),
]  # fmt: skip


def _scratch(folder: Path) -> None:
    """Results behind a link, and another truth where the path without links would lead."""
    (folder / "scratch/deep").mkdir(parents=True)
    (folder / "results").rename(folder / "scratch/deep/results")
    (folder / "results").symlink_to("scratch/deep/results")
    manifest = folder / "results/manifest.json"
    text = manifest.read_text().replace('"../', '"../../../')
    manifest.write_text(text)


def _loose(folder: Path) -> None:
    """Truth and masks behind links of their own."""
    (folder / "far/off").mkdir(parents=True)
    for name in ("truth", "masks"):
        shutil.move(folder / name, folder / "far/off" / name)
        (folder / name).symlink_to(f"far/off/{name}")


def _behind(folder: Path) -> None:
    """A solution whose results are a link."""
    (folder / "solutions/a").mkdir(parents=True)
    (folder / "solutions/a/test_results").symlink_to("../../job/test")


def _accents(part: str, name: str, form: str) -> Maker:
    """Two names that end alike, in a form of Unicode."""
    new = [unicodedata.normalize(form, text) for text in ("caf\u00e9", "m\u00fcsli", "ni\u00f1o")]
    return both(
        *(moved(f"job/{part}/{name}_{i}.png", f"job/{part}/{new[i]}.png") for i in range(3))
    )


def _named(form: str) -> Maker:
    """The truth's first picture has an accent, which the manifest writes in another form."""

    def make(folder: Path) -> None:
        names = {f: unicodedata.normalize(f, "caf\u00e9.png") for f in ("NFC", "NFD")}
        (folder / "truth/image_0.png").rename(folder / "truth" / names[form])
        path = folder / "results/manifest.json"
        manifest = json.loads(path.read_text())
        manifest["images"][0]["ground_truth"] = names["NFD" if form == "NFC" else "NFC"]
        path.write_text(json.dumps(manifest))

    return make


def _in(form: str, other: str) -> tuple[Maker, str]:
    """The job in a folder whose accent is in one form of Unicode, and a command with the other."""
    folder, typed = (unicodedata.normalize(f, "caf\u00e9") for f in (form, other))
    return moved("job", folder), INPAINT.replace("--data job", f"--data {typed}")


APART = [  # what, command, flags of Python, variables, what is said, code
    ("a Python that leaves out the script's folder", INPAINT, "-P", {}, "", REPAIRED),
    ("an isolated Python", INPAINT, "-I", {}, "", REPAIRED),
    ("a Python without assertions and docstrings", INPAINT, "-OO", {}, "", REPAIRED),
    ("a Python whose warnings are errors", f"{OWN} --lr-search 1 --lr-search-only --set "
     "search.seeds=0 --set search.epochs=1", "-W error", {}, "", REPAIRED),
    ("a width of progress bars in words", INPAINT, "-B", {"TQDM_NCOLS": "x"},
     "note: TQDM_NCOLS='x' is ignored; no bar can have it", REPAIRED),
    ("a form of progress bars that none can have", INPAINT, "-B", {"TQDM_BAR_FORMAT": "{x}"},
     "note: TQDM_BAR_FORMAT='{x}' is ignored", REPAIRED),
    ("progress bars switched off", INPAINT, "-B", {"TQDM_DISABLE": "1"}, "", REPAIRED),
    ("a variable that PyTorch refuses", INPAINT, "-B", {"TORCH_DISTRIBUTED_DEBUG": "x"},
     "torch cannot be imported: The value of TORCH_DISTRIBUTED_DEBUG must be OFF, INFO, or", 2),
    ("options of PyTorch's allocator in another form", INPAINT, "-B", {"PYTORCH_CUDA_ALLOC_CONF":
     "max_split_size_mb=512"}, "is ignored; allowed are OPTION:VALUE", REPAIRED),
    ("a C++ compiler that is gone", f"{OWN} --set training.compile=true", "-B", {"CXX": "gone/g++",
     "TORCHINDUCTOR_CACHE_DIR": "cache"}, "torch.compile failed: No working C++ compiler found", 2),
    *((f"networks of the Hub behind a proxy {proxy}", HUB, "-B", {"https_proxy": proxy},
       "somebody/cats: no such folder", 2) for proxy in ("socks5://127.0.0.1:9", "http://[::1")),
    ("a network of torch.hub behind a proxy that is gone", DINOV2, "-B", {"TORCH_HOME": "hub",
     "https_proxy": "http://127.0.0.1:9"}, "dinov2: torch.hub cannot fetch", 2),
    ("a screen that Matplotlib does not know", f"{OWN} --epochs 1", "-B", {"MPLBACKEND": "x"}, "",
     REPAIRED),
]  # fmt: skip

FAILING = [  # what, command, file whose disk fails, what is said
    ("the scorer's weights", SCORE, "stem.pth", "stem.pth: Input/output error"),
    ("weights", INPAINT, WEIGHTS, f"{WEIGHTS}: cannot be read: No such device"),
    ("a picture to train on", OWN, "data/train/image_3.png", "image_3.png: Input/output error"),
    ("a sweep's results", SWEEP, "out/cells-0.jsonl", "out/cells-0.jsonl: Input/output error"),
    ("the manifest of earlier repairs", INPAINT, EARLIER, f"{EARLIER}: Input/output error"),
]

CASES = [
    *(Case(what, command, says, code=code, environment=environment,
           results=3 if command == INPAINT and not code else 0)
      for what, command, environment, says, code in LEFT),
    *(Case(what, command, says, code=code, environment=environment, flags=flags,
           results=3 if command == INPAINT and not code else 0)
      for what, command, flags, environment, says, code in APART),
    *(Case(f"{what} on a disk that fails", command, says,
           linked(name, "/proc/self/mem"))  # whose first bytes cannot be read
      for what, command, name, says in FAILING),
    *(Case(f"a folder whose accent is {form}, named in {other}", command, "", make, REPAIRED,
           results=3)
      for form, other in (("NFC", "NFD"), ("NFD", "NFC"))
      for make, command in [_in(form, other)]),
    *(Case(f"{what} beside a grading", GRADE, says,
           lambda folder: shutil.copytree("truth", "solutions/a"), code, environment=environment)
      for what, environment, says, code in (
          ("WORLD_SIZE=2", {"WORLD_SIZE": "2"}, "is ignored", REPAIRED),
          ("an empty WORLD_SIZE", {"WORLD_SIZE": ""}, "WORLD_SIZE=''; allowed are whole", 2),
          ("torchrun's variables", {**SET, "MASTER_PORT": "1"},
           "grading runs in one process; start it without torchrun, unset WORLD_SIZE", 2))),
    Case("a fid package of somebody else on PYTHONPATH", INPAINT, "",
         put("theirs/fid/__init__.py", "raise SystemExit('theirs')"), REPAIRED, results=3,
         environment={"PYTHONPATH": "theirs"}, flags="-B"),
    Case("results that lie next to another truth than their own", f"{SCORE} --metrics fid,paired",
         "truth: other files than those that the repairs hid (999 bytes); were they moved?",
         manifest_with(ground_truth_bytes=999), REPAIRED, replaced="results/manifest.json"),
    Case("results behind a link for the scorer", f"{SCORE} --metrics fid,paired", "", _scratch,
         REPAIRED),
    *(Case(f"an output folder that links to nothing: {command.split()[0]}", command, "",
           lambda folder: (folder / "link").symlink_to("scratch/runs"), REPAIRED)
      for command in (INPAINT.replace("--output out", "--output link"),
                      f"{SCORE} --json link/c.json", f"{OWN.replace('own', 'link')} --epochs 1")),
    Case("repairs to grade behind a link",
         "grade.py solutions --config tiny.yml --data job --output out", "",
         _behind, REPAIRED),
    Case("a cache below the home folder", SCORE.replace("--no-cache ", ""), "", code=REPAIRED,
         environment={"HOME": ".", "XDG_CACHE_HOME": "~/cache"}),
    Case("truth and masks behind links for the scorer", f"{SCORE} --metrics fid,paired", "", _loose,
         REPAIRED),
    Case("pictures and masks whose accents are written otherwise", INPAINT, "",
         both(_accents("masked_image", "image", "NFC"), _accents("mask64", "mask", "NFD"),
              _accents("test", "image", "NFD")), REPAIRED, results=3),
    *(Case(f"a manifest that writes an accent otherwise than a file in {form}", SCORE, "",
           _named(form), REPAIRED) for form in ("NFC", "NFD")),
    *(Case(f"a search in a run called {name}", f"{OWN.replace('own', repr(name))} --lr-search 1 "
           "--lr-search-only --set search.seeds=0", "", code=REPAIRED)
      for name in ("lr?1", "lr%41", "lr#1", "{SCHEMA}")),
    *(Case(f"a {what} whose name is no UTF-8", command.replace("own", "r\udce9"),
           "r\\udce9", code=2)
      for what, command in (("run", OWN), ("run of a search", f"{OWN} --lr-search 1"))),
    *(Case(f"a truth whose accent is {form}, named in {other}", f"{SCORE} --gt-path {name}", "",
           moved("truth", folder), REPAIRED)
      for form, other in (("NFC", "NFD"), ("NFD", "NFC"))
      for folder, name in [[unicodedata.normalize(f, "caf\u00e9") for f in (form, other)]]),
    Case("a data set whose name is as long as the system allows",
         PREPARE.replace("prepared", "d" * 255), "", code=REPAIRED),
    Case("a certificate whose name is as long as the system allows",
         f"{SCORE} --json {'c' * 250}.json", "", code=REPAIRED),
    Case("a truth below the home folder, after =", f"{SCORE} --gt-path=~/truth", "", code=REPAIRED,
         environment={"HOME": "."}),
    Case("a home that the system does not let the scorer look into",
         SCORE.replace("--no-cache ", ""), "statistics are not cached: xxx", code=REPAIRED,
         environment={"XDG_CACHE_HOME": "x" * 300}),
    Case("pictures in the folder of their own repairs", "inpainting.py --config tiny.yml --masks "
         "job/mask64 --images out/test_results --output out", "its pictures would be replaced",
         both(put("out/notes.txt", ""), moved("job/masked_image", "out/test_results"))),
]  # fmt: skip
