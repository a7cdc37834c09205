"""Figure style, the look of every method, saving figures with their data and provenance, and the few chart functions of the notebooks.

A chart function takes a tidy DataFrame and an Axes; most return the DataFrame of exactly what they drew, which is what goes into
`save_figure(..., data=...)`. Sizes are inches at print size; no text is smaller than 6 pt.
"""

import contextlib
import io
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import oxipng
import pandas as pd
from fontTools import subset
from matplotlib import cbook, patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine, PlaceHolderLayoutEngine
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation
from PIL import Image as Picture
from PIL import ImageChops

from lib.evaluation.intervals import mean_over_seeds
from lib.evaluation.uncertainty import (
    confidence_bins,
    confidence_calibration_error,
    risk_coverage_curve,
    roc_curve,
)
from lib.runs import store as artifacts
from lib.runs.settings import ILLUSTRATIONS

COLUMN, TEXT, PAGE, SQUARE = (
    (3.25, 2.0),
    (5.5, 2.0),
    (6.875, 2.2),
    (2.6, 2.6),
)  # width, height of one row of panels
TILE, GAP = 0.5, 1 / 150
SMALLEST_TEXT = 6.0
FEWEST_IN_BIN = 50  # images of a reliability diagram's bin whose accuracy is worth reading
CANVASES = {"pdf": FigureCanvasPdf, "svg": FigureCanvasSVG, "png": FigureCanvasAgg}
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
SVG, HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
LINK, FINE = re.compile(r"(?<=url\(#)[\w.-]+|(?<=^#)[\w.-]+"), re.compile(r"-?\d+\.\d{4,}")
PLACE = re.compile(
    r"^[-\d.A-Zz\s]+$|(?<=translate\()[^)]+"
)  # the numbers that are lengths, not those of a scale or a turn
NOTEBOOK_DPI = 120  # of the pictures in executed notebooks
SCREEN_DPI = 150  # of PNG of profiles that are no evidence; their PDF and SVG are as fine as any
# Of a stored picture: the colours of its palette, and the share of pixels that it may change by so many of 255 levels, the rest by the last number.
# Sixteen, half a byte a pixel, are for charts: there the smoothed edges of lines and letters change, but no surface whose shades would show as steps.
PALETTES = ((16, 0.97, 5, 48), (32, 0.995, 5, 15), (64, 0.995, 5, 15), (256, 0.995, 10, 30))
MOST_PIXELS = (
    4000  # of a picture from top to bottom: a longer page is drawn coarser than the style says
)
MAX_BYTES = {"pdf": 1_000_000, "svg": 1_000_000, "png": 500_000}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])")


for prefix, namespace in (("", SVG), ("xlink", HREF)):
    ElementTree.register_namespace(prefix, namespace[1:].partition("}")[0])


class MethodStyle(NamedTuple):
    label: str
    colour: str
    marker: str | tuple
    line: str | tuple
    fill: bool  # generative and probabilistic methods are filled, discriminative and reference methods hollow
    text_colour: str  # at least 4.5:1 on white


BLUE, BLACK, GREY, INK, CHANCE = "#0072B2", "#000000", "#595959", "#222222", "#8c8c8c"
SKY, NAVY = "#3A9BD9", "#003A5C"  # of BLUE's variants

# Colours of papers keep their distance (CAM02-UCS) under deutan, protan and tritan vision; further baselines get no colour, only a marker.
METHODS = {
    "vi_simsiam": MethodStyle("VI-SimSiam", BLUE, "o", "-", True, BLUE),
    "vi_simsiam_2022": MethodStyle("VI-SimSiam (2022)", BLUE, "P", (0, (1, 0.8)), True, BLUE),
    "vi_simsiam_undivided": MethodStyle(
        "VI-SimSiam (undivided)", BLUE, "*", (0, (8, 1, 2, 1)), True, BLUE
    ),
    "vi_simsiam_detached": MethodStyle(
        "VI-SimSiam (κ detached)", SKY, "p", (0, (3, 1, 1, 1, 1, 1)), True, BLUE
    ),
    "vi_simsiam_read_out": MethodStyle(
        "κ read out of SimSiam", NAVY, (4, 1, 0), (0, (2, 1, 1, 1)), False, BLUE
    ),
    "vi_simsiam_fixed": MethodStyle(
        "VI-SimSiam (κ fixed)", NAVY, "2", (0, (5, 1, 1, 1)), False, BLUE
    ),
    "simvae": MethodStyle("SimVAE", "#D55E00", "s", (0, (6, 1.5)), True, "#C15500"),
    "simvae_public_code": MethodStyle(
        "SimVAE (public code)", "#D55E00", "3", (0, (2, 1.5)), True, "#C15500"
    ),
    "prosmin": MethodStyle("ProSMin", "#009E73", "^", (0, (3, 1.5)), True, "#008661"),
    "prosmin_public_code": MethodStyle(
        "ProSMin (public code)", "#009E73", "4", (0, (1, 1, 3, 1)), True, "#008661"
    ),
    "prosmin_vit": MethodStyle("ProSMin, ViT", "#009E73", "X", (0, (5, 2, 1, 2)), True, "#008661"),
    "vje": MethodStyle("VJE", "#CC79A7", "D", "-.", True, "#A26085"),
    "simsiam": MethodStyle("SimSiam", BLACK, "o", ":", False, INK),
    "simclr": MethodStyle("SimCLR", BLACK, "s", (0, (4, 1, 1, 1, 1, 1)), False, INK),
    "barlow_twins": MethodStyle("Barlow Twins", BLACK, "p", (0, (9, 1)), False, INK),
    "byol": MethodStyle("BYOL", BLACK, "h", (0, (1, 1, 4, 1)), False, INK),
    "byol_without_average": MethodStyle(
        "BYOL without average", BLACK, "X", (0, (1, 3, 4, 1)), False, INK
    ),
    "directpred": MethodStyle("DirectPred", BLACK, "D", (0, (3, 2, 1, 2)), False, INK),
    "dino": MethodStyle("DINO", BLACK, "v", (0, (2, 1)), False, INK),
    "dino_two_views": MethodStyle("DINO, two views", BLACK, "1", (0, (2, 3)), False, INK),
    "dino_vit": MethodStyle("DINO, ViT", BLACK, "P", (0, (2, 1, 2, 3)), False, INK),
    "ibot": MethodStyle("iBOT, ViT", BLACK, "<", (0, (5, 1, 2, 1)), False, INK),
    "moco": MethodStyle("MoCo", BLACK, "8", (0, (6, 1, 1, 2)), False, INK),
    "moco_v2": MethodStyle("MoCo v2", BLACK, ">", (0, (1, 2)), False, INK),
    "moco_v3": MethodStyle("MoCo v3", BLACK, "*", (0, (1, 2, 3, 2)), False, INK),
    "vicreg": MethodStyle("VICReg", BLACK, "^", (0, (7, 2)), False, INK),
    "vae": MethodStyle("VAE", GREY, "v", (0, (4, 2)), True, GREY),
    "beta_vae": MethodStyle("β-VAE", GREY, "<", (0, (3, 1, 1, 1)), True, GREY),
    "cr_vae": MethodStyle("CR-VAE", GREY, ">", (0, (1, 1)), True, GREY),
    "supervised": MethodStyle("Supervised", GREY, "x", (0, ()), False, GREY),
    "random": MethodStyle("Random initialisation", GREY, "+", (0, (1, 3)), False, GREY),
    "random_vit": MethodStyle(
        "Random initialisation, ViT", GREY, (6, 2, 0), (0, (1, 3, 1, 1)), False, GREY
    ),
    "raw_pixels": MethodStyle("Raw pixels", GREY, "d", (0, (6, 3)), False, GREY),
}


def method_style(name: str) -> MethodStyle:
    """The one look of a method in all figures; on SimVAE's short representation (``<method>_latent``) it looks as it does elsewhere."""
    known = name.removesuffix("_latent")
    if known not in METHODS:
        raise ValueError(
            f"no style for method {name!r}: use one of {', '.join(METHODS)}, or add a row to lib.figures.charts.METHODS"
        )
    return METHODS[known]


def in_order(methods: Collection[str]) -> list[str]:
    """These methods in the order of METHODS, a method on SimVAE's short representation behind its namesake."""
    return [found for name in METHODS for found in (name, f"{name}_latent") if found in methods]


def use_style() -> None:
    """Load figures/style.mplstyle."""
    plt.style.use(artifacts.ROOT / "figures" / "style.mplstyle")


def kappa_text(value: float) -> str:
    """A concentration, or another number, in words: whole from 100 on, three digits below."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def panel_letters(axes, away: float = 20) -> None:
    """Bold a, b, c at the top left, outside each of the axes (in reading order), this many points from its edge."""
    for letter, ax in zip("abcdefghijkl", np.ravel(axes), strict=False):
        ax.annotate(
            letter,
            (0, 1),
            (-away, 5),
            "axes fraction",
            "offset points",
            fontsize=8,
            fontweight="bold",
            va="baseline",
        )


def split_caption(caption: str) -> tuple[str, str]:
    """The claim (first sentence) of a caption, and the rest."""
    claim, *rest = SENTENCE_END.split(caption.strip(), maxsplit=1)
    return claim, rest[0] if rest else ""


# ---------------------------------------------------------------------------------------------------------------- saving


def closing_sentence(id: str, notebook: str) -> str:
    """What every stored caption ends with."""
    return f"Drawn by {notebook}, data in {id}.csv."


def save_figure(
    figure: Figure | None,
    id: str,
    *,
    caption: str,
    alt: str,
    data: pd.DataFrame,
    profile: str,
    notebook: str,
    claims=(),
    inputs=(),
) -> None:
    """Write results/<profile>/figures/<id>.{pdf,svg,png,csv,json}; in a notebook, show the figure and its caption.

    caption: 40-120 words with the closing sentence that is added here; its first sentence is the claim. alt: two sentences, the trend in
    words. data: exactly what is drawn, tidy, units in the column names; 5 digits are kept. notebook: its name, whose number starts the id.
    claims: ids in settings/claims.toml. inputs: the files that were read, stored with their hashes.
    Dates are left out of all formats, so the same data drawn with the same matplotlib give the same bytes.

    figure: None keeps the stored pictures, of networks that are not here, with the caption and data of today; the caption says so.
    """
    folder = artifacts.results_dir(profile) / "figures"
    older = {} if figure else {"pictures_of": _commit_of_pictures(folder / f"{id}.json")}
    kept = "".join(
        f" The pictures are those of commit {name}, older than the numbers."
        for name in older.values()
    )
    caption = (
        f"{' '.join(caption.split())}{kept} {closing_sentence(id, notebook)}"
        if caption.strip()
        else ""
    )
    _check_record(id, caption, alt, data, notebook)
    for kind, content in (_pictures(figure, id, profile) if figure else {}).items():
        artifacts.write_bytes(folder / f"{id}.{kind}", content)
    artifacts.write_csv(folder / f"{id}.csv", data, digits=5)
    record = {
        "id": id,
        "caption": caption,
        "alt": alt,
        "claims": list(claims),
        "notebook": notebook,
        "profile": profile,
        "inputs": _hashes(inputs),
        "commit": artifacts.commit(),
    }
    artifacts.write_json(
        folder / f"{id}.json", record | older
    )  # last: the gallery lists a figure by its json, so only complete ones
    _show(figure, id, profile, caption, alt)


def _pictures(figure: Figure, id: str, profile: str) -> dict[str, bytes]:
    """The figure in every format, its layout settled; ValueError for one that is too large to keep."""
    _settle(figure, id)
    coarse = {"png": SCREEN_DPI} if profile in ILLUSTRATIONS else {}
    pictures = {kind: _render(figure, kind, coarse.get(kind)) for kind in CANVASES}
    for kind, content in pictures.items():
        if len(content) > MAX_BYTES[kind]:
            raise ValueError(
                f"{id}.{kind} has {len(content):,} bytes, the limit is {MAX_BYTES[kind]:,}: "
                + (
                    "show fewer or smaller images"
                    if kind == "png"
                    else "rasterise what has more than 2,000 points (rasterized=True)"
                )
            )
    return pictures


def _commit_of_pictures(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"no stored picture of {path.stem} to keep: pass the figure")
    record = artifacts.read_json(path, ("commit",))
    return record.get("pictures_of", record["commit"])


def stored_data(id: str, profile: str, inputs) -> pd.DataFrame | None:
    """The data of a stored figure, classes as text; None unless it was drawn from inputs and these are what they were then.

    For what takes a network to compute, such as a map of its features, where the network is not at hand.
    """
    path = artifacts.results_dir(profile) / "figures" / f"{id}.json"
    same = (
        path.exists()
        and all(Path(name).exists() for name in inputs)
        and artifacts.read_json(path, ("inputs",))["inputs"] == _hashes(inputs)
    )
    return artifacts.read_csv(path.with_suffix(".csv"), dtype={"class": str}) if same else None


def _hashes(inputs) -> dict[str, str]:
    return {_relative(path): artifacts.sha256(Path(path)) for path in inputs}


def _check_record(id: str, caption: str, alt: str, data: pd.DataFrame, notebook: str) -> None:
    prefix = notebook[:3] if notebook[:2].isdigit() else f"{Path(notebook).name.removesuffix('s')}_"
    if not re.fullmatch(r"[a-z0-9_]+", id) or not id.startswith(prefix):
        raise ValueError(
            f"figure id {id!r} must be lower case and start with the number of notebook {notebook!r}, as in 30_kappa_by_class"
        )
    words = len(caption.split())
    if not 40 <= words <= 120:
        raise ValueError(
            f"the caption of {id} has {words} words, closing sentence included: write 40 to 120 (claim, what, n, what varies)"
        )
    sentences = len(SENTENCE_END.split(alt.strip())) if alt.strip() else 0
    if sentences != 2:
        raise ValueError(
            f"the alternative text of {id} has {sentences} sentences: write two that say the trend in words"
        )
    numbers = data.select_dtypes("number")
    if (
        data.empty
        or data.isna().all(axis=None)
        or (numbers.shape[1] > 0 and numbers.isna().all(axis=None))
    ):
        raise ValueError(
            f"the data of {id} are empty or all NaN ({len(data)} rows): pass exactly what is drawn"
        )


def _places(figure: Figure) -> list[list[float]]:
    return [[round(side, 6) for side in ax.get_position().bounds] for ax in figure.axes]


def _outside(figure: Figure, page: np.ndarray) -> list[float]:
    """Inches that are drawn beyond the left, bottom, right and top of the page."""
    drawn = figure.get_tightbbox()
    return [
        max(0.0, -drawn.x0),
        max(0.0, -drawn.y0),
        max(0.0, drawn.x1 - page[0]),
        max(0.0, drawn.y1 - page[1]),
    ]


def _settle(figure: Figure, id: str) -> None:
    """Fix the layout, the same for all formats, and refuse text that is too small or leaves the page.

    Constrained layout leaves some labels out of account (a tick's at the end of an axis); where those leave the page, it gets the page without them.
    """
    page, engine = figure.get_size_inches(), figure.get_layout_engine()
    for _ in range(3):
        figure.draw_without_rendering()
        places = [_places(figure)]
        for _ in range(
            3 if engine else 0
        ):  # one pass of constrained layout does not settle axes of equal aspect
            engine.execute(figure)
            places.append(_places(figure))
            if places[-1] == places[-2]:
                break
        outside = _outside(figure, page)
        if max(outside) <= 0.03 or not isinstance(engine, ConstrainedLayoutEngine):
            break
        left, bottom, width, height = engine.get()["rect"]
        sides = [
            inches / page[place % 2] for place, inches in enumerate(outside)
        ]  # left, bottom, right, top as shares of the page
        engine.set(
            rect=(
                left + sides[0],
                bottom + sides[1],
                width - sides[0] - sides[2],
                height - sides[1] - sides[3],
            )
        )
    # A figure without an engine would get the style's one back after each rendering; a placeholder keeps the layout as it is.
    figure.set_layout_engine(
        "none" if figure.get_layout_engine() else PlaceHolderLayoutEngine(True, True)
    )
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.get_fontsize() < SMALLEST_TEXT:
            raise ValueError(
                f"{text.get_text()!r} in {id} is set in {text.get_fontsize():g} pt: use at least {SMALLEST_TEXT:g} pt"
            )
    outside = max(_outside(figure, page))
    if outside > 0.03:
        raise ValueError(
            f"{id} draws {outside:.2f} in outside its page of {page[0]:g} x {page[1]:g} in: create it larger or shorten its labels"
        )


@contextlib.contextmanager
def without_layout_tables():
    """Leave out of embedded fonts what is of use until the glyphs are placed: to read those tables takes longer than all else in a PDF."""
    usual = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*usual, "GDEF", "GPOS", "GSUB"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = usual


def _render(figure: Figure, kind: str, dpi: float | None = None) -> bytes:
    """The picture in one drawing: savefig draws twice, for a layout that _settle has fixed by now."""
    buffer = io.BytesIO()
    canvas, figure_dpi = figure.canvas, figure.dpi
    # Font type, hash salt and box hold whoever made the figure.
    with plt.style.context(artifacts.ROOT / "figures" / "style.mplstyle"), without_layout_tables():
        try:
            figure.dpi = dpi or plt.rcParams["savefig.dpi"]
            if kind == "png":
                figure.dpi = min(figure.dpi, MOST_PIXELS // figure.get_figheight())
            drawn = CANVASES[kind](figure)
            if kind == "png":
                drawn.draw()
                return _png(
                    Picture.fromarray(np.asarray(drawn.buffer_rgba())).convert("RGB"),
                    round(figure.dpi),
                )
            getattr(drawn, f"print_{kind}")(buffer, metadata=UNDATED[kind])
        finally:
            figure.set_canvas(canvas)
            figure.dpi = figure_dpi
    return _slim(buffer.getvalue()) if kind == "svg" else buffer.getvalue()


def _slim(svg: bytes) -> bytes:
    """The same picture in three fifths of matplotlib's bytes: styles as classes, short names, thousandths of a point, no metadata or white space."""
    root, names, classes = ElementTree.fromstring(svg), {}, {}
    root.remove(root.find(f"{SVG}metadata"))
    for element in root.iter():
        for key in filter(element.attrib.__contains__, (HREF, "clip-path", "style")):
            element.set(
                key,
                LINK.sub(
                    lambda link: names.setdefault(link[0], f"a{len(names)}"), element.get(key)
                ),
            )
    for element in root.iter():
        element.tail = None
        if element.tag != f"{SVG}style":
            element.text = None
        for key in filter(element.attrib.__contains__, ("d", "x", "y", "transform")):
            value = PLACE.sub(
                lambda place: FINE.sub(
                    lambda number: f"{float(number[0]):.3f}".rstrip("0").rstrip("."), place[0]
                ),
                element.get(key),
            )
            element.set(key, re.sub(r"\s*\n\s*|(?<=[A-Za-z]) ", "", value) if key == "d" else value)
        if style := element.attrib.pop("style", ""):
            element.set("class", classes.setdefault(style, f"s{len(classes)}"))
        if (name := element.attrib.pop("id", None)) in names:
            element.set("id", names[name])
    root.find(f"{SVG}defs/{SVG}style").text += "".join(
        f".{name}{{{style}}}" for style, name in classes.items()
    )
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _png(image: Picture.Image, dpi: int) -> bytes:
    """A PNG with the first of PALETTES that changes no pixel by more than is said there; with all colours where none does. Packed without loss."""
    for colours, share, tolerance, most in PALETTES:
        reduced = image.quantize(
            colours, Picture.Quantize.MAXCOVERAGE, kmeans=1, dither=Picture.Dither.NONE
        )
        change = np.asarray(ImageChops.difference(reduced.convert("RGB"), image)).max(
            axis=2
        )  # [H, W]
        if np.quantile(change, share) <= tolerance and change.max() <= most:
            image = reduced
            break
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, dpi=(dpi, dpi))
    return oxipng.optimize_from_memory(
        buffer.getvalue(), level=2, deflate=oxipng.Deflaters.libdeflater(12)
    )


def _relative(path: str | Path) -> str:
    path = Path(path).resolve()
    for folder, name in ((artifacts.RESULTS.resolve(), "results"), (artifacts.ROOT, "")):
        if path.is_relative_to(folder):
            return (Path(name) / path.relative_to(folder)).as_posix()
    return path.name


def picture(figure: Figure, alt: str):
    """A figure as an image for the notebook, where reproduction.begin has switched off that matplotlib shows figures; the figure is closed."""
    from IPython.display import Image

    content = _compact(_render(figure, "png", dpi=NOTEBOOK_DPI))
    plt.close(figure)
    return Image(content, alt=alt)


def _compact(png: bytes) -> bytes:
    """A picture for a notebook: as JPEG where that saves a fifth, as of photographs; charts, whose lines it would blur, stay as they are."""
    buffer = io.BytesIO()
    Picture.open(io.BytesIO(png)).convert("RGB").save(
        buffer, "JPEG", quality=85, subsampling=0, optimize=True
    )
    return buffer.getvalue() if len(buffer.getvalue()) <= 0.8 * len(png) else png


def _show(figure: Figure | None, id: str, profile: str, caption: str, alt: str) -> None:
    from IPython import get_ipython
    from IPython.display import Markdown, display

    if get_ipython() is not None:
        claim, rest = split_caption(caption)
        display(
            picture(figure, alt) if figure else stored_picture(id, profile),
            Markdown(f"**{claim}** {rest}"),
        )
    if figure:
        plt.close(figure)


def show_committed(id: str, profile: str):
    """The stored picture of a figure, for where its pixels or network are absent; prints its caption and the command that recomputes it."""
    image = stored_picture(id, profile)
    print(
        f"Stored picture of {id} (profile {profile}): what it is computed from is not here. To recompute it: make reproduce PROFILE={profile}"
    )
    print(
        artifacts.read_json(
            artifacts.results_dir(profile) / "figures" / f"{id}.json", ("caption",)
        )["caption"]
    )
    return image


def stored_picture(id: str, profile: str):
    """The stored picture of a figure as an image for the notebook."""
    from IPython.display import Image

    path = artifacts.results_dir(profile) / "figures" / f"{id}.json"  # written last
    if not path.exists():
        raise FileNotFoundError(
            f"no stored figure {id} for profile {profile}: run `make reproduce PROFILE={profile}` to draw it"
        )
    record = artifacts.read_json(path, ("alt",))
    with Picture.open(path.with_suffix(".png")) as stored:
        size = [
            round(pixels * NOTEBOOK_DPI / round(stored.info.get("dpi", (300, 300))[0]))
            for pixels in stored.size
        ]
        small = stored.convert("RGB").resize(size, Picture.Resampling.LANCZOS)
    return Image(_compact(_png(small, NOTEBOOK_DPI)), alt=record["alt"])


# ---------------------------------------------------------------------------------------------------------------- helpers


def _require(data: pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in data]
    if missing:
        raise ValueError(
            f"the data have no column {', '.join(missing)}: they have {', '.join(map(str, data.columns))}"
        )
    if data.empty:
        raise ValueError("the data have no rows: nothing to draw")
    incomplete = [column for column in columns if data[column].isna().any()]
    if incomplete:
        raise ValueError(
            f"column {', '.join(incomplete)} holds NaN: drop or repair those rows before drawing"
        )


def _require_positive(data: pd.DataFrame, value: str) -> None:
    _require(data, value)
    if not (data[value] > 0).all() or not np.isfinite(data[value]).all():
        raise ValueError(
            f"{value} must be positive and finite on a log axis: found {data[value].min():g} to {data[value].max():g}"
        )


def _ordered(values: pd.Series, order=None) -> list:
    """Groups in the order asked for, or of first appearance."""
    present = list(pd.unique(values))
    if order is None:
        return present
    absent, left_out = set(order) - set(present), set(present) - set(order)
    if absent or left_out:
        raise ValueError(
            f"order and data disagree: {sorted(map(str, absent))} not in the data, {sorted(map(str, left_out))} not in order"
        )
    return list(order)


def _mix(colour: str, share: float) -> tuple:
    """A tint: `share` of the colour, the rest white."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour))


def _looks(names: list, hue: str = BLUE) -> dict:
    """Label, colour, line and text colour by name: a method's own look, otherwise the hue, black, grey and a tint with distinct lines."""
    lines = [
        "-",
        (0, (4, 1.2)),
        (0, (1, 1)),
        (0, (6, 1, 1, 1)),
        (0, (2, 1)),
        (0, (5, 1, 1, 1, 1, 1)),
        (0, (8, 2)),
        (0, (3, 1, 3, 1, 1, 1)),
    ]
    shades = [hue, BLACK, GREY, _mix(hue, 0.75)]
    own = {
        name: (
            METHODS[name].label,
            METHODS[name].colour,
            METHODS[name].line,
            METHODS[name].text_colour,
        )
        for name in names
        if name in METHODS
    }
    return {
        name: own.get(name, (str(name), shades[i % len(shades)], lines[i % len(lines)], INK))
        for i, name in enumerate(names)
    }


def _log_axis(axis, low: float, high: float) -> None:
    """Plain numbers on a log axis: powers alone would be set below 6 pt, and leave narrow ranges without a label."""
    decades = np.log10(high / low)
    axis._set_axes_scale("log")
    if decades < 0.6:
        axis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(ticker.NullLocator())
    else:
        axis.set_major_locator(
            ticker.LogLocator(
                subs=(1, 2, 5) if decades < 1.5 else (1, 3) if decades < 2.5 else (1,)
            )
        )
        axis.set_minor_locator(ticker.LogLocator(subs=range(2, 10)))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def _inches(ax: Axes) -> np.ndarray:
    return ax.bbox.size / ax.figure.dpi


def _spread(positions: np.ndarray, gap: float) -> np.ndarray:
    """Move positions apart until neighbours are at least `gap` away, keeping their order and mean."""
    from scipy.optimize import isotonic_regression  # slow to import

    order, steps, spread = (
        np.argsort(positions, kind="stable"),
        gap * np.arange(len(positions)),
        np.empty(len(positions)),
    )
    spread[order] = isotonic_regression(positions[order] - steps).x + steps
    return spread


def _label_ends(ax: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name (x, y, label, text colour) right of its end, moved apart where names would overlap."""
    ax.set(
        xlim=(ax.get_xlim()[0], max(x for x, *_ in ends)), ylim=ax.get_ylim()
    )  # the transform below holds for these limits
    transform = ax.transData + ax.transAxes.inverted()
    heights = np.array([transform.transform((x, y))[1] for x, y, *_ in ends])
    for (x, _, label, colour), height in zip(
        ends, _spread(heights, 8.5 / 72 / _inches(ax)[1]), strict=True
    ):
        at = transform.transform((x, 1))[0]
        ax.annotate(
            label,
            (at, height),
            (3, 0),
            "axes fraction",
            "offset points",
            color=colour,
            fontsize=6.5,
            va="center",
        )


def _legend_below(ax: Axes, *arguments, **options):
    """A legend under the axis label, 26 points below the axes: a share of the axes would grow and shrink with them."""
    anchor = ax.transAxes + ScaledTranslation(0, -26 / 72, ax.figure.dpi_scale_trans)
    return ax.legend(
        *arguments, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=anchor, **options
    )


def _thin(points: int) -> np.ndarray:
    """Indices of at most 100 evenly spaced points, both ends included."""
    return np.unique(np.linspace(0, points - 1, min(points, 100)).round().astype(int))


# ---------------------------------------------------------------------------------------------------------------- charts


def kappa_boxplots(
    ax: Axes,
    data: pd.DataFrame,
    group: str,
    order=None,
    *,
    correct: str | None = None,
    colour: str = BLUE,
    whiskers: float | tuple = 1.5,
) -> pd.DataFrame:
    """Boxes of κ by group on a log axis; with `correct` (a boolean column) right predictions are filled and wrong ones hollow.

    Box: quartiles of κ. Line: median. Whiskers: the furthest values within 1.5 interquartile ranges of log κ, the axis's
    own, or two percentiles, where a few values near zero would stretch them over decades.
    Outliers are drawn only for groups of at most 200. n stands under each box. order: a meaningful one; by default by median.
    Returns group, [correct,] n, median, q1, q3, whisker_low, whisker_high, outliers_drawn.
    """
    _require(data, group, *([correct] if correct else []))
    _require_positive(data, "kappa")
    order = _ordered(
        data[group],
        list(data.groupby(group)["kappa"].median().sort_values(kind="stable").index)
        if order is None
        else order,
    )
    shown = [True, False] if correct else [None]
    width = 0.8 / len(shown)
    places, extremes, rows = [], [], []
    for place, name in enumerate(order):
        for slot, right in enumerate(shown):
            chosen = (data[group] == name) & (
                True if right is None else data[correct].astype(bool) == right
            )
            values = data.loc[chosen, "kappa"].to_numpy(float)
            if len(values) == 0:
                continue
            box = cbook.boxplot_stats(values, whis=whiskers)[0]
            if np.isscalar(whiskers):
                reach = (box["q3"] / box["q1"]) ** whiskers
                inside = (box["q1"] / reach <= values) & (values <= box["q3"] * reach)
                box["whislo"] = values[inside].min(initial=box["q1"])
                box["whishi"] = values[inside].max(initial=box["q3"])
                box["fliers"] = values[~inside]
            if len(values) > 200:
                box["fliers"] = np.array([])
            extremes += [box["whislo"], box["whishi"], *box["fliers"]]
            places.append(place + (slot - (len(shown) - 1) / 2) * width)
            face, edge = "white" if right is False else _mix(colour, 0.45), {"color": colour}
            ax.bxp(
                [box],
                places[-1:],
                widths=0.85 * width,
                patch_artist=True,
                manage_ticks=False,
                whiskerprops=edge,
                capprops=edge,
                boxprops={"facecolor": face, "edgecolor": colour},
                flierprops={"marker": "o", "markeredgecolor": colour, "markerfacecolor": "none"},
            )
            summary = {
                "n": len(values),
                "median": box["med"],
                "q1": box["q1"],
                "q3": box["q3"],
                "whisker_low": box["whislo"],
            }
            summary |= {"whisker_high": box["whishi"], "outliers_drawn": len(box["fliers"])}
            rows.append({group: name} | ({correct: right} if correct else {}) | summary)
    drawn = pd.DataFrame(rows)
    _log_axis(ax.yaxis, min(extremes), max(extremes))
    ax.set(ylabel="Concentration κ", xlim=(-0.6, len(order) - 0.4))
    small = {"textcoords": "offset points", "fontsize": SMALLEST_TEXT, "va": "top"}
    for place, n in zip(places, drawn["n"], strict=True):
        ax.annotate(f"{n:,}", (place, 0), (0, -3), ("data", "axes fraction"), ha="center", **small)
    ax.annotate("n", (0, 0), (-4, -3), "axes fraction", ha="right", fontstyle="italic", **small)
    _name_ticks(ax, order)
    if correct:
        handles = [
            plt.Rectangle((0, 0), 1, 1, facecolor=face, edgecolor=colour)
            for face in (_mix(colour, 0.45), "white")
        ]
        ax.legend(
            handles,
            ["right", "wrong"],
            ncols=2,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            handlelength=1.2,
            title=None,
        )
    return drawn


def _name_ticks(ax: Axes, names: list) -> None:
    """Group names under the row of n: wrapped where they fit in words, slanted where they do not."""
    characters = max(
        1, int(_inches(ax)[0] / len(names) * 72 / 4.2)
    )  # 4.2 pt: a generous mean width of a 6.5 pt letter
    wrapped = [
        textwrap.fill(str(name).replace("/", "/ "), characters, break_long_words=False).replace(
            "/ ", "/"
        )
        for name in names
    ]
    slanted = max(len(line) for text in wrapped for line in text.splitlines()) > characters
    ax.set_xticks(range(len(names)), names if slanted else wrapped)
    ax.tick_params(axis="x", which="major", length=0, pad=11)
    if slanted:
        plt.setp(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")


def log_histogram(
    ax: Axes, data: pd.DataFrame, group: str, order=None, *, bins: int = 40
) -> pd.DataFrame:
    """Densities of log₁₀ κ by group as step lines over common bins; groups of at most 50 get a rug. Each line integrates to one.

    Returns group, bin_low, bin_high, count, density (per decade of κ).
    """
    _require(data, group)
    _require_positive(data, "kappa")
    order = _ordered(data[group], order)
    logs = np.log10(data["kappa"])
    edges, rows = np.histogram_bin_edges(logs, bins), []
    for name, (label, shade, line, _) in _looks(order).items():
        inside = logs[data[group] == name].to_numpy()
        counts, _ = np.histogram(inside, edges)
        density = counts / counts.sum() / np.diff(edges)
        ax.stairs(
            density,
            10**edges,
            baseline=None,
            color=shade,
            linestyle=line,
            linewidth=1.2,
            label=f"{label} (n = {len(inside):,})",
        )
        if len(inside) <= 50:
            ax.plot(
                10**inside, np.zeros(len(inside)), "|", color=shade, markersize=6, clip_on=False
            )
        table = {
            "bin_low": 10 ** edges[:-1],
            "bin_high": 10 ** edges[1:],
            "count": counts,
            "density": density,
        }
        rows.append(pd.DataFrame({group: name} | table))
    _log_axis(ax.xaxis, 10 ** edges[0], 10 ** edges[-1])
    ax.set(xlabel="Concentration κ", ylabel="Density per decade of κ", ylim=(0, None))
    _legend_below(ax, ncols=1 if len(order) == 1 or _inches(ax)[0] < 2.6 else 2)
    return pd.concat(rows, ignore_index=True)


def roc_plot(ax: Axes, data: pd.DataFrame, summary: pd.DataFrame, *, positive: str) -> pd.DataFrame:
    """ROC curves from `data` (curve, score, positive), labelled with AUROC and its interval from `summary` (curve, auroc, ci_low, ci_high).

    positive: the positive class in words. The labels of more than two curves, for which the free triangle of a 2.6 in square has no room, stand
    under the axes (0.2 in more height for each line).
    Returns curve, false_positive_rate, true_positive_rate (at most 100 points of each curve, to six digits), auroc, ci_low, ci_high.
    """
    _require(data, "curve", "score", "positive")
    _require(summary, "curve", "auroc", "ci_low", "ci_high")
    order = _ordered(data["curve"])
    summary = summary.set_index("curve")
    if not summary.index.is_unique or set(summary.index) != set(order):
        raise ValueError(
            f"summary must have one row for each of {order}: it has {list(summary.index)}"
        )
    rows, looks = [], _looks(order)
    for name, (label, shade, line, _) in looks.items():
        part = data[data["curve"] == name]
        false_positive, true_positive, _ = roc_curve(part["score"], part["positive"])
        kept = _thin(len(false_positive))
        auroc, low, high = summary.loc[name, ["auroc", "ci_low", "ci_high"]]
        named = f"{label}\n{auroc:.3f} [{low:.3f}, {high:.3f}]"
        ax.plot(false_positive[kept], true_positive[kept], color=shade, linestyle=line, label=named)
        rows.append(
            pd.DataFrame(
                {
                    "curve": name,
                    "false_positive_rate": false_positive[kept],
                    "true_positive_rate": true_positive[kept],
                }
            ).assign(auroc=auroc, ci_low=low, ci_high=high)
        )
    drawn = pd.concat(rows, ignore_index=True).round(6)
    ax.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.6, zorder=1)
    ax.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="False positive rate",
        ylabel="True positive rate",
        aspect="equal",
    )
    ax.set_title(f"positive: {positive}", fontsize=7)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    # The curves leave one triangle of the square free: the lower right one if they beat chance.
    style = {
        "title": "AUROC [95 % interval]",
        "handlelength": 1.8,
        "labelspacing": 0.35,
        "labelcolor": [look[-1] for look in looks.values()],
    }
    if len(order) > 2:
        _legend_below(ax, **style)
    else:
        ax.legend(loc="lower right" if summary["auroc"].mean() >= 0.5 else "upper left", **style)
    return drawn


def risk_coverage_plot(ax: Axes, data: pd.DataFrame) -> pd.DataFrame:
    """Error among the most certain images against the share of images kept, from `data` (curve, uncertainty, correct).

    Equal uncertainties share their mean error, as in the expectation over random orders. A thin line shows the error of the whole set:
    what an uninformative score gives. Curves start at 1 % of the images: below, single images make them jump between 0 and 100 %.
    Returns curve, coverage, error (fractions, at most 100 points of each curve).
    """
    _require(data, "curve", "uncertainty", "correct")
    rows = []
    for name, (label, shade, line, _) in _looks(_ordered(data["curve"])).items():
        part = data[data["curve"] == name]
        coverage, error = risk_coverage_curve(part["uncertainty"], part["correct"])
        first = np.searchsorted(coverage, 0.01)
        kept = first + _thin(len(coverage) - first)
        ax.axhline(100 * error[-1], color=CHANCE, linewidth=0.6, zorder=1)
        ax.plot(100 * coverage[kept], 100 * error[kept], color=shade, linestyle=line, label=label)
        rows.append(pd.DataFrame({"curve": name, "coverage": coverage[kept], "error": error[kept]}))
    drawn = pd.concat(rows, ignore_index=True).round(6)
    top = drawn["error"].max()
    ax.set(
        xlim=(0, 100),
        ylim=(0, 108 * top if top > 0 else 1),
        xlabel="Images kept, most certain first (%)",
        ylabel="Error (%)",
    )
    _legend_below(ax, ncols=1 if _inches(ax)[0] < 2.6 else 2)
    return drawn


def tsne_plane(features: np.ndarray) -> np.ndarray:
    """Features [N, D] in the plane, [N, 2], by t-SNE with the settings of every figure: perplexity 30, PCA start, seed 0."""
    from sklearn.manifold import TSNE  # slow to import

    return TSNE(perplexity=30, init="pca", random_state=0).fit_transform(features)


def tsne_plot(ax: Axes, data: pd.DataFrame) -> pd.DataFrame:
    """t-SNE points (x, y, class, κ) coloured by log κ (limits: 1st and 99th percentile), class names at the median of their points.

    The order of drawing is shuffled, so that no class hides another. Returns the points in the order drawn.
    """
    _require_positive(data, "kappa")
    drawn, size = _shuffled_points(data, "kappa")
    low, high = np.percentile(drawn["kappa"], [1, 99])
    norm = LogNorm(low, high if high > low else low * 1.01)
    points = ax.scatter(
        drawn["x"],
        drawn["y"],
        c=drawn["kappa"],
        s=size,
        cmap="cividis",
        norm=norm,
        linewidths=0,
        rasterized=True,
    )
    _name_classes(ax, drawn)
    bar = ax.figure.colorbar(points, ax=ax, shrink=0.7, aspect=18, pad=0.02, extend="both")
    _log_axis(bar.ax.yaxis, low, high)
    bar.outline.set_visible(False)
    bar.set_label("Concentration κ")
    return drawn


def tsne_by_class(ax: Axes, data: pd.DataFrame) -> pd.DataFrame:
    """t-SNE points (x, y, class) coloured by class, with its name at the median of its points and, of at most 20, as a label for a legend; otherwise
    as tsne_plot."""
    from seaborn import color_palette  # slow to import

    drawn, size = _shuffled_points(data)
    names = sorted(drawn["class"].unique())
    colours = dict(zip(names, color_palette("colorblind", len(names)), strict=True))
    ax.scatter(
        drawn["x"],
        drawn["y"],
        c=[colours[name] for name in drawn["class"]],
        s=size,
        linewidths=0,
        rasterized=True,
    )
    for name, colour in colours.items() if len(names) <= 20 else ():
        ax.plot([], [], "o", color=colour, label=name)
    _name_classes(ax, drawn)
    return drawn


def _shuffled_points(data: pd.DataFrame, *also: str) -> tuple[pd.DataFrame, float]:
    """Points to draw in random order, and the size that suits their number."""
    _require(data, "x", "y", "class", *also)
    drawn = data[["x", "y", "class", *also]].sample(frac=1, random_state=0).reset_index(drop=True)
    return drawn, float(np.clip(8000 / len(drawn), 1.0, 8.0))


def _name_classes(ax: Axes, drawn: pd.DataFrame) -> None:
    """The names of the classes at the medians of their points, apart from one another; no axes."""
    ax.set_aspect("equal", adjustable="datalim")
    ax.axis("off")
    centres = drawn.groupby("class", sort=False)[["x", "y"]].median()
    extent = drawn["y"].max() - drawn["y"].min()
    gap, near = 0.055 * extent, 0.2 * (drawn["x"].max() - drawn["x"].min())
    columns = np.cumsum(
        np.diff(centres["x"].sort_values(), prepend=-np.inf) > near
    )  # names side by side cannot overlap
    columns = pd.Series(columns, centres["x"].sort_values().index)
    for _, members in columns.groupby(columns):
        heights = _spread(centres.loc[members.index, "y"].to_numpy(), gap)
        for name, height in zip(members.index, heights, strict=True):
            text = ax.text(
                centres.loc[name, "x"], height, str(name), ha="center", va="center", fontsize=6.5
            )
            text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="white")])


def image_grid(images, *, rows=None, columns=None, notes=None) -> Figure:
    """A figure of tiles of 0.5 in from uint8 images [R, C, H, W] or [R, C, H, W, 1 or 3], with text left of the rows and above the columns.

    notes: one text under each tile (such as its κ), [R][C]. Pixels are enlarged by nearest neighbour. The figure's CSV lists the
    indices shown.
    """
    images = np.asarray(images)
    if (
        images.dtype != np.uint8
        or images.ndim not in (4, 5)
        or (images.ndim == 5 and images.shape[-1] not in (1, 3))
        or 0 in images.shape
    ):
        raise ValueError(
            f"image_grid needs uint8 [R, C, H, W] or [R, C, H, W, 1 or 3]: got {images.dtype} {images.shape}"
        )
    height, width = images.shape[:2]
    for what, texts, length in (
        ("rows", rows, height),
        ("columns", columns, width),
        ("notes", notes, height),
    ):
        if texts is not None and len(texts) != length:
            raise ValueError(
                f"image_grid got {len(texts)} {what} for {length}: give one text for each"
            )
    labels = [str(label) for label in rows] if rows is not None else []
    left = (
        0.06
        + max((len(line) for label in labels for line in label.splitlines()), default=0) * 4.6 / 72
    )
    top = (
        0.04 + 0.13 * max((len(str(label).splitlines()) for label in columns), default=0)
        if columns is not None
        else 0.04
    )
    step_y, step_x = TILE + (0.14 if notes is not None else GAP), TILE + GAP
    size = (left + width * step_x + 0.04, top + height * step_y + 0.04)
    if size[0] > PAGE[0]:
        raise ValueError(
            f"{width} tiles with their labels are {size[0]:.2f} in wide, a page is {PAGE[0]} in: show fewer columns"
        )
    figure = plt.figure(
        figsize=size, layout=PlaceHolderLayoutEngine(True, True)
    )  # "none" would get the style's engine back
    for i in range(height):
        y = top + i * step_y
        for j in range(width):
            x = left + j * step_x
            ax = figure.add_axes(
                [x / size[0], 1 - (y + TILE) / size[1], TILE / size[0], TILE / size[1]]
            )
            ax.imshow(
                images[i, j], cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
            )
            ax.axis("off")
            middle = (x + TILE / 2) / size[0]
            if notes is not None:
                figure.text(
                    middle,
                    1 - (y + TILE + 0.02) / size[1],
                    str(notes[i][j]),
                    ha="center",
                    va="top",
                    fontsize=SMALLEST_TEXT,
                )
            if columns is not None and i == 0:
                figure.text(
                    middle,
                    1 - (top - 0.02) / size[1],
                    str(columns[j]),
                    ha="center",
                    va="bottom",
                    fontsize=SMALLEST_TEXT,
                )
        if labels:
            figure.text(
                (left - 0.05) / size[0],
                1 - (y + TILE / 2) / size[1],
                labels[i],
                ha="right",
                va="center",
                fontsize=6.5,
            )
    return figure


def panels_by_set(rows: pd.DataFrame, columns: int) -> tuple[Figure, np.ndarray]:
    """A page-wide figure with axes [S, columns] for the S data sets of ``rows`` (columns dataset, method), each as high as it has methods."""
    heights = 0.75 + 0.18 * rows.groupby("dataset", sort=False).method.nunique()  # inches
    size = (TEXT[0], heights.sum())
    return plt.subplots(
        len(heights),
        columns,
        figsize=size,
        height_ratios=heights,
        layout="constrained",
        sharey="row",
        squeeze=False,
    )


def dot_interval_plot(
    ax: Axes,
    data: pd.DataFrame,
    *,
    value: str,
    label: str,
    order=None,
    group: str = "method",
    lead: str = BLUE,
) -> pd.DataFrame:
    """One row per method from `data` (method, seed, `value`): each seed a dot, the mean a tick; from 5 seeds on its 95 % t-interval.

    The first of `order` stands at the top. group: another column for the rows, such as the scores of one method; its first name is filled
    in the colour ``lead``, the others are hollow and grey. Columns `value`_low and `value`_high, where there are, are a thin line through
    each dot, one above the other: its own interval, over images. Returns method, seed, value and those ends, mean, ci_low, ci_high (NaN below 5
    seeds), n_seeds for each dot.
    """
    _require(data, group, "seed", value)
    ends = [name for name in (f"{value}_low", f"{value}_high") if name in data]
    if data.duplicated([group, "seed"]).any():
        raise ValueError(
            f"a {group} has several rows for one seed: select one evaluation of {value} before drawing"
        )
    order = _ordered(data[group], order)
    looks = {
        name: MethodStyle(str(name), GREY if place else lead, "o", "-", not place, INK)
        for place, name in enumerate(order)
    }
    looks = {name: method_style(name) for name in order} if group == "method" else looks
    rows = []
    for place, name in enumerate(order):
        style, part = looks[name], data.loc[data[group] == name, [group, "seed", value, *ends]]
        mean, low, high, n = mean_over_seeds(part[value]).values()
        if n >= 5:
            ax.plot([low, high], [place, place], color=style.colour, linewidth=1.2)
        else:
            low = high = np.nan
        if n > 1:
            ax.plot([mean, mean], [place - 0.28, place + 0.28], color=style.colour, linewidth=1.2)
        face = style.colour if style.fill else "white"
        heights = place + bool(ends) * min(0.18, 0.5 / max(n - 1, 1)) * (np.arange(n) - (n - 1) / 2)
        if ends:
            ax.hlines(
                heights, part[ends[0]], part[ends[1]], color=style.colour, linewidth=0.6, alpha=0.6
            )
        look = {
            "marker": style.marker,
            "linestyle": "none",
            "color": style.colour,
            "markerfacecolor": face,
        }
        ax.plot(part[value], heights, zorder=3, **look)
        rows.append(part.assign(mean=mean, ci_low=low, ci_high=high, n_seeds=n))
    ax.set_yticks(range(len(order)), [looks[name].label for name in order])
    ax.locator_params(
        axis="x", nbins=5 if _inches(ax)[0] > 1.6 else 3
    )  # numbers of four digits do not touch, in half a page's width or a quarter's
    ax.set(xlabel=label, ylim=(len(order) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return pd.concat(rows, ignore_index=True)


def forest_plot(
    ax: Axes,
    data: pd.DataFrame,
    *,
    label: str,
    reference: float = 0.0,
    style: MethodStyle | None = None,
    every: bool = False,
) -> pd.DataFrame:
    """One row for each row of `data` (name, published, ours, ci_low, ci_high): published open, ours filled with its interval.

    reference: a grey line, no difference or chance. Columns claimed and bound of `data`, where there are, are a grey triangle at the bound that
    points to the claimed side (claims.SIDES; two triangles that face each other for "within"). Where a column seeds says 1
    the interval is thin: it is over images alone. Where a column judged is False ours is grey.
    style: of ours, blue dots by default. Rows with neither number are left out, or empty with `every`.
    Returns what is drawn, in order.
    """
    _require(data, "name")
    has_number = data[["published", "ours"]].notna().any(axis=1)
    if not has_number.any():
        raise ValueError("there is no number to draw: neither published nor ours.")
    drawn = data[has_number | every].reset_index(drop=True)
    place = np.arange(len(drawn))
    ax.axvline(reference, color=CHANCE, linewidth=0.6, zorder=1)
    style = style or MethodStyle("", BLUE, "o", "-", True, BLUE)
    judged = drawn.get("judged", pd.Series(True, drawn.index)).astype(bool)
    for rows, colour, face, named in (
        (judged, style.colour, style.colour if style.fill else "white", "ours, with its interval"),
        (~judged & drawn.ours.notna(), CHANCE, "white", "ours, decides nothing"),
    ):
        if rows.any():
            look = {
                "marker": style.marker,
                "linestyle": "none",
                "color": colour,
                "markerfacecolor": face,
                "markersize": 4,
            }
            ax.plot(drawn.ours[rows], place[rows], label=named, zorder=3, **look)
    alone, colours = (
        drawn.ci_low.notna() & (drawn.get("seeds", 0) == 1),
        np.where(judged, style.colour, CHANCE),
    )
    for rows, width, named in ((~alone, 1.2, None), (alone, 0.6, "thin: one seed, over images")):
        if rows.any():
            ax.hlines(
                place[rows],
                drawn.ci_low[rows],
                drawn.ci_high[rows],
                color=colours[rows],
                linewidth=width,
                label=named,
            )
    if drawn.published.notna().any():
        ax.plot(
            drawn.published,
            place - 0.2,
            "D",
            color=INK,
            markerfacecolor="none",
            markersize=3,
            label="published",
            zorder=4,
        )
    if "bound" in drawn:
        level = drawn[drawn.claimed == "within"]
        ends = [
            level.assign(claimed=side, bound=level.published + sign * level.bound)
            for side, sign in (("above", -1), ("below", 1))
        ]
        bounds = pd.concat([drawn.drop(level.index), *ends])
        pointers, named = {"above": ">", "below": "<", "at_most": "<"}, "bound, claimed side"
        for marker in dict.fromkeys(pointers.values()):
            rows = bounds[bounds.claimed.map(pointers) == marker]
            if len(rows):
                ax.plot(
                    rows.bound,
                    rows.index + 0.2,
                    marker,
                    color=GREY,
                    markersize=3,
                    label=named,
                    zorder=2,
                )
                named = None
    ax.set_yticks(place, drawn["name"])
    ax.set(xlabel=label, ylim=(len(drawn) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return drawn


def reliability_plot(axes, data: pd.DataFrame, *, colour: str = BLUE) -> pd.DataFrame:
    """Accuracy against confidence in bins (low, high] from `data` (curve, confidence, correct) on axes[0], counts on axes[1] below.

    Bins of fewer than FEWEST_IN_BIN images are hollow. The legend gives ECE = Σ n_b/N |accuracy_b - confidence_b| over the same bins (Guo et al.
    2017, Eq. 3). Returns curve, bin_low, bin_high, count, confidence, accuracy, ece.
    """
    upper, lower = axes
    _require(data, "curve", "confidence", "correct")
    rows = []
    for name, (label, shade, line, _) in _looks(_ordered(data["curve"]), colour).items():
        part = data[data["curve"] == name]
        table = pd.DataFrame(confidence_bins(part["confidence"], part["correct"])).rename(
            columns={"low": "bin_low", "high": "bin_high"}
        )
        ece = confidence_calibration_error(part["confidence"], part["correct"])
        filled = table[table["count"] > 0]
        named = f"{label} (ECE {ece:.3f}, {len(table)} bins)"
        upper.plot(
            filled["confidence"],
            filled["accuracy"],
            color=shade,
            linestyle=line,
            marker="o",
            clip_on=False,
            label=named,
        )
        if len(
            few := filled[filled["count"] < FEWEST_IN_BIN]
        ):  # of an empty line that is not clipped the layout finds no place
            upper.plot(
                few["confidence"],
                few["accuracy"],
                "o",
                color=shade,
                markerfacecolor="white",
                clip_on=False,
            )
        lower.stairs(table["count"], [*table["bin_low"], 1.0], color=shade, linestyle=line)
        rows.append(table.assign(curve=name, ece=ece))
    upper.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.6, zorder=1)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="Accuracy")
    upper.tick_params(labelbottom=False)
    lower.set(xlim=(0, 1), ylim=(0, None), xlabel="Confidence", ylabel="Images")
    _legend_below(lower, *upper.get_legend_handles_labels())
    return pd.concat(rows, ignore_index=True)[
        ["curve", "bin_low", "bin_high", "count", "confidence", "accuracy", "ece"]
    ]


def training_curves(
    ax: Axes,
    log: pd.DataFrame,
    *,
    y: str,
    label: str,
    x: str = "epoch",
    log_scale: bool = False,
    band: tuple = (),
) -> pd.DataFrame:
    """`y` over training from `log` (method, seed, `x`, `y`): seeds as thin pale dots, or hollow marks where they are few, their mean as a line named
    at its end, or where it is the only one in the title.

    band: two columns, the lower and upper end of a band behind the line (means over the seeds).
    Returns method, seed, x, y, [band,] mean (over the seeds that have begun and not ended at this x, between whose own it is interpolated).
    """
    columns = [y, *band]
    _require(log, "method", "seed", x, *columns)
    if "mean" in columns:
        raise ValueError(
            'the column "mean" would be overwritten by the mean over the seeds: rename it before drawing'
        )
    if log_scale:
        for column in columns:
            _require_positive(log, column)
    drawn, ends = log[["method", "seed", x, *columns]].reset_index(drop=True), []
    for place, name in enumerate(_ordered(drawn["method"])):
        style, part = method_style(name), drawn[drawn["method"] == name].sort_values(x)
        mean = _mean_over_seeds(part, x, y)
        drawn.loc[part.index, "mean"] = part[x].map(mean)
        if part["seed"].nunique() > 1:
            many = len(part) > 100
            if many:  # below the line, and pale, or it would not be seen among them
                look = {
                    "marker": ".",
                    "markersize": 1.5,
                    "color": _mix(style.colour, 0.4),
                    "zorder": 1.5,
                    "rasterized": len(part) > 2000,
                }
            else:
                look = {
                    "marker": "o",
                    "markersize": (3, 5)[place % 2],
                    "color": style.colour,
                    "fillstyle": "none",
                    "zorder": 3,
                    "clip_on": False,
                }
            ax.plot(part[x], part[y], linestyle="", **look)
        if band:
            low, high = (_mean_over_seeds(part, x, column) for column in band)
            ax.fill_between(low.index, low, high, color=style.colour, alpha=0.15, linewidth=0)
        ax.plot(mean.index, mean, color=style.colour, linestyle=style.line)
        ends.append((mean.index[-1], mean.iloc[-1], style.label, style.text_colour))
    ax.set(xlabel=x.capitalize(), ylabel=label)
    if log_scale:
        _log_axis(ax.yaxis, drawn[columns].min(axis=None), drawn[columns].max(axis=None))
        ax.autoscale(axis="y")  # the margins set on the linear axis reach below zero
    if len(ends) > 1:
        _label_ends(ax, ends)
    else:
        (end, _, label, colour), *_ = ends
        ax.set_xlim(right=end)
        ax.set_title(label, color=colour)
    return drawn


def _mean_over_seeds(part: pd.DataFrame, x: str, y: str) -> pd.Series:
    """The mean of ``y`` at every ``x`` of any seed: seeds may have logged at other steps, and a mean of whoever did would jump between them."""
    at = np.unique(part[x])
    each = [own.groupby(x)[y].mean() for _, own in part.groupby("seed")]
    curves = pd.DataFrame(
        [np.interp(at, own.index, own, left=np.nan, right=np.nan) for own in each], columns=at
    )
    return curves.mean()


def line_chart(
    ax: Axes,
    data: pd.DataFrame,
    looks: dict[str, tuple],
    *,
    x: str,
    y: str,
    group: str,
    label: str,
    reference: float | None = None,
    log: str = "",
    columns: int = 2,
) -> None:
    """`y` against `x` with hollow markers for every group of `looks` (name -> colour, line style, marker); a legend below the axes.

    label: of the horizontal axis; reference: a value of y marked by a thin line; log: the logarithmic axes, "x", "y" or "xy"; columns
    of the legend, 0 for none.
    """
    _require(data, x, y, group)
    for name in _ordered(data[group], looks):
        part = data[data[group] == name].sort_values(x)
        colour, line, marker = looks[name]
        ax.plot(
            part[x],
            part[y],
            color=colour,
            linestyle=line,
            marker=marker,
            markerfacecolor="white",
            label=name,
        )
    if reference is not None:
        ax.axhline(reference, color=CHANCE, linewidth=0.6, zorder=1)
    for axis, column in (("x", x), ("y", y)):
        if axis in log:
            _require_positive(data, column)
            _log_axis(getattr(ax, f"{axis}axis"), data[column].min(), data[column].max())
    ax.set_xlabel(label)
    if columns:
        _legend_below(ax, ncols=columns, columnspacing=1)


def flow_chart(
    ax: Axes, nodes: dict[str, tuple[float, float]], edges, *, circles=(), marked=(), dashed=()
) -> pd.DataFrame:
    """Boxes (nodes: text -> x, y) and arrows between them; `circles` are round, `marked` boxes blue, `dashed` edges grey and dashed.

    Returns from, to of every arrow. ValueError for a name that is no node.
    """
    if unknown := sorted(
        {*circles, *marked, *(name for pair in edges for name in pair)} - set(nodes)
    ):
        raise ValueError(
            f"no node {', '.join(map(repr, unknown))}: the nodes are {', '.join(map(repr, nodes))}"
        )
    for text, (x, y) in nodes.items():
        shape = {
            "boxstyle": "circle,pad=0.5" if text in circles else "round,pad=0.35",
            "facecolor": "white",
        }
        ax.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=6.5,
            zorder=3,
            bbox=shape | {"edgecolor": BLUE if text in marked else INK},
        )
    boxes = {text.get_text(): text.get_bbox_patch() for text in ax.texts if text.get_bbox_patch()}
    for start, end in edges:
        broken = (start, end) in dashed
        look = {
            "arrowstyle": "->",
            "linewidth": 0.8,
            "color": GREY if broken else INK,
            "linestyle": "--" if broken else "-",
        }
        ends = {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 1, "shrinkB": 1}
        ax.annotate(
            "", nodes[end], nodes[start], arrowprops=look | ends, zorder=4
        )  # after the boxes: drawing them places them, and its ends
    ax.axis("off")
    return pd.DataFrame(edges, columns=["from", "to"])
