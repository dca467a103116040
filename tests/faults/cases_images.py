"""Pictures and masks that are broken, odd or hostile, shown to every script that reads them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from fault_case import (
    INPAINT,
    PREPARE,
    REPAIRED,
    SCORE,
    SWEEP,
    TOKENIZER,
    TRANSFORMER,
    Case,
    Maker,
    both,
    cut,
    linked,
    manifest_with,
    moved,
    put,
    removed,
    sparse,
)
from fault_files import (
    MIB,
    SIDE,
    animation,
    declared_gamma,
    declared_png,
    declared_primaries,
    deep_png,
    encoded,
    grey_profile,
    mask,
    of_camera,
    other_profile,
    packed,
    pixels,
    program,
    text_bomb,
    turned,
    wrong_checksum,
)
from PIL import Image

IMAGE, MASK = "job/masked_image/image_1.png", "job/mask64/mask_1.png"
INPAINT_ONE = f"inpainting.py --config tiny.yml --masks {MASK}"
MANY = "inpainting.py --config tiny.yml --images job/masked_image --masks job/mask64"
PICTURE = Image.fromarray(pixels())

BROKEN: dict[str, tuple[bytes | Maker, str]] = {  # what is wrong: content, what is said of it
    "truncated": (encoded(pixels())[:90], "image"),
    "of zero bytes": (b"", "image"),
    "text": (b"not an image\n", "image"),
    "random bytes": (np.random.default_rng(0).bytes(4000), "image"),
    "with a wrong checksum": (wrong_checksum(), "image"),
    "of 20,000 x 20,000 pixels": (
        declared_png(20_000, 20_000),
        "400,000,000 pixels; allowed are 64,000,000 (INPUT_LIMITS=pixels=N",
    ),
    "of 1,000 x 100,000 pixels": (declared_png(1_000, 100_000), "100,000,000 pixels; allowed"),
    "with a comment that unpacks to 64 MiB": (text_bomb(), "image"),
    "PostScript with a program": (program(), "image"),
    "a link to itself": (linked("loop", "loop"), ""),
    "an archive": (packed({"a.png": encoded(pixels())}), "image"),
    "of 1 GiB": (sparse("huge", 1024 * MIB, encoded(pixels())[:60]), ""),
}
ALIKE = ("text", "random bytes", "an archive", "of 1,000 x 100,000 pixels")  # as one of the others
READERS = {  # command, file to break, code
    INPAINT: ("job/masked_image/image_1.png", 2),
    TRANSFORMER: ("data/train/image_2.png", 2),
    TOKENIZER: ("data/val/image_2.png", 2),
    f"{SCORE} --metrics fid,paired": ("results/image_3.png", 2),
    PREPARE: ("pictures/image_5.png", 2),  # so few pictures cannot spare one
}


def _broken() -> list[Case]:
    cases = []
    for command, (file, code) in READERS.items():
        script = command.split()[0].rpartition("/")[2]
        for what, (content, says) in BROKEN.items():
            if callable(content):
                continue
            if script == "prepare_data.py":
                says = "too few usable images (11 files, 10 read, 10 distinct, 1 unreadable"
            name = f"{script}: a picture {what}"
            sibling = what in ALIKE
            cases.append(Case(name, command, says, put(file, content), code, sibling=sibling))
    return cases


def _first() -> list[Case]:
    """The first picture says how many are read ahead, so its header is read once more."""
    return [
        Case(f"a first picture {what}", INPAINT, says, put(IMAGE.replace("1", "0"), content),
             sibling=what in ALIKE)
        for what, (content, says) in BROKEN.items()
        if not callable(content)
    ]  # fmt: skip


def _results() -> list[Case]:
    """A broken file where a result of ours belongs is made again, a good one is not replaced."""
    file = "out/test_results/image_000.png"
    theirs = put(file, encoded(pixels()))
    return [
        Case("a result of another program", INPAINT, f"{file}: was not made by this", theirs),
        *(
            Case(f"a result {what}", INPAINT, "", put(file, content), REPAIRED, 3, replaced=file,
                 sibling=what in ALIKE)
            for what, (content, _) in BROKEN.items()
            if not callable(content)
        ),
    ]  # fmt: skip


def _odd(name: str, content: bytes, says: str = "") -> Case:
    """A picture that is unusual and is read all the same."""
    return Case(f"a picture {name}", INPAINT, says, put(IMAGE, content), REPAIRED, results=3)


def _renamed(name: str, new: str) -> Case:
    """A picture and its mask whose names a careless program would stumble over."""
    files = [(f"job/{part}/{old}_1.png", f"job/{part}/{new}") for part, old in PARTS]
    return Case(name, INPAINT, "", both(*(moved(a, b) for a, b in files)), REPAIRED, results=3)


def _like_lama(folder: Path) -> None:
    """image1.png, image1_mask003.png and so on; image 1 alone has a mask that it may have."""
    shutil.rmtree(folder / "job/test")
    for i in range(3):
        moved(f"job/masked_image/image_{i}.png", f"job/masked_image/image{i}.png")(folder)
        moved(f"job/mask64/mask_{i}.png", f"job/mask64/image{i}_mask00{(i + 1) % 3}.png")(folder)
    for name in ("masked_image/image1.png", "mask64/image1_mask002.png"):
        put(f"job/{name}", encoded(mask(0)[:8] if "mask64" in name else pixels()[:8]))(folder)


PARTS = (("masked_image", "image"), ("mask64", "mask"), ("test", "image"))

OF_WRONG_TYPE = (  # orientation 6 and a resolution in words
    b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    b"\x1a\x01\x02\0\x04\0\0\0high\0\0\0\0"
)

ODD = [
    _odd("in CMYK", encoded(PICTURE.convert("CMYK"), "JPEG"), "is in CMYK"),
    _odd("in grey", encoded(PICTURE.convert("L"))),
    _odd("of one bit a pixel", encoded(PICTURE.convert("1"))),
    _odd("in 16-bit grey", encoded(np.full((SIDE, SIDE), 9000, np.uint16)), "has 16 bits"),
    _odd(
        "of 8 bits in 16",
        encoded(np.full((SIDE, SIDE), 200, np.uint16)),
        "has 16 bits or more but no value above 255",
    ),
    _odd("that is an animation", animation(), "note: job/masked_image/image_1.png has several"),
    _odd("with a palette", encoded(PICTURE.convert("P"))),
    _odd("turned by its EXIF data", turned()),
    _odd("whose EXIF data is damaged", encoded(PICTURE, "JPEG", exif=b"Exif\0\0damaged")),
    _odd("turned by EXIF data with a tag of a wrong type", turned(exif=OF_WRONG_TYPE)),
    _odd("transparent in part", encoded(pixels(1)[..., [0, 1, 2, 0]]), "is partly transparent"),
    _odd("in CIE Lab", encoded(Image.new("LAB", (SIDE, SIDE)), "TIFF")),
    _odd("in 16-bit colour", deep_png(), "note: job/masked_image/image_1.png has 16 bits"),
    _odd(
        "in 16-bit colour of another format",
        b"P6 16 16 65535\n" + bytes(6 * SIDE**2),
        "has 16 bits per channel; 8 are used",
    ),
    _odd("with a colour profile", encoded(PICTURE, icc_profile=other_profile())),
    _odd(
        "in grey with a profile of grey",
        encoded(PICTURE.convert("L"), icc_profile=grey_profile()),
        "declares a colour space other than sRGB",
    ),
    _odd(
        "that states another gamma", declared_gamma(1.0), "declares a colour space other than sRGB"
    ),
    _odd(
        "that states other primaries",
        declared_primaries(),
        "declares a colour space other than sRGB",
    ),
    _odd("of a camera set to Adobe RGB", of_camera(), "declares a colour space other than sRGB"),
    _odd(
        "with a colour profile that no PNG may hold",
        encoded(PICTURE, "JPEG", icc_profile=other_profile() + bytes(2 * MIB)),
        "a profile that an RGB PNG cannot keep",
    ),
    _odd("with a broken colour profile", encoded(PICTURE, icc_profile=b"profile" * 9)),
    _odd("with bytes after its end", encoded(pixels()) + b"more" * 99),
    _odd("that is a WebP named .png", encoded(PICTURE, "WEBP", lossless=True)),
]

LEFT_OUT = [
    Case("an animation of a picture with a colour profile", f"{INPAINT} --animation webp", "",
         put(IMAGE, encoded(PICTURE, icc_profile=other_profile())), REPAIRED, results=3),
    Case("a picture to prepare with a colour profile", PREPARE,
         "note: image_5.png has a colour profile; it is left out",
         put("pictures/image_5.png", encoded(pixels(45), icc_profile=other_profile())), REPAIRED,
         replaced="pictures/image_5.png"),
    Case("a training picture with a colour profile", f"{TRANSFORMER} --run own --epochs 1 "
         "--tokenizer run/tokenizer/vqgan.safetensors", "image_2.png has a colour profile; it is",
         put("data/train/image_2.png", encoded(pixels(2), icc_profile=other_profile())), REPAIRED,
         replaced="data/train/image_2.png"),
    Case("a picture of a sweep with a colour profile", SWEEP, "image_1.png has a colour profile",
         put(IMAGE, encoded(pixels(81), icc_profile=other_profile())), REPAIRED, replaced=IMAGE),
    Case("repairs to grade with a colour profile",
         "grade.py solutions --config tiny.yml --data job --output out",
         "solutions/a/image_0.png has a colour profile; it is left out",
         both(*(put(f"solutions/a/image_{i}.png",
                    encoded(pixels(80 + i), icc_profile=other_profile())) for i in range(3))),
         REPAIRED),
    Case("a picture to score with a colour profile", f"{SCORE} --gt-path truth",
         "truth/image_3.png declares a colour space other than sRGB; its values are not converted",
         put("truth/image_3.png", encoded(pixels(63), icc_profile=other_profile())), REPAIRED,
         replaced="truth/image_3.png"),
    *(Case(f"{script}: a picture whose EXIF data is damaged", command, "",
           put(file, encoded(pixels(seed), "JPEG", exif=b"Exif\0\0damaged")), REPAIRED,
           replaced=file)
      for script, command, file, seed in (
          ("training_transformer.py", f"{TRANSFORMER} --run own --epochs 1 --tokenizer "
           "run/tokenizer/vqgan.safetensors", "data/train/image_2.png", 2),
          ("prepare_data.py", PREPARE, "pictures/image_5.png", 45),
          ("fid_score_gpu.py", SCORE, "truth/image_3.png", 63))),
    Case("pictures to score in a folder and below", f"{SCORE} --gt-path truth",
         "truth: truth/more contains images too, left out without --recursive",
         put("truth/more/image_9.png", encoded(pixels())), REPAIRED),
    Case("pictures to repair in a folder and below", INPAINT,
         "job/masked_image: job/masked_image/more contains images too, which are left out",
         put("job/masked_image/more/image_9.png", encoded(pixels())), REPAIRED, results=3),
    Case("a further picture of a format that is not read", INPAINT,
         "note: job/masked_image: image_4.avif left out; allowed are .bmp, .gif",
         put("job/masked_image/image_4.avif", b"picture"), REPAIRED, results=3),
    Case("a further picture to prepare of a format that is not read", PREPARE,
         "note: pictures: more/a.heic left out; allowed are .bmp, .gif",
         put("pictures/more/a.heic", b"picture"), REPAIRED),
]  # fmt: skip

NAMES = [
    _renamed("names with spaces", "a picture 1.png"),
    _renamed("names in other scripts", "猫 кошка 1.png"),
    _renamed("names with a line break", "two\nlines 1.png"),
    _renamed("names with a terminal's control characters", "\x1b[31mred 1.png"),
    _renamed("names that look like an option", "--output 1.png"),
    Case(
        "masks whose names differ in the vowel signs of Thai only",
        INPAINT,
        "",
        both(
            removed("job/masked_image/image_2.png"),
            removed("job/mask64/mask_2.png"),
            removed("job/test/image_2.png"),
            *(
                moved(f"job/{part}/{old}_{i}.png", f"job/{part}/\u0e01{sign}{end}.png")
                for (part, old), end in zip(PARTS, ("", "_mask", ""), strict=True)
                for i, sign in enumerate(("\u0e35", "\u0e36"))
            ),
        ),
        REPAIRED,
        results=2,
    ),
    Case(
        "masks named as LaMa does, which are numbered otherwise",
        INPAINT,
        "",
        _like_lama,
        REPAIRED,
        results=3,
    ),
    Case(
        "a name that would break the line of a note",
        SCORE,
        "a \\x1b[31mred.heic left out",
        put("truth/a\n\x1b[31mred.heic", b"picture"),
        REPAIRED,
    ),
    Case(
        "a bad picture whose name holds line breaks and control characters",
        INPAINT,
        "two lines \\x1b[31m1.png",
        both(
            moved(IMAGE, "job/masked_image/two\nlines \x1b[31m1.png"),
            put("job/masked_image/two\nlines \x1b[31m1.png", b"text"),
        ),
    ),
]

SIZES = [
    Case("a picture of 1 x 1", INPAINT, "1 x 1", put(IMAGE, encoded(pixels()[:1, :1]))),
    Case(
        "picture and mask of 1 x 1",
        INPAINT.replace("--data job", "--images job/masked_image --masks job/mask64"),
        "",
        both(put(IMAGE, encoded(pixels()[:1, :1])), put(MASK, encoded(mask(0)[:1, :1]))),
        REPAIRED,
        results=3,
    ),
    Case("a training picture of 1 x 1", TRANSFORMER, "image_2.png: 1 x 1 pixels, not 16 x 16",
         put("data/train/image_2.png", encoded(pixels()[:1, :1]))),
    Case("a predicted picture of another size", f"{SCORE} --gt-path truth", "image_3.png: 8 x 8",
         put("results/image_3.png", encoded(pixels()[:8, :8]))),
    Case("floating-point pixels", INPAINT, "image_1.png: floating-point pixels",
         put(IMAGE, encoded(Image.new("F", (SIDE, SIDE)), "TIFF"))),
    Case("floating-point pixels for the scorer", f"{SCORE} --gt-path truth",
         "image_3.png: floating-point pixels; save it with 8 or 16 bits",
         put("results/image_3.png", encoded(Image.new("F", (SIDE, SIDE)), "TIFF"))),
    Case("a picture beyond a limit that the user set", INPAINT, "256 pixels; allowed are 100",
         limits="pixels=100"),
    Case("a wrong limit", INPAINT, "INPUT_LIMITS: 'pixel' is unknown", limits="pixel=3"),
]  # fmt: skip

LINKS = [
    Case("a picture that links to itself", INPAINT, "image_1.png: cannot be read: Too many levels",
         linked(IMAGE, "image_1.png")),
    Case("a picture that links to nothing", INPAINT, "image_1.png: links to a file that is not",
         linked(IMAGE, "gone.png")),
    Case("a training picture that links to nothing", TRANSFORMER, "image_2.png: No such file",
         linked("data/train/image_2.png", "gone.png")),
    Case("a predicted picture that links to itself", SCORE, "image_3.png",
         linked("results/image_3.png", "image_3.png")),
    Case("a folder that links to its parent", PREPARE, "all is a link to a folder, which is left",
         linked("pictures/all", ".."), REPAIRED),
    Case("a folder named like a picture", INPAINT, "2 images",
         both(removed(IMAGE), lambda folder: (folder / IMAGE).mkdir())),
    Case("a pipe named like a picture", INPAINT, "2 images",
         both(removed(IMAGE), lambda folder: __import__("os").mkfifo(folder / IMAGE))),
    Case("a device as picture", "inpainting.py --config tiny.yml --images /dev/zero --masks "
         "job/mask64/mask_1.png", "/dev/zero: is not a folder"),
]  # fmt: skip

MASKS = [
    Case("a mask without a hole", INPAINT, "", put(MASK, encoded(np.full((16, 16), 255, np.uint8))),
         REPAIRED, results=3),
    Case("a mask that is all hole", INPAINT, "", put(MASK, encoded(np.zeros((16, 16), np.uint8))),
         REPAIRED, results=3),
    Case("an inverted mask", INPAINT, "mask_1.png: inverted?",
         both(put(IMAGE, encoded(np.where(mask()[..., None] == 0, pixels(), np.uint8(128)))),
              put(MASK, encoded(mask()))), REPAIRED, results=3),
    Case("a soft mask", INPAINT, "split at 128 (--mask-threshold)",
         put(MASK, encoded(np.where(mask() == 0, np.uint8(77), np.uint8(255)))),
         REPAIRED, results=3),
    Case("a mask of zeros and ones", INPAINT, "a mask of 0 and 1; they are read as",
         put(MASK, encoded(mask() // 255)), REPAIRED, results=3),
    Case("a mask saved as JPEG", INPAINT, "split at 128",
         put(MASK, encoded(mask(), "JPEG", quality=30)), REPAIRED, results=3),
    Case("a mask of fractions", INPAINT, "a mask of 0 and 1; they are read as",
         put(MASK, encoded(Image.fromarray((mask() / 255).astype(np.float32)), "TIFF")),
         REPAIRED, results=3),
    Case("a mask of 32 bits", INPAINT, "",
         put(MASK, encoded(Image.fromarray(mask().astype(np.int32)), "TIFF")), REPAIRED, results=3),
    Case("a mask of zeros and ones in 16 bits", INPAINT, "a mask of 0 and 1; they are read as",
         put(MASK, encoded((mask() // 255).astype(np.uint16))), REPAIRED, results=3),
    Case("a mask of fractions below zero", INPAINT, "a mask with values from -1 to 0; allowed",
         put(MASK, encoded(Image.fromarray((mask() / 255 - 1).astype(np.float32)), "TIFF"))),
    Case("a mask with not a number", INPAINT, "a mask with values from nan to nan; allowed are 0",
         put(MASK, encoded(Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), "TIFF"))),
    Case("a mask in colour", INPAINT, "a mask must be grey", put(MASK, encoded(pixels()))),
    Case("a transparent mask", INPAINT, "a mask must not be transparent",
         put(MASK, encoded(np.zeros((SIDE, SIDE, 4), np.uint8)))),
    Case("a mask of another size", INPAINT, "mask_1.png: 8 x 8 pixels, but",
         put(MASK, encoded(mask()[:8, :8]))),
    Case("a mask of one bit a pixel", INPAINT, "",
         put(MASK, encoded(Image.fromarray(mask()).convert("1"))), REPAIRED, results=3),
    Case("a mask of a picture turned by its EXIF data", INPAINT,
         "mask_1.png: 16 x 8 pixels, but job/masked_image/image_1.jpg has 8 x 16 (turned as its",
         both(removed(IMAGE), put(IMAGE.replace("png", "jpg"), turned(pixels()[:8])),
              put(MASK, encoded(mask()[:8])))),
    Case("a picture of a format that is not read", f"{INPAINT_ONE} --images a.avif",
         "not an image that can be decoded; formats are BMP", put("a.avif", b"picture")),
    *(Case(f"{what} that is an archive", f"{MANY} {flag} a.zip",
           "a.zip: cannot be read as an image: not an image that can be decoded; formats are BMP, "
           f"GIF, JPEG, PNG, PPM, TIFF, WEBP; name a folder{allowed}",
           put("a.zip", packed({"a.png": encoded(pixels())})))
      for what, flag, allowed in (
          ("a folder of pictures", "--images", " or an image"),
          ("a folder of masks", "--masks", " or an image"),
          ("a folder of truths", "--ground-truth", ", an image or a .csv"))),
    Case("a picture that is not there", f"{INPAINT_ONE} --images a.png",
         "a.png: no such file or folder"),
    Case("a picture beside a folder of masks", f"{INPAINT_ONE} --images {IMAGE} --masks job/mask64",
         "2 masks more than images are left out", code=REPAIRED),
    Case("a truncated mask", INPAINT, "mask_1.png: cannot be read", cut(MASK, 0.6)),
    Case("one mask for three pictures", f"{MANY} --masks {MASK}",
         f"3 images in job/masked_image and {MASK} do not pair by the number at the end or by "
         "name; without a partner"),
    Case("a mask too few", INPAINT, "3 images in job/masked_image and 2 masks", removed(MASK)),
    Case("a mask too many", INPAINT, "1 masks more than images are left out",
         put("job/mask64/mask_9.png", encoded(mask())), REPAIRED, results=3),
    Case("two masks for one picture", INPAINT, "and 4 masks",
         put("job/mask64/other_1.png", encoded(mask()))),
    Case("a mask of zeros and ones for the scorer", f"{SCORE} --metrics fid,paired", "",
         put("masks/mask_3.png", encoded(mask() // 255)), REPAIRED),
    Case("soft masks for the scorer, whose threshold the manifest states",
         f"{SCORE} --metrics fid,paired,hole", "",
         both(put("masks/mask_3.png", encoded(mask(), "JPEG", quality=30)),
              manifest_with(mask_threshold=128)), REPAIRED, replaced="masks/mask_3.png"),
    Case("a soft mask for the scorer", f"{SCORE} --metrics fid,paired", "mask_3.png",
         put("masks/mask_3.png", encoded(np.full((SIDE, SIDE), 99, np.uint8)))),
    Case("a mask of another size for the scorer", f"{SCORE} --metrics fid,paired", "mask_3.png",
         put("masks/mask_3.png", encoded(mask()[:8, :8]))),
    Case("a mask of fractions for the scorer", f"{SCORE} --metrics fid,paired", "",
         put("masks/mask_3.png", encoded(Image.fromarray((mask() / 255).astype(np.float32)),
                                         "TIFF")), REPAIRED),
    Case("a transparent mask for the scorer", f"{SCORE} --metrics fid,paired",
         "mask_3.png: a mask must not be transparent",
         put("masks/mask_3.png", encoded(np.zeros((SIDE, SIDE, 4), np.uint8)))),
    Case("a notebook's copies among folders to score", f"{SCORE} --gt-path truth --recursive "
         "--metrics fid,paired", "", put("truth/.ipynb_checkpoints/image_0.png", b""), REPAIRED),
]  # fmt: skip

CASES = [*_broken(), *_first(), *_results(), *ODD, *LEFT_OUT, *NAMES, *SIZES, *LINKS, *MASKS]
