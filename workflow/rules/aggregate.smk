# in:  metrics/<cell>.json of every cell; for the figures curves, encoders and models too
# out: tables/*.{csv,md}, figures/*.{pdf,png}


rule tables:
    """Gather every cell's metrics into tables."""
    input:
        metrics=expand(METRICS, cell=CELLS),
    output:
        tables=TABLES,
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
        curves=all_curves,
        manifest=rules.finetune.input.manifest,
        split=lambda w: SPLIT.format(**shown_subset()),
        indices=ancient(lambda w: INDICES.format(**shown_subset())),
        images=ancient(rules.finetune.input.images),
        pretrained=shown_encoder,
        pretrained_weights=ancient(lambda w: weights_of(shown_encoder(w))),
        models=shown_models,
        models_weights=ancient(lambda w: weights_of(shown_models(w))),
    output:
        figures=FIGURES,
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
