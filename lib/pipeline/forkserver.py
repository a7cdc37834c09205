"""Jobs and kernels as forks of one process that has imported torch and all the rest once, in place of seconds of imports in each of them.

``python -m lib.pipeline.forkserver serve COMMAND...`` runs a command and, as long as it lasts, listens on a socket that it names to the command.
``python -m lib.pipeline.forkserver run MODULE:FUNCTION ARGUMENT...`` calls a function in a fork of that process and behaves as if it ran here: the fork has
this process's arguments, environment, folder and streams, gets the signals that are sent to this one, ends when this one does, and its exit status
is this one's. Where nothing listens (a machine of a cluster, another system than Linux, a notebook by itself), the function is called here.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys

SOCKET = "COMPANION_FORKSERVER"  # the environment variable that names the socket
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LENGTH = struct.Struct("!I")
# What jobs and kernels import before they do anything of their own, and what most notebooks import later.
PRELOADED = (
    "lib.pipeline.jobs",
    "papermill",
    "lib.pipeline.site",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "torch",
    "torchvision",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_pdf",
    "matplotlib.backends.backend_svg",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "lib.claims.tables",
    "lib.training.loop",
)


def is_possible() -> bool:
    """Whether this system forks processes and watches them as it is done here."""
    try:
        os.close(os.pidfd_open(os.getpid()))  # Linux, and not in every container
    except (AttributeError, OSError):
        return False
    return True


def end_with_parent() -> None:
    """In a child: be asked to stop when the parent dies, also of SIGKILL (Linux; elsewhere the locks alone keep order).

    It can be interrupted, too, where a shell started all in the background, with SIGINT ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


# ---------------------------------------------------------------------------------------------------------------- whoever asks
def run(words: list[str]) -> int | str | None:
    """Call the function words[0] (module:function) with the other words as its command line, in a fork if a server listens; its exit status."""
    connection = _connect()
    return _run_there(connection, words) if connection else _run_here(words)


def _connect() -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect("\0" + os.environ[SOCKET])
    except (KeyError, OSError):
        connection.close()
        return None
    return connection


def _run_here(words: list[str]) -> int | str | None:
    sys.argv = list(words)
    return pkgutil.resolve_name(words[0])()


def _run_there(connection: socket.socket, words: list[str]) -> int:
    end_with_parent()
    request, said = (
        json.dumps(
            {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        ).encode(),
        "",
    )
    with connection, connection.makefile("r") as answers, contextlib.suppress(ConnectionError):
        socket.send_fds(connection, [LENGTH.pack(len(request))], [0, 1, 2])
        connection.sendall(request)
        fork = int(answers.readline() or 0)

        def forward(number: int, _) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(fork, number)

        for number in FORWARDED if fork else ():
            signal.signal(number, forward)
        said = answers.readline()
    if not said:
        print(
            f"{words[0]} failed: the process that it was forked from has ended. Call the same command again.",
            file=sys.stderr,
        )
        return 1
    status = int(said)
    if status < 0:  # the fork died of a signal, and so does this process
        with contextlib.suppress(OSError):  # SIGKILL has no handler that could be taken back
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


# ---------------------------------------------------------------------------------------------------------------- the server
def serve(command: list[str]) -> int | str | None:
    """Run a command and fork for whoever asks until it ends; its exit status. In a fork: the exit status of what was asked for."""
    name = f"companion-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + name)  # a name without a file, gone with this process however it ends
    listener.listen(64)
    process = subprocess.Popen(command, env=os.environ | {SOCKET: name}, preexec_fn=end_with_parent)
    ended = os.pidfd_open(
        process.pid
    )  # now: once poll has seen its end there is no such process any more
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the command gets it from the terminal as well, and ends in its own way

    def end(*_) -> None:
        """Asked to, or without a parent: as from the terminal, where this leads a group. At SIGTERM Snakemake waits for what runs, for hours."""
        leads = os.getpgrp() == os.getpid()
        os.killpg(os.getpid(), signal.SIGINT) if leads else process.terminate()

    signal.signal(signal.SIGTERM, end)
    os.environ["JPY_PARENT_PID"] = (
        "1"  # read when ipykernel is imported: so that the kernel does not watch a parent; the requesting process ends it
    )
    for module in PRELOADED:
        if process.poll() is None:
            importlib.import_module(module)
    gc.freeze()  # objects that are never looked at again, so that the forks share their pages
    request = _answer(listener, process, ended)
    listener.close()
    if request:
        return _become(*request)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _answer(
    listener: socket.socket, process: subprocess.Popen, ended: int
) -> tuple[dict, list[int]] | None:
    """Fork for whoever asks, and tell each how its fork ended, until the process ends: then None. In a fork: what was asked for."""
    with selectors.DefaultSelector() as watched:
        watched.register(listener, selectors.EVENT_READ)
        watched.register(ended, selectors.EVENT_READ)
        while process.poll() is None:
            for key, _ in watched.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request = _receive(connection)
                    fork = os.fork() if request else -1
                    if fork == 0:
                        for other in [
                            connection,
                            *(key.data[1] for key in watched.get_map().values() if key.data),
                        ]:
                            other.close()
                        return request
                    if request:
                        _register(watched, fork, connection, request[1])
                elif key.data and key.data[1].fileno() >= 0:
                    _look_at(watched, key)
    return None


def _receive(connection: socket.socket) -> tuple[dict, list[int]] | None:
    """The request and the three streams that came with it; None of another user, and of one who left before it was said."""
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    streams = []
    if user == os.getuid():
        connection.settimeout(5)  # one who says nothing must not keep the others waiting
        with contextlib.suppress(ConnectionError, TimeoutError), connection.makefile("rb") as sent:
            header, streams, *_ = socket.recv_fds(connection, LENGTH.size, 3)
            length = LENGTH.unpack(header)[0] if len(header) == LENGTH.size else 0
            body = sent.read(length)
            if body and len(body) == length:
                connection.settimeout(None)
                return json.loads(body), streams
    for stream in streams:
        os.close(stream)
    connection.close()
    return None


def _register(
    watched: selectors.BaseSelector, fork: int, connection: socket.socket, streams: list[int]
) -> None:
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(ConnectionError):
        connection.sendall(f"{fork}\n".encode())
    watched.register(connection, selectors.EVENT_READ, (fork, connection))
    watched.register(os.pidfd_open(fork), selectors.EVENT_READ, (fork, connection))


def _look_at(watched: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    """Either a fork has ended, or who asked for it is gone, as after SIGKILL, and the fork goes the same way."""
    fork, connection = key.data
    if key.fileobj is connection:
        watched.unregister(connection)
        os.kill(fork, signal.SIGKILL)
        return
    status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with contextlib.suppress(ConnectionError):
        connection.sendall(f"{status}\n".encode())
    if connection.fileno() in watched.get_map():
        watched.unregister(connection)
    watched.unregister(key.fileobj)
    os.close(key.fileobj)
    connection.close()


def _become(request: dict, streams: list[int]) -> int | str | None:
    """In a fork: take over what the one who asked has, and do what it asked for."""
    import numpy as np

    os.setsid()  # signals from the terminal come through whoever asked
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    np.random.seed()  # as of a process of its own
    return _run_here(request["words"])


if __name__ == "__main__":
    sys.exit({"serve": serve, "run": run}[sys.argv[1]](sys.argv[2:]))
