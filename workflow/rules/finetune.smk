# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>, the cell's encoder (none for a random start)
# out: tuning/<cell>.json, where the rate is chosen; finetune/<cell>/{model.safetensors, model.json, curve.csv, run.json}


rule finetune:
    """Fine-tune a cell's encoder for segmentation on its labelled images."""
    input:
        manifest=below(layout.MANIFEST, pack="segmentation"),
        images=ancient(below(layout.IMAGES, pack="segmentation")),
        split=lambda w: split_of(tuning_of(w)),
        indices=ancient(lambda w: indices_of(split_of(tuning_of(w)))),
        parent=lambda w: origin_of(tuning_of(w), "record"),
        parent_weights=ancient(lambda w: origin_of(tuning_of(w), "weights")),
        tuned=tunings_of,
    output:
        **TRAINED["finetune"],
    log:
        log_of("finetune", "{cell}"),
    benchmark:
        benchmark_of("finetune", "{cell}")
    conda:
        PACKAGES
    threads: lambda w: TRAIN_CORES
    resources:
        **request(lambda w: workload.finetune_workload(STUDY, *labels_of(w))),
        **computing("stacked"),
    params:
        spec=spec("finetune", lambda w: specs.finetune_spec(STUDY, ALL_CELLS[w.cell])),
        checkpoints=checkpoints_of("finetune"),
    shell:
        "exec python -m viny finetune --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " $(for one in {input.tuned:q}; do echo --tuned; break; done) {input.tuned:q}"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"


if TUNINGS:

    rule tune:
        """Score the rates of a cell's fine-tuning by short trainings on a part of its labelled images."""
        input:
            manifest=rules.finetune.input.manifest,
            images=rules.finetune.input.images,
            split=rules.finetune.input.split,
            indices=rules.finetune.input.indices,
            parent=rules.finetune.input.parent,
            parent_weights=rules.finetune.input.parent_weights,
        output:
            record=below(layout.TUNING),
        log:
            log_of("tune", "{cell}"),
        benchmark:
            benchmark_of("tune", "{cell}")
        conda:
            PACKAGES
        threads: STUDY["compute"]["train_threads"]
        resources:
            **request(lambda w: workload.tune_workload(STUDY, *labels_of(w))),
            **computing("short"),
        params:
            spec=spec("tune", lambda w: specs.tune_spec(STUDY, ALL_CELLS[w.cell])),
            checkpoints=below(layout.CHECKPOINTS, job="tune/{cell}"),
        shell:
            "exec python -m viny tune --spec {params.spec:q} --threads {threads}"
            " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
            " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
            " --record {output.record:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
