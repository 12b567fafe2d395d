"""Kernels of this Python; of many runs in a worker, with the packages already imported: one import for all."""

import atexit
import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from typing import Any

from jupyter_client.manager import AsyncKernelManager

PRELOADED = ("joblib", "torch", "transformers.modeling_utils", "seaborn", "toastlib.plots", "ipykernel.kernelapp")
"""What nearly every notebook imports, and takes seconds. They start no threads but those that survive a fork (BLAS)."""
CAN_FORK = sys.platform == "linux"


class OwnKernelManager(AsyncKernelManager):
    """Starts kernels on the running Python, whatever the kernel specification ``python3`` of this machine names."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        arguments = kernel_cmd[kernel_cmd.index("-f") :]
        await super()._async_launch_kernel([sys.executable, "-m", "ipykernel_launcher", *arguments], **kw)

    _launch_kernel = _async_launch_kernel


class ForkedKernelManager(AsyncKernelManager):
    """Starts each kernel as a fork of a process that has imported `PRELOADED`; the rest is as jupyter_client does it.

    The forking process is multiprocessing's fork server. It ends with this process, and the kernels end with it.
    """

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        arguments = kernel_cmd[kernel_cmd.index("-f") :]
        process = context.Process(target=_kernel, args=(arguments, kw.get("env"), kw.get("cwd")))
        process.start()
        provisioner = self.provisioner
        provisioner.process, provisioner.pid, provisioner.pgid = Forked(process), process.pid, None
        self._reconcile_connection_info(provisioner.connection_info)

    _launch_kernel = _async_launch_kernel


class Forked:
    """A process of multiprocessing with the methods of `subprocess.Popen` that jupyter_client calls."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.pid, self.kill, self.terminate = process.pid, process.kill, process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _kernel(arguments: list[str], environment: dict[str, str] | None, folder: str | None) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    if folder:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment or {}, JPY_PARENT_PID=str(os.getppid()))
    try:
        IPKernelApp.launch_instance(arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing's processes end without them
