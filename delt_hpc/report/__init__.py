"""The report of a run: numbers from the run folder, drawn and written as HTML, Markdown and JSON."""
