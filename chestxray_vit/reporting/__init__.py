"""The report of an evaluation: auc.json, and the model card."""
