"""Our weights under a lab solution's names run in that solution."""

from __future__ import annotations

import errno
import itertools
import os

import pytest
import torch

from config.errors import UserError
from config.schema import Config
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.weights.export_lab import export_lab
from utils.weights.import_lab import import_lab
from utils.weights.lab_naming import VARIANTS
from utils.weights.store import save_weights


def exported(config: Config, folder, variant: str) -> tuple[dict, dict]:
    """Both state dicts that an export writes."""
    export_lab(config, folder, VARIANTS[variant], whole=False)
    return tuple(
        torch.load(folder / name, weights_only=True) for name in ("VQGAN.pt", "transformer.pt")
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_imported_is_exported_bit_by_bit(solution, save, tmp_path, assert_same, variant):
    lab = solution(variant)
    config, *_ = import_lab([save(lab.state_dict(), "whole.pt")], tmp_path / "ours", Config())
    vqgan, transformer = exported(config, tmp_path / "theirs", variant)
    assert_same(vqgan, dict(lab.vqgan.state_dict()))
    assert_same(transformer, dict(lab.transformer.state_dict()))


@pytest.mark.parametrize(
    ("source", "target"),
    [pair for pair in itertools.permutations(VARIANTS, 2) if pair[1] != "report"],
)
def test_a_solution_of_another_variant_computes_the_same_logits(
    solution, save, tmp_path, source, target
):
    lab, other = (
        solution(source),
        type(solution(source).transformer)(64, 16, 2, 96, 256, 40, target),
    )
    config, *_ = import_lab([save(lab.state_dict(), "whole.pt")], tmp_path / "ours", Config())
    other.load_state_dict(exported(config, tmp_path / "theirs", target)[1], strict=True)
    indices = torch.randint(41, (4, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            other.eval()(indices), lab.transformer(indices), rtol=1e-5, atol=1e-5
        )


def test_biases_are_not_lost_on_the_way_to_the_reports_variant(solution, save, tmp_path):
    state = solution("fused").state_dict()
    config, *_ = import_lab([save(state, "whole.pt")], tmp_path / "ours", Config())
    with pytest.raises(UserError, match=r"this variant's attention has no such biases"):
        exported(config, tmp_path / "theirs", "report")
    assert not (tmp_path / "theirs").exists()


def test_a_whole_file_is_a_whole_model(solution, save, tmp_path, assert_same):
    lab = solution("separate")
    config, *_ = import_lab([save(lab.state_dict(), "whole.pt")], tmp_path / "ours", Config())
    export_lab(config, tmp_path, VARIANTS["separate"], whole=True)
    whole = torch.load(tmp_path / "maskgit.pt", weights_only=True)
    expected = {k: v for k, v in lab.state_dict().items() if k != "mask_token_tensor"}
    assert_same(dict(sorted(whole.items())), dict(sorted(expected.items())))


def test_a_place_that_cannot_be_written_to_is_one_line(weights, tmp_path, monkeypatch):
    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"VQGAN\.pt: cannot be written: Permission denied"):
        export_lab(weights, tmp_path, VARIANTS["report"], whole=False)


def test_the_export_tells_what_the_solution_must_be_built_with(weights, tmp_path):
    lines = export_lab(weights, tmp_path, VARIANTS["report"], whole=False)
    needs = [line for line in lines if line.startswith("the solution's transformer")]
    assert "dim 16, num_heads 4, num_layers 2, mlp_dim 32" in needs[0]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("tokenizer", "norm", "position"),
        ("transformer", "norm", "pre"),
        ("transformer", "prior_dim", 8),
        ("transformer", "conv_kernel", 3),
        ("tokenizer", "decoder_conditioning", "pixels"),
        ("transformer", "conditioning", "pixels"),
    ],
)
def test_what_no_solution_computes_is_refused(weights, tmp_path, changed, section, key, value):
    config = changed(weights, {f"{section}.{key}": value})
    kind = {"tokenizer": VQGAN, "transformer": BidirectionalTransformer}[section]
    description = getattr(config, section)
    path = getattr(config, f"{section}_weights")
    save_weights(path, kind(description).state_dict(), description, {})
    with pytest.raises(UserError, match=rf"{section}.{key} is {value}: no lab solution computes"):
        export_lab(config, tmp_path / "theirs", VARIANTS["report"], whole=False)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--variant fused --like a.pt", "--like: not allowed with argument --variant"),
        ("--attention standard", "--attention says how the matrices of --like FILE lie"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(call, flags, reason):
    left = call(f"python -m utils.weights.export_lab --out a {flags}")
    assert left.code == 2
    assert reason in left.err
