"""A hook of the site's build: pages load nothing from elsewhere."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError

_LOADED = re.compile(
    r"<(?:script|img|iframe|source|link rel=\S*stylesheet)[^>]*https?:"
)


def on_post_page(output: str, *, page: Any, config: Any) -> None:
    """Stops the build at a page whose scripts, styles or pictures lie elsewhere."""
    del config
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
