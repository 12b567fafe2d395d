"""Kernels of this Python."""

import sys
from typing import Any

from jupyter_client.manager import AsyncKernelManager


class OwnKernelManager(AsyncKernelManager):
    """Starts kernels on the running Python, whatever the kernel specification ``python3`` of this machine names."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        arguments = kernel_cmd[kernel_cmd.index("-f") :]
        await super()._async_launch_kernel([sys.executable, "-m", "ipykernel_launcher", *arguments], **kw)

    _launch_kernel = _async_launch_kernel
