"""The README: its code runs, its commands exist, and its links lead somewhere."""

import re
import subprocess

from PIL import Image

from lib.runs import store

TEXT = (store.ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "RESULTS", store.ROOT / "results")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "grey").save("cat.jpg")
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([1, 128])" in capsys.readouterr().out


def test_the_targets_of_make_exist():
    targets = set(re.findall(r"^make ([a-z-]+)", "".join(blocks("sh")), re.MULTILINE))
    done = subprocess.run(["make", "help"], cwd=store.ROOT, capture_output=True, text=True)
    assert targets and targets <= set(re.findall(r"make ([a-z-]+) ", done.stdout))


def test_the_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert links and all((store.ROOT / link).exists() for link in links)
