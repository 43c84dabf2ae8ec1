"""A recorded view as one HTML file: the dashboard's own page with the view in it. It needs nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html

import msgspec

from agentsched.daemon.dashboard.pages import files
from agentsched.daemon.dashboard.rows import View

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src {script_hash}; style-src \
'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="app"><p class="starting">agentsched</p></div>
<script type="application/octet-stream" id="recorded">{view}</script>
<script>{script}</script>
</body>
</html>
"""


def page_of(view: View, title: str) -> bytes:
    """The page; no byte of it is fetched from anywhere."""
    script = files()["dashboard.js"].body.decode()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    packed = gzip.compress(msgspec.json.encode(view), compresslevel=6, mtime=0)
    page = _PAGE.format(
        script_hash=f"'sha256-{digest}'",
        title=html.escape(title),
        style=files()["dashboard.css"].body.decode(),
        view=base64.b64encode(packed).decode(),
        script=script,
    )
    return page.encode()
