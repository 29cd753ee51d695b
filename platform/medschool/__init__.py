"""medschool puts a general language model through medical school.

One typed recipe describes a whole run; Ray carries it. In -> out:

    raw text --corpus--> documents --tokens--> packed rows --train--> checkpoint --evaluate--> scores
                                                                     checkpoint + scores --ablate--> verdict --serve--> HTTP

Imports point upstream along that line and never back (see CONTRIBUTING.md, "Import direction").
"""

__version__ = "0.1.0"
