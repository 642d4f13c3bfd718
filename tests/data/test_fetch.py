import csv
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import threading

import numpy as np
import pytest

from jaxdti.data import fetch as fetching
from jaxdti.data.fetch import fetch, read_pickled_matrix
from jaxdti.data.named import find_dataset
from jaxdti.data.registry import DATASETS, NamedDataset, Upstream
from jaxdti.errors import DataError

CONTENT = {part: f"SMILES,Protein,Y\n{part}\n".encode() * 20_000 for part in ("train", "val", "test")}


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; ``cuts`` holds, per path, after how many bytes each coming connection breaks."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.status: list[int] = []  # answers to the coming requests instead of a file
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, asked = self.path.lstrip("/"), self.headers.get("Range")
        self.server.requests.append((path, asked))
        if self.server.status or path not in self.server.files:
            self.send_error(self.server.status.pop(0) if self.server.status else 404)
            return
        content = self.server.files[path]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cuts = self.server.cuts.get(path)
        self.wfile.write(content[start : start + cuts.pop(0)] if cuts else content[start:])
        self.close_connection = True


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def toy(monkeypatch, server):
    """A dataset of three files on the server: the hash of two is published, that of the test file is not."""
    hashes = {part: hashlib.sha256(content).hexdigest() for part, content in CONTENT.items()} | {"test": None}
    entry = NamedDataset(
        files={"train": "toy/train", "validation": "toy/val", "test": "toy/test"},
        rows={"train": 20_000, "validation": 20_000, "test": 20_000},
        licence="none",
        source="here",
        upstream=tuple(
            Upstream(source=f"owner/repository/{part}.csv", target=f"toy/{part}.csv", sha256=hashes[part])
            for part in CONTENT
        ),
    )
    monkeypatch.setitem(DATASETS, "toy", entry)
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    server.files = {f"owner/repository/{part}.csv": content for part, content in CONTENT.items()}
    return server


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


ALL = ["fetched.json", "test.csv", "train.csv", "val.csv"]


def test_full_download(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDTI_CACHE", str(tmp_path))
    monkeypatch.delenv("JAXDTI_DATA", raising=False)
    seen = []
    paths = fetch("toy", base_url=toy.url + "/", progress=lambda *call: seen.append(call))
    assert [path.read_bytes() for path in paths] == list(CONTENT.values())
    assert names(tmp_path / "data") == ALL
    located = find_dataset("toy")
    assert located.checked and located.files["test"] == paths[2]
    assert [call for call in seen if call[1] == call[2]] == [
        (f"{part}.csv", len(content), len(content)) for part, content in CONTENT.items()
    ]
    done = len(toy.requests)
    assert fetch("toy", base_url=toy.url) == paths
    assert len(toy.requests) == done  # what is there is not downloaded again


def test_resume_of_a_partial_file(toy, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv.part").write_bytes(CONTENT["train"][:1234])
    paths = fetch("toy", tmp_path, base_url=toy.url)
    assert toy.requests[0] == ("owner/repository/train.csv", "bytes=1234-")
    assert paths[0].read_bytes() == CONTENT["train"] and names(tmp_path) == ALL


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("have", ["all", "more"])
def test_partial_file_that_is_long_enough(toy, tmp_path, ranges, have):
    toy.ranges = ranges
    (tmp_path / "toy").mkdir()
    extra = b"" if have == "all" else b"rubbish"
    (tmp_path / "toy" / "train.csv.part").write_bytes(CONTENT["train"] + extra)
    assert fetch("toy", tmp_path, base_url=toy.url)[0].read_bytes() == CONTENT["train"]


def test_server_that_cannot_resume(toy, tmp_path):
    toy.ranges = False
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv.part").write_bytes(b"x" * 500)
    assert fetch("toy", tmp_path, base_url=toy.url)[0].read_bytes() == CONTENT["train"]


def test_cut_connection_goes_on_where_it_stopped(toy, tmp_path):
    toy.cuts["owner/repository/train.csv"] = [70_000, 0, 100_000]
    paths = fetch("toy", tmp_path, base_url=toy.url)
    assert paths[0].read_bytes() == CONTENT["train"]
    asked = [start for path, start in toy.requests if path.endswith("train.csv")]
    assert asked == [None, "bytes=70000-", "bytes=70000-", "bytes=170000-"]


def test_always_cut_is_an_error_and_the_next_run_goes_on(toy, tmp_path):
    toy.cuts["owner/repository/train.csv"] = [1000] * fetching.ATTEMPTS
    with pytest.raises(DataError, match=r"not downloaded after 4 attempts \(4000 of 460000 bytes received\)") as caught:
        fetch("toy", tmp_path, base_url=toy.url)
    assert "\n" not in str(caught.value) and str(tmp_path / "toy" / "train.csv") in str(caught.value)
    assert names(tmp_path) == ["train.csv.part"]
    assert fetch("toy", tmp_path, base_url=toy.url)[0].read_bytes() == CONTENT["train"]
    assert ("owner/repository/train.csv", "bytes=4000-") in toy.requests


def test_wrong_hash_leaves_nothing(toy, tmp_path):
    toy.files["owner/repository/train.csv"] += b"x"
    with pytest.raises(DataError, match=r"train.csv: wrong content, SHA-256 \w{64} found, \w{64} expected") as caught:
        fetch("toy", tmp_path, base_url=toy.url)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_wrong_beginning_is_noticed_and_the_next_run_is_clean(toy, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.csv.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="wrong content"):
        fetch("toy", tmp_path, base_url=toy.url)
    assert names(tmp_path) == []
    assert fetch("toy", tmp_path, base_url=toy.url)[0].read_bytes() == CONTENT["train"]


def test_unpublished_hash_is_recorded_and_checked_afterwards(toy, tmp_path):
    path = fetch("toy", tmp_path, base_url=toy.url)[2]
    record = json.loads((tmp_path / "toy" / "fetched.json").read_text())
    assert record["test.csv"] == hashlib.sha256(CONTENT["test"]).hexdigest()
    path.write_bytes(b"damaged")
    assert fetch("toy", tmp_path, base_url=toy.url)[2].read_bytes() == CONTENT["test"]
    path.unlink()
    toy.files["owner/repository/test.csv"] = b"another file"
    with pytest.raises(DataError, match="test.csv: wrong content"):
        fetch("toy", tmp_path, base_url=toy.url)
    assert not path.exists()


def test_files_that_were_put_there_by_hand_are_used(toy, tmp_path):
    """Without a network: known content is compared, other content is recorded and compared from then on."""
    toy.files = {}
    (tmp_path / "toy").mkdir()
    paths = [tmp_path / "toy" / f"{part}.csv" for part in CONTENT]
    for path, content in zip(paths, CONTENT.values(), strict=True):
        path.write_bytes(content)
    assert fetch("toy", tmp_path, base_url=toy.url) == paths and not toy.requests
    record = json.loads((tmp_path / "toy" / "fetched.json").read_text())
    assert record == {"test.csv": hashlib.sha256(CONTENT["test"]).hexdigest()}
    for path in (paths[2], paths[0]):
        path.write_bytes(b"another file")
        with pytest.raises(DataError, match=rf"^{path}: wrong content, SHA-256 \w+ found, \w+ expected; .*HTTP 404"):
            fetch("toy", tmp_path, base_url=toy.url)
        assert path.read_bytes() == b"another file"


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, fetching.ATTEMPTS)])
def test_http_error(toy, tmp_path, status, requests):
    toy.status = [status] * requests
    with pytest.raises(
        DataError, match=rf"train.csv: .*HTTP {status}.* put (it|the file) at .*toy/train.csv"
    ) as caught:
        fetch("toy", tmp_path, base_url=toy.url)
    assert "\n" not in str(caught.value)
    assert len(toy.requests) == requests and names(tmp_path) == []


def test_server_trouble_that_passes(toy, tmp_path):
    toy.status = [503, 429]
    assert fetch("toy", tmp_path, base_url=toy.url)[0].read_bytes() == CONTENT["train"]


def test_no_network(toy, tmp_path):
    closed = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    closed.server_close()
    with pytest.raises(DataError, match=r"not downloaded after 4 attempts \(.*refused\); check the network") as caught:
        fetch("toy", tmp_path, base_url=f"http://127.0.0.1:{closed.server_address[1]}")
    assert "\n" not in str(caught.value) and str(tmp_path / "toy" / "train.csv") in str(caught.value)
    assert names(tmp_path) == []


def test_interrupted_leaves_no_final_file(toy, tmp_path):
    def interrupt(name, done, total):
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("toy", tmp_path, base_url=toy.url, progress=interrupt)
    assert names(tmp_path) == ["train.csv.part"]
    assert fetch("toy", tmp_path, base_url=toy.url)[0].read_bytes() == CONTENT["train"]
    assert re.fullmatch(r"bytes=\d+-", str(toy.requests[1][1]))


def test_large_file_behind_a_pointer(toy, tmp_path):
    """A repository may keep a small pointer in the place of a large file, with the hash of what it points to."""
    sha256 = hashlib.sha256(CONTENT["test"]).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(CONTENT['test'])}\n".encode()
    toy.files["owner/repository/test.csv"] = pointer
    toy.files["media/owner/repository/test.csv"] = CONTENT["test"]
    assert fetch("toy", tmp_path, base_url=toy.url)[2].read_bytes() == CONTENT["test"]
    toy.files["media/owner/repository/test.csv"] = CONTENT["val"]
    with pytest.raises(DataError, match="media/owner/repository/test.csv: wrong content"):
        fetch("toy", tmp_path / "again", base_url=toy.url)


def test_web_page_instead_of_a_file(toy, tmp_path):
    toy.files["owner/repository/test.csv"] = b"<!DOCTYPE html><p>Please log in to this network</p>"
    with pytest.raises(DataError, match="test.csv: a web page came instead of the file; nothing was kept"):
        fetch("toy", tmp_path, base_url=toy.url)
    assert names(tmp_path) == ["fetched.json", "train.csv", "val.csv"]


def test_two_at_once_do_not_mix(toy, tmp_path):
    inside, proceed = threading.Event(), threading.Event()
    result = []

    def wait(*_):
        inside.set()
        assert proceed.wait(10)

    thread = threading.Thread(target=lambda: result.extend(fetch("toy", tmp_path, base_url=toy.url, progress=wait)))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(DataError, match="train.csv.part: another process is downloading this file"):
        fetch("toy", tmp_path, base_url=toy.url)
    proceed.set()
    thread.join()
    assert result[0].read_bytes() == CONTENT["train"]


def test_what_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXDTI_DATA", raising=False)
    with pytest.raises(DataError, match="families/dude: not found; .* it has no public file .* from samsledje/ConPLex"):
        fetch("families/dude", tmp_path)
    monkeypatch.setenv("JAXDTI_CACHE", str(tmp_path))
    for place, destination in ((tmp_path / "here", tmp_path / "here"), (tmp_path / "data", None)):
        names = [f"{place}/human/cluster/{part}.csv.gz" for part in ("source_train", "target_train", "target_test")]
        with pytest.raises(DataError, match=f"human/cluster: not found; put {', '.join(names)} there"):
            fetch("human/cluster", destination)
    (tmp_path / "data/human/cluster").mkdir(parents=True)
    files = [tmp_path / f"data/human/cluster/{part}.csv" for part in ("source_train", "target_train", "target_test")]
    for file in files:
        file.write_text("SMILES,Protein,Y\n")
    assert fetch("human/cluster") == files
    with pytest.raises(DataError, match="no such name"):
        fetch("nothing", tmp_path)
    with pytest.raises(DataError, match="embedded"):
        fetch("planted", tmp_path)


def test_no_place_to_write(toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: cannot be written"):
        fetch("toy", tmp_path / "file", base_url=toy.url)


# Affinity matrices of the DeepDTA repository.


def old_pickle(matrix):
    """As Python 2 wrote it: protocol 2, module numpy.core, raw bytes in a string opcode."""
    raw = matrix.astype("<f8").tobytes()
    return b"".join(
        [
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01M" + matrix.shape[0].to_bytes(2, "little") + b"M" + matrix.shape[1].to_bytes(2, "little") + b"\x86",
            b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb.",
        ]
    )


MATRIX = np.random.default_rng(0).normal(size=(3, 4)) ** 2


@pytest.mark.parametrize(
    "content",
    [
        old_pickle(MATRIX),
        *(pickle.dumps(MATRIX, protocol) for protocol in range(5)),
        pickle.dumps(np.asfortranarray(MATRIX), 2),
        pickle.dumps(MATRIX.astype(">f8"), 2),
    ],
)
def test_matrix_is_read(tmp_path, content):
    (tmp_path / "Y").write_bytes(content)
    np.testing.assert_array_equal(read_pickled_matrix(tmp_path / "Y"), MATRIX)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was run",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Malicious()),
        pickle.dumps(np.array([Malicious()], dtype=object), 2),
        pickle.dumps(np.array(["a", None], dtype=object), 2),
        pickle.dumps(np.arange(3.0), 2),
        pickle.dumps({"a": 1}),
        pickle.dumps(MATRIX, 2)[:-40],
        b"",
        b"not a pickle",
    ],
)
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Y").write_bytes(content)
    with pytest.raises(DataError, match="Y: not read, a pickled matrix of floats and nothing else expected"):
        read_pickled_matrix(tmp_path / "Y")
    assert os.listdir(tmp_path) == ["Y"]


def deepdta_files(name, matrix, drugs, flat, proteins, folds):
    prefix = f"{DATASETS[name].upstream[0].source.rpartition('/')[0]}"
    train = [folds[f"train{number}"] for number in range(5)]
    return {
        f"{prefix}/ligands_iso.txt": json.dumps(drugs).encode(),
        f"{prefix}/ligands_can.txt": json.dumps(flat).encode(),
        f"{prefix}/proteins.txt": json.dumps(proteins).encode(),
        f"{prefix}/Y": old_pickle(matrix),
        f"{prefix}/folds/train_fold_setting1.txt": json.dumps(train).encode(),
        f"{prefix}/folds/test_fold_setting1.txt": json.dumps(folds["test"]).encode(),
    }


def small_deepdta(name):
    matrix = np.array([[10.0, 10000.0, np.nan], [43.0, np.nan, 12.199999035]])
    folds = {"train0": [3], "train1": [0], "train2": [], "train3": [], "train4": [2], "test": [1]}
    drugs = {"7": "C[C@H](N)O", "5": "CC"}
    return deepdta_files(name, matrix, drugs, {"7": "CC(N)O", "5": "CC"}, {"P": "MK", "Q": "MA", "R": "ML"}, folds)


@pytest.mark.parametrize("name", ["davis", "kiba"])
def test_deepdta_becomes_tables(server, tmp_path, name, monkeypatch):
    monkeypatch.setenv("JAXDTI_CACHE", str(tmp_path))
    monkeypatch.delenv("JAXDTI_DATA", raising=False)
    server.files = small_deepdta(name)
    fetch(name, base_url=server.url)
    located = find_dataset(name)
    assert located.checked
    with open(located.files["pairs"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["drug"], row["protein"], row["fold"]) for row in rows] == [
        ("0", "0", "train1"),
        ("0", "1", "test"),
        ("1", "0", "train4"),
        ("1", "2", "train0"),
    ]
    if name == "davis":
        assert [row["Kd_nM"] for row in rows] == ["10.0", "10000.0", "43.0", "12.199999035"]
        assert [row["pKd"] for row in rows] == ["8.0", "5.0", "7.366532", "7.91364"]
    else:
        assert [row["kiba_score"] for row in rows] == ["10.0", "10000.0", "43.0", "12.199999035"]
    assert located.files["drugs"].read_text() == "drug,source_id,SMILES,SMILES_flat\n0,7,C[C@H](N)O,CC(N)O\n1,5,CC,CC\n"
    assert located.files["proteins"].read_text() == "protein,source_id,Protein\n0,P,MK\n1,Q,MA\n2,R,ML\n"
    located.files["pairs"].write_text("drug,protein\n")
    with pytest.raises(DataError, match="affinity.csv: wrong content"):
        find_dataset(name)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("proteins.txt", b'{"P": "MK"}', "matrix 2 x 3 found, 2 drugs x 1 proteins expected"),
        ("folds/test_fold_setting1.txt", b"[]", "folds: 3 row numbers found, each of 0 to 3 once expected"),
        ("folds/test_fold_setting1.txt", b"[0]", "folds: 4 row numbers found"),
        ("folds/test_fold_setting1.txt", b"{}", "JSON list expected, dict found"),
        ("ligands_iso.txt", b"not JSON", "ligands_iso.txt: JSON expected"),
        ("ligands_can.txt", b'{"7": "C", "6": "C"}', "do not belong together"),
    ],
)
def test_deepdta_files_that_do_not_fit(server, tmp_path, file, content, message):
    server.files = small_deepdta("davis")
    server.files[next(path for path in server.files if path.endswith(f"davis/{file}"))] = content
    with pytest.raises(DataError, match=message):
        fetch("davis", tmp_path, base_url=server.url)
    assert not (tmp_path / "davis" / "affinity.csv").exists()


def test_deepdta_files_that_were_put_there_by_hand(server, tmp_path):
    """A file that does not fit is not recorded, so that the right one can take its place."""
    (tmp_path / "davis" / "upstream").mkdir(parents=True)
    for path, content in small_deepdta("davis").items():
        (tmp_path / "davis" / "upstream" / path.rpartition("/")[2]).write_bytes(content)
    proteins = tmp_path / "davis" / "upstream" / "proteins.txt"
    right = proteins.read_bytes()
    proteins.write_bytes(b"{}")
    with pytest.raises(DataError, match="matrix 2 x 3 found, 2 drugs x 0 proteins expected"):
        fetch("davis", tmp_path, base_url=server.url)
    proteins.write_bytes(right)
    assert (tmp_path / "davis" / "affinity.csv") in fetch("davis", tmp_path, base_url=server.url)
    assert len(json.loads((tmp_path / "davis" / "upstream" / "fetched.json").read_text())) == 6
    assert not server.requests


TABLES = ("drugs", "proteins", "affinity")


def test_davis_comes_out_as_stored(server, tmp_path, data_dir):
    """The stored tables, turned back into upstream files and fetched, are equal byte by byte."""
    stored = {name: gzip.decompress((data_dir / "davis" / f"{name}.csv.gz").read_bytes()) for name in TABLES}
    drugs, proteins, pairs = (list(csv.DictReader(io.StringIO(stored[name].decode()))) for name in TABLES)
    matrix = np.full((len(drugs), len(proteins)), np.nan)
    folds = {name: [] for name in ("train0", "train1", "train2", "train3", "train4", "test")}
    for number, row in enumerate(pairs):
        matrix[int(row["drug"]), int(row["protein"])] = float(row["Kd_nM"])
        folds[row["fold"]].append(number)
    server.files = deepdta_files(
        "davis",
        matrix,
        {row["source_id"]: row["SMILES"] for row in drugs},
        {row["source_id"]: row["SMILES_flat"] for row in drugs},
        {row["source_id"]: row["Protein"] for row in proteins},
        folds,
    )
    fetch("davis", tmp_path, base_url=server.url)
    for name, content in stored.items():
        assert (tmp_path / "davis" / f"{name}.csv").read_bytes() == content
