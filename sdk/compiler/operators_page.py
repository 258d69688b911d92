"""The page docs/operators.md: which of ONNX's operators run, from which opset, with which limits.

`python -m sdk.compiler.operators_page > docs/operators.md`
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import onnx

from driver_shim.protocol.types import PACKED, WireType
from sdk.compiler.compile import HANDLED
from sdk.compiler.inlining import BY_THEIR_BODIES
from sdk.compiler.lowering import LOWERINGS
from sdk.compiler.problems import Reason
from sdk.compiler.reader import MIN_OPSET

CODES: dict[Reason, str] = {
    Reason.MALFORMED: "The model itself is wrong. It runs nowhere.",
    Reason.INTERFACE: "An input, output or initialiser is no dense tensor. It runs nowhere.",
    Reason.OPSET: f"ONNX's own operators are older than opset {MIN_OPSET}, or newer than the onnx package knows.",
    Reason.OPERATOR: "The device has no command for the operator.",
    Reason.DOMAIN: "The operator is of a domain that is not known here.",
    Reason.TYPE: "It reads or gives elements of a type that the device does not have.",
    Reason.FORM: "The operator runs, but not with these attributes, operands or shapes.",
    Reason.DATA: "The shape of what it gives depends on what its operands hold.",
    Reason.BETWEEN: "It computes nothing, and what it reads or what reads it is on the host.",
}
"""What the codes of refusals and of `model.report` mean."""

_LIMIT = re.compile(r"not supported|must be constant|\bonly\b|at most|training|not possible|shape of")
"""Texts of refusals that say what the device does not do; others say what is wrong with a model."""
_UNNAMED = "…"
_CHOSEN_BY_COMPILER = frozenset({"If", "Loop", "Scan"})


def render() -> str:
    """The whole page as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    schemas = _newest_schemas()
    own = [name for name in schemas if name in HANDLED]
    by_body = [name for name in schemas if name in BY_THEIR_BODIES - HANDLED]
    foreign = sorted(name for name in LOWERINGS if name not in schemas)
    yield "# Operators"
    yield ""
    yield f"Of the {len(schemas)} operators that ONNX has in opset {onnx.defs.onnx_opset_version()},"
    yield f"{len(own)} are lowered to the device's commands, and {len(by_body)} run by the function that ONNX defines"
    yield f"for them. Generated from `{__package__.replace('.', '/')}/`: edit the lowerings, then run"
    yield "`python -m sdk.compiler.operators_page > docs/operators.md`."
    yield ""
    types = ", ".join(kind.text for kind in WireType if kind is not WireType.INT64 and kind not in PACKED)
    yield f"Models of opset {MIN_OPSET} and later are taken, and each operator in every meaning that it had since;"
    yield "those of opset 6 are converted."
    yield f"Types on the wire are {types}, and int64 whose values fit 32 bits;"
    yield f"those of constants also {' and '.join(sorted(kind.text for kind in PACKED))}."
    yield "What the last column names is refused with the node's name, or left to the host with"
    yield '`fallback="cpu"`;'
    yield "`npuctl compile --check MODEL` says which of a model's nodes that concerns."
    yield ""
    yield "## Reasons"
    yield ""
    yield "`UnsupportedModel.problems` and `model.report` have these codes; they never change meaning."
    yield ""
    yield "| code | meaning |"
    yield "|---|---|"
    for reason in Reason:
        yield f"| `{reason.value}` | {CODES[reason]} |"
    yield ""
    yield "## ONNX"
    yield ""
    yield "| operator | from opset | runs | limits |"
    yield "|---|---|---|---|"
    for name, schema in schemas.items():
        yield f"| {name} | {_from_opset(name, schema)} | {_how(name)} | {_limits(name)} |"
    if foreign:
        yield ""
        yield "## Of other domains"
        yield ""
        yield "| operator | limits |"
        yield "|---|---|"
        for name in foreign:
            yield f"| {name} | {_limits(name)} |"


def _newest_schemas() -> dict[str, Any]:
    """The newest meaning of each operator of ONNX's own domain that is not deprecated, by name."""
    newest = onnx.defs.onnx_opset_version()
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    found = {name: onnx.defs.get_schema(name, newest, "") for name in names}
    return {name: schema for name, schema in found.items() if not schema.deprecated or name in HANDLED}


@functools.cache
def _first_versions() -> dict[str, int]:
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(schema.since_version, first.get(schema.name, schema.since_version))
    return first


def _from_opset(name: str, schema: Any) -> str:
    since = max(MIN_OPSET, _first_versions().get(name, schema.since_version))
    return str(since) if name in HANDLED | BY_THEIR_BODIES else "–"


def _how(name: str) -> str:
    if name in _CHOSEN_BY_COMPILER:
        return "while compiling"
    if name in HANDLED:
        return "commands"
    return "by its body" if name in BY_THEIR_BODIES else "no"


def _limits(name: str) -> str:
    lowering = LOWERINGS.get(name)
    if lowering is None:
        return ""
    return "; ".join(text.replace("|", "\\|") for text in _refusals(lowering))


@functools.cache
def _refusals(lowering: Any) -> tuple[str, ...]:
    """What a lowering says where it refuses a node for what the device does not do."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(lowering)))
    except (OSError, TypeError, SyntaxError):
        return ()
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        called = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        if called == "Refused" and call.args:
            found.append(_text(call.args[0]))
        elif called in ("constant_ints", "constant_float") and len(call.args) > 1:
            found.append(f"its {_text(call.args[1])} must be constant")
    return tuple(dict.fromkeys(text for text in found if _LIMIT.search(text)))


def _text(node: ast.expr) -> str:
    """A message in the source, with what is filled in left open."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _UNNAMED for part in node.values)
    return _UNNAMED


if __name__ == "__main__":
    sys.stdout.write(render())
