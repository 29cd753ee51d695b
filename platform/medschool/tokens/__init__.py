"""From documents to rows of tokens in an exact order.

    documents --tokenizer, pack--> rows --shards--> shuffled Arrow files in the store
    rows + weights + seed --mixture, order--> which row is the n-th of the run --stream--> blocks of one (batch, rank)

- A *row* holds `row_tokens` tokens of whole or cut documents, and where each document begins.
- The *order* is a pure function of (weights, seed, batch index): no state is kept, resume is a seek.
- `on_ray` runs the tokenization as a Ray Data job and feeds Ray Train.

Example:
    >>> from medschool.tokens.mixture import Mixture
    >>> Mixture({"books": 15, "papers": 4, "general": 1}, batch_rows=3200).rows_in(0)
    {'books': 2400, 'papers': 640, 'general': 160}
"""
