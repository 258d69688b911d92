"""Log records decoded: literal texts, several builds in one log, ELF files and records that cannot be trusted."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import emulator.management
from driver_shim.firmware.answers import LogRecord
from firmware_tools import log_strings
from firmware_tools.errors import LogStringsError
from firmware_tools.files import FileTooLarge
from firmware_tools.log_strings import LogStrings, dump, load, parse_elf, read_elf, shipped, split_texts
from firmware_tools.logs import LogDecoder, printable, render
from firmware_tools.reference_firmware.collect_log_strings import main as collect

REFERENCE_ELF = Path(emulator.management.__file__).parent / "firmware" / "reference.elf"
OLD = LogStrings(0x0A0B0C0D, {0: "boot %u", 8: "was %d"}, "old.elf")
NEW = LogStrings(0x1A2B3C4D, {0: "fault at %08x"}, "new.elf")


def record(
    build: LogStrings | int, token: int = 0, *arguments: int, level: int = 1, count: int | None = None
) -> LogRecord:
    """One record of a build."""
    build_id = build if isinstance(build, int) else build.build_id
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return LogRecord(7, build_id, 12_345_678, token, level, len(arguments) if count is None else count, 3, padded)


def small_elf(*sections: tuple[str, bytes], count: int | None = None) -> bytes:
    """A 32-bit little-endian RISC-V ELF file with these sections and nothing else."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in sections) + b".shstrtab\0"
    body, headers, offset, at = b"", [bytes(40)], 52, 1
    for name, content in [*sections, (".shstrtab", names)]:
        headers.append(struct.pack("<10I", at, 3 if name == ".shstrtab" else 1, 0, 0, offset, len(content), 0, 0, 1, 0))
        body += content
        offset += len(content)
        at += len(name) + 1
    number = len(headers) if count is None else count
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    head = struct.pack("<HHIIIIIHHHHHH", 2, 243, 1, 0, 0, offset, 0, 52, 0, 0, 40, number, len(headers) - 1)
    return ident + head + body + b"".join(headers)


NOTE = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes.fromhex("4d3c2b1a") + bytes(16)
TEXTS = b"boot %u\0fault at %08x\0"
GOOD = small_elf((".note.gnu.build-id", NOTE), (".log_strings", TEXTS))


@pytest.mark.parametrize(
    ("text", "arguments", "shown"),
    [
        ("boot %u of %u", (3, 0xFFFF_FFFF), "boot 3 of 4294967295"),
        ("%d and %i", (0xFFFF_FFFE, 5), "-2 and 5"),
        ("%x %X %08x %4x|", (0xAB, 0xAB, 0xAB, 0xAB), "ab AB 000000ab   ab|"),
        ("%c%c%c", (0x41, 0x1B, 0x141), "A\\x1b\\x41"),
        ("%lu%%", (7,), "7%"),
        ("%s %p %", (), "%s %p %"),
        ("%u and %u", (1,), "1 and %u<missing>"),
        ("done", (1, 2), "done [and 1, 2]"),
        ("tab\tbell\a\x1b[2J", (), "tab\\tbell\\x07\\x1b[2J"),
        ("end\n", (), "end"),
    ],
)
def test_texts_with_their_arguments(text: str, arguments: tuple[int, ...], shown: str) -> None:
    assert render(text, arguments) == shown


@given(text=st.text(max_size=200), arguments=st.lists(st.integers(0, 0xFFFF_FFFF), max_size=4))
def test_no_text_breaks_the_terminal_or_grows_without_bound(text: str, arguments: list[int]) -> None:
    shown = render(text, arguments)
    assert shown.isprintable() or not shown
    assert len(shown) <= 100 * (len(text) + 1) + 100
    assert printable(shown) == shown


def test_each_record_is_read_with_the_texts_of_its_own_build() -> None:
    decoder = LogDecoder([OLD, NEW])
    old, new = decoder.decode(record(OLD, 0, 5)), decoder.decode(record(NEW, 0, 0xBEEF, level=3))
    assert (old.text, old.level, old.device_seconds, old.problem) == ("boot 5", "info", 1.2345678, None)
    assert (new.text, new.level) == ("fault at 0000beef", "error")


@pytest.mark.parametrize(
    ("builds", "found", "problem"),
    [
        (
            [OLD],
            record(NEW, 0, 7),
            "written by build 1a2b3c4d; none of the files has that build id (they have 0a0b0c0d)",
        ),
        ([], record(NEW), "written by build 1a2b3c4d; no texts of any build are at hand"),
        ([NEW], record(NEW, 3), "new.elf has no text 0x3"),
        ([NEW], record(NEW, 0, 1, count=9), "damaged: it claims 9 arguments, of 4"),
    ],
)
def test_what_cannot_be_read_is_shown_as_numbers_and_named(
    builds: list[LogStrings], found: LogRecord, problem: str
) -> None:
    decoded = LogDecoder(builds).decode(found)
    assert decoded.problem == problem
    assert decoded.text.startswith(f"text {found.token:#x} (")


@given(
    st.builds(
        LogRecord,
        *[st.integers(0, 0xFFFF_FFFF)] * 2,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, 0x20),
        *[st.integers(0, 0xFF)] * 2,
        st.integers(0, 0xFFFF),
        st.tuples(*[st.integers(0, 0xFFFF_FFFF)] * 4),
    )
)
def test_no_record_breaks_the_decoder(found: LogRecord) -> None:
    for build_id in (found.build_id, NEW.build_id):
        decoded = LogDecoder([OLD, NEW]).decode(found._replace(build_id=build_id))
        assert decoded.text.isprintable()


def test_of_two_files_of_one_build_the_first_counts() -> None:
    other = LogStrings(NEW.build_id, {0: "other"}, "other.elf")
    assert LogDecoder([NEW, other]).decode(record(NEW, 0, 1)).text == "fault at 00000001"


# --- ELF files ------------------------------------------------------------------------------------------------------


def test_texts_of_an_elf_file() -> None:
    found = parse_elf(GOOD, "new.elf")
    assert found == LogStrings(0x1A2B3C4D, {0: "boot %u", 8: "fault at %08x"}, "new.elf")


@pytest.mark.parametrize(
    ("section", "texts"),
    [
        (b"", {}),
        (b"\0\0ab\0\0c\0", {2: "ab", 6: "c"}),
        (b"ab\0not ended", {0: "ab"}),
        (b"x" * 1025 + b"\0y\0", {1026: "y"}),
        (b"\xff\0", {0: "\N{REPLACEMENT CHARACTER}"}),
    ],
)
def test_texts_are_split_where_they_end(section: bytes, texts: dict[int, str]) -> None:
    assert split_texts(section) == texts


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no ELF file"),
        (b"MZ" + bytes(100), "no ELF file"),
        (GOOD[:60], "damaged"),
        (small_elf((".text", b"x")), r"no section \.log_strings"),
        (small_elf((".log_strings", TEXTS)), "no build id"),
        (small_elf((".log_strings", TEXTS), (".note.gnu.build-id", NOTE[:18])), "shorter than 4"),
        (small_elf((".log_strings", TEXTS), (".note.gnu.build-id", bytes(36))), "is no build id"),
        (small_elf((".log_strings", TEXTS), (".note.gnu.build-id", NOTE), count=5000), "5,000 sections|damaged"),
    ],
)
def test_elf_files_that_are_none_of_ours(data: bytes, says: str) -> None:
    with pytest.raises(LogStringsError, match=says):
        parse_elf(data, "bad.elf")


@settings(max_examples=50)
@given(at=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), end=st.integers(0, len(GOOD)))
def test_no_damaged_elf_file_raises_anything_else(at: int, value: int, end: int) -> None:
    damaged = bytearray(GOOD)
    damaged[at] = value
    for data in (bytes(damaged), bytes(damaged[:end]), bytes(damaged[:end]) + bytes(len(GOOD) - end)):
        try:
            parse_elf(data, "damaged.elf")
        except LogStringsError:
            pass


@settings(max_examples=50)
@given(head=st.binary(min_size=36, max_size=36), tail=st.binary(max_size=200))
def test_no_random_header_raises_anything_else(head: bytes, tail: bytes) -> None:
    try:
        parse_elf(GOOD[:16] + head + tail, "random.elf")
    except LogStringsError:
        pass


def test_an_elf_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.elf"
    with path.open("wb") as file:
        file.truncate(log_strings.MAX_ELF_BYTES + 1)
    with pytest.raises(FileTooLarge):
        read_elf(path)


# --- files of texts -------------------------------------------------------------------------------------------------


def test_builds_are_added_to_the_file_and_none_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elf, output = tmp_path / "new.elf", tmp_path / "texts.json"
    elf.write_bytes(GOOD)
    output.write_text(dump([OLD]), "ascii")
    assert collect([str(elf), "-o", str(output)]) == 0
    assert {build.build_id: dict(build.texts) for build in load(output)} == {
        0x0A0B0C0D: {0: "boot %u", 8: "was %d"},
        0x1A2B3C4D: {0: "boot %u", 8: "fault at %08x"},
    }
    before = output.read_bytes()
    assert collect([str(elf), "-o", str(output)]) == 0
    assert output.read_bytes() == before
    assert collect([str(output), "-o", str(output)]) == 1
    assert "no ELF file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2, "builds": {}}', '{"version": 1, "builds": {"xyz": {}}}', "[" * 100_000]
)
def test_a_file_that_holds_no_texts_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "texts.json"
    path.write_text(text, "ascii")
    with pytest.raises(LogStringsError, match=r"texts\.json"):
        load(path)


def test_the_shipped_texts_are_those_of_the_shipped_firmware() -> None:
    built = read_elf(REFERENCE_ELF)
    found = {build.build_id: build.texts for build in shipped()}
    assert found[built.build_id] == built.texts, "run python -m firmware_tools.reference_firmware.collect_log_strings"
    assert json.loads(log_strings.SHIPPED.read_text("ascii"))["version"] == log_strings.FILE_VERSION
