"""A whole recipe in miniature: invented text in every real format, a tokenizer trained on it, a random LLaMA of 60 thousand weights."""

import gzip
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAPER_WORDS = [
    "renal",
    "cardiac",
    "hepatic",
    "patients",
    "cohort",
    "dose",
    "trial",
    "serum",
    "lesion",
    "therapy",
    "biopsy",
    "onset",
    "risk",
    "ratio",
    "tissue",
]
BOOK_WORDS = [
    "abnormality",
    "of",
    "the",
    "kidney",
    "heart",
    "liver",
    "is",
    "a",
    "kind",
    "disorder",
    "with",
    "excess",
    "reduced",
    "number",
    "structure",
    "finding",
]
GENERAL_WORDS = [
    "the",
    "rabbit",
    "said",
    "to",
    "queen",
    "garden",
    "ran",
    "over",
    "green",
    "hill",
    "and",
    "then",
    "went",
    "home",
    "with",
    "seven",
    "singing",
    "cats",
]

RECIPE = """\
name: tiny
seed: 3
model: {uri: raw/models/tiny, dtype: fp32}
sources:
  books: {files: [{uri: raw/hpo/hp.obo, format: hpo}], licences: [hpo]}
  papers: {files: [{uri: "raw/medline/*.xml.gz", format: medline}], licences: [nlm-medline]}
  general: {files: [{uri: "raw/prose/*.txt", format: prose, licence: public-domain}], licences: [public-domain]}
clean: {min_chars: 40}
tokens: {row_tokens: 32, rows_per_shard: 64, heldout_tokens: 600, heldout_document_tokens: 64}
pretrain:
  batch_rows: 20
  length: {steps: 12}
  optimizer: {lr: 1e-2, warmup_fraction: 0.1, final_lr_fraction: 0.1}
variants:
  base: {}
  control: {weights: {general: 20}}
  knowledge: {weights: {books: 15, papers: 4, general: 1}}
evaluate: {bootstrap_resamples: 500}
gate: {candidate: knowledge, control: control, improves: [papers]}
serve: {registered_model: medschool-tiny, max_context_tokens: 128, max_concurrent_requests: 4}
cluster: {num_workers: 2, micro_batch_rows: 5, checkpoint_every_steps: 4, score_workers: 1}
"""


def words(draw: random.Random, vocabulary: list[str], count: int) -> str:
    return " ".join(draw.choice(vocabulary) for _ in range(count)).capitalize() + "."


def record(pmid: int, title: str, abstract: str, copyright: str = "") -> str:
    notice = f"<CopyrightInformation>{copyright}</CopyrightInformation>" if copyright else ""
    return (
        f"<PubmedArticle><MedlineCitation><PMID Version='1'>{pmid}</PMID><Article><Journal><JournalIssue><PubDate><Year>2020</Year></PubDate>"
        f"</JournalIssue></Journal><ArticleTitle>{title}</ArticleTitle><Abstract><AbstractText>{abstract}</AbstractText>{notice}</Abstract>"
        "<Language>eng</Language><PublicationTypeList><PublicationType>Journal Article</PublicationType></PublicationTypeList></Article>"
        "</MedlineCitation></PubmedArticle>"
    )


def write_raw(store: Path, papers: int = 240) -> Path:
    """All raw inputs of RECIPE below store/raw, and the recipe itself; its path. Two papers are copies, one is not licensed."""
    draw = random.Random(1)
    raw = store / "raw"
    for name in ("medline", "hpo", "prose", "models/tiny"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    abstracts = [words(draw, PAPER_WORDS, 40) for _ in range(papers - 2)]
    abstracts += abstracts[:2]
    records = [record(number, "A trial of dose", text) for number, text in enumerate(abstracts, 1000)]
    records.append(record(9999, "Owned", words(draw, PAPER_WORDS, 40), "Copyright 2020 A Publisher."))
    for part in range(2):
        xml = f"<?xml version='1.0'?><PubmedArticleSet>{''.join(records[part::2])}</PubmedArticleSet>"
        (raw / "medline" / f"{part}.xml.gz").write_bytes(gzip.compress(xml.encode(), mtime=0))
    terms = [
        f'[Term]\nid: HP:{number:07}\nname: {words(draw, BOOK_WORDS, 3)}\ndef: "{words(draw, BOOK_WORDS, 25)}" [x:1]\n'
        for number in range(300)
    ]
    (raw / "hpo" / "hp.obo").write_text("format-version: 1.2\n\n" + "\n".join(terms), encoding="utf-8")
    for part in range(2):
        text = "\n\n".join(words(draw, GENERAL_WORDS, 60) for _ in range(120))
        (raw / "prose" / f"{part}.txt").write_text(text, encoding="utf-8")
    write_model(raw / "models" / "tiny")
    recipe = store / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def write_model(folder: Path) -> None:
    """A byte-level BPE tokenizer with ChatML tokens, and a random LLaMA, as plain Hugging Face files."""
    import torch

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    draw = random.Random(2)
    corpus = [words(draw, [*PAPER_WORDS, *BOOK_WORDS, *GENERAL_WORDS], 50) for _ in range(100)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=special[1], eos_token=special[2], chat_template=CHAT)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=len(tokenizer),
        max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
