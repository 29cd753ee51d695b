"""Raw files of a source become Documents, and whatever does not is written down with its reason.

    raw bytes ──formats.reader──> Document | Dropped ──clean.clean──> Document | Dropped ──> deduplicate ──> Parquet
                 papers: medline, jats
                 books: hpo, icd10cm
                 general: prose

Concepts
    reader     a function (data, uri, source) -> iterator of Document or Dropped; it knows one raw format and nothing else.
    Dropped    a record that did not become a document: step, reason and the first 200 characters. Nothing vanishes silently.
    InputError a file that cannot be read at all (not gzip, not XML, cut short, an entity bomb): it stops the run, because a
               corpus that lacks a whole file is a different corpus.

Example
    >>> from pathlib import Path
    >>> from medschool.corpus.clean import Rules, clean
    >>> from medschool.corpus.formats import reader
    >>> from medschool.rows import Document
    >>> rules = Rules(min_chars=200, licences=frozenset({"nlm-medline", "cc-by"}))
    >>> path = Path("pubmed21n1298.xml")
    >>> rows = reader("medline")(path.read_bytes(), str(path), "papers")                # doctest: +SKIP
    >>> kept = [clean(row, rules) for row in rows if isinstance(row, Document)]         # doctest: +SKIP
"""
