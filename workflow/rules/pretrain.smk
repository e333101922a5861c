# in:  packs/pretrain, splits/pretrain/size-<n>_seed-<s>, starts/<start> (none for a random start)
# out: pretrain/size-<n>_seed-<s><arm>/{encoder.safetensors, encoder.json, curve.csv, run.json}


rule pretrain:
    """Pre-train an encoder with SimMIM on a subset of the unlabelled images."""
    input:
        manifest=lambda w: below(layout.MANIFEST, pack=training_at(w).pack),
        images=ancient(lambda w: below(layout.IMAGES, pack=training_at(w).pack)),
        split=lambda w: split_of(training_at(w)),
        indices=ancient(lambda w: indices_of(split_of(training_at(w)))),
        parent=lambda w: origin_of(training_at(w), "record"),
        parent_weights=ancient(lambda w: origin_of(training_at(w), "weights")),
    output:
        **TRAINED["pretrain"],
    log:
        log_of("pretrain", layout.ENCODER),
    benchmark:
        benchmark_of("pretrain", layout.ENCODER)
    priority: 2  # the longest jobs first
    conda:
        PACKAGES
    threads: lambda w: TRAIN_CORES
    resources:
        **request(lambda w: workload.pretrain_workload(STUDY, int(w.size), training_at(w).arm)),
        **computing("stacked"),
    params:
        spec=spec("pretrain", lambda w: specs.training_spec(STUDY, training_at(w))),
        checkpoints=checkpoints_of("pretrain"),
    shell:
        "exec python -m viny pretrain --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
