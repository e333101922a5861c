# What does pre-training buy a small vision transformer? The study is config.yaml or a --configfile from studies/.
from snakemake.utils import min_version

min_version("9.27")


if not workflow.overwrite_configfiles:  # a study given by --configfile stands alone

    configfile: "config.yaml"


report: "workflow/report/study.rst"


include: "workflow/rules/driver.smk"
include: "workflow/rules/terminal.smk"
include: "workflow/rules/paths.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/belongs.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/intermediate.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/references.smk"
include: "workflow/rules/geometry.smk"
include: "workflow/rules/aggregate.smk"


rule all:
    """Run every cell of the study and write its tables, figures and report."""
    default_target: True
    input:  # all but the packs, so that deleted files are made again
        splits=SPLITS,
        starts=expand([below(pattern) for pattern in layout.START.values()], start=STARTS),
        trainings=TRAININGS,
        tunings=TUNINGS,
        cells=expand([METRICS, CONFUSION, SCORES], cell=CELLS),
        references=REFERENCES,
        geometry=expand([GEOMETRY, ARRAYS], encoder=ENCODERS),
        tables=[*TABLES, *STATISTICS, *REPRESENTATIONS, *SCORECARD, *DUPLICATES],
        figures=[*FIGURES, *STATISTICS_FIGURES, *REPRESENTATIONS_FIGURES],
        report=REPORT,
        summaries=SUMMARIES,
