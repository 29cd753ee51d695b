"""What a source's `licences` allow, and the list of retracted documents."""

from pathlib import Path

import pytest

from medschool.corpus.licences import allowed
from medschool.corpus.retracted import is_retracted, retracted_ids
from medschool.errors import InputError


def listed(folder: Path, text: str | bytes) -> frozenset[str]:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return retracted_ids(str(path), "raw/list.csv")


def test_the_two_groups_of_pubmed_central_share_nothing_and_mix_with_licences() -> None:
    assert allowed(["commercial"]) == {"cc0", "cc-by", "cc-by-sa", "cc-by-nd"}
    assert allowed(["non-commercial"]) == {"cc-by-nc", "cc-by-nc-sa", "cc-by-nc-nd"}
    assert not allowed(["commercial"]) & allowed(["non-commercial"])
    assert allowed(["hpo", "commercial"]) == {"hpo"} | allowed(["commercial"])
    assert allowed([]) == frozenset()


def test_no_document_without_permission_to_sell_passes_a_commercial_source() -> None:
    for group in ("cc-by-nc", "cc-by-nc-sa", "cc-by-nc-nd", "other", "unstated", "publisher-copyright"):
        assert group not in allowed(["commercial"])


def test_ids_are_read_from_the_column_named_id_or_from_the_first(tmp_path: Path) -> None:
    expected = {"pmid:12", "pmc:345", "doi:10.1000/x(3)"}
    assert listed(tmp_path, "why,ID\r\nfraud,pmid:12\r\n\r\nerror,PMC345\r\n,10.1000/x(3)\r\n") == expected
    assert listed(tmp_path, '12\nPMC345,"a, b"\ndoi:10.1000/x(3)\n') == expected
    assert listed(tmp_path, b"\xef\xbb\xbfid\nHP:0000003\n") == {"HP:0000003"}
    assert listed(tmp_path, "") == frozenset()


@pytest.mark.parametrize(
    ("text", "where"),
    [("title,doi\na,b\n", "raw/list.csv"), ("id\npmid:1\nnot an id\n", "raw/list.csv:3"), (b"id\n\xff\xfe\n", "raw/list.csv")],
)
def test_a_list_that_is_none_is_refused_where_it_goes_wrong(tmp_path: Path, text: str | bytes, where: str) -> None:
    with pytest.raises(InputError) as raised:
        listed(tmp_path, text)
    assert raised.value.where == where and raised.value.remedy


def test_a_list_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as raised:
        retracted_ids(str(tmp_path / "list.csv"), "raw/list.csv")
    assert raised.value.where == "raw/list.csv"


def test_every_version_of_a_record_is_retracted_with_it() -> None:
    ids = frozenset({"pmid:12", "pmc:3"})
    assert [is_retracted(id, ids) for id in ("pmid:12", "pmid:12.2", "pmid:123", "pmc:3", "pmc:3.1")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert not is_retracted("", ids) and not is_retracted("pmid:12", frozenset())
