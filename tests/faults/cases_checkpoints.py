"""Weights and training states that are broken, foreign or hostile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from fault_case import (
    EXPORT,
    IMPORT,
    INPAINT,
    SCORE,
    TOKENIZER,
    TRANSFORMER,
    Case,
    Maker,
    both,
    copied,
    cut,
    put,
    removed,
    sparse,
)
from fault_files import MIB, hostile_pickle, hostile_zip, packed, safetensors, saved
from safetensors import safe_open
from safetensors.torch import load_file, save

VQGAN = "run/tokenizer/vqgan.safetensors"
WEIGHTS = "run/transformer/transformer.safetensors"
STATE = "run/transformer/state.pt"
HEADER = "maskgit"


def _rewritten(name: str, change: object, header: object = None) -> Maker:
    """Weights of ours with other tensors or another header."""

    def make(folder: Path) -> None:
        path = folder / name
        with safe_open(path, framework="pt") as file:
            notes = json.loads(file.metadata()[HEADER])
        weights = load_file(path)
        change(weights, notes)
        text = json.dumps(notes if header is None else header)
        path.write_bytes(save(weights, {HEADER: text}))

    return make


def _nothing(weights: dict, notes: dict) -> None:
    pass


def _not_a_number(weights: dict, notes: dict) -> None:
    next(iter(weights.values())).flatten()[0] = torch.nan


def _other_shapes(weights: dict, notes: dict) -> None:
    weights["bias"] = weights["bias"][:, :-1].contiguous()


def _one_less(weights: dict, notes: dict) -> None:
    del weights["pos_emb"]


def _one_more(weights: dict, notes: dict) -> None:
    weights["blocks.9.LN.weight"] = torch.zeros(4)


def _other_codes(weights: dict, notes: dict) -> None:
    weights["codebook.embedding.weight"] += 1


def _larger(weights: dict, notes: dict) -> None:
    notes["config"]["dim"] = notes["config"]["mlp_dim"] = 12_000


def _wrong_type(weights: dict, notes: dict) -> None:
    notes["config"]["dim"] = "wide"


OURS = [  # file, what is wrong, change, what is said
    (WEIGHTS, "truncated", cut(WEIGHTS, 0.5), "damaged or no safetensors file"),
    (VQGAN, "truncated", cut(VQGAN, 0.5), "damaged or no safetensors file"),
    (WEIGHTS, "of zero bytes", put(WEIGHTS, b""), "damaged or no safetensors file"),
    (WEIGHTS, "of zeros", sparse(WEIGHTS, MIB), "damaged or no safetensors file"),
    (VQGAN, "of text", put(VQGAN, "weights\n"), "damaged or no safetensors file"),
    (WEIGHTS, "with a header of 2^60 bytes", put(WEIGHTS, b"\0" * 7 + b"\x10" + b"{}"), "damaged"),
    (WEIGHTS, "without a description", put(WEIGHTS, safetensors(b"{}")), "contains no description"),
    (WEIGHTS, "with not a number", _rewritten(WEIGHTS, _not_a_number), "not finite"),
    (VQGAN, "with not a number", _rewritten(VQGAN, _not_a_number), "not finite"),
    (WEIGHTS, "of other shapes", _rewritten(WEIGHTS, _other_shapes), "does not fit the network"),
    (WEIGHTS, "with a key too few", _rewritten(WEIGHTS, _one_less), "found none, needed (16, 16)"),
    (WEIGHTS, "with a key too many", _rewritten(WEIGHTS, _one_more), "does not fit the network"),
    (WEIGHTS, "whose description is larger than it", _rewritten(WEIGHTS, _larger), "fit"),
    (WEIGHTS, "described in wrong types", _rewritten(WEIGHTS, _wrong_type), "no description of"),
    (VQGAN, "of another tokenizer", _rewritten(VQGAN, _other_codes), "tokens of another tokenizer"),
    (WEIGHTS, "of the other network", copied(VQGAN, WEIGHTS), "contains a tokenizer, but no"),
    (VQGAN, "described by a list", _rewritten(VQGAN, _nothing, [1]), "no description of"),
    (WEIGHTS, "described by a number", _rewritten(WEIGHTS, _nothing, 7), "no description of"),
    (WEIGHTS, "not there", removed(WEIGHTS), "train first, or give --transformer FILE; repairs"),
    (VQGAN, "that is a folder", both(removed(VQGAN), lambda f: (f / VQGAN).mkdir()), "--tokenizer"),
    (VQGAN, "that is a pipe", both(removed(VQGAN), lambda f: os.mkfifo(f / VQGAN)), "no such"),
]  # fmt: skip
KIND = {WEIGHTS: "transformer", VQGAN: "tokenizer"}

FOREIGN: dict[str, tuple[bytes | Maker, str]] = {  # content of bad.pt, what is said
    "with a program (zip)": (hostile_zip(), "contains more than tensors and is not opened"),
    "with a program (pickle)": (hostile_pickle(), "contains more than tensors and is not opened"),
    "truncated": (saved({"pos_emb": torch.zeros(99)})[:400], "damaged or no weights file"),
    "of zero bytes": (b"", "damaged or no weights file"),
    "of text": (b"version https://git-lfs.github.com/spec/v1\n", "damaged or no weights file"),
    "that is a zip of something": (packed({"a.txt": b"text"}), "damaged or no weights file"),
    "that holds a list": (saved([1, 2]), "expected a dictionary of tensors"),
    "that holds a tensor": (saved(torch.zeros(3)), "expected a dictionary of tensors"),
    "that holds nothing": (saved({}), "expected a dictionary of tensors"),
    "whose keys are numbers": (saved({1: torch.zeros(3)}), "expected a dictionary of tensors"),
    "with unknown keys": (saved({"conv1.weight": torch.zeros(3)}), "unexpected keys: conv1.weight"),
    "that claims 4e12 values in one": (
        saved({"pos_emb": torch.zeros(1).expand(2_000_000, 2_000_000)}),
        "bad.pt",
    ),
    "that is a folder": (lambda folder: (folder / "bad.pt").mkdir(), "bad.pt"),
    "that is a pipe": (lambda folder: os.mkfifo(folder / "bad.pt"), "bad.pt"),
    "that is not there": (lambda folder: None, "bad.pt: no such"),
}
LAB = (IMPORT, f"{INPAINT} --transformer bad.pt", f"{TRANSFORMER} --tokenizer bad.pt")

STATES = {  # content of state.pt, what is said
    "with a program": (hostile_zip(), "no earlier checkpoint is left; use --restart"),
    "truncated": (saved({"position": 1})[:300], "no earlier checkpoint is left; use --restart"),
    "of zero bytes": (b"", "no earlier checkpoint is left; use --restart"),
    "of something else": (saved({"a": 1}), "state.pt: is not a training state of this program"),
    "that holds a list": (saved([1]), "state.pt: is not a training state of this program"),
}


def _lab_cases() -> list[Case]:
    cases = []
    for i, (what, (content, says)) in enumerate(FOREIGN.items()):
        make = content if callable(content) else put("bad.pt", content)
        command = LAB[i % len(LAB)]
        cases.append(Case(f"a lab's checkpoint {what}", command, says, make))
    return cases


CASES = [
    *(
        Case(f"{KIND[file]} weights {what}", INPAINT, says, change)
        for file, what, change, says in OURS
    ),
    *_lab_cases(),
    *(
        Case(f"a training state {what}", f"{TRANSFORMER} --resume", says, put(STATE, content))
        for what, (content, says) in STATES.items()
    ),
    Case("a training state that is a folder", f"{TRANSFORMER} --resume",
         "state.pt: cannot be read: Is a directory; it stays as it is",
         both(put(STATE.replace("state", "state.previous"), saved({"a": 1})),
              lambda folder: (folder / STATE).mkdir())),
    Case("a tokenizer's training state with a program", f"{TOKENIZER} --resume", "use --restart",
         put("run/tokenizer/state.pt", hostile_zip())),
    Case("a run that would be overwritten", TRANSFORMER, "already contains a run; use --resume",
         put(STATE, saved({"settings": {}, "position": {}}))),
    Case("FID weights with a program", f"{SCORE} --weights bad.pt", "not a PyTorch weight file",
         put("bad.pt", hostile_zip())),
    Case("FID weights of another network", f"{SCORE} --weights bad.pt", "bad.pt",
         put("bad.pt", saved({"a": torch.zeros(2)}))),
    Case("FID weights whose hash is not the one in their name",
         f"{SCORE} --weights inception-6726825d.pth", "wrong or truncated",
         put("inception-6726825d.pth", saved({}))),
    Case("a pipe to import", IMPORT, "bad.pt: is not a file",
         lambda folder: os.mkfifo(folder / "bad.pt")),
    Case("an export without weights", EXPORT, "no such weights file", removed(WEIGHTS)),
    Case("an export of broken weights", EXPORT, "damaged or no safetensors file", cut(VQGAN, 0.5)),
]  # fmt: skip
