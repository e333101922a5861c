# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>, an encoder and the one it is compared with (none for a random start)
# out: geometry/<encoder>.{json,npz}


rule geometry:
    """Measure the patch tokens of an encoder on held-out images."""
    input:
        manifest=rules.finetune.input.manifest,
        images=ancient(rules.finetune.input.images),
        split=probe_split,
        indices=ancient(lambda w: indices_of(probe_split(w))),
        encoder=lambda w: brought(w, layout.training_of, "record"),
        encoder_weights=ancient(lambda w: brought(w, layout.training_of, "weights")),
        reference=lambda w: brought(w, layout.reference_of, "record"),
        reference_weights=ancient(lambda w: brought(w, layout.reference_of, "weights")),
    output:
        metrics=GEOMETRY,
        arrays=ARRAYS,
    log:
        log_of("geometry", "{encoder}"),
    benchmark:
        benchmark_of("geometry", "{encoder}")
    conda:
        PACKAGES
    threads: STUDY["compute"]["train_threads"]
    resources:
        **request(lambda w: workload.geometry_workload(STUDY, ALL_ENCODERS[w.encoder].cell.arm)),
        **computing("short"),
    params:
        spec=spec("geometry", lambda w: specs.geometry_spec(STUDY, ALL_ENCODERS[w.encoder])),
    shell:
        "exec python -m viny geometry --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.encoder:q} || echo --encoder {input.encoder:q})"
        " $(test -z {input.reference:q} || echo --reference {input.reference:q})"
        " --metrics {output.metrics:q} --arrays {output.arrays:q} > {log:q} 2>&1"
