"""Rows in, tables, verdicts, figures and the PDF out. Nothing here is imported by the core."""
