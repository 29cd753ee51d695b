"""Fetching with the real pip from a small registry on disk, into a store on disk."""

import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from medschool import storage
from medschool.errors import InputError
from medschool.fetch import QUICKSTART, Package, RawSet, fetch, unpack

WHEEL = "demo_texts-1.0-py3-none-any.whl"
INFO = "demo_texts-1.0.dist-info"


def build_wheel(folder: Path, text: str = "Some prose.") -> Package:
    files = {
        "demo_texts/a.txt": text,
        "demo_texts/b.csv": "not wanted",
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: demo-texts\nVersion: 1.0\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    data = (folder / WHEEL).read_bytes()
    return Package("demo-texts", "1.0", WHEEL, hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "registry"))
    return tmp_path / "registry"


def upper(members: Path, out: Path) -> None:
    (out / "A.txt").write_text((members / "a.txt").read_text().upper())


def run(raw_set: RawSet, tmp_path: Path) -> list[str]:
    said: list[str] = []
    fetch((raw_set,), str(tmp_path / "store"), tmp_path / "home", said.append)
    return said


def test_a_set_is_downloaded_once_stored_and_described(registry: Path, tmp_path: Path) -> None:
    package = build_wheel(registry)
    raw_set = RawSet("texts", package, ("demo_texts/*.txt",), "free")
    said = run(raw_set, tmp_path)
    assert said[1] == "downloading demo-texts 1.0 (0.0 MB)"
    folder = tmp_path / "store" / "raw" / "texts"
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST.json", "a.txt"]
    assert json.loads((folder / "MANIFEST.json").read_text()) == {
        "origin": "demo-texts 1.0",
        "package_sha256": package.sha256,
        "licence": "free",
        "files": [{"path": "a.txt", "size_bytes": 11, "sha256": hashlib.sha256(b"Some prose.").hexdigest()}],
    }
    assert run(raw_set, tmp_path) == ["have texts"]

    (folder / "a.txt").write_text("cut")
    (registry / WHEEL).unlink()
    assert run(raw_set, tmp_path) == ["stored texts: 1 files, 0.0 MB"], "the archive at home is used again"
    assert (folder / "a.txt").read_text() == "Some prose."

    (folder / "MANIFEST.json").write_text("{")
    assert run(raw_set, tmp_path)[0].startswith("stored")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["downloads"]


def test_a_damaged_archive_at_home_is_downloaded_again_and_a_set_is_converted(registry: Path, tmp_path: Path) -> None:
    package = build_wheel(registry)
    (tmp_path / "home" / "downloads").mkdir(parents=True)
    (tmp_path / "home" / "downloads" / WHEEL).write_bytes(b"half")
    run(RawSet("models/upper", package, ("demo_texts/*.txt",), "free", upper), tmp_path)
    assert storage.read_bytes(str(tmp_path / "store/raw/models/upper/A.txt")) == b"SOME PROSE."


def test_another_file_under_the_same_name_is_refused(registry: Path, tmp_path: Path) -> None:
    pinned = build_wheel(registry)
    served = build_wheel(registry, "Changed.")
    with pytest.raises(InputError) as error:
        run(RawSet("texts", pinned, ("demo_texts/*.txt",), "free"), tmp_path)
    assert WHEEL in error.value.problem and pinned.sha256 in error.value.problem and served.sha256 in error.value.problem
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "home" / "downloads").iterdir())


def test_a_registry_out_of_reach_is_said(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Package("demo-texts", "1.0", WHEEL, "0" * 64, 1)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(InputError, match=r"cannot download demo-texts 1\.0: the package registry is out of reach") as error:
        run(RawSet("texts", package, ("*",), "free"), tmp_path)
    assert "PIP_INDEX_URL" in error.value.remedy


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("pkg/data/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_no_member_leads_out_of_the_folder_and_no_link_is_followed(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar.gz", {"pkg/data/../../../evil.txt": b"1", "/data/abs.txt": b"2", "pkg/other": b"3"})
    target = tmp_path / "inside" / "deep"
    target.mkdir(parents=True)
    unpack(archive, ("*data/*.txt",), target)
    assert sorted(path.name for path in target.iterdir()) == ["abs.txt", "evil.txt"]
    assert not list(tmp_path.glob("evil*")) and not list((tmp_path / "inside").glob("*.txt"))


def test_unpack_says_which_member_is_missing_and_refuses_two_of_one_name(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar.gz", {"pkg/a/n.txt": b"1", "pkg/b/n.txt": b"2"})
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"holds no member \*\.obo"):
        unpack(archive, ("pkg/a/*.txt", "*.obo"), tmp_path / "out")
    with pytest.raises(InputError, match=r"two members are named 'n\.txt'"):
        unpack(archive, ("pkg/b/*.txt",), tmp_path / "out")


def test_the_quickstart_is_pinned() -> None:
    names = [raw_set.name for raw_set in QUICKSTART]
    assert names == ["medline", "pmc", "hpo", "icd10cm", "prose", "mmlu", "mmlu_rationale", "models/smollm2-135m-instruct"]
    for raw_set in QUICKSTART:
        assert len(raw_set.package.sha256) == 64 and raw_set.licence
        assert raw_set.package.file.startswith(raw_set.package.name.replace("-", "_") + "-" + raw_set.package.version)
