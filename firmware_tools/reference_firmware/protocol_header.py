"""Structures, numbers and tables of `driver_shim.protocol` as a C header, for the firmware's build.

The registers' header is `firmware_tools.export`'s; this is what firmware needs beside registers: the layouts as packed
structs that prove their own offsets, the constants around them, and the lengths of mailbox requests.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

from driver_shim.protocol import firmware_slots, image_layout, mailbox
from driver_shim.protocol.layout import FieldSpec, Layout

_LAYOUTS = (
    *mailbox.ALL_LAYOUTS,
    firmware_slots.BOOT_STATE,
    image_layout.IMAGE_HEADER,
    image_layout.TLV_INFO,
    image_layout.TLV_ENTRY,
    image_layout.IMAGE_DEPENDENCY,
)
_CONSTANTS = {
    "BODY_BYTES": mailbox.BODY_BYTES,
    "STAGE_BYTES": mailbox.STAGE_BYTES,
    "LOG_ARGUMENTS": mailbox.LOG_ARGUMENTS,
    "LOG_RECORDS_AT_ONCE": mailbox.LOG_RECORDS_AT_ONCE,
    "ERASED": firmware_slots.ERASED,
    "BOOT_STATE_MAGIC": firmware_slots.BOOT_STATE_MAGIC,
    "BOOT_STATE_VERSION": firmware_slots.BOOT_STATE_VERSION,
    "BOOT_STATE_MAX_SEQUENCE": firmware_slots.MAX_SEQUENCE,
    "IMAGE_MAGIC": image_layout.IMAGE_MAGIC,
    "PROTECTED_INFO_MAGIC": image_layout.PROTECTED_INFO_MAGIC,
    "UNPROTECTED_INFO_MAGIC": image_layout.UNPROTECTED_INFO_MAGIC,
    "MAX_AREA_BYTES": image_layout.MAX_AREA_BYTES,
    "MIN_CHUNK_BYTES": image_layout.MIN_CHUNK_BYTES,
    "MAX_CHUNKS": image_layout.MAX_CHUNKS,
    "PUBLIC_KEY_BYTES": image_layout.PUBLIC_KEY_BYTES,
    "SIGNATURE_BYTES": image_layout.SIGNATURE_BYTES,
    "MAX_SIGNATURES": image_layout.MAX_SIGNATURES,
    "SHA256_BYTES": image_layout.DigestAlgorithm.SHA256.size,
    "SHA512_BYTES": image_layout.DigestAlgorithm.SHA512.size,
}
_ENUMERATIONS: tuple[type[enum.IntEnum] | type[enum.IntFlag], ...] = (
    image_layout.TlvKind,
    image_layout.ImageFlag,
    firmware_slots.ProvenSlot,
)
_ALIGNMENT = 4
"""Of every structure where it lies in memory; what lies elsewhere is copied first."""


def protocol_header() -> str:
    """The text of `npu_protocol.h`."""
    lines = [
        "/* Generated from driver_shim/protocol at every build; edit the declarations instead. */",
        "#ifndef NPU_PROTOCOL_H",
        "#define NPU_PROTOCOL_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        *(f"#define NPU_{name} {value:#x}u" for name, value in _CONSTANTS.items()),
        "",
        "/* DER in front of an Ed25519 key's 32 bytes. */",
        f"#define NPU_SPKI_PREFIX {{{', '.join(f'{byte:#04x}' for byte in image_layout.SPKI_PREFIX)}}}",
        f"#define NPU_SPKI_PREFIX_BYTES {len(image_layout.SPKI_PREFIX)}u",
    ]
    for kind in _ENUMERATIONS:
        lines += ["", *_enumeration(kind)]
    lines += ["", *_request_bodies()]
    for layout in _LAYOUTS:
        lines += ["", *_structure(layout)]
    return "\n".join([*lines, "", "#endif"]) + "\n"


def _enumeration(kind: type[enum.IntEnum] | type[enum.IntFlag]) -> Iterator[str]:
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).upper()
    for member in kind:
        yield f"#define NPU_{prefix}_{member.name} {int(member):#x}u"


def _request_bodies() -> Iterator[str]:
    yield "/* Each command with the shortest and the longest body of its request: X(command, shortest, longest). */"
    yield "#define NPU_REQUEST_BODIES(X) \\"
    rows = [
        f"    X(NPU_MAILBOX_COMMAND_{command.name}, {shortest}u, {longest}u)"
        for command, (shortest, longest) in mailbox.REQUEST_BODIES.items()
    ]
    yield " \\\n".join(rows)


def _structure(layout: Layout) -> Iterator[str]:
    name = f"struct npu_{layout.name}"
    yield f"{name} {{"
    end = 0
    for field in sorted(layout.fields.values(), key=lambda field: field.offset):
        yield from _gap(end, field.offset)
        yield f"    {_declaration(field)};"
        end = field.offset + field.size
    yield from _gap(end, layout.size)
    yield f"}} __attribute__((packed, aligned({_ALIGNMENT})));"
    yield f'_Static_assert(sizeof({name}) == {layout.size}, "{layout.name}");'
    for field in layout.fields.values():
        yield f'_Static_assert(offsetof({name}, {field.name}) == {field.offset}, "{layout.name}.{field.name}");'


def _gap(end: int, start: int) -> Iterator[str]:
    if start > end:
        yield f"    uint8_t reserved_{end}[{start - end}];"


def _declaration(field: FieldSpec) -> str:
    if field.format.endswith("s"):
        return f"uint8_t {field.name}[{field.size}]"
    count = f"[{field.elements}]" if field.elements > 1 else ""
    return f"uint{field.bits}_t {field.name}{count}"
