"""What a weight generator must beat: nets made from training checkpoints without learning a rule, and unconditional
diffusion."""
