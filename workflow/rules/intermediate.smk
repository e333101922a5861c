# in:  packs/<task>, splits/intermediate/<task>, pretrain/size-<n>_seed-<s> (none for size 0)
# out: intermediate/<task>/size-<n>_seed-<s>/{encoder.safetensors, encoder.json, curve.csv, run.json}


rule intermediate:
    """Train a pre-trained (or, for size 0, a random) encoder on an intermediate task."""
    input:
        manifest=MANIFEST.format(pack="{task}"),
        images=ancient(MANIFEST.format(pack="{task}").replace("manifest.json", "images.npy")),
        split=SPLIT.format(part="intermediate", subset="{task}"),
        indices=ancient(INDICES.format(part="intermediate", subset="{task}")),
        parent=pretrained,
        parent_weights=ancient(lambda w: weights_of(pretrained(w))),
    output:
        weights=f"{ADAPTED}/encoder.safetensors",
        record=f"{ADAPTED}/encoder.json",
        curve=f"{ADAPTED}/curve.csv",
        run=f"{ADAPTED}/run.json",
    log:
        f"{LOG}/intermediate/{{task}}/size-{{size}}_seed-{{seed}}.log",
    benchmark:
        f"{BENCHMARK}/intermediate/{{task}}/size-{{size}}_seed-{{seed}}.jsonl"
    priority: 1
    conda:
        "../../envs/viny.yaml"
    threads: STUDY["compute"]["train_threads"]
    resources:
        **request(lambda w: work.intermediate_work(STUDY, w.task, IMAGES.get(w.task))),
        gpu=GPUS,
    params:
        spec=spec(
            "intermediate",
            lambda w: grid.intermediate_spec(STUDY, w.task, int(w.size), int(w.seed)),
        ),
        checkpoints=ADAPTED.replace(ROOT, CHECKPOINTS),
    shell:
        "exec python -m viny intermediate --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
