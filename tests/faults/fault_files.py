"""Bytes of bad files: pictures, archives, tables, checkpoints."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from functools import cache

import numpy as np
import torch
from fault_case import CANARY
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

SIDE = 16
MIB = 1 << 20


def pixels(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Coloured patches, (side, side, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return small.repeat(4, axis=0).repeat(4, axis=1)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture's file."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mask(value: int = 255) -> np.ndarray:
    """A mask with a hole in its middle, (SIDE, SIDE) uint8."""
    found = np.full((SIDE, SIDE), value, np.uint8)
    found[4:10, 5:12] = 255 - value
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def declared_png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG that claims to be so large and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + content + chunk(b"IEND", b"")


def deep_png() -> bytes:
    """A PNG in colour of 16 bits a channel, which Pillow cannot write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(bytes(SIDE * (1 + 6 * SIDE))))
    return b"\x89PNG\r\n\x1a\n" + header + content + chunk(b"IEND", b"")


def declared_gamma(gamma: float) -> bytes:
    """A PNG that states its gamma."""
    note = PngInfo()
    note.add(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    return encoded(pixels(), pnginfo=note)


def declared_primaries() -> bytes:
    """A PNG that states the primaries of Display P3 and no profile."""
    note = PngInfo()
    primaries = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    note.add(b"cHRM", struct.pack(">8I", *primaries))
    return encoded(pixels(), pnginfo=note)


def of_camera() -> bytes:
    """A JPEG of a camera that is set to Adobe RGB, which it writes into its EXIF."""
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65535, 0xA005: {1: "R03"}}
    return encoded(pixels(), "JPEG", exif=exif)


def other_profile() -> bytes:
    """A colour profile of RGB: that of sRGB, red and green exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * profile[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be"))


def grey_profile() -> bytes:
    """The beginning of a colour profile of grey."""
    return bytes(16) + b"GRAY" + bytes(112)


def wrong_checksum() -> bytes:
    """A PNG with a flipped bit among its pixels."""
    content = bytearray(encoded(pixels()))
    content[content.index(b"IDAT") + 10] ^= 1
    return bytes(content)


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to 64 MiB."""
    return declared_png(SIDE, SIDE, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 * MIB))))


def program() -> bytes:
    """PostScript, which some decoders hand to an interpreter."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
        b"(" + CANARY.encode() + b") (w) file closefile showpage\n%%EOF\n"
    )


def animation() -> bytes:
    """A GIF of two frames."""
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def turned(image: np.ndarray | None = None, exif: Image.Exif | bytes | None = None) -> bytes:
    """A JPEG that its EXIF orientation turns by a quarter."""
    if exif is None:
        exif = Image.Exif()
        exif[0x0112] = 6
    return encoded(pixels() if image is None else image, "JPEG", exif=exif)


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of such members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pictures(count: int = 11) -> dict[str, bytes]:
    """Members that a good archive has."""
    return {f"image_{i}.png": encoded(pixels(i)) for i in range(count)}


@cache
def bomb() -> bytes:
    """A zip of good pictures and one member that unpacks to 300 MiB."""
    return packed({**pictures(), "bomb.png": bytes(300 * MIB)})


def of_macs(content: bytes) -> bytes:
    """A zip as Macs pack it: names are UTF-8, and no flag says so."""
    out = bytearray(content)
    for header, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = -1
        while (place := content.find(header, place + 1)) >= 0:
            out[place + offset + 1] &= ~0x08
    return bytes(out)


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    """A zip with other bytes in every header of its directory."""
    out, place = bytearray(content), 0
    while (place := content.find(b"PK\x01\x02", place)) >= 0:
        out[place + offset : place + offset + len(value)] = value
        place += 4
    return bytes(out)


def encrypted(content: bytes) -> bytes:
    """The same zip with the flag of encryption on all members."""
    return patched(content, 8, b"\x01\x00")


def claiming(content: bytes, size: int) -> bytes:
    """The same zip, each of whose members claims to unpack to so many bytes."""
    return patched(content, 24, struct.pack("<I", size))


class Hostile:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (CANARY,)


def hostile_zip() -> bytes:
    """A PyTorch checkpoint that runs a program when it is read carelessly."""
    buffer = io.BytesIO()
    torch.save({"quant_conv.bias": Hostile()}, buffer)
    return buffer.getvalue()


def hostile_pickle() -> bytes:
    """The same in the old format, a bare pickle."""
    return pickle.dumps({"quant_conv.bias": Hostile()}, 2)


def saved(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def safetensors(header: bytes, content: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    return struct.pack("<Q", len(header)) + header + content


def npz(**arrays: object) -> bytes:
    """An npz of such arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(value) for name, value in arrays.items()})
    return buffer.getvalue()


def table(rows: list[str], columns: int = 3 * SIDE**2) -> str:
    """A csv with a header of so many columns."""
    return "\n".join([",".join(f"p{i}" for i in range(columns)), *rows]) + "\n"


def row(value: object = 7, columns: int = 3 * SIDE**2) -> str:
    """A row of a csv, the same value in every column."""
    return ",".join([str(value)] * columns)
