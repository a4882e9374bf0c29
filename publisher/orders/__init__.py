"""Orders of a shop on their way into the ledger: facts (pure), the book of what was told, reading, webhooks."""
