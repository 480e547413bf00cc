"""Image files of every kind that turns up in a large folder, made here: good, odd, damaged and hostile."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import Image

from sad_runtime.errors import ErrorCode

PHOTO = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@dataclasses.dataclass(frozen=True)
class Good:
    """A file that is read: (width, height), number of frames, and the RGB value of its first pixel."""

    data: bytes
    size: tuple[int, int]
    frames: int = 1
    first_pixel: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Bad:
    """A file that is refused, and how."""

    data: bytes
    code: ErrorCode


def encoded(format_: str, image: np.ndarray | Image.Image = PHOTO, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_, **options)
    return buffer.getvalue()


def flat(*levels: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((9, 9, 3), level, np.uint8)) for level in levels]


def animation(format_: str, **options: object) -> bytes:
    first, *others = flat(0, 100, 250)
    return encoded(format_, first, save_all=True, append_images=others, **options)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, raw: bytes, *, depth: int = 8, color_type: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG of these header fields, whatever its data; ``extra`` are chunks before the data."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = [
        png_chunk(b"IHDR", header),
        extra,
        png_chunk(b"IDAT", zlib.compress(raw)),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_text_bomb(kind: bytes) -> bytes:
    """A pixel, and a text or colour profile that unpacks to 30 MB."""
    packed = zlib.compress(bytes(30_000_000), 9)
    head = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    return png(1, 1, b"\0\0", extra=png_chunk(kind, head + packed))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def jpeg_with_exif(exif: bytes, image: np.ndarray = PHOTO) -> bytes:
    return encoded("JPEG", image, exif=exif, quality=95)


def gif_of(frames: int, *, in_each: bytes = b"\x02\x02\x44\x01\x00") -> bytes:
    """One pixel, many times."""
    header = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return header + (b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + in_each) * frames + b";"


def tiff_of(pages: int) -> bytes:
    """One picture, then empty pages."""
    data, link = _tiff()
    start = len(data)
    struct.pack_into("<I", data, link, start)
    offsets = np.arange(1, pages) * 6 + start
    offsets[-1] = 0
    entries = np.zeros(pages - 1, dtype=[("count", "<u2"), ("next", "<u4")])
    entries["next"] = offsets
    return bytes(data) + entries.tobytes()


def tiff_loop() -> bytes:
    """The page after the first is the first."""
    data, link = _tiff()
    struct.pack_into("<I", data, link, struct.unpack_from("<I", data, 4)[0])
    return bytes(data)


def _tiff() -> tuple[bytearray, int]:
    data = bytearray(encoded("TIFF", GREY))
    data += bytes(len(data) % 2)
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    return data, directory + 2 + entries * 12


def tiff_of_12_bits(value: int) -> bytes:
    """Two pixels of the same value."""
    packed = ((value << 12) | value).to_bytes(3, "big")
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, content) for tag, content in tags)
    return (
        b"II*\0" + struct.pack("<I", 12) + packed + b"\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def good_files() -> dict[str, Good]:
    first = tuple(int(v) for v in PHOTO[0, 0])
    deep = np.full((2, 2), 0x8001, np.uint16)
    two_bytes = b"\x80\x01"
    palette = Image.new("P", (3, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    return {
        "jpeg": Good(encoded("JPEG"), (80, 60)),
        "png": Good(encoded("PNG"), (80, 60), first_pixel=first),
        "bmp": Good(encoded("BMP"), (80, 60), first_pixel=first),
        "webp": Good(encoded("WEBP", lossless=True), (80, 60), first_pixel=first),
        "tiff": Good(encoded("TIFF"), (80, 60), first_pixel=first),
        "big tiff": Good(encoded("TIFF", big_tiff=True), (80, 60), first_pixel=first),
        "gif": Good(encoded("GIF"), (80, 60)),
        "1x1": Good(encoded("PNG", PHOTO[:1, :1]), (1, 1), first_pixel=first),
        "1x5000": Good(encoded("PNG", np.zeros((5000, 1), np.uint8)), (1, 5000), first_pixel=(0, 0, 0)),
        "5000x1": Good(encoded("JPEG", np.zeros((1, 5000), np.uint8)), (5000, 1), first_pixel=(0, 0, 0)),
        "16-bit grey png": Good(encoded("PNG", deep), (2, 2), first_pixel=(128,) * 3),
        "16-bit grey tiff": Good(encoded("TIFF", deep), (2, 2), first_pixel=(128,) * 3),
        "12-bit grey tiff": Good(tiff_of_12_bits(2048), (2, 1), first_pixel=(128,) * 3),
        "16-bit rgb png": Good(
            png(2, 2, (b"\0" + two_bytes * 6) * 2, depth=16, color_type=2), (2, 2), first_pixel=(128,) * 3
        ),
        "16-bit grey and alpha png": Good(
            png(2, 2, (b"\0" + two_bytes * 4) * 2, depth=16, color_type=4), (2, 2), first_pixel=(128,) * 3
        ),
        "16-bit rgba png": Good(
            png(2, 2, (b"\0" + two_bytes * 8) * 2, depth=16, color_type=6), (2, 2), first_pixel=(128,) * 3
        ),
        "cmyk jpeg": Good(encoded("JPEG", Image.new("CMYK", (8, 8))), (8, 8), first_pixel=(255,) * 3),
        "cmyk tiff": Good(encoded("TIFF", Image.new("CMYK", (8, 8))), (8, 8), first_pixel=(255,) * 3),
        "palette with alpha": Good(
            encoded("PNG", palette, transparency=bytes([255, 0])), (3, 3), first_pixel=(10, 20, 30)
        ),
        "palette with one clear colour": Good(
            encoded("PNG", palette, transparency=1), (3, 3), first_pixel=(10, 20, 30)
        ),
        "grey and alpha": Good(encoded("PNG", Image.new("LA", (3, 3), (7, 0))), (3, 3), first_pixel=(7,) * 3),
        "1-bit png": Good(encoded("PNG", Image.new("1", (9, 3), 1)), (9, 3), first_pixel=(255,) * 3),
        "1-bit tiff": Good(
            encoded("TIFF", Image.new("1", (9, 3), 1), compression="group4"), (9, 3), first_pixel=(255,) * 3
        ),
        "animated gif": Good(animation("GIF"), (9, 9), 3, (0, 0, 0)),
        "animated webp": Good(animation("WEBP", lossless=True), (9, 9), 3, (0, 0, 0)),
        "animated png": Good(animation("PNG"), (9, 9), 3, (0, 0, 0)),
        "animated png with a still": Good(animation("PNG", default_image=True), (9, 9), 3, (0, 0, 0)),
        "pages of tiff": Good(animation("TIFF"), (9, 9), 3, (0, 0, 0)),
        "pages of big tiff": Good(animation("TIFF", big_tiff=True), (9, 9), 3, (0, 0, 0)),
        "pages in a circle": Good(tiff_loop(), (16, 16), 1, (0, 0, 0)),
        "jpeg with a second picture": Good(animation("MPO"), (9, 9), 1, (0, 0, 0)),
        "empty exif": Good(jpeg_with_exif(b"Exif\0\0"), (80, 60)),
        "exif that leads nowhere": Good(jpeg_with_exif(b"Exif\0\0MM\0*\xff\xff\xff\xff"), (80, 60)),
        "exif of noise": Good(jpeg_with_exif(b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 40), (80, 60)),
    }


def bad_files() -> dict[str, Bad]:
    not_an_image = {
        "one byte": b"x",
        "zeros": bytes(1000),
        "text": "text".encode("utf-16"),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": encoded("EPS"),
        "ps": b"%!PS-Adobe-3.0\n(x) run\n",
        "pdf": encoded("PDF"),
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(200),
        "emf": b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(100),
        "mvg": b"push graphic-context\nimage over 0,0 0,0 'https://example.com'\n",
        "ico": encoded("ICO"),
        "netpbm": encoded("PPM"),
        "jpeg 2000": encoded("JPEG2000"),
    }
    truncated = {f"half a {kind}": encoded(kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP")}
    damaged = bytearray(encoded("PNG"))
    damaged[80:120] = bytes(40)
    return {
        "empty": Bad(b"", ErrorCode.EMPTY),
        **{name: Bad(data, ErrorCode.NOT_AN_IMAGE) for name, data in not_an_image.items()},
        **{name: Bad(data[: len(data) // 2], ErrorCode.TRUNCATED) for name, data in truncated.items()},
        "jpeg without its last bytes": Bad(encoded("JPEG")[:-3], ErrorCode.TRUNCATED),
        "png with a damaged stream": Bad(bytes(damaged), ErrorCode.CORRUPT),
        "no pixel": Bad(png(0, 5, b""), ErrorCode.CORRUPT),
        "100 megapixels": Bad(png(10_000, 10_000, b""), ErrorCode.TOO_LARGE),
        "4 exapixels": Bad(png(2**31 - 1, 2**31 - 1, b""), ErrorCode.TOO_LARGE),
        "jpeg of 4 gigapixels": Bad(jpeg_claiming(65_535, 65_535), ErrorCode.TOO_LARGE),
        "compressed text": Bad(png_text_bomb(b"zTXt"), ErrorCode.TOO_LARGE),
        "compressed international text": Bad(png_text_bomb(b"iTXt"), ErrorCode.TOO_LARGE),
        "compressed profile": Bad(png_text_bomb(b"iCCP"), ErrorCode.TOO_LARGE),
    }
