"""Version 1 of the wire messages and the Prover service, generated from zkmark.proto."""
