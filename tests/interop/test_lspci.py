"""lspci understands every byte of configuration space."""

from __future__ import annotations

import subprocess
from pathlib import Path

from emulator.function.blocks.config_space import ConfigSpace
from tests.support.needs import needs_program

LSPCI_LIMIT_S = 30.0
CAPABILITY_LINES = (
    "[40] Power Management version 3",
    "[50] MSI-X: Enable- Count=32 Masked-",
    "Vector table: BAR=0 offset=00008000",
    "PBA: BAR=0 offset=0000c000",
    "[60] Express (v2) Endpoint",
    "FLReset+",
    "NoSoftRst+",
    "[100 v2] Advanced Error Reporting",
    "[150 v1] Device Serial Number 11-22-33-44-55-66-77-88",
)


@needs_program("lspci")
def test_lspci_parses_every_capability(tmp_path: Path) -> None:
    octets = ConfigSpace({0: 0x1_0000, 2: 0x2_0000, 4: 0x4_0000_0000}, 0x1122334455667788, 32).read(0, 4096)
    dump = tmp_path / "dump"
    lines = [f"{at:02x}: {octets[at : at + 16].hex(' ')}" for at in range(0, 4096, 16)]
    dump.write_text("\n".join(["01:00.0 function", *lines, ""]))
    shown = subprocess.run(
        ["lspci", "-F", str(dump), "-vv", "-n"], capture_output=True, text=True, timeout=LSPCI_LIMIT_S, check=True
    ).stdout
    assert shown.startswith("01:00.0 1200: b7c4:4e50\n")
    for line in CAPABILITY_LINES:
        assert line in shown
    for complaint in ("Unknown", "unknown", "!!!", "<access denied>", "#"):
        assert complaint not in shown.replace("Port #0", "")
