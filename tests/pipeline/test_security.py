"""Nothing from outside is executed: no pickles, no shells, no string that becomes a tag."""

import re
import shlex
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from jupyter_server.auth import IdentityProvider

from lib.pipeline import score as own_images
from lib.runs import store as artifacts

NAME = "<script>alert(1)</script>"


# ---------------------------------------------------------------------------- the shell
def snakefile() -> tuple[str, str]:
    """The Snakefile's Python, up to its first rule, and the rest."""
    text = (artifacts.ROOT / "Snakefile").read_text()
    start = re.search(r"^rule ", text, re.MULTILINE).start()
    return text[:start], text[start:]


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


# ------------------------------------------------------------------------------------------- pages
class Tags(HTMLParser):
    """The tags of a page, what could run in it, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags = []
        self.active = []
        self.text = ""
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
    images = np.zeros((64, 16, 16, 3), np.uint8)
    kappa = np.linspace(1, 2, 64)
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


# ----------------------------------------------------------------------------- the notebook server
def test_make_lab_listens_on_this_machine_alone_and_asks_for_its_token(monkeypatch):
    """Jupyter's defaults are a random token and 127.0.0.1.

    the recipe may not take the one away and says the other.
    """
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
