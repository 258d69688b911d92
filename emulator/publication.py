"""The file in the runtime folder by which `npuctl list` finds a served emulator."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from driver_shim.shared.runtime_folder import (
    PUBLICATION_SUFFIX,
    PUBLICATION_VERSION,
    Publication,
    device_file_name,
    make_runtime_folder,
    process_start_time,
    runtime_folder,
)
from driver_shim.shared.whole_file import replace_whole

_logger = logging.getLogger("npu.emulator")


class PublishedEmulator:
    """A publication of this process; `withdraw` removes it."""

    def __init__(
        self,
        socket_path: Path,
        profile: str,
        serial: str,
        kernels: str,
        usbip_port: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """Publish. A folder that cannot be written is no reason not to serve: it is logged."""
        address = f"vfio-user:{socket_path.resolve()}"
        name = device_file_name(address)
        self._path: Path | None = (folder or runtime_folder()) / f"{name}{PUBLICATION_SUFFIX}"
        record = Publication(
            version=PUBLICATION_VERSION,
            address=address,
            pid=os.getpid(),
            start_time=process_start_time(os.getpid()) or 0,
            profile=profile,
            serial=serial,
            kernels=kernels,
            since=time.time(),
            usbip_port=usbip_port,
        )
        try:
            make_runtime_folder(self._path.parent)
            replace_whole(self._path, json.dumps(record).encode())
        except OSError as error:
            _logger.warning("not published in %s: %s", self._path.parent, error.strerror)
            self._path = None

    def withdraw(self) -> None:
        """Remove the publication; idempotent."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
