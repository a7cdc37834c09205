"""Nothing from outside is executed: no pickles, no shells, no string that becomes a tag."""

import ast
import re
import shlex
import sys
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_server.auth import IdentityProvider

from lib.pipeline import jobs as reproduction
from lib.pipeline import score as own_images
from lib.runs import store as artifacts

NAME = "<script>alert(1)</script>"


# ---------------------------------------------------------------------------------------------------------------- what code may not do
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "builtins.eval",
    "builtins.exec",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pandas.read_pickle",
    "torch.hub.load",
    "torch.jit.load",
    "shutil.unpack_archive",
}
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def dangers(source: str) -> list[str]:
    """What of Python source would run or unpickle what comes from outside, one entry each with its line."""
    tree, names, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]: alias.name
                if alias.asname
                else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
        modules = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [getattr(node, "module", None) or ""]
        )
        found += [
            f"{node.lineno}: {name}" for name in modules if name.split(".")[0] in FORBIDDEN_MODULES
        ]

    def called(node) -> str:
        if isinstance(node, ast.Attribute):
            return f"{called(node.value)}.{node.attr}"
        return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    checked = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = called(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        literal = {
            key: value.value for key, value in given.items() if isinstance(value, ast.Constant)
        }
        if name in FORBIDDEN_CALLS or (
            "shell" in given and literal.get("shell", True) is not False
        ):
            found.append(f"{node.lineno}: {name}")
        elif name in NEEDED:
            key, value = NEEDED[name]
            checked.add(id(node.func))
            if literal.get(key) is not value:
                found.append(f"{node.lineno}: {name} without {key}={value}")
    for node in ast.walk(tree):  # under another name it would be called unseen
        if (
            isinstance(node, (ast.Attribute, ast.Name))
            and isinstance(node.ctx, ast.Load)
            and id(node) not in checked
            and called(node) in NEEDED
        ):
            found.append(f"{node.lineno}: {called(node)} is passed on")
    return sorted(set(found))


def snakefile() -> tuple[str, str]:
    """The Snakefile's Python, up to its first rule, and the rest."""
    text = (artifacts.ROOT / "Snakefile").read_text()
    start = re.search(r"^rule ", text, re.MULTILINE).start()
    return text[:start], text[start:]


def sources() -> dict[str, str]:
    root = artifacts.ROOT
    paths = [*sorted(root.glob("lib/**/*.py")), *sorted(root.glob("tests/benchmarks/*.py"))]
    found = {str(path.relative_to(root)): path.read_text() for path in paths}
    for path in sorted(reproduction.NOTEBOOKS.glob("*.ipynb")):
        cells = [
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "code"
        ]
        found[str(path.relative_to(root))] = "\n".join(cells)
    return found | {"Snakefile": snakefile()[0]}


def test_nothing_from_outside_is_executed_or_unpickled():
    read = sources()
    assert len(read) > 60 and {
        "lib/data/sources.py",
        "lib/methods/vje.py",
        "notebooks/70_your_own_images.ipynb",
        "Snakefile",
    } <= set(read)
    assert {name: found for name, source in read.items() if (found := dangers(source))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "from joblib import load",
        "import dill as json",
        "import shelve",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import torch as t\nt.load('a', weights_only=flag)",
        "from torch import load\nload('a')",
        "import torch.nn\ntorch.load('a')",
        "import torch\nread = torch.load",
        "import numpy as np\nnp.load('a')",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "from numpy import load as read\nread('a')",
        "import numpy as np\nlist(map(np.load, paths))",
        "import numpy\nnumpy.load('a', None)",
        "import yaml\nyaml.load('a', yaml.Loader)",
        "from yaml import load\nload('a')",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "import builtins\nbuiltins.eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import Popen\nPopen('ls', shell=flag)",
        "import os\nos.system('ls')",
        "from os import system as go\ngo('ls')",
        "import os\nos.popen('ls')",
        "import subprocess as s\ns.getoutput('ls')",
        "import pandas as pd\npd.read_pickle('a')",
        "import torch\ntorch.hub.load('a', 'b')",
        "def f():\n    import shutil\n    shutil.unpack_archive('a')",
    ],
)
def test_the_lint_finds_what_is_dangerous(source):
    assert dangers(source)


def test_the_lint_lets_through_what_is_not():
    assert (
        dangers(
            "import ast, os, subprocess, torch, yaml\nimport numpy as np\nfrom lib.evaluation.measure import load\n"
            "np.load('a', allow_pickle=False)\ntorch.load('a', weights_only=True)\nyaml.safe_load('a')\nmethod.eval()\nload('vi_simsiam')\n"
            "ast.literal_eval('1')\nsubprocess.run(['ls'])\nsubprocess.run(['ls'], shell=False)\nos.path.join('a')\nre.compile('a')\nframe.eval('a')"
        )
        == []
    )


# ---------------------------------------------------------------------------------------------------------------- the Snakefile's shell
def planned(**config) -> dict:
    """The names that the Snakefile's Python defines for this configuration."""
    defined = {"config": config}
    exec(compile(snakefile()[0], "Snakefile", "exec"), defined)
    return defined


def test_a_shell_is_given_quoted_names_only():
    """What it makes of a results folder with a name made of shell is seen in test_reproduce.py."""
    rules = snakefile()[1]
    assert not re.search(
        r"\b(run|script|notebook|wrapper|cwl):\n", rules.replace("rule notebook", "")
    )
    commands = re.findall(r"^ +shell:\n +(\".*\")\n", rules, re.MULTILINE)
    assert len(commands) == rules.count("shell:") == 2
    for command in commands:
        placeholders = re.findall(r"\{(.*?)\}", command)
        assert placeholders and all(name.endswith(":q") for name in placeholders)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"profile": "smoke; touch x"}, "Unknown profile 'smoke; touch x'"),
        ({"profile": "$(touch x)"}, "Unknown profile"),
        ({"profile": "smoke", "paper": "vje && touch x"}, "Unknown paper 'vje && touch x'"),
        ({"profile": "smoke", "gpus": "1; touch x"}, "invalid literal for int"),
    ],
)
def test_what_goes_to_the_shell_is_looked_at_first(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        planned(**config)


# ---------------------------------------------------------------------------------------------------------------- pages
class Tags(HTMLParser):
    """The tags of a page, what could run in it, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.active, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("script", "iframe", "object", "embed", "base", "form"):
            self.active.append(tag)
        self.active += [
            f"{tag} {name}"
            for name, value in attributes
            if name.startswith("on") or "javascript:" in (value or "").lower()
        ]

    def handle_data(self, text):
        self.text += text


def test_no_string_becomes_a_tag_in_the_page_of_own_images(tmp_path):
    images, kappa = np.zeros((64, 16, 16, 3), np.uint8), np.linspace(1, 2, 64)
    hostile = f"{NAME.replace('/', '')}<img src=x onerror=alert(2)>"
    files = pd.DataFrame(
        {
            "file": [f"{hostile}{i}.png" for i in range(65)],
            "folder": NAME,
            "status": ["used"] * 64 + ["broken"],
            "note": hostile,
        }
    )
    table = own_images.ranked(files, kappa, pd.DataFrame(index=range(64)))
    alike = pd.DataFrame({"group": [1, 1], "index": [0, 1], "similarity": [1.0, 1.0]})
    about = pd.DataFrame(
        [
            {
                "encoder": NAME,
                "trained_on": NAME,
                "uncertainty": NAME,
                "spearman": 0.1,
                "unlikeness": 0.2,
                "resembles": "no",
            }
        ]
    )
    page = own_images.write_page(
        tmp_path, NAME, images, files, table, alike, about, own_images.Source(NAME)
    )
    read = Tags(page.read_text())
    assert (
        read.active == [] and "script" not in read.tags and read.text.count("<script>alert(1)") >= 8
    )


# ---------------------------------------------------------------------------------------------------------------- the notebook server
def test_make_lab_listens_on_this_machine_alone_and_asks_for_its_token(monkeypatch):
    """Jupyter's defaults are a random token and 127.0.0.1; the recipe may not take the one away and says the other."""
    recipe = re.search(
        r"^lab:.*\n((?:\t.*\n)+)", (artifacts.ROOT / "Makefile").read_text(), re.MULTILINE
    )[1]
    words = shlex.split(recipe.strip().lstrip("@").replace("$(PY)", sys.executable))
    assert words[:3] == [sys.executable, "-m", "jupyterlab"]
    assert [word for word in words if word.startswith("--ip")] == ["--ip=127.0.0.1"]
    refused = re.compile(
        "token|password|allow.origin|disable.check.xsrf|allow.root|allow.remote|config", re.I
    )
    assert not refused.search(recipe)
    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    server = IdentityProvider()
    assert len(server.token) >= 40 and server.token_generated
