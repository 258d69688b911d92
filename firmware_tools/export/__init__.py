"""The register maps for other tools: C header, SystemRDL, HTML pages, JSON.

`maps.py` says what is exported; read it first. Each format has a module of its own, whose function takes maps and
returns text or plain data: `c_header`, `system_rdl`, `json_map`; `html_pages` writes a folder. `output.py` puts results
in place. Nothing here opens a device. A firmware's build takes its header from here, by `c_header.c_header(maps)` or by
`python -m firmware_tools.export c --map management -o registers.h`.
"""
