"""The one loader of images: a name or a path in, a training and a test split out."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import DynamicsError, unknown
from . import cifar10
from .split import Split

NAMES = ("shapes", "cifar10")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Data(NamedTuple):
    """A training and a test split, with the same classes and normalisation."""

    train: Split
    test: Split


def load_data(
    source: str | os.PathLike[str] = "shapes",
    *,
    device: str | torch.device | None = None,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Data:
    """Load "shapes", "cifar10", a folder in CIFAR-10's binary layout, or an .npz, onto one device.

    device: None is "cuda" where there is one, else "cpu". root: where files are kept; None is the
    environment variable DYNAMICS_DATA, else data/ of a checkout, else the user's cache folder.
    limit: keep only the first `limit` training images; the test split stays whole, and normalisation is
    always that of the full training split. An .npz holds uint8 train_images and test_images
    [N, H, W, 3], integer train_labels and test_labels [N], and perhaps classes, an array of names.
    A split's name is the dataset's, or the absolute path: load_data(split.name) loads it again.
    Raises DynamicsError for unknown names, bad files and failed downloads.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1):
        raise DynamicsError(f"limit must be a whole number of training images, at least 1, or None; got {limit!r}")
    target = _device(device)
    if not isinstance(source, (str, os.PathLike)):
        raise DynamicsError(
            f"load_data takes a name or a path, got {type(source).__name__}: wrap arrays by Split.from_arrays"
        )
    if source == "shapes":
        data = _load_shapes(data_folder(root))
    elif source == "cifar10":
        folder = cifar10.fetch(data_folder(root), cifar10.ARCHIVE, progress=progress)
        data = _to_splits(*cifar10.read(folder, cifar10.ARCHIVE.records), name="cifar10")
    else:
        data = _load_path(source)
    train = data.train if limit is None else data.train[:limit]
    return Data(train.to(target), data.test.to(target))


def available(root: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """What each named dataset is and whether it is on disk, a line for each."""
    folder = data_folder(root)
    shapes, archive = _shapes_cache(folder), folder / cifar10.ARCHIVE.name
    part = archive.with_name(archive.name + ".part")
    if cifar10.present(folder / cifar10.FOLDER):
        where = f"in {folder / cifar10.FOLDER}"
    elif os.path.exists(archive):
        where = f"in {archive}, unpacked on first use"
    elif os.path.exists(part):
        where = f"{os.path.getsize(part) / 1e6:.0f} of {cifar10.ARCHIVE.size / 1e6:.0f} MB in {part}"
    else:
        where = f"not on disk, a download of {cifar10.ARCHIVE.size / 1e6:.0f} MB on first use"
    return {
        "shapes": "generated images of shapes and textures, 10 classes; "
        + (f"in {shapes}" if shapes and os.path.exists(shapes) else "not on disk, made in seconds on first use"),
        "cifar10": f"60,000 photographs, 10 classes; {where}",
    }


def data_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """Where data files are kept: root, else DYNAMICS_DATA, else data/ of a checkout, else the user's cache."""
    if chosen := root or os.environ.get("DYNAMICS_DATA"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    import pooch

    return Path(pooch.os_cache("dynamics"))


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.zeros(1, device=target).item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # builds without CUDA assert
        options = "'cpu' or 'cuda'" if torch.cuda.is_available() else "'cpu'"
        raise DynamicsError(f"there is no device {str(device)!r} here: choose {options}") from error
    return target


def _to_splits(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    classes: tuple[str, ...],
    *,
    name: str,
) -> Data:
    # each is checked under a name that tells the two apart in an error
    train = Split.from_arrays(train_images, train_labels, classes=classes, name=f"{name} (train)")
    test = Split.from_arrays(test_images, test_labels, like=train, name=f"{name} (test)")
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [f"{height}x{width}" for height, width in (train.images.shape[1:3], test.images.shape[1:3])]
        raise DynamicsError(f"{name}: train_images are {sizes[0]} and test_images {sizes[1]}: make them of one size")
    return Data(replace(train, name=name), replace(test, name=name))


def _load_shapes(folder: Path) -> Data:
    from . import shapes

    cache = _shapes_cache(folder)
    arrays = _read_shapes_cache(cache, shapes.make_shapes) if cache else None
    if arrays is None:
        arrays = shapes.make_shapes()
        if cache:
            _write_aside(cache, arrays)
    return _to_splits(*arrays, shapes.CLASSES, name="shapes")


def _shapes_cache(folder: Path) -> Path | None:
    """The cache file, named by a digest of the generator's source: a new generator has a new file."""
    try:
        source = Path(__file__).with_name("shapes.py").read_bytes()
    except OSError:
        return None
    return folder / f"shapes-{hashlib.blake2b(source, digest_size=6).hexdigest()}.npz"


def _read_shapes_cache(cache: Path, make: Callable[..., tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...] | None:
    """The arrays in the cache, or None where there are none, or damaged ones, or those of another generator."""
    try:
        found = _read_arrays(cache)
    except DynamicsError:
        return None
    arrays = tuple(found[key] for key in ARRAYS)
    # the source may be edited after it was imported, so the name alone does not vouch for what is inside
    first = make(n_train=20, n_test=20)
    whole = len(arrays[0]) == len(arrays[1]) and len(arrays[2]) == len(arrays[3])
    return arrays if whole and all(np.array_equal(a[:20], b) for a, b in zip(arrays, first, strict=True)) else None


def _write_aside(cache: Path, arrays: tuple[np.ndarray, ...]) -> None:
    """Write the cache under another name and rename it, so that processes at once never read half a file."""
    aside = cache.with_name(f".{cache.name}-{uuid.uuid4().hex[:8]}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                np.savez(file, **dict(zip(ARRAYS, arrays, strict=True)))
            os.replace(aside, cache)
        finally:
            aside.unlink(missing_ok=True)
    except OSError:
        pass  # a cache is a convenience: without one the images are made anew each time


def _load_path(source: str | os.PathLike[str]) -> Data:
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(source))))
    if source and os.path.isdir(path):
        for folder in (path, path / cifar10.FOLDER):
            if cifar10.present(folder):
                return _to_splits(*cifar10.read(folder, cifar10.ARCHIVE.records), name=str(path))
        raise DynamicsError(
            f"{path} holds no CIFAR-10 in the binary layout: name the folder of {cifar10.TRAIN_FILES[0]}, "
            f"the folder that holds {cifar10.FOLDER}, or an .npz"
        )
    if source and os.path.isfile(path):
        arrays = _read_arrays(path)
        return _to_splits(*(arrays[key] for key in ARRAYS), _class_names(path, arrays), name=str(path))
    if isinstance(source, str) and not Path(source).suffix and not set(source) & set("/\\~"):
        raise unknown("dataset", source, NAMES)
    raise DynamicsError(f"{path} does not exist: name an .npz, a folder in CIFAR-10's binary layout, or one of {NAMES}")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, of the right dtypes; their shapes and label ranges are checked by Split.from_arrays."""
    found, key = {}, None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for key in (*ARRAYS, "classes"):
                if key in archive:
                    found[key] = np.asarray(archive[key])
    except Exception as error:  # zip and numpy raise a dozen kinds for a damaged file, and ValueError for a pickle
        what = f"{key} is damaged or holds Python objects" if key else "this is no readable .npz"
        raise DynamicsError(f"{path}: {what}: save arrays of numbers by np.savez") from error
    for key in ARRAYS:
        if key not in found:
            raise DynamicsError(f"{path}: no array {key}: np.savez all of {', '.join(ARRAYS)}")
        images = key.endswith("images")
        if found[key].dtype != np.uint8 if images else found[key].dtype.kind not in "iu":
            wanted = "uint8, 0 to 255" if images else "integers"
            raise DynamicsError(f"{path}: {key} must be {wanted}, got {found[key].dtype}: convert before saving")
        found[key] = found[key] if images else found[key].astype(np.int64)
    return found


def _class_names(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    if (names := arrays.get("classes")) is not None:
        if names.dtype.kind != "U" or names.ndim != 1:
            raise DynamicsError(
                f"{path}: classes must be a list of names, got {names.dtype} {list(names.shape)}: "
                "save np.array(['cat', 'dog', ...])"
            )
        return tuple(names.tolist())
    seen = np.unique(arrays["train_labels"])
    if not np.array_equal(seen, np.arange(len(seen))):
        raise DynamicsError(
            f"{path}: train_labels are {len(seen)} different numbers from {seen[0]} to {seen[-1]}: number them "
            f"0 to {len(seen) - 1}, or save classes, an array with the name of every class"
        )
    return tuple(map(str, seen.tolist()))
