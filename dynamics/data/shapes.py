"""The embedded data set: textured shapes in photograph-like scenes, made by integer arithmetic alone.

No float touches a pixel or a label, and every random number is a hash of (seed, split, image, purpose), so the images
are the same bits on every machine and numpy version, and image i does not depend on how many others are made.
Lengths are in 1/256 of a pixel, angles in 1/1024 of a turn, brightness and colour in 1/16 of a grey level, and masks
run from 0 to 256. What was measured of the images is in data/README.md.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import numpy as np

from ..errors import DynamicsError

SHAPES = ("disc", "square", "triangle", "cross", "star")
TEXTURES = ("striped", "dotted", "chequered", "ringed", "plain")
# A ring: every shape is in two classes and so is every texture, so that neither tells the class by itself.
PAIRS = tuple((k // 2, (k // 2 + k % 2) % 5) for k in range(10))
CLASSES: tuple[str, ...] = tuple(f"{TEXTURES[texture]} {SHAPES[shape]}" for shape, texture in PAIRS)

SIZE = 32
BATCH = 128  # images made at a time: the working arrays stay in the processor's cache
DARK, BRIGHT = 30 * 16, 225 * 16  # of the colours that things are painted in
APART = 45 * 16  # the least difference in brightness of object and ground
WAVELENGTHS = 1100, 1700  # of textures
TINT = 12 * 16, 5 * 16  # how far the light leans to a class's own hue, as the sky does where planes are photographed


def make_shapes(
    n_train: int = 10_000, n_test: int = 2_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make training images, training labels, test images and test labels.

    Images are uint8 [N, 32, 32, 3], labels int64 [N] that index CLASSES. Every ten consecutive images hold each class
    once, and a shorter split is the beginning of a longer one. Raises DynamicsError for numbers that are not whole,
    or negative.
    """
    for name, value in (("n_train", n_train), ("n_test", n_test), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**32:
            raise DynamicsError(f"make_shapes takes a whole number from 0 to 2**32 - 1 as {name}, got {value!r}")
    return *_split(n_train, seed, 0), *_split(n_test, seed, 1)


def _split(n: int, seed: int, which: int) -> tuple[np.ndarray, np.ndarray]:
    root = _hash(_mix(np.array([seed], np.uint64)), which, 1)[0]
    keys = _hash(root, 0, n)[0]
    labels = _hash(root, 1, n + -n % 10).reshape(-1, 10).argsort(axis=1, kind="stable").reshape(-1)[:n]
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for i in range(0, n, BATCH):
        images[i : i + BATCH] = _render(keys[i : i + BATCH], labels[i : i + BATCH])
    return images, labels.astype(np.int64)


# ---- Random numbers: a key for each image, and a stream number for each purpose.


def _mix(x: np.ndarray) -> np.ndarray:
    """The mixing function of splitmix64, on uint64 (Steele, Lea and Flood, OOPSLA 2014, with Stafford's constants)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(keys: np.ndarray, stream: int, count: int) -> np.ndarray:
    """uint64 [len(keys), count]."""
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    return _mix(keys[:, None] + counter * np.uint64(0x9E3779B97F4A7C15))


def _draw(keys: np.ndarray, stream: int, low: int, high: int, count: int = 1) -> np.ndarray:
    """Integers from low to high, both included: int32 [len(keys), count, 1, 1]."""
    bits = (_hash(keys, stream, count) >> np.uint64(32)) * np.uint64(high - low + 1)
    return ((bits >> np.uint64(32)).astype(np.int32) + np.int32(low))[:, :, None, None]


def _bytes(keys: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Integers from -128 to 127: int32 [len(keys), count]."""
    words = _hash(keys, stream, -(-count // 8)).astype("<u8")  # the byte order is part of the stream
    return words.view(np.int8)[:, :count].astype(np.int32)


def _noise(keys: np.ndarray, stream: int, channels: int, weights: tuple[int, ...], rough: np.ndarray) -> np.ndarray:
    """Noise with a falling spectrum, a sum of octaves: int32 [n, channels, 32, 32].

    weights: of the octaves with a grid of 16, 8, 4, 2 and 1 pixels, each of which takes a stream of its own;
    rough [n, 1, 1, 1]: a further factor from each octave to the next, in 1/16.
    """
    gain = np.full_like(rough, 256)
    field = np.zeros((len(keys), channels, 4, 4), np.int32)
    for octave, weight in enumerate(weights):
        if octave:
            field = _refine(_refine(field, 3), 2) >> 4
            gain = gain * rough >> 4
        if weight:
            count = channels * field.shape[2] * field.shape[3]
            field = field + (_bytes(keys, stream + octave, count).reshape(field.shape) * (gain * weight) >> 8)
    return field[..., 1:-1, 1:-1]


def _refine(field: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate linearly along an axis: m numbers become 2m - 2, times 4."""
    x = np.moveaxis(field, axis, -1)
    left, right = x[..., :-1], x[..., 1:]
    return np.moveaxis(np.stack([3 * left + right, left + 3 * right], -1).reshape(*x.shape[:-1], -1), -1, axis)


# ---- Tables and frames.


def _cosines() -> np.ndarray:
    """2**14 cos(2 pi k / 1024) for k = 0 ... 1023, by halving a quarter turn and then adding up the smallest angle."""
    one, cos = 1 << 60, 0
    for _ in range(8):
        cos = isqrt(one * (one + cos) // 2)  # cos(a / 2) = sqrt((1 + cos a) / 2)
    sin = isqrt(one * one - cos * cos)
    x, y, table = one, 0, []
    for _ in range(1024):
        table.append((x + (1 << 45)) >> 46)
        x, y = (x * cos - y * sin) >> 60, (x * sin + y * cos) >> 60
    return np.array(table, np.int32)


COS = _cosines()
ROOT = np.array([isqrt(k << 12) for k in range(1 << 15)], np.int32)  # ROOT[q >> 12] is the square root of q
AXIS = 256 * np.arange(SIZE, dtype=np.int32) - 128 * (SIZE - 1)  # pixel centres, from the middle of the image


def _turned(x: np.ndarray, y: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame turned by an angle."""
    cos, sin = COS[turn & 1023], COS[(turn - 256) & 1023]
    return (x * cos + y * sin) >> 14, (y * cos - x * sin) >> 14


def _radius(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ROOT[(x * x + y * y) >> 12]


# ---- Shapes: about how far a point (u, v) is outside a shape of size r, negative inside. All are even in u, so that a
# mirrored object is an object of the same class.


def _disc(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return _radius(u, v) - (r * 28 >> 5)


def _square(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) - (r * 25 >> 5)


def _triangle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    slope = (abs(u) * 887 + v * 512) >> 10  # 887 / 1024 is the cosine of 30 degrees
    return np.maximum(slope, -v) - (r * 20 >> 5)


def _cross(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    u, v = abs(u), abs(v)
    arm, half = r * 34 >> 5, r * 11 >> 5
    return np.minimum(np.maximum(u - arm, v - half), np.maximum(v - arm, u - half))


def _star(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """A pentagram: the points inside at least four of its five lines."""
    first = second = np.full_like(u, -(1 << 30))
    for k in range(5):
        side, _ = _turned(v, abs(u), np.int32((2048 * k + 5) // 10))
        first, second = np.maximum(first, side), np.maximum(second, np.minimum(first, side))
    return second - (r * 13 >> 5)


OUTLINES = (_disc, _square, _triangle, _cross, _star)


def _shape(shapes: np.ndarray, u: np.ndarray, v: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Each image's own shape: int32 [n, 1, 32, 32]."""
    distance = np.empty_like(u)
    for k, outline in enumerate(OUTLINES):
        i = shapes == k
        distance[i] = outline(u[i], v[i], radius[i])
    return distance


def _texture(
    textures: np.ndarray, u: np.ndarray, v: np.ndarray, phase: np.ndarray, wavelength: np.ndarray
) -> np.ndarray:
    """Each image's own texture, from -128 to 128: int32 [n, 1, 32, 32]; phase [n, 2, 1, 1]."""
    wave = (1 << 20) // wavelength
    relative = np.array([16, 14, 12, 16, 16], np.int32)[textures][:, None, None, None]  # the frequency, in 1/16
    ringed = (textures == TEXTURES.index("ringed"))[:, None, None, None]
    v = np.where(ringed, _radius(u, v), v)
    first, second = (
        COS[((x * relative >> 4) * wave + (shift << 10) >> 10) & 1023]
        for x, shift in ((u, phase[:, :1]), (v, phase[:, 1:]))
    )
    level = np.zeros_like(u)
    for name, value in (
        ("striped", lambda a, b: a),
        ("dotted", lambda a, b: a + b - 12000),
        ("chequered", lambda a, b: a * b >> 13),
        ("ringed", lambda a, b: b),
    ):
        i = textures == TEXTURES.index(name)
        level[i] = value(first[i], second[i])
    return (level >> 6).clip(-128, 128)


# ---- Scenes.


class Layout(NamedTuple):
    """Where the things of a scene are: int32 [n, 1, 1, 1] each, unless said otherwise."""

    place: np.ndarray  # of the object, [n, 2, 1, 1]
    radius: np.ndarray
    turn: np.ndarray
    wavelength: np.ndarray  # of the texture
    texture_turn: np.ndarray
    phase: np.ndarray  # of the texture, [n, 2, 1, 1]
    bar_turn: np.ndarray  # of the bar that hides a part of the object
    bar_shift: np.ndarray  # of its axis from the object's middle
    bar_half: np.ndarray  # half its width
    blur: np.ndarray  # width of outlines, in 1/8 of a pixel
    warp: np.ndarray  # what bends object, texture and bar, [n, 2, 32, 32]


def _layout(keys: np.ndarray) -> Layout:
    return Layout(
        place=_draw(keys, 10, -5 * 256, 5 * 256, 2),
        radius=_draw(keys, 11, 17 * 128, 26 * 128),
        turn=_draw(keys, 12, 0, 1023),
        wavelength=_draw(keys, 13, *WAVELENGTHS),
        texture_turn=_draw(keys, 14, 0, 1023),
        phase=_draw(keys, 15, 0, 1023, 2),
        bar_turn=_draw(keys, 16, 0, 1023),
        bar_shift=_draw(keys, 17, -12 * 256, 12 * 256),
        bar_half=_draw(keys, 18, 0, 11 * 64),
        blur=_draw(keys, 19, 10, 22),
        warp=_noise(keys, 20, 2, (5, 6, 3, 0, 0), _draw(keys, 25, 4, 16)),
    )


def _masks(layout: Layout, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The object's mask, its texture, and the bar's mask: int32 [n, 1, 32, 32] each."""
    x = AXIS - layout.place[:, :1] + layout.warp[:, :1]
    y = AXIS[:, None] - layout.place[:, 1:] + layout.warp[:, 1:]
    shapes, textures = np.array(PAIRS)[labels].T
    distance = _shape(shapes, *_turned(x, y, layout.turn), layout.radius)
    texture = _texture(textures, *_turned(x, y, layout.texture_turn), layout.phase, layout.wavelength)
    bar = abs(_turned(x, y, layout.bar_turn)[0] - layout.bar_shift) - layout.bar_half
    sharp = 2048 // layout.blur
    return _soft(distance * sharp >> 8), texture, _soft(bar * sharp >> 8)


def _soft(distance: np.ndarray) -> np.ndarray:
    return (128 - distance).clip(0, 256)


def _over(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return below + ((above - below) * mask >> 8)


def _colours(keys: np.ndarray, stream: int, count: int, dark: int, bright: int) -> list[np.ndarray]:
    """Random colours as (brightness, blue to orange, purple to green): `count` arrays int32 [n, 3, 1, 1]."""
    light = _draw(keys, stream, dark, bright, count)
    # Sums of two draws: greyish colours are the commonest, as in photographs.
    warm, green = (
        _draw(keys, stream + k, -limit, limit, count) + _draw(keys, stream + k + 1, -limit, limit, count)
        for k, limit in ((1, 320), (3, 128))
    )
    return [np.stack([light[:, k], warm[:, k], green[:, k]], axis=1) for k in range(count)]


def _render(keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32, 3]: two kinds of ground, an object on them, a bar across it, and a light from one side."""
    rough = _draw(keys, 30, 7, 13)
    relief = _noise(keys, 40, 1, (14, 12, 10, 8, 4), rough) * _draw(keys, 31, 4, 16) >> 4
    grain = np.concatenate([relief, _noise(keys, 50, 2, (4, 3, 2, 0, 0), rough)], axis=1)
    border = _soft(_noise(keys, 60, 1, (16, 16, 10, 4, 0), rough) >> 1)
    ground, other_ground, paint, bar_paint = _colours(keys, 70, 4, DARK, BRIGHT)
    [ink] = _colours(keys, 80, 1, 40 * 16, 115 * 16)

    # The second ground has a texture too, of any kind, so that finding a texture somewhere is not enough.
    s, t = _turned(AXIS[None, None], AXIS[:, None], _draw(keys, 32, 0, 1023))
    kind, phase = _draw(keys, 33, 0, 4).reshape(-1), _draw(keys, 34, 0, 1023, 2)
    weave = _texture(kind, s, t, phase, _draw(keys, 35, *WAVELENGTHS)) * _draw(keys, 36, 0, 30) >> 4
    other_ground = other_ground + np.concatenate([weave, 0 * weave, 0 * weave], axis=1)
    scene = _over(ground, other_ground, border) + grain

    mask, texture, bar = _masks(_layout(keys), labels)
    apart = _draw(keys, 37, APART, BRIGHT - DARK - APART)[:, 0]
    paint[:, 0] = DARK + (ground[:, 0] - DARK + apart) % (BRIGHT - DARK)
    sign = 2 * _draw(keys, 38, 0, 1) - 1
    scene = _over(scene, paint + (ink * sign * texture >> 8) + (grain >> 1), mask)
    scene = _over(scene, bar_paint + grain[..., ::-1], bar)

    lit, _ = _turned(AXIS[None, None], AXIS[:, None], _draw(keys, 39, 0, 1023))
    scene = scene * (256 + (lit * _draw(keys, 26, 0, 8) >> 8)) >> 8
    hue = labels * 1024 // 10  # classes that share a shape or a texture have neighbouring hues, so it parts them least
    bright = scene[:, 0]
    warm = scene[:, 1] + (COS[hue] * TINT[0] >> 14)[:, None, None]
    green = scene[:, 2] + (COS[hue - 256] * TINT[1] >> 14)[:, None, None]
    rgb = np.stack([bright + warm - (green >> 1), bright + green, bright - warm - (green >> 1)], axis=-1)
    return ((rgb + 8) >> 4).clip(0, 255).astype(np.uint8)
