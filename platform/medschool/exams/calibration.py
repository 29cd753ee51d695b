"""What others have published for these exams: not our measurements, and each under a protocol of its own.

They are for calibration. Whoever scores a known checkpoint here should land near the row that names the same protocol; whoever
compares a model of their own with a row of another protocol compares nothing. The rows of one model show how far protocols alone
move a number: PMC-LLaMA-7B has 27.8 and 49.2 on MedQA, LLaMA-2-13B has 42.73 and 1.3.

Scores are per cent right, as printed; None where a source has none. PMC-LLaMA's Table 2 prints an average of 64.43 for its own
model; the mean of its three numbers is 63.43 (`mean`).

Sources, in short: PMC-LLaMA is arXiv 2304.14454 (Tables 1 and 2); Meditron arXiv 2311.16079 (Tables 4 and 5); BioMistral arXiv
2402.10373; Me-LLaMA npj Digital Medicine s41746-025-01533-1 (Table 3); MMed-Llama-3 Nature Communications s41467-024-52417-z
(Table 3); Med42-v2 and MedGemma their model cards; openlifescienceai their public results of lm-evaluation-harness.
"""

from dataclasses import dataclass

TASK_TUNED = "fine-tuned on the three training sets"
ZERO_SHOT = "zero-shot, generated"
FEW_SHOT_3, FEW_SHOT_5 = "3 worked questions, top token", "5 worked questions, top token"
OWN_TUNED = "fine-tuned for the task, top token"
HARNESS = "lm-evaluation-harness, option log-likelihood, 0 worked questions"
AS_CARD = "as its model card reports"


@dataclass(frozen=True)
class Theirs:
    """One published row."""

    model: str
    medqa: float | None
    """MedQA-US, 4 options."""
    medmcqa: float | None
    """The 4,183 labelled questions, where the source says which."""
    pubmedqa: float | None
    """PQA-L: all 1,000 in PMC-LLaMA's tables, 500 in those of Meditron and of the harness."""
    protocol: str
    source: str
    printed_average: float | None = None

    @property
    def mean(self) -> float | None:
        """Of the three scores, to two places; None where one is missing."""
        scores = (self.medqa, self.medmcqa, self.pubmedqa)
        return None if None in scores else round(sum(score or 0.0 for score in scores) / len(scores), 2)


def _ablation(model: str, medqa: float, medmcqa: float, pubmedqa: float, protocol: str) -> Theirs:
    return Theirs(model, medqa, medmcqa, pubmedqa, protocol, "PMC-LLaMA, Table 1")


def _comparison(model: str, medqa: float, medmcqa: float, pubmedqa: float, printed: float) -> Theirs:
    return Theirs(model, medqa, medmcqa, pubmedqa, ZERO_SHOT, "PMC-LLaMA, Table 2", printed)


PMC_LLAMA = (
    _ablation("LLaMA 7B", 44.54, 48.51, 73.40, TASK_TUNED),
    _ablation("LLaMA 13B", 45.48, 51.42, 76.40, TASK_TUNED),
    _ablation("PMC-LLaMA_K 7B, papers", 44.70, 50.54, 69.50, TASK_TUNED),
    _ablation("PMC-LLaMA_K 7B, papers and books", 45.56, 51.45, 74.60, TASK_TUNED),
    _ablation("PMC-LLaMA_K 13B, papers and books", 48.15, 54.15, 77.10, TASK_TUNED),
    _ablation("PMC-LLaMA 13B, and rationale", 49.32, 54.56, 77.20, ZERO_SHOT),
    _ablation("PMC-LLaMA 13B, and conversations", 54.43, 55.77, 77.00, ZERO_SHOT),
    _ablation("PMC-LLaMA 13B, and knowledge graph", 56.36, 56.04, 77.90, ZERO_SHOT),
    _comparison("ChatGPT", 57.0, 44.0, 63.9, 54.97),
    _comparison("LLaMA-2 13B", 42.73, 37.41, 68.0, 49.40),
    _comparison("LLaMA-2 70B", 43.68, 35.02, 74.3, 51.00),
    _comparison("Med-Alpaca 13B", 30.85, 31.13, 53.2, 38.38),
    _comparison("Chat-Doctor 7B", 33.93, 31.10, 54.3, 39.78),
    _comparison("PMC-LLaMA 13B", 56.36, 56.04, 77.9, 64.43),
)
"""The eight rows of the ablation and the table of comparison. The first five and the last three are not under one protocol."""

PEERS = (
    Theirs("Llama-2-7B", 35.4, 37.9, 49.1, FEW_SHOT_3, "Meditron, Table 4"),
    Theirs("PMC-Llama-7B", 27.8, 27.4, 57.0, FEW_SHOT_3, "Meditron, Table 4"),
    Theirs("Meditron-7B", 37.4, 36.3, 69.3, FEW_SHOT_3, "Meditron, Table 4"),
    Theirs("Llama-2-70B", 58.4, 52.4, 72.8, FEW_SHOT_5, "Meditron, Table 4"),
    Theirs("Meditron-70B", 59.8, 53.3, 79.8, FEW_SHOT_5, "Meditron, Table 4"),
    Theirs("PMC-Llama-7B", 49.2, 57.6, 59.2, OWN_TUNED, "Meditron, Table 5"),
    Theirs("Llama-2-7B", 49.6, 54.4, 61.8, OWN_TUNED, "Meditron, Table 5"),
    Theirs("Meditron-7B", 52.0, 59.2, 74.4, OWN_TUNED, "Meditron, Table 5"),
    Theirs("Meditron-70B", 57.1, 46.8, 76.6, HARNESS, "openlifescienceai"),
    Theirs("BioMistral-7B", 50.6, 48.1, 77.5, OWN_TUNED, "BioMistral, mean of 3 seeds"),
    Theirs("BioMistral-7B DARE", 51.1, 48.7, 77.7, OWN_TUNED, "BioMistral, mean of 3 seeds"),
    Theirs("PMC-LLaMA-7B", 25.5, 26.6, 72.9, OWN_TUNED, "BioMistral, mean of 3 seeds"),
    Theirs("LLaMA-2-13B, instructions alone", 1.3, 1.4, 43.6, ZERO_SHOT, "Me-LLaMA, Table 3"),
    Theirs("Me-LLaMA-13B-chat", 42.7, 44.9, 70.0, ZERO_SHOT, "Me-LLaMA, Table 3"),
    Theirs("Me-LLaMA-70B-chat", 52.3, 53.9, 76.8, ZERO_SHOT, "Me-LLaMA, Table 3"),
    Theirs("MMed-Llama-3-8B", 65.4, 63.5, 80.1, OWN_TUNED, "MMed-Llama-3, Table 3"),
    Theirs("Llama-3-8B", 60.9, 50.7, 73.0, OWN_TUNED, "MMed-Llama-3, Table 3"),
    Theirs("Med42-v2-8B", 62.84, 61.34, None, AS_CARD, "Med42-v2"),
    Theirs("Med42-v2-70B", 79.10, 73.20, None, AS_CARD, "Med42-v2"),
    Theirs("Gemma-3-4B", 50.7, 45.4, 68.4, AS_CARD, "MedGemma"),
    Theirs("MedGemma-4B", 64.4, 55.7, 73.4, AS_CARD, "MedGemma"),
)
"""Other systems, a selection: small LLaMA-like models and those that measured PMC-LLaMA again."""


def table_rows() -> list[list[str]]:
    """A header and a line for each row, for the report: `theirs` stands in its title, not in each line."""
    head = ["model (theirs)", "MedQA", "MedMCQA", "PubMedQA", "mean", "printed", "protocol", "source"]
    return [head, *([row.model, *_cells(row), row.protocol, row.source] for row in (*PMC_LLAMA, *PEERS))]


def _cells(row: Theirs) -> list[str]:
    numbers = (row.medqa, row.medmcqa, row.pubmedqa, row.mean, row.printed_average)
    return ["-" if number is None else f"{number:.2f}" for number in numbers]
