"""The stranger's side: policy, checks and reports, and the command `zkmark-verifier`; needs no marking key and no torch."""
