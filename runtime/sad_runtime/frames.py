"""How many pictures a file holds, from its block headers: nothing is decoded.

Pillow counts by going through the frames, which a hostile file can make slow. Here the time is bounded: after
:data:`MAX_BLOCKS` blocks the count so far is the answer.
"""

from __future__ import annotations

import struct

MAX_BLOCKS = 1 << 20
"""Most blocks that are looked at: a GIF of 256 MiB, a file of half a million small frames."""


def count_frames(data: bytes) -> int:
    """Pictures in an image file: frames of GIF, APNG and WebP, pages of TIFF.

    A cut or damaged file counts as far as it goes. Previews and gain maps in a JPEG are not pictures of their
    own. Of a file made of more than :data:`MAX_BLOCKS` blocks the rest is not counted.

    Args:
        data: The file.

    Returns:
        At least 1.
    """
    if data.startswith(b"GIF8"):
        frames = _gif(data)
    elif data.startswith(b"\x89PNG"):
        frames = _png(data)
    elif data.startswith(b"RIFF"):
        frames = _webp(data)
    elif data[:4] in (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+"):
        frames = _tiff(data)
    else:
        frames = 1
    return max(frames, 1)


def _gif(data: bytes) -> int:
    """Image descriptors. GIF89a specification, sections 18 to 27."""
    frames, blocks = 0, 0
    position = 13 + _color_table(data, 10)
    while position < len(data):
        kind = data[position]
        if kind == 0x2C:
            frames += 1
            position += 10 + _color_table(data, position + 9) + 1
        elif kind == 0x21:
            position += 2
        else:  # the end, or damage
            break
        while position < len(data) and data[position] and blocks < MAX_BLOCKS:
            position += data[position] + 1
            blocks += 1
        position += 1
        blocks += 1
        if blocks >= MAX_BLOCKS:
            break
    return frames


def _color_table(data: bytes, flags: int) -> int:
    """Bytes of the colour table that a packed field announces."""
    if flags >= len(data) or not data[flags] & 0x80:
        return 0
    return int(3 << ((data[flags] & 7) + 1))


def _png(data: bytes) -> int:
    """Frame controls. PNG specification, third edition, section 11.3.6."""
    animated, frames, position = False, 0, 8
    for _ in range(MAX_BLOCKS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        animated |= kind == b"acTL"
        # A picture that comes before the first control is shown where animations are not; it counts too.
        frames += kind == b"fcTL" or (kind == b"IDAT" and not frames)
        position += 12 + length
    return frames if animated else 1


def _webp(data: bytes) -> int:
    """Chunks named ANMF. WebP container specification, "Animation"."""
    frames, position = 0, 12
    for _ in range(MAX_BLOCKS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        frames += kind == b"ANMF"
        position += 8 + length + length % 2
    return frames


def _tiff(data: bytes) -> int:
    """Directories of the chain. TIFF 6.0, section 2; BigTIFF has 8-byte counts and offsets."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count, offset, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    seen: set[int] = set()
    try:
        (position,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        while position and position not in seen and len(seen) < MAX_BLOCKS:
            (entries,) = struct.unpack_from(order + count, data, position)
            seen.add(position)
            link = position + struct.calcsize(count) + entries * entry
            (position,) = struct.unpack_from(order + offset, data, link)
    except (struct.error, OverflowError):  # it leads out of the file
        pass
    return len(seen)
