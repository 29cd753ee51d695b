"""Questions to the ledgers of a store: which checkpoint has seen what.

    ledgers of all checkpoints + where/ tables of the token artifacts --why, withdraw, diff--> answers as JSON values

- `checkpoints` finds every finished model and every saved training state that has a ledger.
- `documents` follows documents into rows, and rows into steps.
- `withdraw` says which models have seen documents that must go, and what is left clean. `compare` sets two runs side by side.

Nothing is stored for this: a ledger holds a few numbers, and everything else follows from the order of the run.
"""
