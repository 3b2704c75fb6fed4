"""Links between pages lead to files and headings that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT, anchors, name, prose

_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(prose(page)):
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)} links to {path}, which does not exist"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {path}#{anchor}, and no heading is called so"


def test_every_page_of_docs_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    seen, waiting = set(), [index]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for path, _ in _LINK.findall(prose(page)):
            target = (page.parent / path).resolve()
            waiting.append(target / "README.md" if target.is_dir() and (target / "README.md").exists() else target)
    lost = {name(page) for page in ROOT.glob("docs/**/*.md")} - {name(page) for page in seen}
    assert not {page for page in lost if not page.startswith("docs/runbooks/")}, "no page links to these"


def test_the_index_names_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert listed >= {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"}
