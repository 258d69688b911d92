"""Unicorn's registers at the price of one foreign call, a third of what its Python binding takes.

Every CSR instruction reads two or three of them.
"""

from __future__ import annotations

import ctypes

import unicorn
from unicorn import riscv_const
from unicorn.unicorn_py3.unicorn import uclib

_X0 = riscv_const.UC_RISCV_REG_X0
_PC = riscv_const.UC_RISCV_REG_PC


class EngineRegisters:
    """The general registers and the pc."""

    def __init__(self, engine: unicorn.Uc) -> None:
        """The engine must outlive this object."""
        self._handle = engine._uch
        self._value = ctypes.c_uint32()
        self._reference = ctypes.byref(self._value)
        self._read = uclib.uc_reg_read
        self._write = uclib.uc_reg_write

    def read(self, number: int) -> int:
        """x0 to x31."""
        self._read(self._handle, _X0 + number, self._reference)
        return self._value.value

    def write(self, number: int, value: int) -> None:
        """x0 stays zero."""
        if number:
            self._value.value = value
            self._write(self._handle, _X0 + number, self._reference)

    def read_pc(self) -> int:
        """Within a hook: of the current instruction, or behind it after an exception."""
        self._read(self._handle, _PC, self._reference)
        return self._value.value

    def write_pc(self, value: int) -> None:
        """Within a hook: go on there instead."""
        self._value.value = value
        self._write(self._handle, _PC, self._reference)
