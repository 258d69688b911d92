"""The register maps as HTML pages, made by PeakRDL from the SystemRDL description."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from firmware_tools.errors import extra_missing
from firmware_tools.export.maps import CONTRACT, ExportedMap
from firmware_tools.export.output import write_folder
from firmware_tools.export.system_rdl import PROPERTIES, system_rdl

_REMOTE_SCRIPT = re.compile(r"<script[^>]*https?://[^>]*></script>")
_NO_FORMULAS = "<script>var MathJax = {Hub: {Queue: function () {}}};</script>"
"""Our texts have none to render."""


def write_html(maps: Sequence[ExportedMap], folder: Path) -> None:
    """Make the pages in `folder`; begin with index.html.

    Raises ExtraMissing without PeakRDL, ForeignOutput when `folder` holds anything that no export made, OSError.
    """
    try:
        from peakrdl_html import HTMLExporter
        from systemrdl import RDLCompiler
    except ImportError as error:
        raise extra_missing(error) from error

    compiler = RDLCompiler()
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "registers.rdl"
        source.write_text(system_rdl(maps), "utf-8")
        compiler.compile_file(str(source))
        tops = [compiler.elaborate(each.name) for each in maps]
        exporter = HTMLExporter(extra_doc_properties=list(PROPERTIES), generate_source_links=False)

        def fill(fresh: Path) -> None:
            exporter.export(tops, str(fresh), title=f"NPU registers, contract {CONTRACT}", footer="")
            _forget_other_hosts(fresh / "index.html")

        write_folder(folder, fill)


def _forget_other_hosts(page: Path) -> None:
    """PeakRDL's page loads a formula renderer from the network, and stops half-way where there is none."""
    page.write_text(_REMOTE_SCRIPT.sub(_NO_FORMULAS, page.read_text("utf-8")), "utf-8")
