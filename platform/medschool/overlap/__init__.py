"""Which documents of the corpus hold an exam question, so that no model is examined on what it has read.

    documents/*.parquet ──search, one task a part──> overlap.parquet ──medschool.tokens.withheld──> rows.parquet ──> Order
      items of all exams ──ExamIndex, put once──┘     id, exam, item, share, hits                   shard, row      skips them

Concepts
    overlap     a document holds an item when the rule of medschool.exams.overlap says so: a shared run of eight words, then half
                of the item's words in blocks. A document can hold many; all of them are listed.
    withheld    a row of tokens in which any piece of such a document stands. It is never given to training.

The finding belongs to the mixture, not to the corpus: documents and rows stay as they are. So adding an exam rebuilds neither the
corpus nor the tokens, and where the new exam overlaps with nothing, not even a checkpoint. All items of an exam are looked for,
those outside of the recipe's sample too.

Example
    >>> from medschool.exams.overlap import ExamIndex
    >>> from medschool.overlap.search import search
    >>> from medschool.rows import ExamItem
    >>> question = "Which vitamin that carrots hold gives a gardener his yellow palms?"
    >>> item = ExamItem("diet:1", "board", "diet", question, ("A", "B", "C", "D"), 0, "", "")
    >>> search([("pmid:1", f"We ask: {question} A, B, C, D."), ("pmid:2", "We ask nothing.")], ExamIndex([item])).to_pylist()
    [{'id': 'pmid:1', 'exam': 'board', 'item': 'diet:1', 'share': 1.0, 'hits': 8}]
"""
