"""mcp: the tools for MCP clients."""

from __future__ import annotations

import sys

from agent.errors import OK
from tools.spec.base import ToolError

LOCAL = ("127.0.0.1", "localhost", "::1")


def mcp(http: str | None) -> int:
    """stdio, or streamable HTTP at `http` (HOST:PORT, or PORT alone). Raises ToolError when the extra is missing."""
    host, port = address(http) if http is not None else ("", 0)
    try:
        from agent import mcp_server
    except ModuleNotFoundError as e:
        raise ToolError(f"the MCP server needs the package {e.name}: pip install 'meshwright[mcp]'") from None
    if http is None:
        mcp_server.serve_stdio()
        return OK
    print(f"meshwright: MCP at http://{host}:{port}/mcp", file=sys.stderr)
    if host not in LOCAL:
        print("meshwright: anyone who reaches this address may use the tools; there is no login", file=sys.stderr)
    mcp_server.serve_http(host, port)
    return OK


def address(text: str) -> tuple[str, int]:
    """(host, port) of "8765" or "0.0.0.0:8765"; this machine alone where no host is named."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ToolError(f"--http {text!r}: expected PORT or HOST:PORT, such as 8765")
    return host.strip("[]") or "127.0.0.1", int(port)
