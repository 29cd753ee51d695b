"""A tiny random model and rows of random tokens, in the form of the real ones: enough to drive the real training anywhere.

    recipe --shrink--> config.json, weights at random, a tokenizer of the 256 bytes    (an artifact like `model`)
    recipe --draw--> for each source of a variant one shard of packed rows             (an artifact like `tokens/<source>`)

What training does with them is not invented: the loader, the mask, the order, DeepSpeed and the checkpoints are those of any run.
What they cannot show is how a model of the real size behaves: memory, bandwidth, the time of a checkpoint. Price: a second, and
half a megabyte.
"""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from medschool import artifact, storage
from medschool.artifact import Artifact, Output, upload_folder, write_file
from medschool.procedure import phase_sources
from medschool.recipe import Recipe
from medschool.seed import seed_of
from medschool.tokens.pack import Rows
from medschool.tokens.shards import INDEX, Index, index_bytes, ipc_bytes, rows_table, shard_path

ROW_TOKENS, DOCUMENT_TOKENS = 64, 24
"""Length of a row, and of the longest invented document in it."""
VOCABULARY = 300
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": ROW_TOKENS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
"""About 130 thousand weights; as a LLaMA's config.json names them."""
LEFT_OUT = ("layer_types", "quantization_config", "rope_scaling", "torch_dtype", "dtype", "sliding_window", "use_sliding_window")
"""Keys of a config.json that speak of the size or the storage of the model it came with."""


def tiny_model(recipe: Recipe, store_uri: str, config: dict[str, Any] | None) -> Artifact:
    """A random model of the architecture in `config`, a config.json; LLaMA's where that is None. Drawn from the recipe's seed."""

    def do(prefix: str) -> Output:
        with tempfile.TemporaryDirectory() as folder:
            _save(Path(folder), config or {"model_type": "llama"}, recipe.seed)
            return Output(upload_folder(prefix, Path(folder)))

    return artifact.make(store_uri, "model", "invented", {}, do)


def _save(folder: Path, config: dict[str, Any], seed: int) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    kept = {key: value for key, value in config.items() if key not in LEFT_OUT}
    torch.manual_seed(seed)
    small = AutoConfig.for_model(**{**kept, **SMALL})
    AutoModelForCausalLM.from_config(small, dtype=torch.float32).save_pretrained(folder)
    special = ["<pad>", "<s>", "</s>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def invented_rows(recipe: Recipe, store_uri: str, variant: str, rows: int) -> dict[str, tuple[Artifact, Index]]:
    """So many rows of ROW_TOKENS random tokens for each source that the variant's pretraining reads."""
    return {name: _rows(recipe, store_uri, name, rows) for name in phase_sources(recipe, variant, "pretrain")}


def _rows(recipe: Recipe, store_uri: str, source: str, rows: int) -> tuple[Artifact, Index]:
    index = Index(ROW_TOKENS, "uint16", 2, ((shard_path(0), rows),), rows, 0, 0, 0)
    table = rows_table(_drawn(recipe.seed, source, rows), np.dtype(index.dtype))

    def do(prefix: str) -> Output:
        files = (write_file(prefix, shard_path(0), ipc_bytes(table)), write_file(prefix, INDEX, index_bytes(index)))
        return Output(files, json.loads(index_bytes(index)))

    return artifact.make(store_uri, f"tokens/{source}", "invented", {}, do), index


def _drawn(seed: int, source: str, rows: int) -> Rows:
    """Rows of random walks over the vocabulary: a next token can be guessed from the one before, so that a loss falls."""
    draw = np.random.Generator(np.random.Philox(seed_of(seed, source, "invented")))
    steps = draw.integers(1, 4, (rows, ROW_TOKENS))
    tokens = (draw.integers(3, VOCABULARY, (rows, 1)) + np.cumsum(steps, axis=1)) % (VOCABULARY - 3) + 3
    lengths = [_lengths(draw) for _ in range(rows)]
    ids = [[f"{source}:{row}:{piece}" for piece in range(len(some))] for row, some in enumerate(lengths)]
    return Rows(tokens.astype(np.uint16), np.ones(tokens.shape, bool), ids, lengths, 0, rows)


def _lengths(draw: np.random.Generator) -> list[int]:
    """Random lengths of documents that fill a row."""
    cuts = np.cumsum(draw.integers(2, DOCUMENT_TOKENS, ROW_TOKENS))
    edges = [0, *cuts[cuts < ROW_TOKENS].tolist(), ROW_TOKENS]
    return [end - start for start, end in itertools.pairwise(edges)]


def config_of(folder_uri: str) -> dict[str, Any] | None:
    """The config.json of a model in the store; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(storage.join(folder_uri, "config.json")))
        return found
    except FileNotFoundError:
        return None
