"""Puts our own pictures into the pages of the site as SVG elements, where they take the colour of the text,
light or dark. The pages name them as images, so that they are seen in plain Markdown too. A hook of
mkdocs."""

from __future__ import annotations

import re
from typing import Any

PICTURE = re.compile(r'<p><img alt="[^"]*" src="(?:\.\./)*(pictures/[^"]+\.svg)"\s*/?></p>')


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs with each page's HTML."""

    def inline(match: re.Match[str]) -> str:
        file = files.get_file_from_path(match[1])
        if file is None:
            raise FileNotFoundError(f"{page.file.src_path} shows {match[1]}, which is not there")
        return f"<figure>{file.content_string}</figure>"

    return PICTURE.sub(inline, html)
