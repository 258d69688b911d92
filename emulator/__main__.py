"""`python -m emulator`: see `emulator/serve.py`."""

from emulator.serve import main

raise SystemExit(main())
