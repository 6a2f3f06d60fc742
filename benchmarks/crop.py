"""Draw the before/after picture of the README from the sample clip and the shipped weights.

    python benchmarks/crop.py [--input CLIP] [--frame N] [--crop X,Y,W,H] [--output PNG]

Left bicubic, right the default model, both four times as large, from the same decoded frame; crops
are given in pixels of the input.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from engines import create_engine, load_model  # noqa: E402
from train.metrics import to_picture  # noqa: E402
from vsr.config import DEFAULT_MODEL  # noqa: E402
from vsr.convert import to_rgb  # noqa: E402
from vsr.video import Reader  # noqa: E402

BAND = 26  # height of the captions, pixels
GAP = 6


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, default=ROOT / "samples" / "bbb.mp4")
    parser.add_argument("--frame", type=int, default=0)
    parser.add_argument("--crop", default="20,48,110,92", help="X,Y,W,H in pixels of the input")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "before_after.png")
    arguments = parser.parse_args()
    x, y, width, height = (int(number) for number in arguments.crop.split(","))

    with Reader(arguments.input) as reader:
        planes = next(islice(reader.frames(), arguments.frame, None)).value
        rgb = to_rgb(planes, reader.info.layout)
    model = load_model(DEFAULT_MODEL)
    engine = create_engine(model, precision="fp32")
    scale = model.scale
    small = Image.fromarray(to_picture(rgb))
    size = (small.width * scale, small.height * scale)
    pictures = {
        "bicubic": small.resize(size, Image.Resampling.BICUBIC),
        model.name: Image.fromarray(to_picture(engine(rgb.to(engine.device)).cpu())),
    }

    box = tuple(scale * edge for edge in (x, y, x + width, y + height))
    crops = {name: picture.crop(box) for name, picture in pictures.items()}
    wide, tall = scale * width, scale * height
    sheet = Image.new("RGB", (wide * len(crops) + GAP * (len(crops) - 1), tall + BAND), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, crop) in enumerate(crops.items()):
        left = index * (wide + GAP)
        sheet.paste(crop, (left, BAND))
        draw.text((left + 4, 3), f"{name} x{scale}", "black", ImageFont.load_default(16))
    sheet.save(arguments.output, optimize=True)
    difference = np.abs(np.asarray(crops["bicubic"], int) - np.asarray(crops[model.name], int))
    print(f"{arguments.output}: mean difference {difference.mean():.2f} code values")


if __name__ == "__main__":
    main()
