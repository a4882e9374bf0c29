"""Pure rules: formula, policy, order facts, identifiers, errors. No I/O, no clock, imports nothing of ours."""
