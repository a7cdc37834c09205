"""Scoring a folder: every file is used or reported, and the page is escaped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_sample_images

from lib import training
from lib.data import files as image_files
from lib.data import sources
from lib.evaluation import encoders
from lib.pipeline import own_files, score, score_folder
from lib.runs import store

FOLDERS = [
    "<script>alert(1)<",
    "$x^2$ & co",
    "deep/er/est",
    "日本 photos",
    "a folder with a rather long name of its own",
]
HOSTILE = '<img src=x onerror="alert(1)">'
CROPS = 500


def crops(count=CROPS, side=48, stride=16, detail=8):
    """Squares cut from scikit-learn's two photographs where these are not smooth."""
    squares = [
        photo[y : y + side, x : x + side]
        for photo in load_sample_images().images
        for y in range(0, photo.shape[0] - side + 1, stride)
        for x in range(0, photo.shape[1] - side + 1, stride)
    ]
    chosen = [
        square for square in squares if np.abs(np.diff(square.astype(int), axis=1)).mean() > detail
    ]
    assert len(chosen) >= count
    return np.stack(chosen[:count])


def write_special(folder, images):
    """Files that need care; their expected status by name."""
    picture = [Image.fromarray(image) for image in images]
    folder.mkdir()
    expected = {"used": [], "broken": [], "tiny": [], "huge": [], "link": [], "other": []}

    def path(status, name):
        expected[status].append(name)
        return folder / name

    for place in range(3):
        picture[place].convert("CMYK").save(path("used", f"print {place}.jpg"))
    sixteen = np.minimum(
        np.asarray(picture[3].convert("L")).astype(np.uint32) * 257 + 100, 65535
    ).astype(np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(sixteen).save(path("used", name))
    Image.fromarray(sixteen.astype(np.float32) / 65535).save(path("used", "float.tiff"))
    Image.fromarray(sixteen.astype(np.int32) * 1000).save(path("used", "integers.TIF"))
    picture[4].save(path("used", "moving.gif"), save_all=True, append_images=picture[5:7])
    picture[5].save(path("used", "moving.webp"), save_all=True, append_images=picture[6:8])
    picture[6].save(path("used", "pages.tiff"), save_all=True, append_images=picture[7:8])
    clear = picture[7].convert("RGBA")
    clear.putalpha(
        Image.fromarray(np.tile(np.where(np.arange(48) < 24, 0, 255).astype(np.uint8), (48, 1)))
    )
    clear.save(path("used", "clear.png"))
    picture[8].convert("P", palette=Image.Palette.ADAPTIVE).save(
        path("used", "palette.png"), transparency=0
    )
    picture[9].convert("LA").save(path("used", "grey and clear.PNG"))
    picture[10].convert("1").save(path("used", "black and white.bmp"))
    picture[19].save(path("used", "plain.ppm"))
    turned = Image.Exif()
    turned[image_files.ORIENTATION] = 6
    picture[11].transpose(Image.Transpose.ROTATE_90).save(
        path("used", "turned.JPEG"), exif=turned, quality=98
    )
    Image.new("L", (12000, 8000), 90).save(path("used", "a large photograph.jpg"))
    picture[12].save(path("used", f"{HOSTILE}.png"))
    picture[13].save(os.fsencode(folder) + b"/caf\xe9.png")
    expected["used"].append("caf\\xe9.png")

    picture[14].save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    path("broken", "cut.jpg").write_bytes(whole[: len(whole) // 2])
    path("broken", "begun.jpg").write_bytes(whole[:20])
    path("broken", "empty.png").write_bytes(b"")
    path("broken", "text.png").write_text("These are words. " * 50)
    path("broken", "page.gif").write_text("<html><script>alert(2)</script></html>")
    path("broken", "zeros.bmp").write_bytes(bytes(5000))
    picture[15].save(folder / "whole.png")
    flipped = bytearray((folder / "whole.png").read_bytes())
    flipped[200:260] = bytes(255 - byte for byte in flipped[200:260])
    path("broken", "flipped.png").write_bytes(flipped)
    (folder / "whole.png").unlink()
    picture[16].save(path("broken", "cut.webp"))
    (folder / "cut.webp").write_bytes((folder / "cut.webp").read_bytes()[:100])
    path("broken", "program.eps.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"
    )
    Image.fromarray(np.full((48, 48), np.nan, np.float32)).save(path("broken", "not a number.tif"))

    Image.new("RGB", (1, 1)).save(path("tiny", "dot.png"))
    picture[17].resize((15, 48)).save(path("tiny", "stripe.jpg"))
    Image.new("1", (30000, 4000)).save(path("huge", "panorama.png"))
    Image.new("L", (12000, 8000), 90).save(path("huge", "progressive.jpg"), progressive=True)
    outside = folder.parent.parent / "outside"
    outside.mkdir()
    picture[18].save(outside / "secret.png")
    path("link", "link.png").symlink_to(outside / "secret.png")
    path("link", "linked folder").symlink_to(outside)
    path("other", "notes.txt").write_text("x")
    path("other", ".hidden.png").write_bytes(whole)
    path("other", "no suffix").write_bytes(whole)
    path("other", "phone.HEIC").write_bytes(whole)
    os.mkfifo(path("other", "pipe.png"))
    return expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """More than 500 files in nested folders: crops, six copies, and files that need care."""
    root = tmp_path_factory.mktemp("own") / "my own images"
    images = crops()
    kinds = [
        ("jpg", {"quality": 92}),
        ("png", {}),
        ("webp", {"lossless": True}),
        ("BMP", {}),
        ("tif", {}),
    ]
    for place, image in enumerate(images):
        path = root / FOLDERS[place % len(FOLDERS)] / f"img {place:03d}.{kinds[place % 7 % 5][0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **kinds[place % 7 % 5][1])
    copies = {}
    (root / "copies").mkdir()
    for place, options in enumerate(
        [{}, {"quality": 60}, {"size": (60, 60)}, {"size": (30, 30)}, {"quality": 85}, {}],
        start=100,
    ):
        copied = Image.fromarray(images[place]).resize(options.pop("size", (48, 48)))
        copied.save(root / "copies" / f"copy of {place}.{'jpg' if options else 'png'}", **options)
        copies[f"img {place:03d}"] = f"copy of {place}"
    return {
        "root": root,
        "expected": write_special(root / "special", crops(520)[500:]),
        "copies": copies,
    }


@pytest.fixture(scope="module")
def surveyed(folder):
    return score.survey(folder["root"], 32)


def test_every_file_has_its_status(folder, surveyed):
    images, files = surveyed
    special = files[files.folder == "special"].assign(
        file=lambda part: part.file.str.removeprefix("special/")
    )
    for status, names in folder["expected"].items():
        assert sorted(special.file[special.status == status]) == sorted(names), status
    counts = {status: len(names) for status, names in folder["expected"].items()}
    assert counts == {"used": 19, "broken": 10, "tiny": 2, "huge": 2, "link": 2, "other": 5}
    assert (
        files.status.value_counts().to_dict() == counts | {"used": CROPS + 6 + 19}
        and len(files) == 546
    )
    assert (
        len(images) == (files.status == "used").sum()
        and images.images.shape[1:] == (32, 32, 3)
        and images.images.dtype == np.uint8
    )
    assert images.classes == sorted(
        {name.split("/")[0] for name in FOLDERS} | {"copies", "special"}
    )
    assert [images.classes[label] for label in images.labels] == list(
        files.folder[files.status == "used"]
    )
    assert (
        not files.file.str.contains("secret").any()
        and (files.note[files.status != "used"] != "").all()
    )


@pytest.mark.parametrize(
    "name, note",
    [
        ("print 0.jpg", "CMYK converted to RGB"),
        ("phone.HEIC", "save the image as JPEG"),
        ("deep.png", "16 bits, scaled to 8"),
        ("deep.tif", "16 bits, scaled to 8"),
        ("integers.TIF", "scaled to 8 bits"),
        ("moving.gif", "first of 3 frames"),
        ("moving.webp", "first of 3 frames"),
        ("pages.tiff", "first of 2 frames"),
        ("clear.png", "transparency put on white"),
        ("palette.png", "transparency put on white"),
        ("turned.JPEG", "turned by its EXIF orientation"),
        ("empty.png", "empty"),
        ("cut.jpg", "truncated"),
        ("dot.png", "1 x 1 px"),
        ("panorama.png", "120,000,000 pixels"),
        ("progressive.jpg", "96,000,000 pixels"),
        ("link.png", "not followed"),
        ("pipe.png", "not a regular file"),
        ("not a number.tif", "not finite"),
        ("notes.txt", ".txt is not a kind"),
    ],
)
def test_notes_say_what_was_done_or_what_is_wrong(surveyed, name, note):
    (row,) = surveyed[1][surveyed[1].file == f"special/{name}"].itertuples()
    assert note in row.note and str(store.ROOT) not in row.note and "/my own images" not in row.note


def test_pixels_are_those_of_the_image(folder):
    images = crops(520)[500:]

    def read(name, size=48):
        with own_files.large_images_opened():
            file = own_files.read(own_files.File(folder["root"] / "special" / name), size)
        return file.pixels.astype(float)

    grey = np.asarray(Image.fromarray(images[3]).convert("L")).astype(float)[..., None]
    np.testing.assert_array_equal(read("deep.png"), np.repeat(grey, 3, 2))
    np.testing.assert_array_equal(read("deep.tif"), read("deep.png"))
    stretched = np.rint(255 * (grey - grey.min()) / np.ptp(grey))
    for name in ("float.tiff", "integers.TIF"):
        assert np.abs(read(name) - stretched).max() <= 1, name
    assert np.abs(read("print 0.jpg") - images[0]).mean() < 12
    assert (
        np.abs(read("moving.webp") - images[5]).mean() < 12
        and np.abs(read("moving.gif") - images[4]).mean() < 12
    )
    np.testing.assert_array_equal(read("pages.tiff"), images[6])
    clear = read("clear.png")
    assert (clear[:, :24] == 255).all() and np.array_equal(clear[:, 24:], images[7][:, 24:])
    assert (
        np.abs(read("turned.JPEG") - images[11]).mean()
        < 6
        < np.abs(np.rot90(read("turned.JPEG")) - images[11]).mean()
    )
    assert np.abs(read("a large photograph.jpg") - 90).max() <= 1


def test_the_limit_of_pillow_is_restored(surveyed):
    assert Image.MAX_IMAGE_PIXELS == own_files.MOST_PIXELS


def test_hostile_metadata_is_a_broken_file(tmp_path):
    """A PNG whose comment unpacks to more than Pillow allows raises ValueError."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png", pnginfo=info)
    file = own_files.read(own_files.File(tmp_path / "bomb.png"), 32)
    assert file.pixels is None and file.status == "broken" and "ValueError" in file.note


def test_files_that_may_not_be_read_are_reported(tmp_path, monkeypatch):
    score.example(tmp_path)
    closed = tmp_path / "icon.png"
    opened = Image.open

    def refuse(path, *arguments, **options):
        if Path(path) == closed:
            raise PermissionError("Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", refuse)
    files = score.survey(tmp_path, 32)[1].set_index("file")
    assert files.status["icon.png"] == "broken" and "Permission" in files.note["icon.png"]


# ------------------------------------------------------------------------- settings and tables
@pytest.mark.parametrize("count, epochs", [(64, 400), (2000, 75), (10**6, 1)])
def test_epochs_follow_the_number_of_images(count, epochs):
    assert score.training_settings(count, "standard")["epochs"] == epochs
    assert score.training_settings(count, "standard", epochs=7)["epochs"] == 7


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


def test_names_in_figures_are_short_and_different():
    names = [score.short_name(name, place) for place, name in enumerate(["a" * 40, "a" * 41])]
    assert len(set(names)) == 2 and max(len(name) for name in names) <= 24
    assert score.short_name("$x^2$", 1) == r"\$x^2\$"


def test_a_contact_sheet_shows_the_ranked_in_reading_order():
    images = np.zeros((64, 16, 16, 3), np.uint8)
    images[:, :, :, 0] = np.arange(64)[:, None, None]
    index = np.arange(64)[::-1]
    table = pd.DataFrame({"index": index, "rank": 64 - index, "kappa": index + 1.0})
    figure = score.contact_sheet(images, table)
    tenth = figure.axes[9].get_images()[0].get_array()
    assert len(figure.axes) == 32 and tenth[0, 0, 0] == 54
    assert figure.axes[9].get_xlabel() == "10 · 55"


# ------------------------------------------------------------------------- encoders
@pytest.fixture
def committed(monkeypatch):
    monkeypatch.setattr(store, "RESULTS", store.ROOT / "results")


def test_an_encoder_without_kappa_is_refused(committed):
    score.check_encoder("vi_simsiam")
    score.check_encoder("")
    for name in ("dino", "nothing"):
        with pytest.raises(ValueError, match=f"{name}.*vi_simsiam"):
            score.check_encoder(name)


def test_every_committed_encoder_gives_a_column(committed):
    images = sources.load("generated", "test").subset(range(64))
    embedded = score.score_by_encoder("vi_simsiam", images)
    columns, about = score.compare(images, embedded["kappa"])
    assert about.encoder.tolist() == list(encoders.stored())
    assert columns.shape == (64, len(about))
    np.testing.assert_allclose(columns.uncertainty_vi_simsiam_kappa, -embedded["kappa"])
    assert about.set_index("encoder").spearman["vi_simsiam"] == pytest.approx(1)


def test_a_collapsed_training_names_the_way_out(monkeypatch):
    def stop(*_):
        raise training.TrainingStopped("the outputs have collapsed.")

    monkeypatch.setattr(training, "train", stop)
    with pytest.raises(training.TrainingStopped, match="collapsed.*ENCODER=vi_simsiam"):
        score.score(None, "", {})


# ------------------------------------------------------------------------- the whole way
def make_score(folder, output, *options):
    command = [sys.executable, "-m", "lib", "score", str(folder), "--profile", "smoke"]
    return subprocess.run(
        [*command, "--out", str(output), *options],
        cwd=store.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def scored(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("scored") / "the page"
    return output, make_score(folder["root"], output, "--epochs", "1")


def test_a_folder_is_scored_from_end_to_end(folder, scored, surveyed):
    output, done = scored
    _, surveyed_files = surveyed
    assert done.returncode == 0, done.stdout + done.stderr
    kappa = score.stored_ranks(output)
    files = pd.read_csv(output / "files.csv", keep_default_na=False)
    used = surveyed_files[surveyed_files.status == "used"]
    assert sorted(kappa.file) == sorted(used.file)
    assert (kappa.kappa > 0).all() and kappa["rank"].is_monotonic_increasing
    assert files.status.tolist() == surveyed_files.status.tolist()
    issues = pd.read_csv(output / "issues.csv")
    copies = issues[issues.issue.str.contains("duplicate")]
    for original, copy in folder["copies"].items():
        groups = copies[copies.file.str.contains(copy, regex=False)][["issue", "group"]]
        same = copies.merge(groups, on=["issue", "group"])
        assert same.file.str.contains(original, regex=False).any(), copy
    assert len(kappa.columns) <= 10
    for name in ("most_certain", "least_certain"):
        with Image.open(output / f"{name}.png") as sheet:
            assert min(sheet.size) > 400
    assert not list(output.rglob(".[!l]*")), "temporary files were left"


def test_the_page_escapes_names_and_loads_nothing(scored):
    output, _ = scored
    page = (output / "index.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;" in page
    for forbidden in ("<script", "<img src=x", 'onerror="'):
        assert forbidden not in page
    links = set(re.findall(r'(?:src|href)="([^"]+)"', page)) - {"data:,"}
    assert links and all((output / link).exists() for link in links)


def test_a_second_score_does_not_train_again(folder, scored, monkeypatch):
    """The run is found again by its images and settings."""
    output, _ = scored
    monkeypatch.setattr(store, "RESULTS", output)
    images, _ = score.survey(folder["root"], 64)
    settings = score.training_settings(len(images), "smoke", epochs=1)
    trained = store.run_dir("smoke", next((output / "smoke" / "runs").glob("*-e1-*")).name)
    written = (trained / "model.safetensors").stat().st_mtime_ns
    assert len(score.score(images, "", settings)["kappa"]) == len(images)
    assert (trained / "model.safetensors").stat().st_mtime_ns == written


def test_a_folder_is_scored_by_a_committed_encoder_without_training(tmp_path):
    images = sources.load("generated", "test").subset(range(score.FEWEST))
    folder = tmp_path / "images"
    folder.mkdir()
    for place, image in enumerate(images.images):
        Image.fromarray(image).save(folder / f"{place:03}.png")
    done = make_score(folder, tmp_path / "page", "--encoder", "vi_simsiam")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.rglob("config.json")), "something was trained"
    kappa = score.stored_ranks(tmp_path / "page").set_index("file").kappa
    found, files = score.survey(folder, 64)
    expected = score.score_by_encoder("vi_simsiam", found)["kappa"]
    np.testing.assert_allclose(kappa[files.file], expected, rtol=1e-5)


# ------------------------------------------------------------------------- what is refused
def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xf6rtlich"
    os.mkdir(folder)
    with pytest.raises(ValueError, match="udcf6rtlich.*UTF-8"):
        score_folder.score_folder(os.fsdecode(folder), "smoke", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("made", ["index.html", "smoke/runs/a-run/config.json"])
def test_results_of_another_folder_are_not_overwritten(made, tmp_path):
    """Neither a page nor a training that was interrupted."""
    photos = tmp_path / "photos"
    photos.mkdir()
    output = tmp_path / "results"
    store.write_text(output / score_folder.SOURCE_FILE, "/theirs")
    store.write_text(output / made, "theirs")
    with pytest.raises(ValueError, match="/theirs.*OUT"):
        score_folder.score_folder(str(photos), "smoke", out=str(output))
    assert (output / made).read_text() == "theirs"


def test_files_that_are_not_of_make_score_are_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    store.write_text(tmp_path / "site" / "index.html", "my own page")
    with pytest.raises(ValueError, match="index.html.*OUT"):
        score_folder.score_folder(str(tmp_path / "photos"), "smoke", out=str(tmp_path / "site"))
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]


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


def test_make_says_how_it_is_called():
    assert make("score").stderr.startswith("usage: make score IMAGES=folder")
    assert make("notebook", "N=").stderr.startswith("usage: make notebook N=10")
    assert "PROFIL" in make("-n", "reproduce", "PROFIL=smoke").stderr
    assert make("-n", "reproduce", "PROFILE=smoke", "JOBS=2").returncode == 0
