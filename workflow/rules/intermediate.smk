# in:  packs/<task>, splits/intermediate/<task>, the encoder that comes before (none for a random start)
# out: intermediate/<task>/size-<n>_seed-<s><arm>/{encoder.safetensors, encoder.json, curve.csv, run.json}


rule intermediate:
    """Train a pre-trained (or, for size 0, a random) encoder on an intermediate task."""
    input:
        manifest=below(layout.MANIFEST, pack="{task}"),
        images=ancient(below(layout.IMAGES, pack="{task}")),
        split=lambda w: split_of(training_at(w)),
        indices=ancient(lambda w: indices_of(split_of(training_at(w)))),
        parent=lambda w: origin_of(training_at(w), "record"),
        parent_weights=ancient(lambda w: origin_of(training_at(w), "weights")),
    output:
        **TRAINED["intermediate"],
    log:
        log_of("intermediate", "{task}", layout.ENCODER),
    benchmark:
        benchmark_of("intermediate", "{task}", layout.ENCODER)
    priority: 1
    conda:
        PACKAGES
    threads: lambda w: TRAIN_CORES
    resources:
        **request(lambda w: workload.intermediate_workload(STUDY, w.task, images_in(w.task), training_at(w).arm)),
        **computing("stacked"),
    params:
        spec=spec("intermediate", lambda w: specs.training_spec(STUDY, training_at(w))),
        checkpoints=checkpoints_of("intermediate"),
    shell:
        "exec python -m viny intermediate --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
