"""The site of a profile: its executed notebooks and the pages of prose, built by Sphinx.

results/<profile>/site opens from disk, without a server. Pages are Markdown (MyST): the ones in
notebooks/, which people write, and the front page's pictures, the verdicts and the ledger
(``site_pages``), which are made of stored results.
"""

import io
import json
import re
import shutil
import tempfile
from pathlib import Path

from lib.pipeline import site_pages
from lib.pipeline.notebooks import NOTEBOOKS
from lib.pipeline.progress import WALL
from lib.runs import settings, store

TITLE = "Probabilistic SSL companion"
# The pages that people write, in the order of the menu.
PAGES = ("use_it", "findings", "methods", "deviations", "data", "reference", "glossary")
CONFIGURATION = {
    "project": TITLE,
    "author": "",
    "copyright": "",
    "html_title": TITLE,
    "html_show_copyright": False,
    "extensions": [
        "myst_nb",
        "sphinx_design",
        "sphinx-mathjax-offline",
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
    ],
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "show_toc_level": 2,
        "home_page_in_toc": True,
        "use_download_button": False,
        "use_fullscreen_button": False,
        "navbar_persistent": [],
    },
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_static_path": ["_static"],
    "html_css_files": ["companion.css"],
    "nb_execution_mode": "off",
    "nb_output_stderr": "remove",
    "nb_merge_streams": True,
    "nb_code_prompt_show": "Code",
    "nb_code_prompt_hide": "Hide the code",
    "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence"],
    "myst_heading_anchors": 3,
    "autodoc_inherit_docstrings": False,
    "autodoc_typehints": "none",
    "autodoc_member_order": "bysource",
    "exclude_patterns": ["_fragments/*"],
    "suppress_warnings": ["myst.header", "mystnb.unknown_mime_type", "docutils"],
}
STYLE = """\
.verdicts { display: flex; margin-bottom: 1.2rem; height: 1.5rem; overflow: hidden; }
.verdicts span { min-width: 2px; }
.cell_output { overflow-x: auto; }
.cell_output table { font-size: .8rem; font-variant-numeric: tabular-nums; }
table.docutils td, table.docutils th { overflow-wrap: anywhere; }
.sd-card-img-top { background: white; aspect-ratio: 4 / 3; object-fit: contain; padding: .25rem; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
"""
NOT_RUN = (
    "*These results are not stored yet. The page has the text and the code; "
    "`make reproduce PROFILE={profile}` fills it.*"
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def build(profile: str) -> Path:
    """Build results/<profile>/site and return its front page.

    FileNotFoundError where the profile has no executed notebook yet.

    Example:
        >>> build("standard")          # results/standard/site/index.html
    """
    settings.profile_settings(profile)
    folder = store.results_dir(profile)
    executed = executed_notebooks(profile)
    if not executed:
        raise FileNotFoundError(
            f"{folder} has no executed notebooks to make pages of: call make reproduce "
            f"PROFILE={profile} first."
        )
    # Pages of notebooks that this profile has not run have text and code only.
    every = {path.stem: path for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")}
    notebooks = every | executed
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        output = Path(temporary) / "site"
        source.mkdir()
        write_source(profile, dict(sorted(notebooks.items())), source)
        run_sphinx(source, output)
        replace_folder(output, folder / "site")
    return folder / "site" / "index.html"


def executed_notebooks(profile: str) -> dict[str, Path]:
    """Executed notebooks by name, in the order of their numbers.

    Of a notebook that several jobs ran, such as the training, the page shows the first.
    """
    paths = sorted((store.results_dir(profile) / "notebooks").glob("*.ipynb"))
    executed: dict[str, Path] = {}
    for path in paths:
        executed.setdefault(path.stem.split("--")[0], path)
    return executed


# ----------------------------------------------------------------------------- Sphinx's source
def write_source(profile: str, paths: dict[str, Path], source: Path) -> None:
    """Write all pages of the site as MyST below ``source``; paths: of the notebooks by name."""
    notebooks = list(paths)
    for name, path in paths.items():
        (source / f"{name}.ipynb").write_text(json.dumps(notebook_page(path, profile)))
    site_pages.write_fragments(profile, notebooks, source)
    pages = {}
    for name in ("index", *PAGES):
        pages[name] = (NOTEBOOKS / f"{name}.md").read_text()
    progress = store.results_dir(profile) / "README.md"
    if progress.exists():
        # The wall of figures is on the front page.
        pages["progress"] = progress.read_text().split(WALL)[0]
    names = {*pages, *notebooks, "ledger"}
    for name, text in pages.items():
        (source / f"{name}.md").write_text(mend_links(text, names))
    with open(source / "index.md", "a") as index:
        index.write(menu(notebooks, "progress" in pages))
    static = source / "_static"
    static.mkdir()
    (static / "companion.css").write_text(STYLE)


def menu(notebooks: list[str], has_progress: bool) -> str:
    """The hidden tables of contents that Sphinx makes the menu of."""
    results = ["ledger", *notebooks]
    prose = [*PAGES]
    if has_progress:
        prose.append("progress")
    sections = []
    for caption, names in (("About", prose), ("Results", results)):
        lines = [":::{toctree}", ":hidden:", f":caption: {caption}", "", *names, ":::"]
        sections.append("\n".join(lines))
    return "\n\n" + "\n\n".join(sections) + "\n"


def notebook_page(path: Path, profile: str) -> dict:
    """An executed notebook with its code folded, and each picture's text for who cannot see it."""
    notebook = store.read_json(path, ("cells",))
    if path.parent == NOTEBOOKS:
        note = {"cell_type": "markdown", "id": "not-run", "metadata": {}}
        notebook["cells"].insert(1, note | {"source": NOT_RUN.format(profile=profile)})
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tags = set(cell["metadata"].get("tags", []))
        if "injected-parameters" in tags:
            tags.add("remove-input")
        if "parameters" not in tags:  # what a reader may change is open
            tags.add("hide-input")
        cell["metadata"]["tags"] = sorted(tags)
        for output in cell["outputs"]:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if alt:
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return notebook


def mend_links(text: str, pages: set[str]) -> str:
    """Markdown whose relative links lead to pages of the site; others become plain text."""

    def mended(match: re.Match) -> str:
        picture, words, target = match.groups()
        if picture or re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        stem = Path(path).stem
        if path.endswith("results/standard/README.md"):
            stem = "progress"
        if Path(path).suffix in (".md", ".ipynb") and stem in pages:
            suffix = f"#{anchor}" if anchor else ""
            return f"[{words}]({stem}{Path(path).suffix}{suffix})"
        return words

    return LINK.sub(mended, text)


# --------------------------------------------------------------------------------- running it
def run_sphinx(source: Path, output: Path) -> None:
    """Build HTML; RuntimeError with Sphinx's warnings where it cannot."""
    from sphinx.application import Sphinx  # slow to import
    from sphinx.errors import SphinxError
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        try:
            site = Sphinx(
                srcdir=source,
                confdir=None,
                outdir=output,
                doctreedir=source.with_name("doctrees"),
                buildername="html",
                confoverrides=CONFIGURATION,
                status=None,
                warning=warnings,
            )
            site.build()
        except SphinxError as error:
            raise RuntimeError(f"The site was not built: {error}. {warnings.getvalue()}") from error
    if site.statuscode:
        raise RuntimeError(f"The site was not built: {warnings.getvalue()}")


def replace_folder(new: Path, old: Path) -> None:
    """Put a copy of a finished folder in the place of an older one."""
    waiting = old.with_name(f"{store.UNFINISHED}{old.name}")
    shutil.rmtree(waiting, ignore_errors=True)
    shutil.copytree(new, waiting)
    shutil.rmtree(old, ignore_errors=True)
    waiting.rename(old)
