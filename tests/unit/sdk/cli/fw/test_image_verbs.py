"""`npuctl fw` from outside: what is written, documents by their schemas, exit codes, and no device anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from driver_shim.protocol.image import parse_image
from firmware_tools.image import build_image
from firmware_tools.keys import DEVELOPMENT_KEY
from sdk.cli.fw import VERBS
from sdk.cli.fw.report import lines
from tests.support.images import TINY, TINY_CONTENTS, TINY_PAYLOAD, TRUSTED
from tests.support.npuctl import PATIENCE_S, Npuctl, environment
from tests.support.paths import ROOT
from tests.support.small_elf import Segment, elf32

pytestmark = pytest.mark.timeout(600)  # npuctl runs up to ten times, one after the other
START = 0x8000_0200
TINY_OPTIONS = ("--version", "1.2.3+4", "--header-size", "32", "--security-counter", "7", "--hardware-id", "0x4e50")


@pytest.fixture
def npuctl(tmp_path: Path) -> Npuctl:
    folder = tmp_path / "runtime"
    folder.mkdir()
    return Npuctl(folder)


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    path = tmp_path / "unsigned.img"
    path.write_bytes(build_image(TINY_CONTENTS))
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.img"
    path.write_bytes(TINY)
    return path


def generated(npuctl: Npuctl, private: Path, *options: str) -> dict[str, Any]:
    key: dict[str, Any] = npuctl.document("fw keygen", str(private), *options)["key"]
    return key


def test_help_fits_80_columns_and_names_every_verb(npuctl: Npuctl) -> None:
    shown = npuctl("fw", "--help", COLUMNS="200").stdout
    for verb, (_, line) in VERBS.items():
        assert f"  {verb} " in shown
        assert line in shown
        told = npuctl("fw", verb, "--help", COLUMNS="200")
        assert told.returncode == 0
        assert f"npuctl fw {verb} [OPTIONS]" in told.stdout
        shown += told.stdout
    assert max(map(len, shown.splitlines())) <= 80


def test_a_misspelt_verb_is_answered_with_what_was_meant(npuctl: Npuctl) -> None:
    done = npuctl("fw", "verfy")
    assert done.returncode == 2
    assert "did you mean verify?" in done.stderr


def test_from_elf_to_a_verified_image(npuctl: Npuctl, tmp_path: Path) -> None:
    program, plain, signed = tmp_path / "fw.elf", tmp_path / "plain.img", tmp_path / "signed.img"
    program.write_bytes(elf32([Segment(START, b"\x01\xa0" * 8)], START))
    key = generated(npuctl, tmp_path / "release.pem")
    built = npuctl.document("fw build", str(program), "-o", str(plain), "--version", "1.2")["image"]
    assert (built["version"], built["load_address"], built["entry_address"]) == ("1.2.0", "0x80000000", "0x80000200")
    made = npuctl.document("fw sign", str(plain), "--key", key["private"], "-o", str(signed))["image"]
    assert made["signatures"] == [{"key_hash": key["key_hash"], "key_embedded": True, "development_key": False}]
    good = npuctl.document("fw verify", str(signed), "--key", key["public"])
    assert good["trusted_keys"] == [key["key_hash"]]
    assert good["image"] == {**made, "path": str(signed)}
    assert npuctl.document("fw inspect", str(signed))["image"] == good["image"]


def test_a_flat_binary_becomes_the_tiny_image(npuctl: Npuctl, tmp_path: Path) -> None:
    program, plain = tmp_path / "fw.bin", tmp_path / "plain.img"
    program.write_bytes(TINY_PAYLOAD)
    done = npuctl("fw", "build", str(program), "-o", str(plain), *TINY_OPTIONS)
    assert done.returncode == 0, done.stderr
    assert plain.read_bytes() == build_image(TINY_CONTENTS)
    assert done.stdout == f"{plain}: version 1.2.3+4, 132 bytes, runs from 0x80000020, not signed\n"


def test_a_tampered_image_exits_5_with_the_reason(npuctl: Npuctl, tiny: Path) -> None:
    tiny.write_bytes(TINY[:-1] + bytes([TINY[-1] ^ 1]))
    document = npuctl.document("fw verify", str(tiny), "--key", "development", code=5)
    assert [error["code"] for error in document["errors"]] == ["unknown-key"]
    assert "image" not in document
    tiny.write_bytes(TINY[:33] + b"\xff" + TINY[34:])
    done = npuctl("fw", "verify", str(tiny), "--key", "development")
    assert (done.returncode, done.stdout) == (5, "")
    assert "tiny.img: the image's sha256 is " in done.stderr
    assert "bytes 0x0 to 0x23 differ" in done.stderr


def test_each_key_that_is_given_may_have_signed(npuctl: Npuctl, unsigned: Path, tmp_path: Path) -> None:
    signed = tmp_path / "signed.img"
    release = generated(npuctl, tmp_path / "release.pem")
    keys = ("--key", "development", "--key", release["private"])
    done = npuctl("fw", "sign", str(unsigned), *keys, "-o", str(signed))
    assert done.returncode == 0, done.stderr
    assert release["key_hash"] in done.stdout
    assert "anybody can sign with it" in done.stderr
    for key in (str(DEVELOPMENT_KEY), release["public"]):
        assert npuctl("fw", "verify", str(signed), "--key", key).returncode == 0


def test_signing_again_replaces_and_says_so(npuctl: Npuctl, tiny: Path) -> None:
    done = npuctl("fw", "sign", str(tiny), "--key", "development", "-o", str(tiny))
    assert "replaced 1 signature" in done.stderr
    assert len(parse_image(tiny.read_bytes()).signatures) == 1


def test_hash_pure_and_key_hash_are_as_asked(npuctl: Npuctl, unsigned: Path, tmp_path: Path) -> None:
    signed = tmp_path / "signed.img"
    npuctl.document("fw sign", str(unsigned), "--key", "development", "--pure", "--key-hash", "-o", str(signed))
    image = npuctl.document("fw inspect", str(signed))["image"]
    assert (image["digest_algorithm"], image["pure"]) == ("sha512", True)
    assert [made["key_embedded"] for made in image["signatures"]] == [False]
    done = npuctl("fw", "verify", str(signed), "--key", "development")
    assert done.returncode == 0
    assert "devices refuse it: it holds only the hash of its key" in done.stderr
    npuctl.document("fw sign", str(unsigned), "--key", "development", "--hash", "sha512", "-o", str(signed))
    assert npuctl.document("fw inspect", str(signed))["image"]["digest_algorithm"] == "sha512"


def test_a_command_signs(npuctl: Npuctl, unsigned: Path, tmp_path: Path) -> None:
    script, signed = tmp_path / "signer.py", tmp_path / "signed.img"
    script.write_text(
        "import sys\n"
        "from cryptography.hazmat.primitives.serialization import load_pem_private_key\n"
        "key = load_pem_private_key(open(sys.argv[1], 'rb').read(), None)\n"
        "sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))\n"
    )
    release = generated(npuctl, tmp_path / "release.pem")
    command = shlex.join([sys.executable, str(script), release["private"]])
    options = ("--signer", command, "--public-key", release["public"], "-o", str(signed))
    npuctl.document("fw sign", str(unsigned), *options)
    assert npuctl("fw", "verify", str(signed), "--key", release["public"]).returncode == 0
    other = generated(npuctl, tmp_path / "other.pem")
    before = signed.read_bytes()
    wrong = ("--signer", command, "--public-key", other["public"], "-o", str(signed))
    assert npuctl.document("fw sign", str(unsigned), *wrong, code=1)["errors"][0]["code"] == "signing-failed"
    assert signed.read_bytes() == before


def test_passwords_come_from_a_file_a_variable_or_nowhere(npuctl: Npuctl, unsigned: Path, tmp_path: Path) -> None:
    password, signed = tmp_path / "password", tmp_path / "signed.img"
    password.write_text("a secret\n")
    key = generated(npuctl, tmp_path / "release.pem", "--password-file", str(password))
    sign = ("fw", "sign", str(unsigned), "--key", key["private"], "-o", str(signed))
    assert npuctl(*sign, "--password-file", str(password)).returncode == 0
    assert npuctl(*sign, "--password-env", "RELEASE_PASSWORD", RELEASE_PASSWORD="a secret").returncode == 0
    wrong = npuctl(*sign, "--password-env", "RELEASE_PASSWORD", RELEASE_PASSWORD="another")
    assert (wrong.returncode, "password is wrong" in wrong.stderr) == (1, True)
    for options in ((), ("--password-env", "NO_SUCH"), ("--password-env", "A", "--password-file", str(password))):
        assert npuctl(*sign, *options).returncode == 2


def test_a_password_is_asked_for_on_the_terminal_unseen(npuctl: Npuctl, unsigned: Path, tmp_path: Path) -> None:
    password, signed = tmp_path / "password", tmp_path / "signed.img"
    password.write_text("a secret")
    key = generated(npuctl, tmp_path / "release.pem", "--password-file", str(password))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "npuctl", "fw", "sign", str(unsigned), "--key", key["private"]]
    with subprocess.Popen(
        [*command, "-o", str(signed)],
        env=environment(npuctl.runtime_folder),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"Password of" not in shown or not shown.endswith(b": "):
            shown += os.read(ours, 4096)
        os.write(ours, b"a secret\n")
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)
    assert b"a secret" not in shown
    assert signed.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "x.elf", "-o", "x.img"),
        ("build", "x.elf", "--version", "1"),
        ("build", "x.elf", "-o", "x.img", "--version", "1.x"),
        ("build", "x.elf", "-o", "x.img", "--version", "1", "--header-size", "-1"),
        ("build", "x.elf", "-o", "x.img", "--version", "1", "--hardware-id", "one"),
        ("sign", "x.img", "-o", "y.img"),
        ("sign", "x.img", "-o", "y.img", "--signer", "true"),
        ("sign", "x.img", "-o", "y.img", "--key", "k.pem", "--hash", "md5"),
        ("verify", "x.img"),
        ("inspect",),
        ("keygen",),
        ("keygen", "k.pem", "--password"),
        ("keygen", "k.pem", "--password", "--password-env", "PATH"),
    ],
)
def test_a_wrong_command_line_exits_2(npuctl: Npuctl, arguments: tuple[str, ...]) -> None:
    done = npuctl("fw", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr


def test_a_good_image_that_no_device_starts_is_said_to_be_one(npuctl: Npuctl, tmp_path: Path) -> None:
    plain, signed = tmp_path / "plain.img", tmp_path / "signed.img"
    plain.write_bytes(build_image(dataclasses.replace(TINY_CONTENTS, load_address=None)))
    assert npuctl("fw", "sign", str(plain), "--key", "development", "-o", str(signed)).returncode == 0
    done = npuctl("fw", "verify", str(signed), "--key", "development")
    assert done.returncode == 0
    assert "devices refuse it: it is not made to be loaded into RAM" in done.stderr


def test_an_image_that_devices_load_elsewhere_is_said_to_be_one_when_it_is_built(
    npuctl: Npuctl, tmp_path: Path
) -> None:
    program, output = tmp_path / "program.bin", tmp_path / "x.img"
    program.write_bytes(b"program")
    options = ("--version", "1", "--load-address", "0x7ffffff0")
    done = npuctl("fw", "build", str(program), "-o", str(output), *options)
    assert done.returncode == 0
    assert "devices refuse it: it would be loaded to 0x7ffffff0" in done.stderr


@pytest.mark.parametrize("arguments", [("--key", "development", "--key", "development"), ("--key", "missing.pem")])
def test_what_cannot_be_signed_writes_nothing(npuctl: Npuctl, unsigned: Path, arguments: tuple[str, ...]) -> None:
    output = unsigned.with_name("signed.img")
    assert npuctl("fw", "sign", str(unsigned), *arguments, "-o", str(output)).returncode in (1, 2)
    assert not output.exists()


def test_a_signer_that_hangs_is_ended_with_the_verb(npuctl: Npuctl, unsigned: Path, tmp_path: Path) -> None:
    """And not left behind: the next one may find the card's reader taken."""
    generated(npuctl, tmp_path / "key.pem")
    life = tmp_path / "life"
    os.mkfifo(life)
    reader = os.open(life, os.O_RDONLY | os.O_NONBLOCK)
    try:
        signer = shlex.join(["sh", "-c", f"exec 3> {shlex.quote(str(life))}; exec sleep 600"])
        options = ("--signer", signer, "--public-key", str(tmp_path / "key.pub.pem"), "--timeout", "12")
        done = npuctl("fw", "sign", str(unsigned), *options, "-o", str(tmp_path / "signed.img"))
        assert done.returncode == 6
        assert "did not end within" in done.stderr
        assert os.read(reader, 1) == b""  # nobody has it open any more
    finally:
        os.close(reader)
    assert not (tmp_path / "signed.img").exists()


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_what_never_ends_is_no_image(npuctl: Npuctl, verb: str) -> None:
    key = ("--key", "development") if verb == "verify" else ()
    done = npuctl("fw", verb, "/dev/zero", *key)
    assert (done.returncode, "more than" in done.stderr) == (5, True)


def test_a_name_that_is_no_utf8_is_shown_escaped(npuctl: Npuctl, tiny: Path, tmp_path: Path) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/na\xffme.img")
    os.rename(tiny, path)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    assert json.loads(npuctl("fw", "inspect", path, "--json", **strict).stdout)["image"]["path"] == path
    shown = npuctl("fw", "inspect", path, **strict)
    assert (shown.returncode, "na\\udcffme.img" in shown.stdout) == (0, True)


def test_keys_are_not_overwritten(npuctl: Npuctl, tmp_path: Path) -> None:
    generated(npuctl, tmp_path / "release.pem")
    before = (tmp_path / "release.pem").read_bytes()
    done = npuctl("fw", "keygen", str(tmp_path / "release.pem"))
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert (tmp_path / "release.pem").read_bytes() == before


def test_inspecting_what_is_no_image_exits_5(npuctl: Npuctl, tmp_path: Path) -> None:
    other = tmp_path / "fw.elf"
    other.write_bytes(elf32([Segment(START, b"code")], START))
    document = npuctl.document("fw inspect", str(other), code=5)
    assert [error["code"] for error in document["errors"]] == ["not-an-image"]


def test_inspect_shows_everything_within_80_columns() -> None:
    shown = lines(Path("tiny.img"), parse_image(TINY))
    assert max(map(len, shown)) <= 80
    assert shown[:8] == [
        "tiny.img: 248 bytes",
        "  version     1.2.3+4",
        "  address     loaded to 0x80000000, runs from 0x80000020",
        "  header      32 bytes",
        "  payload     4 bytes",
        "  flags       ram-load",
        "  counter     7 (security counter)",
        "  hardware    0x00004e50",
    ]
    text = "\n".join(shown)
    assert "hash        sha256, correct" in text
    assert f"              {TRUSTED.key_hash.hex()}\n" in text


def test_inspect_says_that_an_image_is_damaged() -> None:
    damaged = parse_image(TINY[:33] + b"\xff" + TINY[34:])
    assert "  hash        sha256, WRONG: the image is damaged" in lines(Path("x"), damaged)


def test_without_the_extra_its_install_line_is_named(npuctl: Npuctl, tiny: Path, tmp_path: Path) -> None:
    barred = tmp_path / "barred" / "cryptography"
    barred.mkdir(parents=True)
    (barred / "__init__.py").write_text("raise ModuleNotFoundError('barred', name='cryptography')\n")
    path = f"{tmp_path / 'barred'}{os.pathsep}{ROOT}"
    done = npuctl("fw", "verify", str(tiny), "--key", "development", PYTHONPATH=path)
    assert done.returncode == 1
    assert "cryptography is not installed (pip install 'npu-sdk[firmware]')" in done.stderr
    assert npuctl("fw", "inspect", str(tiny), PYTHONPATH=path).returncode == 0


def test_importing_the_sdk_imports_no_firmware_tools() -> None:
    program = (
        "import sys, sdk, sdk.cli.application\n"
        "print([name for name in ('firmware_tools', 'cryptography', 'driver_shim.protocol.image')"
        " if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


def test_images_go_through_pipes(tmp_path: Path) -> None:
    program = tmp_path / "program.bin"
    program.write_bytes(b"program")
    npuctl = f"{sys.executable} -m npuctl fw"
    line = (
        f"{npuctl} build - -o - --version 1.2.3 < '{program}' | {npuctl} sign - --key development -o -"
        f" | {npuctl} verify - --key development"
    )
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/dev/stdin: version 1.2.3, ")
    assert "/dev/stdout: version 1.2.3, " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["program.bin"]


def test_stdout_has_room_for_an_image_or_a_document_but_not_both(npuctl: Npuctl, tmp_path: Path) -> None:
    program = tmp_path / "program.bin"
    program.write_bytes(b"program")
    npuctl.document("fw build", str(program), "-o", "-", "--version", "1", code=2)


def test_a_key_pair_is_not_written_to_a_dash(npuctl: Npuctl) -> None:
    assert npuctl("fw", "keygen", "-").returncode == 2
