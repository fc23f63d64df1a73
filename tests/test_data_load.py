from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.data import Data, cifar10, load_data, shapes
from dynamics.data.cifar10 import FOLDER, RECORD, TEST_FILES, TRAIN_FILES, Archive, download, fetch, unpack
from dynamics.data.load import available, data_folder
from dynamics.errors import DynamicsError

RECORDS = 3


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    """No test sees the user's mirrors or writes into the user's data folder."""
    monkeypatch.delenv("DYNAMICS_CIFAR10_MIRRORS", raising=False)
    monkeypatch.setenv("DYNAMICS_DATA", str(tmp_path / "data"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def raises(*parts: str):
    """The block raises a one-line DynamicsError that holds all the parts."""
    with pytest.raises(DynamicsError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# -- a small CIFAR-10 --------------------------------------------------------------------------------------------


def layout_files(records: int = RECORDS) -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    files = {}
    for name in TRAIN_FILES + TEST_FILES:
        rows = draw.integers(0, 256, (records, RECORD), dtype=np.uint8)
        rows[:, 0] %= 10
        files[name] = rows.tobytes()
    return files


def write_layout(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, content in (layout_files() if files is None else files).items():
        (folder / name).write_bytes(content)
    return folder


def pack(members: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def small_tar() -> bytes:
    members = {f"{FOLDER}/{name}": content for name, content in layout_files().items()}
    return pack({**members, f"{FOLDER}/readme.html": b"<p>hello", f"{FOLDER}/batches.meta.txt": b"a b c d e f g h i j"})


TAR = small_tar()


def archive_of(payload: bytes, url: str = "http://127.0.0.1:9/cifar-10-binary.tar.gz") -> Archive:
    """The archive that a payload is; port 9 answers nobody."""
    return Archive(url, len(payload), hashlib.sha256(payload).hexdigest(), RECORDS)


@pytest.fixture
def small(monkeypatch) -> Archive:
    """`load_data` takes folders of RECORDS images a file."""
    archive = archive_of(TAR)
    monkeypatch.setattr(cifar10, "ARCHIVE", archive)
    return archive


# -- a server that misbehaves as told ----------------------------------------------------------------------------


@dataclass
class Server:
    payload: bytes = TAR
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which each successive answer breaks off
    status: int = 200
    length: bool = True  # whether it tells the length
    url: str = ""
    asked: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


@pytest.fixture
def serve():
    running = []

    def start(**options) -> Server:
        server = Server(**options)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                server.asked.append(asked)
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
                body = server.payload[start:]
                self.send_response(206 if start else 200)
                if start:
                    total = len(server.payload)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                if server.length:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                body = body[: server.cuts.pop(0)] if server.cuts else body
                server.sent.append(len(body))
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        running.append((http, thread))
        server.url = f"http://127.0.0.1:{http.server_port}/cifar-10-binary.tar.gz"
        return server

    yield start
    for http, thread in running:
        http.shutdown()
        http.server_close()
        thread.join()


# -- downloading -------------------------------------------------------------------------------------------------


def test_download_verify_unpack_and_read(serve, tmp_path):
    server = serve()
    folder = fetch(tmp_path, archive_of(TAR, server.url), progress=False)
    assert {p.name for p in folder.iterdir()} == {*TRAIN_FILES, *TEST_FILES, "batches.meta.txt"}  # no readme.html
    assert {p.name for p in tmp_path.iterdir()} == {FOLDER, "cifar-10-binary.tar.gz"}  # nothing temporary left
    assert (folder / "test_batch.bin").read_bytes() == layout_files()["test_batch.bin"]
    fetch(tmp_path, archive_of(TAR, server.url), progress=False)
    assert len(server.asked) == 1  # and it is fetched only once


def test_a_cut_download_goes_on_from_its_byte(serve, tmp_path):
    server = serve(cuts=[1000, 500])
    path = tmp_path / "a.tar.gz"
    download(path, archive_of(TAR, server.url), progress=False)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert sum(server.sent) == len(TAR)  # no byte came twice
    assert path.read_bytes() == TAR


def test_a_part_from_an_earlier_process_is_continued(serve, tmp_path):
    server, path = serve(), tmp_path / "a.tar.gz"
    (tmp_path / "a.tar.gz.part").write_bytes(TAR[:700])
    download(path, archive_of(TAR, server.url), progress=False)
    assert server.asked == ["bytes=700-"] and path.read_bytes() == TAR
    assert not (tmp_path / "a.tar.gz.part").exists()


def test_a_part_that_was_complete_needs_no_server(tmp_path):
    (tmp_path / "a.tar.gz.part").write_bytes(TAR)
    download(tmp_path / "a.tar.gz", archive_of(TAR), progress=False)
    assert (tmp_path / "a.tar.gz").read_bytes() == TAR


def test_a_server_without_range_starts_over(serve, tmp_path):
    server, path = serve(ranges=False), tmp_path / "a.tar.gz"
    (tmp_path / "a.tar.gz.part").write_bytes(TAR[:700])
    download(path, archive_of(TAR, server.url), progress=False)
    assert server.sent == [len(TAR)] and path.read_bytes() == TAR


def test_a_server_that_always_cuts_at_the_same_byte_is_given_up(serve, tmp_path):
    server = serve(ranges=False, cuts=[900] * 200)
    with raises(server.url, f"cut after 900 of {len(TAR):,} bytes"):
        download(tmp_path / "a.tar.gz", archive_of(TAR, server.url), progress=False)
    assert len(server.asked) == 2
    assert (tmp_path / "a.tar.gz.part").read_bytes() == TAR[:900]  # kept for the next time


def test_the_next_mirror_continues_what_a_mirror_began(serve, tmp_path):
    first, second = serve(cuts=[1000, 0]), serve()
    download(tmp_path / "a.tar.gz", archive_of(TAR), [first.url, second.url], progress=False)
    assert second.asked == ["bytes=1000-"] and (tmp_path / "a.tar.gz").read_bytes() == TAR


def test_a_wrong_checksum_is_kept_aside_and_the_next_mirror_asked(serve, tmp_path):
    wrong = TAR[:-1] + bytes([TAR[-1] ^ 1])
    bad, good = serve(payload=wrong), serve()
    with pytest.warns(UserWarning, match=r"sha256 .* kept aside as .*\.corrupt"):
        folder = fetch(tmp_path, archive_of(TAR), mirrors=[bad.url, good.url], progress=False)
    assert (tmp_path / "cifar-10-binary.tar.gz.corrupt").read_bytes() == wrong
    assert (tmp_path / "cifar-10-binary.tar.gz").read_bytes() == TAR and folder.is_dir()
    assert len(bad.asked) == 1


def test_a_bad_part_is_kept_aside_and_the_same_source_asked_once_more(serve, tmp_path):
    server = serve()
    (tmp_path / "a.tar.gz.part").write_bytes(b"\0" * 700)
    with pytest.warns(UserWarning, match="kept aside"):
        download(tmp_path / "a.tar.gz", archive_of(TAR, server.url), progress=False)
    assert server.asked == ["bytes=700-", None] and (tmp_path / "a.tar.gz").read_bytes() == TAR


def test_a_source_that_stays_bad_is_asked_only_once_more(serve, tmp_path):
    server = serve(payload=b"\0" * len(TAR))
    (tmp_path / "a.tar.gz.part").write_bytes(TAR[:700])
    with pytest.warns(UserWarning, match="kept aside"), raises(f"{server.url}: sha256"):
        download(tmp_path / "a.tar.gz", archive_of(TAR, server.url), progress=False)
    assert server.asked == ["bytes=700-", None]


@pytest.mark.parametrize("payload", [TAR[:-100], TAR + b"more"])
@pytest.mark.parametrize("length", [True, False])
def test_a_source_that_offers_another_size_is_passed_over(serve, tmp_path, payload, length):
    other, good = serve(payload=payload, length=length, ranges=False), serve()
    download(tmp_path / "a.tar.gz", archive_of(TAR), [other.url, good.url], progress=False)
    assert (tmp_path / "a.tar.gz").read_bytes() == TAR
    says = "sends more than" if len(payload) > len(TAR) else f"cut after {len(payload):,} of"
    with raises(f"{other.url}: offers {len(payload):,} bytes instead of" if length else f"{other.url}: {says}"):
        download(tmp_path / "b.tar.gz", archive_of(TAR), [other.url], progress=False)


def test_where_every_source_fails_one_line_says_where_to_put_the_file(serve, tmp_path):
    gone = serve(status=404)
    target = tmp_path / "cifar-10-binary.tar.gz"
    with raises(
        f"{gone.url}: HTTP 404", "no-url-at-all: ", "127.0.0.1:9", "DYNAMICS_CIFAR10_MIRRORS", f"put it at {target}"
    ):
        fetch(tmp_path, archive_of(TAR), mirrors=[gone.url, "no-url-at-all"], progress=False)
    assert not (tmp_path / FOLDER).exists()
    target.write_bytes(TAR)  # by hand
    assert fetch(tmp_path, archive_of(TAR), mirrors=[], progress=False).is_dir()


def test_mirrors_come_from_the_environment_in_order_and_may_be_folders(serve, tmp_path, monkeypatch):
    gone, good = serve(status=503), serve()
    monkeypatch.setenv("DYNAMICS_CIFAR10_MIRRORS", f" {gone.url},\n{good.url.rsplit('/', 1)[0]}/ ")
    fetch(tmp_path, archive_of(TAR), progress=False)
    assert len(gone.asked) == len(good.asked) == 1


def test_a_silent_server_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/cifar-10-binary.tar.gz"
        with raises("timed out"):
            download(tmp_path / "a.tar.gz", archive_of(TAR, url), progress=False)


def test_progress_is_shown_only_where_wanted(serve, tmp_path, capsys):
    server = serve()
    download(tmp_path / "a.tar.gz", archive_of(TAR, server.url), progress=False)
    assert capsys.readouterr().err == ""
    download(tmp_path / "b.tar.gz", archive_of(TAR, server.url), progress=True)
    assert "cifar-10-binary.tar.gz" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_keeps_the_part(serve, tmp_path, monkeypatch):
    server, write = serve(), cifar10._receive

    def full(*args):
        yield from write(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cifar10, "_receive", full)
    with raises("No space left on device", "free some space", str(tmp_path)):
        fetch(tmp_path, archive_of(TAR, server.url), progress=False)
    assert (tmp_path / "cifar-10-binary.tar.gz.part").exists() and not (tmp_path / FOLDER).exists()


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with raises(str(tmp_path / "file"), "DYNAMICS_DATA"):
        fetch(tmp_path / "file", archive_of(TAR), progress=False)


# -- archives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [TAR[:500], TAR + b"x", b"\0" * len(TAR)], ids=["truncated", "longer", "other"])
def test_a_damaged_archive_on_disk_is_kept_aside_and_never_unpacked(serve, tmp_path, damaged):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(damaged)
    fault = "sha256" if len(damaged) == len(TAR) else f"{len(damaged):,} bytes instead of {len(TAR):,}"
    with pytest.warns(UserWarning, match=f"has {fault}.* kept aside"), raises("put it at"):
        fetch(tmp_path, archive_of(TAR), mirrors=[], progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz.corrupt"]
    assert (tmp_path / "cifar-10-binary.tar.gz.corrupt").read_bytes() == damaged
    assert fetch(tmp_path, archive_of(TAR, serve().url), progress=False).is_dir()


def link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, ...]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return (info,)


@pytest.mark.parametrize(
    ("members", "extra"),
    [
        ({"../evil": b"x"}, ()),
        ({f"{FOLDER}/../../evil": b"x"}, ()),
        ({"/evil": b"x"}, ()),
        ({"..\\evil": b"x"}, ()),
        ({"C:evil": b"x"}, ()),
        ({}, link(f"{FOLDER}/data_batch_1.bin", "../../secret", tarfile.SYMTYPE)),
        ({}, link(f"{FOLDER}/data_batch_1.bin", "../secret", tarfile.LNKTYPE)),
        ({}, link(f"{FOLDER}/data_batch_1.bin", "", tarfile.FIFOTYPE)),
        ({}, link("evil\nname", "", tarfile.CHRTYPE)),
    ],
    ids=["up", "up-within", "absolute", "backslash", "drive", "symlink", "hardlink", "fifo", "device"],
)
def test_a_tar_that_reaches_outside_is_refused_whole(tmp_path, members, extra):
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    good = {f"{FOLDER}/{name}": content for name, content in layout_files().items()}
    payload = pack({**good, **members}, extra)
    (root / "cifar-10-binary.tar.gz").write_bytes(payload)
    with raises("is refused", "replace it by the official"):
        fetch(root, archive_of(payload), mirrors=[], progress=False)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "cifar-10-binary.tar.gz"]


def test_files_elsewhere_in_the_archive_are_not_unpacked(tmp_path):
    path, files = tmp_path / "a.tar.gz", layout_files()
    inside = {f"./{FOLDER}/{name}": content for name, content in files.items()}
    path.write_bytes(pack({**inside, "other/test_batch.bin": bytes(RECORDS * RECORD), f"{FOLDER}/more.bin": b"x"}))
    unpack(path, tmp_path / FOLDER, archive_of(TAR))
    assert {p.name: p.read_bytes() for p in (tmp_path / FOLDER).iterdir()} == files


def test_another_process_may_finish_the_download_first(serve, tmp_path, monkeypatch):
    path, find_fault = tmp_path / "a.tar.gz", cifar10.find_fault

    def slow(part, archive):
        fault = find_fault(part, archive)
        part.rename(path)  # by the other process
        return fault

    monkeypatch.setattr(cifar10, "find_fault", slow)
    download(path, archive_of(TAR, serve().url), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda files: files.pop("test_batch.bin"), "holds no cifar-10-batches-bin/test_batch.bin"),
        (lambda files: files.update({"data_batch_2.bin": b"short"}), "data_batch_2.bin has 5 bytes instead of 9,219"),
    ],
)
def test_an_archive_of_other_files_leaves_nothing(tmp_path, spoil, part):
    files = layout_files()
    spoil(files)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack({f"{FOLDER}/{name}": content for name, content in files.items()}))
    with raises(part):
        unpack(path, tmp_path / FOLDER, archive_of(TAR))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("content", [TAR[:-2000], b"no gzip", b""], ids=["truncated", "text", "empty"])
def test_an_unreadable_archive_leaves_nothing(tmp_path, content):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with raises("is no readable .tar.gz"):
        unpack(path, tmp_path / FOLDER, archive_of(TAR))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_half_an_archive_is_never_visible(tmp_path, monkeypatch):
    """While files are written the folder does not exist, and an interruption leaves nothing."""
    path, seen, copy = tmp_path / "a.tar.gz", [], cifar10.shutil.copyfileobj
    path.write_bytes(TAR)

    def watched(*args):
        seen.append((tmp_path / FOLDER).exists())
        if len(seen) == 4:
            raise KeyboardInterrupt
        copy(*args)

    monkeypatch.setattr(cifar10.shutil, "copyfileobj", watched)
    with pytest.raises(KeyboardInterrupt):
        unpack(path, tmp_path / FOLDER, archive_of(TAR))
    assert seen == [False] * 4 and [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_two_processes_may_unpack_at_once(tmp_path, monkeypatch):
    path, rename = tmp_path / "a.tar.gz", os.rename
    path.write_bytes(TAR)

    def late(source, target):
        write_layout(tmp_path / FOLDER)  # the other process, just before
        rename(source, target)

    monkeypatch.setattr(cifar10.os, "rename", late)
    unpack(path, tmp_path / FOLDER, archive_of(TAR))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", FOLDER]


# -- the binary layout -------------------------------------------------------------------------------------------


def test_pixels_are_exact_and_the_red_plane_comes_first(small, tmp_path):
    files = layout_files()
    write_layout(tmp_path / FOLDER, files)
    data = load_data("cifar10", root=tmp_path, device="cpu")
    assert isinstance(data, Data) and len(data.train) == 5 * RECORDS and len(data.test) == RECORDS
    for split, names in ((data.train, TRAIN_FILES), (data.test, TEST_FILES)):
        record = b"".join(files[name] for name in names)
        for n, y, x, channel in [(0, 0, 0, 0), (1, 0, 1, 2), (2, 31, 5, 1), (len(split) - 1, 17, 31, 0)]:
            assert split.images[n, y, x, channel] == record[n * RECORD + 1 + 1024 * channel + 32 * y + x]
        assert split.labels.tolist() == list(record[::RECORD])
        planes = split.images.permute(0, 3, 1, 2).reshape(len(split), -1).numpy()
        assert np.column_stack([split.labels.numpy().astype(np.uint8), planes]).tobytes() == record
    assert data.train.name == data.test.name == "cifar10" and data.train.classes == cifar10.CLASSES
    assert data.test.mean == data.train.mean and data.test.std == data.train.std
    np.testing.assert_allclose(data.train.mean, data.train.images.double().mean((0, 1, 2)), rtol=1e-12)


def test_class_names_come_from_the_folder_where_it_has_them(small, tmp_path):
    folder = write_layout(tmp_path / FOLDER)
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert load_data("cifar10", root=tmp_path).test.classes == tuple("abcdefghij")
    (folder / "batches.meta.txt").write_text("a b")
    assert load_data("cifar10", root=tmp_path).test.classes == cifar10.CLASSES


def test_a_folder_and_its_parent_are_sources_and_names_load_again(small, tmp_path, monkeypatch):
    folder = write_layout(tmp_path / "mine" / FOLDER)
    monkeypatch.chdir(tmp_path)
    for source in (folder, str(folder), "mine", Path("mine"), f"mine/{FOLDER}/"):
        train, test = load_data(source)
        again = load_data(train.name)
        assert Path(train.name).is_absolute() and test.name == train.name == again.train.name
        assert again.train.fingerprint() == train.fingerprint() and again.test.fingerprint() == test.fingerprint()


def test_cifar10_is_read_as_it_is_or_unpacked_without_any_network(small, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(TAR)
    first = load_data("cifar10", root=tmp_path).train
    (tmp_path / "cifar-10-binary.tar.gz").unlink()
    assert load_data("cifar10", root=tmp_path).train.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"])
def test_wrong_files_in_the_folder(small, tmp_path, name):
    folder = write_layout(tmp_path / FOLDER)
    path, whole = folder / name, (folder / name).read_bytes()
    for content in (whole[:-1], whole + b"x", b""):
        path.write_bytes(content)
        with raises(f"{path} has {len(content):,} bytes instead of 9,219", "remove the folder"):
            load_data("cifar10", root=tmp_path)
    path.write_bytes(whole[:RECORD] + bytes([10]) + whole[RECORD + 1 :])
    with raises(f"{path}: record 1 has label 10", "labels are 0 to 9"):
        load_data(tmp_path)
    path.unlink()
    with raises(f"{path} cannot be read", "put the official file there"):
        load_data("cifar10", root=tmp_path)


def test_the_official_archive_is_described_as_published():
    assert cifar10.ARCHIVE.name == "cifar-10-binary.tar.gz" and cifar10.ARCHIVE.size == 170_052_171
    assert len(cifar10.ARCHIVE.sha256) == 64 and cifar10.ARCHIVE.records * RECORD == 30_730_000


# -- .npz --------------------------------------------------------------------------------------------------------


def arrays(n: int = 12, m: int = 6) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {
        "train_images": draw.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "train_labels": np.arange(n, dtype=np.uint8) % 3,
        "test_images": draw.integers(0, 256, (m, 8, 8, 3), dtype=np.uint8),
        "test_labels": np.arange(m, dtype=">i4") % 3,
    }


def saved(path: Path, **changes) -> Path:
    content = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    np.savez(path, **content)
    return path


def test_npz_round_trip(tmp_path):
    path = saved(tmp_path / "my.npz", classes=np.array(["cat", "dog", "eel", "never seen"]))
    train, test = load_data(path)
    assert train.classes == test.classes == ("cat", "dog", "eel", "never seen")
    assert np.array_equal(train.images, arrays()["train_images"]) and test.labels.tolist() == [0, 1, 2] * 2
    assert train.name == str(path) and test.mean == train.mean
    assert load_data(saved(tmp_path / "plain.npz")).train.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"test_labels": None}, ["no array test_labels", "np.savez"]),
        ({"train_images": np.array([{}], dtype=object)}, ["train_images", "Python objects"]),
        ({"test_labels": np.array([None] * 6)}, ["test_labels", "Python objects"]),
        ({"train_images": np.zeros((12, 8, 8, 3), np.float32)}, ["train_images must be uint8", "got float32"]),
        (
            {"train_images": np.zeros((12, 3, 8, 8), np.uint8)},
            ["(train)", "images must be uint8 [N, height", "[12, 3,"],
        ),
        ({"train_images": np.zeros((12, 192), np.uint8)}, ["(train)", "[12, 192]"]),
        ({"test_images": np.zeros((6, 9, 8, 3), np.uint8)}, ["train_images are 8x8 and test_images 9x8"]),
        ({"train_labels": np.zeros(12)}, ["train_labels must be integers", "got float64"]),
        ({"train_labels": np.array(["cat"] * 12)}, ["train_labels must be integers", "got <U3"]),
        ({"test_labels": np.zeros(5, int)}, ["(test)", "labels must be integers [6]", "[5]"]),
        ({"test_labels": np.full(6, 3)}, ["(test)", "labels run from 3 to 3", "3 classes"]),
        ({"test_labels": np.full(6, -1)}, ["(test)", "labels run from -1"]),
        ({"train_labels": np.arange(12) % 3 + 1}, ["train_labels are 3 different numbers from 1 to 3", "classes"]),
        ({"train_labels": np.full(12, 10**15)}, ["train_labels", "number them 0 to 0"]),
        ({"classes": np.array(["a", "b"])}, ["(train)", "labels run from 0 to 2", "2 classes"]),
        ({"classes": np.arange(3)}, ["classes must be a list of names", "int64 [3]"]),
        (
            {"test_images": np.zeros((0, 8, 8, 3), np.uint8), "test_labels": np.zeros(0, int)},
            ["(test)", "at least one"],
        ),
        ({"train_images": np.zeros((0, 8, 8, 3), np.uint8), "train_labels": np.zeros(0, int)}, ["(train)", "at least"]),
    ],
)
def test_npz_errors_name_the_file_and_the_array(tmp_path, changes, parts):
    path = saved(tmp_path / "my.npz", **changes)
    with raises(str(path), *parts):
        load_data(path)


def test_files_that_are_no_npz(tmp_path):
    whole = saved(tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[1000] ^= 1  # within train_images
    np.save(tmp_path / "one.npy", arrays()["train_images"])
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    contents = {
        "text.npz": b"hello",
        "empty.npz": b"",
        "half.npz": whole[: len(whole) // 2],
        "flipped.npz": bytes(flipped),
        "one.npz": (tmp_path / "one.npy").read_bytes(),
        "objects.npz": (tmp_path / "objects.npy").read_bytes(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with raises(str(tmp_path / name), "np.savez"):
            load_data(tmp_path / name)


# -- sources -----------------------------------------------------------------------------------------------------


def test_unknown_names_get_the_nearest_and_missing_paths_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises("unknown dataset 'cifar-10'", "did you mean 'cifar10'?"):
        load_data("cifar-10")
    with raises("unknown dataset 'shape'", "'shapes'"):
        load_data("shape")
    with raises("unknown dataset 'imagenet'", "cifar10, shapes"):
        load_data("imagenet")
    with raises("unknown dataset ''"):
        load_data("")
    for source in ("no/such/folder", "gone.npz", Path("gone"), "~nobody-of-that-name/x"):
        with raises("does not exist", str(source).rsplit("/", 1)[-1]):
            load_data(source)
    with raises(str(tmp_path), "no CIFAR-10 in the binary layout"):
        load_data(tmp_path)
    for source in (None, 3, np.zeros(3)):
        with raises("Split.from_arrays"):
            load_data(source)


def test_limit_keeps_the_first_images_and_the_normalisation_of_all(tmp_path):
    path = saved(tmp_path / "my.npz")
    whole, part = load_data(path), load_data(path, limit=5)
    assert len(part.train) == 5 and len(part.test) == len(whole.test)
    assert torch.equal(part.train.images, whole.train.images[:5])
    assert torch.equal(part.train.labels, whole.train.labels[:5])
    assert part.train.mean == whole.train.mean and part.train.std == whole.train.std
    assert len(load_data(path, limit=np.int64(1)).train) == 1
    assert len(load_data(path, limit=10**9).train) == len(whole.train)
    for limit in (0, -1, 2.0, True, "5"):
        with raises("limit must be a whole number", repr(limit)):
            load_data(path, limit=limit)


def test_devices(tmp_path):
    path = saved(tmp_path / "my.npz")
    assert load_data(path, device="cpu").train.device.type == "cpu"
    assert load_data(path).test.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("cuda:77", "gpu", "meta", 3.5):
        with raises(f"there is no device {str(device)!r} here", "'cpu'"):
            load_data(path, device=device)


def test_where_data_is_kept(tmp_path, monkeypatch):
    assert data_folder() == tmp_path / "data"
    assert data_folder(tmp_path / "other") == tmp_path / "other"
    monkeypatch.setenv("DYNAMICS_DATA", "~/somewhere")
    assert data_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("DYNAMICS_DATA")
    assert data_folder().name in ("data", "dynamics")  # a checkout's, or the user's cache


# -- shapes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Replaces the generator by a quick one, and lists the sizes that it was asked for."""
    calls = []

    def make(n_train: int = 60, n_test: int = 30, seed: int = 0):
        calls.append(n_train)
        pixels = np.ones((8, 8, 3), np.uint8)
        train, test = (np.arange(n)[:, None, None, None].astype(np.uint8) for n in (n_train, n_test))
        return train * pixels + seed, np.arange(n_train) % 10, test * pixels + 99, np.arange(n_test) % 10

    monkeypatch.setattr(shapes, "make_shapes", make)
    return calls


def test_shapes_are_made_once_and_then_read(made, tmp_path):
    train, test = load_data(root=tmp_path)
    (cache,) = tmp_path.iterdir()
    again = load_data("shapes", root=tmp_path)
    assert made == [60, 20]  # the second time only the few that are compared
    assert again.train.fingerprint() == train.fingerprint() and again.test.fingerprint() == test.fingerprint()
    assert train.name == test.name == "shapes" and train.classes == shapes.CLASSES and test.mean == train.mean
    assert [p.name for p in tmp_path.iterdir()] == [cache.name]


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "no arrays", "other images", "a folder"])
def test_a_damaged_cache_is_made_anew(made, tmp_path, damage):
    train = load_data("shapes", root=tmp_path).train
    (cache,) = tmp_path.iterdir()
    whole = cache.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    if damage == "a folder":
        cache.unlink()
        (cache / "x").mkdir(parents=True)
    elif damage == "no arrays":
        np.savez(cache, nothing=np.zeros(1))
    elif damage == "other images":
        np.savez(cache, **dict(zip(arrays(), shapes.make_shapes(seed=1), strict=True)))
    else:
        cache.write_bytes({"empty": b"", "truncated": whole[:-500], "flipped": bytes(flipped)}[damage])
    assert load_data("shapes", root=tmp_path).train.fingerprint() == train.fingerprint()
    if damage != "a folder":
        assert cache.read_bytes() == whole  # and the cache is mended
    assert [p.name for p in tmp_path.iterdir()] == [cache.name]


def test_an_unwritable_cache_is_no_error(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    train = load_data("shapes", root=tmp_path / "file").train

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert load_data("shapes", root=tmp_path / "other").train.fingerprint() == train.fingerprint()
    assert list((tmp_path / "other").iterdir()) == []


def test_available_tells_what_is_on_disk(made, small, tmp_path):
    before = available(tmp_path)
    assert list(before) == ["shapes", "cifar10"] and all("not on disk" in line for line in before.values())
    load_data("shapes", root=tmp_path)
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(TAR[:100])
    assert str(tmp_path) in available(tmp_path)["shapes"] and "MB in" in available(tmp_path)["cifar10"]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(TAR)
    assert "unpacked on first use" in available(tmp_path)["cifar10"]
    load_data("cifar10", root=tmp_path)
    assert available(tmp_path)["cifar10"].endswith(f"in {tmp_path / FOLDER}")
    assert all("\n" not in line for line in available(tmp_path).values())
