"""The reference firmware, built once a test run for each set of defines, and images signed with the development key."""

from __future__ import annotations

import atexit
import functools
import hashlib
import random
import shutil
import tempfile
from pathlib import Path

from driver_shim.protocol.firmware_slots import LOAD_ADDRESS
from driver_shim.protocol.image import DigestAlgorithm, ImageVersion, parse_image
from driver_shim.protocol.management_registers import HARDWARE_ID
from firmware_tools.build import read_program
from firmware_tools.image import ImageContents, build_image
from firmware_tools.keys import DEVELOPMENT_KEY, load_private_key
from firmware_tools.reference_firmware.build import COMPILER, build
from firmware_tools.signing import KeySigner, Signer, sign_image
from tests.support.needs import needs_program

needs_compiler = needs_program(COMPILER)


@functools.cache
def development_signer() -> KeySigner:
    return KeySigner(load_private_key(DEVELOPMENT_KEY))


@functools.cache
def firmware_elf(*defines: str) -> Path:
    """The ELF file of a variant."""
    folder = Path(tempfile.mkdtemp(prefix="reference-firmware-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(folder, defines)


@functools.cache
def firmware_image(*defines: str, security_counter: int = 0, version: str = "1.0.0") -> bytes:
    """A variant as an image that the device boots."""
    payload = read_program(firmware_elf(*defines)).payload
    return signed_image(payload, security_counter=security_counter, version=version)


def signed_image(
    payload: bytes,
    *,
    signer: Signer | None = None,
    security_counter: int | None = 0,
    version: str = "1.1.0",
    hardware_ids: tuple[int, ...] = (HARDWARE_ID,),
    with_chunk_hashes: bool = True,
    algorithm: DigestAlgorithm = DigestAlgorithm.SHA256,
    pure: bool = False,
    embed_key: bool = True,
    load_address: int = LOAD_ADDRESS,
) -> bytes:
    """An image of any payload, by default one that the device takes."""
    contents = ImageContents(
        payload,
        ImageVersion.parse(version),
        load_address,
        security_counter=security_counter,
        hardware_ids=hardware_ids,
        with_chunk_hashes=with_chunk_hashes,
    )
    return sign_image(
        parse_image(build_image(contents)),
        [signer or development_signer()],
        algorithm=algorithm,
        pure=pure,
        embed_key=embed_key,
    )


def noise(size: int, seed: str = "payload") -> bytes:
    """Bytes that look like nothing, the same at each run."""
    return random.Random(hashlib.sha256(seed.encode()).digest()).randbytes(size)
