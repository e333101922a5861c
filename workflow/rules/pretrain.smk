# in:  packs/pretrain, splits/pretrain/size-<n>_seed-<s>
# out: pretrain/size-<n>_seed-<s>/{encoder.safetensors, encoder.json, curve.csv, run.json}


rule pretrain:
    """Pre-train an encoder with SimMIM on a subset of the unlabelled images."""
    input:
        manifest=below(layout.MANIFEST, pack="pretrain"),
        images=ancient(below(layout.IMAGES, pack="pretrain")),
        split=below(layout.SPLIT, part="pretrain", subset=layout.SUBSET),
        indices=ancient(below(layout.INDICES, part="pretrain", subset=layout.SUBSET)),
    output:
        **TRAINED["pretrain"],
    log:
        log_of("pretrain", layout.SUBSET),
    benchmark:
        benchmark_of("pretrain", layout.SUBSET)
    priority: 2  # the longest jobs first
    conda:
        PACKAGES
    threads: lambda w: TRAIN_CORES
    resources:
        **request(lambda w: workload.pretrain_workload(STUDY, int(w.size))),
        **computing("stacked"),
    params:
        spec=spec("pretrain", lambda w: specs.pretrain_spec(STUDY, int(w.size), int(w.seed))),
        checkpoints=checkpoints_of("pretrain"),
    shell:
        "exec python -m viny pretrain --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
