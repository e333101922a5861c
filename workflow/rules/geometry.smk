# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>, an encoder and the one that it is compared with (none for random ones)
# out: geometry/<encoder>.{json,npz}


rule geometry:
    """Measure the patch tokens of an encoder on held-out images."""
    input:
        manifest=rules.finetune.input.manifest,
        images=ancient(rules.finetune.input.images),
        split=lambda w: SPLIT.format(**probe_subset(w)),
        indices=ancient(lambda w: INDICES.format(**probe_subset(w))),
        encoder=measured_encoder,
        encoder_weights=ancient(lambda w: weights_of(measured_encoder(w))),
        reference=reference_encoder,
        reference_weights=ancient(lambda w: weights_of(reference_encoder(w))),
    output:
        metrics=GEOMETRY,
        arrays=GEOMETRY.replace(".json", ".npz"),
    log:
        f"{LOG}/geometry/{{encoder}}.log",
    benchmark:
        f"{BENCHMARK}/geometry/{{encoder}}.jsonl"
    conda:
        "../../envs/viny.yaml"
    threads: STUDY["compute"]["train_threads"]
    resources:
        **request(lambda w: work.geometry_work(STUDY)),
        gpu=GPUS,
    params:
        spec=spec("geometry", lambda w: grid.geometry_spec(STUDY, ALL_ENCODERS[w.encoder])),
    shell:
        "exec python -m viny geometry --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.encoder:q} || echo --encoder {input.encoder:q})"
        " $(test -z {input.reference:q} || echo --reference {input.reference:q})"
        " --metrics {output.metrics:q} --arrays {output.arrays:q} > {log:q} 2>&1"
