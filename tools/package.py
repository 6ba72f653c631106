"""Make a bundle that works on a machine which never saw this repository, or check one.

``python -m tools.package bundles/crossmatch_la --output dist`` writes ``dist/crossmatch_la.zip``: the bundle with a
copy of this package, its configs as YAML and as JSON (some of MONAI's clients read only the one, some only the other),
and its weights. The same input gives the same bytes. ``python -m tools.package dist/crossmatch_la.zip`` checks an
archive against what the MONAI model zoo asks of a bundle.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import yaml
from monai.bundle import ConfigParser

import custom
from custom.utils.config import refuse_newer_bundle
from custom.utils.errors import UserError
from custom.utils.files import atomic_write, refuse_unwritable, sha256_of
from custom.utils.weights import read_settings, read_weights, settings_path

from .cli import run
from .model_card import model_card
from .numbers import refuse_not_positive

#: What the model zoo asks for (its CONTRIBUTING.md and ci/verify_bundle.py), and what our README promises.
REQUIRED_FILES = (
    *("LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"),
    *(f"configs/{name}.{ending}" for name in ("train", "evaluate", "inference") for ending in ("yaml", "json")),
    "custom/__init__.py",
)
#: Required by the zoo's metadata schema, meta_schema_20240725.json, and by its check of versions (`changelog`).
REQUIRED_KEYS = (
    *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
)
LIMIT_MB = 25  # of a file, the zoo's
SHIPPED = "models/model.pt"  # where a bundle has its weights
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
Files = Mapping[str, bytes]


def package(
    bundle: str,
    output: str = "dist",
    weights: str | None = SHIPPED,
    weights_url: str | None = None,
    limit_mb: float = LIMIT_MB,
    overwrite: bool = False,
) -> None:
    """Write a bundle's folder as a self-contained archive; or, given an archive, check it.

    Args:
        bundle: folder such as bundles/crossmatch_la, or an archive to check.
        output: folder for the archive, which is named after the bundle.
        weights: flat weights of the bundle's network, put in as models/model.pt with the settings in the .json file
            beside them; relative to the bundle, or absolute. The default is left out where there is no such file. None
            packs no weights.
        weights_url: where the weights will be downloaded from; they are listed in large_files.yml instead of packed.
        limit_mb: largest file in MB; the model zoo takes 25.
        overwrite: replace an archive that is there already.

    Raises:
        UserError: when something that others need is missing or wrong; nothing is written then.
    """
    refuse_not_positive(limit_mb=limit_mb)
    path = Path(str(bundle))
    if path.is_file():
        check_archive(path, limit_mb)
        print(f"{path}: fit for use and for the model zoo.")
        return
    if not (path / "configs" / "metadata.json").is_file():
        raise UserError(f"{path}: expected a bundle, a folder with configs/metadata.json, or its archive.")
    name = path.resolve().name
    archive = Path(str(output)) / f"{name}.zip"
    if archive.exists() and not overwrite:
        raise UserError(f"{archive}: is there already; remove it, or give --overwrite true.")
    refuse_unwritable(output=str(output))
    packed = _weight_files(path, weights, weights_url)
    files = {**_bundle_files(path), **_package_files(), **packed}
    _refuse(f"{path}: not packaged,", file_problems(files, limit_mb))
    metadata, readme = json.loads(files["configs/metadata.json"]), files["docs/README.md"].decode()
    known = bool(packed) and sha256_of(path / str(weights)) == metadata.get("weights_sha256")
    if packed and not known:
        print(
            f"{weights}: not the weights that configs/metadata.json describes; the card leaves licence and figures out."
        )
    files["README.md"] = model_card(metadata, readme, bool(packed), known).encode()
    write_archive(archive, name, files)
    print(f"{archive}: {len(files)} files, {archive.stat().st_size / 1e6:.1f} MB, sha256 {sha256_of(archive)}")


def _bundle_files(folder: Path) -> dict[str, bytes]:
    """Everything of the bundle that is not written by running it, and the JSON twins of its configs."""
    files = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and place.parts[0] in ("configs", "docs", "LICENSE") and "__pycache__" not in place.parts:
            files[place.as_posix()] = path.read_bytes()
    for name in [name for name in files if name.endswith(".yaml")]:
        twin = json.dumps(ConfigParser.load_config_file(folder / name), indent=4)
        files[name.removesuffix(".yaml") + ".json"] = twin.encode() + b"\n"
    return files


def _package_files() -> dict[str, bytes]:
    folder = Path(custom.__file__).parent
    paths = sorted(path for pattern in ("*.py", "*.html") for path in folder.rglob(pattern))
    return {f"custom/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}


def _weight_files(folder: Path, weights: str | None, url: str | None) -> dict[str, bytes]:
    if weights is None or (weights == SHIPPED and not (folder / weights).is_file()):
        return {}
    path = folder / str(weights)
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(folder)
    advice = "pack weights of the network in inference.yaml, not those of quick.yaml, or none with --weights None"
    read_weights(path, parser.get_parsed_content("network_def"), advice)
    settings = settings_path(path)
    if not settings.is_file():
        raise UserError(
            f"{settings}: no such file; it says with which spacing, patch and filters {path.name} was trained, and "
            "without it others would segment with the bundle's own. Copy it from where they were trained; for weights "
            "from elsewhere, write the settings that differ from inference.yaml into it, {} if none does."
        )
    read_settings(path)  # which names what is no file of settings
    content, beside = path.read_bytes(), {"models/model.json": settings.read_bytes()}
    if url is None:
        return {SHIPPED: content} | beside
    entry = {"path": SHIPPED, "url": str(url), "hash_val": hashlib.sha256(content).hexdigest(), "hash_type": "sha256"}
    return {"large_files.yml": yaml.safe_dump({"large_files": [entry]}, sort_keys=False).encode()} | beside


def write_archive(archive: Path, name: str, files: Files) -> None:
    """Write files below one top folder, in order of their names and without times: equal files give equal bytes.

    The archive appears only when it is complete.
    """
    with atomic_write(archive) as part, zipfile.ZipFile(part, "w") as target:
        for place in sorted(files):
            info = zipfile.ZipInfo(f"{name}/{place}", _FIRST_DAY)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, 0o644 << 16  # a plain file on Unix, wherever this runs
            target.writestr(info, files[place])


def check_archive(archive: Path, limit_mb: float = LIMIT_MB) -> None:
    """Check an archive: its bytes, its one top folder, and the bundle in it.

    Raises:
        UserError: when it is damaged, is no bundle, lacks something, or is newer than this package.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            broken = source.testzip()
            names = [name for name in source.namelist() if not name.endswith("/")]
            files = {} if broken else {name: source.read(name) for name in names}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:  # also encrypted
        raise UserError(f"{archive}: is not a whole zip archive ({error}); download or package it again.") from error
    if broken:
        raise UserError(f"{archive}: {broken} is damaged; download or package it again.")
    top = archive.stem
    outside = [name for name in files if PurePosixPath(name).parts[0] != top or ".." in PurePosixPath(name).parts]
    if outside or not files:
        found = f"found {outside[0]}" if outside else "it is empty"
        raise UserError(f"{archive}: everything must lie in one folder named {top}/, as the archive; {found}.")
    inner = {name.removeprefix(f"{top}/"): content for name, content in files.items()}
    _refuse(f"{archive}: not fit for use,", file_problems(inner, limit_mb))
    refuse_newer_bundle(json.loads(inner["configs/metadata.json"]))


def file_problems(files: Files, limit_mb: float = LIMIT_MB) -> list[str]:
    """Say what others would miss in the files of a bundle, given by their places in it."""
    problems = [f"{place}: is missing." for place in REQUIRED_FILES if place not in files]
    if "configs/metadata.json" in files:
        problems += _metadata_problems(files["configs/metadata.json"])
    problems += _twin_problems(files)
    for place, content in files.items():
        if len(content) > limit_mb * 2**20:
            hint = "list it in large_files.yml with --weights_url, or allow more with --limit_mb"
            problems.append(f"{place}: {len(content) / 2**20:.1f} MB, more than the limit of {limit_mb:g} MB; {hint}.")
    return problems


def _metadata_problems(content: bytes) -> Iterator[str]:
    place = "configs/metadata.json"
    try:
        metadata = json.loads(content)
    except ValueError as error:
        yield f"{place}: is not JSON ({error})."
        return
    if not isinstance(metadata, dict) or not isinstance(metadata.get("changelog", {}), dict):
        yield f"{place}: must be an object, and its changelog one too."
        return
    yield from (f"{place}: has no {key!r}." for key in REQUIRED_KEYS if key not in metadata)
    if metadata.get("version") not in metadata.get("changelog", {}):
        yield f"{place}: the changelog does not tell of version {metadata.get('version')}."


def _twin_problems(files: Files) -> Iterator[str]:
    for place in files:
        twin = place.removesuffix(".yaml") + ".json"
        if place.endswith(".yaml") and twin in files and not _same_content(files[place], files[twin]):
            yield f"{twin}: differs from {place}, or one of them cannot be read."


def _same_content(yaml_text: bytes, json_text: bytes) -> bool:
    try:
        return yaml.safe_load(yaml_text) == json.loads(json_text)
    except (yaml.YAMLError, ValueError):
        return False


def _refuse(summary: str, problems: list[str]) -> None:
    if problems:
        raise UserError(f"{summary} {len(problems)} problem(s):", problems)


if __name__ == "__main__":
    run(package)
