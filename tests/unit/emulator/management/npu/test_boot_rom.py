"""The firmware on the core against the boot ROM: neither takes an image that the other refuses.

What the firmware writes and the ROM refuses bricks a device; what the ROM starts and the firmware refuses could come in
another way. Images are made wrong first and hashed and signed then, so that nothing but their form decides.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from driver_shim.protocol.firmware_slots import ERASED, LOAD_ADDRESS, SLOT_BYTES, Slot
from driver_shim.protocol.image import DigestAlgorithm, ImageError, ParsedImage
from driver_shim.protocol.image_layout import (
    IMAGE_HEADER,
    IMAGE_MAGIC,
    MAX_SIGNATURES,
    PROTECTED_INFO_MAGIC,
    UNPROTECTED_INFO_MAGIC,
    TlvKind,
    hash_chunks,
    is_vendor_kind,
    subject_public_key_info,
)
from driver_shim.protocol.mailbox import (
    SLOT_INFO,
    SLOT_QUERY,
    MailboxCommand,
    MailboxResult,
    UpdateFlag,
)
from driver_shim.protocol.management_registers import HARDWARE_ID
from emulator.management.npu.boot_rom import Unbootable
from emulator.management.npu.storage import fresh_storage
from firmware_tools.signing import KeySigner, Signer
from tests.support.core_bench import CoreBench, core_bench
from tests.support.images import OTHER_SIGNER, SIGNER, area
from tests.support.reference_firmware import development_signer, firmware_image, needs_compiler, noise

pytestmark = needs_compiler

_COUNTER = 3
"""The chip's, so that an image can be below it."""
_MUTANTS = 150
_CODE_ALIGNMENT = 4
_HARDWARE_IDS_MAX = 64
_HEADER_BYTES = 0x200
Entry = tuple[int, bytes]


@dataclass
class Recipe:
    """An image about to be made: all that can be wrong with it while it is rightly signed."""

    payload: bytes = noise(5000)
    header: dict[str, int] = field(default_factory=dict)
    """Fields other than those that follow from the rest."""
    header_bytes: int = _HEADER_BYTES
    padding: bytes = b"\0"
    protected: list[Entry] = field(default_factory=lambda: [counter(_COUNTER), hardware(HARDWARE_ID)])
    with_chunk_hashes: bool = True
    algorithm: DigestAlgorithm = DigestAlgorithm.SHA256
    pure: bool = False
    signers: list[Signer] = field(default_factory=lambda: [development_signer()])
    hash_first: list[Entry] = field(default_factory=list)
    """What stands before the hash."""
    last: list[Entry] = field(default_factory=list)
    """What stands behind the signatures."""
    keys_by_hash: bool = False
    behind: bytes = b""

    def make(self) -> bytes:
        """The bytes."""
        entries = list(self.protected)
        size = self.header_bytes + len(self.payload)
        if self.with_chunk_hashes:
            chunks = b"".join(hash_chunks(bytes(size)))
            entries.append((TlvKind.CHUNK_HASHES, chunks))
        loaded = self._loaded(len(area(PROTECTED_INFO_MAGIC, *entries)) if entries else 0)
        if self.with_chunk_hashes:
            entries[-1] = (TlvKind.CHUNK_HASHES, b"".join(hash_chunks(loaded)))
        signed = loaded + (area(PROTECTED_INFO_MAGIC, *entries) if entries else b"")
        return signed + self._unprotected(signed) + self.behind

    def _loaded(self, protected_size: int) -> bytes:
        fields = {
            "magic": IMAGE_MAGIC,
            "load_address": LOAD_ADDRESS,
            "header_size": self.header_bytes,
            "protected_size": protected_size,
            "image_size": len(self.payload),
            "flags": 0x20,
            "major": 2,
            "minor": 0,
            "revision": 0,
            "build_number": 0,
        }
        header = IMAGE_HEADER.build(**{**fields, **self.header})
        return header + self.padding * (self.header_bytes - len(header)) + self.payload

    def _unprotected(self, signed: bytes) -> bytes:
        digest = self.algorithm.digest(signed)
        entries = [*self.hash_first, (int(self.algorithm.kind), digest)]
        if self.pure:
            entries.append((TlvKind.PURE, b"\1"))
        for signer in self.signers:
            key = subject_public_key_info(signer.public_key)
            entries += [
                (TlvKind.KEY_HASH, self.algorithm.digest(key)) if self.keys_by_hash else (TlvKind.PUBLIC_KEY, key),
                (TlvKind.ED25519, signer.sign(signed if self.pure else digest)),
            ]
        return area(UNPROTECTED_INFO_MAGIC, *entries, *self.last)


def counter(value: int) -> Entry:
    return TlvKind.SECURITY_COUNTER, struct.pack("<I", value)


def hardware(*ids: int) -> Entry:
    return TlvKind.HARDWARE_IDS, struct.pack(f"<{len(ids)}I", *ids)


class ForgedSigner(Signer):
    """Names the device's key, which it has not."""

    def sign(self, message: bytes) -> bytes:
        return OTHER_SIGNER.sign(message)


def _signers(count: int) -> list[Signer]:
    """The device's key and others."""
    others = (Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "little")) for number in range(1, count))
    return [development_signer(), *map(KeySigner, others)]


def _forged() -> Signer:
    return ForgedSigner(development_signer().public_key)


_PLAIN = [counter(_COUNTER), hardware(HARDWARE_ID)]
_VENDOR_KINDS = [kind for kind in range(0xA2, 0x10000) if is_vendor_kind(kind) and kind & 0xFF > 0xA1]


def _of_size(image_bytes: int) -> Recipe:
    """A recipe that gives so long an image."""
    recipe = Recipe(payload=bytes(image_bytes // 2 & ~3))
    while excess := len(recipe.make()) - image_bytes:
        recipe.payload = noise(len(recipe.payload) - excess)
    return recipe


CRAFTED: dict[str, Callable[[], Recipe]] = {
    "good": Recipe,
    "sha512": lambda: Recipe(algorithm=DigestAlgorithm.SHA512),
    "pure": lambda: Recipe(pure=True),
    "no chunk hashes": lambda: Recipe(with_chunk_hashes=False),
    "nothing protected": lambda: Recipe(with_chunk_hashes=False, protected=[]),
    "no hardware id": lambda: Recipe(protected=[counter(_COUNTER)]),
    "counter below": lambda: Recipe(protected=[counter(_COUNTER - 1), hardware(HARDWARE_ID)]),
    "counter highest": lambda: Recipe(protected=[counter(0xFFFF_FFFF), hardware(HARDWARE_ID)]),
    "counter twice": lambda: Recipe(protected=[counter(_COUNTER), counter(_COUNTER), hardware(HARDWARE_ID)]),
    "counter short": lambda: Recipe(protected=[(TlvKind.SECURITY_COUNTER, b"\xff\xff"), hardware(HARDWARE_ID)]),
    "counter long": lambda: Recipe(protected=[(TlvKind.SECURITY_COUNTER, bytes([9] * 8)), hardware(HARDWARE_ID)]),
    "counter unprotected": lambda: Recipe(protected=[hardware(HARDWARE_ID)], last=[counter(_COUNTER)]),
    "other hardware": lambda: Recipe(protected=[counter(_COUNTER), hardware(1, 2, 3)]),
    "hardware among others": lambda: Recipe(protected=[counter(_COUNTER), hardware(1, HARDWARE_ID, 3)]),
    "hardware twice": lambda: Recipe(protected=[counter(_COUNTER), hardware(HARDWARE_ID, HARDWARE_ID)]),
    "hardware in two": lambda: Recipe(protected=[counter(_COUNTER), hardware(1), hardware(HARDWARE_ID)]),
    "no hardware at all": lambda: Recipe(protected=[counter(_COUNTER), (TlvKind.HARDWARE_IDS, b"")]),
    "hardware cut off": lambda: Recipe(
        protected=[counter(_COUNTER), (TlvKind.HARDWARE_IDS, struct.pack("<I", HARDWARE_ID) + b"\0")]
    ),
    "64 hardware ids": lambda: Recipe(protected=[counter(_COUNTER), hardware(HARDWARE_ID, *range(63))]),
    "65 hardware ids": lambda: Recipe(protected=[counter(_COUNTER), hardware(HARDWARE_ID, *range(64))]),
    "vendor's": lambda: Recipe(protected=[*_PLAIN, (0xFFA2, b"any"), (0x00FF, b""), (0xFFFE, b"thing")]),
    "any kind": lambda: Recipe(protected=[*_PLAIN, (0xFFFF, b"")]),
    "vendor's twice": lambda: Recipe(protected=[*_PLAIN, (0xA2, b"a"), (0xA3, b""), (0xA2, b"b")]),
    "kinds alike in their low bits": lambda: Recipe(protected=[*_PLAIN, (0x01A0, b""), (0x02A0, b""), (0x01A1, b"")]),
    "unknown protected": lambda: Recipe(protected=[*_PLAIN, (0x9F, b"")]),
    "hash protected": lambda: Recipe(protected=[*_PLAIN, (TlvKind.SHA256, bytes(32))]),
    "signature protected": lambda: Recipe(protected=[*_PLAIN, (TlvKind.ED25519, bytes(64))]),
    "as many entries as fit": lambda: Recipe(protected=[*_PLAIN, *((kind, b"") for kind in _VENDOR_KINDS[:16_300])]),
    "the last of many is double": lambda: Recipe(
        protected=[*_PLAIN, *((kind, b"") for kind in [*_VENDOR_KINDS[:16_300], _VENDOR_KINDS[16_299]])]
    ),
    "boot record": lambda: Recipe(protected=[*_PLAIN, (TlvKind.BOOT_RECORD, noise(100))]),
    "dependencies": lambda: Recipe(protected=[*_PLAIN, *[(TlvKind.DEPENDENCY, bytes(12))] * 3]),
    "dependency reserved": lambda: Recipe(protected=[*_PLAIN, (TlvKind.DEPENDENCY, b"\0\1" + bytes(10))]),
    "dependency short": lambda: Recipe(protected=[*_PLAIN, (TlvKind.DEPENDENCY, bytes(11))]),
    "wrong chunk hash": lambda: Recipe(with_chunk_hashes=False, protected=[*_PLAIN, (TlvKind.CHUNK_HASHES, noise(64))]),
    "a chunk hash too few": lambda: Recipe(
        with_chunk_hashes=False, protected=[*_PLAIN, (TlvKind.CHUNK_HASHES, noise(32))]
    ),
    "uuid": lambda: Recipe(protected=[*_PLAIN, (TlvKind.VENDOR_UUID, bytes(16))]),
    "encrypted": lambda: Recipe(protected=[*_PLAIN, (TlvKind.ENCRYPTED_X25519, bytes(16))]),
    "not signed": lambda: Recipe(signers=[]),
    "pure and not signed": lambda: Recipe(signers=[], pure=True),
    "other key": lambda: Recipe(signers=[OTHER_SIGNER]),
    "forged": lambda: Recipe(signers=[_forged()]),
    "forged beside another's": lambda: Recipe(signers=[OTHER_SIGNER, _forged()]),
    "two keys": lambda: Recipe(signers=[OTHER_SIGNER, development_signer()]),
    "three keys": lambda: Recipe(signers=[development_signer(), SIGNER, OTHER_SIGNER]),
    "as many keys as are allowed": lambda: Recipe(signers=_signers(MAX_SIGNATURES)),
    "a key too many": lambda: Recipe(signers=_signers(MAX_SIGNATURES + 1)),
    "a key too many, ours last": lambda: Recipe(signers=_signers(MAX_SIGNATURES + 1)[::-1]),
    "far too many keys": lambda: Recipe(signers=_signers(500)),
    "same key twice": lambda: Recipe(signers=[development_signer(), development_signer()]),
    "right and forged": lambda: Recipe(signers=[development_signer(), _forged()]),
    "key by its hash": lambda: Recipe(keys_by_hash=True),
    "another key by its hash": lambda: Recipe(
        last=[(TlvKind.KEY_HASH, bytes(32)), (TlvKind.ED25519, OTHER_SIGNER.sign(b""))]
    ),
    "key of no curve point": lambda: Recipe(
        last=[(TlvKind.PUBLIC_KEY, subject_public_key_info(b"\xff" * 32)), (TlvKind.ED25519, bytes(64))]
    ),
    "key without signature": lambda: Recipe(last=[(TlvKind.PUBLIC_KEY, subject_public_key_info(bytes(32)))]),
    "signature without key": lambda: Recipe(last=[(TlvKind.ED25519, bytes(64))]),
    "signature short": lambda: Recipe(
        last=[(TlvKind.PUBLIC_KEY, subject_public_key_info(bytes(32))), (TlvKind.ED25519, bytes(63))]
    ),
    "vendor's unprotected": lambda: Recipe(last=[(0xA2, b"")]),
    "two hashes": lambda: Recipe(last=[(TlvKind.SHA512, bytes(64))]),
    "hash not first": lambda: Recipe(hash_first=[(TlvKind.PURE, b"\1")]),
    "pure with another mark": lambda: Recipe(last=[(TlvKind.PURE, b"\2")]),
    "no flags": lambda: Recipe(header={"flags": 0}),
    "not bootable": lambda: Recipe(header={"flags": 0x30}),
    "position independent": lambda: Recipe(header={"flags": 0x21}),
    "fixed in flash": lambda: Recipe(header={"flags": 0x100}),
    "encrypted by flag": lambda: Recipe(header={"flags": 0x24}),
    "below RAM": lambda: Recipe(header={"load_address": LOAD_ADDRESS - 4}),
    "higher up": lambda: Recipe(header={"load_address": LOAD_ADDRESS + 0x8000}),
    "at RAM's end": lambda: Recipe(header={"load_address": LOAD_ADDRESS + SLOT_BYTES - _HEADER_BYTES - 5000}),
    "beyond RAM's end": lambda: Recipe(header={"load_address": LOAD_ADDRESS + SLOT_BYTES - _HEADER_BYTES - 4996}),
    "around the addresses' end": lambda: Recipe(header={"load_address": 0xFFFF_FFFC}),
    "at an odd address": lambda: Recipe(header={"load_address": LOAD_ADDRESS + 2}),
    "header of 32": lambda: Recipe(header_bytes=32),
    "header of 31": lambda: Recipe(header={"header_size": 31}),
    "odd header": lambda: Recipe(header_bytes=0x202),
    "large header": lambda: Recipe(header_bytes=0xFFFC),
    "padding of ones": lambda: Recipe(padding=b"\xff"),
    "padding of twos": lambda: Recipe(padding=b"\2"),
    "no payload": lambda: Recipe(payload=b"", with_chunk_hashes=False),
    "payload beyond": lambda: Recipe(header={"image_size": 0xFFFF_FFFF}),
    "payload around": lambda: Recipe(header={"image_size": 0xFFFF_FFFF - _HEADER_BYTES + 1}),
    "protected too short": lambda: Recipe(header={"protected_size": 4}),
    "protected of none": lambda: Recipe(with_chunk_hashes=False, protected=[], header={"protected_size": 3}),
    "protected beyond": lambda: Recipe(header={"protected_size": 0xFFFF}),
    "a byte behind": lambda: Recipe(behind=b"\0"),
    "fills the slot": lambda: _of_size(SLOT_BYTES),
    "a byte more": lambda: _of_size(SLOT_BYTES + 1),
}


def mutants() -> Iterator[tuple[str, bytes]]:
    """Random recipes, and images whose signature need not be right any more."""
    chance = random.Random(0x4E50)
    for number in range(_MUTANTS):
        recipe = replace(Recipe(), payload=noise(chance.randint(1, 9000), f"mutant {number}"))
        for change in chance.sample(_CHANGES, chance.randint(0, 2)):
            change(recipe, chance)
        data = bytearray(recipe.make())
        if chance.random() < 0.2:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield f"mutant {number}", bytes(data)


def _change_header(recipe: Recipe, chance: random.Random) -> None:
    name, values = chance.choice(
        [
            ("flags", [0, 0x10, 0x21, 0x22, 0x8000_0020]),
            ("load_address", [0, LOAD_ADDRESS + 1, LOAD_ADDRESS + 0x1000, LOAD_ADDRESS + SLOT_BYTES - 4, 0x8020_0000]),
            ("header_size", [0, 28, 0x1FC, 0x204]),
            ("image_size", [1, len(recipe.payload) - 1, len(recipe.payload) + 1, SLOT_BYTES, 0x7FFF_FFFF]),
            ("protected_size", [0, 1, 4, 0x10, 0xFFFF]),
            ("build_number", [0xFFFF_FFFF]),
        ]
    )
    recipe.header[name] = chance.choice(values)


def _change_protected(recipe: Recipe, chance: random.Random) -> None:
    kind = chance.choice([*TlvKind, 0xA2, 0x1A0, 0xFFA0, 0xFFFF, 0x9F, 0])
    recipe.protected.insert(chance.randint(0, len(recipe.protected)), (kind, chance.randbytes(chance.randint(0, 40))))


def _leave_out(recipe: Recipe, chance: random.Random) -> None:
    del recipe.protected[chance.randrange(len(recipe.protected))]


def _change_end(recipe: Recipe, chance: random.Random) -> None:
    kind = chance.choice([TlvKind.PUBLIC_KEY, TlvKind.KEY_HASH, TlvKind.ED25519, TlvKind.PURE, 0xA0])
    recipe.last.append((kind, chance.randbytes(chance.choice([0, 1, 32, 44, 64]))))


def _change_making(recipe: Recipe, chance: random.Random) -> None:
    recipe.pure = chance.random() < 0.5
    recipe.algorithm = chance.choice(list(DigestAlgorithm))
    recipe.with_chunk_hashes = chance.random() < 0.5
    recipe.signers = chance.sample([development_signer(), OTHER_SIGNER, SIGNER, _forged()], chance.randint(0, 3))


_CHANGES = [_change_header, _change_protected, _leave_out, _change_end, _change_making]


# --- both verdicts ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Iterator[CoreBench]:
    with core_bench(fresh_storage(firmware_image(security_counter=_COUNTER))) as made:
        made.storage.one_time.raise_security_counter(_COUNTER)
        assert made.boot_to_ready()
        yield made


def rom_takes(bench: CoreBench, image: bytes) -> ParsedImage | None:
    if len(image) > SLOT_BYTES:
        return None  # recovery takes no more, and a slot holds no more
    try:
        return bench.core.rom.verify(image)
    except (ImageError, Unbootable):
        return None


def rom_finds(bench: CoreBench) -> bytes:
    """The image that slot B begins with; empty when it begins with none."""
    try:
        return bench.core.rom.slot_image(Slot.B)
    except ImageError:
        return b""


def is_left_to_the_rom(image: ParsedImage) -> bool:
    """What the firmware's README names as the images that the boot ROM takes and the firmware does not."""
    return (
        image.header_size % _CODE_ALIGNMENT != 0
        or image.load_address % _CODE_ALIGNMENT != 0
        or len(image.hardware_ids) > _HARDWARE_IDS_MAX
    )


def firmware_finds(bench: CoreBench, image: bytes) -> Any:
    """What it says of a slot that a programmer of flash put the image into."""
    bench.storage.memory[Slot.B.offset : Slot.B.offset + SLOT_BYTES] = image.ljust(SLOT_BYTES, bytes([ERASED]))
    assert bench.update(b"\0") == (MailboxResult.BAD_FORMAT, 0)  # it looks at the slot anew
    result, body = bench.ask(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=Slot.B))
    assert result is MailboxResult.OK
    return SLOT_INFO.parse(body)


def assert_they_agree(bench: CoreBench, image: bytes) -> bool:
    """By every way into the slot; whether both take it."""
    boots = len(bench.resets)
    taken = rom_takes(bench, image)
    wanted = taken is not None and not is_left_to_the_rom(taken)

    found = firmware_finds(bench, image[:SLOT_BYTES])
    held = rom_takes(bench, rom_finds(bench))
    assert bool(found.valid) == (held is not None and not is_left_to_the_rom(held)), MailboxResult(found.result)

    result, _ = bench.update(image, UpdateFlag.ALLOW_NO_HARDWARE_ID)
    assert (result is MailboxResult.OK) == wanted, result
    if wanted:
        assert bench.core.rom.slot_image(Slot.B) == image
        assert bench.core.rom.boot_state().trial is Slot.B
    assert len(bench.resets) == boots, "the watchdog had to come"
    return wanted


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_images(bench: CoreBench, name: str) -> None:
    assert_they_agree(bench, CRAFTED[name]().make())


def test_mutants(bench: CoreBench) -> None:
    taken = 0
    for name, image in mutants():
        try:
            taken += assert_they_agree(bench, image)
        except AssertionError as error:
            raise AssertionError(f"{name}: {image[:32].hex()}… of {len(image)} bytes") from error
    assert _MUTANTS // 10 < taken < _MUTANTS // 2, "mutants should be neither all bad nor all good"
