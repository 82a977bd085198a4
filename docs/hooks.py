"""MkDocs hook: adds files of the repository that pages link to, such as `../lenet_jax/model.py`, to the site.

The same links work when the Markdown is read in the repository. Each linked file, and each file that linked Markdown
links to, is added under repository/: Markdown and source code as pages, other files unchanged, a folder as a list of
its contents. A broken link is left unchanged, and `mkdocs build --strict` rejects it.
"""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SHELF = "repository"
SOURCES = {".py": "python", ".jinja": "html+jinja", ".cfg": "ini", ".toml": "toml", "": "text"}
"""Suffixes of files shown as pages, and the language for highlighting."""

FENCED = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
COMMENT = re.compile(r"^<!-- .*? -->$", re.MULTILINE)


def outside_code(change: Callable[[str], str], text: str) -> str:
    """Applies `change` to the text outside fenced code."""
    bounds = [0, *(end for match in FENCED.finditer(text) for end in match.span()), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(bounds)]
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def target_of(link: str, folder: Path) -> Path | None:
    """Resolves a link in a folder's Markdown to a file or folder of the repository; None if there is none."""
    path = Path(os.path.normpath(folder / link))
    return path if ":" not in link and path.is_relative_to(ROOT) and path != ROOT and path.exists() else None


def site_path(path: Path) -> str:
    """Path of a repository file among the site's sources."""
    if path.is_relative_to(DOCS) and path.is_file():
        return path.relative_to(DOCS).as_posix()
    path_in_site = f"{SHELF}/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{path_in_site}/index.md"
    return f"{path_in_site}.md" if path.suffix in SOURCES else path_in_site


def links_of(text: str, folder: Path) -> set[Path]:
    """Targets of links in Markdown that lie outside docs."""
    found: set[Path] = set()

    def collect(part: str) -> str:
        targets = (target_of(match[2], folder) for match in LINK.finditer(part))
        found.update(path for path in targets if path and site_path(path).startswith(SHELF))
        return part

    outside_code(collect, text)
    return found


def listing(folder: Path) -> str:
    """A page that lists a folder."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    lines = [f"- [{path.name}{'/' * path.is_dir()}]({path.name})" for path in entries]
    return "\n".join([f"# {folder.relative_to(ROOT)}", "", *lines, ""])


def page_of(path: Path) -> str:
    """The Markdown page of a file or folder of the repository."""
    if path.is_dir():
        return listing(path)
    text = path.read_text()
    if path.suffix in SOURCES:
        text = f"# {path.relative_to(ROOT)}\n\n````{SOURCES[path.suffix]}\n{text}\n````\n"
    return f"---\nsearch:\n  exclude: true\n---\n\n{text}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds linked files."""
    waiting = set()
    for page in files.documentation_pages():
        source = Path(page.abs_src_path)
        waiting |= links_of(source.read_text(), source.parent)
    added: set[Path] = set()
    while waiting - added:
        path = sorted(waiting - added)[0]
        added.add(path)
        if path.is_dir() or path.suffix in (".md", *SOURCES):
            text = page_of(path)
            files.append(File.generated(config, site_path(path), content=text))
            if path.is_dir() or path.suffix == ".md":
                waiting |= links_of(text, path if path.is_dir() else path.parent)
        else:
            files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to the repository into links within the site, and removes the comments that mark tables."""
    source = Path(page.file.src_uri)
    folder = ROOT / source.parent.relative_to(SHELF) if source.parts[0] == SHELF else DOCS / source.parent

    def lead(match: re.Match[str]) -> str:
        path = target_of(match[2], folder)
        if path is None:
            return match[0]
        link = os.path.relpath(site_path(path), source.parent)
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    return outside_code(lambda part: COMMENT.sub("", LINK.sub(lead, part)), markdown)
