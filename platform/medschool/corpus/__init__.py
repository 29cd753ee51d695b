"""Raw files of a source become Documents; whatever does not is written down with its reason, and what every step took is counted.

    raw file --open_raw: a stream, unpacked--> reader --> Draft --checks--> steps --clean--> checks --> Document
                                                 |          |                                  |
                                                 |          dropped/     left out on purpose   |
                                                 quarantine/             broken, or about people

    formats     which reader a format has: articles, abstracts, books, tables, prose; also over the members of an archive
    steps       what is taken out of a text, one named step after the other: authors, references, mentions of figures...
    admit       the checks: retracted, licence, length, language, quality, identifiers of people
    parts       files to tasks; read once, marked as done, so that a killed job goes on where it was
    finish      exact copies out, files of the artifact written; budget: how much may be broken
    funnel      what went in, what each step took, what is left, as a table and as a page
    on_ray      all of it as one job

Concepts
    reader     a function (stream, uri, source) -> iterator of Draft or Dropped; it knows one raw format and nothing else.
    Draft      a record as the file has it, with its parts marked; which of them go is decided, and counted, in one place.
    Dropped    what did not become a document: step, reason and the first 200 characters. Nothing vanishes silently.
    quarantine malformed records, unreadable files and texts about people are Dropped too, but under a budget: past
               `clean.bad_files` or `clean.identifiers` the stage fails and names the first. Of a file that breaks off
               (InputError) nothing enters.
    StorageError  a store that does not answer or refuses stops the stage, after its retries; it is never taken for a bad file.

Example
    >>> from pathlib import Path
    >>> from medschool.corpus.admit import admit, terms_of
    >>> from medschool.corpus.formats import FORMATS
    >>> from medschool.recipe import load
    >>> from medschool.rows import Draft
    >>> terms = terms_of(load(Path("recipes/quickstart.yaml")), "papers", "s3://bucket")                  # doctest: +SKIP
    >>> with open("pubmed21n1298.xml", "rb") as stream:                                                   # doctest: +SKIP
    ...     rows = [admit(row, terms, None).row for row in FORMATS["medline"](stream, "1298", "papers") if isinstance(row, Draft)]
"""
