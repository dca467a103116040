"""The command: its forms, the manifest's defaults, certificates, and one line for every mistake."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
import zipfile

import fid.certificate
import fid.extraction
import fid.scoring
import fid_score_gpu
import numpy as np
import pytest
import torch
from fid.inputs import METRICS
from fid.metrics import density_coverage, kernel_distance, precision_recall
from fid.scoring import kind_of
from fid_test_images import SIDE, draw_images, write_csv, write_folder
from PIL import Image


@pytest.fixture
def command(stem_weights, capsys, low_resolution):
    """Run the scorer in this process with the quick weights: (exit code, stdout, stderr)."""

    def call(*arguments: object, network: bool = True) -> tuple[int, str, str]:
        chosen = ["--weights", stem_weights, "--dims", 64] if network else []
        given = ["--device", "cpu", "--num-workers", 0, *chosen, *arguments]
        capsys.readouterr()
        try:
            code = fid_score_gpu.run(list(map(str, given)))
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return call


def distance(output: str) -> float:
    return float(re.search(r"distance: +(\S+)", output)[1])


def test_the_reports_own_command_works_from_a_folder_that_is_copied_out(lab, fid_folder, tmp_path):
    copy = shutil.copytree(fid_folder, tmp_path / "elsewhere" / "scorer")
    arguments = "--predicted-path test_results --device cpu --batch-size 1"
    done = subprocess.run(
        [
            sys.executable,
            copy / "fid_score_gpu.py",
            *arguments.split(),
            "--features",
            "efficientnet-lite0",
        ],
        cwd=lab,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"EfficientNet-Lite0 Frechet distance: \d+\.\d{4}\n", done.stdout)
    assert "8 images are fewer than the 1280 feature dimensions" in done.stderr


def test_pytorch_fids_own_command_lines_work(lab, command):
    flags = command("--predicted-path", lab / "test_results", "--gt-path", lab / "truth")
    assert command(lab / "test_results", lab / "truth") == flags
    assert command("--save-stats", lab / "truth", lab / "out.npz")[0] == 0
    assert command(lab / "truth", "--save-stats")[1].startswith(f"wrote {lab / 'truth.npz'}")
    found = command(lab / "test_results", lab / "out.npz")
    assert distance(found[1]) == distance(flags[1])
    code, _, error = command(lab / "truth", lab / "truth", lab / "masks")
    assert (code, error) == (2, f"error: {lab / 'masks'}: one path too many, expected at most 2\n")


def test_a_test_gt_csv_is_found_where_the_labs_files_lie(lab, command, monkeypatch):
    no_manifest(lab)
    write_csv(lab / "test_gt.csv", draw_images(8, seed=1))
    named = command("--predicted-path", lab / "test_results", "--gtcsv-path", lab / "test_gt.csv")
    beside = command("--predicted-path", lab / "test_results")
    monkeypatch.chdir(lab)
    here = command("--predicted-path", "test_results")
    assert named[:2] == beside[:2] == here[:2]
    assert "note: the ground truth is test_gt.csv" in here[2]
    (lab / "away").mkdir()
    (lab / "test_results").rename(lab / "away" / "test_results")
    flags = ("--predicted-path", "away/test_results", "--json", "away/c.json")
    assert command(*flags)[:2] == here[:2]
    monkeypatch.chdir("/")  # where no test_gt.csv is found
    assert command("--verify", lab / "away" / "c.json", network=False)[1].endswith("verified\n")


def test_a_user_without_a_home_gets_a_score_without_a_cache(lab, command, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    code, _, error = command("--predicted-path", lab / "test_results")
    assert code == 0
    assert "note: reference statistics are not cached: no home folder" in error


def test_a_home_in_the_variable_of_the_cache_is_found(lab, command, monkeypatch):
    monkeypatch.chdir(lab)
    monkeypatch.setenv("HOME", str(lab / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/of-docker")  # which does not expand ~
    assert command("--predicted-path", lab / "test_results")[0] == 0
    assert len(list((lab / "home/of-docker/faster-pytorch-fid").iterdir())) == 1
    assert not (lab / "~").exists()


def test_a_home_that_may_not_be_read_gives_a_score_without_a_cache(lab, command, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "x" * 300)  # the system refuses to look
    code, _, error = command("--predicted-path", lab / "test_results")
    assert code == 0
    assert "note: reference statistics are not cached: " in error


def test_paths_are_found_as_users_write_them(lab, command, monkeypatch):
    """With ~ after =, and with accents in another form than the folder's, in manifests too."""
    monkeypatch.setenv("HOME", str(lab))
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    (lab / "truth").rename(lab / apart)
    manifest = lab / "test_results" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("../truth", f"../{composed}"))
    expected = command("--predicted-path", lab / "test_results", f"--json={lab / 'score.json'}")
    assert expected[0] == 0, expected
    assert command("--predicted-path=~/test_results", f"--gt-path=~/{composed}") == expected
    assert command("--predicted-path=~/test_results", f"--gt-path=~/{composed}/") == expected
    (lab / apart).rename(lab / composed)  # as an archive may unpack it elsewhere
    assert command("--verify=~/score.json", network=False)[0] == 0


@pytest.mark.parametrize("path", ["caf\u00e9\0/truth", "\ud800/truth"])
def test_a_path_that_no_system_can_have_is_one_line(lab, command, path):
    state(lab, ground_truth=path)
    code, _, error = command("--predicted-path", lab / "test_results")
    assert (code, error.count("\n")) == (2, 1)
    assert error.endswith("/truth: no such file or folder\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--gt-path", ""), "--gt-path"), (("--json=",), "--json"), (("",), "after --predicted-path")],
)
def test_an_empty_argument_is_no_folder(command, words, said):
    code, _, error = command("--predicted-path", "results", *words)
    said = said.replace("--predicted-path", "results")
    assert (code, error.partition(" (see")[0]) == (
        2, f"error: argument {said}: is empty; is a variable of the shell unset?")  # fmt: skip


@pytest.mark.parametrize("flag", ["--json", "--save-stats"])
def test_a_device_or_pipe_is_not_replaced_by_a_file(lab, command, flag):
    os.mkfifo(pipe := lab / "pipe.npz")
    code, _, error = command("--predicted-path", lab / "test_results", flag, pipe)
    assert (code, error) == (2, f"error: {pipe}: cannot be written (is no file)\n")
    assert pipe.is_fifo()


@pytest.mark.parametrize("place", ["test_results/manifest.json", "truth/image_000.png"])
def test_a_certificate_does_not_replace_what_is_read(lab, command, place):
    before = (lab / place).read_bytes()
    code, _, error = command("--predicted-path", lab / "test_results", "--json", lab / place)
    assert (code, (lab / place).read_bytes()) == (2, before)
    assert "--json writes a file that ends in .json, no manifest.json" in error


def test_a_certificate_with_another_label_does_not_verify(lab, command):
    command("--predicted-path", lab / "test_results", "--json", lab / "a.json")
    stated = json.loads((lab / "a.json").read_text()) | {"score_name": "FID\x1b[2K"}
    (lab / "a.json").write_text(json.dumps(stated))
    code, output, _ = command("--verify", lab / "a.json", network=False)
    assert (code, "score_name: certificate FID\\x1b[2K, found Inception-64" in output) == (1, True)


def test_statistics_remember_the_size_of_their_images(lab, command, tmp_path):
    images, path = lab / "test_results", tmp_path / "small.npz"
    assert command("--resize", "16x12:nearest", "--save-stats", images, path)[0] == 0
    _, _, said = command("--predicted-path", images, "--gt-path", path)
    assert f"the images have {SIDE} x {SIDE} pixels, the ground truth 16 x 12: the" in said


def test_every_form_of_the_same_images_has_the_same_score(lab, command, tmp_path):
    truth, results = draw_images(8, seed=1), lab / "test_results"
    with zipfile.ZipFile(lab / "truth.zip", "w") as archive:
        for path in (lab / "truth").iterdir():
            archive.write(path, f"inner/{path.name}")
    write_csv(lab / "test_gt.csv", truth)
    assert command("--predicted-path", lab / "truth", "--save-stats", lab / "t.npz")[0] == 0
    found = {}
    for name in ("truth", "truth.zip", "test_gt.csv", "t.npz"):
        code, output, error = command("--predicted-path", results, "--gt-path", lab / name)
        assert code == 0, error
        found[name] = distance(output)
    assert len(set(found.values())) == 1, found
    assert found["truth"] > 0.01
    code, output, _ = command("--predicted-path", results)
    assert distance(output) == found["truth"]  # the manifest's ground truth


def test_a_zip_of_a_whole_solution_is_noted(lab, command):
    with zipfile.ZipFile(lab / "all.zip", "w") as archive:
        for path in [*lab.glob("t*/*"), *lab.glob("masks/*")]:
            archive.write(path, path.relative_to(lab))
    code, _, error = command(lab / "all.zip", lab / "truth")
    assert code == 0, error
    sets = f"{lab / 'all.zip'}: images of several folders count as one set: "
    assert f"note: {sets}masks, test_results, truth\n" in error
    assert "all.zip: its manifest.json is not read; unpack the zip to use it" in error


def test_a_csv_named_by_the_manifest_is_read_by_row(lab, command):
    truth = draw_images(8, seed=1)
    write_csv(lab / "test_gt.csv", [*draw_images(2, seed=9), *truth])
    manifest_path = lab / "test_results" / "manifest.json"
    expected = distance(command("--predicted-path", lab / "test_results")[1])
    manifest = json.loads(manifest_path.read_text())
    manifest["ground_truth"] = str(lab / "test_gt.csv")
    for index, entry in enumerate(manifest["images"]):
        entry["ground_truth"] = index + 2
    manifest_path.write_text(json.dumps(manifest))
    code, output, error = command("--predicted-path", lab / "test_results", "--metrics", "paired")
    assert code == 0, error
    assert distance(output) == pytest.approx(expected, abs=1e-4)  # four decimals, six digits
    assert "hole_mae" in output


def test_results_of_another_machine_are_scored_by_the_truth_that_is_given(lab, command):
    flags = ("--predicted-path", lab / "test_results", "--gt-path", lab / "truth")
    expected = command(*flags)
    state(lab, masks="../../home/masks")
    assert command(*flags) == expected
    code, output, error = command(*flags, "--metrics", "paired")
    assert (code, "hole_mae" in output) == (0, False)
    assert "its masks are not here" in error
    code, _, error = command(*flags, "--metrics", "hole")
    assert (code, error.splitlines()[-1]) == (
        2, "error: --metrics hole: needs masks; give --mask-path")  # fmt: skip


def test_images_outside_the_manifest_are_left_out_and_said(lab, command):
    before = command("--predicted-path", lab / "test_results")
    Image.fromarray(draw_images(1, 50)[0]).save(lab / "test_results" / "zz_stale.png")
    after = command("--predicted-path", lab / "test_results")
    assert after[1] == before[1]
    assert "note: 1 images are not in manifest.json" in after[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_score_does_not_depend_on_batch_size_or_workers(lab, command, workers):
    scores = []
    for batch in (1, 3, 8):
        _, output, _ = command(
            "--predicted-path",
            lab / "test_results",
            "--no-cache",
            "--batch-size",
            batch,
            "--json",
            lab / "c.json",
            "--num-workers",
            workers,
        )
        assert output
        scores += json.loads((lab / "c.json").read_text())["scores"].values()
    assert max(scores) == pytest.approx(min(scores), rel=1e-6)


def test_the_reference_comes_from_the_cache_until_an_image_changes(lab, command, monkeypatch):
    extracted = []
    extract = fid.extraction.extract_statistics

    def counted(backend, images, *rest):
        extracted.append(images.path.name)
        return extract(backend, images, *rest)

    monkeypatch.setattr(fid.extraction, "extract_statistics", counted)
    arguments = "--predicted-path", lab / "test_results", "--cache-dir", lab / "cache"
    first, second = command(*arguments), command(*arguments)
    assert first == second
    assert extracted == ["test_results", "truth", "test_results"]
    assert len(list((lab / "cache").iterdir())) == 1
    for path in (lab / "cache").iterdir():
        path.write_bytes(b"damaged")
    assert command(*arguments)[:2] == first[:2]
    shutil.copy(lab / "truth" / "image_000.png", lab / "truth" / "image_001.png")
    assert distance(command(*arguments)[1]) != distance(first[1])
    assert extracted[3:] == ["test_results", "truth"] * 2


def test_another_decoder_has_its_own_cache(lab, command, monkeypatch):
    arguments = "--predicted-path", lab / "test_results", "--cache-dir", lab / "cache"
    command(*arguments)
    monkeypatch.setattr(fid.extraction, "PIXELS", "2")
    command(*arguments)
    assert len(list((lab / "cache").iterdir())) == 2


ALL = "fid,kid,prc,paired,bootstrap"


def test_a_certificate_states_its_sources_and_verifies(lab, command):
    path = lab / "test_results" / "score.json"
    arguments = (
        "--predicted-path",
        lab / "test_results",
        "--metrics",
        ALL,
        "--bootstrap-samples",
        5,
    )
    code, output, error = command(*arguments, "--json", path)
    assert code == 0, error
    stated = json.loads(path.read_text())
    assert stated["score_name"] == "Inception-64 Frechet distance"
    assert stated["predicted"]["n"] == stated["reference"]["n"] == 8
    assert stated["reference"]["path"] == "../truth"
    assert stated["settings"]["seed"] == 2020
    assert {"torch", "scipy", "pillow"} <= stated["versions"].keys()
    assert {"psnr", "ssim", "hole_mae", "hole_psnr", "precision", "recall"} <= stated[
        "scores"
    ].keys()
    key = "frechet_distance_inception_64"
    assert stated["scores"][f"{key}_low"] < stated["scores"][f"{key}_high"]
    assert "fid" not in stated["scores"]
    moved = lab.parent / "moved"
    lab.rename(moved)  # a certificate travels with its images
    code, output, _ = command("--verify", moved / "test_results" / "score.json", network=False)
    assert (code, output.splitlines()[-1].partition(": ")[2]) == (0, "verified")


def test_a_certificate_is_written_although_the_tables_reader_is_gone(lab, command, monkeypatch):
    def gone(_outcome: object) -> list[str]:
        raise BrokenPipeError

    monkeypatch.setattr(fid.certificate, "table", gone)
    code, *_ = command("--predicted-path", lab / "test_results", "--json", lab / "c.json")
    assert code == fid_score_gpu.READER_GONE
    assert json.loads((lab / "c.json").read_text())["scores"]


def test_a_certificate_behind_a_link_to_the_file_verifies(lab, command):
    command("--predicted-path", lab / "test_results", "--json", lab / "score.json")
    link = lab.parent / "elsewhere" / "score.json"
    link.parent.mkdir()
    link.symlink_to(lab / "score.json")
    code, output, _ = command("--verify", link, network=False)
    assert (code, output.splitlines()[-1].partition(": ")[2]) == (0, "verified")


def test_verification_prints_every_difference_and_leaves_with_1(lab, command):
    path = lab / "score.json"
    command("--predicted-path", lab / "test_results", "--json", path)
    shutil.copy(lab / "truth" / "image_003.png", lab / "test_results" / "image_003.png")
    stated = json.loads(path.read_text())
    stated["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(stated))
    code, output, _ = command("--verify", path, network=False)
    assert code == 1
    lines = [line for line in output.splitlines() if line.startswith("differs: ")]
    assert [line.split()[1] for line in lines] == [
        "predicted",
        "weights_sha256:",
        "frechet_distance_inception_64:",
    ]
    assert output.splitlines()[-1].endswith("3 differences")


def test_legacy_repeats_pytorch_fid_from_saved_statistics(lab, command):
    from pytorch_fid.fid_score import calculate_frechet_distance

    arrays = []
    for name in ("test_results", "truth"):
        command("--predicted-path", lab / name, "--save-stats", lab / f"{name}.npz")
        with np.load(lab / f"{name}.npz") as file:
            arrays += [file["mu"], file["sigma"]]
    _, output, _ = command("--predicted-path", lab / "test_results", "--legacy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of singular matrices, in some versions of SciPy
        expected = calculate_frechet_distance(*arrays)
    assert distance(output) == pytest.approx(expected, abs=1e-3)


def test_legacy_holds_for_holes_and_an_interval_says_that_it_does_not(lab, command, monkeypatch):
    flags = ("--predicted-path", lab / "test_results", "--metrics", "hole,bootstrap")
    flags += ("--bootstrap-samples", 2, "--json", lab / "c.json")
    key, scores, errors = "frechet_distance_inception_64", [], []
    for words in ((), ("--legacy",)):
        errors.append(command(*flags, *words)[2])
        scores.append(json.loads((lab / "c.json").read_text())["scores"])
        monkeypatch.setattr("fid.metrics.trace_sqrt_legacy", lambda *_: 0.0)
    assert scores[1][key] > scores[0][key]
    assert scores[1][f"hole_{key}"] > scores[0][f"hole_{key}"]
    assert scores[1][f"{key}_low"] == scores[0][f"{key}_low"]
    note = "note: the interval is that of the distance without --legacy"
    assert [note in error for error in errors] == [False, True]


@pytest.mark.filterwarnings("ignore:The `disp` argument")
@pytest.mark.parametrize("side", [74, pytest.param(299, marks=pytest.mark.long)])
def test_full_rank_scores_equal_pytorch_fids_within_a_thousandth(
    lab, command, inception_state, monkeypatch, side
):
    import pytorch_fid.fid_score
    import pytorch_fid.inception

    resized = torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda x, size, **how: resized(x, (side, side), **how)
    )
    monkeypatch.setattr(
        pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: inception_state
    )
    folders = [lab / "many", lab / "more"]
    for seed, folder in enumerate(folders):
        write_folder(folder, draw_images(66, seed))  # more than the 64 dims
    expected = pytorch_fid.fid_score.calculate_fid_given_paths(
        [str(folder) for folder in folders], 33, "cpu", 64, num_workers=0
    )
    code, output, error = command("--no-cache", *folders)  # which may be of the other side
    assert code == 0, error
    assert distance(output) == pytest.approx(expected, abs=1e-3)


def test_two_processes_score_as_one(lab, stem_weights, command, fid_folder, in_copies):
    arguments = ["--predicted-path", lab / "test_results", "--metrics", "fid,kid"]
    arguments += ["--json", lab / "c.json", "--no-cache"]
    command(*arguments)
    alone = json.loads((lab / "c.json").read_text())["scores"]
    arguments += ["--dims", 64, "--weights", stem_weights]
    first, second = in_copies(fid_folder / "fid_score_gpu.py", "--device", "cpu", *arguments)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "distance:" in first.out
    assert second.out == second.err == ""
    together = json.loads((lab / "c.json").read_text())["scores"]
    assert together == pytest.approx(alone, rel=1e-6)


def test_a_mistake_in_one_processs_share_ends_both_with_one_line(
    lab, stem_weights, fid_folder, in_copies
):
    (lab / "truth" / "image_007.png").write_bytes(b"broken")  # in the second rank's share
    arguments = ["--predicted-path", lab / "test_results", "--dims", 64, "--weights", stem_weights]
    arguments += ["--no-cache", "--device", "cpu"]
    first, second = in_copies(fid_folder / "fid_score_gpu.py", *arguments)
    assert (first.code, second.code) == (2, 2)
    assert re.fullmatch(r"error: .*image_007.png: not a readable image.*\n", first.err)
    assert second.err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "not a score certificate of format 1"),
        ({"scores": None}, "'scores' has a value"),
        ({"scores": {"fid": "low"}}, "'scores' has a value"),
        ({"scores": {"fid": math.nan}}, "'scores' has a value"),
        ({"scores": {"f\nid": 3.0}}, "'scores' has a value"),
        ({"scores": {"fid": math.inf}}, "'scores' has a value"),
        ({"scores": {"fid": 10**400}}, "'scores' has a value"),
        ({"settings": {}}, "'batch_size' is missing"),
        ({"settings": []}, "'batch_size' is missing"),
    ],
)
def test_a_certificate_that_was_bent_is_a_mistake(lab, command, change, message):
    path = lab / "score.json"
    command("--predicted-path", lab / "test_results", "--json", path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, _, error = command("--verify", path, network=False)
    assert code == 2
    assert re.fullmatch(rf"error: .*{message}.*\n", error), error


@pytest.mark.parametrize("name", ["features", "metrics", "seed", "dims", "gt_path", "legacy"])
def test_a_certificate_with_a_foreign_setting_is_a_mistake(lab, command, name):
    path = lab / "score.json"
    command("--predicted-path", lab / "test_results", "--json", path)
    stated = json.loads(path.read_text())
    stated["settings"][name] = ["vgg"]
    path.write_text(json.dumps(stated))
    code, _, error = command("--verify", path, network=False)
    assert (code, error.count("\n")) == (2, 1)
    assert f"{name!r} has a value that no certificate can have" in error


@pytest.mark.parametrize("flag", ["--json", "--save-stats"])
@pytest.mark.parametrize(
    ("target", "why"),
    [("truth/image_000.png/c.npz", "File exists"), ("folder.npz", "Is a directory")],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(
    lab, command, monkeypatch, flag, target, why
):
    for work in ("score", "save_predicted_statistics"):
        monkeypatch.setattr(fid.scoring, work, lambda *_: pytest.fail("the work was done"))
    (lab / "folder.npz").mkdir()
    before = sorted(lab.rglob("*"))
    code, said, error = command("--predicted-path", lab / "test_results", flag, lab / target)
    assert (code, said) == (2, "")
    assert error == f"error: {lab / target}: cannot be written ({why})\n"
    assert sorted(lab.rglob("*")) == before


def test_saved_statistics_are_told_in_one_line(lab, command):
    code, said, _ = command("--predicted-path", lab / "truth", "--save-stats", lab / "t.npz")
    assert (code, said) == (0, f"wrote {lab / 't.npz'}, statistics of {lab / 'truth'}\n")


def break_image(lab):
    (lab / "test_results" / "image_004.png").write_bytes(b"no image")


def resize_image(lab):
    Image.new("RGB", (9, 7)).save(lab / "test_results" / "image_004.png")


def drop_truth(lab):
    (lab / "truth" / "image_004.png").unlink()


def cut_manifest(lab):
    (lab / "test_results" / "manifest.json").write_text('{"images": [')


def manifest_without_truth(lab):
    path = lab / "test_results" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ground_truth": None}))


def manifest_of_text(lab):
    (lab / "test_results" / "manifest.json").write_text('{"images": ["a.png", "b.png"]}')


def no_manifest(lab):
    (lab / "test_results" / "manifest.json").unlink()


def wrong_npz(lab):
    np.savez(lab / "test_results.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048)))


def nothing(lab):
    pass


GT = ("--gt-path", "{lab}/truth")
MISTAKES = [
    (break_image, (), "image_004.png: not a readable image"),
    (resize_image, (), "image_004.png: 9 x 7, but image_000.png is 16 x 16"),
    (drop_truth, (), "truth: no image 'image_004.png', though the manifest names it"),
    (drop_truth, (*GT, "--metrics", "paired"), "has 8 images, the ground truth .* has 7"),
    (cut_manifest, (), "manifest.json: not readable JSON"),
    (manifest_without_truth, (), "manifest.json: names no ground truth; give --gt-path"),
    (manifest_of_text, (), "expected an object with a list of objects under 'images'"),
    (no_manifest, (), "has no manifest.json that names the ground truth; give --gt-path"),
    (wrong_npz, ("--gt-path", "{lab}/test_results.npz"), "the features in use have 64 dims"),
    (nothing, ("--gt-path", "{lab}/none.npz"), "none.npz: no such file or folder"),
    (nothing, ("--gt-path", "{lab}/nowhere"), "nowhere: no such file or folder"),
    (nothing, ("--device", "tpu"), "--device tpu: expected auto, cpu or cuda:N"),
    (nothing, ("--dims", "65"), "--dims 65: inception has 64, 192, 768, 2048"),
    (nothing, ("--dims", "2048"), "not the FID InceptionV3's weights: .* is missing"),
    (nothing, ("--batch-size", "0"), "'0' is not a whole number from 1"),
    (nothing, ("--seed", "-1"), "'-1' is not a whole number from 0"),
    (nothing, ("--seed", "\u00b2"), "'\u00b2' is not a whole number from 0"),
    (
        nothing,
        ("--metrics", "fid,is"),
        "'is' is none of all, fid, kid, prc, density, ids, hole, paired, bootstrap",
    ),
    (nothing, ("--features", "vgg"), "invalid choice: 'vgg'"),
    (nothing, ("--verify", "{lab}/none.json"), "none.json: No such file"),
    (nothing, ("--save-stats", "a.npz", "--json", "b.json"), "not allowed with argument"),
    (nothing, ("--two\nlines",), "unrecognized arguments: --two lines"),
    (nothing, ("--keep-features",), "--keep-features: needs --save-stats"),
    (nothing, (*GT, "--save-stats"), "--gt-path: --save-stats reads the predicted images alone"),
    (nothing, ("--seed", "0", "--save-stats"), "--seed: --save-stats reads the predicted images"),
]


@pytest.mark.parametrize(("prepare", "arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_code_2(lab, command, prepare, arguments, message):
    prepare(lab)
    given = [argument.format(lab=lab) for argument in arguments]
    code, output, error = command("--predicted-path", lab / "test_results", *given)
    assert code == 2
    assert output == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", error), error


def test_a_missing_path_argument_is_a_mistake(command):
    code, _, error = command()
    assert (code, error) == (2, "error: --predicted-path is missing\n")


def test_metrics_that_statistics_cannot_give_are_refused_before_the_work(lab, command):
    command("--predicted-path", lab / "truth", "--save-stats", lab / "t.npz")
    with np.load(lab / "t.npz") as file:  # as pytorch-fid writes it
        np.savez(lab / "t.npz", mu=file["mu"], sigma=file["sigma"])
    for metric in ("kid", "prc", "density", "ids", "paired", "hole"):
        code, _, error = command(
            "--predicted-path",
            lab / "test_results",
            "--gt-path",
            lab / "t.npz",
            "--metrics",
            metric,
        )
        assert code == 2
        assert f"--metrics {metric}: needs images, {lab / 't.npz'} contains statistics" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_missing_gpu_is_said(lab, command):
    code, _, error = command("--predicted-path", lab / "test_results", "--device", "cuda:0")
    assert code == 2
    assert "no GPU is available, use --device cpu" in error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_score(lab, command):
    arguments = "--predicted-path", lab / "test_results", "--no-cache"
    there = distance(command(*arguments, "--device", "cuda:0")[1])
    assert there == pytest.approx(distance(command(*arguments)[1]), abs=1e-3)


def test_other_weights_than_the_fids_are_said(lab, command):
    _, _, error = command("--predicted-path", lab / "test_results")
    assert "note: not the public FID weights" in error


def test_weights_that_give_no_numbers_are_a_mistake(lab, command, inception_state, tmp_path):
    broken = {k: v for k, v in inception_state.items() if k.startswith(("Conv2d", "fc"))}
    broken["Conv2d_2b_3x3.bn.bias"] = torch.full((64,), float("nan"))
    torch.save(broken, tmp_path / "nan.pth")
    code, _, error = command(
        "--predicted-path", lab / "test_results", "--weights", tmp_path / "nan.pth"
    )
    assert (code, error) == (
        2,
        "error: inception: features are not finite, the weights cannot be right\n",
    )


def test_masks_may_be_given_by_hand(lab, command):
    no_manifest(lab)
    code, output, error = command(
        "--predicted-path",
        lab / "test_results",
        *[a.format(lab=lab) for a in GT],
        "--mask-path",
        lab / "masks",
        "--metrics",
        "paired",
    )
    assert code == 0, error
    truth = np.stack(draw_images(8, seed=1))[:, 4:10, 4:12].astype(int)
    expected = np.abs(truth - truth // 2).mean()
    assert float(re.search(r"hole_mae: +(\S+)", output)[1]) == pytest.approx(expected, rel=1e-4)
    assert SIDE == 16


def state(lab, **values: object) -> None:
    """State more in the manifest of the results."""
    path = lab / "test_results" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("stated", [None, "../masks"])
def test_masks_that_were_inverted_for_inpainting_are_for_the_score(lab, command, stated):
    flags = ("--predicted-path", lab / "test_results", "--metrics", "hole,paired")
    expected = command(*flags)
    for path in (lab / "masks").iterdir():
        with Image.open(path) as mask:
            Image.fromarray(255 - np.asarray(mask)).save(path)
    state(lab, masks=stated, inverted_masks=True)
    code, output, error = command(*flags, *([] if stated else ["--mask-path", lab / "masks"]))
    assert (code, output) == (0, expected[1]), error
    assert "masks: white is the hole, as " in error


def test_masks_are_opened_for_the_metrics_that_need_them(lab, command):
    flags, path = ("--predicted-path", lab / "test_results"), lab / "c.json"
    for metrics in ("paired", "fid"):
        assert command(*flags, "--metrics", metrics, "--json", path)[0] == 0
        stated = json.loads(path.read_text())
        assert (stated["masks"] is not None) == (metrics == "paired")
    masks = {"path": "masks", "kind": "images", "n": 8, "sha256": "0"}
    path.write_text(json.dumps(stated | {"masks": masks}))  # as earlier versions wrote it
    shutil.rmtree(lab / "masks")
    assert command("--verify", path, network=False)[1].endswith("verified\n")


def test_given_masks_have_the_manifests_threshold_and_their_own_folders(lab, command):
    flags = ("--predicted-path", lab / "test_results", "--metrics", "paired")
    expected = command(*flags)
    (lab / "moved").mkdir()
    for path in (lab / "masks").iterdir():
        with Image.open(path) as mask:
            soft = np.asarray(mask).clip(90, 200)
        Image.fromarray(soft).save(path)
    (lab / "masks").rename(lab / "moved" / "masks")
    state(lab, mask_threshold=128)
    entries = json.loads((lab / "test_results" / "manifest.json").read_text())["images"]
    given = (*flags, "--mask-path", lab / "moved", "--recursive")
    assert command(*given)[:2] == expected[:2]
    state(lab, images=[entry | {"mask": f"masks/{entry['mask']}"} for entry in entries])
    assert command(*given)[:2] == expected[:2]
    state(lab, masks="../moved")
    assert command(*flags, "--recursive")[:2] == expected[:2]


def test_holes_are_resized_with_their_images(lab, command):
    flags = ("--predicted-path", lab / "test_results", "--metrics", "hole,paired")
    code, output, error = command(*flags, "--resize", f"{2 * SIDE}x{2 * SIDE}:nearest")
    assert code == 0, error
    expected = re.search(r"hole_mae: +(\S+)", command(*flags)[1])[1]
    assert re.search(r"hole_mae: +(\S+)", output)[1] == expected


@pytest.mark.parametrize("name", ["masks.csv", "masks.npz"])
def test_masks_are_images(lab, command, name):
    write_csv(lab / name, draw_images(8, seed=1))
    flags = ("--predicted-path", lab / "test_results", "--metrics", "paired")
    code, _, error = command(*flags, "--mask-path", lab / name)
    line = f"error: {lab / name}: masks are read from a folder or a .zip of images\n"
    assert (code, error) == (2, line)


def test_a_certificate_behind_a_link_verifies(lab, command):
    (lab / "scratch/deep").mkdir(parents=True)
    (lab / "cards").symlink_to("scratch/deep")
    paths = ("--predicted-path", lab / "test_results", "--gt-path", lab / "truth")
    assert command(*paths, "--json", lab / "cards/score.json")[0] == 0
    assert command("--verify", lab / "cards/score.json")[1].endswith("verified\n")
    assert command("--verify", lab / "scratch/deep/score.json")[1].endswith("verified\n")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_one_line(lab, command, monkeypatch, error):
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(fid.scoring, "score", fail)
    code, _, said = command("--predicted-path", lab / "test_results")
    assert (code, said) == (2, "error: out of memory; lower --batch-size or --num-workers\n")


def test_variables_that_an_outer_job_left_are_ignored_or_named(lab, command, monkeypatch):
    monkeypatch.setattr("fid.files._noted", set())
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, said = command("--predicted-path", lab / "test_results")
    assert (code, said.count("note: WORLD_SIZE=2 is ignored")) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "")
    code, _, said = command("--predicted-path", lab / "test_results")
    assert code == 2
    assert said.startswith("error: the environment has WORLD_SIZE=''; allowed are whole")


def test_all_metrics_have_a_certificate_that_verifies(lab, command):
    path = lab / "score.json"
    given = ("--predicted-path", lab / "test_results", "--train-path", lab / "truth")
    code, output, error = command(
        *given, "--metrics", "all", "--bootstrap-samples", 5, "--json", path
    )
    assert code == 0, error
    scores = json.loads(path.read_text())["scores"]
    named = {"p_ids_inception_64", "u_ids_inception_64", "density", "coverage", "precision"}
    named |= {"hole_frechet_distance_inception_64", "nearest_train", "nearest_train_of_truth"}
    assert named <= scores.keys()
    assert scores["nearest_train_of_truth"] == pytest.approx(0, abs=1e-5)
    assert scores["nearest_train"] > 0
    assert scores["hole_frechet_distance_inception_64"] > scores["frechet_distance_inception_64"]
    assert all(kind_of(key).meaning for key in scores)
    lines = output.splitlines()
    assert lines[0].split() == ["score", "value", "better", "meaning"]
    assert len(lines[1:]) == len(scores)
    assert re.fullmatch(r"Inception-64 Frechet distance: +\S+  lower   whole images", lines[1])
    assert "a hyperplane separates nearly any 16 images in 64 features" in error
    assert re.search(r"(?m)^psnr: +\d+\.\d+  higher  dB, whole images$", output)
    code, output, _ = command("--verify", path, network=False)
    assert output.splitlines()[-1].endswith("verified"), output
    assert code == 0


def test_the_distance_around_holes_is_that_of_crops_cut_by_hand(lab, command):
    # the hole is rows 4 to 10, columns 4 to 12 of 16: half of each side is 8
    for name in ("test_results", "truth"):
        crops = [
            Image.open(lab / name / f"image_{i:03d}.png")
            .crop((4, 3, 12, 11))
            .resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            for i in range(8)
        ]
        write_folder(lab / "cut" / name, list(map(np.asarray, crops)))
    cut = "--predicted-path", lab / "cut/test_results", "--gt-path", lab / "cut/truth"
    output = command("--predicted-path", lab / "test_results", "--metrics", "hole")[1]
    found = re.search(r"hole_frechet_distance_inception_64: +(\S+)", output)[1]
    assert float(found) == pytest.approx(distance(command(*cut)[1]), abs=1e-4)


def test_all_metrics_without_masks_leave_out_the_holes_with_a_note(lab, command):
    no_manifest(lab)
    paths = "--predicted-path", lab / "test_results", "--gt-path", lab / "truth"
    code, output, error = command(*paths, "--metrics", "all", "--bootstrap-samples", 2)
    assert code == 0, error
    assert "hole_" not in output
    assert "note: hole is left out: it needs masks (--mask-path)" in error


@pytest.mark.parametrize(
    ("metric", "count", "side", "said"),
    [
        ("prc", 3, SIDE, "prc: needs more than 3 images in each set"),
        ("density", 5, SIDE, "density: needs more than 5 images of ground truth"),
        ("paired", 8, 10, "paired: SSIM needs images of at least 11 pixels"),
        ("ids", 8, SIDE, "ids: scikit-learn is missing (pip install scikit-learn)"),
    ],
)
def test_what_a_metric_lacks_is_said_before_the_work(
    lab, command, monkeypatch, metric, count, side, said
):
    monkeypatch.setattr("fid.scoring.Scorer", lambda *_: pytest.fail("the work was done"))
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    folders = [write_folder(lab / name, draw_images(count, 1, side)) for name in ("a", "b")]
    code, _, error = command(*folders, "--metrics", metric)
    assert (code, error) == (2, f"error: --metrics {said}\n")


def test_a_certificate_of_the_first_release_verifies(lab, command):
    path = lab / "score.json"
    assert command("--predicted-path", lab / "test_results", "--json", path)[0] == 0
    stated = json.loads(path.read_text())
    for name in ("recursive", "train_path", "resize"):
        del stated["settings"][name]
    del stated["train"], stated["notes"]
    path.write_text(json.dumps(stated))
    assert command("--verify", path, network=False)[0] == 0


def test_images_of_several_sizes_are_scored_in_one(lab, command):
    first = lab / "test_results" / "image_000.png"
    with Image.open(first) as image:
        image.resize((40, 30)).save(first)
    code, _, error = command("--predicted-path", lab / "test_results")
    assert code == 2
    assert "all images of a set must have one size" in error
    code, output, error = command(
        "--predicted-path", lab / "test_results", "--resize", f"{SIDE}x{SIDE}:lanczos"
    )
    assert code == 0, error
    assert distance(output) > 0


def test_a_size_beyond_the_limit_of_pixels_is_refused(lab, command, monkeypatch):
    monkeypatch.setenv("INPUT_LIMITS", "pixels=300")
    code, _, error = command("--predicted-path", lab / "test_results", "--resize", "20x16")
    line = "error: --resize 20x16: 320 pixels; allowed are 300"
    assert (code, error.partition(" (")[0]) == (2, line)


@pytest.mark.parametrize("text", ["64", "0x64", "64x64:sharp"])
def test_a_size_is_width_and_height_and_a_known_filter(lab, command, text):
    code, _, error = command("--predicted-path", lab / "test_results", "--resize", text)
    assert code == 2
    assert f"{text!r} is no WIDTHxHEIGHT" in error


def test_statistics_that_keep_features_give_the_kernel_distance(lab, command):
    wanted = ("--metrics", "kid,prc,density,ids")
    code, direct, _ = command("--predicted-path", lab / "test_results", *wanted)
    for folder in ("test_results", "truth"):
        saved = ("--keep-features", "--save-stats", lab / f"{folder}.npz")
        assert command("--predicted-path", lab / folder, *saved)[0] == 0
    paths = ("--predicted-path", lab / "test_results.npz", "--gt-path", lab / "truth.npz")
    code, output, error = command(*paths, *wanted)
    assert code == 0, error
    assert output == direct
    assert "P-IDS takes the rows of" in error


def test_a_truth_of_several_samples_counts_once_among_its_neighbours(lab, command):
    results, stats = lab / "test_results", {}
    entries = json.loads((results / "manifest.json").read_text())["images"]
    for i, pixels in enumerate(draw_images(8, seed=3)):
        Image.fromarray(pixels).save(results / f"image_{i:03d}_s1.png")
    samples = [entry | {"image": entry["image"].replace(".png", "_s1.png")} for entry in entries]
    state(lab, images=entries + samples)
    for name in ("test_results", "truth"):
        saved = ("--keep-features", "--save-stats", lab / f"{name}.npz")
        assert command("--predicted-path", lab / name, *saved)[0] == 0
        stats[name] = torch.from_numpy(np.load(lab / f"{name}.npz")["features"])
    assert list(map(len, stats.values())) == [16, 8]
    flags = ("--predicted-path", results, "--metrics", "kid,prc,density,ids,paired")
    code, _, error = command(*flags, "--json", lab / "c.json")
    assert code == 0, error
    certificate = json.loads((lab / "c.json").read_text())
    scores = certificate["scores"]
    assert (scores["precision"], scores["recall"]) == precision_recall(*stats.values())
    assert (scores["density"], scores["coverage"]) == density_coverage(*stats.values())
    mean, _ = kernel_distance(*stats.values(), subset_size=4, seed=2020)
    assert scores["kernel_distance_inception_64_mean"] == pytest.approx(mean)
    assert certificate["kernel_subset_size"] == 4
    assert "p_ids_inception_64" in scores  # of pairs, each sample with its truth
    assert "8 images are fewer than the 64 feature dimensions" in error
    assert "note: 16 images share 8 of ground truth, which count once in KID" in error


def test_sets_that_do_not_pair_have_no_p_ids_and_a_note_says_so(lab, command):
    drop_truth(lab)
    flags = ("--gt-path", lab / "truth", "--metrics", "ids")
    code, output, error = command("--predicted-path", lab / "test_results", *flags)
    assert code == 0, error
    assert "u_ids" in output
    assert "p_ids" not in output
    assert "note: P-IDS is left out: the images do not pair with the ground truth\n" in error


def test_samples_of_one_picture_have_no_kernel_distance(lab, command):
    results = lab / "test_results"
    entries = json.loads((results / "manifest.json").read_text())["images"]
    one = [entry | {"ground_truth": entries[0]["ground_truth"]} for entry in entries]
    state(lab, images=one)
    code, _, error = command("--predicted-path", results, "--metrics", "kid")
    assert code == 2
    assert "--metrics kid: needs at least two images in each set" in error


def test_sets_of_other_numbers_or_sizes_are_noted(lab, command):
    write_folder(lab / "large", draw_images(9, seed=1, side=20))
    error = command(lab / "truth", lab / "large")[2]
    assert "note: 8 images are compared with 9 of ground truth\n" in error
    assert "note: the images have 16 x 16 pixels, the ground truth 20 x 20: the dist" in error
    error = command(lab / "truth", lab / "large", "--resize", "9x9")[2]
    assert " x " not in error
    error = command(lab / "truth", lab / "masks")[2]
    assert "compared" not in error


def test_statistics_of_other_programs_do_not_say_how_they_were_made(lab, command):
    command("--predicted-path", lab / "truth", "--save-stats", lab / "ours.npz")
    with np.load(lab / "ours.npz") as file:
        np.savez(lab / "theirs.npz", mu=file["mu"], sigma=file["sigma"])
    ours = command(lab / "test_results", lab / "ours.npz")
    theirs = command(lab / "test_results", lab / "theirs.npz")
    assert distance(theirs[1]) == pytest.approx(distance(ours[1]), abs=1e-3)
    said = f"note: {lab / 'theirs.npz'} does not say how its features were made; taken for inc"
    assert (said in theirs[2], "does not say" in ours[2]) == (True, False)


def test_copies_of_the_training_set_are_sought_among_images_alone(lab, command):
    for folder in ("truth", "masks"):
        command("--predicted-path", lab / folder, "--save-stats", lab / f"{folder}.npz")
    with np.load(lab / "masks.npz") as file:  # as pytorch-fid writes it
        np.savez(lab / "masks.npz", mu=file["mu"], sigma=file["sigma"])
    results = ("--predicted-path", lab / "test_results")
    for name, paths in {
        "truth.npz": ("--gt-path", lab / "truth.npz", "--train-path", lab / "truth"),
        "masks.npz": ("--train-path", lab / "masks.npz"),
    }.items():
        code, _, error = command(*results, *paths)
        line = f"error: --train-path: needs images, {lab / name} contains statistics only\n"
        assert (code, error) == (2, line)
    assert command(*results, "--train-path", lab / "truth.npz")[0] == 0


def test_statistics_whose_distance_overflows_are_refused(lab, command):
    np.savez(lab / "t.npz", mu=np.full(64, 1e300), sigma=np.eye(64))
    code, said, error = command("--predicted-path", lab / "truth", "--gt-path", lab / "t.npz")
    line = "error: a score is not finite: the features or statistics are too large\n"
    assert (code, said, error) == (2, "", line)


def test_statistics_to_save_need_a_folder(lab, command):
    code, _, error = command("--save-stats", lab / "t.npz")
    line = "error: --save-stats: name the folder to read and the .npz to write\n"
    assert (code, error) == (2, line)


def test_statistics_replace_no_images(lab, command):
    folder, archive, place = lab / "truth", lab / "truth.zip", lab / "t.npz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, path.name)
    before = archive.read_bytes()
    for _ in ("written", "replaced"):
        code, said, error = command(archive, "--save-stats", place)
        assert (code, said) == (0, f"wrote {place}, statistics of {archive}\n"), error
    code, _, error = command("--predicted-path", folder, "--save-stats", archive)
    assert (code, error) == (2, f"error: {archive}: --save-stats writes a file that ends in .npz\n")
    assert archive.read_bytes() == before


def test_statistics_are_made_of_images_and_replace_no_others(lab, command):
    ours, theirs = (lab / f"{name}.npz" for name in ("truth", "masks"))
    for path in (ours, theirs):
        assert command("--save-stats", path.with_suffix(""), path)[0] == 0
    before = theirs.read_bytes()
    code, _, error = command(theirs, "--save-stats", ours)
    line = f"error: {ours}: --save-stats reads images, this file has statistics\n"
    assert (code, error, theirs.read_bytes()) == (2, line, before)


def test_statistics_of_the_current_folder_go_where_pytorch_fid_puts_them(lab, command, monkeypatch):
    monkeypatch.chdir(lab / "truth")
    code, said, error = command("--save-stats", ".", lab / "out.npz")
    assert (code, said) == (0, f"wrote {lab / 'out.npz'}, statistics of .\n"), error


def test_statistics_of_the_current_folder_lie_next_to_it(lab, command, monkeypatch):
    monkeypatch.chdir(lab / "truth")
    assert command("--predicted-path", ".", "--save-stats")[0] == 0
    assert (lab / "truth.npz").is_file()


def test_a_certificate_may_have_a_name_as_long_as_the_system_allows(lab, command):
    path = lab / ("c" * 250 + ".json")
    assert command("--predicted-path", lab / "test_results", "--json", path)[0] == 0
    assert path.is_file()


def test_a_home_that_a_user_does_not_have_is_one_line(command, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    code, _, error = command("--predicted-path", "~/results")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: ~/results: this user has no home folder; set HOME")


def test_verifying_takes_paths_by_their_flags_only(lab, command):
    path = lab / "score.json"
    assert command("--predicted-path", lab / "test_results", "--json", path)[0] == 0
    code, said, error = command("--verify", path, lab / "masks", lab / "truth", network=False)
    advice = "with --verify, paths are named by --predicted-path and --gt-path"
    assert (code, said, error) == (2, "", f"error: {lab / 'masks'}: {advice}\n")
    given = ("--predicted-path", lab / "masks", "--gt-path", lab / "truth")
    assert command("--verify", path, *given, network=False)[0] == 1


OTHER_SETTINGS = (
    *("--metrics kid", "--dims 192", "--seed 1", "--resize 8x8", "--legacy", "--recursive"),
    *("--features efficientnet-lite0", "--bootstrap-samples 7"),
)


@pytest.mark.parametrize("words", OTHER_SETTINGS)
def test_verifying_refuses_other_settings_than_the_certificates(lab, command, words):
    path = lab / "score.json"
    assert command("--predicted-path", lab / "test_results", "--json", path)[0] == 0
    code, said, error = command("--verify", path, *words.split(), network=False)
    line = f"error: {words.split()[0]}: --verify uses the certificate's; leave the flag out\n"
    assert (code, said, error) == (2, "", line)


def test_verifying_accepts_the_same_settings_and_another_batch_size(lab, command):
    path = lab / "score.json"
    same = ("--metrics", "fid,prc", "--seed", 5)
    assert command("--predicted-path", lab / "test_results", *same, "--json", path)[0] == 0
    code, said, error = command("--verify", path, *same, "--batch-size", 3)
    assert (code, said.splitlines()[-1]) == (0, f"{path}: verified"), error


def test_a_moved_csv_is_read_by_the_rows_that_the_manifest_states(lab, command):
    path, results = lab / "test_results" / "manifest.json", lab / "test_results"
    flags = ("--predicted-path", results, "--metrics", "paired")
    manifest = json.loads(path.read_text())
    samples = [manifest["images"][i // 2] | {"ground_truth": i // 2} for i in range(16)]
    path.write_text(json.dumps(manifest | {"ground_truth": "../test_gt.csv", "images": samples}))
    write_csv(lab / "test_gt.csv", [*draw_images(8, seed=1), *draw_images(8, seed=2)])
    expected = command(*flags)
    assert expected[0] == 0, expected
    (lab / "test_gt.csv").rename(lab / "moved.csv")
    found = command(*flags, "--gt-path", lab / "moved.csv")
    assert found[:2] == expected[:2]
    note = "8 of the 16 images have a partner; the others are not used"
    assert f"note: {lab / 'moved.csv'}: {note}\n" in found[2]


def test_a_moved_folder_is_read_by_the_names_that_the_manifest_states(lab, command):
    """The numbers of results may be others than those of their truths and masks."""
    path, results = lab / "test_results" / "manifest.json", lab / "test_results"
    entries = json.loads(path.read_text())["images"]
    other = [entries[(i + 3) % 8] | {"image": entries[i]["image"]} for i in range(8)]
    state(lab, images=other)
    Image.new("L", (SIDE, SIDE)).save(lab / "masks" / "mask_003.png")  # of the first
    flags = ("--predicted-path", results, "--metrics", "paired")
    expected = command(*flags)
    for name in ("truth", "masks"):
        (lab / name).rename(lab / f"moved_{name}")
    moved = ("--gt-path", lab / "moved_truth", "--mask-path", lab / "moved_masks")
    assert command(*flags, *moved) == expected
    assert "hole_mae" in expected[1]


def test_results_with_the_names_of_some_truths_pair_with_them(lab, command):
    flags = ("--predicted-path", lab / "test_results", "--metrics", "paired")
    expected = command(*flags)
    no_manifest(lab)
    Image.fromarray(draw_images(1, 50)[0]).save(lab / "truth" / "image_0005.png")  # in between
    found = command(*flags, "--gt-path", lab / "truth", "--mask-path", lab / "masks")
    assert found[:2] == expected[:2]
    assert f"note: {lab / 'truth'}: 8 of the 9 images have a partner; the others" in found[2]


def test_statistics_that_a_manifest_names_are_not_paired_with_the_images(lab, command):
    path = lab / "test_results" / "manifest.json"
    saved = ("--predicted-path", lab / "truth", "--keep-features", "--save-stats", lab / "t.npz")
    (lab / "truth" / "image_007.png").unlink()  # so that there are fewer of them
    assert command(*saved)[0] == 0
    path.write_text(path.read_text().replace('"../truth"', '"../t.npz"'))
    flags = ("--predicted-path", lab / "test_results", "--metrics", "bootstrap")
    found = command(*flags)
    assert found[0] == 0, found
    assert command(*flags, "--gt-path", lab / "t.npz")[:2] == found[:2]


@pytest.mark.parametrize("text", ["all", "all,kid", "fid,all"])
def test_all_metrics_may_be_asked_for_next_to_others(text):
    assert fid_score_gpu.metric_names(text) == METRICS
