"""The raw formats that a recipe can name, and the reader of each.

    format      raw files                                                             in an archive
    medline     PubmedArticleSet XML                                                  .xml
    jats        PubMed Central articles, XML                                          .nxml .xml
    s2orc       S2ORC version 2, JSON lines                                           .jsonl .json
    redpajama   RedPajama version 1 and 2, JSON lines                                 .jsonl .json
    hpo         Human Phenotype Ontology, OBO                                         .obo
    icd10cm     ICD-10-CM tabular list, XML                                           .xml
    pdf_book    a book as PDF                                                         .pdf
    text_book   a book as plain text                                                  .txt
    epub_book   a book as EPUB 2 or 3                                                 .epub
    prose       plain text in passages                                                .txt
    parquet     Parquet with a column `text`                                          .parquet
    datasets    the *.arrow files of a Hugging Face dataset saved to disk             .arrow

A reader takes a binary stream, already unpacked (`storage.open_raw` removes gzip and Zstandard), and yields a Draft or a Dropped
for each record in it, in memory of one record where the format allows it. Where the uri ends in `.tar`, `.tar.gz`, `.tgz` or
`.tar.zst` it runs over every member of its kind. It raises InputError, with the file and the line, where the file as a whole
cannot be read; rows before that line were already given.
"""

from medschool.corpus.archive import Reader, archived
from medschool.corpus.books import hpo, icd10cm
from medschool.corpus.epub import epub_book
from medschool.corpus.general import prose
from medschool.corpus.jats import jats
from medschool.corpus.medline import medline
from medschool.corpus.redpajama import redpajama
from medschool.corpus.s2orc import s2orc
from medschool.corpus.tabular import datasets, parquet
from medschool.corpus.textbooks import pdf_book, text_book

FORMATS: dict[str, Reader] = {
    "medline": archived(medline, ".xml"),
    "jats": archived(jats, ".nxml", ".xml"),
    "s2orc": archived(s2orc, ".jsonl", ".json"),
    "redpajama": archived(redpajama, ".jsonl", ".json"),
    "hpo": archived(hpo, ".obo"),
    "icd10cm": archived(icd10cm, ".xml"),
    "pdf_book": archived(pdf_book, ".pdf"),
    "text_book": archived(text_book, ".txt"),
    "epub_book": archived(epub_book, ".epub"),
    "prose": archived(prose, ".txt"),
    "parquet": archived(parquet, ".parquet"),
    "datasets": archived(datasets, ".arrow"),
}
