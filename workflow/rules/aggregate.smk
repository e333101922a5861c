# in:  metrics/<cell>.{json,npz} of every cell, geometry/<encoder>.{json,npz}; for the figures curves, encoders and models too
# out: tables/*.{csv,md}, figures/*.{pdf,png}, report.html


rule tables:
    """Gather every cell's metrics into tables."""
    input:
        metrics=expand(METRICS, cell=CELLS),
    output:
        tables=in_report(TABLES, "Means over seeds"),
    log:
        f"{LOG}/tables.log",
    benchmark:
        f"{BENCHMARK}/tables.jsonl"
    localrule: True
    conda:
        "../../envs/viny.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        spec=spec("tables", lambda w: grid.tables_spec(STUDY)),
        root=lambda w, input: Path(input.metrics[0]).parents[1],
    shell:
        "exec python -m viny tables --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q}/tables > {log:q} 2>&1"


rule figures:
    """Draw the study's figures."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        curves=of_all_trainings("curve.csv"),
        manifest=rules.finetune.input.manifest,
        split=lambda w: SPLIT.format(**shown_subset()),
        indices=ancient(lambda w: INDICES.format(**shown_subset())),
        images=ancient(rules.finetune.input.images),
        pretrained=shown_encoder,
        pretrained_weights=ancient(lambda w: weights_of(shown_encoder(w))),
        models=shown_models,
        models_weights=ancient(lambda w: weights_of(shown_models(w))),
    output:
        figures=in_report(FIGURES, "The study"),
    log:
        f"{LOG}/figures.log",
    benchmark:
        f"{BENCHMARK}/figures.jsonl"
    localrule: True
    conda:
        "../../envs/viny.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("figures", lambda w: grid.figures_spec(STUDY)),
        root=lambda w, input: Path(input.metrics[0]).parents[1],
    shell:
        "exec python -m viny figures --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q}/figures > {log:q} 2>&1"


rule statistics:
    """Work out effects with their uncertainty, returns and costs."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        confusion=ancient(expand(METRICS.replace(".json", ".npz"), cell=CELLS)),
        runs=ancient(of_all_trainings("run.json")),
    output:
        tables=in_report(STATISTICS, "Effects and returns"),
        figures=in_report(STATISTICS_FIGURES, "Effects and returns"),
    log:
        f"{LOG}/statistics.log",
    benchmark:
        f"{BENCHMARK}/statistics.jsonl"
    localrule: True
    conda:
        "../../envs/viny.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("statistics", lambda w: grid.statistics_spec(STUDY)),
        root=lambda w, output: Path(output.tables[0]).parents[1],
    shell:
        "exec python -m viny statistics --spec {params.spec:q} --root {params.root:q} --out {params.root:q} > {log:q} 2>&1"


if ENCODERS:

    rule representations:
        """Gather the encoders' geometry, and hold it against the harm of each intermediate task."""
        input:
            geometry=expand(GEOMETRY, encoder=ENCODERS),
            arrays=ancient(expand(GEOMETRY.replace(".json", ".npz"), encoder=ENCODERS)),
            metrics=expand(METRICS, cell=CELLS),
        output:
            tables=in_report(REPRESENTATIONS, "Geometry"),
            figures=in_report(REPRESENTATIONS_FIGURES, "Geometry"),
        log:
            f"{LOG}/representations.log",
        benchmark:
            f"{BENCHMARK}/representations.jsonl"
        localrule: True
        conda:
            "../../envs/viny.yaml"
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            spec=spec("representations", lambda w: grid.representations_spec(STUDY)),
            root=lambda w, output: Path(output.tables[0]).parents[1],
        shell:
            "exec python -m viny representations --spec {params.spec:q} --root {params.root:q} --out {params.root:q} > {log:q} 2>&1"


rule scorecard:
    """Hold the study against the paper's numbers and claims."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        geometry=expand(GEOMETRY, encoder=ENCODERS),
        other=other_study,
    output:
        tables=in_report(SCORECARD, "Against the paper"),
    log:
        f"{LOG}/scorecard.log",
    benchmark:
        f"{BENCHMARK}/scorecard.jsonl"
    localrule: True
    conda:
        "../../envs/viny.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("scorecard", lambda w: grid.scorecard_spec(STUDY, differences_from_paper(STUDY))),
        root=lambda w, output: Path(output.tables[0]).parents[1],
    shell:
        "exec python -m viny scorecard --spec {params.spec:q} --root {params.root:q} --out {params.root:q} > {log:q} 2>&1"


rule report:
    """Write the study's report as one page."""
    input:
        tables=[*TABLES, *STATISTICS, *REPRESENTATIONS, *SCORECARD, *DUPLICATES],
        figures=[*FIGURES, *STATISTICS_FIGURES, *REPRESENTATIONS_FIGURES],
    output:
        page=REPORT,
    log:
        f"{LOG}/report.log",
    benchmark:
        f"{BENCHMARK}/report.jsonl"
    localrule: True
    conda:
        "../../envs/viny.yaml"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        spec=spec("report", lambda w: grid.report_spec(STUDY)),
        root=lambda w, output: Path(output.page).parent,
    shell:
        "exec python -m viny report --spec {params.spec:q} --root {params.root:q} --out {output.page:q} > {log:q} 2>&1"
