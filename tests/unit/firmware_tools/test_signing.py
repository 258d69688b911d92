"""Keys in files, and signatures by keys and by commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519

from driver_shim.protocol.image import ImageError, authenticate, parse_image
from firmware_tools import keys
from firmware_tools.errors import ExtraMissing, KeyFileError, PasswordNeeded, SignerTimeout, SigningError
from firmware_tools.image import build_image
from firmware_tools.signing import CommandSigner, KeySigner, sign_image
from firmware_tools.verify import verify_signature
from tests.support.images import KEY, OTHER_KEY, OTHER_SIGNER, PUBLIC, TINY, TINY_CONTENTS, TRUSTED

UNSIGNED = parse_image(build_image(TINY_CONTENTS))
PASSWORD = b"a password"
PATIENCE_S = 60.0


def private_pem(key: Any, form: s.PrivateFormat = s.PrivateFormat.PKCS8, password: bytes | None = None) -> bytes:
    protection = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    pem: bytes = key.private_bytes(s.Encoding.PEM, form, protection)
    return pem


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    return pem


def written(folder: Path, data: bytes, name: str = "key.pem") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("password", [None, PASSWORD])
def test_a_private_key_is_read(tmp_path: Path, password: bytes | None) -> None:
    path = written(tmp_path, private_pem(KEY, password=password))
    assert keys.load_private_key(path, lambda _: PASSWORD).private_bytes_raw() == KEY.private_bytes_raw()


def test_a_public_key_is_read_from_either_half(tmp_path: Path) -> None:
    assert keys.load_public_key(written(tmp_path, public_pem(KEY))) == PUBLIC
    assert keys.load_public_key(written(tmp_path, private_pem(KEY))) == PUBLIC


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (public_pem(KEY), "is a public key"),
        (private_pem(rsa.generate_private_key(65537, 2048)), "is an RSA key"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "is an EC key"),
        (private_pem(x25519.X25519PrivateKey.generate()), "is an X25519 key"),
        (private_pem(KEY, s.PrivateFormat.OpenSSH), "OpenSSH's format"),
        (b"-----BEGIN CERTIFICATE-----\n", "is a certificate"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no usable private key"),
        (KEY.private_bytes_raw(), "not a PEM file"),
        (b"", "not a PEM file"),
    ],
)
def test_other_files_are_refused_for_signing_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(KeyFileError, match=reason):
        keys.load_private_key(written(tmp_path, data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (public_pem(rsa.generate_private_key(65537, 2048)), "is an RSA key"),
        (private_pem(ec.generate_private_key(ec.SECP256R1())), "is an EC key"),
        (private_pem(KEY, password=PASSWORD), "is an encrypted private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no usable public key"),
        (PUBLIC, "not a PEM file"),
    ],
)
def test_other_files_are_refused_for_verifying_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(KeyFileError, match=reason):
        keys.load_public_key(written(tmp_path, data))


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    path = written(tmp_path, private_pem(KEY, password=PASSWORD))
    with pytest.raises(PasswordNeeded, match="no password was given"):
        keys.load_private_key(path)
    with pytest.raises(KeyFileError, match="password is wrong"):
        keys.load_private_key(path, lambda _: b"another")


def test_a_password_is_not_asked_for_where_none_is_needed(tmp_path: Path) -> None:
    def ask(_: Path) -> bytes:
        raise AssertionError("asked")

    keys.load_private_key(written(tmp_path, private_pem(KEY)), ask)


@pytest.mark.parametrize("password", [None, PASSWORD])
def test_a_generated_pair_belongs_together_and_is_private(tmp_path: Path, password: bytes | None) -> None:
    private, public = tmp_path / "new.pem", tmp_path / "new.pub.pem"
    made = keys.generate_key(private, public, password)
    assert keys.load_public_key(public) == made
    assert keys.load_private_key(private, lambda _: PASSWORD).public_key().public_bytes_raw() == made
    assert private.stat().st_mode & 0o777 == 0o600
    assert (b"ENCRYPTED" in private.read_bytes()) is (password is not None)


@pytest.mark.parametrize("existing", ["new.pem", "new.pub.pem"])
def test_no_key_is_overwritten_and_no_half_pair_stays(tmp_path: Path, existing: str) -> None:
    written(tmp_path, b"precious", existing)
    with pytest.raises(FileExistsError):
        keys.generate_key(tmp_path / "new.pem", tmp_path / "new.pub.pem", None)
    assert [entry.name for entry in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_bytes() == b"precious"


def signer_script(folder: Path, body: str) -> str:
    """A signer's command: `message` in, `emit(bytes)` out."""
    prologue = (
        "import sys\n"
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        f"key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex('{KEY.private_bytes_raw().hex()}'))\n"
        "emit = sys.stdout.buffer.write\n"
    )
    path = written(folder, (prologue + body).encode(), "a signer.py")
    return shlex.join([sys.executable, str(path)])


def test_a_command_signs_what_comes_on_stdin(tmp_path: Path) -> None:
    command = signer_script(tmp_path, "emit(key.sign(sys.stdin.buffer.read()))\n")
    assert sign_image(UNSIGNED, [CommandSigner(command, PUBLIC, PATIENCE_S)]) == TINY


def test_a_command_may_be_told_files(tmp_path: Path) -> None:
    command = signer_script(
        tmp_path, "open(sys.argv[1][4:], 'wb').write(key.sign(open(sys.argv[2], 'rb').read())); emit(b'done')\n"
    )
    signer = CommandSigner(f"{command} out={{signature}} {{message}}", PUBLIC, PATIENCE_S)
    assert sign_image(UNSIGNED, [signer]) == TINY


@pytest.mark.parametrize("pure", [False, True])
def test_a_command_is_given_the_image_itself_for_pure_signatures(tmp_path: Path, pure: bool) -> None:
    body = "message = sys.stdin.buffer.read()\nemit(key.sign(message))\nopen(sys.argv[1], 'wb').write(message)\n"
    seen = tmp_path / "seen"
    command = f"{signer_script(tmp_path, body)} {shlex.quote(str(seen))}"
    signed = parse_image(sign_image(UNSIGNED, [CommandSigner(command, PUBLIC, PATIENCE_S)], pure=pure))
    assert seen.read_bytes() == (bytes(UNSIGNED.signed_region) if pure else UNSIGNED.digest)
    assert authenticate(signed, [TRUSTED], verify_signature) == (TRUSTED,)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("emit(key.sign(b'something else'))\n", "does not verify.*wrong"),
        ("emit(bytes(63))\n", "gave 63 bytes"),
        ("emit(key.sign(sys.stdin.buffer.read()).hex().encode())\n", "gave 128 bytes"),
        ("sys.exit(3)\n", "exit code 3"),
    ],
)
def test_a_command_that_does_not_sign_leaves_no_image(tmp_path: Path, body: str, reason: str) -> None:
    with pytest.raises(SigningError, match=reason):
        sign_image(UNSIGNED, [CommandSigner(signer_script(tmp_path, body), PUBLIC, PATIENCE_S)])


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program-anywhere", "cannot be run"),
        ("true {signature}", "wrote no signature"),
        ("'open", "No closing quotation"),
        (" ", "is empty"),
    ],
)
def test_a_command_that_cannot_sign_says_so(command: str, reason: str) -> None:
    with pytest.raises(SigningError, match=reason):
        CommandSigner(command, PUBLIC, PATIENCE_S).sign(b"message")


def test_a_command_that_does_not_end_is_ended() -> None:
    with pytest.raises(SignerTimeout, match=r"did not end within 0\.1 s"):
        CommandSigner("sleep 60", PUBLIC, 0.1).sign(b"message")


def test_a_command_that_does_not_stop_talking_is_ended() -> None:
    with pytest.raises(SigningError, match="prints more than"):
        CommandSigner("yes", PUBLIC, PATIENCE_S).sign(b"message")


def test_a_command_need_not_read_what_it_signs(tmp_path: Path) -> None:
    body = f"emit(bytes.fromhex('{KEY.sign(bytes(1 << 20)).hex()}'))\n"
    assert len(CommandSigner(signer_script(tmp_path, body), PUBLIC, PATIENCE_S).sign(bytes(1 << 20))) == 64


def test_a_signer_with_another_key_is_found_out() -> None:
    impostor = KeySigner(OTHER_KEY)
    impostor.public_key = PUBLIC
    with pytest.raises(SigningError, match="does not verify"):
        sign_image(UNSIGNED, [impostor])


def test_a_damaged_image_is_not_signed_as_if_it_were_whole() -> None:
    data = bytearray(UNSIGNED.data)
    data[32] ^= 1
    with pytest.raises(ImageError, match="states"):
        sign_image(parse_image(data), [OTHER_SIGNER])


@pytest.mark.parametrize(
    "use",
    [
        lambda path: keys.load_private_key(path),
        lambda path: keys.load_public_key(path),
        lambda path: keys.generate_key(path, path, None),
        lambda _: verify_signature(PUBLIC, bytes(64), b""),
    ],
)
def test_without_the_extra_its_install_line_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use: Any) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(ExtraMissing) as caught:
        use(written(tmp_path, private_pem(KEY)))
    assert "pip install 'npu-sdk[firmware]'" in str(caught.value)
