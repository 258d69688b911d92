"""The firmware that comes with the emulator, and the development key that signs it.

`development_key.pem` is public: a signature made with it proves nothing.
"""
