"""Training on TRL's trainers: supervised fine-tuning, DPO and self-refinement, with checkpoints that resume exactly."""
