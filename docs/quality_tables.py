"""Tables of quality: repairs, the tokenizer, recipes and studies, from committed results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from bench.recipes import RECIPES
from docs.results_files import RESULTS, latest, machine, records
from utils.io.tables import markdown_table as table
from utils.sweep.plan import STUDIES
from utils.sweep.tables import Summary, score_grid, statements

STUDY_TITLES = {name: title for name, (title, _) in STUDIES.items()} | {
    "grid-borders": "Hole fills and composites",
    "grid-orders": "Orders",
    "grid-settings": "Iterations and temperatures",
}
CLASSICAL = {"grey", "telea", "biharmonic"}  # sides without weights
NETWORKS = ("tokenizer", "transformer")
Figures = dict[str, float]


def demo() -> str:
    """Scores of `make demo`, as copied by `make results`."""
    rows, images = [], 0
    for name in ("masked_input", "cosine", "linear", "square"):
        certificate = json.loads((RESULTS / "demo" / f"{name}.json").read_text(encoding="utf-8"))
        scores, images = certificate["scores"], certificate["predicted"]["n"]
        keys = ("frechet_distance_efficientnet_lite0", "hole_mae", "hole_psnr")
        rows.append([name.replace("_", " "), *(f"{scores[key]:.2f}" for key in keys)])
    heading = [f"`make demo`, {images} crops of photographs", "distance"]
    return table([*heading, "mean error in the hole, 0 to 255", "PSNR in the hole, dB"], rows)


def repair() -> str:
    """Repairs next to classical filling, latest measurement."""
    sides = {
        "grey": "grey hole",
        "telea": "Telea's filling (OpenCV)",
        "biharmonic": "biharmonic filling (scikit-image)",
        "ours": "**released weights**",
        "unet": "U-Net regressor (bench/unet.py)",
        "true_tokens": "true tokens: a perfect transformer",
    }
    columns = {
        "distance": ("frechet", 2),
        "distance, Lite2": ("frechet_referee", 2),
        "perceptual distance": ("perceptual", 4),
        "mean error in the hole, 0 to 255": ("hole_mae", 2),
    }
    images, found = measured_repairs()
    rows = [
        [title, *(f"{found[side][key]:.{digits}f}" for key, digits in columns.values())]
        for side, title in sides.items()
        if side in found
    ]
    return table([f"{images} test cats", *columns], rows)


def bf16() -> str:
    """The effect of bfloat16 rounding on repairs (bench.repair --sides ours bf16)."""
    images, found = measured_repairs()
    figures = {
        "distance": ("frechet", 2),
        "perceptual distance": ("perceptual", 4),
        "error": ("hole_mae", 2),
    }
    compared = (
        f"{title} {found['ours'][key]:.{digits}f} and {found['bf16'][key]:.{digits}f}"
        for title, (key, digits) in figures.items()
    )
    return f"{images} cats in fp32 and with both networks rounded to bf16: {', '.join(compared)}."


def measured_repairs() -> tuple[int, dict[str, Figures]]:
    """Number of images and figures by side of the latest measurement of repairs.

    Sides that it lacks are taken from earlier ones of the same images and, if used, weights.
    """
    last, found = latest("repair")[-1]["details"], {}
    for record in records("repair"):
        of = record["details"]
        if of["images"] != last["images"]:
            continue
        same = [of.get(f"{net}_sha256") == last.get(f"{net}_sha256") for net in NETWORKS]
        valid = CLASSICAL | ({"true_tokens"} if same[0] else set())  # needs no transformer
        sides = record["result"].items()
        found |= {side: figures for side, figures in sides if all(same) or side in valid}
    return last["images"], found


def repair_holes() -> str:
    """Biharmonic filling, regressor and released weights, by kind and share of the hole."""
    sides = ("biharmonic", "unet", "ours")
    record = latest("repair_holes")[-1]
    rows = [
        [
            cell,
            *(f"{found[side]['frechet']:.1f}" for side in sides),
            *(f"{found[side]['perceptual']:.3f}" for side in sides),
        ]
        for cell, found in record["result"].items()
    ]
    heading = [f"{name}: {side}" for name in ("distance", "perceptual") for side in sides]
    about = f"{record['details']['images']} cats, {record['details']['seeds']} seeds"
    return table([about, *heading], rows)


def tokenizer_quality() -> str:
    """Reconstructions by the released tokenizer, and known tokens that holes leave unchanged."""
    record = latest("tokenizer_quality")[-1]
    found, details = record["result"], record["details"]
    kept = found["kept_tokens"]
    rows = [
        ["mean error in the hole, 0 to 255", f"{found['hole_mae']:.2f}"],
        ["PSNR", f"{found['psnr']:.2f} dB"],
        ["SSIM", f"{found['ssim']:.4f}"],
        ["EfficientNet-Lite0 Fréchet distance", f"{found['frechet_efficientnet']:.2f}"],
        ["the same with EfficientNet-Lite2", f"{found['frechet_referee']:.2f}"],
        ["codes in use, perplexity", f"{found['codes_used']:.0%}, {found['perplexity']:.0f}"],
        ["known tokens that keep their index", f"{kept['all']:.1%}"],
        ["the same next to the hole", f"{kept['1']:.1%}"],
        ["the same two or more tokens away", f"{kept['2+']:.1%}"],
    ]
    return table([f"{details['images']} + {details['holed_images']} cats", "value"], rows)


def tours() -> str:
    """Seconds of each part of the README's tours, measured by `python -m docs.tours`."""
    record = json.loads((RESULTS / "tours.json").read_text(encoding="utf-8"))
    took = (f"{name} {sum(steps.values()):.0f} s" for name, steps in record["seconds"].items())
    run = f"Times in a fresh clone on {machine(record)}, without set-up and web demo"
    return f"{run}: {', '.join(took)}."


def recipes() -> str:
    """Validation losses of stage 2 recipes, also relative to the first."""
    record = latest("recipes")[-1]
    first = next(iter(record["result"].values()))["val_loss"]
    rows = [
        [name, f"{cell['val_loss']:.3f}", f"{cell['val_loss'] - first:+.3f}"]
        for name, cell in record["result"].items()
        if name in RECIPES
    ]
    return table(["recipe", "validation loss, nats", "relative to the first"], rows)


def studies_in_full() -> str:
    """Every study: table with the report's figures, significant differences, plots."""
    reported: dict[str, list[str]] = {}
    for line in read_csv(RESULTS / "report" / "fid.csv"):
        reported.setdefault(line["study"], ["*the report: FID, other weights*"]).append(line["fid"])
    blocks = []
    for name, title in STUDY_TITLES.items():
        lines = read_csv(RESULTS / "sweep" / name / "results.csv")
        groups, seeds = groups_of(lines), len({line["seed"] for line in lines})
        heading, *rows = score_grid(title, groups)
        if name in reported:
            rows.append(reported[name])
        sentences = [f"- {s}" for row, group in groups.items() for s in statements(group, row)]
        files = sorted((RESULTS / "sweep" / name).glob("*.png"))
        blocks += [
            f"## {title}",
            f"{lines[0]['score_name']} of {lines[0]['images']} images, "
            f"mean ± standard deviation over {seeds} decoding seeds.",
            table(heading, rows),
            "\n".join(sentences),
            *(f"![{file.stem}](results/sweep/{name}/{file.name})" for file in files),
        ]
    return "\n\n".join(blocks)


def groups_of(lines: list[dict[str, str]]) -> dict[str, list[Summary]]:
    """Row of a study's table -> its settings in the order of the columns."""
    scores: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        row = scores.setdefault(line["row"] or "score", {})
        row.setdefault(line["column"], []).append(float(line["score"]))
    return {
        name: [Summary(column, tuple(values)) for column, values in columns.items()]
        for name, columns in scores.items()
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
