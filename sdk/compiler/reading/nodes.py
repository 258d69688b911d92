"""What a node says of its operator: which one it is, in which meaning, with which attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from sdk.compiler import contrib
from sdk.compiler.graph import Graph
from sdk.compiler.host_constants import CONSTANTS
from sdk.compiler.inlining import function_refusal
from sdk.compiler.problems import Reason, Subject
from sdk.compiler.reading.text import COMPUTED_WITH, DECODE_ERRORS, DEFAULT_DOMAINS, ModelText

_UNLIMITED = 2**31 - 1
"""Inputs that a schema allows where it sets no limit."""


class NodeText:
    """One node being read.

    `read_inner` reads a graph within it. A node of the `outermost` graph may hold constants of types that the device
    does not have.
    """

    def __init__(
        self,
        text: ModelText,
        proto: onnx.NodeProto,
        subject: Subject,
        read_inner: Callable[[onnx.GraphProto], Graph],
        *,
        outermost: bool,
    ) -> None:
        self._text = text
        self._proto = proto
        self._subject = subject
        self._read_inner = read_inner
        self._outermost = outermost

    def read(self) -> tuple[int, dict[str, Any]]:
        """(opset version that gave the operator its meaning, the node's attributes), as far as they are right."""
        opset, handled = self._text.opset, self._text.handled
        if self._proto.domain not in DEFAULT_DOMAINS:
            return self._foreign_operator()
        if not opset:  # which operators there are depends on it
            return 0, {}
        if not onnx.defs.has(self._proto.op_type, opset):
            if self._proto.op_type in contrib.UNDER_ONNX and self._proto.op_type in handled:
                return self._form(contrib.UNDER_ONNX[self._proto.op_type])
            known = onnx.defs.has(self._proto.op_type) or self._proto.op_type in handled
            reason = f"the operator does not exist in opset {opset}" if known else "ONNX has no operator of this name"
            self._note(reason)
            return 0, {}
        if self._proto.op_type not in handled:
            self._note("the operator is not supported", Reason.OPERATOR)
            return 0, {}
        return self._form(onnx.defs.get_schema(self._proto.op_type, opset, ""))

    def _foreign_operator(self) -> tuple[int, dict[str, Any]]:
        """The same for an operator that is none of ONNX's own."""
        schema = contrib.SCHEMAS.get(self._proto.op_type) if self._proto.domain == contrib.DOMAIN else self._preview()
        if schema is None or key_of(self._proto) not in self._text.handled:
            refusal = function_refusal(self._text.model, self._proto)
            foreign = f"operators of the domain {self._proto.domain!r} are not supported", Reason.DOMAIN
            reason, code = refusal or foreign
            self._note(reason, code)
            return 0, {}
        return self._form(schema)

    def _preview(self) -> Any:
        """The schema of an operator that ONNX has in another domain than its default one; None where it has none."""
        version = self._text.versions.get(self._proto.domain, 1)
        known = onnx.defs.has(self._proto.op_type, version, self._proto.domain)
        return onnx.defs.get_schema(self._proto.op_type, version, self._proto.domain) if known else None

    def _form(self, schema: Any) -> tuple[int, dict[str, Any]]:
        """The same, as the operator's schema has it."""
        attributes = self._attributes(schema)
        if not schema.min_input <= len(self._proto.input) <= schema.max_input:
            takes = _range(schema.min_input, schema.max_input)
            self._note(f"{len(self._proto.input)} inputs; the operator takes {takes}")
        if not schema.min_output <= len(self._proto.output) <= schema.max_output:
            has = _range(schema.min_output, schema.max_output)
            self._note(f"{len(self._proto.output)} outputs; the operator has {has}")
        return schema.since_version, attributes

    def _attributes(self, schema: Any) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for attribute in self._proto.attribute:
            declared = schema.attributes.get(attribute.name)
            if declared is None or attribute.ref_attr_name or int(declared.type) != attribute.type:
                self._note(f"the attribute {attribute.name!r} is unknown or of a wrong type")
                continue
            attributes[attribute.name] = self._attribute(attribute)
        given = {attribute.name for attribute in self._proto.attribute}
        missing = [name for name, declared in schema.attributes.items() if declared.required and name not in given]
        for name in missing:
            self._note(f"the attribute {name!r} is missing")
        return attributes

    def _attribute(self, attribute: onnx.AttributeProto) -> Any:
        if attribute.type == onnx.AttributeProto.TENSOR:
            what = f"the attribute {attribute.name!r}: "
            if self._outermost and self._proto.op_type in CONSTANTS and attribute.t.data_type in COMPUTED_WITH:
                return self._text.array_of_any_type(attribute.t, self._subject, what)
            return self._text.array(attribute.t, self._subject, what)
        if attribute.type == onnx.AttributeProto.GRAPH:
            return self._read_inner(attribute.g)
        try:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
        except DECODE_ERRORS as error:
            self._note(f"the attribute {attribute.name!r} is damaged: {error}")
            return None

    def _note(self, reason: str, code: Reason = Reason.MALFORMED) -> None:
        self._text.note(reason, self._subject, code)


def key_of(proto: onnx.NodeProto) -> str:
    """What the operator goes by: its name, after the domain where that is not ONNX's own."""
    return proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}.{proto.op_type}"


def _range(least: int, most: int) -> str:
    """How many a schema allows."""
    if most >= _UNLIMITED:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"
