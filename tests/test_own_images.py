"""A folder of somebody's images: every file is used or reported by its name, copies are found, and the page says what it should, escaped."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
from PIL import Image, PngImagePlugin
from scipy.sparse import coo_matrix, csgraph
from sklearn.datasets import load_sample_images

from lib import methods
from lib.data import sources as data
from lib.evaluation import encoders
from lib.pipeline import jobs as reproduction
from lib.pipeline import own_files
from lib.pipeline import score as own_images
from lib.runs import store as artifacts
from lib.training import loop as training

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
    """Squares cut from scikit-learn's two photographs where these are not smooth: natural images that are unlike one another."""
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
    turned[own_files.ORIENTATION] = 6
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
    """More than 500 files in nested folders: crops, six copies of some, and files that need care; expected statuses."""
    root, images = tmp_path_factory.mktemp("own") / "my own images", crops()
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
    return own_images.survey(folder["root"], 32)


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
    assert (
        note in row.note
        and str(artifacts.ROOT) not in row.note
        and "/my own images" not in row.note
    )


def test_pixels_are_those_of_the_image(folder):
    images = crops(520)[500:]

    def read(name, size=48):
        with own_files._large_images_opened():
            return own_files._read(folder["root"] / "special" / name, "", size)[1].astype(float)

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


def test_the_limit_of_pillow_is_as_it_was(folder, surveyed):
    assert Image.MAX_IMAGE_PIXELS == own_files.MOST_PIXELS


def test_hostile_metadata_is_a_broken_file(tmp_path):
    """A PNG whose comment unpacks to more than Pillow allows raises ValueError where others raise OSError."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png", pnginfo=info)
    row, image = own_files._read(tmp_path / "bomb.png", "", 32)
    assert image is None and row["status"] == "broken" and "ValueError" in row["note"]


def _refuse(monkeypatch, where, name, path):
    """Let ``where.name`` refuse this one path as the system does."""
    usual = getattr(where, name)

    def opened(asked, *arguments, **options):
        if Path(asked) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(asked))
        return usual(asked, *arguments, **options)

    monkeypatch.setattr(where, name, opened)


def test_what_may_not_be_read_is_reported(tmp_path, monkeypatch):
    own_images.example(tmp_path / "own")
    (tmp_path / "own" / "icon.png").chmod(0)
    (tmp_path / "own" / "closed").mkdir(mode=0)
    if os.geteuid() == 0:  # root may read everything
        _refuse(monkeypatch, os, "scandir", tmp_path / "own" / "closed")
        _refuse(monkeypatch, Image, "open", tmp_path / "own" / "icon.png")
    files = own_images.survey(tmp_path / "own", 32)[1].set_index("file")
    assert files.status[["icon.png", "closed"]].tolist() == ["broken", "broken"]


def test_copies_are_found_and_nothing_else(folder, surveyed):
    images, files = surveyed
    names = [Path(name).stem for name in files.file[files.status == "used"]]
    plain = np.flatnonzero((files.folder[files.status == "used"] != "special").to_numpy())
    found = own_images.near_duplicates(images.images[plain])
    groups = {
        frozenset(names[plain[index]] for index in part["index"])
        for _, part in found.groupby("group")
    }
    assert groups == {frozenset(pair) for pair in folder["copies"].items()}
    assert found.similarity.between(own_files.ALIKE, 1).all() and list(found.group) == sorted(
        found.group
    )


def test_plain_images_are_alike_by_their_colour(surveyed):
    plain = np.full((4, 32, 32, 3), 200, np.uint8)
    plain[1] -= 1
    plain[2, ..., 0] = 100
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = own_images.near_duplicates(np.concatenate([plain, noise]))
    assert (
        found["index"].tolist() == [0, 1, 3]
        and found.group.tolist() == [1, 1, 1]
        and (found.similarity == 1).all()
    )
    assert own_images.near_duplicates(noise).empty


def test_groups_are_what_pairs_connect_in_any_order_of_the_images():
    """Chains of images, each of which is like its neighbours alone, against a search of the graph of all pairs."""
    generator = np.random.default_rng(0)
    ends = generator.normal(size=(3, 2, 16 * 16 * 3))
    chains = [
        np.cos(angle) * one + np.sin(angle) * other
        for one, other in ends
        for angle in np.linspace(0, 1.4, 12)
    ]
    small = np.stack([*chains, *generator.normal(size=(6, 16 * 16 * 3))]).reshape(-1, 16, 16, 3)[
        generator.permutation(42)
    ]
    images = np.kron(
        np.clip(128 + 30 * small, 0, 255).astype(np.uint8), np.ones((1, 2, 2, 1), np.uint8)
    )
    structure = images[:, ::2, ::2].astype(float)
    structure = (structure - structure.mean((1, 2), keepdims=True)).reshape(len(images), -1)
    alike = np.corrcoef(structure) >= own_files.ALIKE
    np.fill_diagonal(alike, False)
    graph = csgraph.connected_components(coo_matrix(alike), directed=False)[1]
    found = own_images.near_duplicates(images)
    expected = {frozenset(np.flatnonzero(graph == label)) for label in set(graph[alike.any(1)])}
    assert {frozenset(part["index"]) for _, part in found.groupby("group")} == expected and 0 < len(
        expected
    )


def test_few_images_are_an_error_before_any_training(tmp_path):
    for place, image in enumerate(crops(own_images.FEWEST - 1)):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    (tmp_path / "cut.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"has 63 images that can be used, fewer than 64 \(63 used, 1 broken\)\. cut.jpg: empty\. Add images",
    ):
        own_images.survey(tmp_path, 32)
    with pytest.raises(FileNotFoundError, match="is not a folder: give one that holds images"):
        own_images.survey(tmp_path / "nowhere", 32)
    with pytest.raises(ValueError, match="image_size is 8 px; give at least 16"):
        own_images.survey(tmp_path, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has 0 images .*\(no files\)"):
        own_images.survey(tmp_path / "empty", 32)


@pytest.mark.parametrize("count, epochs", [(64, 400), (2000, 75), (10**6, 1)])
def test_epochs_follow_the_number_of_images(count, epochs):
    assert own_images.training_settings(count, "standard")["epochs"] == epochs
    assert own_images.training_settings(count, "standard", epochs=7)["epochs"] == 7


def test_folders_of_years_are_names_and_no_numbers(tmp_path):
    files = pd.DataFrame(
        {
            "file": ["2019/1.png", "2020/2.png", "x.png"],
            "folder": ["2019", "2020", "2020"],
            "status": ["used", "used", "tiny"],
        }
    )
    table = own_images.ranked(
        files, np.array([3.0, 5.0]), pd.DataFrame({"feature_norm": [1.0, 2.0]})
    )
    artifacts.write_csv(tmp_path / "kappa.csv", table.drop(columns="index"))
    stored = own_images.stored_ranks(tmp_path)
    assert stored.folder.tolist() == ["2020", "2019"] and stored.kappa.tolist() == [5.0, 3.0]
    assert own_images.short_names(stored.folder) == {"2020": "2020", "2019": "2019"}


def test_names_in_figures_are_short_and_stay_different():
    names = own_images.short_names(["a" * 40, "a" * 41, "$x^2$", "."])
    assert (
        len(set(names.values())) == 4
        and max(map(len, names.values())) <= 24
        and names["$x^2$"] == r"\$x^2\$"
    )


# ---------------------------------------------------------------------------------------------------------------- encoders
@pytest.fixture
def committed(monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", artifacts.ROOT / "results")


ENCODERS = sorted(
    path.stem
    for path in (artifacts.ROOT / "results" / "standard" / "encoders").glob("*.safetensors")
)


def unlikeness(name, images):
    return encoders.unlikeness(
        own_images.ask(name, images)["features"],
        encoders.statistics_beside(encoders.stored()[name]),
    )


# The features of some hardly tell digits from photographs (ProSMin's 0.3, DINO's on a vision transformer 0.2); their cards say so.
@pytest.mark.parametrize("name", ENCODERS)
def test_digits_do_not_resemble_natural_images(committed, name):
    assert (unlikeness(name, data.load("digits", "test")) > encoders.UNLIKE) == (
        name not in encoders.TOLD_BADLY
    )


def test_noise_does_not_resemble_natural_images(committed):
    assert unlikeness("vi_simsiam", data.load("generated_noise", "test")) > encoders.UNLIKE + 0.1


@pytest.mark.parametrize("name", ENCODERS)
def test_other_images_of_its_own_kind_resemble_the_training_set(committed, name):
    try:
        images = data.load("cifar10", "test", download=False)
    except FileNotFoundError:
        pytest.skip("CIFAR-10 is not at hand")
    generator = np.random.default_rng(0)
    chosen = images.subset(np.sort(generator.choice(len(images), 300, replace=False)))
    assert unlikeness(name, chosen) < encoders.UNLIKE / 2
    corners = generator.integers(0, 5, (300, 2))
    cut = [
        Image.fromarray(image[y : y + 28, x : x + 28]).resize((32, 32))
        for image, (y, x) in zip(chosen.images, corners, strict=True)
    ]
    cropped = own_files.image_sets.ImageSet(
        "crops", "test", np.stack(cut), chosen.labels, images.classes
    )
    assert unlikeness(name, cropped) < encoders.UNLIKE


def test_an_encoder_without_kappa_is_refused(committed):
    own_images.check_encoder("vi_simsiam")
    own_images.check_encoder("")
    for name in ("dino", "nothing"):
        with pytest.raises(
            ValueError,
            match=rf"no committed encoder '{name}' with κ; choose one of \['vi_simsiam'\]",
        ):
            own_images.check_encoder(name)


def test_every_committed_encoder_gives_a_column(committed):
    images = data.load("generated", "test").subset(range(64))
    embedded = own_images.ask("vi_simsiam", images)
    columns, about = own_images.compare(images, embedded["kappa"])
    assert about.encoder.tolist() == list(encoders.stored()) and columns.shape == (64, len(about))
    assert {
        "uncertainty_vi_simsiam_kappa",
        "uncertainty_dino_entropy",
        "uncertainty_simclr_trivial_norm",
    } <= set(columns)
    np.testing.assert_allclose(columns.uncertainty_vi_simsiam_kappa, -embedded["kappa"])
    own = about.set_index("encoder")
    assert (
        own.spearman["vi_simsiam"] == pytest.approx(1)
        and own.uncertainty["simclr"] == methods.TRIVIAL[1]
    )
    files = pd.DataFrame({"file": [f"{i}" for i in range(64)], "folder": ".", "status": "used"})
    table = own_images.ranked(files, embedded["kappa"], columns)
    assert table["rank"].tolist() == list(range(1, 65)) and table.kappa.is_monotonic_decreasing
    np.testing.assert_allclose(table.kappa, embedded["kappa"][table["index"]])
    np.testing.assert_allclose(table.uncertainty_vi_simsiam_kappa, -table.kappa)


@pytest.mark.parametrize(
    "far, resembles, sentence",
    [(0.1, "not told apart", "are not told apart from"), (0.9, "no", "do not resemble")],
)
def test_images_far_from_the_training_set_are_said_not_to_resemble_it(
    committed, monkeypatch, far, resembles, sentence
):
    monkeypatch.setattr(encoders, "unlikeness", lambda features, spread: far)
    images = data.load("generated", "test").subset(range(64))
    kappa = own_images.ask("vi_simsiam", images)["kappa"]
    about = own_images.compare(images, kappa)[1]
    assert set(about.resembles) == {resembles} and set(about.unlikeness) == {far}
    said = own_images.facts(images.images, kappa, "vi_simsiam", {}, about)
    assert said[0].startswith("κ by the committed encoder vi_simsiam, trained on cifar10;")
    assert f"These images {sentence} its training set (unlikeness {far:.2f}, " in said[1]


def test_an_order_agrees_with_other_encoders_and_more_than_chance():
    about = pd.DataFrame(
        {"encoder": ["vi_simsiam", "dino", "vje", "byol"], "spearman": [1.0, 0.35, -0.4, np.nan]}
    )
    generator = np.random.default_rng(0)
    n, order = 40, np.arange(40)

    def bound(text):
        return float(re.search(r"by chance alone up to (\d\.\d+)\)", text)[1])

    alone = own_images.agreement(
        about[:2], "vi_simsiam", n
    )  # one correlation: the one-sided 5 % of one
    assert alone.startswith("Of the other encoders dino agrees most")
    assert bound(alone) == pytest.approx(1.645 / np.sqrt(n - 1), abs=0.005)
    of_three = own_images.agreement(about, "", n)
    assert (
        of_three.startswith("Of the other encoders vi_simsiam agrees most")
        and "the largest of 3, of which 1 are negative;" in of_three
    )
    largest = [
        max(scipy.stats.spearmanr(generator.permutation(n), order).statistic for _ in range(3))
        for _ in range(4000)
    ]
    assert np.mean(np.array(largest) > bound(of_three)) == pytest.approx(0.05, abs=0.015)
    assert "dino comes nearest to the order by κ, but not beyond chance" in own_images.agreement(
        about, "vi_simsiam", 20
    )
    against = own_images.agreement(about[2:], "", n)
    assert (
        against.startswith("None of the other encoders agrees")
        and "-0.40" in against
        and "chance" not in against
    )
    assert own_images.agreement(about[:1], "vi_simsiam", n).startswith("There is no other encoder")


def test_a_collapsed_training_names_the_way_out(monkeypatch):
    def stop(*_):
        raise training.TrainingStopped("the outputs have collapsed.")

    monkeypatch.setattr(training, "train", stop)
    with pytest.raises(training.TrainingStopped, match="collapsed.*ENCODER=vi_simsiam"):
        own_images.score(None, "", {})


# ---------------------------------------------------------------------------------------------------------------- the whole way
@pytest.fixture(scope="module")
def scored(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("scored") / "the page"
    command = [
        sys.executable,
        "-m",
        "lib.pipeline.jobs",
        "--score",
        str(folder["root"]),
        "--profile",
        "smoke",
        "--epochs",
        "1",
        "--out",
        str(output),
    ]
    done = subprocess.run(
        command,
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return {"output": output, "done": done}


def test_a_folder_is_scored_from_end_to_end(folder, scored, surveyed):
    output, done = scored["output"], scored["done"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Open the page: {output / 'index.html'}" in done.stdout
    kappa, files = (
        pd.read_csv(output / f"{name}.csv", keep_default_na=False) for name in ("kappa", "files")
    )
    used = surveyed[1][surveyed[1].status == "used"]
    assert (
        sorted(kappa.file) == sorted(used.file)
        and (kappa.kappa > 0).all()
        and kappa["rank"].is_monotonic_increasing
    )
    assert (
        files.file.tolist() == surveyed[1].file.tolist()
        and files.status.tolist() == surveyed[1].status.tolist()
    )
    found = pd.read_csv(output / "near_duplicates.csv")
    for original, copy in folder["copies"].items():
        (group,) = found.group[found.file.str.contains(copy, regex=False)]
        assert found.file[found.group == group].str.contains(original, regex=False).any()
    for name in ("most_certain", "least_certain"):
        with Image.open(output / f"{name}.png") as sheet:
            assert min(sheet.size) > 400
    assert not list(output.rglob(".[!l]*")), "temporary files were left"
    config = artifacts.read_json(
        next(output.glob("smoke/runs/vi_simsiam-own_images-e1-*/config.json"))
    )
    assert config["finished"] and config["data"]["images"] == len(used)


def test_a_folder_is_scored_by_a_committed_encoder_without_training(tmp_path):
    folder, output = tmp_path / "images", tmp_path / "page"
    images = data.load("generated", "test").subset(range(own_images.FEWEST))
    folder.mkdir()
    for place, image in enumerate(images.images):
        Image.fromarray(image).save(folder / f"{place:03}.png")
    given = [
        "--score",
        str(folder),
        "--profile",
        "smoke",
        "--encoder",
        "vi_simsiam",
        "--out",
        str(output),
    ]
    command = [sys.executable, "-m", "lib.pipeline.jobs", *given]
    done = subprocess.run(
        command,
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with the committed encoder vi_simsiam" in done.stdout and not list(
        output.rglob("config.json")
    ), "something was trained"
    kappa = pd.read_csv(output / "kappa.csv").set_index("file").kappa
    found, files = own_images.survey(folder, 64)
    np.testing.assert_allclose(
        kappa[files.file], own_images.ask("vi_simsiam", found)["kappa"], rtol=1e-5
    )
    assert (files.note == "enlarged to 64 px, which blurs it").all() and "enlarged to 64 px" in (
        output / "index.html"
    ).read_text()


def test_the_page_escapes_names_and_loads_nothing(scored):
    page = (scored["output"] / "index.html").read_text()
    assert (
        "&lt;script&gt;alert(1)&lt;" in page
        and "<script" not in page
        and "<img src=x" not in page
        and 'onerror="' not in page
    )
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {
        "data:,",
        "kappa.csv",
        "files.csv",
        "near_duplicates.csv",
        "encoders.csv",
        "most_certain.png",
        "least_certain.png",
    }
    parts = [
        "epochs (seed 0, profile smoke",
        "not</strong> a grade of image quality",
        "10 unreadable",
        "2 linked from elsewhere",
        "panorama.png",
    ]
    assert [part for part in parts if part not in page] == [] and "By sub-folder" in page
    executed = next((scored["output"] / "smoke" / "notebooks").glob("*.html")).read_text()
    assert "<script" not in executed and "<img src=x" not in executed


def test_a_second_score_does_not_train_again(folder, scored, surveyed, monkeypatch):
    """The run belongs to these images and settings: it is found again, and other images are not taken for them."""
    monkeypatch.setattr(artifacts, "RESULTS", scored["output"])
    images = own_images.survey(folder["root"], 64)[0]
    settings = own_images.training_settings(len(images), "smoke", epochs=1)
    monkeypatch.setattr(training._Loop, "run", lambda *_: pytest.fail("trained again"))
    assert len(own_images.score(images, "", settings)["kappa"]) == len(images)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--score", "nowhere at all"], "nowhere at all is not a folder"),
        (["--score", "{images}", "--out", "{images}/out"], "inside the folder that is scored"),
        (["--score", "{images}", "--epochs", "many"], "EPOCHS=many is not a number of epochs"),
    ],
)
def test_what_cannot_be_scored_is_said_at_once(arguments, message, tmp_path):
    (tmp_path / "images").mkdir()
    filled = [argument.format(images=tmp_path / "images") for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "lib.pipeline.jobs", *filled],
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xf6rtlich"
    os.mkdir(folder)
    with pytest.raises(ValueError, match=r"udcf6rtlich' is not UTF-8, .*rename the folder"):
        reproduction.score(os.fsdecode(folder), "smoke", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_results_of_another_folder_are_not_overwritten(tmp_path):
    for year in ("2023", "2024"):
        (tmp_path / year / "photos").mkdir(parents=True)
    output = tmp_path / "results"
    output.mkdir()
    for made in (
        "index.html",
        "smoke/runs/a-run/config.json",
    ):  # a page, or a training that was interrupted
        (output / "scored_folder.txt").write_text(str(tmp_path / "2023" / "photos"))
        artifacts.write_text(output / made, "theirs")
        with pytest.raises(
            ValueError, match="holds the results of .*2023/photos: give another place, OUT=folder"
        ):
            reproduction.score(str(tmp_path / "2024" / "photos"), "smoke", out=str(output))
        assert (output / "scored_folder.txt").read_text().endswith("2023/photos")
        (output / made).unlink()
    shutil.rmtree(output / "smoke")
    assert reproduction.score(str(tmp_path / "2024" / "photos"), "smoke", out=str(output)) == 1, (
        "there is no image"
    )
    assert (output / "scored_folder.txt").read_text().endswith("2024/photos"), (
        "of a folder that was refused there is nothing to keep"
    )


def test_files_that_are_not_of_make_score_are_not_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my own page")
    with pytest.raises(
        ValueError, match="site holds index.html, not of make score: give another place, OUT=folder"
    ):
        reproduction.score(str(tmp_path / "photos"), "smoke", out=str(tmp_path / "site"))
    assert (tmp_path / "site" / "index.html").read_text() == "my own page" and [
        path.name for path in (tmp_path / "site").iterdir()
    ] == ["index.html"]


def test_make_score_without_images_says_how_to_call_it():
    environment = {name: value for name, value in os.environ.items() if name != "IMAGES"}
    done = subprocess.run(
        ["make", "score"], cwd=artifacts.ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and done.stderr.startswith("usage: make score IMAGES=folder")


def test_make_notebook_without_a_number_says_how_to_call_it():
    done = subprocess.run(
        ["make", "notebook", "N="], cwd=artifacts.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("usage: make notebook N=10")


def test_make_takes_a_folder_as_it_was_typed(tmp_path):
    folder = tmp_path / "a $x and 'b'"
    folder.mkdir()
    printing = ["--eval", 'typed:; @printf %s "$$IMAGES"']
    for given, environment in (
        ([f"IMAGES={folder}"], os.environ),
        ([], os.environ | {"IMAGES": str(folder)}),
    ):
        done = subprocess.run(
            ["make", "-s", *printing, "typed", *given],
            cwd=artifacts.ROOT,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.stdout == str(folder), done.stderr


def test_make_refuses_a_variable_that_nothing_reads():
    done = subprocess.run(
        ["make", "-n", "reproduce", "PROFIL=smoke"],
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2 and "No target reads PROFIL; the variables are PROFILE" in done.stderr
    )
    assert not subprocess.run(
        ["make", "-n", "reproduce", "PROFILE=smoke", "JOBS=2"],
        cwd=artifacts.ROOT,
        capture_output=True,
    ).returncode


def test_the_example_has_what_the_notebook_shows(tmp_path):
    own_images.example(tmp_path)
    images, files = own_images.survey(tmp_path, 64)
    assert files.status.value_counts().to_dict() == {
        "used": 101,
        "broken": 1,
        "tiny": 1,
    } and images.classes == [".", "even", "odd"]
    assert own_images.near_duplicates(images.images).group.nunique() >= 3


def test_a_contact_sheet_shows_the_ranked_in_reading_order():
    images = np.zeros((64, 16, 16, 3), np.uint8)
    images[:, :, :, 0] = np.arange(64)[:, None, None]
    table = pd.DataFrame(
        {"index": np.arange(64)[::-1], "rank": np.arange(1, 65), "kappa": np.arange(64.0, 0, -1)}
    )
    figure = own_images.contact_sheet(images, table)
    first = figure.axes[9].get_images()[0].get_array()
    assert len(figure.axes) == 32
    assert first[0, 0, 0] == 54
    assert figure.axes[9].get_xlabel() == "10 · 55"
