"""MCUboot's imgtool verifies our images, and ours are the eyes that look at its."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from driver_shim.protocol.image import Defect, DigestAlgorithm, ImageError, TrustedKey, authenticate, parse_image
from driver_shim.protocol.image_layout import hash_chunks
from firmware_tools.image import build_image
from firmware_tools.keys import DEVELOPMENT_KEY, load_private_key, load_public_key
from firmware_tools.signing import KeySigner, sign_image
from firmware_tools.verify import verify_signature
from tests.support.images import TINY_CONTENTS
from tests.support.needs import module_of_extra
from tests.support.time_scale import patience

module_of_extra("imgtool", "dev")

PATIENCE_S = patience(60.0)
PAYLOAD = bytes(range(251)) * 20
HEADER_SIZE = 0x200
LOAD_ADDRESS = 0x8000_0000
PUBLIC = load_public_key(DEVELOPMENT_KEY)
TRUSTED = TrustedKey.of_public_key(PUBLIC)
FUSES = TrustedKey(TRUSTED.key_hash)


def imgtool(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from imgtool.main import imgtool; imgtool()", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def made(folder: Path, *options: str, key: Path | None = DEVELOPMENT_KEY, ram: bool = True) -> bytes:
    """An image that imgtool makes."""
    payload, output = folder / "payload.bin", folder / "theirs.img"
    payload.write_bytes(PAYLOAD)
    signing = ["--key", str(key)] if key else []
    loading = ["--load-addr", hex(LOAD_ADDRESS)] if ram else []
    common = ["--version", "1.2.3+4", "--header-size", hex(HEADER_SIZE), "--pad-header", "--slot-size", "0x20000"]
    imgtool("sign", *signing, *loading, *common, *options, str(payload), str(output))
    return output.read_bytes()


def key_of(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.pem"
    imgtool("keygen", "--type", kind, "--key", str(path))
    return path


def defect_of(data: bytes) -> Defect:
    with pytest.raises(ImageError) as caught:
        authenticate(parse_image(data), [TRUSTED], verify_signature)
    return caught.value.defect


@pytest.mark.parametrize("algorithm", list(DigestAlgorithm))
@pytest.mark.parametrize("embed_key", [True, False])
@pytest.mark.parametrize("pure", [False, True])
def test_imgtool_verifies_ours(tmp_path: Path, algorithm: DigestAlgorithm, embed_key: bool, pure: bool) -> None:
    signer = KeySigner(load_private_key(DEVELOPMENT_KEY))
    unsigned = parse_image(build_image(TINY_CONTENTS))
    ours = tmp_path / "ours.img"
    ours.write_bytes(sign_image(unsigned, [signer], algorithm=algorithm, pure=pure, embed_key=embed_key))
    assert "correctly validated" in imgtool("verify", "--key", str(DEVELOPMENT_KEY), str(ours))
    broken = bytearray(ours.read_bytes())
    broken[-1] ^= 1
    ours.write_bytes(broken)
    imgtool("verify", "--key", str(DEVELOPMENT_KEY), str(ours), code=1)


def test_imgtool_reads_from_ours_what_we_wrote(tmp_path: Path) -> None:
    ours = tmp_path / "ours.img"
    ours.write_bytes(
        sign_image(parse_image(build_image(TINY_CONTENTS)), [KeySigner(load_private_key(DEVELOPMENT_KEY))])
    )
    shown = imgtool("dumpinfo", "--format", "json", str(ours))
    for text in ("SEC_CNT", "PUBKEY", "ED25519", "SHA256"):
        assert text in shown


def test_what_imgtool_makes_of_the_same_input_is_what_we_make(tmp_path: Path) -> None:
    signer = KeySigner(load_private_key(DEVELOPMENT_KEY))
    theirs = made(tmp_path, "--public-key-format", "full", "--security-counter", "7", "--erased-val", "0")
    contents = TINY_CONTENTS.__class__(
        PAYLOAD, TINY_CONTENTS.version, LOAD_ADDRESS, HEADER_SIZE, 7, with_chunk_hashes=False
    )
    assert sign_image(parse_image(build_image(contents)), [signer]) == theirs


@pytest.mark.parametrize("key_format", ["hash", "full"])
@pytest.mark.parametrize(
    ("options", "algorithm", "pure"),
    [
        (["--sha", "256"], DigestAlgorithm.SHA256, False),
        (["--sha", "512"], DigestAlgorithm.SHA512, False),
        (["--pure"], DigestAlgorithm.SHA512, True),
    ],
)
def test_imgtools_ed25519_images_are_accepted(
    tmp_path: Path, key_format: str, options: list[str], algorithm: DigestAlgorithm, pure: bool
) -> None:
    image = parse_image(made(tmp_path, "--public-key-format", key_format, "--security-counter", "9", *options))
    assert (image.algorithm, image.pure, image.security_counter) == (algorithm, pure, 9)
    assert (str(image.version), image.load_address, bytes(image.payload)) == ("1.2.3+4", LOAD_ADDRESS, PAYLOAD)
    assert authenticate(image, [TRUSTED], verify_signature) == (TRUSTED,)
    if key_format == "full":
        assert authenticate(image, [FUSES], verify_signature) == (FUSES,)


def test_dependencies_and_boot_records_of_imgtool_are_accepted(tmp_path: Path) -> None:
    data = made(tmp_path, "--dependencies", "(1, 2.3.4+5)", "--boot-record", "NPU")
    image = parse_image(data)
    assert [(need.image, str(need.version)) for need in image.dependencies] == [(1, "2.3.4+5")]
    assert authenticate(image, [TRUSTED], verify_signature) == (TRUSTED,)


def test_imgtool_makes_our_vendor_tlvs(tmp_path: Path) -> None:
    ids = tmp_path / "ids.bin"
    ids.write_bytes((0x4E50).to_bytes(4, "little") + (0x4E51).to_bytes(4, "little"))
    plain = made(tmp_path, "--custom-tlv-file", "0xa0", str(ids))
    assert parse_image(plain).hardware_ids == (0x4E50, 0x4E51)
    # the hashes cover the header, which knows how long the protected TLVs are: once with any hashes, then with these
    chunks = tmp_path / "chunks.bin"
    chunks.write_bytes(bytes(32 * len(hash_chunks(parse_image(plain).loaded_region))))
    options = ("--custom-tlv-file", "0xa0", str(ids), "--custom-tlv-file", "0xa1", str(chunks))
    chunks.write_bytes(b"".join(hash_chunks(parse_image(made(tmp_path, *options)).loaded_region)))
    image = parse_image(made(tmp_path, *options))
    assert len(image.chunk_hashes) == 2
    assert authenticate(image, [TRUSTED], verify_signature) == (TRUSTED,)
    as_text = parse_image(made(tmp_path, "--custom-tlv", "0xa0", "0x504e0000"))
    assert as_text.hardware_ids == (0x4E50,)


@pytest.mark.parametrize(
    ("kind", "defect"),
    [
        ("rsa-2048", Defect.RSA_SIGNATURE),
        ("rsa-3072", Defect.RSA_SIGNATURE),
        ("ecdsa-p256", Defect.ECDSA_SIGNATURE),
        ("ecdsa-p384", Defect.ECDSA_SIGNATURE),
    ],
)
@pytest.mark.parametrize("key_format", ["hash", "full"])
def test_images_signed_otherwise_are_refused_as_such(
    tmp_path: Path, kind: str, defect: Defect, key_format: str
) -> None:
    assert defect_of(made(tmp_path, "--public-key-format", key_format, key=key_of(tmp_path, kind))) is defect


@pytest.mark.parametrize("clear", [[], ["--clear"]])
def test_encrypted_images_are_refused_as_such(tmp_path: Path, clear: list[str]) -> None:
    options = ["--encrypt", str(key_of(tmp_path, "x25519")), *clear]
    assert defect_of(made(tmp_path, *options, ram=False)) is Defect.ENCRYPTED


@pytest.mark.parametrize("options", [["--pad"], ["--confirm"], ["--pad", "--align", "16", "--max-align", "16"]])
def test_padded_images_are_refused_as_such(tmp_path: Path, options: list[str]) -> None:
    assert defect_of(made(tmp_path, *options)) is Defect.PADDED


def test_compressed_images_are_refused_as_such(tmp_path: Path) -> None:
    assert defect_of(made(tmp_path, "--compression", "lzma2", ram=False)) is Defect.COMPRESSED


def test_big_endian_images_are_refused_as_such(tmp_path: Path) -> None:
    assert defect_of(made(tmp_path, "--endian", "big")) is Defect.BIG_ENDIAN


def test_images_that_name_hardware_by_uuid_are_refused_as_such(tmp_path: Path) -> None:
    assert defect_of(made(tmp_path, "--vid", "example.org")) is Defect.UNSUPPORTED_TLV


def test_unsigned_images_are_refused_as_such(tmp_path: Path) -> None:
    assert defect_of(made(tmp_path, key=None)) is Defect.UNSIGNED
