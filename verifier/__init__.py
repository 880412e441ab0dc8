"""The stranger's side: policy, checks, reports and the command `zkmark-verifier`; no marking key, no torch."""
