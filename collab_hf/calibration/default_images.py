"""The default calibration images: generated, so that they need no licence, no download and no space.

Dead-leaves pictures (shapes of all sizes that occlude each other, each with its own colour, shading and
texture) have the edges, the occlusions and the 1/f spectrum of photographs. Three kinds of scene take turns:
a landscape, something built, and a subject of several parts in front of a background that is out of focus.

Source:
    Lee, Mumford & Huang 2001, "Occlusion models for natural images", on why dead leaves look like photographs
    to a filter; Baradad et al. 2021, arXiv:2106.05963, on vision networks that learn from such pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from ..errors import CalibrationError
from .image_parts import (
    Array,
    Point,
    blurred,
    ground,
    paint_leaf,
    paint_panel,
    paint_stroke,
    palette,
    pick,
    texture,
)

if TYPE_CHECKING:
    from PIL.Image import Image


def default_images(count: int = 64, size: int = 256, seed: int = 0) -> list[Image]:
    """Generate pictures with the low-level statistics of photographs.

    Args:
        count: number of images, >= 1. On dinov2-small 192 were hardly better than 64.
        size: height and width in pixels, >= 16. 256 is what the usual processors resize to before they crop
            224.
        seed: image i depends on (seed, i) alone.
    Returns:
        RGB images, the same at every call.
    Raises:
        CalibrationError: count or size below its minimum.
    """
    if count < 1 or size < 16:
        raise CalibrationError(f"default images need count >= 1 and size >= 16, got {count} and {size}")
    return [default_image(index, size, seed) for index in range(count)]


def default_image(index: int, size: int = 256, seed: int = 0) -> Image:
    """Generate one of them.

    Args:
        index: which one, from 0.
        size: height and width in pixels.
        seed: as above.

    Returns:
        The image.
    """
    import PIL.Image  # here, since text needs no PIL

    scenes = (_landscape, _built, _subject)
    rng = np.random.default_rng((seed, index))
    canvas = scenes[index % len(scenes)](size, palette(rng), rng)
    return PIL.Image.fromarray(_developed(canvas, rng))


def _landscape(size: int, colours: Array, rng: Generator) -> Array:
    """Ridges one in front of the other, paler with distance, with trees or posts and a few stones."""
    canvas = ground(size, colours, rng)
    heights = np.sort(rng.uniform(0.25, 0.85, int(rng.integers(1, 6)))) * size
    haze = pick(colours, rng)
    for number, height in enumerate(heights, start=1):
        nearness = number / len(heights)
        _paint_ridge(canvas, height, nearness, haze, colours, rng)
        for _ in range(int(rng.poisson(3))):
            foot = (rng.uniform(0, size), height + rng.uniform(0, 0.2) * size)
            _paint_tree(canvas, foot, size * rng.uniform(0.05, 0.5) * nearness, colours, rng)
    for _ in range(int(rng.poisson(4))):
        centre = (rng.uniform(0, size), rng.uniform(heights[0], size))
        paint_leaf(canvas, centre, size * rng.uniform(0.02, 0.12), colours, rng)
    return canvas


def _paint_ridge(
    canvas: Array, height: float, nearness: float, haze: Array, colours: Array, rng: Generator
) -> None:
    """Paint everything below a 1/f skyline, its texture wider apart toward the viewer."""
    size = len(canvas)
    y, x = np.mgrid[0:size, 0:size]
    profile = texture((1, 2 * size), rng.uniform(0.9, 1.6), rng)[0, :size]
    skyline = height + size * rng.gamma(1.5, 0.03) * profile
    cover = np.clip(y - skyline + 0.5, 0, 1)[..., None]
    soil = texture((size, size), rng.uniform(0.5, 1.4), rng)
    if rng.random() < 0.6:
        depth = np.clip((y - height) / (size - height + 1), 0, 1)
        columns = ((x - size / 2) / (0.3 + depth) + size / 2).astype(np.int64) % size
        soil = soil[(depth**0.5 * (size - 1)).astype(np.int64), columns]
    colour = haze + nearness * (pick(colours, rng) - haze)
    canvas += cover * (colour + rng.gamma(1.5, 0.08) * nearness * soil[..., None] - canvas)


def _paint_tree(canvas: Array, foot: Point, height: float, colours: Array, rng: Generator) -> None:
    """Paint a trunk or post, in most cases with a crown of leaves."""
    width = height * rng.uniform(0.02, 0.08) + 0.7
    paint_stroke(canvas, foot, -np.pi / 2 + rng.normal(0, 0.05), height, width, 0.6 * pick(colours, rng), rng)
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(3, 25))):
            centre = (foot[0] + rng.normal(0, 0.2 * height), foot[1] - height * rng.uniform(0.6, 1.1))
            paint_leaf(canvas, centre, height * rng.uniform(0.03, 0.25) + 1, colours, rng)


def _built(size: int, colours: Array, rng: Generator) -> Array:
    """Panels in perspective, beams and wires, sometimes writing, a few things in front."""
    canvas = ground(size, colours, rng)
    for _ in range(int(rng.integers(1, 5))):
        paint_panel(canvas, colours, rng)
    for _ in range(int(rng.poisson(4))):
        angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.1)
        length, width = size * rng.uniform(0.2, 1.2), rng.uniform(0.6, 5)
        paint_stroke(canvas, _anywhere(size, rng), angle, length, width, pick(colours, rng), rng, taper=False)
    if rng.random() < 0.35:
        _paint_writing(canvas, pick(colours, rng), rng)
    for _ in range(int(rng.poisson(5))):
        paint_leaf(canvas, _anywhere(size, rng), size * rng.uniform(0.02, 0.15), colours, rng)
    return canvas


def _paint_writing(canvas: Array, colour: Array, rng: Generator) -> None:
    """Paint lines of made-up letters, each of one to three strokes."""
    size = len(canvas)
    height, y = rng.uniform(4, 22), rng.uniform(0, size)
    for _ in range(int(rng.integers(1, 8))):
        for x in np.arange(rng.uniform(0, 0.4) * size, rng.uniform(0.6, 1) * size, 0.75 * height):
            for _ in range(int(rng.integers(0, 4))):  # 0: a space between words
                start = (x + rng.uniform(0, 0.5) * height, y + rng.uniform(-0.5, 0.5) * height)
                angle, curve = rng.choice([0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]), rng.choice([0, 0, 3])
                length, width = height * rng.uniform(0.4, 1), 0.07 * height + 0.4
                paint_stroke(canvas, start, angle, length, width, colour, rng, curve=curve, taper=False)
        y += 1.7 * height


def _subject(size: int, colours: Array, rng: Generator) -> Array:
    """One thing of several parts (body, limbs, head, spots) before a scene that is mostly out of focus."""
    scenes = (_landscape, _built, ground)
    canvas = scenes[rng.integers(len(scenes))](size, colours, rng)
    if rng.random() < 0.8:
        canvas = blurred(canvas, 10 ** rng.uniform(0, 0.9))
    own, body = palette(rng), size * rng.uniform(0.12, 0.3)
    axis = rng.normal(0, 0.5) + rng.choice([0, 0, np.pi / 2])  # animals lie along the ground more often
    middle = size / 2 + rng.normal(0, size / 12, 2)
    forward = np.array([np.cos(axis), np.sin(axis)]) * body

    def limb(offset: float, angle: float) -> None:
        x, y = middle + offset * forward
        length, width = body * rng.uniform(0.6, 2), body * rng.uniform(0.05, 0.25)
        paint_stroke(canvas, (x, y), angle, length, width, pick(own, rng), rng, curve=rng.normal(0, 0.8))

    def part(centre: Array, radius: float) -> None:
        paint_leaf(canvas, (centre[0], centre[1]), radius, own, rng)

    for _ in range(int(rng.integers(0, 7))):
        limb(rng.uniform(-1, 1), axis + np.pi / 2 + rng.normal(0, 0.5))
    for _ in range(int(rng.integers(1, 4))):
        part(middle + rng.normal(0, 0.4) * forward, body * rng.uniform(0.6, 1.2))
    if rng.random() < 0.5:
        limb(-1, axis + np.pi + rng.normal(0, 0.5))
    for _ in range(int(10 ** rng.uniform(0, 1.6))):  # spots
        part(middle + rng.normal(0, 0.7 * body, 2), body * rng.uniform(0.03, 0.2))
    face = middle + rng.uniform(0.7, 1.3) * forward - [0, body * rng.uniform(0, 0.6)]
    head = body * rng.uniform(0.35, 0.7)
    part(face, head)
    for side in (-0.35, 0.35):
        for width, colour in ((0.16, own[0]), (0.09, np.full(3, 0.02)), (0.035, np.ones(3))):
            paint_stroke(
                canvas, (face[0] + side * head, face[1] - 0.15 * head), 0, 0.1, width * head, colour, rng
            )
    return canvas


def _developed(canvas: Array, rng: Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The canvas as a camera gives it: lens blur, uneven light, white balance, exposure, gamma, noise."""
    size = len(canvas)
    if rng.random() < 0.4:
        canvas = blurred(canvas, rng.uniform(0.3, 1.2))
    light = 1 + rng.gamma(1.5, 0.08) * texture((size, size), 2.2, rng)
    canvas = np.clip(canvas, 0, 1) * np.clip(light, 0.2, 1.8)[..., None] * np.exp(rng.normal(0, 0.08, 3))
    if rng.random() < 0.06:  # black and white
        canvas = canvas.mean(axis=2, keepdims=True).repeat(3, axis=2)
    darkest, lightest = np.quantile(canvas, [0.01, 0.99])
    low, high = rng.uniform(0, 0.15), rng.uniform(0.75, 1)
    canvas = low + (high - low) * (canvas - darkest) / (lightest - darkest + 1e-6)
    canvas = np.clip(canvas, 0, 1) ** np.exp(rng.normal(0, 0.25))
    canvas = canvas + rng.gamma(1, 0.008) * rng.normal(size=canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)


def _anywhere(size: int, rng: Generator) -> Point:
    """A point on the canvas."""
    return rng.uniform(0, size), rng.uniform(0, size)
