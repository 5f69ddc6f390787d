"""The sections of a report: each is one entry of auc.json, with None where a number is undefined."""
