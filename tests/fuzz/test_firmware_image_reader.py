"""The firmware's image reader against the SDK's, on mutated images: they take the same ones, and no read goes astray.

The C sources of the firmware are compiled for the host with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driver_shim.protocol.firmware_slots import LOAD_ADDRESS, SLOT_BYTES
from driver_shim.protocol.image import DigestAlgorithm, ImageError, ImageFlag, ParsedImage, parse_image
from driver_shim.protocol.image_layout import IMAGE_HEADER, MAX_SIGNATURES
from driver_shim.protocol.mailbox import MailboxResult
from firmware_tools.reference_firmware.build import SOURCES, write_headers
from firmware_tools.signing import KeySigner, sign_image
from tests.support.images import OTHER_SIGNER, SIGNER, TINY
from tests.support.needs import needs_program
from tests.support.reference_firmware import noise, signed_image

pytestmark = needs_program("gcc")

_HARNESS = Path(__file__).parents[1] / "support" / "image_harness.c"
_MUTANTS = 20_000
_RUN_SECONDS = 120
_INTERESTING = (0, 1, 3, 4, 5, 0x1F, 0x20, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFC, 0xFFFF)
_LONG_INTERESTING = (*_INTERESTING, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_CODE_ALIGNMENT = 4
_HARDWARE_IDS_MAX = 64


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image-harness")
    write_headers(folder)
    program = folder / "harness"
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *checks, f"-I{SOURCES}", f"-I{folder}"]
    subprocess.run(
        [*command, str(SOURCES / "image.c"), str(_HARNESS), "-o", str(program)], check=True, timeout=_RUN_SECONDS
    )
    return program


def read_in_c(harness: Path, images: list[bytes]) -> list[tuple[MailboxResult, int]]:
    """Result and number of signatures of each."""
    framed = b"".join(struct.pack("<I", len(image)) + image for image in images)
    done = subprocess.run([harness], input=framed, capture_output=True, timeout=_RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr.decode()
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert len(rows) == len(images)
    return [(MailboxResult(int(result)), int(signatures)) for result, signatures in rows]


def read_in_python(image: bytes) -> ParsedImage | None:
    try:
        return parse_image(image)
    except ImageError:
        return None


def suits_the_device(image: ParsedImage) -> bool:
    """What the device asks for beyond the format: to be loaded into its RAM, from its slots."""
    return (
        image.flags == ImageFlag.RAM_LOAD
        and len(image.data) <= SLOT_BYTES
        and image.load_address >= LOAD_ADDRESS
        and image.load_address + len(image.loaded_region) <= LOAD_ADDRESS + SLOT_BYTES
        and image.load_address % _CODE_ALIGNMENT == image.header_size % _CODE_ALIGNMENT == 0
        and len(image.hardware_ids) <= _HARDWARE_IDS_MAX
    )


def _more_signers(count: int) -> list[KeySigner]:
    return [KeySigner(Ed25519PrivateKey.from_private_bytes(bytes([1 + number]) * 32)) for number in range(count)]


def seeds() -> list[bytes]:
    payload = noise(300)
    return [
        TINY,
        signed_image(payload),
        signed_image(payload, with_chunk_hashes=False, security_counter=None, hardware_ids=()),
        signed_image(payload, pure=True, algorithm=DigestAlgorithm.SHA512, hardware_ids=tuple(range(70))),
        signed_image(payload, embed_key=False, signer=OTHER_SIGNER),
        signed_image(noise(9000)),
        sign_image(parse_image(TINY), [SIGNER, OTHER_SIGNER]),
        sign_image(parse_image(TINY), [SIGNER, OTHER_SIGNER, *_more_signers(MAX_SIGNATURES - 2)]),
    ]


def mutate(image: bytes, chance: random.Random) -> bytes:
    """A few small changes, most of them where lengths and kinds are."""
    data = bytearray(image)
    for _ in range(chance.randint(1, 3)):
        if len(data) < IMAGE_HEADER.size:
            break
        tail = max(0, len(data) - 260)
        at = chance.choice((chance.randrange(IMAGE_HEADER.size), chance.randrange(tail, len(data))))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 2] = struct.pack("<H", chance.choice(_INTERESTING))
            case 2:
                data[at & ~3 : (at & ~3) + 4] = struct.pack("<I", chance.choice(_LONG_INTERESTING))
            case 3:
                del data[at : at + chance.randint(1, 40)]
            case 4:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case _:
                size = chance.randint(4, 80)
                data[at:at] = data[at : at + size]
    return bytes(data)


def mutants() -> Iterator[bytes]:
    chance = random.Random(0x4E50)
    originals = seeds()
    yield from originals
    yield from (image[:cut] for image in originals[:2] for cut in range(len(image)))
    for _ in range(_MUTANTS):
        yield mutate(chance.choice(originals), chance)


def test_both_readers_take_the_same_images(harness: Path) -> None:
    images = list(mutants())
    taken = 0
    for image, (result, signatures) in zip(images, read_in_c(harness, images), strict=True):
        parsed = read_in_python(image)
        assert (result is MailboxResult.OK) == (parsed is not None and suits_the_device(parsed)), image[:600].hex()
        if result is MailboxResult.OK and parsed is not None:
            taken += 1
            assert signatures == len(parsed.signatures)
    assert len(images) // 100 < taken < len(images) // 2, "mutants should be neither all bad nor all good"
