"""CIFAR-10 in its official binary layout: downloaded once, verified, and never unpickled."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import uuid
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import BadGzipFile
from http.client import HTTPException
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..errors import DynamicsError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
META_FILE = "batches.meta.txt"
MIRRORS_VARIABLE = "DYNAMICS_CIFAR10_MIRRORS"

RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes
TIMEOUT = 30.0  # seconds without a byte before a source counts as dead
CONNECTIONS = 100  # per source; each one after the first continues where the last was cut


@dataclass(frozen=True)
class Archive:
    """The one file that counts as CIFAR-10: where it is, its size in bytes, its digest, images per .bin file."""

    url: str
    size: int
    sha256: str
    records: int = 10_000

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


class Arrays(NamedTuple):
    """Images uint8 [N, 32, 32, 3], labels uint8 [N], and the names of the classes."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def read(folder: Path, records: int = ARCHIVE.records) -> Arrays:
    """The images of a folder in the binary layout, whether or not its bytes are the official ones.

    Raises DynamicsError where a file is missing or of another size, or a label is above 9.
    """
    try:
        names = tuple((folder / META_FILE).read_text("utf-8", "replace").split())
    except OSError:  # the file is optional
        names = ()
    classes = names if len(names) == len(CLASSES) else CLASSES
    return Arrays(*_read_files(folder, TRAIN_FILES, records), *_read_files(folder, TEST_FILES, records), classes)


def _read_files(folder: Path, names: Sequence[str], records: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(names), records, 32, 32, 3), np.uint8)
    labels = np.empty((len(names), records), np.uint8)
    for k, path in enumerate(folder / name for name in names):
        mend = f"put the official file there, or remove the folder and load 'cifar10' to fetch {ARCHIVE.name} again"
        try:
            if (size := path.stat().st_size) != records * RECORD:
                raise DynamicsError(f"{path} has {size:,} bytes instead of {records * RECORD:,}: {mend}")
            raw = np.fromfile(path, np.uint8).reshape(records, RECORD)
        except OSError as error:
            raise DynamicsError(f"{path} cannot be read ({error.strerror or error}): {mend}") from error
        if (wrong := np.flatnonzero(raw[:, 0] >= len(CLASSES))).size:
            raise DynamicsError(f"{path}: record {wrong[0]} has label {raw[wrong[0], 0]}, labels are 0 to 9: {mend}")
        labels[k] = raw[:, 0]
        planes = raw[:, 1:].reshape(records, 3, 32, 32)
        for channel in range(3):  # plane by plane reads contiguously, which a plain transpose does not
            images[k, ..., channel] = planes[:, channel]
    return images.reshape(-1, 32, 32, 3), labels.reshape(-1)


def present(folder: Path) -> bool:
    """Whether any image file of the layout lies in the folder."""
    return any(os.path.exists(folder / name) for name in TRAIN_FILES + TEST_FILES)


def fetch(
    root: Path, archive: Archive = ARCHIVE, *, mirrors: Sequence[str] | None = None, progress: bool = True
) -> Path:
    """The folder of the binary layout under root: as it is there, or unpacked, or downloaded and unpacked.

    mirrors: URLs tried in this order before the official host, of the file or (ending in a slash) of
    its folder; None takes those in the environment variable DYNAMICS_CIFAR10_MIRRORS, separated by
    spaces or commas. An archive of a wrong size or checksum is kept aside as *.corrupt.
    Raises DynamicsError where every source failed (saying where to put the file by hand), where the
    archive holds anything that it should not, and where the disk is full or not writable.
    """
    if mirrors is None:
        mirrors = [url for url in re.split(r"[\s,]+", os.environ.get(MIRRORS_VARIABLE, "")) if url]
    folder, path = root / FOLDER, root / archive.name
    if present(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        if path.exists() and (fault := find_fault(path, archive)):
            _keep_aside(path, path, fault)
        if not path.exists():
            download(path, archive, mirrors, progress=progress)
        unpack(path, folder, archive)
    except OSError as error:
        raise DynamicsError(
            f"{error.filename or root}: {error.strerror or error}: free some space there, "
            "or set DYNAMICS_DATA to another folder"
        ) from error
    return folder


def find_fault(path: Path, archive: Archive) -> str | None:
    """What is wrong with a downloaded file, or None."""
    if (size := path.stat().st_size) != archive.size:
        return f"{size:,} bytes instead of {archive.size:,}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == archive.sha256 else f"sha256 {digest[:12]}... instead of {archive.sha256[:12]}..."


def _keep_aside(found: Path, path: Path, fault: str) -> None:
    aside = path.with_name(path.name + ".corrupt")
    os.replace(found, aside)
    warnings.warn(f"{path.name} has {fault}: kept aside as {aside}", stacklevel=2)


class _SourceFailed(Exception):
    """A source could not be reached, was cut, or offers another file."""


def download(path: Path, archive: Archive, mirrors: Sequence[str] = (), *, progress: bool = True) -> None:
    """Fetch the archive to `path`, going on from `path`.part; the file appears only once it is verified.

    Several processes may do so at once: all of them write the same bytes to the same places.
    """
    part, failures = path.with_name(path.name + ".part"), []
    for url in (*mirrors, archive.url):
        url = url + archive.name if url.endswith("/") else url
        reason, inherited = "gave up", _size(part) > 0
        for _ in range(CONNECTIONS):
            offset = _size(part)
            try:
                if offset < archive.size:
                    _transfer(url, part, offset, archive, progress)
            except _SourceFailed as error:
                reason = str(error)
                if _size(part) > offset:
                    continue
                break
            if not (fault := _settle(part, path, archive)):
                return
            reason = fault
            if not inherited:
                break
            inherited = False  # the fault may lie in what was there before: once more, from the first byte
        failures.append(f"{url}: {reason}")
    raise DynamicsError(
        f"could not download {archive.name} ({'; '.join(failures)}): run again to go on from there, name another "
        f"source in {MIRRORS_VARIABLE}, or get the file ({archive.size:,} bytes) by other means and put it at {path}"
    )


def _settle(part: Path, path: Path, archive: Archive) -> str | None:
    """Rename a complete part to `path`, or keep it aside and say what is wrong with it."""
    try:
        if not (fault := find_fault(part, archive)):
            os.replace(part, path)
            return None
        _keep_aside(part, path, fault)
        return fault
    except FileNotFoundError:
        if path.exists():  # another process was faster
            return None
        raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, offset: int, archive: Archive, progress: bool) -> None:
    chunks = _receive(url, offset, archive.size)
    first = next(chunks)  # a source that does not answer leaves no empty file behind
    part.touch()
    options = {"unit": "B", "unit_scale": True, "desc": archive.name, "leave": False, "disable": not progress}
    with tqdm(total=archive.size, initial=offset, **options) as bar, part.open("r+b") as file:
        # never truncated: what is there is right, or the digest will tell
        for position, chunk in chain([first], chunks):
            file.seek(position)
            file.write(chunk)
            bar.update(position + len(chunk) - bar.n)


def _receive(url: str, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Chunks with their positions, from `offset` on, or from 0 where the server ignores Range."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "dynamics"})
        if offset:
            request.add_header("Range", f"bytes={offset}-")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            position, total = 0, response.headers.get("Content-Length", "")
            if getattr(response, "status", 200) == 206:
                span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
                if not span or int(span[1]) != offset:
                    raise _SourceFailed("answered another range of bytes than asked for")
                position, total = offset, span[2]
            if total.isdecimal() and int(total) != size:
                raise _SourceFailed(f"offers {int(total):,} bytes instead of {size:,}")
            while chunk := response.read1(1 << 18):
                if position + len(chunk) > size:
                    raise _SourceFailed(f"sends more than {size:,} bytes")
                yield position, chunk
                position += len(chunk)
            if position < size:
                raise _SourceFailed(f"cut after {position:,} of {size:,} bytes")
    except urllib.error.HTTPError as error:
        raise _SourceFailed(f"HTTP {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not a URL
        reason = getattr(error, "reason", None) or error
        raise _SourceFailed(" ".join(str(reason).split()) or type(error).__name__) from error


def unpack(path: Path, folder: Path, archive: Archive = ARCHIVE) -> None:
    """Unpack the image files of an archive to `folder`, which appears whole or not at all.

    Raises DynamicsError, leaving nothing behind, for members that are links, devices or outside the
    archive's own folder, for files that are missing or of a wrong size, and for an unreadable archive.
    """
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    aside.mkdir()  # not mkdtemp, whose folders only their owner can read
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                _unpack_member(tar, member, aside, path, archive)
        if missing := [name for name in TRAIN_FILES + TEST_FILES if not (aside / name).exists()]:
            raise DynamicsError(f"{path} holds no {FOLDER}/{missing[0]}: replace it by the official {archive.name}")
        try:
            os.rename(aside, folder)
        except OSError:
            if not present(folder):  # otherwise another process was faster
                raise
    except (tarfile.TarError, EOFError, zlib.error, BadGzipFile) as error:
        raise DynamicsError(f"{path} is no readable .tar.gz ({error}): remove it to fetch it again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, aside: Path, path: Path, archive: Archive) -> None:
    name = PurePosixPath(member.name)
    if (
        name.is_absolute()
        or ".." in name.parts
        or re.search(r"[\\:]", member.name)
        or not (member.isreg() or member.isdir())
    ):
        raise DynamicsError(
            f"{path} holds {member.name!r}, a link, a device or a path that leaves the folder, and is refused: "
            f"replace it by the official {archive.name}"
        )
    if not member.isreg() or name.parts[:-1] != (FOLDER,) or name.name not in (*TRAIN_FILES, *TEST_FILES, META_FILE):
        return
    if name.name != META_FILE and member.size != archive.records * RECORD:
        raise DynamicsError(
            f"{path}: {member.name} has {member.size:,} bytes instead of {archive.records * RECORD:,}: "
            f"replace it by the official {archive.name}"
        )
    with (aside / name.name).open("wb") as out:
        shutil.copyfileobj(tar.extractfile(member), out, 1 << 20)
