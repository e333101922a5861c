# in:  packs/pretrain, splits/pretrain/size-<n>_seed-<s>
# out: pretrain/size-<n>_seed-<s>/{encoder.safetensors, encoder.json, curve.csv, run.json}

PRETRAIN_SUBSET = {"part": "pretrain", "subset": "size-{size}_seed-{seed}"}


rule pretrain:
    """Pre-train an encoder with SimMIM on a subset of the unlabelled images."""
    input:
        manifest=MANIFEST.format(pack="pretrain"),
        images=ancient(MANIFEST.format(pack="pretrain").replace("manifest.json", "images.npy")),
        split=SPLIT.format(**PRETRAIN_SUBSET),
        indices=ancient(INDICES.format(**PRETRAIN_SUBSET)),
    output:
        weights=f"{PRETRAINED}/encoder.safetensors",
        record=f"{PRETRAINED}/encoder.json",
        curve=f"{PRETRAINED}/curve.csv",
        run=f"{PRETRAINED}/run.json",
    log:
        f"{LOG}/pretrain/size-{{size}}_seed-{{seed}}.log",
    benchmark:
        f"{BENCHMARK}/pretrain/size-{{size}}_seed-{{seed}}.jsonl"
    priority: 2  # the longest jobs first
    conda:
        "../../envs/viny.yaml"
    threads: STUDY["compute"]["train_threads"]
    resources:
        **request(lambda w: work.pretrain_work(STUDY, int(w.size))),
        gpu=GPUS,
    params:
        spec=spec("pretrain", lambda w: grid.pretrain_spec(STUDY, int(w.size), int(w.seed))),
        checkpoints=PRETRAINED.replace(ROOT, CHECKPOINTS),
    shell:
        "exec python -m viny pretrain --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
