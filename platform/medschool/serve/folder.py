"""Whether a folder may be served at all: safetensors alone, no code of its own, a context that the model was made for."""

import json
from pathlib import Path
from typing import Any

from medschool.errors import InputError, PlanError
from medschool.train.model import check_model_files


def check_folder(folder: Path, context_tokens: int) -> dict[str, Any]:
    """Its config.json.

    Raises InputError for a folder that holds no safetensors or asks to run code, PlanError when the context is too long for it.
    """
    check_model_files([path.name for path in folder.iterdir()], str(folder))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if "auto_map" in config:
        raise InputError("config.json asks to run code from the folder (auto_map)", "use a built-in architecture", str(folder))
    limit = int(config.get("max_position_embeddings", context_tokens))
    if context_tokens > limit:
        raise PlanError(
            f"max_context_tokens {context_tokens} is above the model's {limit}", f"set at most {limit}", "max_context_tokens"
        )
    return config
