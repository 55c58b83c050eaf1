"""Parts of the generated calibration images: colours, textures, blur, leaves, strokes and panels.

A canvas is a float64 array (size, size, 3), nominally in 0..1; the parts are painted over it, later ones in
front. Lengths are in pixels, angles in radians, points are (x, y). Numbers without a reason beside them only
have to vary: no single image matters, their mixture was chosen by measurement (see `default_images`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]
Point = tuple[float, float]


def palette(rng: Generator) -> Array:
    """Colours (3 to 8, 3) of one scene: all lightnesses, and muted hues around a common cast as in nature."""
    count = int(rng.integers(3, 9))
    light = rng.beta(1.2, 1.2, (count, 1))
    hue = rng.normal(0, rng.gamma(2, 0.07), (count, 3)) + rng.normal(0, 0.08, 3)
    return np.asarray(np.clip(light + hue - hue.mean(axis=1, keepdims=True), 0, 1))


def pick(colours: Array, rng: Generator) -> Array:
    """One colour (3,) of a palette."""
    return np.asarray(colours[rng.integers(len(colours))])


def texture(
    shape: tuple[int, ...], slope: float, rng: Generator, angle: float = 0, stretch: float = 1
) -> Array:
    """Noise of mean 0 and deviation 1 with amplitude spectrum 1/f^slope (photographs: about 1).

    Args:
        shape: height and width in pixels.
        slope: exponent, >= 0; 0 is white noise.
        rng: source of the noise.
        angle: direction of the grain.
        stretch: how much longer than wide the grain is, >= 1.
    Returns:
        Array of that shape.
    """
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    c, s = math.cos(angle), math.sin(angle)
    frequency = np.hypot(c * fx + s * fy, stretch * (c * fy - s * fx))
    frequency = np.maximum(frequency, 1 / max(shape))  # no wave is longer than the canvas
    wave = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    wave /= frequency**slope
    wave[0, 0] = 0
    noise = np.fft.irfft2(wave, s=shape)
    return np.asarray(noise / (noise.std() + 1e-9))


def blurred(canvas: Array, sigma: float) -> Array:
    """The canvas under a Gaussian blur of deviation sigma, mirrored at its edges."""
    height, width = canvas.shape[:2]
    mirrored = np.pad(canvas, ((0, height), (0, width), (0, 0)), mode="symmetric")
    fy, fx = np.fft.fftfreq(2 * height)[:, None, None], np.fft.rfftfreq(2 * width)[None, :, None]
    spectrum = np.fft.rfft2(mirrored, axes=(0, 1)) * np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    return np.asarray(np.fft.irfft2(spectrum, s=mirrored.shape[:2], axes=(0, 1))[:height, :width])


def ground(size: int, colours: Array, rng: Generator) -> Array:
    """A new canvas: a soft or hard change of colour, mostly from top to bottom, under a texture."""
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else np.pi / 2
    across = np.cos(angle) * x + np.sin(angle) * y - rng.uniform(0.2, 0.8)
    ramp = 1 / (1 + np.exp(-across * 10 ** rng.uniform(0, 1.7)))[..., None]
    noise = rng.gamma(1.5, 0.06) * texture((size, size), rng.uniform(0.7, 1.8), rng)[..., None]
    first, second = pick(colours, rng), pick(colours, rng)
    return np.asarray(first + ramp * (second - first) + noise)


def paint_leaf(canvas: Array, centre: Point, radius: float, colours: Array, rng: Generator) -> None:
    """Paint one shaded and textured ellipse, box, polygon or blob of about that radius onto the canvas."""
    window = _window(canvas, centre[0], centre[0], centre[1], centre[1], 2.2 * radius + 2)
    if window is None:
        return
    y, x = np.mgrid[window]
    turn = rng.uniform(0, 2 * np.pi)
    ratio = np.exp(rng.normal(0, 0.4)) if rng.random() < 0.8 else rng.uniform(3, 10)
    u = ((x - centre[0]) * np.cos(turn) + (y - centre[1]) * np.sin(turn)) / radius / min(ratio, 2) ** 0.5
    v = ((y - centre[1]) * np.cos(turn) - (x - centre[0]) * np.sin(turn)) / radius * ratio**0.5
    edge = 10 ** rng.uniform(-0.3, 0.5)  # pixels over which the outline fades
    cover = np.clip(0.5 - _outline(u, v, rng) * radius / edge, 0, 1)
    shade = _pattern(x, y, radius, rng)
    if rng.random() < 0.7:  # light from one side
        shade = shade + rng.gamma(2, 0.06) * (u * np.cos(turn) + v * np.sin(turn))
    if rng.random() < 0.3:  # roundness
        shade = shade - rng.gamma(2, 0.06) * np.clip(u**2 + v**2, 0, 2)
    colour = pick(colours, rng) + rng.normal(0, 0.03, 3)
    if rng.random() < 0.2:  # a second colour in patches
        patches = texture(u.shape, 1.2, rng) > rng.normal(0, 0.7)
        colour = np.where(patches[..., None], pick(colours, rng), colour)
    region = canvas[window]
    if rng.random() < 0.3:  # cast shadow
        shift = int(max(1, 0.15 * radius))
        region *= 1 - 0.4 * np.roll(cover, (shift, shift), (0, 1))[..., None]
    region += cover[..., None] * (colour + shade[..., None] - region)


def paint_stroke(
    canvas: Array,
    start: Point,
    angle: float,
    length: float,
    width: float,
    colour: Array,
    rng: Generator,
    *,
    curve: float = 0,
    taper: bool = True,
) -> None:
    """Paint a bending line (a limb, a trunk, a wire, part of a letter), rounded like a tube.

    Args:
        canvas: painted on.
        start: first point.
        angle: direction at the start.
        length: in pixels.
        width: half the width at the start, in pixels.
        colour: (3,) in 0..1.
        rng: source of the wobble.
        curve: how much the direction has turned at the end.
        taper: the end is a fifth as wide as the start.
    """
    steps = max(3, int(length / max(2, 0.4 * width)))  # discs that overlap enough to look like one line
    along = np.linspace(0, 1, steps)
    heading = angle + curve * along + np.cumsum(rng.normal(0, 0.06, steps))
    xs = start[0] + np.cumsum(np.cos(heading)) * length / steps
    ys = start[1] + np.cumsum(np.sin(heading)) * length / steps
    window = _window(canvas, xs.min(), xs.max(), ys.min(), ys.max(), width + 2)
    if window is None:
        return
    y, x = np.mgrid[window]
    distance, side = np.full(x.shape, np.inf), np.zeros(x.shape)
    for px, py, direction, half in zip(xs, ys, heading, width * (1 - 0.8 * along * taper), strict=True):
        beyond = np.hypot(x - px, y - py) - half
        nearer = beyond < distance
        distance = np.where(nearer, beyond, distance)
        across = (y - py) * np.cos(direction) - (x - px) * np.sin(direction)
        side = np.where(nearer, across / max(half, 1), side)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    region = canvas[window]
    region += cover * (colour + rng.normal(0, 0.15) * side[..., None] - region)


def paint_panel(canvas: Array, colours: Array, rng: Generator) -> None:
    """Paint a rectangle with a grid of cells (windows, tiles, bricks) in perspective onto the canvas."""
    size = len(canvas)
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    x, y = x - rng.uniform(0, size), y - rng.uniform(0, size)
    turn, tilt = rng.normal(0, 0.25), rng.normal(0, 0.0015, 2)
    depth = tilt[0] * x + tilt[1] * y + 1
    seen = depth > 0.2  # the rest lies behind the viewer
    depth = np.where(seen, depth, 1)
    u = (np.cos(turn) * x + np.sin(turn) * y) / depth
    v = (np.cos(turn) * y - np.sin(turn) * x) / depth
    width, height = size * rng.uniform(0.1, 0.6, 2)
    cover = np.clip(np.minimum(width - abs(u), height - abs(v)) + 0.5, 0, 1) * seen
    u_cells, v_cells = u / 10 ** rng.uniform(0.8, 1.8), v / 10 ** rng.uniform(0.8, 1.8)
    column, row = np.floor(u_cells), np.floor(v_cells)
    to_border = 0.5 - np.maximum(abs(u_cells - column - 0.5), abs(v_cells - row - 0.5))
    cell = to_border > rng.uniform(0.05, 0.35)
    lit = rng.random(97) * rng.choice([0, 0.1, 0.4])  # lightness of each cell, by a hash of its place
    lightness = lit[(column * 31 + row * 17).astype(np.int64) % len(lit)]
    face = np.where(cell[..., None], pick(colours, rng) + lightness[..., None], pick(colours, rng))
    shade = rng.gamma(1.2, 0.05) * texture((size, size), 1.2, rng) + rng.normal(0, 0.1) * u / width
    canvas += cover[..., None] * (face + shade[..., None] - canvas)


def _outline(u: Array, v: Array, rng: Generator) -> Array:
    """Distance to the outline of a random unit shape, negative inside."""
    reach = np.hypot(u, v)
    kind = rng.integers(4)
    if kind == 0:
        return np.asarray(reach - 1)
    if kind == 1:
        return np.asarray(np.maximum(abs(u), abs(v)) - 0.85)
    if kind == 2:
        corners = int(rng.integers(3, 7))
        regular = np.arange(corners) * 2 * np.pi / corners
        sides = np.sort(rng.uniform(0, 2 * np.pi, corners)) if rng.random() < 0.5 else regular
        flat = np.max([u * np.cos(side) + v * np.sin(side) for side in sides], axis=0)
        return np.asarray(np.maximum(flat - 0.7, reach - 1.4))  # irregular sides may leave it open
    around = np.arctan2(v, u)
    waves = [rng.normal(0, 0.35 / k) * np.cos(k * around + rng.uniform(0, 2 * np.pi)) for k in range(2, 7)]
    return np.asarray(reach - 1 - np.sum(waves, axis=0))


def _pattern(x: Array, y: Array, radius: float, rng: Generator) -> Array:
    """Lightness of a surface: grain, stripes or nothing."""
    kind, angle = rng.random(), rng.uniform(0, 2 * np.pi)
    if kind < 0.6:
        slope, stretch = rng.uniform(0.4, 1.8), rng.uniform(1, 6)
        return rng.gamma(1.2, 0.07) * texture(x.shape, slope, rng, angle, stretch)
    if kind < 0.75:
        period = rng.uniform(3, max(4, radius / 2))
        wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
        return np.asarray(rng.gamma(2, 0.07) * (np.sign(wave) if rng.random() < 0.4 else wave))
    return np.zeros(x.shape)


def _window(
    canvas: Array, left: float, right: float, top: float, bottom: float, margin: float
) -> tuple[slice, slice] | None:
    """Rows and columns of the part of the canvas that a box and its margin cover; None for no part."""
    size = len(canvas)
    rows = slice(max(0, int(top - margin)), min(size, int(bottom + margin) + 1))
    columns = slice(max(0, int(left - margin)), min(size, int(right + margin) + 1))
    return (rows, columns) if rows.stop - rows.start > 1 and columns.stop - columns.start > 1 else None
