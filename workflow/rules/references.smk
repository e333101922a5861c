# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>
# out: references/unet_fine-<n>_seed-<s>.{json,safetensors,npz,csv}, unless the study has 'references: false'


if REFERENCES:

    rule reference:
        """Train and evaluate a small U-Net from scratch on the labelled images of some cells."""
        input:
            manifest=rules.finetune.input.manifest,
            images=rules.finetune.input.images,
            split=split_of_reference,
            indices=ancient(lambda w: indices_of(split_of_reference(w))),
        output:
            **{what: below(pattern) for what, pattern in layout.REFERENCE.items()},
        log:
            log_of("reference", "{reference}"),
        benchmark:
            benchmark_of("reference", "{reference}")
        conda:
            PACKAGES
        threads: STUDY["compute"]["train_threads"]
        resources:
            **request(lambda w: workload.reference_workload(STUDY, ALL_REFERENCES[w.reference].finetune_size)),
            **computing("short"),
        params:
            spec=spec("reference", lambda w: specs.reference_spec(STUDY, ALL_REFERENCES[w.reference])),
            checkpoints=below(layout.CHECKPOINTS, job="reference/{reference}"),
        shell:
            "exec python -m viny reference --spec {params.spec:q} --threads {threads}"
            " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
            " --record {output.record:q} --weights {output.weights:q} --confusion {output.confusion:q}"
            " --curve {output.curve:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
