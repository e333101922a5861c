# in:  metrics/<cell>.{json,npz} of every cell, geometry/<encoder>.{json,npz}; for the figures curves, encoders and models too
# out: tables/*.{csv,md}, figures/*.{pdf,png}, report.html; of each rule its record, summaries/<rule>.json


rule tables:
    """Gather every cell's metrics into tables."""
    input:
        metrics=expand(METRICS, cell=CELLS),
    output:
        tables=in_report(TABLES, "Means over seeds"),
        record=summary_of("tables"),
    log:
        log_of("tables"),
    benchmark:
        benchmark_of("tables")
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        spec=spec("tables", lambda w: specs.summary_spec(STUDY, "tables")),
        root=lambda w, input: Path(input.metrics[0]).parents[1],
    shell:
        "exec python -m viny tables --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q} --record {output.record:q} > {log:q} 2>&1"


rule figures:
    """Draw the study's figures."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        confusion=ancient(expand(CONFUSION, cell=CELLS)),
        references=of_references("record"),
        references_confusion=ancient(of_references("confusion")),
        curves=of_all_trainings("curve"),
        records=ancient(of_all_trainings("record")),
        manifest=rules.finetune.input.manifest,
        split=split_of(SHOWN_MODELS[-1]),
        indices=ancient(indices_of(split_of(SHOWN_MODELS[-1]))),
        images=ancient(rules.finetune.input.images),
        pretrained=file_of(SHOWN_ENCODER, "record"),
        pretrained_weights=ancient(file_of(SHOWN_ENCODER, "weights")),
        models=[path for model in SHOWN_MODELS for path in file_of(model, "record")],
        # The worst images are shown of the best cell, which is not known before.
        models_weights=ancient([path for model in BASE_MODELS for path in file_of(model, "weights")]),
    output:
        figures=in_report(FIGURES, "The study"),
        record=summary_of("figures"),
    log:
        log_of("figures"),
    benchmark:
        benchmark_of("figures")
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("figures", lambda w: specs.summary_spec(STUDY, "figures")),
        root=lambda w, input: Path(input.metrics[0]).parents[1],
    shell:
        "exec python -m viny figures --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q} --record {output.record:q} > {log:q} 2>&1"


rule statistics:
    """Work out effects with their uncertainty, returns and costs."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        confusion=ancient(expand(CONFUSION, cell=CELLS)),
        references=of_references("record"),
        references_confusion=ancient(of_references("confusion")),
        runs=ancient(of_all_trainings("run")),
        curves=of_pretrainings("curve") if layout.held_out_curves(STUDY) else [],
        tuned=TUNINGS,
    output:
        tables=in_report(STATISTICS, "Effects and returns"),
        figures=in_report(STATISTICS_FIGURES, "Effects and returns"),
        record=summary_of("statistics"),
    log:
        log_of("statistics"),
    benchmark:
        benchmark_of("statistics")
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("statistics", lambda w: specs.summary_spec(STUDY, "statistics")),
        root=lambda w, output: Path(output.tables[0]).parents[1],
    shell:
        "exec python -m viny statistics --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q} --record {output.record:q} > {log:q} 2>&1"


if ENCODERS:

    rule representations:
        """Gather the encoders' geometry, and compare it with the harm of each intermediate task."""
        input:
            geometry=expand(GEOMETRY, encoder=ENCODERS),
            arrays=ancient(expand(ARRAYS, encoder=ENCODERS)),
            metrics=expand(METRICS, cell=CELLS),
            confusion=ancient(expand(CONFUSION, cell=CELLS)),
        output:
            tables=in_report(REPRESENTATIONS, "Geometry"),
            figures=in_report(REPRESENTATIONS_FIGURES, "Geometry"),
            record=summary_of("representations"),
        log:
            log_of("representations"),
        benchmark:
            benchmark_of("representations")
        localrule: True
        conda:
            PACKAGES
        resources:
            mem_mb=2000,
            runtime=30,
        params:
            spec=spec("representations", lambda w: specs.summary_spec(STUDY, "representations")),
            root=lambda w, output: Path(output.tables[0]).parents[1],
        shell:
            "exec python -m viny representations --spec {params.spec:q} --root {params.root:q}"
            " --out {params.root:q} --record {output.record:q} > {log:q} 2>&1"


rule scorecard:
    """Compare the study with the paper's numbers and claims."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        confusion=ancient(expand(CONFUSION, cell=CELLS)),
        geometry=expand(GEOMETRY, encoder=ENCODERS),
        other=other_study,
    output:
        tables=in_report(SCORECARD, "Against the paper"),
        record=summary_of("scorecard"),
    log:
        log_of("scorecard"),
    benchmark:
        benchmark_of("scorecard")
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("scorecard", lambda w: specs.summary_spec(STUDY, "scorecard")),
        root=lambda w, output: Path(output.tables[0]).parents[1],
    shell:
        "exec python -m viny scorecard --spec {params.spec:q} --root {params.root:q}"
        " --out {params.root:q} --record {output.record:q} > {log:q} 2>&1"


rule report:
    """Write the study's report as one page."""
    input:
        tables=[*TABLES, *STATISTICS, *REPRESENTATIONS, *SCORECARD, *DUPLICATES],
        figures=[*FIGURES, *STATISTICS_FIGURES, *REPRESENTATIONS_FIGURES],
        # What its advice reads.
        metrics=expand(METRICS, cell=CELLS),
        confusion=ancient(expand(CONFUSION, cell=CELLS)),
        runs=ancient(of_all_trainings("run")),
        curves=of_all_trainings("curve"),
        manifest=rules.finetune.input.manifest,
        tuned=TUNINGS,
    output:
        page=REPORT,
        record=summary_of("report"),
    log:
        log_of("report"),
    benchmark:
        benchmark_of("report")
    localrule: True
    conda:
        PACKAGES
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        spec=spec("report", lambda w: specs.summary_spec(STUDY, "report")),
        root=lambda w, output: Path(output.page).parent,
    shell:
        "exec python -m viny report --spec {params.spec:q} --root {params.root:q}"
        " --out {output.page:q} --record {output.record:q} > {log:q} 2>&1"
