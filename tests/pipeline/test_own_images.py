"""Scoring a folder: every file is used or reported, and the page is escaped."""

import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data import files as image_files
from lib.data import sources
from lib.evaluation import encoders
from lib.pipeline import own_files, score, score_folder
from lib.runs import store

IMAGES = 80
FOLDERS = ["<script>alert(1)<", "$x^2$ & co", "deep/er/est", "日本 photos"]
HOSTILE = '<img src=x onerror="alert(1)">.png'
# Files that need care: their status, and words of the note
SPECIAL = {
    HOSTILE: ("used", ""),
    "caf\\xe9.png": ("used", ""),
    "copy.png": ("used", ""),
    "large.jpg": ("used", ""),
    "moving.gif": ("used", "first of 2 frames"),
    "turned.jpg": ("used", "turned by its EXIF orientation"),
    "cut.png": ("broken", "truncated"),
    "empty.png": ("broken", "empty"),
    "text.png": ("broken", "no image of a known kind"),
    "dot.png": ("tiny", "1 x 1 px"),
    "huge.png": ("huge", "1,200,000 pixels"),
    "link.png": ("link", "not followed"),
    "phone.HEIC": ("other", "save the image as JPEG"),
}


def write_special(folder, images):
    """The files of SPECIAL."""
    folder.mkdir()
    first = images[0]
    for name in ("copy.png", HOSTILE):
        first.save(folder / name)
    images[9].resize((60, 40)).save(os.fsencode(folder) + b"/caf\xe9.png")
    images[4].save(folder / "moving.gif", save_all=True, append_images=[images[5]])
    turned = Image.Exif()
    turned[image_files.ORIENTATION] = 6
    images[7].save(folder / "turned.jpg", exif=turned)
    large = images[8].resize((1200, 1000))
    large.save(folder / "large.jpg")
    large.save(folder / "huge.png")

    whole = (folder / "copy.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("<html><script>alert(2)</script></html>")
    first.resize((1, 1)).save(folder / "dot.png")
    outside = folder.parent.parent / "outside"
    outside.mkdir()
    first.save(outside / "secret.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "phone.HEIC").write_bytes(whole)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Drawn images in nested folders, and files that need care."""
    root = tmp_path_factory.mktemp("own") / "my own images"
    images = [Image.fromarray(pixels) for pixels in sources.generated(n=IMAGES, size=48).images]
    for place, image in enumerate(images):
        path = root / FOLDERS[place % len(FOLDERS)] / f"img {place:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    write_special(root / "special", images)
    return root


@pytest.fixture(scope="module")
def surveyed(folder):
    """The survey where a million pixels are too many, for Pillow too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_files, "MOST_PIXELS", 10**6)
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)
        survey = own_files.survey(folder, 32)
        assert Image.MAX_IMAGE_PIXELS == 10**5
    return survey


def test_every_file_is_used_or_has_its_reason(folder, surveyed):
    images, files = surveyed
    assert len(files) == IMAGES + len(SPECIAL)
    special = files[files.folder == "special"].set_index("file")
    assert len(special) == len(SPECIAL)
    for name, (status, note) in SPECIAL.items():
        row = special.loc[f"special/{name}"]
        assert row.status == status and note in row.note, name
    assert (files.note[files.status != "used"] != "").all()
    assert not files.note.str.contains(str(folder), regex=False).any()
    used = files[files.status == "used"]
    assert images.classes == sorted({name.split("/")[0] for name in FOLDERS} | {"special"})
    assert [images.classes[label] for label in images.labels] == used.folder.tolist()


def test_files_are_read_as_training_reads_them(folder, surveyed):
    images, files = surveyed
    used = files.file[files.status == "used"]
    for pixels, name in zip(images.images, used, strict=True):
        path = folder / name
        if path.exists():  # the table has bytes that are not UTF-8 as escapes
            np.testing.assert_array_equal(pixels, image_files.read_pixels(path, 32), err_msg=name)


# ------------------------------------------------------------------------- settings and tables
def test_folders_of_years_are_names_and_no_numbers(tmp_path):
    files = pd.DataFrame(
        {
            "file": ["2019/1.png", "2020/2.png", "x.png"],
            "folder": ["2019", "2020", "."],
            "status": ["used", "used", "tiny"],
        }
    )
    issues = pd.DataFrame({"index": [1, 1], "issue": ["dark", "flat"]})
    table = score.ranked(files, np.array([3.0, 5.0]), issues)
    store.write_csv(tmp_path / "kappa.csv", table.drop(columns="index"))
    stored = score.stored_ranks(tmp_path)
    assert stored.folder.tolist() == ["2020", "2019"]
    assert stored.kappa.tolist() == [5.0, 3.0]
    assert stored.issues.tolist() == ["dark, flat", ""]


# ------------------------------------------------------------------------- encoders
@pytest.fixture
def committed(monkeypatch):
    monkeypatch.setattr(store, "RESULTS", store.ROOT / "results")


def test_an_encoder_without_kappa_is_refused(committed):
    score.check_encoder("vi_simsiam")
    with pytest.raises(ValueError, match="dino.*vi_simsiam"):
        score.check_encoder("dino")


def test_every_committed_encoder_gives_a_column(committed):
    images = sources.load("generated", "test").subset(range(64))
    embedded = score.score_by_encoder("vi_simsiam", images)
    columns, about = score.compare(images, embedded["kappa"])
    assert about.encoder.tolist() == list(encoders.stored())
    assert columns.shape == (64, len(about))
    np.testing.assert_allclose(columns.uncertainty_vi_simsiam_kappa, -embedded["kappa"])
    assert about.set_index("encoder").spearman["vi_simsiam"] == pytest.approx(1)


# ------------------------------------------------------------------------- the whole way
@pytest.fixture(scope="module")
def scored(folder, tmp_path_factory):
    """The folder of make score with a committed encoder; notebook 70 in profile smoke trains."""
    output = tmp_path_factory.mktemp("scored") / "the page"
    command = [sys.executable, "-m", "lib", "score", str(folder), "--profile", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(output), "--encoder", "vi_simsiam"],
        cwd=store.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_a_folder_is_scored_by_a_committed_encoder_without_training(folder, scored):
    found, files = own_files.survey(folder, 64)
    stored = pd.read_csv(scored / "files.csv", keep_default_na=False)
    assert stored.status.tolist() == files.status.tolist()
    used = files.file[files.status == "used"]
    expected = pd.Series(score.score_by_encoder("vi_simsiam", found)["kappa"], used)
    table = score.stored_ranks(scored)
    assert table.kappa.is_monotonic_decreasing
    assert sorted(table.file) == sorted(used)
    np.testing.assert_allclose(table.kappa, expected[table.file], rtol=1e-5)
    issues = pd.read_csv(scored / "issues.csv")
    copies = set(issues.file[issues.issue == "exact duplicate"])
    assert copies == {f"{FOLDERS[0]}/img 000.png", "special/copy.png", f"special/{HOSTILE}"}
    assert not list(scored.rglob("config.json")), "something was trained"
    assert not list(scored.rglob(".[!l]*")), "temporary files were left"


def test_the_page_escapes_names_and_loads_nothing(scored):
    page = (scored / "index.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;" in page
    for forbidden in ("<script", "<img src=x", 'onerror="'):
        assert forbidden not in page
    links = set(re.findall(r'(?:src|href)="([^"]+)"', page)) - {"data:,"}
    assert links and all((scored / link).exists() for link in links)


# ------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("theirs", "culprit"),
    [
        ([score_folder.SOURCE_FILE, "index.html"], "/theirs"),
        ([score_folder.SOURCE_FILE, "smoke/runs/a-run/config.json"], "/theirs"),  # interrupted
        (["index.html"], "index.html"),
    ],
)
def test_files_of_another_folder_or_of_a_person_are_not_overwritten(theirs, culprit, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    output = tmp_path / "results"
    for name in theirs:
        store.write_text(output / name, "/theirs")
    with pytest.raises(ValueError, match=f"{culprit}.*OUT"):
        score_folder.score_folder(str(photos), "smoke", out=str(output))
    files = [path for path in output.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(output).as_posix() for path in files) == sorted(theirs)
    assert {path.read_text() for path in files} == {"/theirs"}


def make(*arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "IMAGES"}
    return subprocess.run(
        ["make", *arguments],
        cwd=store.ROOT,
        capture_output=True,
        text=True,
        env=environment | variables,
    )


def test_make_takes_a_folder_as_it_was_typed(tmp_path):
    folder = str(tmp_path / "a $x and 'b'")
    printing = ["-s", "--eval", 'typed:; @printf %s "$$IMAGES"', "typed"]
    assert make(*printing, f"IMAGES={folder}").stdout == folder
    assert make(*printing, IMAGES=folder).stdout == folder


def test_make_refuses_a_misspelt_variable():
    assert "PROFIL" in make("-n", "reproduce", "PROFIL=smoke").stderr
    assert make("-n", "reproduce", "PROFILE=smoke", "JOBS=2").returncode == 0
