# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>, the cell's encoder (none for a random start)
# out: finetune/<cell>/{model.safetensors, model.json, curve.csv, run.json}


rule finetune:
    """Fine-tune a cell's encoder for segmentation on its labelled images."""
    input:
        manifest=below(layout.MANIFEST, pack="segmentation"),
        images=ancient(below(layout.IMAGES, pack="segmentation")),
        split=lambda w: split_of(tuning_of(w)),
        indices=ancient(lambda w: indices_of(split_of(tuning_of(w)))),
        parent=lambda w: file_of(tuning_of(w).parent, "record"),
        parent_weights=ancient(lambda w: file_of(tuning_of(w).parent, "weights")),
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
        **request(lambda w: workload.finetune_workload(STUDY, ALL_CELLS[w.cell].finetune_size)),
        **computing("stacked"),
    params:
        spec=spec("finetune", lambda w: specs.finetune_spec(STUDY, ALL_CELLS[w.cell])),
        checkpoints=checkpoints_of("finetune"),
    shell:
        "exec python -m viny finetune --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
