"""Fine-tuning: arguments, plan, engines, run folder."""
