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
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        spec=spec("tables", lambda w: {}),
        out=f"{ROOT}/tables",
    shell:
        "exec {PYTHON:q} -m viny tables --out {params.out:q} --metrics {input.metrics:q} > {log:q} 2>&1"


def all_curves(wildcards):
    """Learning curves of every training job that the cells need."""
    folders = []
    for cell in ALL_CELLS.values():
        at = {"size": cell.pretrain_size, "seed": cell.seed}
        if cell.pretrain_size:
            folders.append(PRETRAINED.format(**at))
        if cell.intermediate != "none":
            folders.append(ADAPTED.format(task=cell.intermediate, **at))
        folders.append(FINETUNED.format(cell=cell.name))
    return [f"{folder}/curve.csv" for folder in dict.fromkeys(folders)]


def shown_encoder(wildcards):
    """The encoder whose reconstructions are shown: most images, first seed."""
    seeds, sizes = STUDY["grid"]["seeds"], STUDY["grid"]["pretrain_sizes"]
    return parent_record("none", max(sizes), seeds[0])


def shown_models(wildcards):
    """The models whose predictions are shown: fewest and most labels, first seed, least and most pre-training."""
    shown = STUDY["grid"]
    picked = [
        grid.Cell(pretrain, shown["intermediates"][0], labels, shown["seeds"][0])
        for labels in (min(shown["finetune_sizes"]), max(shown["finetune_sizes"]))
        for pretrain in (min(shown["pretrain_sizes"]), max(shown["pretrain_sizes"]))
    ]
    return [f"{FINETUNED}/model.json".format(cell=cell.name) for cell in dict.fromkeys(picked)]


rule figures:
    """Draw the study's figures."""
    input:
        metrics=expand(METRICS, cell=CELLS),
        curves=all_curves,
        manifest=rules.finetune.input.manifest,
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
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        spec=spec("figures", lambda w: grid.figures_spec(STUDY)),
        out=f"{ROOT}/figures",
    shell:
        "exec {PYTHON:q} -m viny figures --spec {params.spec:q} --out {params.out:q}"
        " --manifest {input.manifest:q} --metrics {input.metrics:q} --curves {input.curves:q}"
        " $(test -z {input.pretrained:q} || echo --pretrained {input.pretrained:q})"
        " --models {input.models:q} > {log:q} 2>&1"
