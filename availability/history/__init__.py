"""What was: the journal in a database, explanations of past answers, retention and proof. Never on a checkout's way."""
