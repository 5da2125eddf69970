"""What `mkdocs build` does beside its plugins: pages of the root, benchmarks, links to code."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OF_THE_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*)?\)")
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):(?=<code>)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every benchmark in the navigation, and pages that it forgets under How-to."""
    benchmarks = sorted((ROOT / "docs/benchmarks").glob("*.md"))
    named = (ROOT / "mkdocs.yml").read_text()
    forgotten = [
        page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in named
    ]
    assert config.nav is not None
    for entry in config.nav:
        if isinstance(entry, dict) and "Benchmarks" in entry:
            entry["Benchmarks"] = [f"benchmarks/{page.name}" for page in benchmarks]
        elif isinstance(entry, dict) and "How-to" in entry:
            entry["How-to"] += forgotten
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md, CONTRIBUTING.md and CHANGELOG.md as pages of the site."""
    for page, source in OF_THE_ROOT.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site; those to code, which it does not hold, become text."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri if uri in OF_THE_ROOT else f"docs/{uri}")
    by_source = {source: name for name, source in OF_THE_ROOT.items()}

    def replaced(match: re.Match[str]) -> str:
        image, text, path, anchor = match[1], match[2], match[3], match[4] or ""
        target = posixpath.normpath(posixpath.join(here, path))
        inside = by_source.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") else None
        )
        if inside is not None and files.get_file_from_path(inside) is not None:
            start = posixpath.dirname(uri) or "."
            return f"{image}[{text}]({posixpath.relpath(inside, start)}{anchor})"
        return f"`{target}`" if text.strip("`") == target else f"{text} (`{target}`)"

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Drop reStructuredText's roles and double colons from docstrings."""
    return ROLE.sub("", html).replace("Example::", "Example:")
