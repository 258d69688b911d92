"""A program's operations while passes rewrite them, with how often each value is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from driver_shim.protocol.program_commands import CommandKind
from sdk.compiler.ir import Operation, Value, infer


class Rewriting:
    """Operations in execution order. An operation that takes another's place gives the same values."""

    def __init__(self, operations: Sequence[Operation], outputs: Sequence[Value]) -> None:
        self.operations = list(operations)
        self.outputs = outputs
        self._uses = Counter(id(value) for operation in operations for value in operation.inputs if value is not None)
        self._given = {id(value) for value in outputs}
        self._absorbed: set[int] = set()

    def is_given(self, value: Value) -> bool:
        """Whether it is an output of the program."""
        return id(value) in self._given

    def is_used(self, operation: Operation) -> bool:
        """Whether anything reads what the operation gives."""
        return any(map(self._is_read, operation.outputs))

    def _is_read(self, value: Value) -> bool:
        return bool(self._uses[id(value)]) or self.is_given(value)

    def give(self, value: Value) -> None:
        """Keep the operation that gives a value, whether or not anything reads it."""
        self._given.add(id(value))

    def sole(self, value: Value | None) -> Operation | None:
        """The operation that gives a value, when that is all it gives and the value is read once, by one operation."""
        if value is None or value.producer is None or len(value.producer.outputs) != 1:
            return None
        return value.producer if self._uses[id(value)] == 1 and not self.is_given(value) else None

    def inner(self, root: Operation, operations: Sequence[Operation]) -> list[Operation]:
        """Those of the operations that nothing reads but each other and the root."""
        kept = list(operations)
        while True:
            reads = Counter(id(value) for operation in (*kept, root) for value in operation.inputs if value is not None)
            inner = [operation for operation in kept if self._reads_only(operation, reads)]
            if len(inner) == len(kept):
                return inner
            kept = inner

    def _reads_only(self, operation: Operation, reads: Counter[int]) -> bool:
        """Whether all that read an operation's outputs are counted in `reads`."""
        return all(
            self._uses[id(value)] == reads[id(value)] and not self.is_given(value) for value in operation.outputs
        )

    def insert(
        self,
        position: int,
        kind: CommandKind,
        inputs: Sequence[Value | None],
        fields: Mapping[str, Any],
        nodes: Sequence[str],
    ) -> Value:
        """Put a new operation before that at `position`; returns its first output, which is its only one.

        Raises Refused when there is no such command.
        """
        attributes, types = infer(kind, inputs, fields)
        new = Operation(kind, attributes, tuple(inputs), tuple(nodes))
        new.outputs = (Value(types[0], producer=new),)
        self.operations.insert(position, new)
        self._uses.update(id(value) for value in new.inputs if value is not None)
        return new.outputs[0]

    def replace(
        self,
        position: int,
        kind: CommandKind,
        inputs: Sequence[Value | None],
        fields: Mapping[str, Any],
        absorbed: Sequence[Operation] = (),
    ) -> Operation:
        """Put one operation in place of that at `position` and of the `absorbed` ones, which nothing else reads.

        Raises Refused when there is no such command, ValueError when it would not
        give the same types. Outputs that nothing reads need not be given.
        """
        old = self.operations[position]
        attributes, types = infer(kind, inputs, fields)
        kept = old.outputs[: len(types)]
        dropped = old.outputs[len(types) :]
        if [value.type for value in kept] != list(types[: len(kept)]) or any(map(self._is_read, dropped)):
            raise ValueError(f"{kind.name} would give {list(map(str, types))}")
        nodes = dict.fromkeys(node for operation in (*absorbed, old) for node in operation.nodes)
        new = Operation(kind, attributes, tuple(inputs), tuple(nodes), kept)
        for value in new.outputs:
            value.producer = new
        self.operations[position] = new
        self._uses.update(id(value) for value in new.inputs if value is not None)
        for operation in (old, *absorbed):
            self._forget(operation)
        self._absorbed.update(map(id, absorbed))
        return new

    def fold_away(self, position: int, constants: Sequence[Any]) -> None:
        """Make constants of an operation's outputs."""
        operation = self.operations[position]
        for value, array in zip(operation.outputs, constants, strict=True):
            value.source, value.producer = array, None

    def keep(self, wanted: Callable[[Operation], bool]) -> None:
        """Drop the operations that are not wanted, the last first, and those that others absorbed."""
        kept = []
        for operation in reversed(self.operations):
            if id(operation) in self._absorbed:
                continue
            if wanted(operation):
                kept.append(operation)
            else:
                self._forget(operation)
        self.operations = kept[::-1]

    def drop_absorbed(self) -> None:
        """Drop the operations that others absorbed."""
        self.operations = [operation for operation in self.operations if id(operation) not in self._absorbed]

    def _forget(self, operation: Operation) -> None:
        """The operation reads its operands no more."""
        self._uses.subtract(id(value) for value in operation.inputs if value is not None)


Pass = Callable[[Rewriting], None]
