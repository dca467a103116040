"""Tokens kept on disk: right, never stale, and whole whoever builds them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from config.errors import UserError
from config.schema import Config
from models.vqgan import VQGAN
from utils.data import augment
from utils.data.augment import AS_IS, MIRRORED, Views, load_images
from utils.data.datasets import normalise
from utils.io.images import encode_png, load_rgb
from utils.training import token_cache
from utils.training.token_cache import cached_tokens

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def encode(vqgan: VQGAN, config: Config, pixels: torch.Tensor) -> list[list[int]]:
    """Token ids of uint8 pixels (n, 3, H, W), one image at a time."""
    data = config.data
    batches = normalise(pixels, data.mean, data.std).split(1)
    return [vqgan.encode(batch)[0].tolist() for batch in batches]


def test_rows_are_the_encodings_of_the_images_and_of_their_mirror_images(tokenizer, config, cache):
    tokens = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    images = load_images(config.data.root / "train", config.data.image_size)
    assert tokens.shape == (11, 2, 16)
    assert tokens[:, AS_IS].tolist() == encode(tokenizer, config, images)
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    assert tokens[:, MIRRORED].tolist() == encode(tokenizer, config, mirrored)


def test_rows_are_small_numbers_read_from_the_file(tokenizer, config, cache):
    tokens = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    assert tokens.dtype == np.uint16
    assert isinstance(tokens, np.memmap)
    assert Path(tokens.filename) == files(cache)[0]


def test_an_existing_cache_needs_no_network(tokenizer, config, cache, monkeypatch):
    first = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    monkeypatch.setattr(VQGAN, "encode", None)
    again = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    assert (again == first).all()


def test_the_splits_have_files_of_their_own(tokenizer, config, cache):
    lengths = [len(cached_tokens(tokenizer, config.data, s, cache, CPU)) for s in ("train", "val")]
    assert lengths == [11, 6]
    assert [path.name.split("-")[0] for path in files(cache)] == ["train", "val"]


# Augmented views and holes


def test_augmented_views_follow_the_image_and_its_mirror_image(tokenizer, config, cache, changed):
    more = changed(config, {"data.views": 5}).data
    tokens = cached_tokens(tokenizer, more, "train", cache, CPU)
    images = load_images(config.data.root / "train", config.data.image_size)
    assert tokens.shape == (11, 5, 16)
    views = Views(images, 5)
    for view in range(5):
        pixels = views.of(slice(0, 11), view, CPU)
        assert tokens[:, view].tolist() == encode(tokenizer, config, pixels)


def test_validation_keeps_to_the_plain_views(tokenizer, config, cache, changed):
    more = changed(config, {"data.views": 5}).data
    cached_tokens(tokenizer, more, "val", cache, CPU)
    assert cached_tokens(tokenizer, config.data, "val", cache, CPU).shape == (6, 2, 16)
    assert len(files(cache)) == 1


def test_another_number_or_version_of_views_makes_another_file(
    tokenizer, config, cache, changed, monkeypatch
):
    for views in (2, 3, 4):
        cached_tokens(tokenizer, changed(config, {"data.views": views}).data, "train", cache, CPU)
    assert len(files(cache)) == 3
    monkeypatch.setattr(augment, "AUGMENT_VERSION", augment.AUGMENT_VERSION + 1)
    for views in (2, 3):
        cached_tokens(tokenizer, changed(config, {"data.views": views}).data, "train", cache, CPU)
    assert len(files(cache)) == 4  # the plain views are what they were


def test_encoding_leaves_autocast_and_tf32_aside_and_puts_them_back(tokenizer, config, cache):
    seen = []
    tokenizer.quant_conv.register_forward_hook(
        lambda _module, _inputs, output: seen.append(
            (output.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
        )
    )
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_tokens(tokenizer, config.data, "val", cache, CPU)
    assert set(seen) == {(torch.float32, False, True)}
    assert torch.backends.cudnn.allow_tf32 == before


def test_no_thread_waits_for_another_while_a_cpu_encodes(tokenizer, config, cache):
    threads, before = [], torch.get_num_threads()
    tokenizer.quant_conv.register_forward_hook(lambda *_: threads.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        cached_tokens(tokenizer, config.data, "val", cache, CPU)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


# Staleness


def change_a_pixel(_vqgan: VQGAN, config: Config) -> None:
    path = config.data.root / "train" / "image_3.png"
    pixels = np.array(load_rgb(path))
    pixels[0, 0, 0] ^= 1
    path.write_bytes(encode_png(pixels))


def change_a_weight(vqgan: VQGAN, _config: Config) -> None:
    weight = vqgan.encoder.model[0].bias.data
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


def change_a_code(vqgan: VQGAN, _config: Config) -> None:
    vqgan.codebook.embedding.weight.data[5, 2] += 1e-6


def remove_an_image(_vqgan: VQGAN, config: Config) -> None:
    (config.data.root / "train" / "image_3.png").unlink()


def swap_two_images(_vqgan: VQGAN, config: Config) -> None:
    a, b = (config.data.root / "train" / f"image_{i}.png" for i in (1, 2))
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)


@pytest.mark.parametrize(
    "change", [change_a_pixel, change_a_weight, change_a_code, remove_an_image, swap_two_images]
)
def test_any_change_makes_another_file(tokenizer, config, cache, change):
    cached_tokens(tokenizer, config.data, "train", cache, CPU)
    change(tokenizer, config)
    tokens = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    assert len(files(cache)) == 2
    images = load_images(config.data.root / "train", config.data.image_size)
    assert tokens[:, AS_IS].tolist() == encode(tokenizer, config, images)


def test_another_normalisation_makes_another_file(tokenizer, config, cache, changed):
    cached_tokens(tokenizer, config.data, "train", cache, CPU)
    other = changed(config, {"data.mean": [0.5, 0.5, 0.5]})
    cached_tokens(tokenizer, other.data, "train", cache, CPU)
    assert len(files(cache)) == 2


def test_touching_and_renaming_keep_the_file(tokenizer, config, cache):
    cached_tokens(tokenizer, config.data, "train", cache, CPU)
    for path in (config.data.root / "train").iterdir():
        path.rename(path.with_name("renamed_" + path.name))
    cached_tokens(tokenizer, config.data, "train", cache, CPU)
    assert len(files(cache)) == 1


def test_tokens_that_cannot_be_kept_are_used_all_the_same(
    tokenizer, config, cache, capsys, monkeypatch
):
    def read_only(path: Path) -> None:
        raise UserError(f"{path}: cannot be written: Read-only file system")

    monkeypatch.setattr(token_cache, "atomic", read_only)
    tokens = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    assert tokens.shape == (11, 2, 16)
    assert tokens.flags.writeable
    assert f"note: tokens are not cached: {cache}" in capsys.readouterr().err


def test_two_processes_that_build_at_once_both_succeed(tokenizer, config, cache, monkeypatch):
    meeting, encode_all = FORK.Barrier(2), token_cache._encode

    def encode_together(*arguments):
        tokens = encode_all(*arguments)
        meeting.wait(timeout=30)  # both have found no file, and both write now
        return tokens

    monkeypatch.setattr(token_cache, "_encode", encode_together)
    hashes = FORK.Queue()

    def build() -> None:
        tokens = cached_tokens(tokenizer, config.data, "train", cache, CPU)
        hashes.put(hash(tokens.tobytes()))

    builders = [FORK.Process(target=build) for _ in range(2)]
    for builder in builders:
        builder.start()
    found = {hashes.get(timeout=60) for _ in builders}
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(found) == 1
    assert len(files(cache)) == 1


def test_a_process_killed_while_writing_leaves_no_cache(tokenizer, config, cache, monkeypatch):
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def build() -> None:
        monkeypatch.setattr(Path, "write_bytes", write_half)
        cached_tokens(tokenizer, config.data, "train", cache, CPU)

    builder = FORK.Process(target=build)
    builder.start()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    assert not [path for path in files(cache) if path.suffix == ".npy"]
    assert cached_tokens(tokenizer, config.data, "train", cache, CPU).shape == (11, 2, 16)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:300], "damaged token cache, made again"),
        (lambda content: content.replace(b"'shape': (", b"'shape': (("), "damaged token cache"),
        (lambda content: content.replace(b"'descr'", b"'desc\\'"), "damaged token cache"),
        (lambda content: content.replace(b"<u2", b"<i2"), "no token cache, made again"),
    ],
    ids=["truncated", "an open bracket", "an open string", "another type"],
)
def test_a_damaged_cache_is_made_anew(tokenizer, config, cache, capsys, damage, said):
    whole = cached_tokens(tokenizer, config.data, "train", cache, CPU).copy()
    (file,) = files(cache)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    again = cached_tokens(tokenizer, config.data, "train", cache, CPU)
    assert said in capsys.readouterr().err
    assert (again == whole).all()
    assert file.read_bytes() == content


def test_a_cache_that_a_failing_disk_hides_is_named_and_stays(tmp_path):
    path = tmp_path / "a.npy"
    path.symlink_to("/proc/self/mem")  # whose first bytes cannot be read
    with pytest.raises(OSError, match=r"Input/output error: .*a\.npy"):
        token_cache._kept(path, pytest.fail)
    assert path.is_symlink()
