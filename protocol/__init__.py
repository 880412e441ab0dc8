"""zkmark's protocol: keys, the integer network, and the zero-knowledge argument.  Not audited.  See SPEC.md.

Import from the modules: `keygen` (generate_key, check_key, VerificationKey, MarkingKey), `network` (Network),
`argument` (Statement, Context, prove, verify), `transcript` (FiatShamir and the interactive channel), `soundness`,
`errors`.
"""
