"""What a checkpoint is worth, measured item by item.

    checkpoint + held-out documents, exam items, probes --on_ray, several scorers--> losses, answers, written, probes .parquet

- `perplexity`: loss of each held-out document. `choices`: log-probability of several endings of a prompt in one pass.
- `exams`: the option with the highest log-probability. `answer`: the same items answered in words, and how many cannot be read.
- `endpoint`, `at_endpoint`: the same exams sat by a model behind an OpenAI-compatible endpoint.
- `probes`: facts that were trained on and twins that were not.

Results of single items are the artifact, not their average: comparisons between variants are paired (medschool.ablate).
"""
