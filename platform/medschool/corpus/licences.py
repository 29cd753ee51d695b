"""Licence groups under the two names that PubMed Central gives them.

PubMed Central sorts the articles of its open access subset by what their licence allows: *commercial use allowed* and
*non-commercial use only*. The two share no licence, so a source that may hold both names both. What carries no Creative Commons
licence (PMC's third group, "other") has no name here on purpose: such a licence has to be read, and named, one by one.

Source: "PMC Open Access Subset", https://pmc.ncbi.nlm.nih.gov/tools/openftlist/
"""

from collections.abc import Iterable

GROUPS: dict[str, frozenset[str]] = {
    "commercial": frozenset({"cc0", "cc-by", "cc-by-sa", "cc-by-nd"}),
    "non-commercial": frozenset({"cc-by-nc", "cc-by-nc-sa", "cc-by-nc-nd"}),
}
"""What a recipe may write instead of the licence groups of documents."""


def allowed(licences: Iterable[str]) -> frozenset[str]:
    """The licence groups that a source's `licences` allow, with the names of GROUPS written out; all others stay as they are."""
    return frozenset[str]().union(*(GROUPS.get(name, frozenset({name})) for name in licences))
