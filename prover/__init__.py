"""The owner's side: marking keys at rest, proving jobs, the gRPC server and the command `zkmark-prover`."""

from protocol import heap

heap.share()  # here, before anything else is imported: numpy starts threads
