"""One module a register block of the function."""
