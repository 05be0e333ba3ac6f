"""Draw the demo's pictures, in the only style that its model has learnt to see.

python -m mlx_llama4.demo.render FOLDER
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

OVERSAMPLING = 2
WHITE = (255, 255, 255)
CREAM = (250, 245, 230)
COLOURS = {
    "red": (222, 32, 30),
    "green": (32, 160, 52),
    "blue": (30, 70, 220),
    "yellow": (245, 214, 32),
    "purple": (140, 42, 170),
    "orange": (250, 136, 22),
    "black": (20, 20, 20),
}


@dataclass(frozen=True)
class Shape:
    """Centre and radius are fractions of the picture's sides and of its shorter side."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float = 0.19


@dataclass(frozen=True)
class Picture:
    width: int
    height: int
    shapes: tuple[Shape, ...]
    background: tuple[int, int, int] = WHITE


PICTURES = {
    "star.png": Picture(56, 56, (Shape("red", "star", 0.5, 0.52, 0.3),)),
    "two.png": Picture(
        200, 160, (Shape("blue", "circle", 0.27, 0.45), Shape("green", "star", 0.72, 0.55))
    ),
    "three.png": Picture(
        224,
        224,
        (
            Shape("orange", "square", 0.2, 0.4, 0.16),
            Shape("purple", "cross", 0.5, 0.6, 0.16),
            Shape("black", "triangle", 0.8, 0.35, 0.16),
        ),
        CREAM,
    ),
    "wide.png": Picture(
        112, 56, (Shape("red", "square", 0.25, 0.5, 0.26), Shape("blue", "circle", 0.74, 0.5, 0.26))
    ),
    "first.png": Picture(112, 112, (Shape("yellow", "star", 0.45, 0.5, 0.24),)),
    "second.png": Picture(112, 112, (Shape("red", "triangle", 0.55, 0.45, 0.24),), CREAM),
}


def outline(shape: Shape, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a shape in pixels; not for circles."""
    if shape.kind == "square":
        side = 0.86 * radius
        corners = [(-side, -side), (side, -side), (side, side), (-side, side)]
    elif shape.kind == "triangle":
        corners = [(0, -radius), (0.95 * radius, 0.75 * radius), (-0.95 * radius, 0.75 * radius)]
    elif shape.kind == "star":
        lengths = [1.1 * radius, 0.45 * radius] * 5
        angles = [math.pi * index / 5 for index in range(10)]
        corners = [
            (length * math.sin(angle), -length * math.cos(angle))
            for length, angle in zip(lengths, angles, strict=True)
        ]
    else:  # a cross: one arm, turned three times by a right angle
        arm = 0.32 * radius
        corners = []
        for cosine, sine in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            for dx, dy in ((-arm, -radius), (arm, -radius), (arm, -arm)):
                corners.append((dx * cosine - dy * sine, dx * sine + dy * cosine))
    return [(x + dx, y + dy) for dx, dy in corners]


def render(picture: Picture) -> Image.Image:
    size = (picture.width * OVERSAMPLING, picture.height * OVERSAMPLING)
    image = Image.new("RGB", size, picture.background)
    draw = ImageDraw.Draw(image)
    for shape in picture.shapes:
        x, y, radius = shape.x * size[0], shape.y * size[1], shape.radius * min(size)
        if shape.kind == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[shape.colour])
        else:
            draw.polygon(outline(shape, x, y, radius), COLOURS[shape.colour])
    return image.resize((picture.width, picture.height), Image.Resampling.BILINEAR)


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        render(picture).save(Path(sys.argv[1]) / name)
