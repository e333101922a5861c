# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>, finetune/<cell>
# out: metrics/<cell>.{json,npz}, scores/<cell>.csv


rule evaluate:
    """Evaluate a cell's model on its test images."""
    input:
        manifest=rules.finetune.input.manifest,
        images=ancient(rules.finetune.input.images),
        split=lambda w: split_of(tuning_of(w)),
        indices=ancient(lambda w: indices_of(split_of(tuning_of(w)))),
        model=rules.finetune.output.record,
        weights=ancient(rules.finetune.output.weights),
    output:
        metrics=METRICS,
        confusion=CONFUSION,
        scores=SCORES,
    log:
        log_of("evaluate", "{cell}"),
    benchmark:
        benchmark_of("evaluate", "{cell}")
    priority: 3  # seconds, and what a run that is not at its end has to show
    conda:
        PACKAGES
    threads: STUDY["compute"]["train_threads"]
    resources:
        **request(lambda w: workload.evaluate_workload(STUDY, arm=ALL_CELLS[w.cell].arm)),
        **computing("short"),
    params:
        spec=spec("evaluate", lambda w: specs.evaluate_spec(STUDY, ALL_CELLS[w.cell])),
    shell:
        "exec python -m viny evaluate --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " --model {input.model:q} --metrics {output.metrics:q} --confusion {output.confusion:q}"
        " --scores {output.scores:q}"
        " > {log:q} 2>&1"
