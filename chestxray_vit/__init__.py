"""Fine-tune a multi-label Vision Transformer on NIH ChestX-ray14 and report an AUC-ROC that holds.

For research use: the labels are mined from report text of one hospital. See README.md for the way of one X-ray."""

__version__ = "0.5.0"
