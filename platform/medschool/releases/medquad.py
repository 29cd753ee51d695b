"""MedQuAD's own files as JSON lines, the form that medschool.instructions.medquad reads.

    <Document source="CDC" url="..."><Focus>...</Focus><QAPairs>
      <QAPair pid="1"><Question qid="1-1" qtype="treatment">...</Question><Answer>...</Answer></QAPair> ...

    {"src": "CDC", "url": "...", "focus": "...", "qtype": "treatment", "question": "...", "answer": "..."}

The release (github.com/abachaa/MedQuAD) is eleven thousand such files in folders like `1_CancerGov_QA`.
A pair without its answer keeps an empty one: the maker drops it and counts it. Texts are as they are in the file.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO

from medschool.corpus.xml import elements


def json_lines(stream: BinaryIO, uri: str) -> Iterator[bytes]:
    """One line a pair of the file. Raises InputError where it is not whole XML or has no <Document>."""
    for document in elements(stream, uri, "Document"):
        head = {"src": document.get("source", ""), "url": document.get("url", ""), "focus": document.findtext("Focus") or ""}
        for pair in document.iterfind(".//QAPair"):
            question = pair.find("Question")
            values = {
                "qtype": "" if question is None else question.get("qtype", ""),
                "question": "" if question is None else "".join(question.itertext()),
                "answer": "".join(found.itertext()) if (found := pair.find("Answer")) is not None else "",
            }
            yield json.dumps(head | values, ensure_ascii=False).encode() + b"\n"
