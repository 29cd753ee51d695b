"""Six prompt templates, the tokenizers that they are tried with, and the slow way to say which characters of them are trained.

The oracle knows nothing of Jinja, offsets or prompts: each template is written a second time, as pieces of text that are trained or
not, and a token is followed through the bytes of that text.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from medschool.instructions.pmc_llama import PMC_LLAMA
from medschool.rows import Message

Pieces = list[tuple[str, bool]]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ bos_token + '[INST] ' + ns.system + message['content'].strip() + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turns') }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def chatml(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        spoken = message.role == "assistant"
        pieces += [(f"<|im_start|>{message.role}\n", False), (message.content + "<|im_end|>", spoken), ("\n", False)]
    return pieces


def pmc_llama(messages: Sequence[Message]) -> Pieces:
    opening = "Below is an instruction that describes a task"
    request = "Write a response that appropriately completes the request.\n\n"
    pieces: Pieces = []
    first = True
    for message in messages:
        if message.role == "system":
            pieces.append((message.content + "\n\n", False))
        elif message.role == "assistant":
            pieces += [("\n\n### Response:", False), (message.content + "</s>", True)]
        else:
            instruction, _, given = message.content.partition("\n\n")
            if first:
                middle = ", paired with an input that provides further context. " if given else ". "
                pieces.append((opening + middle + request, False))
            else:
                pieces.append(("\n\n", False))
            first = False
            pieces.append((f"### Instruction:\n{instruction}" + (f"\n\n### Input:\n{given}" if given else ""), False))
    return pieces


def llama_2(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = []
    system = ""
    for message in messages:
        if message.role == "system":
            system = f"<<SYS>>\n{message.content}\n<</SYS>>\n\n"
        elif message.role == "user":
            pieces.append((f"<s>[INST] {system}{message.content.strip()} [/INST]", False))
            system = ""
        else:
            pieces.append((f" {message.content.strip()} </s>", True))
    return pieces


def llama_3(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = [("<s>", False)]
    for message in messages:
        pieces.append((f"<|start_header_id|>{message.role}<|end_header_id|>\n\n", False))
        pieces.append((message.content.strip() + "<|eot_id|>", message.role == "assistant"))
    return pieces


def mistral(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = [("<s>", False)]
    for message in messages:
        spoken = message.role == "assistant"
        pieces.append((message.content + "</s>", True) if spoken else (f"[INST] {message.content} [/INST]", False))
    return pieces


def zephyr(messages: Sequence[Message]) -> Pieces:
    pieces: Pieces = []
    for message in messages:
        pieces += [(f"<|{message.role}|>\n", False), (message.content + "</s>", message.role == "assistant"), ("\n", False)]
    return pieces


TEMPLATES: dict[str, tuple[str, str, Callable[[Sequence[Message]], Pieces]]] = {
    "chatml": (CHATML, "<|im_end|>", chatml),
    "pmc_llama": (PMC_LLAMA, "</s>", pmc_llama),
    "llama_2": (LLAMA_2, "</s>", llama_2),
    "llama_3": (LLAMA_3, "<|eot_id|>", llama_3),
    "mistral": (MISTRAL, "</s>", mistral),
    "zephyr": (ZEPHYR, "</s>", zephyr),
}
"""Template, EOS, and the same template as pieces that are trained or not."""

CORPUS = [
    "###Answer: OPTION B IS CORRECT.",
    "### Response:###Answer",
    ":### :## ://",
    "]]( [/INST] [/INST]###",
    "renal dose of the cardiac trial. ",
    "\n\n\n \n\n###\n",
] * 20


def save_tokenizer(folder: Path, template: str | None, eos: str, trim_offsets: bool = False) -> None:
    """A byte-level BPE with all special tokens of SPECIAL, that merges punctuation over the borders of prompts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet))
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos, chat_template=template)
    made.save_pretrained(folder)


def save_sentencepiece(folder: Path) -> None:
    """A BPE as LLaMA's: a space before the text, `▁` for spaces, bytes for what it does not know; no template of its own."""
    characters = sorted(
        {*"".join(CORPUS), *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:;#_-<>|/[]()?!"} - {" ", "\n"}
    )
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    merges = [("#", "#"), (":", "#"), ("##", "#"), ("▁", "t"), ("r", "e"), ("▁", "d")]
    tokens += [first + second for first, second in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)


def oracle_mask(ids: Sequence[int], pieces: Pieces, names: Sequence[str], turns: str = "all") -> list[bool]:
    """Which tokens are trained, by following them byte for byte through the pieces. names: the vocabulary, by id.

    Fails when the tokens are not the text, or one of them holds trained and untrained bytes.
    """
    if turns == "last":
        last = max(index for index, piece in enumerate(pieces) if piece[1])
        pieces = [(text, trained and index == last) for index, (text, trained) in enumerate(pieces)]
    flags = [trained for text, trained in pieces for _ in text.encode()]
    text = "".join(text for text, _ in pieces).encode()
    place, mask = 0, []
    for token in ids:
        said = names[token].encode() if names[token] in SPECIAL else bytes(BYTES[char] for char in names[token])
        assert text[place : place + len(said)] == said, (place, said, text[place : place + 20])
        (flag,) = set(flags[place : place + len(said)])
        mask.append(flag)
        place += len(said)
    assert place == len(text)
    return mask


def _byte_alphabet() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary (GPT-2, `bytes_to_unicode`)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(other)}


BYTES = _byte_alphabet()
