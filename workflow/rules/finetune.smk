# in:  packs/segmentation, splits/finetune/size-<n>_seed-<s>, the cell's encoder (none for a random start)
# out: finetune/<cell>/{model.safetensors, model.json, curve.csv, run.json}


rule finetune:
    """Fine-tune a cell's encoder for segmentation on its labelled images."""
    input:
        manifest=MANIFEST.format(pack="segmentation"),
        images=ancient(MANIFEST.format(pack="segmentation").replace("manifest.json", "images.npy")),
        split=lambda w: SPLIT.format(**subset_of(w)),
        indices=ancient(lambda w: INDICES.format(**subset_of(w))),
        parent=encoder_of,
        parent_weights=ancient(lambda w: weights_of(encoder_of(w))),
    output:
        weights=f"{FINETUNED}/model.safetensors",
        record=f"{FINETUNED}/model.json",
        curve=f"{FINETUNED}/curve.csv",
        run=f"{FINETUNED}/run.json",
    log:
        f"{LOG}/finetune/{{cell}}.log",
    benchmark:
        f"{BENCHMARK}/finetune/{{cell}}.jsonl"
    conda:
        "../../envs/viny.yaml"
    threads: STUDY["compute"]["train_threads"]
    resources:
        **request(lambda w: work.finetune_work(STUDY, ALL_CELLS[w.cell].finetune_size)),
        gpu=GPUS,
    params:
        spec=spec("finetune", lambda w: grid.finetune_spec(STUDY, ALL_CELLS[w.cell])),
        checkpoints=FINETUNED.replace(ROOT, CHECKPOINTS),
    shell:
        "exec python -m viny finetune --spec {params.spec:q} --threads {threads}"
        " --manifest {input.manifest:q} --split {input.split:q} --indices {input.indices:q}"
        " $(test -z {input.parent:q} || echo --parent {input.parent:q})"
        " --weights {output.weights:q} --record {output.record:q} --curve {output.curve:q}"
        " --run {output.run:q} --checkpoints {params.checkpoints:q} > {log:q} 2>&1"
