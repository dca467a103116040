"""Write one self-contained HTML page about a run: images, scores, curves, and their provenance.

``python -m utils.report --config config/demo.yml`` reads the run's folder: tokenizer/,
transformer/, and one folder of results with its score.json for each schedule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fid.files import naming

from config.errors import UserError
from config.loading import load_config
from config.schema import Config
from utils.cli import ArgumentParser, add_config_arguments, run
from utils.data.datasets import InpaintingSet
from utils.inpainting.outputs import MANIFEST, MASKS, RESULTS, STEPS
from utils.io.files import read_rows
from utils.io.images import load_rgb, note_profile, save_png
from utils.io.pictures import comparison
from utils.pages import about_run, embed, embed_file, save_page
from utils.search.report import SEARCH_JSON, SEARCH_PLOTS, cells, search_notes

REPORT_TEMPLATE = "report.html"
SCHEDULES = ("cosine", "linear", "square")  # in the report's order
SCORE = "score.json"
COMPARISON = "comparison.png"
MASKED = "masked input"
COMPARED = 10  # images in the three-row comparison
IMAGES_SHOWN = 2  # images whose decoding is shown step by step
SCORE_COLUMNS = {  # key in a certificate: heading
    "frechet_distance_efficientnet_lite0": "EfficientNet-Lite0 Fréchet distance",
    "fid": "FID",
    "hole_mae": "mean error in the hole",
    "hole_psnr": "PSNR in the hole, dB",
}


def build_report(config: Config) -> Path:
    """Write <run>/report.html and return its path.

    Raises `UserError` if a schedule's results or scores are missing.
    """
    folder, dataset = config.run, InpaintingSet(config.data.root)
    manifests = {schedule: _read_manifest(folder / schedule) for schedule in SCHEDULES}
    manifest = manifests[SCHEDULES[0]]
    chosen = np.linspace(0, len(dataset) - 1, min(COMPARED, len(dataset))).astype(int)
    steps = [
        (
            f"{schedule}, image {index}",
            embed_file(folder / schedule / STEPS / f"final_test_{index}.png"),
        )
        for schedule in SCHEDULES
        for index in chosen[1 : 1 + IMAGES_SHOWN]
    ]
    masks = [
        (schedule, embed_file(folder / schedule / MASKS / f"final_test_{chosen[:2][-1]}.png"))
        for schedule in SCHEDULES
    ]
    rows = _comparison(folder / SCHEDULES[0], dataset, chosen)
    save_png(folder / COMPARISON, np.concatenate(list(rows.values())))
    weights = {key: value for key, value in manifest.items() if "sha256" in key}
    return save_page(
        folder / "report.html",
        REPORT_TEMPLATE,
        title=f"MaskGIT inpainting: {folder.name}",
        manifest=manifest,
        seed=config.seed,
        decoding=config.decoding,
        **_score_table(folder),
        comparison=[(name, embed(row)) for name, row in rows.items()],
        masks=masks,
        steps=steps,
        training=_training(folder),
        search=_search(folder / "search"),
        **about_run(config, manifest["environment"], weights),
    )


def _score_table(folder: Path) -> dict:
    """Rows and columns of the score table, with the best schedule marked."""
    paths = {name: folder / name.replace(" ", "_") / SCORE for name in (MASKED, *SCHEDULES)}
    certificates = {name: _read_json(path, "scores", "notes") for name, path in paths.items()}
    scores: dict[str, dict[str, float]] = {}
    for name, certificate in certificates.items():
        with _meant_for(paths[name]):
            found = certificate["scores"]
            scores[name] = {key: float(found[key]) for key in SCORE_COLUMNS if key in found}
    known = [key for key in SCORE_COLUMNS if all(key in row for row in scores.values())]
    if not known:
        raise UserError(f"{folder}: no score in common; score all results with the same metrics")
    best = min(SCHEDULES, key=lambda name: scores[name][known[0]])
    in_bold = f"In bold: the schedule with the lowest {SCORE_COLUMNS[known[0]]}"
    return {
        "scores": [
            {"name": name, "best": name == best, "values": [f"{row[key]:.2f}" for key in known]}
            for name, row in scores.items()
        ],
        "columns": [SCORE_COLUMNS[key] for key in known],
        "score_note": ". ".join([in_bold, *certificates[best]["notes"]]) + ".",
    }


def _comparison(results: Path, dataset: InpaintingSet, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The rows masked, inpainted and truth, one enlarged image each."""
    items = [dataset[index] for index in chosen]
    for item in items:
        note_profile(item.profile, item.name)
    paths = [results / RESULTS / f"image_{index:03d}.png" for index in chosen]
    return comparison(
        [item.image for item in items],
        [np.asarray(load_rgb(path)) for path in paths],
        [dataset.ground_truth(item.index, item.image) for item in items],
    )


def _training(folder: Path) -> list[tuple[str, str, str]]:
    """Curves and samples of the two training stages, as far as present."""
    curves = {
        "Transformer: loss by epoch": folder / "transformer" / "loss_curve.png",
        "Tokenizer: all curves": folder / "tokenizer" / "curves.png",
    }
    pictures = [
        (name, path, "plot")
        for name, path in curves.items()
        if len(read_rows(path.with_name("log.jsonl"))) > 1  # one epoch is no curve
    ]
    samples = sorted((folder / "tokenizer" / "samples").glob("*.png"))[-1:]
    pictures += [("Tokenizer: originals over reconstructions", path, "pixels") for path in samples]
    return [(name, embed_file(path), kind) for name, path, kind in pictures if path.exists()]


def _search(folder: Path) -> dict | None:
    """Results of the run's learning-rate search, or None."""
    if not (folder / SEARCH_JSON).exists():
        return None
    result = _read_json(folder / SEARCH_JSON)
    plots = [(name, embed_file(folder / name)) for name in SEARCH_PLOTS if (folder / name).exists()]
    with _meant_for(folder / SEARCH_JSON):
        heading, *rows = cells(result)
        return {"heading": heading, "rows": rows, "notes": search_notes(result), "plots": plots}


def _read_manifest(folder: Path) -> dict:
    path = folder / RESULTS / MANIFEST
    manifest = _read_json(path, "images", "images_per_second", "environment")
    with _meant_for(path):
        len(manifest["images"]), float(manifest["images_per_second"])
    return manifest


def _read_json(path: Path, *keys: str) -> dict:
    """Read a script's JSON output, which must have at least these keys."""
    try:
        with naming(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run inpainting.py and the scorer first") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not readable JSON") from None
    with _meant_for(path):
        for key in keys:
            content[key]
    return content


@contextmanager
def _meant_for(path: Path) -> Iterator[None]:
    """Turn errors from an unexpected structure (missing key, wrong type) into a `UserError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: not what the scripts leave there ({what})") from None


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, {})
    args = parser.parse_args()
    path = build_report(load_config(args.config, args.set))
    print(f"report: {path}")


if __name__ == "__main__":
    run(main)
