"""Public sets from a real HTTP server of the test's own, or from files that a user has, into a store on disk. All texts are invented."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from medschool.cli import app
from medschool.errors import InputError, RecipeError
from medschool.exams.formats import EXAM_FORMATS
from medschool.exams.published import PUBLISHED
from medschool.instructions.formats import INSTRUCTION_FORMATS
from medschool.recipe.evaluation import Exam
from medschool.recipe.instructions import Instructions
from medschool.releases import shelf
from medschool.releases.counted import Count, count
from medschool.releases.download import download
from medschool.releases.medquad import json_lines
from medschool.releases.sets import RELEASES, Download, Release, Wanted

LINES = [
    {
        "src": "S",
        "url": "u",
        "focus": "Gout",
        "qtype": "information",
        "question": f"What is gout {number}?",
        "answer": "A crystal.",
    }
    for number in range(40)
]
DATA = "".join(json.dumps(line) + "\n" for line in LINES).encode()
LABELS = b'{"1": "yes", "2": "no"}'


@dataclass
class Host:
    """A server that does as `script` says, one entry a request: `good`, `cut:<bytes>`, `<status>` or `page`; then good for ever."""

    files: dict[str, bytes]
    script: list[str] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    after: Callable[[], None] = lambda: None
    """Called after each request."""


@pytest.fixture
def host() -> Iterator[Host]:
    state = Host({"/set.jsonl": DATA, "/labels.json": LABELS})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.seen.append({key.lower(): value for key, value in self.headers.items()})
            act = state.script.pop(0) if state.script else "good"
            data = state.files.get(self.path)
            if data is None or act.isdigit():
                self.send_response(404 if data is None else int(act))
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if act == "page":
                data = b"<html>Sign in</html>"
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            start = 0
            if self.headers.get("If-Range") == tag and (asked := self.headers.get("Range")):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", "text/html" if act == "page" else "application/json")
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:][: int(act.removeprefix("cut:")) if act.startswith("cut:") else None])
            if act.startswith("cut:"):
                self.close_connection = True
            state.after()

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def release_of(host: Host | None, pinned: str | None = None, records: int = 40) -> Release:
    url = host.url if host else "http://127.0.0.1:9"
    return Release(
        "tiny", "Tiny: invented questions", "CC0.",
        (Download(f"{url}/set.jsonl", "set.jsonl", pinned), Download(f"{url}/labels.json", "labels.json", sha256(LABELS))),
        (
            Wanted("medquad.jsonl", ("*set.jsonl",), "medquad", (records,), parts="*_QA/*.xml"),
            Wanted("labels.json", ("*/labels.json",), "labels", (2,), sha256(LABELS)),
            Wanted("more.json", ("*more.json",), "labels", (2,), optional=True),
        ),
        "",
    )  # fmt: skip


def fetched(release: Release, folder: Path) -> list[str]:
    said: list[str] = []
    shelf.fetch(release, str(folder / "store"), folder / "home", said.append, lambda _: lambda done, total: None, (0.0, 0.0))
    return said


def put(release: Release, path: Path, folder: Path) -> list[str]:
    said: list[str] = []
    shelf.put(release, path, f"given as {path.name}", str(folder / "store"), folder / "home", said.append)
    return said


def stored(folder: Path) -> dict[str, bytes]:
    place = folder / "store" / "raw" / "tiny"
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


# ---- downloads ----------------------------------------------------------------------------------------------------------------


def test_a_set_is_downloaded_once_counted_locked_and_described(host: Host, tmp_path: Path) -> None:
    release = release_of(host)
    said = fetched(release, tmp_path)
    assert said[0] == "Tiny: invented questions\nlicence: CC0.", "the licence is told before the download"
    assert f"set.jsonl: sha256 {sha256(DATA)}, which nobody has published" in said
    assert f"medquad.jsonl: 40 records, sha256 {sha256(DATA)}" in said
    found = stored(tmp_path)
    assert (found["medquad.jsonl"], found["labels.json"]) == (DATA, LABELS)
    assert json.loads(found["LOCK.json"]) == {"medquad.jsonl": sha256(DATA), "labels.json": sha256(LABELS)}
    manifest = json.loads(found["MANIFEST.json"])
    assert manifest["licence"] == "CC0." and host.url in manifest["origin"]
    assert manifest["files"][0] == {
        "path": "medquad.jsonl", "size_bytes": len(DATA), "sha256": sha256(DATA), "records": 40, "used": 40, "dropped": {},
    }  # fmt: skip
    assert not list((tmp_path / "home").rglob("*.jsonl")), "what is in the store is not kept twice"

    assert fetched(release, tmp_path)[1:] == [f"have tiny: {tmp_path}/store/raw/tiny"] and len(host.seen) == 2
    (tmp_path / "store/raw/tiny/medquad.jsonl").write_bytes(DATA[:-1] + b" ")
    fetched(release, tmp_path)
    assert stored(tmp_path)["medquad.jsonl"] == DATA and len(host.seen) == 4, "a damaged object is brought again"


def test_another_file_than_the_pinned_one_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fetched(release_of(host, pinned="0" * 64), tmp_path)
    assert (
        sha256(DATA) in error.value.problem and "0" * 64 in error.value.problem and error.value.where == f"{host.url}/set.jsonl"
    )
    assert "medschool fetch tiny --from set.jsonl" in error.value.remedy
    assert not (tmp_path / "store").exists() and not list((tmp_path / "home").rglob("set*"))


def test_a_download_that_is_cut_off_goes_on_where_it_was(host: Host, tmp_path: Path) -> None:
    host.script, seen = ["cut:1000", "cut:500"], []
    one = Download(f"{host.url}/set.jsonl", "set.jsonl", sha256(DATA), len(DATA))
    download(one, tmp_path / "set.jsonl", lambda done, total: seen.append((done, total)), print, "", (0.0, 0.0))
    assert (tmp_path / "set.jsonl").read_bytes() == DATA
    assert [request.get("range") for request in host.seen] == [None, "bytes=1000-", "bytes=1500-"]
    assert seen[-1] == (len(DATA), len(DATA)) and seen == sorted(seen)


def test_a_file_that_changes_while_it_is_brought_starts_again(host: Host, tmp_path: Path) -> None:
    host.script, other, said = ["cut:1000"], DATA.replace(b"gout", b"mump"), list[str]()
    host.after = lambda: host.files.update({"/set.jsonl": other})
    download(Download(f"{host.url}/set.jsonl", "set.jsonl"), tmp_path / "set.jsonl", lambda *_: None, said.append, "", (0.0,))
    assert (tmp_path / "set.jsonl").read_bytes() == other and "range" in host.seen[1]
    assert len(said) == 1 and said[0].endswith("asked again in 0 s")


def test_a_host_that_is_busy_is_asked_again_but_not_for_ever(host: Host, tmp_path: Path) -> None:
    host.script = ["503", "429"]
    fetched(release_of(host), tmp_path)
    assert len(host.seen) == 4
    host.script, said = ["503"] * 3, list[str]()
    with pytest.raises(InputError, match="cannot be reached \\(503 Service Unavailable\\)"):
        download(Download(f"{host.url}/set.jsonl", "set.jsonl"), tmp_path / "x", lambda *_: None, said.append, "", (0.0, 0.0))
    host.script = ["cut:10"] * 3
    with pytest.raises(InputError, match="cannot be reached"):
        download(Download(f"{host.url}/set.jsonl", "set.jsonl"), tmp_path / "x", lambda *_: None, said.append, "", (0.0, 0.0))
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(("script", "words"), [("404", "refused \\(404 Not Found\\)"), ("page", "a web page"), ("403", "403")])
def test_what_will_not_pass_is_not_asked_twice(host: Host, tmp_path: Path, script: str, words: str) -> None:
    host.script = [script]
    with pytest.raises(InputError, match=words) as error:
        fetched(release_of(host), tmp_path)
    assert len(host.seen) == 1 and "no sha256 is published" in error.value.problem and "--from" in error.value.remedy


def test_without_a_network_the_error_names_address_digest_and_the_other_way(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be reached") as error:
        fetched(release_of(None, pinned="ab" * 32), tmp_path)
    assert (
        error.value.where == "http://127.0.0.1:9/set.jsonl"
        and "ab" * 32 in error.value.problem
        and "--from" in error.value.remedy
    )


def test_an_unpublished_file_that_changes_is_refused_until_the_lock_is_deleted(host: Host, tmp_path: Path) -> None:
    fetched(release_of(host), tmp_path)
    host.files["/set.jsonl"] = DATA.replace(b"gout", b"mump")
    (tmp_path / "store/raw/tiny/MANIFEST.json").unlink()
    with pytest.raises(InputError) as error:
        fetched(release_of(host), tmp_path)
    assert sha256(DATA) in error.value.problem and "LOCK.json" in error.value.remedy
    assert stored(tmp_path)["medquad.jsonl"] == DATA
    (tmp_path / "store/raw/tiny/LOCK.json").unlink()
    fetched(release_of(host), tmp_path)
    assert b"mump" in stored(tmp_path)["medquad.jsonl"]


def test_two_calls_at_once_download_once(host: Host, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: fetched(release_of(host), tmp_path)[-1], range(2)))
    place = f"tiny: {tmp_path}/store/raw/tiny"
    assert sorted(said) == [f"have {place}", f"stored {place}"] and len(host.seen) == 2


# ---- what the user has --------------------------------------------------------------------------------------------------------

FILES = {"deep/set.jsonl": DATA, "deep/labels.json": LABELS, "deep/other.txt": b"not wanted", "deep/._set.jsonl": b"Mac"}


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "given" / name).write_bytes(data)
    return folder / "given"


def as_packed_files(folder: Path, files: dict[str, bytes]) -> Path:
    return as_folder(folder, {f"{name}.gz": gzip.compress(data) for name, data in files.items()})


def as_zip(folder: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "given.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"../../{name}", data)
    return folder / "given.zip"


def as_tar(folder: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(folder / "given.tar.gz", "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / "given.tar.gz"


@pytest.mark.parametrize("pack", [as_folder, as_packed_files, as_zip, as_tar])
def test_the_same_bytes_come_out_of_folder_and_archive(pack: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path) -> None:
    given = pack(tmp_path, FILES)
    said = put(release_of(None), given, tmp_path)
    found = stored(tmp_path)
    assert list(found) == ["LOCK.json", "MANIFEST.json", "labels.json", "medquad.jsonl"], "and nothing outside"
    assert (found["medquad.jsonl"], found["labels.json"]) == (DATA, LABELS)
    assert json.loads(found["MANIFEST.json"])["origin"] == f"given as {given.name}" and said[-1].startswith("stored tiny")
    assert {path.name for path in tmp_path.iterdir()} == {given.name, "store", "home"}
    assert list((tmp_path / "home").iterdir()) == []


def test_a_missing_file_is_named_and_a_later_one_joins(tmp_path: Path) -> None:
    given = as_folder(tmp_path, {"set.jsonl": DATA})
    with pytest.raises(InputError, match=r"holds no labels\.json of tiny") as error:
        put(release_of(None), given, tmp_path)
    assert error.value.where == str(given) and not (tmp_path / "store").exists()
    put(release_of(None), as_folder(tmp_path, FILES) / "deep", tmp_path)
    (tmp_path / "my_more.json").write_bytes(LABELS)
    put(release_of(None), tmp_path / "my_more.json", tmp_path)
    files = json.loads(stored(tmp_path)["MANIFEST.json"])["files"]
    assert [file["path"] for file in files] == ["medquad.jsonl", "labels.json", "more.json"]
    with pytest.raises(InputError, match="no such file"):
        put(release_of(None), tmp_path / "nowhere", tmp_path)


def test_a_wrong_count_is_refused(tmp_path: Path) -> None:
    given = as_folder(tmp_path, FILES)
    with pytest.raises(InputError, match="has 40 records, the release has 41") as error:
        put(release_of(None, records=41), given, tmp_path)
    assert error.value.where == "medquad.jsonl" and not (tmp_path / "store").exists()


def test_one_file_twice_and_a_damaged_archive_are_said(tmp_path: Path) -> None:
    given = as_folder(tmp_path, FILES | {"else/set.jsonl": b"{}"})
    with pytest.raises(InputError, match=r"/set\.jsonl and .*/set\.jsonl are both medquad\.jsonl"):
        put(release_of(None), given, tmp_path)
    for archive in (as_zip(tmp_path, FILES), as_tar(tmp_path, FILES)):
        archive.write_bytes(archive.read_bytes()[:-200])
        with pytest.raises(InputError, match="cannot be taken over") as error:
            put(release_of(None), archive, tmp_path)
        assert str(archive) in error.value.where


def test_other_bytes_than_the_pinned_ones_are_told(tmp_path: Path) -> None:
    given = as_folder(tmp_path, FILES | {"deep/labels.json": b'{"1": "no", "2": "no"}'})
    assert any("not the bytes of the pinned release" in line for line in put(release_of(None), given, tmp_path))


# ---- formats ------------------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


def medquad_xml(url: str, focus: str, pairs: list[tuple[str, str, str]]) -> bytes:
    from lxml import etree

    root = etree.Element("Document", id="1", source="S", url=url)
    etree.SubElement(root, "Focus").text = focus
    listed = etree.SubElement(root, "QAPairs")
    for kind, question, answer in pairs:
        pair = etree.SubElement(listed, "QAPair")
        etree.SubElement(pair, "Question", qtype=kind).text = question
        etree.SubElement(pair, "Answer").text = answer
    return bytes(etree.tostring(root, encoding="utf-8", xml_declaration=True))


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS, st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=4))
def test_the_pairs_of_an_xml_file_are_its_lines(url: str, focus: str, pairs: list[tuple[str, str, str]]) -> None:
    try:
        data = medquad_xml(url, focus, pairs)
    except ValueError:  # a character that XML cannot hold
        return
    found = [json.loads(line) for line in json_lines(io.BytesIO(data), "f.xml")]
    assert [(row["qtype"], row["question"], row["answer"]) for row in found] == pairs
    assert all((row["src"], row["url"], row["focus"]) == ("S", url, focus) for row in found)


def test_medquad_is_put_together_from_the_files_of_its_archive(tmp_path: Path) -> None:
    pairs = [("treatment", f"How is {number} treated?", "" if number == 3 else "With rest.") for number in range(6)]
    files = {
        "MedQuAD-main/1_A_QA/1.xml": medquad_xml("u", "One", pairs[:2]),
        "MedQuAD-main/2_B_QA/1.xml": medquad_xml("u", "Two", pairs[2:]),
        "MedQuAD-main/labels.json": LABELS,
    }
    for pack in (as_zip, as_tar, as_folder):
        put(release_of(None, records=6), pack(tmp_path, files), tmp_path)
        rows = [json.loads(line) for line in stored(tmp_path)["medquad.jsonl"].splitlines()]
        assert [row["question"] for row in rows] == [question for _, question, _ in pairs]
        assert [row["focus"] for row in rows] == ["One"] * 2 + ["Two"] * 4
        shutil.rmtree(tmp_path / "store")
    path = tmp_path / "medquad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert count(path, "medquad") == Count(6, 5, {"no_answer": 1})
    assert count(path, "medquad").words() == "6 records, 5 of them used (no_answer 1)"


def test_records_are_counted_once_whatever_is_made_of_them(tmp_path: Path) -> None:
    question = {"id": "a", "question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 4, "exp": None}
    lines = [question, question | {"id": "b", "cop": None}, question | {"id": "c", "opd": "a"}]
    (tmp_path / "dev.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert count(tmp_path / "dev.json", "medmcqa") == Count(3, 1, {"malformed": 1, "unlabelled": 1})
    (tmp_path / "l.json").write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        count(tmp_path / "l.json", "labels")


# ---- what there is ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES.values(), ids=list(RELEASES))
def test_a_set_of_the_list_can_be_used_by_the_lines_that_are_printed(release: Release) -> None:
    sections = yaml.safe_load(release.recipe)
    stored = {f"raw/{release.name}/{wanted.name}" for wanted in release.files}
    for section, form, formats in (("exams", Exam, EXAM_FORMATS), ("instructions", Instructions, INSTRUCTION_FORMATS)):
        for values in sections.get(section, {}).values():
            for files in form.model_validate(values).files:
                assert files.uri in stored and files.format in formats
    assert sections["instructions"]
    assert all(exam["published"] in PUBLISHED for exam in sections.get("exams", {}).values())
    for one in release.downloads:
        assert one.url.startswith("https://") and (one.sha256 is None or len(one.sha256) == 64)
    assert {wanted.format for wanted in release.files} <= {*EXAM_FORMATS, *INSTRUCTION_FORMATS, "labels"}


def test_the_paths_of_the_releases_are_known_and_told_apart() -> None:
    paths = {
        "medqa": ["/a/data_clean.zip/data_clean/questions/US/4_options/phrases_no_exclude_train.jsonl", "/a/US/test.jsonl"],
        "medmcqa": ["/a/data.zip/train.json", "/a/data/dev.json"],
        "pubmedqa": ["/a/ori_pqal.json", "/a/pubmedqa_ori_pqal.json", "/a/ori_pqaa.json"],
        "medc-i": ["/a/release.json"],
    }
    from fnmatch import fnmatchcase

    def names(release: str, path: str) -> list[str]:
        return [
            wanted.name for wanted in RELEASES[release].files if any(fnmatchcase(path, pattern) for pattern in wanted.known_as)
        ]

    found = {release: list(chain.from_iterable(map(names, repeat(release), known))) for release, known in paths.items()}
    assert found == {
        "medqa": ["4_options/train.jsonl", "5_options/test.jsonl"],
        "medmcqa": ["train.json", "dev.json"],
        "pubmedqa": ["ori_pqal.json", "ori_pqal.json", "ori_pqaa.json"],
        "medc-i": ["release.json"],
    }
    assert (
        names("medqa", "/a/questions/Mainland/train.jsonl") == names("medqa", "/a/questions/Mainland/4_options/test.jsonl") == []
    )


def test_the_command_lists_takes_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSCHOOL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDSCHOOL_STORE", str(tmp_path / "store"))
    shown = CliRunner().invoke(app, ["fetch", "--list"])
    assert shown.exit_code == 0 and all(name in shown.output for name in ("quickstart", *RELEASES))
    for words, problem in ((["medqua"], "nothing is known"), (["quickstart", "--from", "x"], "comes from packages")):
        assert problem in str(CliRunner().invoke(app, ["fetch", *words]).exception)
    monkeypatch.setitem(RELEASES, "tiny", replace(release_of(None), recipe="instructions: {}\n"))
    shown = CliRunner().invoke(app, ["fetch", "tiny", "--from", str(as_folder(tmp_path, FILES))])
    assert shown.exit_code == 0, shown.exception
    assert shown.output.startswith("Tiny") and shown.output.endswith("in a recipe:\n\ninstructions: {}\n")
    assert isinstance(CliRunner().invoke(app, ["fetch", "nothing"]).exception, RecipeError)
