"""Named backends: built-in ones, then the user's TOML, then the project's, later ones winning field by field.

[backends.mine]
base_url = "http://localhost:8000/v1"
model = "Qwen3-32B"
key_env = "MY_KEY"          # the *name* of the environment variable; a key itself is refused
tool_mode = "native"        # or json_schema, or text; auto: native until the server refuses tools
price = { input = 0.5, output = 1.5, cached = 0.1 }      # per million tokens; reports say "unknown" without it
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from agent.llm.usage import Price
from tools.spec.base import Frozen, ToolError


class Profile(Frozen):
    name: str
    base_url: str | None = None
    base_url_env: str | None = None
    """Variable that holds the base_url where none is written, for servers whose address is each user's own."""
    model: str | None = None
    key_env: str | None = None
    key_required: bool = True
    key_header: str | None = None
    """Header that carries the key in place of `Authorization: Bearer`."""
    tool_mode: Literal["auto", "native", "json_schema", "text"] = "auto"
    stream: bool = True
    timeout_s: float = Field(default=300.0, gt=0, le=3600)
    """Of a whole reply; `first_byte_s` of its beginning, `stall_s` of every silence within it."""
    first_byte_s: float = Field(default=120.0, gt=0, le=3600)
    stall_s: float = Field(default=60.0, gt=0, le=3600)
    retries: int = Field(default=3, ge=0, le=10)
    context_tokens: int = Field(default=64_000, ge=4_000)
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further request fields that this server wants (`temperature`, `extra_body`)."""
    query: dict[str, str] = Field(default_factory=dict)
    price: Price | None = None
    language: Literal["auto", "en", "zh"] = "auto"
    """Of the prompts; auto: Chinese where the inputs are."""

    @property
    def needs_key(self) -> bool:
        return self.key_required and self.key_env is not None


def _local(name: str, port: int, key_env: str | None = None) -> Profile:
    return Profile(name=name, base_url=f"http://localhost:{port}/v1", key_env=key_env, key_required=False)


PROFILES: tuple[Profile, ...] = (
    Profile(name="openai", key_env="OPENAI_API_KEY"),
    Profile(
        name="azure-openai", base_url_env="AZURE_OPENAI_ENDPOINT", key_env="AZURE_OPENAI_API_KEY", key_header="api-key"
    ),
    Profile(name="deepseek", base_url="https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY", model="deepseek-chat"),
    Profile(
        name="dashscope", base_url="https://dashscope.aliyuncs.com/compatible-mode/v1", key_env="DASHSCOPE_API_KEY"
    ),
    Profile(name="moonshot", base_url="https://api.moonshot.cn/v1", key_env="MOONSHOT_API_KEY"),
    Profile(name="zhipu", base_url="https://open.bigmodel.cn/api/paas/v4", key_env="ZHIPUAI_API_KEY"),
    Profile(name="openrouter", base_url="https://openrouter.ai/api/v1", key_env="OPENROUTER_API_KEY"),
    _local("vllm", 8000),
    _local("sglang", 30000),
    _local("ollama", 11434),
    _local("llama.cpp", 8080),
    _local("litellm-proxy", 4000, "LITELLM_API_KEY"),
)


def config_files() -> tuple[Path, ...]:
    """Where profiles are read from: the user's config directory, then the project's directory."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (home / "meshwright" / "config.toml", Path("meshwright.toml"))


def profiles() -> dict[str, Profile]:
    """All profiles by name. Raises ToolError for a config file that cannot be read, with file and field."""
    found = {p.name: p for p in PROFILES}
    for path in config_files():
        for name, fields in _backends(path).items():
            old = found[name].model_dump() if name in found else {"name": name}
            if "api_key" in fields or "key" in fields:
                raise ToolError(
                    f"{path}: backend {name} holds a key; put it into the environment and name it with key_env"
                )
            try:
                found[name] = Profile(**{**old, **fields})
            except (ValidationError, TypeError) as e:
                first = e.errors()[0] if isinstance(e, ValidationError) else {"loc": (name,), "msg": str(e)}
                raise ToolError(f"{path}: backend {name}, {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return found


def _backends(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ToolError(f"{path}: not readable as TOML: {e}") from None
    tables = data.get("backends", {})
    if not isinstance(tables, dict) or not all(isinstance(v, dict) for v in tables.values()):
        raise ToolError(f"{path}: [backends.NAME] must be tables")
    return tables


def make_backend(choice: str, base_url: str | None = None) -> Any:
    """The backend named `NAME[:LLM]`; `replay:FILE` reads a recorded event log. Raises ToolError for an unknown one."""
    name, _, model = choice.partition(":")
    if name == "builtin":
        from agent.llm.builtin import Builtin

        return Builtin()
    if name == "replay":
        from agent.llm.replay import Replay

        return Replay(Path(model))
    known = profiles()
    if name not in known:
        raise ToolError(f"unknown backend {name!r}; known: builtin, replay:FILE, {', '.join(sorted(known))}")
    profile = (
        known[name]
        if base_url is None
        else known[name].model_copy(update={"base_url": base_url, "key_required": False})
    )
    if profile.base_url is None and profile.base_url_env and os.environ.get(profile.base_url_env):
        profile = profile.model_copy(update={"base_url": os.environ[profile.base_url_env]})
    if profile.base_url is None and name != "openai":
        also = f", in {profile.base_url_env}" if profile.base_url_env else ""
        raise ToolError(f"backend {name} has no base_url; set it in meshwright.toml{also} or with --llm-base-url")
    model = model or profile.model or ""
    if not model:
        raise ToolError(f"backend {name} has no default model; write --backend {name}:MODEL")
    from agent.llm.openai_backend import OpenAIBackend

    return OpenAIBackend(profile, model)
