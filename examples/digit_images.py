"""Write handwritten digits that the embedded network never saw as PNG files, named after what they show.

python examples/digit_images.py images
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from sad_deploy.data.digits import digits_splits


def main(folder: Path) -> None:
    """Write one grey 16×16 PNG for each image of the test split."""
    _, _, test = digits_splits()
    assert test.labels is not None
    folder.mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        Image.fromarray(image[0]).save(folder / f"{number:03d}_is_{label}.png")
    print(f"{len(test.labels)} images in {folder}/")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "images"))
