"""Put pictures of a demo run side by side: `python infra/make_demo_picture.py autolabel-demo docs/img/demo.png`."""

import sys
from pathlib import Path

from PIL import Image

COLUMNS, ROWS, SIDE, GAP = 4, 2, 300, 8  # pictures, and pixels


def main(results: Path, target: Path) -> None:
    """Write the first pictures of `results` as one."""
    names = sorted((results / "images_annotated").glob("*.png"))[: COLUMNS * ROWS]
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, ROWS * (SIDE + GAP) - GAP), "white")
    for place, name in enumerate(names):
        picture = Image.open(name).convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        row, column = divmod(place, COLUMNS)
        left, top = column * (SIDE + GAP), row * (SIDE + GAP)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
