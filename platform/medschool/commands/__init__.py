"""Groups of verbs of the command line: `medschool tokens ...`, `medschool ledger ...`.

One file a group. Each holds a Typer app that `medschool.cli` adds; `arguments` has what all verbs share.
"""
