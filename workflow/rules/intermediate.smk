# in:  packs/<task>, splits/intermediate/<task>, pretrain/size-<n>_seed-<s> (none for size 0)
# out: intermediate/<task>/size-<n>_seed-<s>/{encoder.safetensors, encoder.json, curve.csv, run.json}


rule intermediate:
    """Train a pre-trained (or, for size 0, a random) encoder on an intermediate task."""
    input:
        manifest=below(layout.MANIFEST, pack="{task}"),
        images=ancient(below(layout.IMAGES, pack="{task}")),
        split=below(layout.SPLIT, part="intermediate", subset="{task}"),
        indices=ancient(below(layout.INDICES, part="intermediate", subset="{task}")),
        parent=lambda w: file_of(pretraining_of(w), "record"),
        parent_weights=ancient(lambda w: file_of(pretraining_of(w), "weights")),
    output:
        **TRAINED["intermediate"],
    log:
        log_of("intermediate", "{task}", layout.SUBSET),
    benchmark:
        benchmark_of("intermediate", "{task}", layout.SUBSET)
    priority: 1
    conda:
        PACKAGES
    threads: lambda w: TRAIN_CORES
    resources:
        **request(lambda w: workload.intermediate_workload(STUDY, w.task, images_in(w.task))),
        **computing("stacked"),
    params:
        spec=spec(
            "intermediate",
            lambda w: specs.intermediate_spec(STUDY, w.task, int(w.size), int(w.seed)),
        ),
        checkpoints=checkpoints_of("intermediate"),
    shell:
        "exec python -m viny intermediate --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
