"""The gallery of a profile: results/<profile>/index.html and README.md, from the stored figures, tables and executed notebooks.

The pages load nothing from anywhere else: style inline, pictures beside them or inside them, no scripts. `python -m lib.gallery PROFILE` builds
them.
"""

import argparse
import html
import re
from pathlib import Path
from urllib.parse import quote

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from nbconvert import HTMLExporter
from PIL import Image
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from lib import artifacts

TABLE_ROWS = 12
PIXELS_PER_INCH = 130  # on screen: 300 dpi pictures are shown somewhat larger than in print
TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
# A tag that makes the browser fetch something from elsewhere; plain links to papers are fine.
FETCHES = re.compile(r"""<(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|href|data)\s*=\s*["']?(?:https?:)?//""", re.I)
VECTORS = ("pdf", "svg")
PICTURES_ALONE = ("quick", "paper")  # profiles of which git keeps no vector graphics (.gitignore), so that none are linked


def build(profile: str) -> Path:
    """Write the gallery of a profile and return the path of index.html; the same results give the same bytes."""
    folder = artifacts.results_dir(profile)
    if not folder.is_dir():
        raise FileNotFoundError(f"no results for profile {profile!r}: run `make reproduce PROFILE={profile}` first")
    figures = [_figure(path, profile) for path in sorted((folder / "figures").glob("*.json"))]
    tables = [_table(path) for path in sorted((folder / "tables").glob("*.csv"))]
    notebooks = _notebooks(folder / "notebooks")
    numbers = sorted({entry["number"] for entry in [*figures, *tables, *notebooks]})
    groups = [
        {
            "number": number,
            "title": _title(number, [*notebooks, *figures]),
            "figures": [figure for figure in figures if figure["number"] == number],
            "tables": [table for table in tables if table["number"] == number],
            "notebooks": [notebook for notebook in notebooks if notebook["number"] == number],
        }
        for number in numbers
    ]
    provenance = _provenance(folder / "run.json", figures)
    page = TEMPLATES.get_template("gallery.html.j2").render(profile=profile, provenance=provenance, groups=groups)
    artifacts.write_text(folder / "index.html", page)
    artifacts.write_text(folder / "README.md", _readme(profile, provenance, groups))
    return folder / "index.html"


def notebook_html(executed: Path) -> Path:
    """Write an executed notebook as one HTML page beside it and return its path; formulas stay TeX source, since no script is loaded.

    A picture that is a stored figure of the profile is a link to it, so that the page holds no second copy; any other is in the page.
    """
    executed = Path(executed)
    try:
        notebook = nbformat.read(executed, as_version=4)
    except nbformat.reader.NotJSONError as error:
        raise ValueError(f"{executed} is truncated or not a notebook: delete it and run the job that writes it again") from error
    _link_figures(notebook, executed)
    # Widgets and scripts would come from a network: the same output holds a picture or a text of them, which does not.
    kinds = ["text/html", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/latex", "text/plain"]
    exporter = HTMLExporter(config=Config(NbConvertBase={"display_data_priority": kinds}), template_name="basic", embed_images=True)
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(executed.parent)}})
    fetched = FETCHES.search(body)
    if fetched:
        raise ValueError(f"{executed} would load {fetched.group(0)[:120]!r} from the network: store what it needs in the notebook")
    title = next((line.lstrip("# ") for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("# ")), executed.stem)
    highlighting = HtmlFormatter().get_style_defs(".highlight")
    page = TEMPLATES.get_template("notebook.html.j2").render(title=title, body=Markup(body), highlighting=Markup(highlighting))
    path = executed.with_suffix(".html")
    artifacts.write_text(path, page)
    return path


def _link_figures(notebook: nbformat.NotebookNode, executed: Path) -> None:
    """Put links in place of the pictures that have the alt text of one figure of this notebook."""
    stored: dict[str, list[Path]] = {}
    for path in sorted(executed.parent.parent.glob(f"figures/{executed.stem[:2]}_*.json")):
        if path.with_suffix(".png").exists():
            stored.setdefault(artifacts.read_json(path)["alt"], []).append(path.with_suffix(".png"))
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        if len(stored.get(alt, ())) == 1:
            (picture,) = stored[alt]
            width, height = _screen_size(picture)
            link = f'<img src="../figures/{quote(picture.name)}" alt="{html.escape(alt)}" width="{width}" height="{height}">'
            output["data"] = nbformat.NotebookNode({"text/html": link})


def _screen_size(picture: Path) -> tuple[int, int]:
    """Width and height of a stored picture as a page shows it."""
    with Image.open(picture) as image:
        scale = PIXELS_PER_INCH / round(image.info.get("dpi", (300, 300))[0])
        return round(image.width * scale), round(image.height * scale)


def _figure(path: Path, profile: str) -> dict:
    from lib.plotting import split_caption  # slow to import, and a page of a notebook needs none of it

    record = artifacts.read_json(path)
    picture = path.with_suffix(".png")
    if not picture.exists():
        raise FileNotFoundError(f"{path.name} has no {picture.name} beside it: draw the figure again with {record['notebook']}")
    width, height = _screen_size(picture)
    claim, rest = split_caption(record["caption"])
    return record | {
        "number": path.stem[:2],
        "claim": claim,
        "rest": rest,
        "width": width,
        "height": height,
        "files": {kind: quote(f"figures/{path.stem}.{kind}") for kind in ("png", *(() if profile in PICTURES_ALONE else VECTORS), "csv", "json")},
        "changed": [name for name, digest in record["inputs"].items() if _changed(name, digest)],
    }


def _changed(name: str, digest: str) -> bool:
    """Whether an input is here and differs from what was drawn; one that is not here (an embedding) cannot be judged."""
    path = artifacts.RESULTS.joinpath(*Path(name).parts[1:]) if name.startswith("results/") else artifacts.ROOT / name
    return path.is_file() and artifacts.sha256(path) != digest


def _table(path: Path) -> dict:
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is empty or truncated ({error}): delete it and run the job that writes it again") from error
    rows = [[_short(cell) for cell in row] for row in frame.head(TABLE_ROWS).itertuples(index=False)]
    href = quote(f"tables/{path.name}")
    return {"id": path.stem, "number": path.stem[:2], "columns": list(frame.columns), "rows": rows, "length": len(frame), "href": href}


def _short(cell: str) -> str:
    """Long decimals to four significant digits; the CSV has them all."""
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d{4,}(e[+-]?\d+)?", cell) else cell


def _notebooks(folder: Path) -> list[dict]:
    entries = []
    for stem in sorted({path.stem for kind in ("ipynb", "html") for path in folder.glob(f"*.{kind}") if not path.name.startswith(".")}):
        kind = "html" if (folder / f"{stem}.html").exists() else "ipynb"
        entries.append({"number": stem[:2], "name": stem, "href": quote(f"notebooks/{stem}.{kind}")})
    return entries


def _title(number: str, entries: list[dict]) -> str:
    """30 Kappa distributions, from the name of the notebook."""
    names = (entry.get("notebook") or entry.get("name") for entry in entries if entry["number"] == number)
    name = next(names, number).split("--")[0]
    words = name[3:].replace("_", " ")
    return f"{number} {words[:1].upper()}{words[1:]}".strip()


def _provenance(path: Path, figures: list[dict]) -> list[tuple[str, str]]:
    """Commit, hardware and times of run.json as (name, text), without dates; without run.json, the commits of the figures."""
    if not path.exists():
        commits = sorted({figure["commit"] for figure in figures})
        return [("commit", ", ".join(commits))] if commits else []
    record = artifacts.read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold one JSON object: it holds a {type(record).__name__}")
    return [(str(name).replace("_", " "), _words(value)) for name, value in record.items() if name not in ("date", "started", "finished")]


def _words(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{str(name).replace('_', ' ')} {_words(part)}" for name, part in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _readme(profile: str, provenance: list[tuple[str, str]], groups: list[dict]) -> str:
    """The same gallery for a repository browser, which shows Markdown and not HTML."""
    lines = [f"# Results, profile {_escape(profile)}", "", "The same with tables: [index.html](index.html), from disk in any browser.", ""]
    lines += [f"- {_escape(name)}: {_escape(value)}" for name, value in provenance]
    for group in groups:
        lines += ["", f"## {_escape(group['title'])}", ""]
        links = [(notebook["name"], notebook["href"]) for notebook in group["notebooks"]]
        links += [(f"{table['id']}.csv", table["href"]) for table in group["tables"]]
        lines += [f"- [{_escape(name)}]({href})" for name, href in links]
        for figure in group["figures"]:
            files = " · ".join(f"[{kind}]({file})" for kind, file in figure["files"].items() if kind != "png")
            lines += ["", f"![{_escape(figure['alt'])}]({figure['files']['png']})", ""]
            lines += [f"**{_escape(figure['claim'])}** {_escape(figure['rest'])} {files}"]
            if figure["changed"]:
                lines += ["", f"Stale: {_escape(', '.join(figure['changed']))} changed since this figure was drawn."]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Plain text for Markdown: no tags, links, emphasis or code."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(str(text), quote=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m lib.gallery", description="Build the gallery of a profile.")
    parser.add_argument("profile")
    print(build(parser.parse_args().profile))
