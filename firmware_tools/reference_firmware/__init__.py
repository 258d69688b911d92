"""The firmware that comes with the emulator, and the development key that signs it.

README.md tells what it does and how to write another. `build.py` compiles `src/` with a cross compiler, `linker.ld`
says what lies where, and `protocol_header.py` tells C what `driver_shim.protocol` declares.

`development_key.pem` is public: a signature made with it proves nothing.
"""
