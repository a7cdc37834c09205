"""A fork of the server is to whoever asked for it what a process of its own would be: words, streams, signals, exit status, and its end."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib.pipeline import forkserver

pytestmark = pytest.mark.skipif(
    not forkserver.is_possible(), reason="this system does not fork as the server does"
)

# The server as it is, but that it imports little beforehand.
SERVE = "import sys; from lib import forkserver; forkserver.PRELOADED = ('numpy.random',); sys.exit(forkserver.serve(sys.argv[1:]))"
ASKED = """
import os, random, signal, sys, time
import numpy as np

def show():
    print(sys.argv[1:], os.getcwd(), os.environ["GIVEN"], sys.stdin.read().strip(), np.random.rand(), random.random(), os.getpid(), sep="|")
    print("to stderr", file=sys.stderr)
    return int(sys.argv[1])

def fail():
    raise ValueError("this went wrong")

def wait():
    if sys.argv[1:] == ["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        print(os.getpid(), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 5

def end():
    os.kill(os.getpid(), int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server under way: its process, its environment with the socket, and the folder of the functions that it is asked for."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "asked.py").write_text(ASKED)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()]),
        "GIVEN": "server's",
    }
    script = (
        f"import os, time; print(os.environ[{forkserver.SOCKET!r}], flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, sys.executable, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, environment | {forkserver.SOCKET: process.stdout.readline().strip()}, folder
    process.kill()


def ask(server, *words, **changes):
    _, environment, folder = server
    command = [sys.executable, "-m", "lib.pipeline.forkserver", "run", *words]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment | changes, text=True, **streams)


def is_gone(process: int) -> bool:
    for _ in range(200):
        if (
            not psutil.pid_exists(process)
            or psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        ):
            return True
        time.sleep(0.05)
    return False


def test_a_fork_has_words_folder_environment_and_streams_of_whoever_asked(server):
    said = [ask(server, "asked:show", "3", "two words", GIVEN="mine") for _ in range(2)]
    drawn = []
    for process in said:
        out, err = process.communicate("put in\n")
        words, folder, given, put_in, *random_numbers, fork = out.strip().split("|")
        assert (process.returncode, words, folder, given, put_in) == (
            3,
            "['3', 'two words']",
            str(server[2]),
            "mine",
            "put in",
        )
        assert err == "to stderr\n" and int(fork) != process.pid
        drawn += random_numbers
    assert len(set(drawn)) == 4, "two processes draw different numbers where nobody sets a seed"


def test_without_a_server_the_function_is_called_here(server):
    process = ask(server, "asked:show", "4", **{forkserver.SOCKET: str(server[2] / "nobody")})
    out, _ = process.communicate("")
    assert process.returncode == 4 and int(out.strip().split("|")[-1]) == process.pid


def test_an_error_is_shown_and_ends_the_fork_alone(server):
    process = ask(server, "asked:fail")
    assert "ValueError: this went wrong" in process.communicate()[1] and process.returncode == 1
    assert ask(server, "asked:no_such_function").wait() == 1
    assert (
        server[0].poll() is None
        and ask(server, "asked:end", str(int(signal.SIGTERM))).wait() == -signal.SIGTERM
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_whoever_asked_dies_of_the_signal_that_the_fork_died_of(server, number):
    assert ask(server, "asked:end", str(int(number))).wait() == -number


def test_signals_reach_the_fork(server):
    interrupted, ended = ask(server, "asked:wait"), ask(server, "asked:wait")
    forks = [int(process.stdout.readline()) for process in (interrupted, ended)]
    assert [os.getsid(fork) for fork in forks] == forks, (
        "what a terminal sends reaches them once, through whoever asked"
    )
    interrupted.send_signal(signal.SIGINT)
    ended.terminate()
    assert interrupted.communicate()[0] == "interrupted\n" and interrupted.returncode == 5
    assert ended.wait() == -signal.SIGTERM and all(map(is_gone, forks))


def test_a_fork_does_not_outlive_whoever_asked(server):
    process = ask(server, "asked:wait", "deaf")
    fork = int(process.stdout.readline())
    process.kill()
    assert is_gone(fork)


@pytest.mark.parametrize(
    "said",
    [b"", b"\0\0", forkserver.LENGTH.pack(100), forkserver.LENGTH.pack(100) + b'{"words": ['],
    ids=len,
)
def test_one_who_leaves_before_all_is_said_disturbs_nobody(server, said):
    connection = forkserver.socket.socket(forkserver.socket.AF_UNIX)
    connection.connect("\0" + server[1][forkserver.SOCKET])
    connection.sendall(said)
    connection.close()
    assert ask(server, "asked:end", "9").wait() == -9


def test_the_server_ends_with_its_command():
    done = subprocess.run(
        [sys.executable, "-c", SERVE, sys.executable, "-c", "import os; os._exit(7)"]
    )
    assert done.returncode == 7


def test_a_command_may_end_while_the_server_imports(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(1)")
    serve = SERVE.replace("('numpy.random',)", "('slow', 'json')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run(
        [sys.executable, "-c", serve, "sh", "-c", "exit 7"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7 and not done.stderr


def test_another_user_is_not_served(monkeypatch):
    monkeypatch.setattr(forkserver.os, "getuid", lambda: 12345)
    ours, theirs = forkserver.socket.socketpair(forkserver.socket.AF_UNIX)
    request = b'{"words": ["asked:show"]}'
    with theirs:
        forkserver.socket.send_fds(theirs, [forkserver.LENGTH.pack(len(request))], [0, 1, 2])
        theirs.sendall(request)
        assert forkserver._receive(ours) is None
    monkeypatch.undo()


def test_the_streams_of_a_client_that_stalls_are_closed(monkeypatch):
    patience, before = forkserver.socket.socket.settimeout, len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(
        forkserver.socket.socket,
        "settimeout",
        lambda self, seconds: patience(self, seconds and 0.05),
    )
    ours, theirs = forkserver.socket.socketpair(forkserver.socket.AF_UNIX)
    with theirs:
        forkserver.socket.send_fds(theirs, [forkserver.LENGTH.pack(100)], [0, 1, 2])
        assert forkserver._receive(ours) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_server_ends_its_command_when_it_is_asked_to():
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SERVE,
            sys.executable,
            "-c",
            "import os, time; print(os.getpid(), flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    command = int(process.stdout.readline())
    time.sleep(1)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM and is_gone(command)


def test_forks_and_their_askers_end_with_the_server(server):
    process, environment, _ = server
    asking = ask(server, "asked:wait")
    fork = int(asking.stdout.readline())
    process.kill()
    assert (
        "asked:wait failed: the process that it was forked from has ended"
        in asking.communicate()[1]
        and asking.returncode == 1
    )
    assert is_gone(fork)
