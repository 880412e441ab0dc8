"""What happens to a marked model in a thief's hands.  The thief has data of the task, never the owner's triggers.

fine_tuning   FTLL, FTAL, RTLL, RTAL, overwriting (Adi et al.), adversarial fine-tuning (Le Merrer et al.), transfer
compression   pruning, low rank by SVD (Le Merrer et al.), weights of few bits
distillation  hard and soft labels, with or without a regularized first phase (Bansal et al.)
evasion       vote of several models, detector of triggers (Hitaj and Mancini)
false_claim   transferable adversaries presented as a watermark (Liu et al., USENIX Security 2024)

Models are changed in copies: an attack returns a new model of the same architecture, which exports and derives as any.
"""
