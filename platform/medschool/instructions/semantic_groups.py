"""The 15 semantic groups of the UMLS: anatomy, chemicals, disorders and so on.

The UMLS gives every concept one of 127 semantic types, by its number (TUI). Types are too fine to balance a data set over; the
groups were made for that: McCray, Burgun, Bodenreider, "Aggregating UMLS semantic types for reducing conceptual complexity",
MEDINFO 2001, pages 216-220. The table is theirs as the National Library of Medicine keeps it (SemGroups.txt, version of 2018).
It has also the numbers of types that later releases gave up, so that older releases can be read.
"""

_GROUPS = {
    "Activities & Behaviors": "T051 T052 T053 T054 T055 T056 T057 T064 T066",
    "Anatomy": "T017 T018 T021 T022 T023 T024 T025 T026 T029 T030 T031",
    "Chemicals & Drugs": (
        "T103 T104 T109 T110 T111 T114 T115 T116 T118 T119 T120 T121 T122 T123 T124 T125 T126 T127 T129 T130 T131 T192 T195 T196 "
        "T197 T200"
    ),
    "Concepts & Ideas": "T077 T078 T079 T080 T081 T082 T089 T102 T169 T170 T171 T185",
    "Devices": "T074 T075 T203",
    "Disorders": "T019 T020 T033 T037 T046 T047 T048 T049 T050 T184 T190 T191",
    "Genes & Molecular Sequences": "T028 T085 T086 T087 T088",
    "Geographic Areas": "T083",
    "Living Beings": (
        "T001 T002 T003 T004 T005 T006 T007 T008 T009 T010 T011 T012 T013 T014 T015 T016 T096 T097 T098 T099 T100 T101 T194 T204"
    ),
    "Objects": "T071 T072 T073 T167 T168",
    "Occupations": "T090 T091",
    "Organizations": "T092 T093 T094 T095",
    "Phenomena": "T034 T038 T067 T068 T069 T070",
    "Physiology": "T032 T039 T040 T041 T042 T043 T044 T045 T201",
    "Procedures": "T058 T059 T060 T061 T062 T063 T065",
}

GROUPS = ("", *_GROUPS)
"""Names of the groups; the first, empty one stands for no known type."""
GROUP_OF_TYPE = {tui: place for place, types in enumerate(_GROUPS.values(), start=1) for tui in types.split()}
"""Place in GROUPS of each semantic type: `{"T121": 3, ...}`."""
