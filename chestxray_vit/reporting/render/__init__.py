"""The report as text, CSV, Markdown and HTML."""
