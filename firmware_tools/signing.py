"""Signing images with keys at hand, or with a command that reaches keys which are not."""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from driver_shim import timeouts
from driver_shim.protocol.image import (
    DigestAlgorithm,
    ImageError,
    ImageSignature,
    ParsedImage,
    TrustedKey,
    check_integrity,
)
from driver_shim.protocol.image_layout import SIGNATURE_BYTES, subject_public_key_info
from driver_shim.shared.child_process import wait_or_kill
from firmware_tools.errors import SignerTimeout, SigningError
from firmware_tools.files import read_bounded
from firmware_tools.image import with_signatures
from firmware_tools.verify import verify_image

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MESSAGE_FILE = "{message}"
"""In a signer's command: the file that holds what is to be signed. Without it, that comes on stdin."""
SIGNATURE_FILE = "{signature}"
"""In a signer's command: the file it writes the signature to. Without it, that is what it prints."""

_MOST_PRINTED = 64 << 10
"""A signer that talks as well is told how long its signature should be; one that goes on is ended."""


class Signer(ABC):
    """Makes signatures with one key."""

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key
        """Raw Ed25519, 32 bytes."""

    @abstractmethod
    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature of `message`. Raises SigningError."""


class KeySigner(Signer):
    """Signs with a private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        super().__init__(key.public_key().public_bytes_raw())
        self._key = key

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class CommandSigner(Signer):
    """Lets a command sign, which alone can reach the private key: a smart card's tool, a script before a service."""

    def __init__(self, command: str, public_key: bytes, timeout_s: float) -> None:
        """Raises SigningError when the command cannot be understood; it is not run through a shell."""
        super().__init__(public_key)
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise SigningError(f"the signer's command {command!r}: {error}") from error
        if not self._words:
            raise SigningError("the signer's command is empty")
        self._timeout_s = timeout_s

    def sign(self, message: bytes) -> bytes:
        with tempfile.TemporaryDirectory(prefix="npu-sign-") as folder:
            places = {MESSAGE_FILE: Path(folder, "message"), SIGNATURE_FILE: Path(folder, "signature")}
            places[MESSAGE_FILE].write_bytes(message)
            printed = self._run([_fill(word, places) for word in self._words], places[MESSAGE_FILE])
            in_file = any(SIGNATURE_FILE in word for word in self._words)
            signature = self._written(places[SIGNATURE_FILE]) if in_file else printed
        if len(signature) != SIGNATURE_BYTES:
            raise SigningError(
                f"the signer {self._words[0]} gave {len(signature)} bytes, "
                f"an Ed25519 signature is {SIGNATURE_BYTES}, raw"
            )
        return signature

    def _run(self, words: list[str], message: Path) -> bytes:
        """What the command prints. It is ended when it takes too long or prints more than a signature."""
        stdout, inward = os.pipe()
        with message.open("rb") as source:
            try:
                process = subprocess.Popen(words, stdin=source, stdout=inward)
            except (OSError, ValueError) as error:
                os.close(stdout)
                why = error.strerror if isinstance(error, OSError) else error
                raise SigningError(f"the signer {words[0]} cannot be run: {why}") from error
            finally:
                os.close(inward)
        try:
            deadline = time.monotonic() + self._timeout_s
            printed = self._printed(stdout, deadline)
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise SignerTimeout(f"the signer {words[0]} did not end within {self._timeout_s:g} s") from error
        finally:
            wait_or_kill(process, 0.0, timeouts.REAP_S)
            os.close(stdout)
        if process.returncode:
            raise SigningError(f"the signer {words[0]} ended with exit code {process.returncode}")
        return printed

    def _printed(self, pipe: int, deadline: float) -> bytes:
        """Raises TimeoutExpired, SigningError."""
        printed = b""
        while len(printed) <= _MOST_PRINTED:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(self._words, self._timeout_s)
            piece = os.read(pipe, _MOST_PRINTED)
            if not piece:
                return printed
            printed += piece
        raise SigningError(
            f"the signer {self._words[0]} prints more than {_MOST_PRINTED} bytes; an Ed25519 signature is"
            f" {SIGNATURE_BYTES}, raw"
        )

    def _written(self, path: Path) -> bytes:
        try:
            return read_bounded(path, _MOST_PRINTED)
        except FileNotFoundError as error:
            raise SigningError(f"the signer {self._words[0]} wrote no signature") from error


def sign_image(
    image: ParsedImage,
    signers: Sequence[Signer],
    *,
    algorithm: DigestAlgorithm = DigestAlgorithm.SHA256,
    pure: bool = False,
    embed_key: bool = True,
) -> bytes:
    """The image signed by each signer, in place of the signatures it has; verified before it is returned.

    `embed_key` puts public keys into the image rather than their hashes: a device that holds a hash itself needs them.
    Raises SigningError, ImageError when the image was damaged since it was built.
    """
    check_integrity(image)
    message = bytes(image.signed_region) if pure else algorithm.digest(image.signed_region)
    signatures = [_sign(signer, message, algorithm, embed_key) for signer in signers]
    signed = with_signatures(image, signatures, algorithm=algorithm, pure=pure)
    try:
        verify_image(signed, [TrustedKey.of_public_key(signer.public_key) for signer in signers])
    except ImageError as error:
        raise SigningError(f"the result does not verify: {error}") from error
    return signed


def _sign(signer: Signer, message: bytes, algorithm: DigestAlgorithm, embed_key: bool) -> ImageSignature:
    named = algorithm.digest(subject_public_key_info(signer.public_key))
    return ImageSignature(signer.public_key if embed_key else None, named, signer.sign(message))


def _fill(word: str, places: dict[str, Path]) -> str:
    for placeholder, path in places.items():
        word = word.replace(placeholder, str(path))
    return word
