"""Text of a PDF, page by page; needs the extra `meshwright[pdf]`."""

from __future__ import annotations

import io
import re

from tools.spec.base import ToolError

EXTRA = "pip install 'meshwright[pdf]'"
MAX_PAGES = 400


def text_of_pdf(data: bytes, name: str) -> str:
    """Lines as they stand on the pages, words that a line break cut in two joined again.

    Raises ToolError where the extra is not installed, and for a file that is broken, locked, too long or has no text.
    """
    try:
        import pypdf
    except ImportError:
        raise ToolError(f"{name} is a PDF; reading one needs the extra: {EXTRA}, or save it as text") from None
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ToolError(f"{name} is locked with a password; save it without one, or as text")
        if len(reader.pages) > MAX_PAGES:
            raise ToolError(f"{name} has {len(reader.pages)} pages, the limit is {MAX_PAGES}; pass the paper alone")
        pages = [page.extract_text() for page in reader.pages]
    except ToolError:
        raise
    except Exception as error:  # a broken file fails in as many ways as the format has corners
        raise ToolError(f"{name} is a broken PDF ({' '.join(str(error).split())[:120]}); save it as text") from None
    text = joined("\n\n".join(pages))
    if not text.strip():
        raise ToolError(f"{name} has no text on its {len(pages)} pages, only pictures; pass its text")
    return text


def joined(text: str) -> str:
    """ "paral-\\nlelism" is one word; "top-\\n2" is none."""
    text = text.replace("\u00ad", "").replace("\ufb01", "fi").replace("\ufb02", "fl").replace("\ufb00", "ff")
    return re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)
