"""The owner's side: marking keys at rest, proving jobs, the gRPC server and the command `zkmark-prover`."""
