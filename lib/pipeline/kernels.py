"""The Jupyter kernel that a job's notebook runs in, and what is known of it when it dies."""

import signal
import subprocess
import sys
from pathlib import Path

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

LINES_SHOWN = 20


class JobKernel(AsyncKernelManager):
    """The kernel of one job: this environment's Python, reached through sockets in a folder.

    Jupyter would look for a kernel called ``python3`` and may find another environment's. Ports
    are not used: one that was free when it was chosen may be taken when the kernel asks for it,
    and every user of the machine can reach it.

    papermill makes the instance itself and does not hand it out. So what belongs to the job is
    kept by a class of its own (``for_job``).
    """

    folder: Path
    process: subprocess.Popen | None = None
    ran_out_of_memory = False

    @classmethod
    def for_job(cls, folder: Path) -> type["JobKernel"]:
        """The class of the kernel whose sockets and messages lie in ``folder``."""
        return type(cls.__name__, (cls,), {"folder": folder})

    def __init__(self, **options):
        options |= {"transport": "ipc", "connection_file": str(self.folder / "kernel.json")}
        super().__init__(**options)
        self._kernel_spec = KernelSpec(**get_kernel_dict())

    async def _async_launch_kernel(self, kernel_cmd, **options):
        with open(self.folder / "stderr", "wb") as stream:
            await super()._async_launch_kernel(kernel_cmd, **options, stderr=stream)
        type(self).process = self.provisioner.process

    @classmethod
    def messages(cls) -> str:
        """The last lines that the kernel wrote to its standard error."""
        path = cls.folder / "stderr"
        if not path.exists():
            return ""
        lines = path.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-LINES_SHOWN:])

    @classmethod
    def cause_of_death(cls, answered: bool) -> str:
        """Why the kernel has ended, in a sentence. answered: it had started its work.

        Memory is named only where such a kernel was killed: that is what the system does when
        memory runs out. Any other kernel is described by its exit and by what it said itself.
        """
        status = cls.process.poll() if cls.process else None
        if answered and status == -signal.SIGKILL:
            cls.ran_out_of_memory = True
            return (
                "its kernel was killed, as the system does when memory runs out. Close other "
                "programs or run fewer jobs at once (JOBS=1), then call the same command again."
            )
        when = "at work" if answered else "before it answered"
        ended = describe_exit(status)
        message = cls.messages() or "it wrote no message"
        return f"its kernel ({sys.executable}) ended {when}{ended}: {message}."


def describe_exit(status: int | None) -> str:
    """`` with exit status 1``, `` by SIGTERM``, or nothing where no status is known."""
    if status is None:
        return ""
    if status >= 0:
        return f" with exit status {status}"
    return f" by {signal.Signals(-status).name}"
