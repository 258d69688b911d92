"""Ed25519 keys in PEM files: making, reading and naming them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from driver_shim.protocol.image_layout import DEVELOPMENT_KEY_HASH, subject_public_key_info
from firmware_tools.errors import KeyFileError, PasswordNeeded, extra_missing
from firmware_tools.files import MAX_KEY_BYTES, PRIVATE_MODE, create_file, read_bounded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

AskPassword = Callable[[Path], bytes]
"""Gives the password of an encrypted key file."""

DEVELOPMENT_KEY = Path(__file__).parent / "reference_firmware" / "development_key.pem"
"""Published: what it signs is trusted by devices for development only."""

_MAKE_ONE = "npuctl fw keygen makes one"


def no_password(path: Path) -> bytes:
    """For those who have none: raises PasswordNeeded."""
    raise PasswordNeeded(f"{path} is encrypted, and no password was given")


def load_private_key(path: Path, ask_password: AskPassword = no_password) -> Ed25519PrivateKey:
    """Read a private key. Raises KeyFileError for any other content or a wrong password, OSError."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise extra_missing(error) from error
    data = read_bounded(path, MAX_KEY_BYTES)
    if b"-----BEGIN PUBLIC KEY-----" in data:
        raise KeyFileError(f"{path} is a public key; signing takes the private one")
    key = _load_pem(path, data, ask_password)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is {_kind(key)}; firmware is signed with Ed25519", remedy=_MAKE_ONE)
    return key


def load_public_key(path: Path) -> bytes:
    """Read the raw public key from a public or an unencrypted private key. Raises KeyFileError, OSError."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise extra_missing(error) from error
    data = read_bounded(path, MAX_KEY_BYTES)
    if b"PRIVATE KEY-----" in data:
        return load_private_key(path, _public_instead).public_key().public_bytes_raw()
    _check_pem(path, data)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} holds no usable public key: {_first_line(error)}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path} is {_kind(key)}; firmware is signed with Ed25519")
    return key.public_bytes_raw()


def generate_key(private: Path, public: Path, password: bytes | None) -> bytes:
    """Make a key pair in two new files and return the raw public key. Raises FileExistsError, OSError."""
    try:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise extra_missing(error) from error
    key = Ed25519PrivateKey.generate()
    protection = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, protection)
    create_file(public, key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    try:
        create_file(private, pem, PRIVATE_MODE)
    except BaseException:
        public.unlink()
        raise
    return key.public_key().public_bytes_raw()


def _public_instead(path: Path) -> bytes:
    raise PasswordNeeded(f"{path} is an encrypted private key", remedy="give its public key instead")


def key_hash(public_key: bytes) -> bytes:
    """What a device's fuses hold of a key: SHA-256 of its DER SubjectPublicKeyInfo."""
    return hashlib.sha256(subject_public_key_info(public_key)).digest()


def is_development_key(public_key: bytes) -> bool:
    """Whether anybody has the private half."""
    return key_hash(public_key) == DEVELOPMENT_KEY_HASH


def _load_pem(path: Path, data: bytes, ask_password: AskPassword) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    _check_pem(path, data)
    try:
        try:
            return load_pem_private_key(data, None)
        except TypeError:  # cryptography's way to say that the key is encrypted
            return load_pem_private_key(data, ask_password(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, KeyFileError):
            raise
        if b"ENCRYPTED" in data:
            raise KeyFileError(f"{path}: the password is wrong, or the file is damaged") from error
        raise KeyFileError(f"{path} holds no usable private key: {_first_line(error)}") from error


def _check_pem(path: Path, data: bytes) -> None:
    if b"-----BEGIN OPENSSH PRIVATE KEY-----" in data:
        raise KeyFileError(f"{path} is in OpenSSH's format", remedy=f"PKCS #8 in PEM is needed; {_MAKE_ONE}")
    if b"-----BEGIN CERTIFICATE-----" in data:
        raise KeyFileError(f"{path} is a certificate", remedy="take its key: openssl x509 -in CERT -pubkey -noout")
    if b"-----BEGIN " not in data:
        raise KeyFileError(f"{path} is not a PEM file", remedy=_MAKE_ONE)


def _kind(key: object) -> str:
    """`an RSA key` and the like."""
    name = type(key).__name__.lstrip("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    return f"{'an' if name[:1] in 'ERX' else 'a'} {name} key"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
