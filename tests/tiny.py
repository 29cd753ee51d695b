"""A whole recipe in miniature: invented text in every real format, a tokenizer trained on it, a random LLaMA of 60 thousand weights."""

import gzip
import itertools
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medschool.exams.layout import DIRECT_INSTRUCTIONS, answer_text, question_text
from medschool.rows import ExamItem

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
tokens: {row_tokens: 64, rows_per_shard: 64, heldout_tokens: 600, heldout_document_tokens: 64}
pretrain:
  batch_rows: 20
  length: {steps: 12}
  optimizer: {lr: 1e-2, warmup_fraction: 0.1, final_lr_fraction: 0.1}
exams:
  clinical:
    files: [{uri: raw/mmlu/mmlu.jsonl, format: mmlu}]
    subjects: [anatomy, clinical knowledge, college biology, college medicine, medical genetics, professional medicine]
    items: 30
    generated_items: 4
instructions:
  questions:
    files: [{uri: raw/mmlu/mmlu.jsonl, format: mmlu}]
    subjects: [nutrition, virology, human aging, human sexuality]
    licences: [mit]
    bad_files: {max_share: 0.05}
  graph: {files: [{uri: raw/hpo/hp.obo, format: hpo_graph}], licences: [hpo], conversations: 60}
chats: {row_tokens: 256, rows_per_shard: 16}
instruct:
  batch_rows: 8
  length: {steps: 6}
  optimizer: {lr: 1e-2, warmup_fraction: 0.1}
variants:
  base: {}
  control: {weights: {general: 20}}
  knowledge: {weights: {books: 15, papers: 4, general: 1}}
  instructed: {weights: {books: 15, papers: 4, general: 1}, instructions: {questions: 3, graph: 1}}
probes: {items: 8}
evaluate: {bootstrap_resamples: 500}
gate: {candidates: [knowledge, instructed], control: control, improves: [papers], keeps: [clinical]}
search:
  variant: knowledge
  over: {pretrain.optimizer.lr: [1e-2, 1e-5]}
  report_every_steps: 3
  grace_steps: 3
serve: {registered_model: medschool-tiny, max_context_tokens: 256, max_concurrent_requests: 4}
cluster: {num_workers: 2, micro_batch_tokens: 256, checkpoint_every_steps: 4, score_workers: 1, max_concurrent_trials: 1}
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
    for name in ("medline", "hpo", "prose", "mmlu", "mmlu_rationale", "icd10cm", "models/tiny"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    abstracts = [words(draw, PAPER_WORDS, 40) for _ in range(papers - 2)]
    abstracts += abstracts[:2]
    records = [record(number, "A trial of dose", text) for number, text in enumerate(abstracts, 1000)]
    records.append(record(9999, "Owned", words(draw, PAPER_WORDS, 40), "Copyright 2020 A Publisher."))
    for part in range(2):
        xml = f"<?xml version='1.0'?><PubmedArticleSet>{''.join(records[part::2])}</PubmedArticleSet>"
        (raw / "medline" / f"{part}.xml.gz").write_bytes(gzip.compress(xml.encode(), mtime=0))
    names = [f"{first.capitalize()} {second}" for first, second in itertools.product(PAPER_WORDS, GENERAL_WORDS)]
    terms = [
        f'[Term]\nid: HP:{number:07}\nname: {name}\ndef: "{words(draw, BOOK_WORDS, 5)}" [x:1]\n'
        f"is_a: HP:{number // 5:07} ! {names[number // 5]}\n" * (number > 0)
        for number, name in enumerate(names)
    ]
    (raw / "hpo" / "hp.obo").write_text("format-version: 1.2\n\n" + "\n".join(terms), encoding="utf-8")
    for part in range(2):
        text = "\n\n".join(words(draw, GENERAL_WORDS, 60) for _ in range(120))
        (raw / "prose" / f"{part}.txt").write_text(text, encoding="utf-8")
    write_questions(raw, draw)
    write_model(raw / "models" / "tiny")
    recipe = store / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def write_questions(raw: Path, draw: random.Random) -> None:
    """An exam of 48 items, 40 questions to train on (one holds an exam item), worked questions, and a list of diagnosis codes."""
    exam = ("anatomy", "clinical knowledge", "college biology", "college medicine", "medical genetics", "professional medicine")
    other = ("nutrition", "virology", "human aging", "human sexuality")
    items = [question(draw, topic) for topic in exam for _ in range(8)] + [
        question(draw, topic) for topic in other for _ in range(10)
    ]
    items += [items[0], items[3] | {"topic": "nutrition"}, items[1] | {"answer_b": items[1]["answer_a"]}]
    (raw / "mmlu" / "mmlu.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items) + "half a line", encoding="utf-8")
    for topic in ("virology", "anatomy"):
        samples = [
            {
                "question": f"{words(draw, PAPER_WORDS, 8)}\n\n(A) renal (B) cardiac (C) hepatic (D) serum",
                "target": f"Let's think step by step. {words(draw, PAPER_WORDS, 9)} The answer is (B).",
            }
            for _ in range(5)
        ]
        document = {"dataset_name": topic, "fewshot_config": {"samples": samples}}
        (raw / "mmlu_rationale" / f"mmlu_{topic}.yaml").write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    codes = "".join(
        f"<diag><name>A{code}</name><desc>{words(draw, BOOK_WORDS, 4)}</desc><diag><name>A{code}.1</name>"
        f"<desc>{words(draw, BOOK_WORDS, 5)}</desc></diag></diag>"
        for code in range(10, 40)
    )
    (raw / "icd10cm" / "codes.xml").write_text(f"<codes><section><desc>Kinds</desc>{codes}</section></codes>", encoding="utf-8")


def question(draw: random.Random, topic: str) -> dict[str, str]:
    options = draw.sample(PAPER_WORDS, 4)
    keys = {f"answer_{letter}": option for letter, option in zip("abcd", options, strict=True)}
    return {"question": words(draw, PAPER_WORDS, 9), **keys, "correct_answer": draw.choice("ABCD"), "topic": topic}


def write_model(folder: Path) -> None:
    """A byte-level BPE tokenizer with ChatML tokens, and a random LLaMA, as plain Hugging Face files."""
    import torch

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    draw = random.Random(2)
    corpus = [words(draw, [*PAPER_WORDS, *BOOK_WORDS, *GENERAL_WORDS], 50) for _ in range(100)]
    item = ExamItem("a:1", "e", "a", "Which?", ("a", "b", "c", "d"), 0, "", "f")
    corpus += [question_text(item), answer_text(0), *DIRECT_INSTRUCTIONS] * 30
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
