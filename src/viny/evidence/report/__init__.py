"""The report: one page from a study's tables and figures."""

from pathlib import Path

CAPTIONS = Path(__file__).with_name("captions")  # of tables and figures; Snakemake's own report shows the same ones
